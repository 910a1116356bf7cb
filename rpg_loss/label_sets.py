"""Label sets: the distinct labels, or label vectors, that occur among the references."""

from __future__ import annotations

import torch
from torch import Tensor

# Bits in one word of the encoding: int64 without its sign bit.
_WORD = 63


def encode_label_sets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct labels of the references.

    Args:
        labels: ``(N,)`` integers or ``(N, C)`` 0/1.

    Returns:
        ``set_ids``, ``(N,)`` int64, the label set of every reference, and ``set_labels``, ``(|S|,)`` or
        ``(|S|, C)``, the labels of every set, in the dtype of ``labels``.
    """
    if labels.ndim == 1:
        set_labels, set_ids = torch.unique(labels, return_inverse=True)
        return set_ids, set_labels
    set_ids = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    if len(labels) == 0:
        return set_ids, labels
    for word in torch.split(labels.bool(), _WORD, dim=1):
        bits = torch.arange(word.shape[1], device=labels.device)
        code = torch.where(word, torch.ones_like(bits) << bits, 0).sum(1)
        # Renumbering after each word keeps the combined code below N * N: exact for any number of labels.
        code = torch.unique(code, return_inverse=True)[1]
        set_ids = torch.unique(set_ids * (code.max() + 1) + code, return_inverse=True)[1]
    example = torch.empty(int(set_ids.max()) + 1, dtype=torch.int64, device=labels.device)
    example[set_ids] = torch.arange(len(labels), device=labels.device)
    return set_ids, labels[example]

"""Weighted cross-entropy of segmentation, for classes that exclude each other and for labels that overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_floating, check_tensor, is_ignored, upcast_unsigned
from .union import mean_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def segmentation_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    ignore_index: int = -100,
    group: ProcessGroup | None = None,
) -> Tensor:
    r"""Return the mean of W * CE over all entries that are not ignored: multi-class, or binary per label.

    .. math::
        L = \frac{1}{|E|} \sum_{e \in E} W_e \, \text{CE}(\text{logits}_e, \text{target}_e)

    Whether it is multi-class or binary per label follows from ``target``.  The sum is not divided by that of the
    weights: doubtful pixels weigh less, they do not make others weigh more (the expectation in Eq. 8).  Where
    everything is ignored the loss is 0, with a graph that gives zero gradients.

    Args:
        logits: ``(B, C, *S)`` floating point; half precision is computed in float32.
        target: class map ``(B, *S)`` of integers in [0, C), or label vectors ``(B, C, *S)`` in [0, 1].
        weights: ``(B, *S)``, or ``(B, C, *S)`` for label vectors; all 1 if None.
        valid: bool of one of these two shapes, False where an entry is to be ignored.
        ignore_index: entries of ``target`` with this value are ignored.
        group: processes whose entries together the mean is taken over, however many each has: the mean of what they
            return is the loss of one process with all entries, and so are the gradients that DistributedDataParallel
            averages.  Every process of it must call this.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: ``logits`` is not floating point, or ``target`` is not a tensor.
        ValueError: shapes that do not fit.  (The values of ``target`` are not looked at: that would make a GPU wait.)

    Example:
        >>> logits, target, weights = torch.zeros(1, 2, 2), torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.0]])
        >>> segmentation_cross_entropy(logits, target, weights)  # 0.5 log 2 / 2
        tensor(0.1733)
    """
    check_floating("logits", logits)
    check_tensor("target", target)
    class_map = (logits.shape[0], *logits.shape[2:])
    multilabel = target.ndim == logits.ndim
    if tuple(target.shape) != (tuple(logits.shape) if multilabel else class_map):
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected a class map {class_map} or label vectors "
            f"{tuple(logits.shape)} to go with the logits"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = upcast_unsigned(target)
    used = ~is_ignored(target, ignore_index)
    if multilabel:
        labels = target.masked_fill(~used, 0).to(logits.dtype)
        entries = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    else:
        entries = F.cross_entropy(logits, target.long().masked_fill(~used, 0), reduction="none")
    if valid is not None:
        used = used & _per_entry("valid", valid, entries, multilabel=multilabel)
    factor = used.to(entries.dtype)
    if weights is not None:
        factor = factor * _per_entry("weights", weights, entries, multilabel=multilabel).to(entries.dtype)
    total = used.sum()
    if group is not None:
        total = mean_over(group, total)
    return (entries * factor).sum() / total.masked_fill(total == 0, 1)


def _per_entry(name: str, tensor: Tensor, entries: Tensor, *, multilabel: bool) -> Tensor:
    """Bring a tensor given per pixel, or per label and pixel, to the axes of the entries' loss."""
    pixels = (entries.shape[0], *entries.shape[2:]) if multilabel else tuple(entries.shape)
    if tuple(tensor.shape) == pixels:
        return tensor.unsqueeze(1) if multilabel else tensor
    if tensor.shape != entries.shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {pixels} to go with the target")
    return tensor

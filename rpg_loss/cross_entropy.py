"""Weighted cross-entropy of segmentation, for classes that exclude each other and for labels that overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    check_floating,
    check_int,
    check_label_dtype,
    check_mask,
    check_real,
    check_same_device,
    check_tensor,
    is_ignored,
    upcast_unsigned,
)
from .union import agree, mean_over, raise_on_all_ranks

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
    everything is ignored the loss is 0, with a graph that gives zero gradients.  Entries that are ignored or have
    weight 0 give no loss and no gradient, whatever their logits are, NaN and infinity included.

    Args:
        logits: ``(B, C, *S)`` floating point; half precision is computed in float32.
        target: class map ``(B, *S)`` of integers in [0, C), or label vectors ``(B, C, *S)`` in [0, 1].
        weights: ``(B, *S)``, or ``(B, C, *S)`` for label vectors; all 1 if None.
        valid: bool of one of these two shapes, False where an entry is to be ignored.
        ignore_index: entries of ``target`` with this value are ignored.
        group: processes whose entries together the mean is taken over, however many each has: the mean of what they
            return is the loss of one process with all entries, and so are the gradients that DistributedDataParallel
            averages.  Every process of it must call this.  Not for ``torch.compile(fullgraph=True)``.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: an argument is not a dense tensor, ``logits`` are not floating point, a class map is not of an
            integer dtype, label vectors or weights are not real, ``ignore_index`` is not an int.
        ValueError: shapes or devices that do not fit, ``valid`` is not bool, one channel for a class map, or another
            process of ``group`` with any of these or with arguments that must be equal.  (The values of ``target`` are
            not looked at: that would make a GPU wait.)

    Example:
        >>> logits, target, weights = torch.zeros(1, 2, 2), torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.0]])
        >>> segmentation_cross_entropy(logits, target, weights)  # 0.5 log 2 / 2
        tensor(0.1733)
    """
    with raise_on_all_ranks(group):
        check_floating("logits", logits)
        check_tensor("target", target)
        if logits.ndim < 2 or logits.shape[1] == 0:
            raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (B, C, *spatial)")
        pixels = (logits.shape[0], *logits.shape[2:])
        multilabel = target.ndim == logits.ndim
        if tuple(target.shape) != (tuple(logits.shape) if multilabel else pixels):
            raise ValueError(
                f"target: got shape {tuple(target.shape)}, expected a class map {pixels} or label vectors "
                f"{tuple(logits.shape)} to go with the logits"
            )
        check_label_dtype("target", target, multilabel)
        if not multilabel and logits.shape[1] == 1:
            raise ValueError(
                f"logits: got one channel {tuple(logits.shape)} and target as a class map {pixels}, a loss that is "
                "always 0; for one binary label pass target as (B, 1, *S) 0/1, for classes one channel per class"
            )
        check_int("ignore_index", ignore_index)
        for name, tensor in (("weights", weights), ("valid", valid)):
            if tensor is None:
                continue
            check_tensor(name, tensor)
            if tensor.shape not in (pixels, target.shape):
                raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {pixels} to go with the target")
        if weights is not None:
            check_real("weights", weights)
        if valid is not None:
            check_mask("valid", valid, tuple(valid.shape), "the target")
        check_same_device(logits=logits, target=target, weights=weights, valid=valid)
    agree(group, {"ignore_index": ignore_index, "channels": logits.shape[1], "label vectors": multilabel})
    return mean_cross_entropy(logits, target, weights, valid, ignore_index, group)


def mean_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None,
    valid: Tensor | None,
    ignore_index: int,
    group: ProcessGroup | None,
) -> Tensor:
    """Do what :func:`segmentation_cross_entropy` does, for arguments that have been checked."""
    multilabel = target.ndim == logits.ndim
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = upcast_unsigned(target)
    used = ~is_ignored(target, ignore_index)
    if valid is not None:
        used = used & (valid.unsqueeze(1) if valid.ndim < target.ndim else valid)
    kept, factor = used, used.to(logits.dtype)
    if weights is not None:
        weights = (weights.unsqueeze(1) if weights.ndim < target.ndim else weights).to(logits.dtype)
        kept = used & (weights != 0)
        factor = torch.where(kept, weights, 0)
    # What has no part must not reach the sum or its gradient: 0 times infinity is NaN.  Layouts are kept, of the logits
    # and of their gradient: in another one the layers below are slower, and sum in another order.
    if multilabel:
        logits = torch.where(torch.ones_like(logits, dtype=torch.bool) & kept, logits, 0)
        labels = target.masked_fill(~kept, 0).to(logits.dtype)
        entries = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    else:
        logits = logits.clone().masked_fill_(~kept.unsqueeze(1), 0)  # its gradient is contiguous, as cross_entropy's is
        entries = F.cross_entropy(logits, target.long().masked_fill(~kept, 0), reduction="none")
    total = used.sum()
    if group is not None:
        total = mean_over(group, total)
    return (entries * factor).sum() / total.masked_fill(total == 0, 1)

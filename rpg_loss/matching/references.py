"""The reference set, by label sets: on one process, or shared out over the processes of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


# Bits in one word of the encoding of label vectors: int64 without its sign bit.
_WORD = 63


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor of no subclass, which may look at every slice that is taken: MONAI's collates its metadata anew.

    One that is none stays as it is: torch 2.4 refuses to make it one anew inside a dispatch mode, as profilers use.
    """
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


class LocalReferences:
    """All references are here.

    Attributes:
        features: ``(N, D)`` real floating point, of the references of this process.
        set_ids: ``(N,)`` int64 in ``[0, num_sets)``, their label sets.  Each occurs, on some process.
        num_sets: number of label sets, |S|.
        total: number of references.
        largest: number of references of the process that has most.
        first_index: index of this process's first reference among all.
        sizes: ``(|S|,)`` int64, number of references of every label set.
    """

    first_index = 0

    def __init__(self, features: Tensor, set_ids: Tensor, num_sets: int) -> None:
        self.features, self.set_ids, self.num_sets = plain(features), plain(set_ids), num_sets
        self.total = self.largest = len(features)
        self.sizes = torch.bincount(self.set_ids, minlength=num_sets)

    def maximum(self, values: Tensor) -> Tensor:
        """Return the elementwise maximum over all processes."""
        return values

    def minimum(self, values: Tensor) -> Tensor:
        """Return the elementwise minimum over all processes."""
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Return the elementwise sum over all processes."""
        return values


class ShardedReferences(LocalReferences):
    """Every process of a group holds some of the references; together they are the reference set.

    The references of a process follow those of the processes before it.  All processes must ask the same
    questions in the same order: what is asked depends only on the queries and on answers that all have got.
    """

    def __init__(self, features: Tensor, set_ids: Tensor, num_sets: int, group: ProcessGroup) -> None:
        super().__init__(features, set_ids, num_sets)
        self.group = group
        counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=features.device)
        rank = dist.get_rank(group)
        counts[rank] = len(features)
        counts = self.sum(counts)
        self.total, self.largest = int(counts.sum()), int(counts.max())
        self.first_index = int(counts[:rank].sum())
        self.sizes = self.sum(self.sizes)

    def maximum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MAX)

    def minimum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MIN)

    def sum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.SUM)

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        values = values.contiguous()
        dist.all_reduce(values, operation, group=self.group)
        return values


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

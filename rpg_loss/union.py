"""One reference set out of the references of several processes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .encoding import content_of
from .matching.references import LocalReferences, ShardedReferences, encode_label_sets

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class GroupModule(nn.Module):
    """A module whose copies, of which moving averages are, talk to the same processes: a group cannot be copied."""

    group: ProcessGroup | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self.group)] = self.group
        memo[id(self)] = copied = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


class Union(NamedTuple):
    """What a process needs to match, alone or together with others.

    Attributes:
        queries: ``(M', D)``, the same on all processes.
        mine: which of them are this process's own.
        references: those of this process, with label sets in a numbering that all share.
        set_labels: ``(|S|,)`` or ``(|S|, C)``, labels of every set, the same on all processes.
        impl: the implementation of the matching, the same on all processes.
    """

    queries: Tensor
    mine: slice
    references: LocalReferences
    set_labels: Tensor
    impl: str


def gather_references(
    group: ProcessGroup | None,
    queries: Tensor,
    references: Tensor,
    labels: Tensor,
    impl: str,
    settings: dict[str, Any],
) -> Union:
    """Agree with the other processes of ``group`` on label sets and queries.

    Only label sets, sizes and a fingerprint of the queries are exchanged if the queries are the same on all processes;
    else the queries are gathered.  References never travel.

    Args:
        group: every process of it must call this; None: this process alone.
        queries: ``(M, D)``; M may differ between processes.
        references: ``(N, D)``; N may differ and be 0.
        labels: ``(N,)`` or ``(N, C)``.
        impl: what this process can run; ``chunked`` runs where processes differ.
        settings: arguments that must be equal on all processes.

    Raises:
        ValueError: something that must be equal is not, or no process has a reference.
    """
    set_ids, set_labels = encode_label_sets(labels)
    if group is None:
        return Union(queries, slice(None), LocalReferences(references, set_ids, len(set_labels)), set_labels, impl)
    settings = settings | {
        "features per pixel": queries.shape[1],
        "features' dtype": str(queries.dtype),
        "labels' shape": tuple(labels.shape[1:]),
        "labels' dtype": str(labels.dtype),
    }
    everyone = exchange(
        group,
        {
            "settings": settings,
            "impl": impl,
            "set_labels": set_labels.cpu(),
            "references": len(references),
            "queries": (len(queries), sha256(content_of(queries)).digest()),
        },
    )
    own_rank = dist.get_rank(group)
    _compare(own_rank, [theirs["settings"] for theirs in everyone])
    if not any(theirs["references"] for theirs in everyone):
        raise ValueError(
            "y_ref: got no labeled reference on any process of the group, expected at least one on one of them; draw "
            "other reference pools"
        )

    numbers, union_labels = encode_label_sets(
        torch.cat([theirs["set_labels"] for theirs in everyone]).to(labels.device)
    )
    first = sum(len(theirs["set_labels"]) for theirs in everyone[:own_rank])
    set_ids = numbers[first : first + len(set_labels)][set_ids]
    sharded = ShardedReferences(references, set_ids, len(union_labels), group)

    mine = slice(0, len(queries))
    if len({theirs["queries"] for theirs in everyone}) > 1:
        lengths = [theirs["queries"][0] for theirs in everyone]
        mine = slice(sum(lengths[:own_rank]), sum(lengths[: own_rank + 1]))
        queries = _gather(group, queries, lengths)
    impl = impl if all(theirs["impl"] == impl for theirs in everyone) else "chunked"
    return Union(queries, mine, sharded, union_labels, impl)


def exchange(group: ProcessGroup, facts: Any) -> list[Any]:
    """Return what every process of the group says, in the order of ranks; raise where one was refused its arguments."""
    everyone = _all_gather(group, facts)
    for rank, theirs in enumerate(everyone):
        if isinstance(theirs, _Refusal):
            raise ValueError(f"group: rank {rank} of it was refused its arguments: {theirs}")
    return everyone


def agree(group: ProcessGroup | None, settings: dict[str, Any]) -> None:
    """Raise on all processes of the group where arguments differ that must be equal, or one was refused its own."""
    if group is not None:
        eager_only(_agree)(group, settings)


def _agree(group: ProcessGroup, settings: dict[str, Any]) -> None:
    _compare(dist.get_rank(group), exchange(group, settings))


def _compare(own_rank: int, everyone: list[dict[str, Any]]) -> None:
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[own_rank].items():
            if repr(theirs.get(name)) != repr(value):  # 1 is not 1.0
                raise ValueError(
                    f"group: got {name} {value!r} on rank {own_rank} and {theirs.get(name)!r} on rank {rank}, expected "
                    "the same on all processes of the group"
                )


class _Refusal(str):
    """Why a process was refused its arguments."""


def _all_gather(group: ProcessGroup, said: Any) -> list[Any]:
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, said, group=group)
    return everyone


@functools.cache
def eager_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what compilers are not to trace; made when needed, as torch.compiler takes a second to import."""
    not_traced: Callable[..., Any] = torch.compiler.disable(function)
    return not_traced


def mean_over(group: ProcessGroup, value: Tensor) -> Tensor:
    """Return the mean over the processes of a scalar that needs no gradient, in floating point."""
    total = value.clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)


def raise_on_all_ranks(group: ProcessGroup | None) -> AbstractContextManager[None]:
    """Let the other processes raise too where this one refuses an argument: they would wait for it for ever."""
    return nullcontext() if group is None else _raise_on_all_ranks(group)


@contextmanager
def _raise_on_all_ranks(group: ProcessGroup) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _all_gather(group, _Refusal(error))
        raise


def _gather(group: ProcessGroup, queries: Tensor, lengths: list[int]) -> Tensor:
    """Return the queries of all processes, one after the other."""
    padded = queries.new_zeros(max(lengths), queries.shape[1])
    padded[: len(queries)] = queries
    everyone = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(everyone, padded, group=group)
    return torch.cat([theirs[:length] for theirs, length in zip(everyone, lengths, strict=True)])

"""The nearest-neighbour part: for every query, the closest reference of each label set.

One operation, several implementations of it that agree:

=============  ============================================================================
``reference``  the definition, Eq. 3-5 word for word; the M x N matrix in float64, for small
               sets and as the specification that the others are tested against
``chunked``    plain PyTorch on any device, memory-bounded: the M x N matrix never exists,
               nothing is sorted
``triton``     fused kernels on NVIDIA GPUs from Ampere on: no similarity is ever written
``auto``       ``triton`` where it can run, else ``chunked``
=============  ============================================================================
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from . import fused
from .chunked import match_chunked
from .contract import TIE, Matches
from .definition import match_reference
from .fused import match_triton
from .shards import LocalReferences, ShardedReferences

__all__ = ["IMPLEMENTATIONS", "TIE", "Impl", "Matches", "ShardedReferences", "match", "resolve", "unavailable_reason"]

Impl = Literal["auto", "reference", "chunked", "triton"]


class Implementation(Protocol):
    """The arguments of :func:`match`, ``impl`` aside."""

    def __call__(
        self,
        queries: Tensor,
        references: Tensor,
        set_ids: Tensor,
        num_sets: int,
        k: float,
        shards: LocalReferences | None = None,
        *,
        balanced: bool = False,
    ) -> Matches: ...


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": match_reference,
    "chunked": match_chunked,
    "triton": match_triton,
}


def unavailable_reason(impl: str, device: torch.device) -> str | None:
    """Why an implementation cannot run on a device, as a clause; None if it can."""
    return fused.unavailable_reason(device) if impl == "triton" else None


def match(
    queries: Tensor,
    references: Tensor,
    set_ids: Tensor,
    num_sets: int,
    k: float,
    impl: Impl = "auto",
    shards: ShardedReferences | None = None,
    *,
    balanced: bool = False,
) -> Matches:
    """Class proximities and nearest label set of every query; see :class:`Matches`.

    Args:
        queries: features of the M queries, ``(M, D)``, real floating point.
        references: features of the N references, ``(N, D)``, N >= 1.
        set_ids: label set of every reference, ``(N,)`` int64 in ``[0, num_sets)``, each occurring.
        num_sets: number of label sets, |S|.
        k: how many nearest references count, an int, 1 <= k <= N; with ``balanced`` a share, 0 < k <= 1.
        impl: one of the names above.
        shards: where the references are shared out over processes, that call this together with the same
            queries; N is the number of all references then, and some processes may have none.
        balanced: a label set is among the k nearest if the shares of every set's references that are nearer than its
            best one have a mean below k: every reference counts N / (|S| n) instead of 1, n the size of its set.

    Raises:
        ValueError: ``impl`` is not one of the names above, or cannot run on the device of ``queries``.
    """
    impl = resolve(impl, queries.device)
    # Subclasses may look at every slice that is taken: MONAI's MetaTensor collates its metadata anew, or raises.
    queries, references, set_ids = (tensor.as_subclass(Tensor) for tensor in (queries, references, set_ids))
    return IMPLEMENTATIONS[impl](queries, references, set_ids, num_sets, k, shards, balanced=balanced)


def resolve(impl: Impl, device: torch.device) -> Impl:
    """The implementation that runs on ``device`` where ``impl`` is asked for; raises as :func:`match` does."""
    if impl == "auto":
        return "triton" if device.type == "cuda" and unavailable_reason("triton", device) is None else "chunked"
    if impl not in IMPLEMENTATIONS:
        known = ", ".join(repr(known) for known in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"impl: got {impl!r}, expected one of {known}")
    obstacle = unavailable_reason(impl, device)
    if obstacle:
        raise ValueError(f'impl: got {impl!r}, which cannot run here: {obstacle}, or use impl="auto"')
    return impl

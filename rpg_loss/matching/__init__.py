"""The nearest-neighbour part: for every query, the closest reference of each label set.

One operation, several implementations of it that agree:

=============  ============================================================================
``reference``  the definition, Eq. 3-5 word for word; the M x N matrix in float64, for small
               sets and as the specification that the others are tested against
``chunked``    plain PyTorch, memory-bounded: the M x N matrix never exists, nothing is sorted
``auto``       the fastest that runs on the given device; today always ``chunked``
=============  ============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from .chunked import match_chunked
from .contract import TIE, Matches
from .definition import match_reference

__all__ = ["IMPLEMENTATIONS", "TIE", "Impl", "Matches", "match"]

Impl = Literal["auto", "reference", "chunked"]

IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, int, int], Matches]] = {
    "reference": match_reference,
    "chunked": match_chunked,
}


def match(queries: Tensor, references: Tensor, set_ids: Tensor, num_sets: int, k: int, impl: Impl = "auto") -> Matches:
    """Class proximities and nearest label set of every query; see :class:`Matches`.

    Args:
        queries: features of the M queries, ``(M, D)``, real floating point.
        references: features of the N references, ``(N, D)``, N >= 1.
        set_ids: label set of every reference, ``(N,)`` int64 in ``[0, num_sets)``, each occurring.
        num_sets: number of label sets, |S|.
        k: how many nearest references count, 1 <= k <= N.
        impl: one of the names above.

    Raises:
        ValueError: ``impl`` is not one of the names above.
    """
    name = "chunked" if impl == "auto" else impl
    if name not in IMPLEMENTATIONS:
        known = ", ".join(repr(known) for known in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"impl: got {impl!r}, expected one of {known}")
    return IMPLEMENTATIONS[name](queries, references, set_ids, num_sets, k)

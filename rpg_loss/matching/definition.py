"""The definition of the matching: Eq. 3-5, written to be read.  Every faster one must agree with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .references import LocalReferences, ShardedReferences

EPS = 1e-8
"""The epsilon of Eq. 3 (denominator) and Eq. 6."""

EPS_MATTERS = 0.1
"""Product of norms below which the epsilon of Eq. 3 is visible at float32 accuracy: 1e-8 / 0.1 = 1e-7."""

TIE = 4 * 2.0**-23
"""Proximities that differ by no more than this (4 units in the last place of a float32 at 1) are equal, and so one
no larger than this is 0.

The rounding of a float32 dot product depends on the kernel, its tile and the position in it: up to
about 2e-7 was seen between two products of the same unit vectors.  Without a tolerance, references that
are truly tied (copies of a vector, flat regions) would win or lose by that noise, differently on every device, and the
weight of a query orthogonal to every reference would be a matter of chance.
"""


class Matches(NamedTuple):
    """Result of the matching of M queries against references of |S| label sets.

    Attributes:
        nearest_sets: ``(M,)`` int64, label set of the nearest reference (argmin of Eq. 4); of
            several equally near ones, that of the lowest reference index.
        proximities: ``(M, |S|)`` float32 in [0, 1], the class proximities 1 - delta of Eq. 5: the clipped
            cosine similarity to the set's nearest reference, 0 where that is not among the k nearest.
            References equally far as the k-th nearest are all among the k nearest.
    """

    nearest_sets: Tensor
    proximities: Tensor


def match_reference(queries: Tensor, references: LocalReferences, k: int) -> Matches:
    """Match by the definition, in float64, with the M x N matrix in memory (see :func:`match`)."""
    if isinstance(references, ShardedReferences):
        raise ValueError('impl: got "reference" with a group, expected "auto", "chunked" or "triton"')
    (u, scale_u), (r, scale_r) = _scaled(queries.double()), _scaled(references.features.double())

    # Eq. 3: D = 1 - max(cos, 0); proximity is 1 - D.
    norms = u.norm(dim=1)[:, None] * r.norm(dim=1)[None, :]
    epsilon = EPS / scale_u[:, None] / scale_r[None, :]
    proximity = (u @ r.T / (norms + epsilon)).clamp(max=1)  # (M, N)
    proximity = torch.where(proximity > TIE, proximity, 0.0)

    # Eq. 4: the nearest reference, the lowest index among equals (argmax returns the first maximum).
    nearest = (proximity >= proximity.amax(1, keepdim=True) - TIE).int().argmax(1)

    # The k nearest references, and all that are as near as the k-th.
    kth = proximity.topk(k, dim=1).values[:, -1:]
    among_k = torch.where(proximity >= kth - TIE, proximity, 0.0)

    # Eq. 5: 1 - delta of every label set.
    set_ids = references.set_ids
    class_proximity = torch.stack([among_k[:, set_ids == s].amax(1) for s in range(references.num_sets)], dim=1)
    return Matches(set_ids[nearest], class_proximity.float())


def _scaled(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors of entries up to 2 and the powers of two that scale them, so that no norm overflows."""
    scale = torch.exp2((torch.frexp(features.abs().amax(1)).exponent - 1).double())
    return features / scale[:, None], scale

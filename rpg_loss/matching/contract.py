"""What every implementation of the matching returns, and the constants that define it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

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

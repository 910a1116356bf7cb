"""What is known of the k nearest without counting."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_limit(k: float, num_sets: int) -> float:
    """What the references nearer than a set's best must stay below where each counts 1 / the size of its set.

    All references together then count |S|.  A hair less than k |S|: the counts of the sets are exact, but their
    sum is rounded, and one that equals k |S| must not be below it.
    """
    return k * num_sets * (1 - 1e-9)


def size_bounds(ranked: Tensor, by_rank: Tensor, sizes: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """How many sets are inside at least, and at most, by their sizes alone; of ``(|S|, c)`` ranked maxima."""
    sizes_by_rank = sizes[by_rank]
    ahead = sizes_by_rank.cumsum(0) - sizes_by_rank
    inside = (ahead < k).sum(0)
    return inside, torch.maximum((ranked > 0).sum(0), inside)

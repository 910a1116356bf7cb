"""What is known of the k nearest without counting."""

from __future__ import annotations

import torch
from torch import Tensor


def size_bounds(ranked: Tensor, by_rank: Tensor, sizes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many sets are inside at least, and at most, by their sizes alone; of ``(|S|, c)`` ranked maxima."""
    sizes_by_rank = sizes[by_rank]
    ahead = sizes_by_rank.cumsum(0) - sizes_by_rank
    inside = (ahead < k).sum(0)
    return inside, torch.maximum((ranked > 0).sum(0), inside)

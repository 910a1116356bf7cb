"""Layouts: maps ``(B, D, *S)`` as flat pixels, and sub-sampled maps."""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor


def flatten(tensor: Tensor) -> Tensor:
    """Return ``(B, D, *S)`` as ``(B * prod(S), D)``."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def subsample(tensor: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Resample the last ``len(grid)`` axes with nearest neighbors, in any dtype and number of axes."""
    sizes = tensor.shape[-len(grid) :]
    if tuple(sizes) == grid:
        return tensor
    places: list[Tensor] = []
    for axis, (size, sides) in enumerate(zip(sizes, grid, strict=True)):
        index = torch.arange(sides, device=tensor.device) * size // sides
        places.append(index.view(-1, *[1] * (len(grid) - 1 - axis)))
    # All axes in one step: compiled for CPUs, the gradient of an index_select was wrong in torch 2.13.
    everywhere: tuple[EllipsisType | Tensor, ...] = (..., *places)
    return tensor[everywhere]

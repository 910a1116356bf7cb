"""Layouts: maps ``(B, D, *S)`` as flat pixels, of tokens, and on other grids."""

from __future__ import annotations

import math
from types import EllipsisType

import torch
import torch.nn.functional as F
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


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return ``(B, D, *S)`` as ``(B, D, *size)``: averages along axes that are longer, linear along shorter ones."""
    smaller = tuple(min(axis) for axis in zip(maps.shape[2:], size, strict=True))
    # Not interpolated where finer: that would look at every so many-th pixel and pass over the rest.
    maps = F.interpolate(maps, smaller, mode="area")
    return F.interpolate(maps, size, mode=("linear", "bilinear", "trilinear")[len(size) - 1])


def places(size: tuple[int, ...], device: torch.device) -> Tensor:
    """Return unit vectors ``(2 * len(size), *size)``; their cosine is the mean cosine of the distances along the axes.

    The length of an axis is half a turn.  So the cosine falls with distance, alike everywhere.
    """
    axes = torch.meshgrid(*((torch.arange(side, device=device) + 0.5) / side for side in size), indexing="ij")
    angles = torch.stack(axes) * math.pi
    return torch.cat([angles.cos(), angles.sin()]) / math.sqrt(len(size))


def tokens_to_map(tokens: Tensor, size: tuple[int, ...], patch: tuple[int, ...] | None = None) -> Tensor:
    """Return tokens ``(B, N, D)`` of the patches of an image of that size as ``(B, D, *S)``.

    Up to five tokens before them are left out: that of the class, and registers.  Without a patch, or with one of
    other axes, patches of equal sides that fit.  Several patches may have been merged to one, where there are no
    further tokens.
    """
    known = patch if patch is not None and len(patch) == len(size) else (1,) * len(size)
    times = range(1, min(side // part for side, part in zip(size, known, strict=True)) + 1)
    grids = [tuple(side // (part * n) for side, part in zip(size, known, strict=True)) for n in times]
    left = {grid: tokens.shape[1] - math.prod(grid) for grid in grids}
    merged = grids[1:] if known == patch else []
    fitting = [grid for grid, more in left.items() if more == 0 or (0 < more <= 5 and grid not in merged)]
    if len(fitting) != 1:
        found = " and ".join(map(str, sorted(fitting))) or "no grid"
        patches = f"patches {known}" if known == patch else "equal patches"
        raise ValueError(
            f"layout: 'tokens' of {tuple(tokens.shape)} fit {found} of {patches} of images {size}, expected one, "
            "behind up to five tokens of the whole image; pass a function that makes (B, D, *S) of them"
        )
    (grid,) = fitting
    maps: Tensor = tokens[:, -math.prod(grid) :].transpose(1, 2).unflatten(2, grid)
    return maps

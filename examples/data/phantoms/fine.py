"""The phantoms with many overlapping labels, each a part of one of the five structures.

It stands in for the paper's 72 fine labels of the thorax. Parts are windows in coordinates of the structure's own
bounding box, wider than their spacing, so that neighbours overlap and nothing of the structure is left out. Left
structures are divided as mirrored right ones, and the heart into horizontal bands only: a mirrored image is labelled
as if it had been drawn so.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.config import Config
from examples.data.base import Dataset
from examples.data.jsrt import CLASSES, FLIP_PAIRS
from examples.data.phantoms import chest as phantom

CLAVICLE_SHARE = 0.024  # of the five structures' area, each
LUNG_SHARE = 0.77  # of the lungs' and the heart's area, both lungs
LUNG_ASPECT = 2.5  # height by width
REACH = 0.75  # of a window to either side of its centre, in spacings; 0.5 would leave no overlap

Mask = NDArray[np.bool_]


def load_fine(config: Config) -> Dataset:
    """The phantoms of :func:`phantom.load` with ``config.fine_labels`` labels, evaluated as the five structures."""
    counts = part_counts(config.fine_labels)
    names, fused = name_parts(counts)
    data = phantom.load(config)
    return phantom.relabel(
        data,
        lambda masks: torch.stack([fine_masks(structures, counts) for structures in masks]),
        class_names=names,
        flip_pairs=tuple(
            pair for a, b in FLIP_PAIRS for pair in zip(fused[CLASSES[a]], fused[CLASSES[b]], strict=True)
        ),
        fused=fused,
        found=f"{data.found}, with {len(names)} fine labels",
    )


def part_counts(total: int) -> dict[str, int]:
    """How many parts each structure has: by area, at least one, left as many as right."""
    if total < len(CLASSES):
        raise ValueError(f"fine_labels: {total}, expected {len(CLASSES)} or more, one for each structure")
    clavicle = max(1, round(CLAVICLE_SHARE * total))
    rest = total - 2 * clavicle
    lung = min(max(1, round(LUNG_SHARE / 2 * rest)), (rest - 1) // 2)
    return dict(zip(CLASSES, (lung, lung, rest - 2 * lung, clavicle, clavicle), strict=True))


def name_parts(counts: dict[str, int]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """The labels' names, and which of them make up each structure."""
    names: list[str] = []
    fused: dict[str, tuple[int, ...]] = {}
    for structure, count in counts.items():
        fused[structure] = tuple(range(len(names), len(names) + count))
        names += [f"{structure}_{part:02d}" for part in range(1, count + 1)]
    return tuple(names), fused


def fine_masks(structures: Tensor, counts: dict[str, int]) -> Tensor:
    """Masks of the structures (5, H, W) int8 -> of their parts (sum of counts, H, W) int8."""
    masks = structures.numpy() > 0
    parts = [divide(mask, name, counts[name]) for mask, name in zip(masks, CLASSES, strict=True)]
    return torch.from_numpy(np.concatenate(parts).astype(np.int8))


def divide(mask: Mask, structure: str, count: int) -> Mask:
    """The overlapping parts (count, H, W) of one structure (H, W); their union is the structure."""
    if structure.startswith("left"):
        return divide(mask[:, ::-1], structure.replace("left", "right"), count)[:, :, ::-1]
    bands = {
        "right_lung": min(count, round(math.sqrt(count * LUNG_ASPECT))),
        "heart": count,
        "right_clavicle": 1,  # it lies across: divided from the sternum outwards
    }[structure]
    columns = [len(share) for share in np.array_split(range(count), bands)]
    y, x = np.nonzero(mask)
    parts = np.zeros((count, *mask.shape), dtype=bool)
    chosen = []
    for band, windows in zip(windows_along(y, bands), columns, strict=True):
        chosen += [band.nonzero()[0][inside] for inside in windows_along(x[band], windows)]
    for part, pixels in zip(parts, chosen, strict=True):
        part[y[pixels], x[pixels]] = True
    return parts


def windows_along(coordinate: NDArray[np.int_], count: int) -> Mask:
    """Which pixels (n,) lie in which of ``count`` overlapping windows between their extremes: (count, n).

    Where windows are narrower than pixels, each still holds the pixels nearest to its centre.
    """
    if not coordinate.size:
        return np.zeros((count, 0), dtype=bool)
    low, high = coordinate.min(), coordinate.max()
    place = (coordinate - low + 0.5) / (high - low + 1) * count
    distance = np.abs(place - (np.arange(count)[:, None] + 0.5))
    inside: Mask = distance <= np.maximum(REACH, distance.min(1, keepdims=True))
    return inside

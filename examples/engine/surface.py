"""How far the surface of a predicted mask lies from the true one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects


class SurfaceDistance(NamedTuple):
    """Distances between two surfaces, in the unit of the spacing; NaN where one of the masks is empty.

    Attributes:
        assd: Average symmetric surface distance: the mean over the surface pixels of both masks of the distance to the
            nearest of the other.
        hd95: 95 % Hausdorff distance: the larger of the 95th percentiles of the distances in both directions.
    """

    assd: float
    hd95: float


def surface_distance(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]) -> SurfaceDistance:
    """Compares two masks.

    A surface pixel is one of the mask that has, along an axis, a neighbour outside the mask or the image.

    Args:
        a: Mask of any number of axes, bool.
        b: Mask of the same shape, bool.
        spacing: From one pixel to the next along each axis.
    """
    if not a.any() or not b.any():
        return SurfaceDistance(math.nan, math.nan)
    # Not by a KDTree: that of scipy 1.17 crashes where denormals are flushed, as the commands have it.
    box = find_objects((a | b).astype(np.uint8))[0]
    edge_a, edge_b = (mask[box] & ~binary_erosion(mask[box]) for mask in (a, b))
    to_a, to_b = (distance_transform_edt(~edge, sampling=spacing) for edge in (edge_a, edge_b))
    from_a, from_b = to_b[edge_a], to_a[edge_b]
    return SurfaceDistance(
        float(np.concatenate([from_a, from_b]).mean()), float(max(np.percentile(from_a, 95), np.percentile(from_b, 95)))
    )

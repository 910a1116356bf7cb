"""How far the surface of a predicted mask lies from the true one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree


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
    points_a, points_b = (np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing) for mask in (a, b))
    to_b, to_a = KDTree(points_b).query(points_a)[0], KDTree(points_a).query(points_b)[0]
    return SurfaceDistance(
        float(np.concatenate([to_b, to_a]).mean()), float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))
    )

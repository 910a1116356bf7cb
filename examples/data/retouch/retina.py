"""Intensities of a retinal B-scan, and where in it the retina lies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial.polynomial import polyfit, polyval, polyvander
from numpy.typing import NDArray

from examples.config import RetinaView
from examples.data.resize import Placement

PERCENTILES = (0.5, 99.5)  # of a B-scan's intensities, between which they are scaled to [-1, 1]

# Of find_retina; lengths in shares of the height.
WINDOW = (0.02, 1 / 32)  # height (of the image's) and width (of its) over which intensities are averaged
BRIGHT = 0.6  # of the brightest place of a column: what may be its lowest bright layer
DEGREE = 3  # of the curve
DRAWS, CANDIDATES = 300, 64  # of curves that are tried, through some of so many columns
SPREAD, FITTING = 0.03, 0.6  # a curve fits where the layer is as near as this in this share of the columns
CONTRAST = 0.2  # least height of the bright layer over the background, of the 2 from dark to bright
TISSUE = 0.35  # of that height: what is brighter is retina
ABOVE, BELOW = 0.06, 0.12  # margins above the retina and below the curve
STRAY = 0.02  # share of the columns that may reach higher than the retina, such as by a speck in the vitreous

Image = NDArray[np.float32]
Rows = NDArray[np.float64]


class Retina(NamedTuple):
    """Where the retina lies in a B-scan."""

    # Row of its lowest bright layer, a polynomial of the column, which runs from -1 to 1; constant first
    curve: tuple[float, ...]
    crop: tuple[int, int]  # first row to keep and the one after the last
    # The same once every column is shifted so that the curve is level, at its mean row; may leave the image
    flat: tuple[int, int]

    def shift(self, width: int) -> NDArray[np.int64]:
        """Return by how many rows the curve lies below its mean in each column."""
        rows = polyval(np.linspace(-1, 1, width), self.curve)
        return np.rint(rows - rows.mean()).astype(np.int64)


def scale(values: NDArray[Any]) -> Image:
    """Scale a B-scan (H, W) of unsigned integers to [-1, 1] between two percentiles; what lies beyond is clipped.

    White (the type's highest value) that reaches the border without a gap along its row or column is padding, as
    Spectralis leaves it in corners: it does not count for the percentiles and becomes -1, as dark as the vitreous.
    """
    white = values == np.iinfo(values.dtype).max
    padding = np.zeros_like(white)
    for axis in (0, 1):
        padding |= np.logical_and.accumulate(white, axis)
        padding |= np.flip(np.logical_and.accumulate(np.flip(white, axis), axis), axis)
    if padding.all():
        return np.full(values.shape, -1, np.float32)
    low, high = np.percentile(values[~padding], PERCENTILES)
    scaled = np.clip((values - low) / max(high - low, 1) * 2 - 1, -1, 1)
    return np.where(padding, -1, scaled).astype(np.float32)


def find_retina(image: Image) -> Retina | None:
    """Find the retina in a scaled B-scan (H, W); None where nothing looks like one.

    The pigment epithelium is the lowest layer that is nearly as bright as the brightest of its column. A curve is
    fitted to most of it, so that detachments, shadows and a brighter nerve fibre layer do not bend it. The retina
    reaches from there up to the first rows that are clearly brighter than the background.
    """
    height, width = image.shape
    if width <= DEGREE:
        return None
    columns = np.linspace(-1, 1, width)
    smooth = average(average(image, max(1, round(WINDOW[0] * height)), 0), max(1, round(WINDOW[1] * width)), 1)
    smooth = np.maximum(smooth - np.median(smooth), 0)
    peak = smooth.max(0)
    layer = (height - 1 - (smooth >= BRIGHT * peak)[::-1].argmax(0)).astype(np.float64)
    curve = fit(layer, columns, SPREAD * height)
    rows = polyval(columns, curve)
    near = abs(layer - rows) < SPREAD * height
    if near.mean() < FITTING or np.median(peak[near]) < CONTRAST:
        return None
    tissue = smooth > TISSUE * np.median(peak[near])
    top = np.where(tissue.any(0), tissue.argmax(0), rows)
    above, below = round(ABOVE * height), round(BELOW * height)
    return Retina(
        tuple(curve.tolist()),
        crop=(max(0, int(np.quantile(top, STRAY)) - above), min(height, int(rows.max()) + below)),
        flat=(int(rows.mean() - np.quantile(rows - top, 1 - STRAY)) - above, int(rows.mean()) + below),
    )


def placement(image: Image, view: RetinaView, size: int) -> Placement:
    """Return how a scaled B-scan (H, W) comes into a square; whole where its retina is not found."""
    height, width = image.shape
    found = None if view == "whole" else find_retina(image)
    if found is None:
        return Placement(height, width, size)
    if view == "crop":
        return Placement(height, width, size, found.crop)
    return Placement(height, width, size, found.flat, found.shift(width))


def fit(layer: Rows, columns: Rows, near: float) -> Rows:
    """Fit a polynomial to most rows: the best of many through a few of them, then least squares."""
    powers = polyvander(columns, DEGREE)
    few = np.linspace(0, len(layer) - 1, min(CANDIDATES, len(layer))).astype(int)
    drawn = few[np.random.default_rng(0).random((DRAWS, len(few))).argsort(1)[:, : DEGREE + 1]]
    curves = np.linalg.solve(powers[drawn], layer[drawn][..., None])[..., 0]
    curve = curves[(abs(curves @ powers[few].T - layer[few]) < near).sum(1).argmax()]
    for _ in range(3):
        close = abs(powers @ curve - layer) < near
        curve = polyfit(columns[close], layer[close], DEGREE)
    return curve


def average(image: NDArray[Any], window: int, axis: int) -> Rows:
    """Return the mean over a window that moves along an axis; its borders are repeated."""
    before = [(0, 0), (0, 0)]
    before[axis] = (window // 2 + 1, window - 1 - window // 2)
    sums = np.cumsum(np.pad(image, before, mode="edge"), axis, dtype=np.float64)
    length = image.shape[axis]
    return (sums.take(range(window, window + length), axis) - sums.take(range(length), axis)) / window

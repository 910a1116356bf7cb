"""Surface distances are what their definition says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from examples.engine.metrics import surface_distance

SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (0.5, 2.0, 3.0)])


def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Pixels with a neighbor that is not in the mask."""
    inside = set(map(tuple, np.argwhere(mask)))
    steps = [step * sign for step in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
    return [pixel for pixel in inside if any(tuple(np.array(pixel) + step) not in inside for step in steps)]


def by_definition(a: np.ndarray, b: np.ndarray, spacing) -> tuple[float, float]:
    def directed(here, there):
        return [min(math.dist(np.multiply(p, spacing), np.multiply(q, spacing)) for q in there) for p in here]

    points_a, points_b = surface(a), surface(b)
    if not points_a or not points_b:
        return math.nan, math.nan
    to_b, to_a = directed(points_a, points_b), directed(points_b, points_a)
    return float(np.mean(to_b + to_a)), max(np.percentile(to_b, 95), np.percentile(to_a, 95))


@st.composite
def two_masks(draw):
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=5))
    return draw(arrays(bool, shape)), draw(arrays(bool, shape))


@given(two_masks(), SPACINGS)
def test_distances_are_those_of_the_definition(masks, spacing):
    a, b = masks
    spacing = spacing[: a.ndim]
    assert surface_distance(a, b, spacing) == pytest.approx(by_definition(a, b, spacing), nan_ok=True)


def test_a_few_stray_pixels_do_not_move_the_95_percentile():
    a = np.zeros((60, 60), bool)
    a[10:40, 10:40] = True
    b = a.copy()
    b[55, 55] = True
    assert surface_distance(a, b, (1, 1)).hd95 == 0
    assert surface_distance(a, b, (1, 1)).assd > 0

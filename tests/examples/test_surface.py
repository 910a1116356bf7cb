"""Surface distances are what their definition says."""

import math
from itertools import product

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


@given(two_masks(), SPACINGS)
def test_distances_are_symmetric_scale_with_the_spacing_and_are_0_of_a_mask_and_itself(masks, spacing):
    a, b = masks
    spacing = spacing[: a.ndim]
    there = surface_distance(a, b, spacing)
    assert surface_distance(b, a, spacing) == pytest.approx(there, nan_ok=True)
    assert surface_distance(a, b, [3 * side for side in spacing]) == pytest.approx([3 * d for d in there], nan_ok=True)
    if a.any():
        assert surface_distance(a, a, spacing) == (0, 0)


def test_a_shifted_square_and_an_empty_mask():
    a, b = np.zeros((2, 20, 20), bool)
    a[5:10, 5:10] = b[5:10, 9:14] = True
    assd, hd95 = surface_distance(a, b, (1, 1))
    assert hd95 == 4
    assert 0 < assd < 4
    assert all(map(math.isnan, surface_distance(a, np.zeros_like(a), (1, 1))))
    assert all(map(math.isnan, surface_distance(np.zeros_like(a), a, (1, 1))))


def test_a_few_stray_pixels_do_not_move_the_95_percentile():
    a = np.zeros((60, 60), bool)
    a[10:40, 10:40] = True
    b = a.copy()
    b[55, 55] = True
    assert surface_distance(a, b, (1, 1)).hd95 == 0
    assert surface_distance(a, b, (1, 1)).assd > 0


def test_every_pair_of_single_pixels():
    for p, q in product(np.ndindex(3, 3), repeat=2):
        a, b = np.zeros((2, 3, 3), bool)
        a[p] = b[q] = True
        assert surface_distance(a, b, (1, 2)) == pytest.approx([math.hypot(p[0] - q[0], 2 * (p[1] - q[1]))] * 2)

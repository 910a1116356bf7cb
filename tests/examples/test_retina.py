"""Intensities keep their contrast whatever pads them; the retina is found, or it is said that it was not."""

import numpy as np
import pytest

from examples.data.retouch.retina import find_retina, fit, scale
from tests.examples.volumes import SCANS, WIDTH, curve, draw_volume


def noise(dtype: type = np.uint8, high: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, (100, 80)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_padding_does_not_spoil_the_scale(dtype):
    values = noise(dtype)
    plain = scale(values)
    padded = values.copy()
    padded[:30, :40] = padded[90:, 60:] = np.iinfo(dtype).max
    scaled = scale(padded)
    padding = padded == np.iinfo(dtype).max
    assert (scaled[padding] == -1).all()
    assert np.allclose(scaled[~padding], plain[~padding], atol=0.03)
    assert plain.dtype == np.float32
    assert (plain.min(), plain.max()) == (-1, 1)


def test_white_inside_is_bright_not_padding():
    values = noise()
    values[40:50, 20:60] = 255
    assert (scale(values)[40:50, 20:60] == 1).all()


def test_few_extreme_values_do_not_spoil_the_scale():
    values = noise(np.uint16)
    extreme = values.copy()
    extreme[50, 40:44] = 60000
    assert np.allclose(scale(extreme)[:40], scale(values)[:40], atol=0.03)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_bscans_are_finite(value):
    scaled = scale(np.full((20, 30), value, np.uint8))
    assert (scaled == -1).all()
    assert find_retina(scaled) is None


def test_no_retina_is_found_in_noise():
    assert find_retina(scale(noise())) is None


def test_the_retina_of_a_drawing_is_found():
    scans, references = draw_volume(0)
    for z in range(SCANS):
        found = find_retina(scale(scans[z]))
        layer = np.polynomial.polynomial.polyval(np.linspace(-1, 1, WIDTH), found.curve)
        assert abs(layer - curve(z)).max() <= 2.5
        assert abs(found.shift(WIDTH) - (curve(z) - curve(z).mean())).max() <= 2.5
        y, x = references[z].nonzero()
        for (top, bottom), rows in ((found.crop, y), (found.flat, y - found.shift(WIDTH)[x])):
            assert top <= rows.min()
            assert rows.max() < bottom
            assert top > 2  # less than everything
        assert found.crop[1] <= scans[z].shape[0]


def test_a_third_of_outliers_does_not_bend_the_curve():
    columns = np.linspace(-1, 1, 90)
    layer = 50 + 10 * columns**2
    bent = layer.copy()
    bent[30:60] -= 20
    assert abs(np.polynomial.polynomial.polyval(columns, fit(bent, columns, near=1)) - layer).max() < 0.01

"""Undistortion puts a feature back to where it is on the specimen."""

from __future__ import annotations

import numpy as np
import pytest

from edge.correct import Undistortion

PINCUSHION = [(0.0, 0.0), (6.0, 0.03), (10.0, 0.07), (12.0, 0.10)]
PIXEL_NM = 48.148


def spot(side: int, y: float, x: float) -> np.ndarray:
    ys, xs = np.ogrid[:side, :side]
    return np.rint(250 * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 18)).astype(np.uint8)


def centroid(image: np.ndarray) -> np.ndarray:
    weights = image.astype(float)
    ys, xs = np.indices(image.shape)
    return np.array([(weights * ys).sum(), (weights * xs).sum()]) / weights.sum()


@pytest.mark.parametrize(("dy_um", "dx_um"), [(0, 0), (3, 0), (-4, 4), (5, 5), (0, -5.2)])
def test_a_feature_is_put_back_to_where_it_is(dy_um: float, dx_um: float) -> None:
    side = 245
    radius = np.hypot(dy_um, dx_um)
    stretch = 1 + np.interp(radius, *np.array(PINCUSHION).T)
    middle = (side - 1) / 2
    seen = spot(side, middle + dy_um * stretch * 1e3 / PIXEL_NM, middle + dx_um * stretch * 1e3 / PIXEL_NM)
    correction = Undistortion(PINCUSHION, side_px=side, pixel_size_nm=PIXEL_NM)
    found = centroid(correction.apply(seen)) - (correction.side_px - 1) / 2
    np.testing.assert_allclose(found * PIXEL_NM / 1e3, [dy_um, dx_um], atol=0.01)


def test_the_corrected_square_needs_nothing_from_outside_the_tile() -> None:
    """A tile whose border is marked keeps that mark at its own border only: nothing was made up beyond it."""
    correction = Undistortion(PINCUSHION, side_px=235, pixel_size_nm=PIXEL_NM)
    assert 215 < correction.side_px < 235
    assert correction._coordinates.min() >= -1e-9
    assert correction._coordinates.max() <= 234 + 1e-9


def test_without_distortion_nothing_changes() -> None:
    tile = np.random.default_rng(0).integers(0, 65536, (40, 40), np.uint16)
    correction = Undistortion([(0.0, 0.0), (10.0, 0.0)], side_px=40, pixel_size_nm=50)
    np.testing.assert_array_equal(correction.apply(tile), tile)

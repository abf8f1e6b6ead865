"""Where tiles stand, and that blending gives back what was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.stitch import Mosaic, camera_from_stage, crop_square, place
from firmware_bridge.pzt import PositionUm

A_50NM = np.eye(2) * 20.0


def test_a_stage_move_to_plus_x_uncovers_sample_to_the_left() -> None:
    """The feature moves +x in the image, so the newly seen sample stands at -x in the mosaic (definition of A)."""
    offsets = place([PositionUm(0, 0, 0), PositionUm(1, 0, 0), PositionUm(0, 2, 0)], A_50NM)
    np.testing.assert_allclose(offsets, [[0, 0], [0, -20], [-40, 0]])


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=2, max_size=8), st.floats(-180, 180))
def test_a_feature_seen_in_two_tiles_falls_on_one_place(stops, degrees: float) -> None:
    """For any calibrated A, mirror and rotation included: image position plus tile offset is the same in every tile."""
    turn = np.radians(degrees)
    a = np.array([[np.cos(turn), np.sin(turn)], [np.sin(turn), -np.cos(turn)]]) * 20.0
    positions = [PositionUm(x, y, 0) for x, y in stops]
    feature_um = np.array([3.0, -7.0])
    offsets_xy = place(positions, a)[:, ::-1]
    seen_px = np.array([a @ np.add(feature_um, p[:2]) for p in positions])
    mosaic_px = seen_px + offsets_xy
    np.testing.assert_allclose(mosaic_px, np.broadcast_to(mosaic_px[0], mosaic_px.shape), atol=1e-9)


def test_without_calibration_a_is_one_over_the_pixel_size() -> None:
    np.testing.assert_allclose(camera_from_stage(50.0), A_50NM)
    np.testing.assert_allclose(camera_from_stage(50.0, ((0, 1), (2, 3))), [[0, 1], [2, 3]])


@given(st.integers(0, 5), st.integers(4, 12), st.integers(0, 2**32 - 1))
def test_tiles_cut_from_an_image_blend_back_to_it(jitter: int, step: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 65536, (40, 40), np.uint16)
    corners = [
        (min(24, y + int(rng.integers(0, jitter + 1))), min(24, x + int(rng.integers(0, jitter + 1))))
        for y in range(0, 25, step)
        for x in range(0, 25, step)
    ]
    mosaic = Mosaic(np.array(corners, float), (16, 16), np.uint16)
    for number, (y, x) in enumerate(corners):
        mosaic.add(number, image[y : y + 16, x : x + 16])
    y0, x0 = np.min(corners, axis=0)
    blended = mosaic.image()
    expected = image[y0 : y0 + mosaic.shape[0], x0 : x0 + mosaic.shape[1]]
    covered = blended > 0
    assert np.abs(blended.astype(int) - expected)[covered].max() <= 1


def test_where_no_tile_is_the_mosaic_is_zero() -> None:
    mosaic = Mosaic(np.array([[0.0, 0.0], [0.0, 30.0]]), (10, 10), np.uint8)
    mosaic.add(0, np.full((10, 10), 7, np.uint8))
    assert mosaic.shape == (10, 40)
    assert mosaic.image()[:, 10:].max() == 0


def test_a_tile_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Mosaic(np.zeros((1, 2)), (10, 10), np.uint8).add(0, np.zeros((9, 10), np.uint8))


def test_the_square_is_cut_around_its_centre_and_never_beyond_the_frame() -> None:
    frame = np.arange(100 * 100).reshape(100, 100)
    np.testing.assert_array_equal(crop_square(frame, side_px=20), frame[40:60, 40:60])
    np.testing.assert_array_equal(crop_square(frame, side_px=21, centre_px=(30, 70)), frame[20:41, 60:81])
    with pytest.raises(ValueError, match="does not lie inside"):
        crop_square(frame, side_px=20, centre_px=(5, 50))

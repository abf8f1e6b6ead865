"""One geometry for all parts of a pair, and nothing from outside the source."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.augment import augment
from models.errors import PairsError

ANGLES = (0, 30, 45, 60, 90)


def coordinates(height: int, width: int) -> list[np.ndarray]:
    """Pictures whose value is the pixel's own place: what comes out says where it came from."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return [y, x]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(96, 150),
    width=st.integers(96, 150),
    angle=st.sampled_from(ANGLES),
    scale=st.sampled_from((0.7, 1.0, 1.3)),
)
def test_every_part_gets_the_very_same_geometry(seed: int, height: int, width: int, angle: float, scale: float) -> None:
    y, x = coordinates(height, width)
    labels = (y // 8).astype(np.uint8)
    colour = np.stack([y, x, y + x], axis=-1)
    got_y, got_x, got_labels, got_colour = augment(
        [y, x, labels, colour],
        np.random.default_rng(seed),
        crop_px=44,
        rotations_deg=(angle,),
        scales=(scale,),
    )
    assert got_labels.dtype == np.uint8
    np.testing.assert_allclose(got_colour[..., 0], got_y, atol=1e-3)
    np.testing.assert_allclose(got_colour[..., 1], got_x, atol=1e-3)
    inner = (slice(3, -3),) * 2  # outside, a coarser scale has averaged over the mirrored border
    # A label is that of the nearest row; at the border between two labels rounding may go either way.
    nearest = got_y[inner] / 8
    certain = np.abs(nearest - np.round(nearest) + 1 / 16) > 0.14
    np.testing.assert_array_equal(got_labels[inner][certain], np.floor(nearest + 1 / 16)[certain])
    # Steps along the crop are a rotation by the angle (mirrored or not) of length 1 / scale.
    steps = np.array([[np.diff(part[inner], axis=axis).mean() for axis in (0, 1)] for part in (got_y, got_x)])
    np.testing.assert_allclose(steps @ steps.T, np.eye(2) / scale**2, atol=0.02)  # OpenCV samples at 1/32 px
    turn = np.degrees(np.arctan2(abs(steps[0, 1]), abs(steps[0, 0])))
    assert min(abs(turn - angle), abs(turn - (90 - angle))) < 0.3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), angle=st.sampled_from(ANGLES), scale=st.sampled_from((0.8, 1.0, 1.6)))
def test_no_pixel_comes_from_outside_the_source(seed: int, angle: float, scale: float) -> None:
    y, x = coordinates(80, 100)
    got_y, got_x = augment(
        [y, x], np.random.default_rng(seed), crop_px=44, rotations_deg=(angle,), scales=(scale,), flips=False
    )
    # The plane through the middle of the crop, continued to its corners: values there were not folded back.
    for got, side in ((got_y, 80), (got_x, 100)):
        slope = [np.diff(got[10:-10, 10:-10], axis=axis).mean() for axis in (0, 1)]
        middle = got[21:23, 21:23].mean()
        corners = [middle + 22 * (a * slope[0] + b * slope[1]) for a in (-1, 1) for b in (-1, 1)]
        assert -0.51 <= min(corners) + 1e-2
        assert max(corners) - 1e-2 <= side - 0.49


def test_all_choices_are_drawn_and_the_same_state_draws_the_same() -> None:
    y, x = coordinates(128, 128)
    rng = np.random.default_rng(0)
    drawn = [augment([y, x], rng, crop_px=48, scales=(0.8, 1.0, 1.25)) for _ in range(200)]
    slopes = {
        tuple(np.round([np.diff(p[9:-9, 9:-9], axis=a).mean() for p in pair for a in (0, 1)], 2)) for pair in drawn
    }
    # 3 scales x (4 turns of the quarter, and 30, 45, 60 to either side), mirrored ones among them.
    assert len(slopes) > 40
    again = augment([y, x], np.random.default_rng(0), crop_px=48, scales=(0.8, 1.0, 1.25))
    np.testing.assert_array_equal(again, drawn[0])


def test_quarter_turns_move_whole_pixels() -> None:
    noise = np.random.default_rng(1).random((64, 64), np.float32)
    for seed in range(8):
        (crop,) = augment([noise], np.random.default_rng(seed), crop_px=64, rotations_deg=(0, 90))
        assert np.array_equal(np.sort(crop, axis=None), np.sort(noise, axis=None))


def test_a_rotation_whose_window_does_not_fit_is_not_drawn() -> None:
    y, x = coordinates(50, 50)
    for seed in range(20):
        got_y, _ = augment([y, x], np.random.default_rng(seed), crop_px=48)
        assert np.allclose(np.round(got_y), got_y)


def test_a_crop_larger_than_the_source_is_refused() -> None:
    with pytest.raises(PairsError, match=r"no window of 64 px.*fits into 50 x 80 px"):
        augment(coordinates(50, 80), np.random.default_rng(0), crop_px=64)


def test_parts_of_different_sizes_are_refused() -> None:
    with pytest.raises(PairsError, match="expected one or more of one size"):
        augment([np.zeros((64, 64)), np.zeros((64, 60))], np.random.default_rng(0), crop_px=32)
    with pytest.raises(PairsError, match="expected one or more"):
        augment([], np.random.default_rng(0), crop_px=32)


def test_interpolation_stays_within_the_values_of_the_source() -> None:
    edges = (np.random.default_rng(2).random((96, 96)) > 0.5).astype(np.float32)
    (crop,) = augment([edges], np.random.default_rng(3), crop_px=48, rotations_deg=(30,))
    assert (crop.min(), crop.max()) == (0, 1)

"""Grains stand where they were put, spikes where they are said to be, and most of them hide in the noise."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from models import pollen
from models.errors import SpecimenError
from models.pollen import Grain, Spike, directions, place, render, see, tips_px, visibility

PIXEL_NM = 332.0
FIELD: dict[str, Any] = {"shape_px": (96, 96), "pixel_size_nm": PIXEL_NM}
MIDDLE_UM = 48 * PIXEL_NM / 1e3


def ball(kind: str = "smooth", *, radius_um: float = 8.0, **more: Any) -> Grain:
    return Grain(kind, (MIDDLE_UM, MIDDLE_UM), radius_um, albedo=0.7, **more)


def spiny(seed: int = 3, count: int = 24) -> Grain:
    rng = np.random.default_rng(seed)
    return ball("spiny", spikes=tuple(Spike(d, 5.3, 2.0) for d in directions(count, rng)))


def test_a_ball_has_the_height_and_the_outline_of_a_ball() -> None:
    drawn = render([ball()], **FIELD)
    assert drawn.height_um.max() == pytest.approx(16, abs=0.05)  # it lies on the substrate
    area_um2 = np.count_nonzero(drawn.labels) * (PIXEL_NM / 1e3) ** 2
    assert area_um2 == pytest.approx(math.pi * 8**2, rel=0.02)
    y, x = np.argwhere(drawn.labels).mean(0)
    assert (y, x) == (pytest.approx(47.5, abs=0.05), pytest.approx(47.5, abs=0.05))


def test_pictures_are_in_range_and_the_background_is_black_or_the_substrate() -> None:
    drawn = render([spiny()], **FIELD)
    for picture in (drawn.reflectivity, drawn.on_black, drawn.shadowed):
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
    assert drawn.on_black[0, 0] == 0
    assert drawn.shadowed[0, 0] > 0.1
    inside = binary_erosion(drawn.labels > 0, iterations=2)  # pixels at the rim are in part substrate
    np.testing.assert_array_equal(drawn.shadowed[inside], drawn.on_black[inside])


def test_the_substrate_is_darker_beside_a_grain_and_even_without_one() -> None:
    shadowed = render([ball()], **FIELD).shadowed
    beside, far = shadowed[48, 48 + 27], shadowed[3, 3]
    assert beside < 0.8 * far
    assert np.ptp(render([], **FIELD).shadowed) == 0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_every_tip_lies_on_its_grain_and_is_bright_for_electrons(seed: int) -> None:
    grain = spiny(seed)
    drawn, tips = render([grain], **FIELD), tips_px([grain], (96, 96), PIXEL_NM)
    assert len(tips) == len(grain.spikes) > 5
    for y, x in tips:
        near = (slice(max(round(y) - 1, 0), round(y) + 2), slice(max(round(x) - 1, 0), round(x) + 2))
        assert drawn.grains[near].max() == 1
        assert drawn.on_black[near].max() > 0.5
    without = render([ball()], **FIELD)
    assert drawn.on_black[drawn.labels > 0].max() > 1.3 * without.on_black.max()


def test_a_scene_is_a_torus() -> None:
    grain = spiny()
    moved = grain.at((grain.centre_um[0] + 40 * PIXEL_NM / 1e3, grain.centre_um[1] - 25 * PIXEL_NM / 1e3))
    here, there = render([grain], **FIELD), render([moved], **FIELD)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(np.roll(one, (40, -25), (0, 1)).astype(float), other.astype(float), atol=2e-3)
    tips = (tips_px([grain], (96, 96), PIXEL_NM) + (40, -25) + 0.5) % 96 - 0.5
    np.testing.assert_allclose(tips, tips_px([moved], (96, 96), PIXEL_NM), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_placed_discs_keep_apart_on_the_torus(seed: int) -> None:
    rng = np.random.default_rng(seed)
    radii = [float(r) for r in rng.uniform(4, 12, 8)]
    places = place(radii, 85.0, rng)
    assert places
    least = min(radii)
    for index, (y, x) in enumerate(places):
        for v, u in places[:index]:
            gap = [abs((d + 42.5) % 85 - 42.5) for d in (y - v, x - u)]
            assert math.hypot(*gap) >= 2 * least


def test_directions_are_unit_vectors_of_the_upper_side_evenly_strewn() -> None:
    found = np.array(directions(400, np.random.default_rng(0)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert found[:, 0].min() >= -0.1
    assert len(found) == pytest.approx(400 * 0.55, rel=0.1)
    assert np.abs(found[:, 1:].mean(0)).max() < 0.1


def test_the_objective_blurs_to_701_nm() -> None:
    point = np.zeros((64, 64), np.float32)
    point[32, 32] = 1
    seen = see(point, 100.0)
    width_px = 2 * float(np.interp(-seen[32, 32] / 2, -seen[32, 32:44], np.arange(12)))
    assert width_px * 100 == pytest.approx(0.51 * 550 / 0.4, rel=0.02)
    assert seen.sum() == pytest.approx(1, abs=1e-4)


def test_visibility_is_the_difference_a_spike_makes_in_units_of_the_noise() -> None:
    grain = spiny(count=20)
    light = {"pixel_size_nm": PIXEL_NM, "exposure": 0.7, "veil": 0.45, "read_noise_e": 1.1}
    weak, strong = visibility(grain, electrons=200, **light), visibility(grain, electrons=800, **light)
    assert len(weak.snr) == len(grain.spikes)
    # Four times the light is twice the signal-to-noise ratio, but for the read noise.
    np.testing.assert_allclose(strong.snr / weak.snr, 2, rtol=0.02)
    np.testing.assert_allclose(strong.contrast / weak.contrast, 2, rtol=0.02)
    assert (weak.snr > weak.contrast).all()
    assert not strong.hidden.any() or strong.contrast[strong.hidden].max() < 2


def test_every_type_is_drawn_differently() -> None:
    pits = ball("porous", pits=tuple(directions(30, np.random.default_rng(1), lowest=0.2)))
    pictures = [render([grain], **FIELD).reflectivity for grain in (ball(), spiny(), pits)]
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(picture - other).max() > 0.05


def test_impossible_grains_are_refused() -> None:
    with pytest.raises(SpecimenError, match="no grain type 'furry'; choose one of spiny, smooth, porous"):
        ball("furry")
    with pytest.raises(SpecimenError, match="radius -1"):
        ball(radius_um=-1)
    with pytest.raises(SpecimenError, match="some smooth: expected"):
        render([ball()], types=("spiny",), **FIELD)
    assert pollen.TYPES[:2] == ("spiny", "smooth")

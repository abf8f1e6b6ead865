"""An invented dot shows in the residual where it is; what the light holds does not; an even network has no spread."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.consistency import expected_noise, reblur_residual, spread
from models.errors import OpticsError
from models.optics import Optics, Sensor, blur
from models.samples import render

Image = NDArray[np.float32]

PIXEL_NM = 48.1
PHOTONS = 4000.0
OPTICS = Optics(effective_na=1.3)
PSF = OPTICS.psf(PIXEL_NM)


def _seen(truth: Image, seed: int = 0) -> Image:
    """Through the optics, off-centre light and a veil, with noise."""
    light = 0.9 * OPTICS.field_light(truth.shape, PIXEL_NM, (40.0, 90.0))
    veiled = (light * (0.7 * blur(truth, PSF) + 0.3)).astype(np.float32)
    return np.clip(Sensor().expose(veiled, photons=PHOTONS, rng=np.random.default_rng(seed)), 0, 1)


TRUTH = render("ic-metal", shape_px=(160, 176), pixel_size_nm=PIXEL_NM, seed=7)
IMAGE = _seen(TRUTH)
NOISE = expected_noise(IMAGE, photons=PHOTONS)


def test_a_faithful_output_leaves_the_noise() -> None:
    residual = reblur_residual(TRUTH, IMAGE, PSF, noise=NOISE)
    assert residual.shape == IMAGE.shape
    assert residual.dtype == np.float32
    assert residual.std() == pytest.approx(1, abs=0.06)
    assert np.abs(residual).max() < 6


@pytest.mark.parametrize("sign", [1, -1])
def test_an_invented_dot_shows_where_it_is_and_with_its_sign(sign: int) -> None:
    invented = TRUTH.copy()
    places = np.argwhere((TRUTH < 0.3) if sign > 0 else (TRUTH > 0.7))
    y, x = places[len(places) // 2]
    invented[y - 2 : y + 3, x - 2 : x + 3] += sign * 0.6
    smooth = reblur_residual(invented, IMAGE, PSF, noise=NOISE, smooth_px=2)
    assert np.hypot(*(np.array(np.unravel_index(np.argmax(sign * smooth), smooth.shape)) - (y, x))) <= 2.5
    assert sign * smooth[y, x] > 8
    before = reblur_residual(TRUTH, IMAGE, PSF, noise=NOISE, smooth_px=2)
    far = np.hypot(*(np.indices(TRUTH.shape) - np.array([y, x])[:, None, None])) > 25
    assert (smooth - before)[far].std() < 0.4


def test_averaging_keeps_the_unit() -> None:
    assert reblur_residual(TRUTH, IMAGE, PSF, noise=NOISE, smooth_px=2).std() == pytest.approx(1, abs=0.25)


def test_light_veil_gain_and_offset_of_the_output_are_no_contradiction() -> None:
    plain = reblur_residual(TRUTH, IMAGE, PSF, noise=NOISE)
    np.testing.assert_allclose(reblur_residual(0.4 * TRUTH + 0.2, IMAGE, PSF, noise=NOISE), plain, atol=0.02)


def test_what_was_smoothed_away_shows_too() -> None:
    flat = np.full_like(TRUTH, TRUTH.mean())
    assert reblur_residual(flat, IMAGE, PSF, noise=NOISE).std() > 3


def test_without_the_noise_the_map_is_in_units_of_the_picture() -> None:
    residual = reblur_residual(TRUTH, IMAGE, PSF)
    assert residual.std() == pytest.approx(float(NOISE.mean()), rel=0.15)


def test_the_border_is_no_evidence() -> None:
    spoiled = TRUTH.copy()
    spoiled[:6] = 1 - spoiled[:6]
    residual = reblur_residual(spoiled, IMAGE, PSF, noise=NOISE, border_px=32)
    assert (residual[:32] == 0).all()
    assert residual[32:-32, 32:-32].std() == pytest.approx(1, abs=0.06)


def test_an_output_of_scale_two_is_averaged_onto_the_camera_first() -> None:
    twice = np.kron(TRUTH, np.ones((2, 2), np.float32))
    np.testing.assert_allclose(reblur_residual(twice, IMAGE, PSF), reblur_residual(TRUTH, IMAGE, PSF), atol=1e-5)


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OpticsError, match="expected a whole multiple"):
        reblur_residual(TRUTH[:150], IMAGE, PSF)
    with pytest.raises(OpticsError, match="nothing inside a border of 80 px"):
        reblur_residual(TRUTH, IMAGE, PSF, border_px=80)
    with pytest.raises(OpticsError, match="photons is 0"):
        expected_noise(IMAGE, photons=0)


def test_the_expected_noise_is_the_sensors() -> None:
    level = np.full((200, 200), 0.4, np.float32)
    drawn = Sensor().expose(level, photons=500, rng=np.random.default_rng(1))
    assert expected_noise(level, photons=500)[0, 0] == pytest.approx(float(drawn.std()), rel=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 12), st.integers(4, 12), st.integers(1, 2), st.integers(0, 2**31))
def test_what_does_not_care_how_a_picture_lies_has_no_spread(height: int, width: int, scale: int, seed: int) -> None:
    image = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    even = spread(lambda x: np.kron(x**2, np.ones((scale, scale), np.float32)), image)
    assert even.shape == (scale * height, scale * width)
    assert even.dtype == np.float32
    assert even.max() < 1e-6


def test_spread_is_the_standard_deviation_over_the_eight_ways() -> None:
    image = np.zeros((9, 9), np.float32)
    image[4, 4] = 1
    # Puts half of everything one pixel to the right: turned back, to every side, twice each.
    result = spread(lambda x: (0.5 * x + 0.5 * np.roll(x, 1, axis=1)).astype(np.float32), image)
    beside = np.std([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    for y, x in ((4, 5), (4, 3), (3, 4), (5, 4)):
        assert result[y, x] == pytest.approx(beside)
    assert result[4, 4] == result[0, 0] == 0


def test_an_engine_may_use_one_buffer_for_every_output() -> None:
    buffer = np.empty((8, 8), np.float32)

    def infer(image: Image) -> Image:
        np.multiply(image, 0.5, out=buffer)
        return buffer

    assert spread(infer, np.random.default_rng(0).random((8, 8), dtype=np.float32)).max() < 1e-6

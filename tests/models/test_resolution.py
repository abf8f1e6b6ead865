"""Each measure of resolution finds the cut-off of pictures whose cut-off is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.optics import Optics, Sensor, blur
from models.resolution import (
    AGAINST_TRUTH,
    RAYLEIGH_DIP,
    decorrelation_resolution_nm,
    dip,
    fourier_ring_correlation,
    frc_resolution_nm,
    line_pairs,
    one_image_frc_nm,
    resolved_gap_nm,
)
from models.samples import render

Image = NDArray[np.float32]

SIDE = 256
PIXEL_NM = 48.1


def _noise(seed: int) -> Image:
    return np.random.default_rng(seed).standard_normal((SIDE, SIDE), dtype=np.float32)


def _cut_off(frequency: float, seed: int = 0) -> Image:
    """White noise of deviation 1 that ends at a spatial frequency, cycles per pixel."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE))
    image = np.fft.ifft2(np.fft.fft2(_noise(seed)) * (f <= frequency)).real
    return np.asarray(image / image.std(), dtype=np.float32)


@pytest.mark.parametrize("frequency", [0.08, 0.12, 0.2, 0.3])
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_two_exposures_correlate_up_to_the_cut_off(frequency: float, noise: float) -> None:
    clean = _cut_off(frequency)
    a, b = clean + noise * _noise(1), clean + noise * _noise(2)
    found_nm = frc_resolution_nm(a, b, PIXEL_NM)
    assert found_nm is not None
    # The window smears by two rings of 1/256 cycles per pixel, the smoothing by one.
    assert PIXEL_NM / found_nm == pytest.approx(frequency, abs=3.2 / SIDE)


@pytest.mark.parametrize("frequency", [0.08, 0.12, 0.2])
def test_one_picture_is_measured_by_its_even_and_odd_pixels(frequency: float) -> None:
    found_nm = one_image_frc_nm(_cut_off(frequency) + 0.3 * _noise(1), PIXEL_NM)
    assert found_nm is not None
    assert PIXEL_NM / found_nm == pytest.approx(frequency, abs=3.2 / SIDE)


@pytest.mark.parametrize("frequency", [0.08, 0.12, 0.2, 0.3])
def test_decorrelation_finds_the_cut_off(frequency: float) -> None:
    found_nm = decorrelation_resolution_nm(_cut_off(frequency) + 0.2 * _noise(1), PIXEL_NM)
    assert found_nm is not None
    assert PIXEL_NM / found_nm == pytest.approx(frequency, rel=0.04)


def test_noise_alone_has_no_resolution() -> None:
    assert frc_resolution_nm(_noise(1), _noise(2), PIXEL_NM) is None
    assert one_image_frc_nm(_noise(1), PIXEL_NM) is None
    assert decorrelation_resolution_nm(_noise(1), PIXEL_NM) is None


def test_equal_pictures_correlate_down_to_two_pixels() -> None:
    rings = fourier_ring_correlation(_noise(1), 0.5 * _noise(1) + 3)
    assert rings.frequency[-1] == 0.5
    np.testing.assert_allclose(rings.correlation[1:], 1, atol=1e-6)
    assert frc_resolution_nm(_noise(1), _noise(1), PIXEL_NM) == pytest.approx(2 * PIXEL_NM)


def test_against_the_truth_one_half_is_what_one_seventh_is_between_exposures() -> None:
    clean = render("leaves", shape_px=(SIDE, SIDE), pixel_size_nm=PIXEL_NM, seed=4)
    blurred = blur(clean, Optics(effective_na=1.3).psf(PIXEL_NM))
    rng = np.random.default_rng(0)
    a, b = (Sensor().expose(blurred, photons=5000, rng=rng) for _ in range(2))
    between, against = (
        frc_resolution_nm(a, b, PIXEL_NM),
        frc_resolution_nm(((a + b) / 2).astype(np.float32), clean, PIXEL_NM, threshold=AGAINST_TRUTH),
    )
    assert between is not None
    assert against == pytest.approx(between, rel=0.03)
    assert 550 / 1.3 / 2 < between < 1.2 * 550 / 1.3 / 2  # noise comes before the optical cut-off


def test_pictures_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape, 32 px or more"):
        fourier_ring_correlation(_noise(1), _noise(2)[:128])
    with pytest.raises(ValueError, match="one shape, 32 px or more"):
        fourier_ring_correlation(_noise(1)[:16, :16], _noise(2)[:16, :16])


@pytest.mark.parametrize("aperture", [0.9, 1.3])
@pytest.mark.parametrize("levels", [(0.2, 0.8), (0.8, 0.2)])
def test_two_points_at_rayleighs_distance_have_a_dip_of_26_percent(
    aperture: float, levels: tuple[float, float]
) -> None:
    point_nm = pixel_nm = 20.0
    pairs = line_pairs(
        0.61 * 550 / aperture - point_nm, width_nm=point_nm, length_nm=point_nm, shape_px=(320, 320),
        pixel_size_nm=pixel_nm, levels=levels,
    )  # fmt: skip
    seen = blur(pairs.reflectivity, Optics(effective_na=aperture).psf(pixel_nm))
    assert dip(seen, pairs) == pytest.approx(RAYLEIGH_DIP, abs=0.02)


def test_a_finer_aperture_resolves_a_smaller_gap_of_two_lines() -> None:
    smallest = []
    for aperture in (0.9, 1.3):
        psf = Optics(effective_na=aperture).psf(PIXEL_NM)
        targets = {gap: line_pairs(gap, pixel_size_nm=PIXEL_NM) for gap in range(100, 401, 25)}
        smallest.append(resolved_gap_nm({gap: dip(blur(t.reflectivity, psf), t) for gap, t in targets.items()}))
    assert smallest == [275, 175]  # Rayleigh's distances of points are 373 and 258 between centres: 273 and 158 clear


def test_the_truth_itself_is_resolved_and_a_flat_picture_is_not() -> None:
    target = line_pairs(200.0, pixel_size_nm=PIXEL_NM)
    assert dip(target.reflectivity, target) > 0.85
    assert dip(np.full_like(target.reflectivity, 0.5), target) == 0
    assert dip(1 - target.reflectivity, target) == 0  # dark where it should be bright is not resolved


def test_a_finer_grid_is_read_at_the_same_places() -> None:
    target = line_pairs(300.0, pixel_size_nm=PIXEL_NM)
    finer = np.kron(target.reflectivity, np.ones((2, 2), np.float32))
    assert dip(finer, target) == pytest.approx(dip(target.reflectivity, target), abs=0.05)


def test_lines_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="no such lines"):
        line_pairs(-1, pixel_size_nm=PIXEL_NM)
    with pytest.raises(ValueError, match="has no room"):
        line_pairs(100, shape_px=(32, 32), pixel_size_nm=PIXEL_NM)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(10, 500), st.floats(-1, 1), min_size=1))
def test_everything_above_the_resolved_gap_is_resolved_too(dips: dict[float, float]) -> None:
    smallest = resolved_gap_nm(dips)
    if smallest is None:
        assert dips[max(dips)] < RAYLEIGH_DIP
    else:
        assert all(depth >= RAYLEIGH_DIP for gap, depth in dips.items() if gap >= smallest)
        below = [gap for gap in dips if gap < smallest]
        assert not below or dips[max(below)] < RAYLEIGH_DIP

"""The figures of merit have known values on pictures one can work out by hand."""

import os

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("skimage", reason="needs the extra [train]")

from models.metrics import corrected, epi, inner, psnr_corrected_db, psnr_db, smooth, ssim

RNG = np.random.default_rng(7)
TRUTH = RNG.random((96, 80), dtype=np.float32)


def test_psnr_has_peak_one_and_leaves_the_border_out() -> None:
    image = TRUTH + np.float32(0.1)
    assert psnr_db(image, TRUTH) == pytest.approx(20, abs=1e-3)
    image[:8] = 9
    assert psnr_db(image, TRUTH, border_px=8) == pytest.approx(20, abs=1e-3)
    assert psnr_db(TRUTH, TRUTH) == pytest.approx(200)


def test_a_border_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing inside a border of 40 px"):
        inner(TRUTH, 40)


def test_ssim_is_one_for_the_truth_and_falls_with_noise() -> None:
    assert ssim(TRUTH, TRUTH) == pytest.approx(1)
    noisy = TRUTH + 0.2 * RNG.standard_normal(TRUTH.shape, dtype=np.float32)
    assert 0.3 < ssim(noisy, TRUTH) < 0.9


def test_epi_is_the_correlation_of_laplacians() -> None:
    assert epi(TRUTH, TRUTH) == pytest.approx(1)
    assert epi(0.3 * TRUTH + 0.5, TRUTH) == pytest.approx(1)  # blind to gain and offset
    assert epi(1 - TRUTH, TRUTH) == pytest.approx(-1)
    assert abs(epi(RNG.random(TRUTH.shape, dtype=np.float32), TRUTH)) < 0.1
    assert epi(np.zeros_like(TRUTH), TRUTH) == 0


def test_epi_equals_the_written_out_definition() -> None:
    image = (TRUTH + np.roll(TRUTH, 1, 0)) / 2
    kernel = np.full((3, 3), -1.0)
    kernel[1, 1] = 8

    def laplacian(picture: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        windows = np.lib.stride_tricks.sliding_window_view(picture.astype(float), (3, 3))
        return (windows * kernel).sum((2, 3))

    expected = np.corrcoef(laplacian(image).ravel(), laplacian(TRUTH).ravel())[0, 1]
    assert epi(image, TRUTH) == pytest.approx(expected, abs=1e-6)


def test_the_correction_undoes_gain_offset_and_a_smooth_flat_field() -> None:
    y, x = np.linspace(-1, 1, 96)[:, None], np.linspace(-1, 1, 80)[None, :]
    light = 1 / (1 + 0.2 * x - 0.3 * y**2)
    image = (0.4 * (TRUTH + 0.25) * light).astype(np.float32)
    assert psnr_db(image, TRUTH) < 13
    assert psnr_corrected_db(image, TRUTH) > 60


def test_the_correction_cannot_sharpen() -> None:
    blurred = sum(np.roll(TRUTH, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / np.float32(9)
    assert psnr_corrected_db(blurred, TRUTH) < 12.5  # white noise of variance 1/12 keeps 8/9 of it: 11.3 dB


def test_the_correction_of_a_flat_picture_is_the_mean() -> None:
    fixed = corrected(np.full_like(TRUTH, 0.5), TRUTH)
    assert fixed.mean() == pytest.approx(TRUTH.mean(), abs=1e-4)


def test_the_smooth_part_is_the_light_and_not_the_structure() -> None:
    y, x = np.linspace(-1, 1, 96)[:, None], np.linspace(-1, 1, 80)[None, :]
    light = (0.5 - 0.2 * y**2 + 0.1 * x * y + 0.05 * x**4).astype(np.float32)
    np.testing.assert_allclose(smooth(light), light, atol=1e-5)
    noise = 0.1 * RNG.standard_normal(light.shape, dtype=np.float32)
    assert (light + noise - smooth(light + noise)).std() == pytest.approx(0.1, rel=0.03)

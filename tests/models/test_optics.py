"""The default optics is what the published numbers say it is, and image formation keeps its promises."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from models.errors import OpticsError
from models.optics import Optics, Sensor, blur, form_image, warp

# 57 um, n 1.9, water, 550 nm, NA 0.55: light and pincushion of a 401 x 401 skew-ray trace, by height in um.
FIELD_LIGHT = {0: 1.0, 4: 0.971, 6: 0.904, 8: 0.769, 10: 0.641, 12: 0.499, 15: 0.214}
PINCUSHION = {6: 0.031, 8: 0.053, 10: 0.074, 12: 0.103}


def test_the_default_optics_has_the_published_numbers() -> None:
    optics = Optics()
    assert optics.pixel_size_nm == pytest.approx(48.1, abs=0.1)
    assert optics.focal_length_um == pytest.approx(47.5, abs=0.1)
    assert optics.paraxial_magnification == pytest.approx(2.5, abs=0.01)
    assert optics.psf_fwhm_nm == pytest.approx(283, abs=1.5)


@pytest.mark.parametrize(
    ("change", "fwhm_nm"),
    [
        ({"medium_index": 1.56, "focus_magnification": 1.6}, 328),
        ({"focus_magnification": 2.9}, 215),
        ({"effective_na": 0.9}, 0.51 * 550 / 0.9),
        ({"effective_na": 1.6, "wavelength_nm": 450}, 0.51 * 450 / 1.6),
    ],
)
def test_the_width_of_the_psf_follows_the_declared_parameters(change: dict[str, float], fwhm_nm: float) -> None:
    assert Optics(**change).psf_fwhm_nm == pytest.approx(fwhm_nm, rel=0.01)


def test_the_psf_is_a_normalised_symmetric_kernel_with_its_peak_in_the_middle() -> None:
    kernel = Optics().psf()
    assert kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel.argmax() == kernel.size // 2
    np.testing.assert_allclose(kernel, kernel.T)
    np.testing.assert_allclose(kernel, kernel[::-1])


def radius_of_energy_um(kernel: np.ndarray, pixel_size_nm: float, share: float = 0.5) -> float:
    """Radius within which that share of a kernel's energy lies."""
    half = len(kernel) // 2
    radius_um = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]).ravel() * pixel_size_nm / 1e3
    order = np.argsort(radius_um)
    return float(radius_um[order][np.searchsorted(np.cumsum(kernel.ravel()[order]), share)])


@pytest.mark.parametrize("aperture", [None, 0.9, 1.3, 1.6])
def test_no_defocus_is_the_psf_in_focus_and_defocus_keeps_the_energy_and_spreads_it(aperture: float | None) -> None:
    optics = Optics(effective_na=aperture)
    np.testing.assert_array_equal(optics.psf(defocus_um=0.0), optics.psf())
    # The traced PSF is best a third of a micrometre nearer to the sphere, so it grows to one side of that.
    kernels = [optics.psf(40.0, defocus_um=z) for z in (0.0, 0.3, 0.6, 1.0, 1.5)]
    radii_um = [radius_of_energy_um(kernel, 40.0) for kernel in kernels]
    assert radii_um == sorted(radii_um)
    assert radii_um[-1] > 2.5 * radii_um[0]
    for kernel in kernels:
        assert kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1, abs=1e-5)


def test_a_declared_aperture_defocuses_alike_to_both_sides_and_the_aberrated_sphere_does_not() -> None:
    declared, traced = Optics(effective_na=1.5), Optics()
    np.testing.assert_allclose(declared.psf(defocus_um=0.5), declared.psf(defocus_um=-0.5), atol=1e-7)
    assert np.abs(traced.psf(defocus_um=0.5) - traced.psf(defocus_um=-0.5)).max() > 1e-3


def depth_of_field_um(optics: Optics) -> float:
    """The range over which the peak keeps 80 % of its best (Rayleigh's quarter wave)."""
    defocus_um = np.linspace(-1.2, 1.2, 121)
    peaks = np.asarray([optics.psf(20.0, defocus_um=float(z)).max() for z in defocus_um])
    return float(np.ptp(defocus_um[peaks >= 0.8 * peaks.max()]))


def test_the_depth_of_field_of_the_full_aperture_is_the_published_third_of_a_micrometre() -> None:
    optics = Optics()
    full = Optics(effective_na=optics.objective_na * optics.focus_magnification)
    assert depth_of_field_um(full) == pytest.approx(0.33, abs=0.03)


def test_the_aberrated_sphere_is_as_deep_as_the_aperture_that_its_resolution_stands_for() -> None:
    resolved_na = 0.51 * 0.55 / 0.283
    assert depth_of_field_um(Optics()) == pytest.approx(1.33 * 0.55 / resolved_na**2, rel=0.07)


@pytest.mark.parametrize("defocus_um", [-1.6, 2.0, math.nan, math.inf])
def test_a_defocus_whose_light_would_not_fit_is_refused(defocus_um: float) -> None:
    with pytest.raises(OpticsError, match=r"expected -1\.5 to 1\.5 um"):
        Optics().psf(defocus_um=defocus_um)


def test_the_field_light_falls_off_as_traced() -> None:
    optics = Optics()
    # Light is a function of the height on the specimen; the image shows that height magnified by the pincushion.
    for height_um, light in FIELD_LIGHT.items():
        image_px = height_um * (1 + float(optics.distortion(height_um))) * 1e3 / optics.pixel_size_nm
        measured = optics.field_light((1, 1), centre_px=(0, -image_px))
        assert measured.item() == pytest.approx(light, abs=0.015), height_um


def test_the_distortion_is_the_traced_pincushion() -> None:
    for height_um, expected in PINCUSHION.items():
        assert float(Optics().distortion(height_um)) == pytest.approx(expected, abs=0.01), height_um


def test_the_distortion_map_inverts_the_distortion() -> None:
    optics = Optics()
    y, x = optics.distortion_map((401, 401))
    image_um = np.hypot(*np.mgrid[-200:201, -200:201]) * optics.pixel_size_nm / 1e3
    seen_um = np.hypot(y - 200, x - 200) * optics.pixel_size_nm / 1e3
    np.testing.assert_allclose(seen_um * (1 + optics.distortion(seen_um)), image_um, atol=0.02)


def test_field_light_and_distortion_follow_the_optical_axis() -> None:
    light = Optics().field_light((64, 80), centre_px=(10, 70))
    assert np.unravel_index(light.argmax(), light.shape) == (10, 70)
    np.testing.assert_allclose(Optics().distortion_map((64, 80), centre_px=(10, 70))[:, 10, 70], (10, 70), atol=1e-4)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Optics)])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_an_unphysical_parameter_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(OpticsError, match=field):
        Optics(**{field: value})


def test_a_sphere_that_forms_no_virtual_image_is_refused() -> None:
    with pytest.raises(OpticsError, match="virtual image"):
        Optics(sphere_index=2.1, medium_index=1.0)


def test_a_pixel_too_coarse_for_the_psf_is_refused() -> None:
    with pytest.raises(OpticsError, match="pixel size is 500 nm, expected at most 142 nm"):
        Optics().psf(500)


def test_blur_is_a_convolution_that_mirrors_the_edge() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((21, 34), dtype=np.float32)
    kernel = rng.random((5, 5), dtype=np.float32)
    kernel /= kernel.sum()
    padded = np.pad(image, 2, mode="symmetric")
    expected = sum(kernel[4 - dy, 4 - dx] * padded[dy : dy + 21, dx : dx + 34] for dy in range(5) for dx in range(5))
    np.testing.assert_allclose(blur(image, kernel), expected, atol=1e-5)


def test_blur_refuses_an_image_smaller_than_the_kernel() -> None:
    with pytest.raises(OpticsError, match="cannot blur"):
        blur(np.zeros((8, 8), np.float32), Optics().psf())


def test_warp_by_the_identity_changes_nothing_and_by_a_shift_shifts() -> None:
    image = np.random.default_rng(0).random((12, 17), dtype=np.float32)
    y, x = np.mgrid[:12, :17].astype(np.float32)
    np.testing.assert_allclose(warp(image, np.stack([y, x])), image, atol=1e-6)
    half = warp(image, np.stack([y, x + 0.5]))
    np.testing.assert_allclose(half[:, :-1], (image[:, :-1] + image[:, 1:]) / 2, atol=1e-6)


def test_a_white_specimen_shows_the_field_light_and_a_veil_lifts_black() -> None:
    optics = Optics()
    light = optics.field_light((96, 96))
    np.testing.assert_allclose(form_image(np.ones((96, 96), np.float32), optics), light, atol=1e-5)
    dark = form_image(np.zeros((96, 96), np.float32), optics, veil=0.2, distorted=True)
    np.testing.assert_allclose(dark, 0.2 * light, atol=1e-5)
    with pytest.raises(OpticsError, match="veil"):
        form_image(np.zeros((96, 96), np.float32), optics, veil=1.0)


def test_the_sensor_adds_shot_and_read_noise_and_saturates_at_its_full_well() -> None:
    rng = np.random.default_rng(3)
    sensor = Sensor()
    image = sensor.expose(np.full((400, 400), 0.5, np.float32), photons=1000, rng=rng)
    assert image.mean() == pytest.approx(0.5, rel=1e-3)
    assert image.std() * 600 == pytest.approx(math.sqrt(300 + 1.1**2), rel=0.01)
    bright = sensor.expose(np.ones((8, 8), np.float32), photons=1e6, rng=rng)
    assert bright.max() * 6e5 == pytest.approx(30_000)


def test_optics_and_specimens_need_numpy_only() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['scipy', 'torch', 'skimage', 'PIL', 'tifffile']));"
        "import models.optics, models.samples; models.optics.Optics().psf()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

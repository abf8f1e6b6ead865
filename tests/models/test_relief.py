"""Specimens with height are what their seeds say, and go out of focus height by height."""

import math
import subprocess
import sys

import numpy as np
import pytest

from models.errors import OpticsError, SpecimenError
from models.families import FAMILIES
from models.optics import Optics, blur
from models.relief import Relief, binned, render_relief, see
from models.samples import render

PIXEL_NM = Optics().pixel_size_nm


def draw(family: str, height_um: float = 0.3, seed: int = 1) -> Relief:
    return render_relief(family, shape_px=(96, 80), pixel_size_nm=PIXEL_NM, seed=seed, height_um=height_um)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_relief_of_the_height_that_was_asked_for(family: str) -> None:
    relief, again = draw(family), draw(family)
    for part, other in zip(relief, again, strict=True):
        assert part.shape == (96, 80)
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, other)
    assert relief.height_um.min() == 0
    assert relief.height_um.max() == pytest.approx(0 if family == "empty" else 0.3, rel=1e-5)
    assert 0 <= relief.material.min() <= relief.material.max() <= 1
    np.testing.assert_array_equal(
        relief.reflectivity,
        render(family, shape_px=(96, 80), pixel_size_nm=PIXEL_NM, seed=1, supersample=1),
        err_msg="the same seed is the same specimen, with height or without",
    )


def test_particles_are_balls_and_plateaus_are_flat() -> None:
    particles, lines = draw("nanoparticles", seed=2).height_um, draw("grating", seed=4).height_um
    assert len(np.unique(particles.round(4))) > 20
    top = np.unravel_index(particles.argmax(), particles.shape)
    assert particles[top] > particles[top[0], top[1] + 1] > 0
    values, counts = np.unique(lines.round(5), return_counts=True)
    assert np.sort(counts)[-8:].sum() > 0.3 * lines.size, f"few levels hold much of it, found {len(values)}"


def test_what_shines_is_high_and_heavy() -> None:
    for family in ("line-space", "ic-metal", "text"):
        relief = draw(family)
        rising = np.argsort(relief.reflectivity.ravel())
        assert (np.diff(relief.height_um.ravel()[rising]) >= 0).all()
        np.testing.assert_array_equal(relief.material, relief.reflectivity)


def test_unknown_families_and_impossible_heights_are_refused() -> None:
    with pytest.raises(SpecimenError, match="no specimen family 'unicorn'"):
        draw("unicorn")
    for height_um in (-0.1, math.nan, math.inf):
        with pytest.raises(SpecimenError, match="expected 0 or more"):
            draw("dots", height_um)


def test_a_flat_specimen_in_focus_is_the_plain_image_and_out_of_focus_the_defocused_one() -> None:
    relief, optics = draw("dots", 0.0), Optics(effective_na=1.3)
    np.testing.assert_allclose(see(relief, optics), blur(relief.reflectivity, optics.psf()), atol=1e-6)
    np.testing.assert_allclose(
        see(relief, optics, focus_um=0.6), blur(relief.reflectivity, optics.psf(defocus_um=0.6)), atol=1e-6
    )


def test_what_lies_between_two_planes_is_shared_by_them_and_little_is_lost_by_that() -> None:
    flat, optics = draw("siemens", 0.0), Optics(effective_na=1.3)
    exact = blur(flat.reflectivity, optics.psf(defocus_um=0.25))
    assert np.abs(see(flat, optics, focus_um=0.25) - exact).max() < 0.01


def test_focus_follows_the_height_that_is_looked_at() -> None:
    steps = np.zeros((96, 96), np.float32)
    steps[:, 48:] = 0.6
    lines = np.tile(np.repeat([0.0, 1.0], 4).astype(np.float32), 12)[:, None] * np.ones(96, np.float32)
    relief, optics = Relief(lines, steps, lines), Optics(effective_na=1.3)

    def contrast(focus_um: float) -> tuple[float, float]:
        image = see(relief, optics, focus_um=focus_um)
        return float(np.ptp(image[30:60, 10:30], axis=0).mean()), float(np.ptp(image[30:60, 66:86], axis=0).mean())

    low, high = contrast(0.0)
    assert low > 2 * high
    low, high = contrast(0.6)
    assert high > 2 * low


def test_light_is_kept_through_focus() -> None:
    white = np.ones((96, 80), np.float32)
    image = see(Relief(white, draw("crystals").height_um, white), Optics())
    assert image.mean() == pytest.approx(1, abs=0.01)


def test_a_height_too_far_out_of_focus_is_refused() -> None:
    with pytest.raises(OpticsError, match="defocus is"):
        see(draw("grating", 3.5), Optics())


def test_binning_averages_and_refuses_a_remainder() -> None:
    image = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert binned(image, 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]
    with pytest.raises(SpecimenError, match="make the sides multiples"):
        binned(image, 3)


def test_relief_and_electrons_need_numpy_only() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['scipy', 'torch', 'skimage', 'PIL', 'tifffile']));"
        "import models.relief, models.electrons"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

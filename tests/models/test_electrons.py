"""The electron picture shows what its physics says: material, tilt, edges, shadows, the detector's side, the dose."""

import dataclasses
import math

import numpy as np
import pytest

from models.electrons import Beam, form_sem, secondary_yield, sky
from models.errors import OpticsError, SpecimenError
from models.relief import Relief

FINE_NM = 20.0
OPEN = Beam(black=0.0, white=2.0)  # nothing saturates


def step(height_um: float = 0.3, material: float = 0.5) -> Relief:
    """A terrace: high on the right half."""
    height = np.zeros((64, 120), np.float32)
    height[:, 60:] = height_um
    return Relief(height * 0, height, np.full((64, 120), material, np.float32))


def flat(material: float) -> Relief:
    return step(0.0, material)


def test_heavy_elements_are_brighter_than_light_ones() -> None:
    light, heavy = (form_sem(flat(material), FINE_NM, beam=OPEN).mean() for material in (0.0, 1.0))
    assert light == pytest.approx(OPEN.yield_light / 2, rel=1e-3)
    assert heavy == pytest.approx(OPEN.yield_heavy / 2, rel=1e-3)


@pytest.mark.parametrize(("material", "exponent"), [(0.0, 1.2), (1.0, 0.8)])
def test_a_tilted_plane_emits_by_the_secant_law_up_to_the_limit(material: float, exponent: float) -> None:
    def emitted(tilt_deg: float) -> float:
        cos = np.full(1, math.cos(math.radians(tilt_deg)), np.float32)
        return float(secondary_yield(cos, np.full(1, material, np.float32), OPEN)[0])

    assert emitted(60) / emitted(0) == pytest.approx(2**exponent, rel=1e-5)
    assert emitted(85) == emitted(79) == pytest.approx(emitted(78), rel=1e-5)


def test_an_edge_is_bright_and_the_foot_of_its_wall_dark() -> None:
    row = form_sem(step(), FINE_NM, beam=OPEN)[32]
    level = row[5]
    assert row[58:63].max() > 2 * level
    assert row[48:56].min() < 0.9 * level
    assert row[110] == pytest.approx(level, rel=0.02), "both terraces are the same far from the step"


def test_the_wall_that_faces_the_detector_is_brighter() -> None:
    ridge = np.zeros((120, 64), np.float32)
    ridge[40:80] = 0.2
    relief = Relief(ridge, ridge, ridge * 0)
    up, down = (
        form_sem(relief, FINE_NM, beam=dataclasses.replace(OPEN, detector_deg=angle)) for angle in (90.0, -90.0)
    )
    assert up[36:44].max() > 1.1 * up[76:84].max(), "row 40 faces up"
    np.testing.assert_allclose(up, down[::-1], atol=1e-5)


def test_the_default_detector_stands_on_the_diagonal_so_that_pictures_may_be_mirrored_there() -> None:
    heights = np.random.default_rng(0).random((8, 8)).astype(np.float32).repeat(8, 0).repeat(8, 1) * 0.2
    there = form_sem(Relief(heights, heights, heights), FINE_NM)
    back = form_sem(Relief(heights.T, heights.T, heights.T), FINE_NM)
    np.testing.assert_allclose(back, there.T, atol=1e-5)


def test_a_hole_gets_less_out_the_deeper_it_is() -> None:
    hole = np.zeros((65, 65), np.float32)
    hole[28:37, 28:37] = -1
    seen = [float(sky(hole * depth)[32, 32]) for depth in (0, 2, 6)]
    assert seen[0] == 1
    assert seen[0] > seen[1] > seen[2] > 0


def test_the_noise_is_that_of_the_dose() -> None:
    rng = np.random.default_rng(0)
    beam = dataclasses.replace(OPEN, dose_e=500.0)
    relief = Relief(*(np.full((300, 300), value, np.float32) for value in (0.0, 0.0, 1.0)))
    noisy, clean = form_sem(relief, FINE_NM, beam=beam, rng=rng), form_sem(relief, FINE_NM, beam=beam)
    assert np.ptp(clean) < 1e-5
    assert noisy.mean() == pytest.approx(float(clean.mean()), rel=0.01)
    assert noisy.std() == pytest.approx(math.sqrt(beam.yield_heavy / beam.dose_e) / 2, rel=0.03)


def test_the_amplifier_saturates_at_both_ends() -> None:
    picture = form_sem(step(0.5, 1.0), FINE_NM, beam=Beam(black=0.19, white=0.25))
    assert picture.min() == 0
    assert picture.max() == 1


def test_bins_average_the_fine_picture_and_must_divide_it() -> None:
    fine, coarse = form_sem(step(), FINE_NM, beam=OPEN), form_sem(step(), FINE_NM, beam=OPEN, bin_px=2)
    np.testing.assert_allclose(coarse, fine.reshape(32, 2, 60, 2).mean((1, 3)), atol=1e-6)
    with pytest.raises(SpecimenError, match="make the sides multiples"):
        form_sem(step(), FINE_NM, bin_px=7)


@pytest.mark.parametrize(
    "wrong", [{"dose_e": 0.0}, {"black": 0.5}, {"yield_light": -0.1}, {"tilt_limit_deg": 90.0}, {"detector_gain": 1.0}]
)
def test_an_impossible_microscope_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OpticsError, match="expected"):
        Beam(**wrong)
    with pytest.raises(OpticsError, match="pixel size"):
        form_sem(step(), math.nan)

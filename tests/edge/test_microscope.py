"""The simulated microscope is the one the model was trained for, unless somebody declared another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.cameras import microscope as simulated
from edge.cameras import open_camera
from edge.cameras.microscope import PlainObjective, fitted, microscope, optics_of
from edge.config import Config, OpticsConfig
from export.manifest import Manifest, load_bundle
from firmware_bridge.pzt import PositionUm
from firmware_bridge.simulator.controller import TRAVEL_UM
from models.lens.data import Conditions
from models.lens.recipe import LensRecipe
from models.optics import Optics
from models.recipe import read_recipe
from tests.contracts import pool_for

MIDDLE = PositionUm(50, 50, 5)


@pytest.fixture
def lens(lens_bundle: Path) -> Manifest:
    return load_bundle(lens_bundle).manifest()


def config(**sections: Any) -> Config:
    return Config.model_validate({"camera": {"shape_px": (64, 96)}, **sections})


def test_the_specimen_is_as_wide_as_the_simulated_stage_travels() -> None:
    assert (simulated.SIDE_UM, simulated.SIDE_UM) == TRAVEL_UM.high[:2]
    assert TRAVEL_UM.low[:2] == (0, 0)


def test_a_neural_lens_looks_through_the_objective_it_was_trained_for(lens: Manifest) -> None:
    found = fitted(config(), lens)
    optics = optics_of(found.optics)
    assert optics.pixel_size_nm == pytest.approx(332)
    assert optics.psf_fwhm_nm == pytest.approx(0.51 * 550 / 0.4, rel=0.03)
    assert microscope(optics) == "20x objective of NA 0.4, no sphere, 332.0 nm/px"
    assert found.sphere.field_um is None


@pytest.mark.parametrize(("multiple_px", "side_px"), [(256, 256), (1024, 1024), (64, 256), (96, 288)])
def test_a_neural_lens_sees_one_field(lens: Manifest, multiple_px: int, side_px: int) -> None:
    model = lens.model_copy(update={"side_multiple_px": multiple_px})
    assert fitted(Config(), model).camera.shape_px == (side_px, side_px)
    assert fitted(config(), model).camera.shape_px == (64, 96), "what somebody declared is checked, not replaced"


def test_what_the_default_sphere_fits_is_left_as_it_is(identity_bundle: Path) -> None:
    assert fitted(config(), load_bundle(identity_bundle).manifest()) == config()


def test_another_pixel_size_behind_a_sphere_is_another_camera(lens: Manifest) -> None:
    optics = optics_of(fitted(config(), lens.model_copy(update={"task": "sem", "pixel_size_nm": 80.0})).optics)
    assert optics.pixel_size_nm == pytest.approx(80)
    assert optics.psf_fwhm_nm == Optics().psf_fwhm_nm


@pytest.mark.parametrize(
    "declared",
    [
        {"optics": {"sphere_diameter_um": 50}},
        {"optics": {"sphere_diameter_um": 57}},  # the default, but said
        {"camera": {"pixel_size_nm": 48.1}},
        {"sphere": {"camera_from_stage_px_per_um": [[20.8, 0], [0, 20.8]]}},
        {"camera": {"driver": "replay", "path": "somewhere"}},
    ],
)
def test_what_somebody_declared_is_never_replaced(lens: Manifest, declared: dict[str, Any]) -> None:
    assert fitted(config(**declared), lens) == config(**declared)


def test_a_marked_field_stays_marked(lens: Manifest) -> None:
    assert fitted(config(sphere={"field_um": 12.0}), lens).sphere.field_um == 12.0


def test_an_objective_by_itself_lights_evenly_and_distorts_nothing() -> None:
    declared = OpticsConfig(microscope="objective", objective_na=0.4, objective_magnification=20, camera_pixel_um=6.5)
    optics = optics_of(declared)
    assert isinstance(optics, PlainObjective)
    assert optics.pixel_size_nm == pytest.approx(325)
    assert (optics.field_light((5, 7)) == 1).all()
    y, x = optics.distortion_map((5, 7))
    assert (y[3, 2], x[3, 2]) == (3, 2)
    assert not optics.distortion(np.array([0.0, 8.0])).any()


def test_its_camera_shows_pollen_and_says_what_it_looks_through(lens: Manifest) -> None:
    camera = open_camera(fitted(config(camera={"shape_px": (256, 256)}), lens), pose_um=lambda: MIDDLE)
    assert camera.pixel_size_nm == pytest.approx(332)
    assert camera.microscope is not None
    assert camera.distortion is None
    camera.start(pool_for(camera), exposure_s=0.005, triggered=False)
    frames = np.stack([camera.next_frame(timeout_s=5).pixels for _ in range(3)]).astype(float)
    camera.close()
    assert frames.max() < 255
    # Noise differs from frame to frame, grains do not: smoothed over 8 x 8 px they stand out, twice at the same places.
    smooth = frames.reshape(3, 32, 8, 32, 8).mean(axis=(2, 4))
    assert np.corrcoef(smooth[0].ravel(), smooth[2].ravel())[0, 1] > 0.8


def test_the_pollen_it_shows_is_of_the_kind_the_shipped_neural_lens_was_trained_on() -> None:
    recipe = read_recipe("neural-lens-mini")
    assert isinstance(recipe, LensRecipe)
    assert isinstance(recipe.data, Conditions)
    learned = recipe.data
    # The recipe's photons are of full scale, the lamp's of white.
    of_full_scale = simulated.OBJECTIVE_LAMP.photons / simulated.OBJECTIVE_LAMP.level
    lowest, highest = min(low for low, _ in learned.radius_um), max(high for _, high in learned.radius_um)
    assert (lowest, highest) == simulated.RADIUS_UM
    for value, (low, high) in (
        (simulated.SPIKE_UM[0], learned.spike_length_um),
        (simulated.SPIKE_UM[1], learned.spike_base_um),
        (simulated.OBJECTIVE_LAMP.level, learned.exposure),
        (simulated.OBJECTIVE_LAMP.veil, learned.veil),
        (of_full_scale, (min(learned.photons), max(learned.photons))),
        *((share, learned.albedo) for share in simulated.ALBEDO),
        *((count, (min(learned.spikes), max(learned.spikes))) for count in simulated.SPIKES),
    ):
        assert low <= value <= high

"""Which microscope the simulated camera is: the one the configuration declares, else the one the model was trained for.

A network of the neural lens saw pollen through a 20x objective of NA 0.4 by itself, the others a specimen under a
sphere. A model and a microscope that do not belong together would show nonsense, and a box that simulates its
instrument need not do that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.config import Config, OpticsConfig
from export.manifest import Manifest
from models import pollen
from models.optics import Optics
from models.samples import demo_specimen, load_specimen, resample

Image = NDArray[np.float32]

log = logging.getLogger(__name__)

SIDE_UM = 100.0
"""Travel of the simulated stage in x and in y."""
LENS_NA, LENS_MAGNIFICATION = 0.4, 20.0
"""The objective of the neural lens (Grant-Jacob et al. 2019)."""
SMALLEST_FIELD_PX = 256
GRAINS_PER_UM2 = 6e-4
"""Pollen: some four grains in a field of 85 um, the width of the paper's picture."""
RADIUS_UM, SPIKE_UM, SPIKES, ALBEDO = (6.2, 10.0), (5.3, 1.85), (14, 22), (0.55, 0.7)
"""Of the grains; length and foot of their spikes, and how many the ball has: as the shipped neural lens knows them."""


class Lamp(NamedTuple):
    """The light of the simulated microscope in the nominal exposure.

    Attributes
    ----------
    photons
        That a pixel of reflectivity 1 on the axis receives.
    level
        Of full scale: where the camera's gain puts it.
    veil
        Share of light that never saw the specimen: reflections of the sphere's own surfaces lower the contrast.
    """

    photons: float
    level: float
    veil: float


SPHERE_LAMP = Lamp(8000.0, 0.85, 0.25)
OBJECTIVE_LAMP = Lamp(280.0, 0.70, 0.45)
"""As the shipped neural lens knows them: short exposures of living grains in a hazy field."""


@dataclass(frozen=True)
class PlainObjective(Optics):
    """An objective by itself: the Airy pattern of its aperture, even light and no distortion."""

    def field_light(
        self,
        shape_px: tuple[int, int],
        pixel_size_nm: float | None = None,
        centre_px: tuple[float, float] | None = None,
    ) -> Image:
        """1 everywhere, (height, width)."""
        return np.ones(shape_px, np.float32)

    def distortion_map(
        self,
        shape_px: tuple[int, int],
        pixel_size_nm: float | None = None,
        centre_px: tuple[float, float] | None = None,
    ) -> Image:
        """Each pixel sees its own place, (2, height, width)."""
        return np.indices(shape_px, np.float32)

    def distortion(self, radius_um: float | NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """None at any radius."""
        return np.zeros_like(radius_um, np.float64)


def fitted(config: Config, manifest: Manifest) -> Config:
    """The configuration with the microscope that the model was trained for.

    It is left as it is where the camera is no simulated one, or where it says anything about optics or pixel size: what
    somebody declared is checked against the model, never replaced. A neural lens sees the field it was trained on: its
    networks halve the picture until one pixel is left, so a larger one would be several fields side by side.
    """
    declared = (
        config.optics.model_fields_set
        or config.camera.pixel_size_nm is not None
        or config.sphere.camera_from_stage_px_per_um is not None
    )
    if config.camera.driver != "simulated" or declared:
        return config
    wanted_um = manifest.pixel_size_nm / 1e3
    if manifest.task == "neural-lens":
        optics = OpticsConfig(
            microscope="objective",
            objective_na=LENS_NA,
            objective_magnification=LENS_MAGNIFICATION,
            camera_pixel_um=round(wanted_um * LENS_MAGNIFICATION, 6),
        )
    elif not manifest.pixel_fits(optics_of(config.optics).pixel_size_nm):
        default = Optics()
        optics = OpticsConfig(camera_pixel_um=wanted_um * default.objective_magnification * default.focus_magnification)
    else:
        return config
    log.info("the simulated microscope is the one of %s: %s", manifest.name, microscope(optics_of(optics)))
    camera, sphere = config.camera, config.sphere
    if optics.microscope == "objective" and "field_um" not in sphere.model_fields_set:
        sphere = sphere.model_copy(update={"field_um": None})  # no sphere, no disc: the whole frame is usable
    if manifest.task == "neural-lens" and "shape_px" not in camera.model_fields_set:
        side_px = manifest.side_multiple_px * math.ceil(SMALLEST_FIELD_PX / manifest.side_multiple_px)
        camera = camera.model_copy(update={"shape_px": (side_px, side_px)})
    return config.model_copy(update={"camera": camera, "optics": optics, "sphere": sphere})


def optics_of(config: OpticsConfig) -> Optics:
    """The physics of ``[optics]``.

    Raises
    ------
    OpticsError
        It is unphysical.
    """
    values = config.model_dump(exclude={"microscope"})
    if config.microscope == "sphere":
        return Optics(**values)
    aperture = config.effective_na or config.objective_na
    return PlainObjective(**{**values, "effective_na": aperture, "focus_magnification": 1.0})


def microscope(optics: Optics) -> str:
    """It in words, for the page, the log and every file."""
    objective = f"{optics.objective_magnification:g}x objective of NA {optics.objective_na:g}"
    sphere = "no sphere" if isinstance(optics, PlainObjective) else f"{optics.sphere_diameter_um:g} um sphere"
    return f"{objective}, {sphere}, {optics.pixel_size_nm:.1f} nm/px"


def draw_specimen(config: Config, optics: Optics) -> Callable[[], Image]:
    """What draws the specimen on the camera's grid, large enough for the stage's travel; or the one from a file.

    Raises
    ------
    SpecimenError
        The file is none.
    """
    pixel_size_nm, path = optics.pixel_size_nm, config.specimen.path
    if path is not None:
        return partial(resample, load_specimen(path, config.specimen.pixel_size_nm), pixel_size_nm)
    size_um = SIDE_UM + 1.1 * max(config.camera.shape_px) * pixel_size_nm / 1e3
    draw = _pollen if isinstance(optics, PlainObjective) else demo_specimen
    return partial(draw, size_um, pixel_size_nm, seed=config.specimen.seed)


def _pollen(size_um: float, pixel_size_nm: float, *, seed: int) -> Image:
    """Spiny and smooth pollen grains on a slide, (side, side) reflectivity of 0 to 1."""
    rng = np.random.default_rng(seed)
    side_px = math.ceil(size_um * 1e3 / pixel_size_nm)
    length_um, foot_um = SPIKE_UM
    # Where a grain finds no room it is left out, so the large ones go first.
    radii_um = sorted(rng.uniform(*RADIUS_UM, round(GRAINS_PER_UM2 * size_um**2)), reverse=True)
    places_um = pollen.place([radius_um + length_um for radius_um in radii_um], size_um, rng)
    grains = []
    for radius_um, place_um in zip(radii_um, places_um, strict=False):
        spiny = rng.random() < 0.5
        towards = pollen.directions(int(rng.integers(SPIKES[0], SPIKES[1] + 1)), rng) if spiny else ()
        spikes = tuple(pollen.Spike((float(z), float(y), float(x)), length_um, foot_um) for z, y, x in towards)
        kind = "spiny" if spiny else "smooth"
        grains.append(pollen.Grain(kind, place_um, radius_um, rng.uniform(*ALBEDO), spikes))
    return pollen.render(grains, shape_px=(side_px, side_px), pixel_size_nm=pixel_size_nm).reflectivity

"""Specimens with height, and how a microscope with little depth of field sees them (numpy only)."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.canvas import Canvas
from models.errors import SpecimenError
from models.families import FAMILIES
from models.optics import Optics, blur

Image = NDArray[np.float32]

# Planes of focus between which light is interpolated; a third of the depth of field of NA 1.49.
SLICE_UM = 0.1

# Families whose shapes are round bodies; all others are plateaus at the heights of their levels.
_ROUND = {"dots", "nanoparticles", "pollen"}


class Relief(NamedTuple):
    """A specimen with height; all (height, width) float32.

    `reflectivity` is 0 to 1; `height_um` is 0 at the lowest point; `material` is 0 for light elements (carbon,
    resist) to 1 for heavy ones (gold).
    """

    reflectivity: Image
    height_um: Image
    material: Image

    def binned(self, pixels: int) -> Relief:
        """Averages over squares of so many pixels."""
        return Relief(*(binned(part, pixels) for part in self))


def render_relief(
    family: str, *, shape_px: tuple[int, int], pixel_size_nm: float, seed: int, height_um: float
) -> Relief:
    """Draw one specimen with height.

    Plateaus (lines, layers, crystals, signs) lie the higher the brighter they are; particles and grains are balls on
    the ground, scattered dots caps. What shines is taken to be high and heavy, as metal on resist is: a declared
    simplification, without which an optical picture would not tell a ridge from a trench, and no network could.

    Parameters
    ----------
    family, shape_px, pixel_size_nm, seed
        As `models.samples.render`, without its supersampling.
    height_um
        Between the lowest and the highest point, 0 or more.

    Raises
    ------
    SpecimenError
        There is no such family, grid or height.

    Examples
    --------
    >>> relief = render_relief("nanoparticles", shape_px=(64, 48), pixel_size_nm=48.1, seed=1, height_um=0.2)
    >>> relief.height_um.shape, round(float(relief.height_um.max()), 3)
    ((64, 48), 0.2)
    """
    if family not in FAMILIES:
        raise SpecimenError(f"there is no specimen family {family!r}; choose one of {', '.join(FAMILIES)}")
    if min(shape_px) < 1 or not (math.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise SpecimenError(f"cannot draw {shape_px} px of {pixel_size_nm} nm: all must be positive")
    if not (math.isfinite(height_um) and height_um >= 0):
        raise SpecimenError(f"height is {height_um} um, expected 0 or more; give the height of the specimen")
    rng = np.random.default_rng([zlib.crc32(family.encode()), seed])
    canvas = _Survey(shape_px, pixel_size_nm)
    reflectivity = np.ascontiguousarray(FAMILIES[family](canvas, rng), dtype=np.float32)
    if family in _ROUND:
        surface, material = canvas.surface_nm, canvas.material
    else:
        surface, material = reflectivity, reflectivity
    lowest, highest = float(surface.min()), float(surface.max())
    # What has no relief at all, such as an empty field, stays flat.
    scale = height_um / (highest - lowest) if highest - lowest > 1e-6 else 0.0
    height = ((surface - np.float32(lowest)) * np.float32(scale)).astype(np.float32)
    return Relief(reflectivity, height, np.clip(material, 0, 1).astype(np.float32))


def see(relief: Relief, optics: Optics, *, pixel_size_nm: float | None = None, focus_um: float | None = None) -> Image:
    """The incoherent image of a specimen with height: every height blurred by its own defocus.

    Light of a height between two planes of `SLICE_UM` is shared linearly among both. Nothing hides anything: light
    comes from above.

    Parameters
    ----------
    relief
        The specimen; sides at least 2 um.
    optics, pixel_size_nm
        As `models.optics.form_image`.
    focus_um
        The height in focus; None is half way between lowest and highest.

    Returns
    -------
    (height, width) float32, 0 to 1; no illumination, no noise.

    Raises
    ------
    OpticsError
        A height lies further out of focus than `Optics.psf` can say.
    """
    if focus_um is None:
        focus_um = float(relief.height_um.min() + relief.height_um.max()) / 2
    # What is high is nearer to the sphere, and so has the smaller defocus.
    plane = (np.float32(focus_um) - relief.height_um) / np.float32(SLICE_UM)
    image = np.zeros_like(relief.reflectivity)
    for index in range(math.floor(plane.min()), math.ceil(plane.max()) + 1):
        share = np.maximum(1 - np.abs(plane - np.float32(index)), 0)
        if share.any():
            image += blur(relief.reflectivity * share, optics.psf(pixel_size_nm, defocus_um=index * SLICE_UM))
    return image


def binned(image: Image, pixels: int) -> Image:
    """Averages over squares of so many pixels; SpecimenError unless the sides are multiples."""
    height, width = image.shape
    if pixels < 1 or height % pixels or width % pixels:
        raise SpecimenError(f"cannot average {image.shape} px over squares of {pixels} px; make the sides multiples")
    parts = image.reshape(height // pixels, pixels, width // pixels, pixels)
    return np.asarray(parts.mean(axis=(1, 3)), dtype=np.float32)


@dataclass(frozen=True)
class _Survey(Canvas):
    """A canvas that also notes how high and of what each round shape is that a family draws."""

    surface_nm: Image = field(init=False, repr=False)
    material: Image = field(init=False, repr=False)
    _balls_nm: Image = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("surface_nm", "material", "_balls_nm"):
            object.__setattr__(self, name, np.zeros(self.shape_px, np.float32))

    def full(self, value: float) -> Image:
        self.material[:] = value
        return super().full(value)

    def disc(self, image: Image, centre_nm: tuple[float, float], radius_nm: float, value: float) -> None:
        """A cap on the ball that lies there, or on the ground; a pit where it is darker than what it is drawn on."""
        window, y, x = self._window(centre_nm, radius_nm, radius_nm)
        y_px, x_px = (
            min(max(int(c / self.pixel_nm), 0), side - 1) for c, side in zip(centre_nm, self.shape_px, strict=True)
        )
        cap = np.sqrt(np.maximum(np.float32(radius_nm**2) - y**2 - x**2, 0))
        surface, ground = self.surface_nm[window], self._balls_nm[y_px, x_px]
        if ground > 0 and value < image[y_px, x_px]:
            surface -= np.float32(0.5) * cap
        else:
            np.maximum(surface, (ground + cap) * (cap > 0), out=surface)
        super().disc(self.material, centre_nm, radius_nm, value)
        super().disc(image, centre_nm, radius_nm, value)

    def ball(self, image: Image, centre_nm: tuple[float, float], radius_nm: float, value: float) -> None:
        """A ball that rests on the ground: its top is a diameter high."""
        window, y, x = self._window(centre_nm, radius_nm, radius_nm)
        inside = np.float32(radius_nm**2) - y**2 - x**2
        top = np.where(inside > 0, np.float32(radius_nm) + np.sqrt(np.maximum(inside, 0)), 0)
        for surface in (self.surface_nm[window], self._balls_nm[window]):
            np.maximum(surface, top, out=surface)
        super().disc(self.material, centre_nm, radius_nm, value)
        super().ball(image, centre_nm, radius_nm, value)

"""Synthetic pairs of an optical and a scanning electron image, by conditions and seed.

The specimen has height, so that the optical image is in focus at one height only; the electron image, without its
noise, is the truth. The held-out set has specimen families, apertures, heights and noise levels that no training
configuration contains.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.drawn import SpecimenConditions, middles
from models.electrons import form_sem
from models.exposure import Span
from models.relief import Relief, render_relief, see
from models.workers import spread

Image = NDArray[np.float32]

# Walls are steep: the electron picture is formed on a grid twice as fine as the camera's, and averaged.
_FINE = 2


class Conditions(SpecimenConditions):
    """What a data set may contain: also heights, focus and registration.

    `height_um` is from the lowest to the highest point; `focus_um` is where the plane of focus lies, from the middle
    of that. `misregistration_px` is the largest shift between the two pictures of a training crop.
    """

    height_um: tuple[float, ...] = Field(min_length=1)
    focus_um: Span = (0.0, 0.0)
    misregistration_px: int = Field(default=0, ge=0, le=16)


class Pair(NamedTuple):
    """An optical and an electron image, with everything an oracle may know about them."""

    name: str
    image: Image  # what the camera delivered, counts / full scale
    truth: Image  # the electron image without noise
    light: Image  # the illumination, exposure included
    psf: Image  # in focus
    psf_defocused: Image  # of the height in the middle of the specimen


HELDOUT = Conditions(
    families=("line-space", "nanoparticles", "ic-contacts", "disc-tracks", "bars"),
    effective_na=(0.9, 1.1, 1.3, 1.5),
    height_um=(0.15, 0.3),
    focus_um=(-0.2, 0.2),
    photons=(500, 2000, 8000),
    axis_offset_um=((3.4, 3.6),),
)
_HELDOUT_SEED = 20_253


def heldout(*, images_per_family: int = 4, side_px: int = 256, focus_um: float | None = None) -> list[Pair]:
    """`synthetic:heldout`: the same images everywhere, generated when asked for.

    `focus_um` looks at the same specimens, in the same light, with the plane of focus that far above their middle.
    """
    conditions = HELDOUT
    if focus_um is not None:
        conditions = HELDOUT.model_copy(update={"focus_um": (focus_um, focus_um)})
    return pairs(conditions, images_per_family=images_per_family, side_px=side_px, seed=_HELDOUT_SEED)


def background(*, images: int = 4, side_px: int = 256) -> list[Pair]:
    """Empty fields, seen as the held-out set is: what appears there was made up."""
    conditions = HELDOUT.model_copy(update={"families": ("empty",)})
    return pairs(conditions, images_per_family=images, side_px=side_px, seed=_HELDOUT_SEED + 1)


def real_heldout(folder: Path, *, side_px: int = 256, height_um: float = 0.15) -> list[Pair]:
    """`real:heldout`: the middle of every image of a folder as a specimen, seen as `synthetic:heldout` is.

    Its grey values stand for reflectivity, height and material alike, one pixel of theirs for one of ours: real
    structure, simulated optics and electrons.
    """
    seen = []
    for number, name, part in middles(folder, side_px=side_px):
        relief = Relief(part, part * np.float32(height_um), part)
        truth = form_sem(relief, HELDOUT.pixel_size_nm)
        seen.append(_pair(name, relief, truth, HELDOUT, [_HELDOUT_SEED + 2, number], number, 0))
    return seen


def pairs(conditions: Conditions, *, images_per_family: int, side_px: int, seed: int) -> list[Pair]:
    """A fixed set of whole images: every family in turn; apertures, heights and noise levels evenly mixed."""
    made = []
    for number, family in enumerate(conditions.families * images_per_family):
        turn, place = divmod(number, len(conditions.families))
        height_um = conditions.height_um[(turn + place // 2) % len(conditions.height_um)]
        relief, truth = _specimen(family, conditions, side_px, height_um, seed + number)
        name = f"{family} {height_um:g} um high"
        made.append(_pair(name, relief, truth, conditions, [seed, number], turn, place))
    return made


def _pair(
    name: str, relief: Relief, truth: Image, conditions: Conditions, seed: list[int], turn: int, place: int
) -> Pair:
    rng = np.random.default_rng(seed)
    # Different steps for both, so that every family meets every aperture and noise level in turn.
    aperture = conditions.effective_na[(turn + place) % len(conditions.effective_na)]
    photons = conditions.photons[(2 * turn + place) % len(conditions.photons)]
    focus_um = rng.uniform(*conditions.focus_um)
    optics, middle_um = conditions.optics(aperture), float(np.ptp(relief.height_um)) / 2
    seen = see(relief, optics, pixel_size_nm=conditions.pixel_size_nm, focus_um=middle_um + focus_um)
    image, light = conditions.observe(seen, photons, rng)
    psf, defocused = (optics.psf(conditions.pixel_size_nm, defocus_um=z) for z in (0.0, focus_um))
    name = f"{name} NA {aperture} {photons:g} photons focus {focus_um:+.2f} um"
    return Pair(name, image, truth, light, psf, defocused)


class Scenes(NamedTuple):
    """A bank of specimens, seen by light without illumination or noise, and by electrons; (n, side, side) float16."""

    seen: NDArray[np.float16]
    truth: NDArray[np.float16]


def scenes(conditions: Conditions, *, count: int, side_px: int, seed: int, workers: int | None = None) -> Scenes:
    """Draw specimens and both their pictures on all cores; depends on the seed only, not on the workers."""
    drawn = spread(_scene, [(conditions, side_px, seed, number) for number in range(count)], workers)
    return Scenes(np.stack([seen for seen, _ in drawn]), np.stack([truth for _, truth in drawn]))


def _scene(job: tuple[Conditions, int, int, int]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    conditions, side_px, seed, number = job
    rng = np.random.default_rng([seed, number, 1])
    family = conditions.families[number % len(conditions.families)]
    height_um = conditions.height_um[rng.integers(len(conditions.height_um))]
    optics = conditions.optics(conditions.effective_na[rng.integers(len(conditions.effective_na))])
    relief, truth = _specimen(family, conditions, side_px, height_um, int(rng.integers(2**31)))
    focus_um = float(np.ptp(relief.height_um)) / 2 + rng.uniform(*conditions.focus_um)
    seen = see(relief, optics, pixel_size_nm=conditions.pixel_size_nm, focus_um=focus_um)
    return seen.astype(np.float16), truth.astype(np.float16)


def _specimen(family: str, conditions: Conditions, side_px: int, height_um: float, seed: int) -> tuple[Relief, Image]:
    """The specimen on the camera's pixels and its electron picture."""
    fine_nm, side = conditions.pixel_size_nm / _FINE, side_px * _FINE
    relief = render_relief(family, shape_px=(side, side), pixel_size_nm=fine_nm, seed=seed, height_um=height_um)
    return relief.binned(_FINE), form_sem(relief, fine_nm, bin_px=_FINE)


def crop(
    bank: Scenes, conditions: Conditions, rng: np.random.Generator, *, crop_px: int, paired: bool
) -> tuple[Image, Image]:
    """A random optical crop, exposed anew, and a random electron crop.

    Paired crops show the same place, up to `misregistration_px`; unpaired ones are of different specimens. Mirrored at
    the diagonal only, on which the electron detector stands: any other turn would move its shadows.
    """
    count, side, _ = bank.seen.shape
    reach = conditions.misregistration_px
    scene = int(rng.integers(count))
    y, x = rng.integers(reach, side - crop_px - reach + 1, 2)
    shift_y, shift_x = rng.integers(-reach, reach + 1, 2)
    other = scene
    if not paired:
        other = int((scene + rng.integers(1, count)) % count)
        y_2, x_2 = rng.integers(0, side - crop_px + 1, 2)
    else:
        y_2, x_2 = y + shift_y, x + shift_x
    seen = bank.seen[scene, y : y + crop_px, x : x + crop_px].astype(np.float32)
    truth = bank.truth[other, y_2 : y_2 + crop_px, x_2 : x_2 + crop_px].astype(np.float32)
    if rng.random() < 0.5:
        seen, truth = seen.T, truth.T
    photons = conditions.photons[rng.integers(len(conditions.photons))]
    image, _ = conditions.observe(seen, photons, rng)
    return image, np.ascontiguousarray(truth)

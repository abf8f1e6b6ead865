"""Synthetic pairs (what the camera saw, what was there), by conditions and seed.

Truth is the specimen's reflectivity averaged over each pixel: no PSF, no illumination. The held-out set has
specimen families, apertures, vignette centres and noise levels that no training configuration contains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.drawn import Aperture, SpecimenConditions, middles
from models.optics import blur
from models.samples import render
from models.workers import spread

Image = NDArray[np.float32]


class Conditions(SpecimenConditions):
    """What a data set may contain. `scale` is how many truth pixels lie along a pixel of the image."""

    scale: Literal[1, 2] = 1

    @property
    def truth_pixel_nm(self) -> float:
        """The pixel of the truth."""
        return self.pixel_size_nm / self.scale

    def psf(self, aperture: Aperture, pixel_size_nm: float) -> Image:
        """The point-spread function of one of the apertures on a pixel grid."""
        return self.optics(aperture).psf(pixel_size_nm)

    def seen(self, truth: Image, aperture: Aperture) -> Image:
        """The truth through the optics, on the camera's pixels."""
        blurred = blur(truth, self.psf(aperture, self.truth_pixel_nm))
        if self.scale == 1:
            return blurred
        height, width = (side // self.scale for side in truth.shape)
        # A camera pixel collects the light of its whole area.
        areas = blurred.reshape(height, self.scale, width, self.scale)
        return np.asarray(areas.mean((1, 3)), dtype=np.float32)


class Pair(NamedTuple):
    """One image with everything an oracle may know about it; truth is (scale h, scale w) of the image's (h, w)."""

    name: str
    image: Image  # what the camera delivered, counts / full scale
    truth: Image
    light: Image  # the illumination, exposure included
    psf: Image  # on the image's pixels


HELDOUT = Conditions(
    families=("line-space", "nanoparticles", "ic-contacts", "disc-tracks", "bars"),
    effective_na=(0.9, 1.1, 1.3, 1.5),
    photons=(500, 2000, 8000),
    axis_offset_um=((3.4, 3.6),),
)


def heldout(*, images_per_family: int = 5, side_px: int = 256, scale: Literal[1, 2] = 1) -> list[Pair]:
    """`synthetic:heldout`: the same images everywhere, generated when asked for."""
    conditions = HELDOUT.model_copy(update={"scale": scale})
    return pairs(conditions, images_per_family=images_per_family, side_px=side_px, seed=20_251)


def real_heldout(folder: Path, *, side_px: int = 256, scale: Literal[1, 2] = 1) -> list[Pair]:
    """`real:heldout`: the middle of every image of a folder as specimen, seen as `synthetic:heldout` is.

    One pixel of theirs is one of the truth's.
    """
    conditions = HELDOUT.model_copy(update={"scale": scale})
    truths = {name: truth for _, name, truth in middles(folder, side_px=side_px * scale)}
    return [_pair(name, truth, conditions, 20_252, number) for number, (name, truth) in enumerate(truths.items())]


def pairs(conditions: Conditions, *, images_per_family: int, side_px: int, seed: int) -> list[Pair]:
    """A fixed set of whole images: every family in turn, apertures and noise levels evenly mixed."""
    side = side_px * conditions.scale
    return [
        _pair(
            family,
            render(family, shape_px=(side, side), pixel_size_nm=conditions.truth_pixel_nm, seed=seed + number),
            conditions,
            seed,
            number,
        )
        for number, family in enumerate(conditions.families * images_per_family)
    ]


def _pair(name: str, truth: Image, conditions: Conditions, seed: int, number: int) -> Pair:
    rng = np.random.default_rng([seed, number])
    # Different steps for both, so that every family meets every aperture and noise level in turn.
    turn, place = divmod(number, len(conditions.families))
    aperture = conditions.effective_na[(turn + place) % len(conditions.effective_na)]
    photons = conditions.photons[(2 * turn + place) % len(conditions.photons)]
    image, light = conditions.observe(conditions.seen(truth, aperture), photons, rng)
    psf = conditions.psf(aperture, conditions.pixel_size_nm)
    return Pair(f"{name} NA {aperture} {photons:g} photons", image, truth, light, psf)


class Scenes(NamedTuple):
    """A bank of specimens and their blurred images: (n, scale side, scale side) and (n, side, side) float16."""

    truth: NDArray[np.float16]
    blurred: NDArray[np.float16]


def scenes(conditions: Conditions, *, count: int, side_px: int, seed: int, workers: int | None = None) -> Scenes:
    """Draw and blur specimens on all cores; what is drawn depends on the seed only, not on the workers."""
    drawn = spread(_scene, [(conditions, side_px, seed, number) for number in range(count)], workers)
    return Scenes(np.stack([truth for truth, _ in drawn]), np.stack([blurred for _, blurred in drawn]))


def _scene(job: tuple[Conditions, int, int, int]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    conditions, side_px, seed, number = job
    rng = np.random.default_rng([seed, number, 1])
    truth = render(
        conditions.families[number % len(conditions.families)],
        shape_px=(side_px * conditions.scale, side_px * conditions.scale),
        pixel_size_nm=conditions.truth_pixel_nm,
        seed=int(rng.integers(2**31)),
    )
    aperture = conditions.effective_na[rng.integers(len(conditions.effective_na))]
    return truth.astype(np.float16), conditions.seen(truth, aperture).astype(np.float16)


def crop(bank: Scenes, conditions: Conditions, rng: np.random.Generator, *, crop_px: int) -> tuple[Image, Image]:
    """A random (image, truth) of (crop_px, crop_px) and (scale crop_px, scale crop_px).

    Placed, turned and mirrored at random, and lit, veiled and exposed anew.
    """
    scene = rng.integers(len(bank.truth))
    y, x = rng.integers(0, bank.blurred.shape[1] - crop_px + 1, 2)
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    parts = []
    for part, scale in ((bank.blurred, 1), (bank.truth, conditions.scale)):
        window = part[scene, scale * y : scale * (y + crop_px), scale * x : scale * (x + crop_px)]
        turned = np.rot90(window.astype(np.float32), turns)
        parts.append(turned[:, ::-1] if mirrored else turned)
    photons = conditions.photons[rng.integers(len(conditions.photons))]
    image, _ = conditions.observe(parts[0], photons, rng)
    return image, np.ascontiguousarray(parts[1])

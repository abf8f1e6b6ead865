"""Synthetic pairs (what the camera saw, what was there), by conditions and seed.

Truth is the specimen's reflectivity averaged over each pixel: no PSF, no illumination. The held-out set has
specimen families, apertures, vignette centres and noise levels that no training configuration contains.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.errors import RecipeError
from models.families import FAMILIES
from models.optics import Optics, Sensor, blur
from models.samples import load_specimen, render

Image = NDArray[np.float32]

Aperture = float | Literal["traced"]
_IMAGE_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"}
Span = Annotated[tuple[float, float], Field(min_length=2, max_length=2)]


class Conditions(BaseModel):
    """What a data set may contain. Lists are drawn from, spans are drawn within.

    `effective_na` "traced" is the traced PSF of the default sphere, a number an Airy pattern of that aperture.
    `axis_offset_um` are spans of the distance from the picture's middle to the optical axis: where the vignette's
    centre lies. `photons` reach a pixel of irradiance 1; `exposure` is the irradiance of a white specimen on the
    axis; `light_slope` is the largest relative change of the lamp's light over the picture; `light_scale` stretches
    the field of the sphere; `veil` is the share of light that never saw the specimen: microsphere
    images are low in contrast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    families: tuple[str, ...] = Field(min_length=1)
    effective_na: tuple[Aperture, ...] = Field(min_length=1)
    photons: tuple[float, ...] = Field(min_length=1)
    axis_offset_um: tuple[Span, ...] = Field(min_length=1)
    veil: Span = (0.2, 0.4)
    exposure: Span = (0.75, 0.95)
    light_slope: float = Field(default=0.15, ge=0, lt=1)
    light_scale: Span = (0.9, 1.1)
    pixel_size_nm: float = Field(default=Optics().pixel_size_nm, gt=0)

    @field_validator("families")
    @classmethod
    def _families_exist(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [family for family in families if family not in FAMILIES]
        if unknown:
            raise ValueError(f"no specimen family {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
        return families

    def optics(self, rng: np.random.Generator) -> Optics:
        """A random one of the apertures."""
        aperture = self.effective_na[rng.integers(len(self.effective_na))]
        return Optics(effective_na=None if aperture == "traced" else aperture)


class Pair(NamedTuple):
    """One image with everything an oracle may know about it."""

    name: str
    image: Image  # what the camera delivered, counts / full scale
    truth: Image
    light: Image  # the illumination, exposure included
    psf: Image


HELDOUT = Conditions(
    families=("line-space", "nanoparticles", "ic-contacts", "disc-tracks", "bars"),
    effective_na=(0.9, 1.1, 1.3, 1.5),
    photons=(500, 2000, 8000),
    axis_offset_um=((3.4, 3.6),),
)


def heldout(*, images_per_family: int = 5, side_px: int = 256) -> list[Pair]:
    """`synthetic:heldout`: the same images everywhere, generated when asked for."""
    return pairs(HELDOUT, images_per_family=images_per_family, side_px=side_px, seed=20_251)


def real_heldout(folder: Path, *, side_px: int = 256) -> list[Pair]:
    """`real:heldout`: the middle of every image of a folder as specimen, seen as `synthetic:heldout` is.

    The images' own pixel size does not matter: they stand for structure, one pixel of theirs is one of ours.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    truths = {}
    for path in files:
        image = load_specimen(path, HELDOUT.pixel_size_nm).reflectivity
        if min(image.shape) >= side_px:
            y, x = ((side - side_px) // 2 for side in image.shape)
            truths[path.stem] = np.ascontiguousarray(image[y : y + side_px, x : x + side_px])
    if not truths:
        raise RecipeError(f"{folder} has no image of at least {side_px} x {side_px} px; give a folder with some")
    return [_pair(name, truth, HELDOUT, 20_252, number) for number, (name, truth) in enumerate(truths.items())]


def pairs(conditions: Conditions, *, images_per_family: int, side_px: int, seed: int) -> list[Pair]:
    """A fixed set of whole images: every family in turn, apertures and noise levels evenly mixed."""
    shape_px, pixel_nm = (side_px, side_px), conditions.pixel_size_nm
    return [
        _pair(
            family,
            render(family, shape_px=shape_px, pixel_size_nm=pixel_nm, seed=seed + number),
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
    psf = Optics(effective_na=None if aperture == "traced" else aperture).psf(conditions.pixel_size_nm)
    image, light = observe(blur(truth, psf), conditions, photons, rng)
    return Pair(f"{name} NA {aperture} {photons:g} photons", image, truth, light, psf)


def observe(blurred: Image, conditions: Conditions, photons: float, rng: np.random.Generator) -> tuple[Image, Image]:
    """Light, veil, noise and the converter's range; returns (image, light with exposure)."""
    optics = Optics()
    low, high = conditions.axis_offset_um[rng.integers(len(conditions.axis_offset_um))]
    angle, offset_um = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
    height, width = blurred.shape
    # Stretching the sphere's field is looking at it with another pixel.
    pixel_nm = conditions.pixel_size_nm / rng.uniform(*conditions.light_scale)
    offset_px = offset_um * 1e3 / conditions.pixel_size_nm
    centre_px = ((height - 1) / 2 + offset_px * np.sin(angle), (width - 1) / 2 + offset_px * np.cos(angle))
    light = optics.field_light((height, width), pixel_nm, centre_px)
    slope, turn = rng.uniform(0, conditions.light_slope), rng.uniform(0, 2 * np.pi)
    y, x = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None, :]
    light = light * (1 + slope * (np.sin(turn) * y + np.cos(turn) * x)) * rng.uniform(*conditions.exposure)
    light = light.astype(np.float32)
    veil = np.float32(rng.uniform(*conditions.veil))
    image = Sensor().expose(light * ((1 - veil) * blurred + veil), photons=photons, rng=rng)
    return np.clip(image, 0, 1), light


class Scenes(NamedTuple):
    """A bank of specimens and their blurred images, (n, side, side) float16."""

    truth: NDArray[np.float16]
    blurred: NDArray[np.float16]


def scenes(conditions: Conditions, *, count: int, side_px: int, seed: int, workers: int | None = None) -> Scenes:
    """Draw and blur specimens on all cores; what is drawn depends on the seed only, not on the workers."""
    workers = workers or len(os.sched_getaffinity(0))
    jobs = [(conditions, side_px, seed, number) for number in range(count)]
    if workers == 1:
        drawn = list(map(_scene, jobs))
    else:
        # Spawned, not forked: the parent has torch's threads, which do not survive a fork.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(_scene, jobs, chunksize=8))
    return Scenes(np.stack([truth for truth, _ in drawn]), np.stack([blurred for _, blurred in drawn]))


def _scene(job: tuple[Conditions, int, int, int]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    conditions, side_px, seed, number = job
    rng = np.random.default_rng([seed, number, 1])
    truth = render(
        conditions.families[number % len(conditions.families)],
        shape_px=(side_px, side_px),
        pixel_size_nm=conditions.pixel_size_nm,
        seed=int(rng.integers(2**31)),
    )
    blurred = blur(truth, conditions.optics(rng).psf(conditions.pixel_size_nm))
    return truth.astype(np.float16), blurred.astype(np.float16)


def batches(
    bank: Scenes, conditions: Conditions, *, crops: int, crop_px: int, seed: int
) -> Iterator[tuple[Image, Image]]:
    """Endless (image, truth) batches of (crops, 1, crop_px, crop_px), every one different.

    Crops are placed, turned and mirrored at random, and lit, veiled and exposed anew.
    """
    rng = np.random.default_rng([seed, 2])
    side = bank.truth.shape[1]
    while True:
        image = np.empty((crops, 1, crop_px, crop_px), np.float32)
        truth = np.empty_like(image)
        for index in range(crops):
            scene = rng.integers(len(bank.truth))
            y, x = rng.integers(0, side - crop_px + 1, 2)
            window = (scene, slice(y, y + crop_px), slice(x, x + crop_px))
            turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
            pair = [np.rot90(part[window].astype(np.float32), turns) for part in bank]
            specimen, blurred = pair
            if mirrored:
                specimen, blurred = specimen[:, ::-1], blurred[:, ::-1]
            photons = conditions.photons[rng.integers(len(conditions.photons))]
            image[index, 0], _ = observe(blurred, conditions, photons, rng)
            truth[index, 0] = specimen
        yield image, truth

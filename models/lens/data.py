"""Synthetic scenes of grains (what the camera saw, what the electron microscope would see), by conditions and seed.

The mini field of 256 px has the width of the paper's 1024 px: its pixel is 4 x 83 nm = 332 nm. The held-out set has
grain sizes, numbers of spikes and noise levels that no training configuration contains.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from models import pollen
from models.exposure import Span
from models.optics import Sensor
from models.pollen import Grain, Spike
from models.workers import spread

Image = NDArray[np.float32]

# Of the paper's field of 1024 px: spike positions within 5.0 px were 415 nm (Grant-Jacob et al. 2019).
PAPER_PIXEL_NM = 83.0


class Light(NamedTuple):
    """How a scene was exposed: irradiance = exposure x [(1 - veil) x blurred + veil], in photons a pixel."""

    photons: float
    exposure: float
    veil: float

    def expose(self, blurred: Image, rng: np.random.Generator) -> Image:
        """A noisy picture in 0..1."""
        irradiance = np.asarray(self.exposure * ((1 - self.veil) * blurred + self.veil), dtype=np.float32)
        return np.clip(Sensor().expose(irradiance, photons=self.photons, rng=rng), 0, 1)


class Conditions(BaseModel):
    """What a data set may contain. Lists are drawn from, spans are drawn within.

    `radius_um` are spans of a grain's radius without spikes. `spikes` is how many would stand on the whole ball, a
    little more than half of which are on the upper side and drawn. `grains` is the least and the most a scene may
    have; the least 0 makes empty scenes, in which whatever a network draws is made up. `photons` reach a pixel of
    irradiance 1, `exposure` is the irradiance of a white specimen, `veil` the share of light that never saw it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    types: tuple[str, ...] = Field(default=("spiny", "smooth"), min_length=1)
    radius_um: tuple[Span, ...] = Field(min_length=1)
    spikes: tuple[int, ...] = Field(min_length=1)
    photons: tuple[float, ...] = Field(min_length=1)
    grains: tuple[int, int] = (0, 7)
    spike_length_um: Span = (5.0, 5.6)
    spike_base_um: Span = (1.7, 2.0)
    albedo: Span = (0.55, 0.7)
    exposure: Span = (0.66, 0.74)
    veil: Span = (0.4, 0.5)
    pixel_size_nm: float = Field(default=4 * PAPER_PIXEL_NM, gt=0)

    @field_validator("types")
    @classmethod
    def _types_exist(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [kind for kind in types if kind not in pollen.TYPES]
        if unknown or len(set(types)) < len(types):
            raise ValueError(f"types are {', '.join(types)}; choose different ones from {', '.join(pollen.TYPES)}")
        return types

    def scene(self, side_px: int, rng: np.random.Generator, *, empty: bool = False) -> list[Grain]:
        """Random grains on a field of that side."""
        count = 0 if empty else int(rng.integers(max(self.grains[0], 1), self.grains[1] + 1))
        kinds = [self.types[rng.integers(len(self.types))] for _ in range(count)]
        grains = [self._grain(kind, rng) for kind in kinds]
        # Where a disc finds no room it is left out, so the large ones go first.
        grains.sort(key=lambda grain: -grain.reach_um)
        places = pollen.place([grain.reach_um for grain in grains], side_px * self.pixel_size_nm / 1e3, rng)
        return [grain.at(place) for grain, place in zip(grains, places, strict=False)]

    def light(self, photons: float, rng: np.random.Generator) -> Light:
        """A random exposure."""
        return Light(photons, rng.uniform(*self.exposure), rng.uniform(*self.veil))

    def _grain(self, kind: str, rng: np.random.Generator) -> Grain:
        radius_um = rng.uniform(*self.radius_um[rng.integers(len(self.radius_um))])
        spikes: tuple[Spike, ...] = ()
        pits: tuple[tuple[float, float, float], ...] = ()
        if kind == "spiny":
            count = self.spikes[rng.integers(len(self.spikes))]
            length, base = rng.uniform(*self.spike_length_um), rng.uniform(*self.spike_base_um)
            spikes = tuple(Spike(towards, length, base) for towards in pollen.directions(count, rng))
        elif kind == "porous":
            pits = tuple(pollen.directions(30, rng, lowest=0.2))
        return Grain(kind, (0.0, 0.0), radius_um, rng.uniform(*self.albedo), spikes, pits)


class Scene(NamedTuple):
    """One field with everything that is known about it; (height, width) in 0..1 unless said.

    `labels` is 0 or 1 + the type's index, `grain_of` 0 or 1 + the grain's index; `tips_px` (n, 2). Of a lab's own
    pictures `tips_px`, `grains` and `light` are None: nobody knows them.
    """

    name: str
    image: Image
    labels: NDArray[np.uint8]
    grain_of: NDArray[np.uint8]
    on_black: Image
    shadowed: Image
    tips_px: NDArray[np.float64] | None
    grains: list[Grain] | None
    light: Light | None


HELDOUT_SEED = 20_253
HELDOUT = Conditions(radius_um=((7.6, 8.6),), spikes=(16, 20), photons=(400, 460), grains=(3, 6))


def heldout(*, count: int = 24, side_px: int = 256) -> list[Scene]:
    """`synthetic:heldout`: the same scenes everywhere, every sixth of them empty."""
    return scenes(HELDOUT, count=count, side_px=side_px, seed=HELDOUT_SEED)


def scenes(conditions: Conditions, *, count: int, side_px: int, seed: int) -> list[Scene]:
    """A fixed set of exposed scenes; every sixth is empty."""
    out = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        grains = conditions.scene(side_px, rng, empty=number % 6 == 5)
        drawn = _drawn(conditions, grains, side_px)
        photons = conditions.photons[number % len(conditions.photons)]
        light = conditions.light(photons, rng)
        image = light.expose(pollen.see(drawn.reflectivity, conditions.pixel_size_nm), rng)
        tips = pollen.tips_px(grains, (side_px, side_px), conditions.pixel_size_nm)
        what = f"{len(grains)} grains" if grains else "empty"
        out.append(
            Scene(
                f"scene {number}, {what}, {photons:g} photons",
                image, drawn.labels, drawn.grains, drawn.on_black, drawn.shadowed, tips, grains,
                light,
            )
        )  # fmt: skip
    return out


class Bank(NamedTuple):
    """Scenes to draw crops from, (n, side, side): float16, labels uint8."""

    blurred: NDArray[np.float16]
    labels: NDArray[np.uint8]
    on_black: NDArray[np.float16]
    shadowed: NDArray[np.float16]


def bank(conditions: Conditions, *, count: int, side_px: int, seed: int, workers: int | None = None) -> Bank:
    """Draw scenes on all cores; what is drawn depends on the seed only, not on the workers."""
    drawn = spread(_banked, [(conditions, side_px, seed, number) for number in range(count)], workers)
    return Bank(*(np.stack(part) for part in zip(*drawn, strict=True)))


def _banked(job: tuple[Conditions, int, int, int]) -> tuple[NDArray[np.generic], ...]:
    conditions, side_px, seed, number = job
    rng = np.random.default_rng([seed, number, 1])
    drawn = _drawn(conditions, conditions.scene(side_px, rng, empty=number % 16 == 15), side_px)
    blurred = pollen.see(drawn.reflectivity, conditions.pixel_size_nm)
    return (
        *(part.astype(np.float16) for part in (blurred,)),
        drawn.labels,
        *(part.astype(np.float16) for part in (drawn.on_black, drawn.shadowed)),
    )


def _drawn(conditions: Conditions, grains: list[Grain], side_px: int) -> pollen.Rendering:
    return pollen.render(
        grains, shape_px=(side_px, side_px), pixel_size_nm=conditions.pixel_size_nm, types=conditions.types
    )


def crop(scenes: Bank, conditions: Conditions, rng: np.random.Generator, *, crop_px: int) -> dict[str, Image]:
    """One crop, exposed anew: image and electron pictures (1, crop, crop), type maps (types, crop, crop).

    The scene is translated at random (it is a torus), turned and mirrored.
    """
    number = rng.integers(len(scenes.labels))
    side = scenes.labels.shape[1]
    shift = tuple(int(s) for s in rng.integers(0, side, 2))
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5

    def moved(part: NDArray[np.generic]) -> Image:
        picture = np.roll(part[number], shift, (0, 1))[:crop_px, :crop_px].astype(np.float32)
        picture = np.rot90(picture, turns)
        return np.ascontiguousarray(picture[:, ::-1] if mirrored else picture)

    photons = conditions.photons[rng.integers(len(conditions.photons))]
    image = conditions.light(photons, rng).expose(moved(scenes.blurred), rng)
    labels = moved(scenes.labels)
    maps = np.stack([labels == 1 + index for index in range(len(conditions.types))]).astype(np.float32)
    return {
        "image": image[None],
        "maps": maps,
        "on_black": moved(scenes.on_black)[None],
        "shadowed": moved(scenes.shadowed)[None],
    }

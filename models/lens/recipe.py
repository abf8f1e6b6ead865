"""The recipe of system C: which grains and light, which networks, which losses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models import pollen
from models.folder import PairsSection
from models.lens.data import HELDOUT, PAPER_PIXEL_NM, Conditions
from models.recipe import Recipe, ScenesSection, Section, ValidationSection


class LensLossSection(Section):
    """What each network minimises: `l1` x mean absolute error in -1..1 plus `adversary` x what its discriminator says
    (Isola et al. 2017: 100 and 1). The labelling net minimises `labels` x cross-entropy alone: it has a likelihood, and
    in their experiment from photos to labels (Cityscapes) an adversary made the labels worse.

    `gan` as in `models.losses.gan_loss`; `discriminator_features` are the maps of the discriminators' first layer,
    which join in from the share `adversary_from` of the steps on. From the share `predicted_from` on, every other
    crop gives the magnifiers the masks, and the shadowing net the grains, that the networks before them predict
    instead of the true ones: what they will get in use.

    `every` says which networks ("label", "magnify_TYPE", "shadow") take a step only every so many: what is easy to
    learn need not cost as much as what is not.
    """

    l1: float = Field(default=100.0, gt=0)
    labels: float = Field(default=100.0, gt=0)
    adversary: float = Field(default=1.0, ge=0)
    gan: Literal["log", "least-squares"] = "log"
    discriminator_features: int = Field(default=64, ge=1)
    every: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    adversary_from: float = Field(default=0.0, ge=0, lt=1)
    predicted_from: float = Field(default=0.25, ge=0, le=1)


class LensPairs(PairsSection):
    """A lab's own labelled pairs instead of drawn scenes; `types` are the names of their classes, in their order."""

    types: tuple[str, ...] = Field(min_length=1)


class LensValidation(ValidationSection):
    """Whole scenes, drawn with other seeds."""

    scenes: int = Field(default=12, ge=1)


class LensRecipe(Recipe):
    """One training run of a neural lens."""

    task: Literal["neural-lens"]
    data: Annotated[Conditions | LensPairs, Field(union_mode="left_to_right")]
    scenes: ScenesSection
    loss: LensLossSection = LensLossSection()
    validation: LensValidation

    @model_validator(mode="after")
    def _sizes_fit(self) -> LensRecipe:
        multiple = 2 ** int(self.network.options.get("downs", 8))
        if self.train.crop_px % multiple or self.scenes.side_px < self.train.crop_px:
            raise ValueError(
                f"train.crop_px is {self.train.crop_px}, expected a multiple of 2^downs = {multiple} of at most"
                f" scenes.side_px = {self.scenes.side_px}"
            )
        if tuple(self.network.options.get("types", self.data.types)) != self.data.types:
            raise ValueError(f"network.options.types are not data.types, {list(self.data.types)}")
        return self

    @property
    def pixel_size_nm(self) -> float:
        """The pixel of the pictures it is trained on."""
        return self.data.pixel_size_nm

    def example(self, shape_px: tuple[int, int], seed: int) -> NDArray[np.float32]:
        """Grains: on other pictures the labelling net is all decisions, in which rounding errors grow."""
        conditions = self.data
        if not isinstance(conditions, Conditions):
            own = {"types": pollen.TYPES[:1], "pixel_size_nm": self.pixel_size_nm}
            conditions = HELDOUT.model_copy(update=own)
        rng = np.random.default_rng(seed)
        grains = conditions.scene(min(shape_px), rng)
        drawn = pollen.render(grains, shape_px=shape_px, pixel_size_nm=conditions.pixel_size_nm, types=conditions.types)
        seen = pollen.see(drawn.reflectivity, conditions.pixel_size_nm)
        return conditions.light(conditions.photons[0], rng).expose(seen, rng)

    def with_pairs(self, folder: Path) -> LensRecipe:
        """The same recipe, fed with the labelled pairs of a folder."""
        pairs = LensPairs(folder=folder, types=self.data.types, pixel_size_nm=self.data.pixel_size_nm)
        return self.model_copy(update={"data": pairs})

    def tiny(self) -> LensRecipe:
        """Eight steps of two crops of 64 px, from eight scenes."""
        options = self.network.options | {"downs": 4, "ngf": 4, "cap": 8, "margin_px": 2}
        if isinstance(self.data, Conditions):
            # A field of several grains.
            own = self.having("data", pixel_size_nm=4 * PAPER_PIXEL_NM)
        else:
            own = self
        return (
            # In this order every step on the way is a recipe that fits.
            own.having("network", options=options)
            .having("train", steps=8, crops=2, crop_px=64, warmup_steps=0, log_every=2)
            .having("scenes", count=8, side_px=128)
            .having("loss", discriminator_features=4)
            .having("validation", every=4, scenes=2)
        )

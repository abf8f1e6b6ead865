"""The recipe of system A: which specimens and conditions, which network, which loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from models.enhance.data import Conditions
from models.folder import PairsSection
from models.recipe import Recipe, ScenesSection, Section, ValidationSection


class EnhancePairs(PairsSection):
    """Pairs have images and truths on one grid."""

    scale: Literal[1] = 1


class LossSection(Section):
    """Charbonnier (of that epsilon) plus so much of the gradients' L1, and of the L1 of what is uneven."""

    gradient_weight: float = Field(default=0.5, ge=0)
    evenness_weight: float = Field(default=0.0, ge=0)
    epsilon: float = Field(default=0.05, gt=0)


class EnhanceValidation(ValidationSection):
    """Whole images of every family, drawn with other seeds."""

    images_per_family: int = Field(default=2, ge=1)
    side_px: int = Field(default=192, ge=96)


class EnhanceRecipe(Recipe):
    """One training run of an enhancer."""

    task: Literal["enhance"]
    data: Annotated[Conditions | EnhancePairs, Field(union_mode="left_to_right")]
    scenes: ScenesSection = ScenesSection(count=1200, side_px=256)
    loss: LossSection = LossSection()
    validation: EnhanceValidation

    @property
    def pixel_size_nm(self) -> float:
        """The pixel of the pictures it is trained on."""
        return self.data.pixel_size_nm

    def tiny(self) -> EnhanceRecipe:
        """Eight steps of two crops of 64 px, from twelve specimens."""
        options = self.network.options | ({"features": 8, "blocks": 2} if "rtnet" in self.network.name else {})
        return (
            self.having("network", options=options)
            .having("scenes", count=12, side_px=96)
            .having("train", steps=8, crops=2, crop_px=64, warmup_steps=2, log_every=2)
            .having("validation", every=4, images_per_family=1, side_px=96)
        )

    def with_pairs(self, folder: Path) -> EnhanceRecipe:
        """The same recipe, fed with the pairs of a folder."""
        pairs = EnhancePairs(folder=folder, pixel_size_nm=self.data.pixel_size_nm)
        return self.model_copy(update={"data": pairs})

"""The recipe of system B: which pairs, which two generators, which losses, and when the pairs are taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from models.folder import PairsSection
from models.recipe import NetworkSection, Recipe, ScenesSection, Section, ValidationSection
from models.sem.data import Conditions


class LossSection(Section):
    """What is minimised.

    For the first `paired_share` of the steps: `l1` x L1 + `contextual` x contextual loss on registered pairs. Errors
    below `epsilon` count quadratically (Charbonnier): what cannot be known becomes its mean, not its median. Then
    pictures and electron pictures of different specimens: an adversary, `cycle` x L1 there and back, `identity` x L1
    of an electron picture that should stay what it is (Zhu et al. 2017, CycleGAN). `pool` pictures are kept for the
    discriminators. `gan` "log" is the paper's Eq. 1.
    """

    paired_share: float = Field(default=0.6, ge=0, le=1)
    l1: float = Field(default=1.0, ge=0)
    epsilon: float = Field(default=1e-3, gt=0)
    contextual: float = Field(default=0.1, ge=0)
    gan: Literal["log", "least-squares"] = "least-squares"  # models.losses.GanLoss: a recipe is read without torch
    adversarial: float = Field(default=1.0, ge=0)
    cycle: float = Field(default=10.0, ge=0)
    identity: float = Field(default=5.0, ge=0)
    pool: int = Field(default=50, ge=0)


class DiscriminatorSection(Section):
    """Both discriminators. Strides (2, 2, 2, 1, 1) see 70 px, the "four layers of stride 2" (2, 2, 2, 2, 1) 94 px."""

    features: int = Field(default=64, ge=1)
    strides: tuple[int, int, int, int, int] = (2, 2, 2, 1, 1)


class SemValidation(ValidationSection):
    """Whole images of every family, drawn with other seeds."""

    images_per_family: int = Field(default=1, ge=1)
    side_px: int = Field(default=192, ge=96)


class SemRecipe(Recipe):
    """One training run of an optical-to-SEM network. `reverse` is the generator back; the one way needs no big one."""

    task: Literal["sem"]
    data: Annotated[Conditions | PairsSection, Field(union_mode="left_to_right")]
    scenes: ScenesSection = ScenesSection(count=1000, side_px=256)
    reverse: NetworkSection
    discriminator: DiscriminatorSection = DiscriminatorSection()
    loss: LossSection = LossSection()
    validation: SemValidation

    @field_validator("reverse", "network")
    @classmethod
    def _names_of_ours(cls, section: NetworkSection) -> NetworkSection:
        if section.name not in ("ssum", "sem-lite"):
            raise ValueError(f"there is no network {section.name!r}; choose one of ssum, sem-lite")
        return section

    @property
    def pixel_size_nm(self) -> float:
        """The pixel of the pictures it is trained on."""
        return self.data.pixel_size_nm

    def tiny(self) -> SemRecipe:
        """Eight steps of two crops of 64 px, half of them unpaired, from twelve specimens."""
        small: dict[str, Any] = {"features": 8, "blocks": 1}
        return (
            self.having("network", options=self.network.options | small)
            .having("reverse", options=self.reverse.options | small)
            .having("discriminator", features=8)
            .having("scenes", count=12, side_px=96)
            .having("loss", paired_share=0.5, pool=3)
            .having("train", steps=8, crops=2, crop_px=64, warmup_steps=2, log_every=2)
            .having("validation", every=4, images_per_family=1, side_px=96)
        )

    def with_pairs(self, folder: Path) -> SemRecipe:
        """The same recipe, fed with the pairs of a folder."""
        pairs = PairsSection(folder=folder, pixel_size_nm=self.data.pixel_size_nm)
        return self.model_copy(update={"data": pairs})

"""A lab's own pairs as a source of crops: the section of a recipe that names their folder, and what reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.errors import PairsError
from models.optics import Optics
from models.pairs import Pairing, Split, read_index, read_pairs
from models.recipe import Section

Image = NDArray[np.float32]


class PairsSection(Section):
    """A lab's own pairs instead of drawn specimens: a folder made by `superlens-train pairs`.

    `pixel_size_nm` is the pixel the network will be used at; the folder must have the same within 2 %. Rotations and
    scales are drawn from; the shadows in an SEM picture turn with it, so give no rotations if their side matters.
    """

    folder: Path
    pixel_size_nm: float = Field(default=Optics().pixel_size_nm, gt=0)
    rotations_deg: tuple[float, ...] = (0, 30, 45, 60, 90)
    scales: tuple[float, ...] = (1.0,)

    def pairs(self, split: Split) -> list[Pairing]:
        """All pairs of a split; PairsError where they are damaged or of another pixel."""
        stored_nm = read_index(self.folder).pixel_size_nm
        if abs(stored_nm / self.pixel_size_nm - 1) > 0.02:
            raise PairsError(
                f"the pairs in {self.folder} have pixels of {stored_nm:.1f} nm, the recipe is for"
                f" {self.pixel_size_nm:.1f} nm; make them again with: superlens-train pairs --pixel-nm"
                f" {self.pixel_size_nm:.1f}"
            )
        return read_pairs(self.folder, split)

    def cut(self, parts: Sequence[NDArray[Any]], rng: np.random.Generator, *, crop_px: int) -> list[NDArray[Any]]:
        """One random crop, the same place and turn in all parts."""
        from models.augment import augment  # here, because who only reads a recipe needs no OpenCV

        return augment(parts, rng, crop_px=crop_px, rotations_deg=self.rotations_deg, scales=self.scales)


class PairsFolder:
    """Crops of the training split, and the validation split as (image, truth)."""

    def __init__(self, section: PairsSection, *, crop_px: int) -> None:
        self._section, self._crop_px = section, crop_px
        self._training = section.pairs("train")
        self.validation = [(pair.image, pair.truth) for pair in section.pairs("validation")]

    def crop(self, rng: np.random.Generator, *, paired: bool = True) -> tuple[Image, Image]:
        """A random (image, truth); unless `paired`, of two random pairs: of one, two places in it."""
        first = self._pick(rng)
        if paired:
            image, truth = self._section.cut([first.image, first.truth], rng, crop_px=self._crop_px)
            return image, truth
        second = self._pick(rng)
        ((image,), (truth,)) = (
            self._section.cut([part], rng, crop_px=self._crop_px) for part in (first.image, second.truth)
        )
        return image, truth

    def _pick(self, rng: np.random.Generator) -> Pairing:
        return self._training[rng.integers(len(self._training))]

"""What data sets of specimens say alike: families and apertures; and real images in a specimen's place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from models.errors import RecipeError
from models.exposure import Exposure
from models.families import FAMILIES
from models.micrographs import IMAGE_SUFFIXES, read_micrograph
from models.optics import Optics

Image = NDArray[np.float32]

Aperture = float | Literal["traced"]


class SpecimenConditions(Exposure):
    """Which specimens a data set may contain, through which apertures they are seen, and how they are exposed.

    `effective_na` "traced" is the traced PSF of the default sphere, a number an Airy pattern of that aperture.
    """

    families: tuple[str, ...] = Field(min_length=1)
    effective_na: tuple[Aperture, ...] = Field(min_length=1)

    @field_validator("families")
    @classmethod
    def _families_exist(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [family for family in families if family not in FAMILIES]
        if unknown:
            raise ValueError(f"no specimen family {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
        return families

    def optics(self, aperture: Aperture) -> Optics:
        """The optics of one of the apertures."""
        return Optics(effective_na=None if aperture == "traced" else aperture)


class Middle(NamedTuple):
    """The middle of a real image: `number` is its place among the images of its folder, by name."""

    number: int
    name: str
    image: Image


def middles(folder: Path, *, side_px: int) -> list[Middle]:
    """The middle square of every image of a folder that is large enough, to stand for a specimen.

    The images' own pixel size does not matter: they stand for structure.

    Raises
    ------
    RecipeError
        No image is large enough.
    SpecimenError
        A file is no image, or has values outside 0 to 1.
    """
    found = []
    for number, path in enumerate(sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)):
        image = read_micrograph(path, pixel_size_nm=1.0).image
        if min(image.shape) >= side_px:
            y, x = ((side - side_px) // 2 for side in image.shape)
            found.append(Middle(number, path.stem, np.ascontiguousarray(image[y : y + side_px, x : x + side_px])))
    if not found:
        raise RecipeError(f"{folder} has no image of at least {side_px} x {side_px} px; give a folder with some")
    return found

"""What an enhancer is judged on: named data sets as cases, with what classical methods may know of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.classical import enlarged, enlarged_psf
from models.drawn import Aperture
from models.enhance import data
from models.errors import RecipeError
from models.optics import blur
from models.pairs import read_pairs

Image = NDArray[np.float32]

_X2_SIDE_PX = 192  # scale 2 has four times the pixels; this keeps an evaluation at minutes
_EMPTY_SEED = 20_253


class Case(NamedTuple):
    """One picture to judge on: light and PSF are not known of a lab's own pairs."""

    name: str
    image: Image
    truth: Image
    light: Image | None = None
    psf: Image | None = None

    @property
    def scale(self) -> int:
        """Truth pixels along a pixel of the image."""
        return int(self.truth.shape[0] // self.image.shape[0])

    def start(self, *, flat: bool) -> Image:
        """Where classical methods start: the image on the truth's grid, with `flat` divided by the true light."""
        image = self.image
        if flat and self.light is not None:
            image = np.asarray(image / np.maximum(self.light, 1e-3), dtype=np.float32)
        return enlarged(image, self.scale)

    def psf_on_truth(self) -> Image | None:
        """The PSF on the truth's grid."""
        return None if self.psf is None else enlarged_psf(self.psf, self.scale)


def load_cases(data_set: str, *, folder: Path | None = None, scale: int = 1) -> list[Case]:
    """The pictures of a named data set (see `models.evaluate.evaluate`); RecipeError if there is none of the name."""
    if data_set == "synthetic:heldout":
        side_px = 256 if scale == 1 else _X2_SIDE_PX
        return [Case(*pair) for pair in data.heldout(side_px=side_px, scale=_scale(scale))]
    if data_set not in ("real:heldout", "pairs"):
        raise RecipeError(f"there is no data set {data_set!r}; choose synthetic:heldout, real:heldout or pairs")
    if folder is None:
        raise RecipeError(f"{data_set} needs a folder of images; give it with --data-dir")
    if data_set == "real:heldout":
        return [Case(*pair) for pair in data.real_heldout(folder, scale=_scale(scale))]
    if scale != 1:
        raise RecipeError(f"pairs have images and truths on one grid, the network is of scale {scale}; judge one of 1")
    return [Case(pair.name, pair.image, pair.truth) for pair in read_pairs(folder, "test")]


def empty(scale: int = 1, *, count: int = 16) -> list[Case]:
    """Pictures of nothing: plain specimens of any level, under the held-out conditions."""
    conditions = data.HELDOUT.model_copy(update={"families": ("empty",), "scale": _scale(scale)})
    return [Case(*pair) for pair in data.pairs(conditions, images_per_family=count, side_px=256, seed=_EMPTY_SEED)]


def see(
    name: str,
    truth: Image,
    conditions: data.Conditions,
    *,
    aperture: Aperture,
    photons: float,
    seed: int,
    defocus_um: float = 0.0,
) -> Case:
    """A specimen under chosen conditions: the light and the veil are drawn by the seed."""
    optics = conditions.optics(aperture)
    blurred = blur(truth, optics.psf(conditions.truth_pixel_nm, defocus_um=defocus_um))
    areas = blurred.reshape(truth.shape[0] // conditions.scale, conditions.scale, -1, conditions.scale)
    rng = np.random.default_rng(seed)
    image, light = conditions.observe(np.asarray(areas.mean((1, 3)), np.float32), photons, rng)
    return Case(name, image, truth, light, optics.psf(conditions.pixel_size_nm, defocus_um=defocus_um))


def _scale(scale: int) -> Any:
    """The scale as the data know it: 1 or 2."""
    if scale not in (1, 2):
        raise RecipeError(f"the network is of scale {scale}, expected 1 or 2; there are no data for it")
    return scale

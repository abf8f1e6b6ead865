"""Specimens as reflectivity maps: drawn by family and seed, or read from any image file (numpy only)."""

from __future__ import annotations

import math
import os
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.canvas import Canvas
from models.errors import SpecimenError
from models.families import FAMILIES
from models.micrographs import GIVE_IT, read_micrograph

Image = NDArray[np.float32]


class Specimen(NamedTuple):
    """A reflectivity map (height, width) of 0 to 1 and the size of its pixel."""

    reflectivity: Image
    pixel_size_nm: float


def render(family: str, *, shape_px: tuple[int, int], pixel_size_nm: float, seed: int, supersample: int = 3) -> Image:
    """Draw one specimen.

    Parameters
    ----------
    family
        One of `FAMILIES`.
    shape_px, pixel_size_nm
        The grid; features are in nanometres and do not change with it.
    seed
        The same seed gives the same specimen everywhere.
    supersample
        Fine pixels per side over which each pixel is averaged; 1 is fast and good enough to look at.

    Returns
    -------
    (height, width) float32 of 0 to 1: reflectivity averaged over the area of each pixel.

    Raises
    ------
    SpecimenError
        There is no such family, or no such grid.

    Examples
    --------
    >>> render("siemens", shape_px=(64, 48), pixel_size_nm=48.1, seed=0).shape
    (64, 48)
    """
    if family not in FAMILIES:
        raise SpecimenError(f"there is no specimen family {family!r}; choose one of {', '.join(FAMILIES)}")
    if min(shape_px) < 1 or supersample < 1 or not (math.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise SpecimenError(
            f"cannot draw {shape_px} px of {pixel_size_nm} nm, supersampled {supersample}: all must be positive"
        )
    # The family is in the seed, so that one seed does not put every family's shapes at the same places.
    rng = np.random.default_rng([zlib.crc32(family.encode()), seed])
    fine = Canvas((shape_px[0] * supersample, shape_px[1] * supersample), pixel_size_nm / supersample)
    image = FAMILIES[family](fine, rng)
    if supersample > 1:
        image = image.reshape(shape_px[0], supersample, shape_px[1], supersample).mean(axis=(1, 3))
    return np.ascontiguousarray(image, dtype=np.float32)


# The mixed specimen, from its middle outwards: what the first look falls on comes first.
# Quick to draw: a box that simulates its instrument waits for this picture at its start.
_DEMO = (
    "ic-metal", "siemens", "nanoparticles", "disc-tracks", "pollen", "bars", "text", "ic-contacts", "dots", "grating",
    "crystals", "labyrinth", "line-space", "empty",
)  # fmt: skip


def demo_specimen(size_um: float = 118.0, pixel_size_nm: float = 6500 / 135, seed: int = 2) -> Image:
    """A large mixed specimen for the simulated instrument: fields of 16 um, a family each, on a plain wafer.

    Parameters
    ----------
    size_um
        Side of the square. The scanner's 100 um of travel, a frame and a margin are 125 um at most.
    pixel_size_nm, seed
        As `render`.

    Returns
    -------
    (side, side) float32 of 0 to 1.
    """
    side = math.ceil(size_um * 1e3 / pixel_size_nm)
    image = np.full((side, side), 0.12, np.float32)
    field, gap = round(16_000 / pixel_size_nm), round(1_000 / pixel_size_nm)
    reach = math.ceil(side / 2 / (field + gap))
    cells = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
    cells.sort(key=lambda cell: (max(map(abs, cell)), math.atan2(cell[0], cell[1])))
    for index, (row, column) in enumerate(cells):
        top = side // 2 + row * (field + gap) - field // 2
        left = side // 2 + column * (field + gap) - field // 2
        seen = image[max(top, 0) : max(top + field, 0), max(left, 0) : max(left + field, 0)]
        if seen.size:
            family = _DEMO[index % len(_DEMO)]
            drawn = render(
                family, shape_px=(field, field), pixel_size_nm=pixel_size_nm, seed=seed + index, supersample=1
            )
            y, x = max(-top, 0), max(-left, 0)
            seen[:] = drawn[y : y + seen.shape[0], x : x + seen.shape[1]]
    return image


def resample(specimen: Specimen, pixel_size_nm: float) -> Image:
    """Average a specimen over the area of pixels of another size.

    Examples
    --------
    >>> fine = Specimen(np.eye(4, dtype=np.float32), 10.0)
    >>> resample(fine, 20.0).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    image: NDArray[np.float64] = specimen.reflectivity.astype(np.float64)
    ratio = pixel_size_nm / specimen.pixel_size_nm
    for axis in (0, 1):
        image = np.moveaxis(image, axis, 0)
        count = math.floor(len(image) / ratio + 1e-9)
        if count < 1:
            raise SpecimenError(f"the specimen is smaller than one pixel of {pixel_size_nm:g} nm; use a finer pixel")
        # The integral of the image up to each new pixel border; its differences are the sums over the pixels.
        total = np.concatenate([np.zeros((1, image.shape[1])), np.cumsum(image, axis=0)])
        border = np.minimum(np.arange(count + 1) * ratio, len(image))
        below = np.minimum(border.astype(np.intp), len(image) - 1)
        integral = total[below] + (border - below)[:, None] * (total[below + 1] - total[below])
        image = np.moveaxis(np.diff(integral, axis=0) / ratio, 0, axis)
    return np.asarray(image, dtype=np.float32)


def load_specimen(path: str | os.PathLike[str], pixel_size_nm: float | None = None) -> Specimen:
    """Read any image file as a specimen.

    Parameters
    ----------
    path
        TIFF, OME-TIFF, PNG, JPEG or BMP; the first page; colours are averaged.
    pixel_size_nm
        Size of the file's pixel on the specimen; None reads it from the file.

    Returns
    -------
    Counts / full scale of the file's type as reflectivity (floats as they are), and the pixel size.

    Raises
    ------
    SpecimenError
        The file is no image, has values outside 0 to 1 or NaN, or does not say a plausible pixel size.
    """
    found = read_micrograph(path, pixel_size_nm)
    if found.pixel_size_nm is None:
        raise SpecimenError(f"{path} does not say the size of its pixel; {GIVE_IT}")
    return Specimen(found.image, found.pixel_size_nm)

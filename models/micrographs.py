"""Image files of microscopes: pixels, the size of a pixel on the specimen, and what was burned in (numpy only to read).

Pixel sizes are read from OME-XML, ImageJ's record, the tags of Zeiss (34118) and FEI / Thermo Fisher (34680, 34682)
and the resolution tags of TIFF, PNG and JPEG; what full scale is, of files that a superlens box wrote, from there.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import SpecimenError

Image = NDArray[np.float32]

# Of the files that `read_micrograph` reads.
IMAGE_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"}
# A pixel outside this range is a screen's or a printer's resolution, not a microscope's.
PLAUSIBLE_NM = (0.05, 10_000.0)
_UNIT_NM = {"m": 1e9, "cm": 1e7, "mm": 1e6, "inch": 2.54e7, "µm": 1e3, "μm": 1e3, "um": 1e3, "micron": 1e3, "nm": 1.0}
GIVE_IT = "give the size of its pixel on the specimen with pixel_size_nm"


class Micrograph(NamedTuple):
    """Counts / full scale (height, width), 0 to 1, and the size of a pixel where the file says a plausible one.

    `storage_bits` are those of a count in the file, None of floats; `bit_depth` those that it uses, None where neither
    the file nor anybody else said so, and full scale is the largest that can be stored. `kind` is "raw" or "enhanced"
    in a file of a superlens box; `pages` are the pictures in the file, of which this is the first.
    """

    image: Image
    pixel_size_nm: float | None
    storage_bits: int | None = None
    bit_depth: int | None = None
    kind: str | None = None
    pages: int = 1


class Box(NamedTuple):
    """A rectangle of pixels; the ends are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


class _File(NamedTuple):
    pixels: NDArray[Any]
    pixel_size_nm: float | None
    facts: Mapping[str, Any] = {}  # what a superlens box says about it
    pages: int = 1


def read_micrograph(
    path: str | os.PathLike[str], pixel_size_nm: float | None = None, *, bit_depth: int | None = None
) -> Micrograph:
    """Read the first page of a TIFF, OME-TIFF, PNG, JPEG or BMP; colours are averaged.

    Parameters
    ----------
    pixel_size_nm
        The size of a pixel, known better than by the file; None reads it there.
    bit_depth
        Of the counts, when it is less than the file's storage (12-bit data in 16-bit files); None: the one that a
        superlens box wrote there, or else the file's own.

    Raises
    ------
    SpecimenError
        The file is no image, has values outside 0 to 1 or NaN, counts above the bit depth, pixels that are not square,
        or the size given or found is none that a microscope can have.
    """
    path = Path(path)
    if not path.is_file():
        raise SpecimenError(f"specimen {path} is not a file; give an image file")
    file = (_read_tiff if path.suffix.lower() in {".tif", ".tiff"} else _read_picture)(path)
    size_nm = file.pixel_size_nm if pixel_size_nm is None else pixel_size_nm
    if size_nm is not None and not PLAUSIBLE_NM[0] <= size_nm <= PLAUSIBLE_NM[1]:
        source = "says" if pixel_size_nm is None else "was given"
        raise SpecimenError(
            f"{path} {source} a pixel of {size_nm:g} nm, expected {PLAUSIBLE_NM[0]:g} to {PLAUSIBLE_NM[1]:g} nm"
            f" on the specimen; {GIVE_IT}"
        )
    bits = 8 * file.pixels.dtype.itemsize if file.pixels.dtype.kind == "u" else None
    if bit_depth is None and isinstance(file.facts.get("bit_depth"), int):
        bit_depth = file.facts["bit_depth"]
    image = _intensity(file.pixels, path, bit_depth)
    size_nm = None if size_nm is None else float(size_nm)
    return Micrograph(image, size_nm, bits, bit_depth, file.facts.get("kind"), file.pages)


def burned_in(image: Image) -> list[Box]:
    """Find the data bar and the boxes that a microscope's software wrote over an SEM image.

    They are rectangles without noise; everything else has some. A picture that is smooth elsewhere too (drawn, or
    denoised) says nothing about where its text is, and none is found.

    Parameters
    ----------
    image
        (height, width) of 0 to 1.

    Returns
    -------
    Boxes with a margin of 3 px, largest first.
    """
    import cv2  # here, because reading files needs numpy only
    from scipy import ndimage

    low, high = np.percentile(image[::3, ::3], (1, 99))
    # JPEG rings a little around letters. A saturated picture may have high == low.
    calm_below = 0.015 * max(float(high - low), 0.05)
    calm = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) <= calm_below
    labels, _ = ndimage.label(calm, np.ones((3, 3)))
    boxes, left = [], calm.copy()
    places = ndimage.find_objects(labels)
    for number in 1 + np.flatnonzero(np.bincount(labels.ravel())[1:] > 3e-4 * image.size):
        place = places[number - 1]
        height, width = (part.stop - part.start for part in place)
        if height < 8 or width < 24 or height * width < 1e-3 * image.size:
            continue
        # The background of the text is one piece that reaches round the letters; a saturated particle is no rectangle.
        piece = labels[place] == number
        if min(piece[[0, -1]].mean(), piece[:, [0, -1]].mean()) > 0.8:
            (top, bottom), (start, stop) = ((part.start - 3, part.stop + 3) for part in place)
            boxes.append(Box(max(top, 0), max(start, 0), min(bottom, image.shape[0]), min(stop, image.shape[1])))
            left[place] = False
    covered = ~outside(boxes, image.shape)
    if covered.mean() > 0.5 or left[~covered].mean() > 0.2:
        return []
    return sorted(boxes, key=lambda box: (box.top - box.bottom) * (box.right - box.left))


def outside(boxes: list[Box], shape_px: tuple[int, ...]) -> NDArray[np.bool_]:
    """True where no box is."""
    valid = np.ones(shape_px, np.bool_)
    for box in boxes:
        valid[box.top : box.bottom, box.left : box.right] = False
    return valid


def recorded(mosaic: Image) -> NDArray[np.bool_]:
    """True where a mosaic shows something: where no tile lies, all pixels around are exactly 0."""
    import cv2  # as above

    return np.asarray(cv2.dilate(mosaic, np.ones((3, 3), np.uint8)) > 0)


def _intensity(pixels: NDArray[Any], path: Path, bit_depth: int | None) -> Image:
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.float32)
    if np.issubdtype(pixels.dtype, np.unsignedinteger):
        image = pixels.astype(np.float32) / np.float32(_full_scale(pixels, path, bit_depth))
    elif np.issubdtype(pixels.dtype, np.floating):
        image = pixels.astype(np.float32)
    else:
        raise SpecimenError(f"{path} holds {pixels.dtype}, expected unsigned integers or floats; convert it")
    if image.ndim == 3 and image.shape[-1] in (2, 3, 4):
        # The last of two or four channels is opacity, not light.
        image = np.mean(image[..., : 3 if image.shape[-1] > 2 else 1], axis=-1, dtype=np.float32)
    if image.ndim != 2 or min(image.shape) < 16:
        raise SpecimenError(f"{path} has the shape {pixels.shape}, expected one picture of at least 16 x 16 px")
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise SpecimenError(f"{path} has values outside 0 to 1 (or NaN); scale it to 0..1")
    return image


def _full_scale(pixels: NDArray[Any], path: Path, bit_depth: int | None) -> int:
    storage_bits = 8 * pixels.dtype.itemsize
    depth = storage_bits if bit_depth is None else bit_depth
    if not 1 <= depth <= storage_bits:
        raise SpecimenError(
            f"{path} has {storage_bits}-bit pixels, which cannot hold a bit depth of {depth}; give 1 to"
            f" {storage_bits}, or none"
        )
    full = (1 << depth) - 1
    if pixels.max(initial=0) > full:
        raise SpecimenError(
            f"{path} has counts up to {pixels.max()}, above the full scale {full} of bit depth {depth}; give the"
            " camera's true bit depth"
        )
    return full


def _read_tiff(path: Path) -> _File:
    import tifffile  # here, because drawing specimens needs numpy only

    damaged = (OSError, ValueError, TypeError, LookupError, ArithmeticError, zlib.error, tifffile.TiffFileError)
    try:
        with tifffile.TiffFile(path) as file:
            pixels = np.asarray(file.pages.first.asarray())
            series = file.series[0]  # others are labels and thumbnails
            pages = math.prod(side for axis, side in zip(series.axes, series.shape, strict=True) if axis not in "YXS")
            xml = file.ome_metadata
            return _File(pixels, _tiff_pixel_nm(file, path), {} if xml is None else _facts(xml), pages)
    except damaged as exc:
        if isinstance(exc, SpecimenError):
            raise
        raise SpecimenError(f"{path} cannot be read as a TIFF ({exc}); give an image file") from exc


def _tiff_pixel_nm(file: Any, path: Path) -> float | None:
    if file.ome_metadata is not None:
        return _ome_pixel_nm(file.ome_metadata, path)
    vendor_nm = _vendor_pixel_nm(file, path)
    if vendor_nm is not None:
        return vendor_nm
    tags = file.pages.first.tags
    x, y, unit = (tags.get(name) for name in ("XResolution", "YResolution", "ResolutionUnit"))
    name = {2: "inch", 3: "cm"}.get(int(unit.value)) if unit is not None else None
    if file.imagej_metadata is not None:
        # ImageJ writes the unit's name in its own record, the micro sign sometimes escaped.
        name = str(file.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ")
    if x is None or y is None or name not in _UNIT_NM or not x.value[0] or not y.value[0]:
        return None
    x_nm, y_nm = (_UNIT_NM[name] * tag.value[1] / tag.value[0] for tag in (x, y))
    return _square(x_nm, y_nm, path)


def _vendor_pixel_nm(file: Any, path: Path) -> float | None:
    """From the tags of SEM makers: Zeiss writes a number with a unit, FEI metres."""
    zeiss = file.sem_metadata or {}
    for key in ("ap_image_pixel_size", "ap_pixel_size"):
        record = zeiss.get(key, ())
        if len(record) == 3 and record[2] in _UNIT_NM:
            return float(record[1]) * _UNIT_NM[record[2]]
    scan = (file.fei_metadata or {}).get("Scan", {})
    if "PixelWidth" in scan:
        width_nm, height_nm = 1e9 * float(scan["PixelWidth"]), 1e9 * float(scan.get("PixelHeight", scan["PixelWidth"]))
        return _square(width_nm, height_nm, path)
    return None


def _ome_pixel_nm(xml: str, path: Path) -> float | None:
    sizes = []
    for axis in "XY":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', xml)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
        name = unit.group(1) if unit else "µm"  # the schema's default
        if size is None or name not in _UNIT_NM:
            return None
        sizes.append(float(size.group(1)) * _UNIT_NM[name])
    return _square(sizes[0], sizes[1], path)


def _facts(xml: str) -> Mapping[str, Any]:
    """What a superlens box wrote into the description, as JSON; nothing where others wrote words there."""
    written = re.search("<Description>(.*?)</Description>", xml, re.DOTALL)
    try:
        facts = json.loads(html.unescape(written.group(1))) if written else {}
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _read_picture(path: Path) -> _File:
    from PIL import Image as Picture  # here, because drawing specimens needs numpy only
    from PIL import UnidentifiedImageError

    try:
        with Picture.open(path) as picture:
            dpi = picture.info.get("dpi")
            mode = picture.mode
            # Palettes, CMYK and YCbCr hold no intensities until they are converted.
            plain = mode in {"1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "F"}
            pixels = np.asarray(picture if plain else picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as exc:
        raise SpecimenError(f"{path} cannot be read as an image ({exc}); give a TIFF, PNG, JPEG or BMP") from exc
    if mode == "I;16B":
        pixels = pixels.astype(np.uint16)
    if dpi is None or not all(float(value) > 0 for value in dpi):
        return _File(pixels, None)
    x_nm, y_nm = (_UNIT_NM["inch"] / float(value) for value in dpi)
    return _File(pixels, _square(x_nm, y_nm, path))


def _square(x_nm: float, y_nm: float, path: Path) -> float:
    if not math.isclose(x_nm, y_nm, rel_tol=0.01):
        raise SpecimenError(f"{path} says pixels of {y_nm:g} x {x_nm:g} nm, expected square ones; {GIVE_IT}")
    return (x_nm + y_nm) / 2

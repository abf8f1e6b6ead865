"""From a lab's mosaic and SEM images to a folder of pairs: register, resample, crop, split by region, write."""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from models.augment import sampled
from models.crops import Layer, cut
from models.errors import PairsError, SpecimenError
from models.labels import read_labels
from models.micrographs import Box, Micrograph, burned_in, outside, read_micrograph, recorded
from models.pairs import PAIRS_FILE, SPLITS, FittedImage, PairSet
from models.register import Registration, from_landmarks, register

log = logging.getLogger(__name__)

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_OTHER_SCALES = (0.56, 1.78, 0.32, 3.16)  # times the expected, tried to tell a wrong pixel size from other content


class _Landmarks(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    optical_yx: tuple[tuple[float, float], ...]
    sem_yx: tuple[tuple[float, float], ...]


def make_pairs(
    optical: Path,
    sems: Sequence[Path],
    out: Path,
    *,
    optical_nm: float | None = None,
    sem_nm: float | None = None,
    pixel_nm: float | None = None,
    crop_px: int = 512,
    gap_px: int = 32,
    residual_px: float = 2.0,
    landmarks: Sequence[Path] = (),
    labels: Sequence[Path] = (),
) -> PairSet:
    """Register SEM images with a mosaic and write crops of both on one grid.

    Parameters
    ----------
    optical, sems
        Image files of one place; the mosaic is exactly 0 where no tile lies.
    out
        The folder to make; it must not exist.
    optical_nm, sem_nm
        Sizes of their pixels on the specimen; None reads them from the files.
    pixel_nm
        Pixel of the pairs; None is the mosaic's own.
    crop_px, gap_px
        Side of a crop, and how far crops lie apart: light from one must not teach what stands in another.
    residual_px
        Crops that still lie further apart than this are left out.
    landmarks
        None, or one JSON file for each SEM image, {"optical_yx": [[y, x], ...], "sem_yx": ...}: no search is made.
    labels
        None, or one label map for each SEM image (`superlens-train labels`).

    Returns
    -------
    What was written to pairs.json.

    Raises
    ------
    PairsError
        Anything that makes it no pair: see the message. Nothing is left behind.
    """
    if out.exists():
        raise PairsError(f"{out} exists already; give another folder, or remove it")
    for what, files in (("landmarks", landmarks), ("label maps", labels)):
        if files and len(files) != len(sems):
            raise PairsError(f"{len(files)} files of {what} for {len(sems)} SEM images; give one for each, in order")
    mosaic = _read(optical, optical_nm, "--optical-nm-per-px")
    grid_nm = mosaic.pixel_size_nm if pixel_nm is None else pixel_nm
    to_mosaic = _between(grid_nm / mosaic.pixel_size_nm)
    height, width = (int(side * mosaic.pixel_size_nm / grid_nm) for side in mosaic.image.shape)
    shape_px = (height, width)
    if min(shape_px) < crop_px:
        raise PairsError(
            f"the mosaic is {height} x {width} px of {grid_nm:g} nm, smaller than a crop of {crop_px} px;"
            " use a smaller --crop-px or a finer --pixel-nm"
        )
    classes: tuple[str, ...] = ()
    layers = []
    for number, path in enumerate(sems):
        sem = _read(path, sem_nm, "--sem-nm-per-px")
        boxes = burned_in(sem.image)
        readable = outside(boxes, sem.image.shape)
        expected = mosaic.pixel_size_nm / sem.pixel_size_nm
        if landmarks:
            found = _by_landmarks(landmarks[number])
        else:
            found = _registered(mosaic.image, sem.image, readable, expected)
        if abs(found.scale / expected - 1) > 0.1:
            log.warning(
                "%s: the scale found is %.3f of what the pixel sizes say; check them (%g and %g nm)",
                path, found.scale / expected, mosaic.pixel_size_nm, sem.pixel_size_nm,
            )  # fmt: skip
        fitted = _fitted(path, sem.pixel_size_nm, found, expected, boxes)
        marks = None
        if labels:
            marks, names = read_labels(labels[number], sem.image.shape)
            if number and names != classes:
                raise PairsError(f"{labels[number]} has the classes {names}, {labels[0]} {classes}; make them alike")
            classes = names
        shade_px = found.shade_px[0] / to_mosaic[0, 0], found.shade_px[1] / to_mosaic[1, 1]
        layers.append(_layer(fitted, sem.image, readable, marks, found.matrix @ to_mosaic, shape_px, shade_px))
    image = sampled(mosaic.image, to_mosaic[:2], shape_px)
    shown = _warped_mask(recorded(mosaic.image), to_mosaic[:2], shape_px)
    crops, rejected = cut(image, shown, layers, crop_px, gap_px, residual_px)
    pairs = PairSet(
        pixel_size_nm=grid_nm,
        crop_px=crop_px,
        gap_px=gap_px,
        optical=str(optical.name),
        registrations=tuple(layer.fitted for layer in layers),
        crops=tuple(crops),
        rejected=tuple(rejected),
        classes=classes,
    )
    with _new_folder(out) as folder:
        _write(folder, pairs, image, {layer.fitted.file: layer for layer in layers})
    return pairs


def report(pairs: PairSet) -> dict[str, Any]:
    """What `superlens-train pairs --json` prints: the transforms, what is left of them, and what was left out."""
    fits = [fitted.model_dump(mode="json") for fitted in pairs.registrations]
    left_px = [crop.residual_px for crop in pairs.crops if crop.residual_px is not None]
    return {
        "pixel_size_nm": pairs.pixel_size_nm,
        "crop_px": pairs.crop_px,
        "registration": fits[0],
        "registrations": fits,
        "residuals_px": {
            "crops": len(left_px),
            "median": float(np.median(left_px)) if left_px else None,
            "largest": max(left_px, default=None),
        },
        "counts": dict(Counter(crop.split for crop in pairs.crops)),
        "rejected": dict(Counter(one.reason for one in pairs.rejected)),
        "burned_in": {fitted.file: fitted.burned_in for fitted in pairs.registrations},
        "classes": pairs.classes,
    }


class _Known(NamedTuple):
    image: Image
    pixel_size_nm: float


def _read(path: Path, size_nm: float | None, option: str) -> _Known:
    try:
        found: Micrograph = read_micrograph(path, size_nm)
    except SpecimenError as exc:
        raise PairsError(f"{exc} ({option})") from exc
    if found.pixel_size_nm is None:
        raise PairsError(f"{path} does not say the size of its pixel on the specimen; give it with {option}")
    return _Known(found.image, found.pixel_size_nm)


def _between(ratio: float) -> NDArray[np.float64]:
    """(3, 3): pixels of a grid to those of one whose pixels are `ratio` times smaller, with a common first corner."""
    return np.array([[ratio, 0, ratio / 2 - 0.5], [0, ratio, ratio / 2 - 0.5], [0, 0, 1]])


def _registered(mosaic: Image, sem: Image, readable: Mask, expected: float) -> Registration:
    shown = recorded(mosaic)
    try:
        return register(mosaic, sem, optical_valid=shown, sem_valid=readable, expected_scale=expected)
    except PairsError as refusal:
        for factor in _OTHER_SCALES:
            try:
                found = register(mosaic, sem, optical_valid=shown, sem_valid=readable, expected_scale=factor * expected)
            except PairsError:
                continue
            raise PairsError(
                f"the size of a pixel is wrong: the images fit at {found.scale / expected:.2f} times the scale that the"
                " sizes of their pixels say; correct --optical-nm-per-px or --sem-nm-per-px"
            ) from refusal
        raise


def _by_landmarks(path: Path) -> Registration:
    try:
        points = _Landmarks.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise PairsError(
            f'{path} holds no landmarks ({exc}); expected {{"optical_yx": [[y, x], ...], "sem_yx": [[y, x], ...]}}'
        ) from exc
    return from_landmarks(points.optical_yx, points.sem_yx)


def _fitted(path: Path, size_nm: float, found: Registration, expected: float, boxes: Sequence[Box]) -> FittedImage:
    (a, b, c), (d, e, f) = found.matrix.tolist()
    return FittedImage(
        file=path.name,
        pixel_size_nm=size_nm,
        matrix=((a, b, c), (d, e, f)),
        scale=found.scale,
        scale_expected=expected,
        rotation_deg=found.rotation_deg,
        shift_px=found.shift_px,
        score=found.score,
        residual_px=found.residual_px,
        residuals_px=found.residuals_px,
        shade_px=found.shade_px,
        burned_in=tuple(boxes),
    )


def _layer(
    fitted: FittedImage,
    image: Image,
    readable: Mask,
    labels: NDArray[np.uint8] | None,
    matrix: NDArray[np.float64],
    shape_px: tuple[int, int],
    shade_px: tuple[float, float],
) -> Layer:
    inside = _warped_mask(np.ones_like(readable), matrix, shape_px)
    return Layer(
        fitted,
        sampled(image, matrix, shape_px),
        inside,
        _warped_mask(readable, matrix, shape_px),
        None if labels is None else sampled(labels, matrix, shape_px),
        shade_px,
    )


def _warped_mask(mask: Mask, matrix: NDArray[np.float64], shape_px: tuple[int, int]) -> Mask:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(mask.astype(np.float32), matrix, shape_px[::-1], flags=flags) > 0.999)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name when everything is in it, and not at all if anything fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as exc:
        raise PairsError(f"{out} cannot be made ({exc.strerror}); give another folder") from exc
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except OSError as exc:
        what = "the disk is full" if exc.errno == errno.ENOSPC else str(exc)
        raise PairsError(f"{out} could not be written ({what}); nothing was left behind") from exc
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def _write(folder: Path, pairs: PairSet, image: Image, layers: dict[str, Layer]) -> None:
    centimetre = 1e7 / pairs.pixel_size_nm
    for split in SPLITS:
        (folder / split).mkdir()
    for crop in pairs.crops:
        layer = layers[crop.sem]
        window = tuple(slice(start, start + pairs.crop_px) for start in crop.corner_px)
        parts: dict[str, NDArray[Any]] = {"optical": _counts(image[window]), "sem": _counts(layer.image[window])}
        if layer.labels is not None:
            parts["labels"] = layer.labels[window]
        for part, pixels in parts.items():
            tifffile.imwrite(
                folder / crop.split / f"{crop.name}-{part}.tif",
                pixels,
                resolution=(centimetre, centimetre),
                resolutionunit="CENTIMETER",
            )
    (folder / PAIRS_FILE).write_text(pairs.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _counts(image: Image) -> NDArray[np.uint16]:
    return np.round(np.clip(image, 0, 1) * 65535).astype(np.uint16)

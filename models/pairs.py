"""A lab's own pairs: one folder of registered optical and SEM crops in three splits, made once and read by training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import PairsError

Image = NDArray[np.float32]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

PAIRS_FILE = "pairs.json"
_MAKE_IT = "make one with: superlens-train pairs --optical MOSAIC --sem IMAGE --out DIR"


class Pairing(NamedTuple):
    """One crop: what the light microscope saw, what the SEM saw at the same place, and what a person saw there.

    `image` and `truth` are (side, side) float32 in 0..1 on the same pixel grid; `labels`, where the set has them,
    is (side, side) uint8, 0 for background and the number of a class elsewhere.
    """

    name: str
    image: Image
    truth: Image
    pixel_size_nm: float
    labels: NDArray[np.uint8] | None = None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FittedImage(_Record):
    """How one SEM image lies on the mosaic: `matrix` takes (x, y, 1) of an optical pixel to (x, y) of an SEM pixel.

    `scale` is SEM pixels per optical pixel, `scale_expected` what the sizes of the pixels say; `shift_px` is (y, x);
    `score` is None for landmarks; `residuals_px` are optical pixels by which regions, or landmarks, are still off,
    and `residual_px` their root mean square. `shade_px` is (y, x) optical pixels by which light from a detector at
    the side makes the SEM image look displaced; `matrix` is free of it. `burned_in` are the boxes (top, left, bottom,
    right) of the SEM image that its microscope wrote over.
    """

    file: str
    pixel_size_nm: float = Field(gt=0)
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    scale: float = Field(gt=0)
    scale_expected: float = Field(gt=0)
    rotation_deg: float
    shift_px: tuple[float, float]
    score: float | None
    residual_px: float = Field(ge=0)
    residuals_px: tuple[float, ...] = ()
    shade_px: tuple[float, float] = (0.0, 0.0)
    burned_in: tuple[tuple[int, int, int, int], ...] = ()


class Crop(_Record):
    """One kept crop: top left corner (y, x) on the resampled mosaic, and which SEM image it is of.

    `residual_px` is by how much the SEM crop would have to move to fit better; None where the two have too little in
    common to say.
    """

    name: str
    split: Split
    corner_px: tuple[int, int]
    sem: str
    residual_px: float | None = Field(default=None, ge=0)


class Rejected(_Record):
    """One crop that was left out, and why."""

    corner_px: tuple[int, int]
    sem: str
    reason: str


class PairSet(_Record):
    """The contents of pairs.json."""

    schema_version: Literal[1] = 1
    pixel_size_nm: float = Field(gt=0)
    crop_px: int = Field(ge=16)
    gap_px: int = Field(ge=0)
    optical: str
    registrations: tuple[FittedImage, ...] = Field(min_length=1)
    crops: tuple[Crop, ...] = Field(min_length=3)
    rejected: tuple[Rejected, ...] = ()
    classes: tuple[str, ...] = ()


def read_index(folder: str | os.PathLike[str]) -> PairSet:
    """Read pairs.json.

    Raises
    ------
    PairsError
        The folder is not one of pairs, or its index is malformed.
    """
    path = Path(folder) / PAIRS_FILE
    try:
        return PairSet.model_validate_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise PairsError(f"{folder} is no folder of pairs ({PAIRS_FILE} is not there); {_MAKE_IT}") from exc
    except OSError as exc:
        raise PairsError(f"{path} cannot be read ({exc.strerror}); {_MAKE_IT}") from exc
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'the file'}: {error['msg']}"
            for error in exc.errors(include_url=False)[:5]
        )
        raise PairsError(f"{path} is no index of pairs of schema version 1: {wrong}; {_MAKE_IT}") from exc


def read_pairs(folder: str | os.PathLike[str], split: Split) -> list[Pairing]:
    """Read all pairs of one split.

    Parameters
    ----------
    folder
        Made by `superlens-train pairs`.
    split
        "train", "validation" or "test": they are different regions of the specimen.

    Returns
    -------
    In the order of pairs.json, at least one; see `Pairing`.

    Raises
    ------
    PairsError
        The folder is not one of pairs, or a file is missing, damaged or of another size.
    """
    if split not in SPLITS:
        raise PairsError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    index = read_index(folder)
    pairs = []
    for crop in index.crops:
        if crop.split == split:
            stem = Path(folder) / split / crop.name
            labels = _read(stem, "labels", index.crop_px, np.uint8) if index.classes else None
            image, truth = (_read(stem, part, index.crop_px, np.uint16) for part in ("optical", "sem"))
            pairs.append(
                Pairing(f"{split}/{crop.name}", _unit(image), _unit(truth), index.pixel_size_nm, labels=labels)
            )
    if not pairs:
        raise PairsError(f"{folder} has no pair in its {split} split; {_MAKE_IT}")
    return pairs


def _read(stem: Path, part: str, side_px: int, dtype: type) -> NDArray[Any]:
    import tifffile  # here, because who only names the types needs no TIFF reader

    path = stem.with_name(f"{stem.name}-{part}.tif")
    try:
        pixels: NDArray[Any] = tifffile.imread(path)
    except (tifffile.TiffFileError, OSError, ValueError, IndexError) as exc:
        raise PairsError(f"{path} cannot be read ({exc}); make the pairs anew") from exc
    if pixels.shape != (side_px, side_px) or pixels.dtype != dtype:
        raise PairsError(
            f"{path} holds {pixels.dtype} of {pixels.shape} px, expected {np.dtype(dtype)} of"
            f" ({side_px}, {side_px}); make the pairs anew"
        )
    return pixels


def _unit(counts: NDArray[Any]) -> Image:
    return (counts / np.float32(65535)).astype(np.float32)

"""Writes a folder of pairs as `superlens-train pairs` does, from pictures a test has already."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from models.pairs import PAIRS_FILE, Crop, FittedImage, PairSet, Split

Image = NDArray[np.float32]


def write_pairs(folder: Path, splits: Mapping[Split, Sequence[tuple[Image, Image]]], pixel_size_nm: float) -> Path:
    """`splits` holds (image, truth) squares of one size, 0..1."""
    crops = []
    for split, pairs in splits.items():
        (folder / split).mkdir(parents=True)
        for number, pair in enumerate(pairs):
            name = f"{number:03d}"
            crops.append(Crop(name=name, split=split, corner_px=(0, 0), sem="drawn", residual_px=0))
            for part, picture in zip(("optical", "sem"), pair, strict=True):
                counts = np.round(np.clip(picture, 0, 1) * 65535).astype(np.uint16)
                tifffile.imwrite(folder / split / f"{name}-{part}.tif", counts)
    drawn = FittedImage(
        file="drawn",
        pixel_size_nm=pixel_size_nm,
        matrix=((1, 0, 0), (0, 1, 0)),
        scale=1,
        scale_expected=1,
        rotation_deg=0,
        shift_px=(0, 0),
        score=1,
        residual_px=0,
    )
    side = next(iter(splits.values()))[0][0].shape[0]
    index = PairSet(
        pixel_size_nm=pixel_size_nm,
        crop_px=side,
        gap_px=0,
        optical="drawn",
        registrations=(drawn,),
        crops=tuple(crops),
    )
    (folder / PAIRS_FILE).write_text(index.model_dump_json(indent=2))
    return folder

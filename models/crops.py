"""Which crops of registered images become pairs, and in which split each of them goes (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import PairsError
from models.pairs import SPLITS, Crop, FittedImage, Rejected, Split
from models.register import local_misfit_px

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SHARES = {"validation": 0.15, "test": 0.15}  # the rest is for training


class Layer(NamedTuple):
    """One SEM image on the mosaic's grid, where it lies, and where nothing was written over it."""

    fitted: FittedImage
    image: Image
    inside: Mask
    readable: Mask
    labels: NDArray[np.uint8] | None
    shade_px: tuple[float, float] = (0.0, 0.0)  # by which shading makes it look displaced on this grid


def cut(
    image: Image, shown: Mask, layers: Sequence[Layer], crop_px: int, gap_px: int, limit_px: float
) -> tuple[list[Crop], list[Rejected]]:
    """Lay a grid of crops where most of them are usable, judge each, and split them by region.

    Parameters
    ----------
    image, shown
        The mosaic, and where it shows something.
    layers
        SEM images on its grid; crops of one place in several of them go into the same split.
    crop_px, gap_px
        Side of a crop and distance between crops: none overlap, whatever their split.
    limit_px
        Crops that still lie further apart than this are rejected.

    Raises
    ------
    PairsError
        Fewer than three places are left: each split needs one.
    """
    pitch = crop_px + gap_px
    whole = [_all_within(shown & layer.readable, crop_px) for layer in layers]
    corners = _grid(np.sum(whole, axis=0), pitch)
    kept: dict[tuple[int, int], list[tuple[Layer, float | None]]] = {}
    rejected = []
    for corner in corners:
        window = slice(corner[0], corner[0] + crop_px), slice(corner[1], corner[1] + crop_px)
        for layer, fits in zip(layers, whole, strict=True):
            reason, left_px = None, None
            if not fits[corner]:
                reason = "outside the overlap, or where the mosaic has a gap"
                if layer.inside[window].all() and not layer.readable[window].all():
                    reason = "under what the microscope wrote on the SEM image"
            elif _is_empty(layer.image[window]):
                reason = "empty: nothing but noise in the SEM image"
            else:
                left_px = local_misfit_px(image[window], layer.image[window], layer.shade_px)
                if left_px is not None and left_px > limit_px:
                    reason = f"the two images still lie more than {limit_px:g} px apart"
            if reason is None:
                kept.setdefault(corner, []).append((layer, left_px))
            else:
                rejected.append(Rejected(corner_px=corner, sem=layer.fitted.file, reason=reason))
    crops = []
    counts: Counter[str] = Counter()
    for corner, split in _split(list(kept), rejected, crop_px).items():
        for layer, left_px in kept[corner]:
            name = f"{counts[split]:03d}"
            crops.append(Crop(name=name, split=split, corner_px=corner, sem=layer.fitted.file, residual_px=left_px))
            counts[split] += 1
    return crops, rejected


def _all_within(mask: Mask, side_px: int) -> Mask:
    """(h - side + 1, w - side + 1): True where the window with this first corner lies within the mask."""
    total = np.pad(np.cumsum(np.cumsum(mask, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    n = side_px
    return np.asarray(total[n:, n:] - total[:-n, n:] - total[n:, :-n] + total[:-n, :-n] == n * n)


def _grid(usable: NDArray[np.integer[Any]], pitch: int) -> list[tuple[int, int]]:
    """The first corners of the grid of crops that has the most usable ones; none overlap, whatever their split."""
    offsets = [(y, x) for y in range(0, pitch, max(1, pitch // 16)) for x in range(0, pitch, max(1, pitch // 16))]
    y, x = max(offsets, key=lambda offset: int(usable[offset[0] :: pitch, offset[1] :: pitch].sum()))
    return [(row, column) for row in range(y, usable.shape[0], pitch) for column in range(x, usable.shape[1], pitch)]


def _is_empty(crop: Image) -> bool:
    """Whether what is left of a crop after averaging is no more than what noise leaves."""
    smooth = cv2.GaussianBlur(crop, (0, 0), 3)
    shapes = float((smooth - cv2.GaussianBlur(crop, (0, 0), 24)).std())
    # White noise of 1 leaves 0.094 after this average; the median ignores edges.
    noise = 1.48 * float(np.median(np.abs(crop - smooth)))
    return shapes < max(0.2 * noise, 0.002)


def _split(corners: list[tuple[int, int]], rejected: Sequence[Rejected], crop_px: int) -> dict[tuple[int, int], Split]:
    """Each split is one block of neighbouring crops, cut across the longer side of the region."""
    if len(corners) < len(SPLITS):
        reasons = Counter(one.reason for one in rejected)
        raise PairsError(
            f"only {len(corners)} crops of {crop_px} px are usable, expected at least {len(SPLITS)}, one for each"
            f" split; use a smaller --crop-px or a larger overlap"
            + "".join(f"; {count} left out: {reason}" for reason, count in reasons.most_common(3))
        )
    places = np.array(corners)
    long = int(np.argmax(np.ptp(places, axis=0)))
    ordered = sorted(corners, key=lambda corner: (corner[long], corner[1 - long]))
    validation, test = (max(1, round(share * len(ordered))) for share in _SHARES.values())
    train = len(ordered) - validation - test
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    splits = [split for split in SPLITS for _ in range(counts[split])]
    return dict(zip(ordered, splits, strict=True))

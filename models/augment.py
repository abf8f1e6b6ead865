"""Augmentation of pairs: one random geometry, the same for all parts, that never shows what lies outside the source.

The set is that of the scanning superlens paper (flips, rotations by 30, 45, 60 and 90 degrees, several scales) and
of the neural lens (random translation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import PairsError

Array = NDArray[Any]


def augment(
    parts: Sequence[Array],
    rng: np.random.Generator,
    *,
    crop_px: int,
    rotations_deg: Sequence[float] = (0, 30, 45, 60, 90),
    scales: Sequence[float] = (1.0,),
    flips: bool = True,
) -> list[Array]:
    """Cut one random crop, turned, scaled, shifted and mirrored, out of several pictures of the same place.

    Parameters
    ----------
    parts
        Arrays (h, w) or (h, w, channels) of one size. Floats are interpolated (cubic, kept within 0..1 where the
        source is, averaged over the area when made smaller); integers are labels: the nearest pixel is taken.
    rng
        Where everything is drawn from: the same state gives the same crop.
    crop_px
        Side of the crop.
    rotations_deg, scales
        One of each is drawn among those whose window fits into the source. Scale 2 shows half the field, enlarged.
    flips
        Mirror vertically and horizontally, each half of the time.

    Returns
    -------
    The parts as (crop_px, crop_px) or (crop_px, crop_px, channels), of their own types.

    Raises
    ------
    PairsError
        There are no parts, they differ in size, or no window fits: the crop is too large.

    Examples
    --------
    >>> image = np.arange(64.0 * 64, dtype=np.float32).reshape(64, 64) / 4096
    >>> crop, same = augment([image, image], np.random.default_rng(0), crop_px=32)
    >>> crop.shape, bool((crop == same).all())
    ((32, 32), True)
    """
    if not parts or len({part.shape[:2] for part in parts}) != 1:
        raise PairsError(
            f"the parts of a pair have the sizes {[part.shape[:2] for part in parts]}, expected one or more of one size"
        )
    height, width = parts[0].shape[:2]
    # The window is a turned square of the source; its bounding box must lie inside. Pixel centres are half a pixel
    # from the window's border, and cubic interpolation looks one more to each side, which `reflect_101` supplies.
    fitting = [
        (angle, scale)
        for angle in rotations_deg
        for scale in scales
        if _extent_px(angle, scale, crop_px) <= min(height, width) + 1e-6
    ]
    if not fitting:
        raise PairsError(
            f"no window of {crop_px} px, turned by {list(rotations_deg)} degrees and scaled by {list(scales)}, fits"
            f" into {height} x {width} px; use smaller crops, or 0 degrees and scale 1 among the choices"
        )
    angle, scale = fitting[rng.integers(len(fitting))]
    sign = rng.choice((-1.0, 1.0))  # 30 degrees to either side
    flip_y, flip_x = (rng.random(2) < 0.5) & flips
    half = _extent_px(angle, scale, crop_px) / 2
    if angle % 90 == 0 and scale == 1:
        # Nothing needs interpolating here, so whole pixels are moved and every value survives.
        top, left = (int(rng.integers(side - crop_px + 1)) for side in (height, width))
        turns = round(sign * angle / 90) % 4
        return [
            _mirrored(np.rot90(part[top : top + crop_px, left : left + crop_px], turns), flip_y, flip_x)
            for part in parts
        ]
    centre = np.array([rng.uniform(half, side - half) - 0.5 for side in (width, height)])
    turn = math.radians(sign * angle)
    # From crop (x, y) to source (x, y): what warpAffine wants with WARP_INVERSE_MAP.
    linear = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) / scale
    matrix = np.column_stack([linear, centre - linear @ np.full(2, (crop_px - 1) / 2)])
    return [_mirrored(sampled(part, matrix, (crop_px, crop_px)), flip_y, flip_x) for part in parts]


def _extent_px(angle_deg: float, scale: float, crop_px: int) -> float:
    """Side of the box around the turned window, in source pixels."""
    turn = math.radians(angle_deg)
    return (abs(math.cos(turn)) + abs(math.sin(turn))) * crop_px / scale


def sampled(image: Array, matrix: NDArray[np.float64], shape_px: tuple[int, int]) -> Array:
    """A picture on another grid.

    Parameters
    ----------
    image
        (h, w) or (h, w, channels). Floats are interpolated, averaged over the area of the new pixels where these are
        larger, and kept within the values there were; of integers, which are labels, the nearest is taken.
    matrix
        (2, 3): takes (x, y, 1) of the new grid to (x, y) of the image.
    shape_px
        (height, width) of the new grid; outside the image stands its mirror image.
    """
    how, source = cv2.INTER_NEAREST, image
    if np.issubdtype(image.dtype, np.floating):
        how = cv2.INTER_CUBIC
        coarser = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
        if coarser > 1.001:
            # A Gaussian with the variance of a pixel of the new grid, less that of a pixel there was.
            source = cv2.GaussianBlur(image, (0, 0), math.sqrt((coarser**2 - 1) / 12), borderType=cv2.BORDER_REFLECT)
    out = cv2.warpAffine(
        source, matrix, shape_px[::-1], flags=how | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
    )
    if how == cv2.INTER_CUBIC:
        np.clip(out, image.min(), image.max(), out=out)  # a cubic overshoots beside a step
    return np.asarray(out, dtype=image.dtype)


def _mirrored(crop: Array, flip_y: bool, flip_x: bool) -> Array:
    return np.ascontiguousarray(crop[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

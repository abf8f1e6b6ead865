"""Where tiles stand in the mosaic, and how they are blended. Pure numpy; positions come from the stage alone.

Frame of the mosaic: x right, y down, in px. When the stage moves by s um a feature moves in the image by ``A @ s`` px,
so the tile recorded at stage position p stands at ``-A @ (p - p0)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.pzt import PositionUm

Matrix = NDArray[np.float64]


def camera_from_stage(
    pixel_size_nm: float, calibrated: tuple[tuple[float, float], tuple[float, float]] | None = None
) -> Matrix:
    """A: (dx, dy) in px that a feature moves for a stage move (sx, sy) in um. Uncalibrated: identity / pixel size."""
    if calibrated is not None:
        return np.array(calibrated, np.float64)
    return np.asarray(np.eye(2) * 1e3 / pixel_size_nm)


def place(positions_um: Sequence[PositionUm], a_px_per_um: Matrix) -> NDArray[np.float64]:
    """Offsets (n, 2) as (y, x) px of each tile's centre from the first tile's centre.

    >>> place([PositionUm(0, 0, 0), PositionUm(1, 0, 0)], np.eye(2) * 10).tolist()
    [[0.0, 0.0], [0.0, -10.0]]
    """
    p = np.array([(position.x, position.y) for position in positions_um], np.float64)
    xy = -(p - p[0]) @ a_px_per_um.T + 0.0  # + 0.0 turns -0.0 into 0.0
    return np.asarray(xy[:, ::-1], order="C")


class Mosaic:
    """Tiles blended by a weight that falls to nothing at their edges, so that no seam has a step.

    Parameters
    ----------
    offsets_px
        (n, 2), (y, x) of every tile that is to come, from :func:`place`; fixes the size.
    tile_shape_px
        (height, width) of each tile, or (height, width, 3).
    dtype
        Of the tiles and of the result.

    Tiles are placed to the nearest pixel: the stage alone is not known better than that.
    """

    def __init__(self, offsets_px: NDArray[np.float64], tile_shape_px: tuple[int, ...], dtype: Any) -> None:
        self.origin_px = offsets_px.min(axis=0)
        self._corners = np.rint(offsets_px - self.origin_px).astype(int)
        height, width = self._corners.max(axis=0) + tile_shape_px[:2]
        self.shape: tuple[int, ...] = (int(height), int(width), *tile_shape_px[2:])
        self._dtype = np.dtype(dtype)
        one_weight = (1,) * len(tile_shape_px[2:])  # for all colours of a pixel
        self._sum = np.zeros(self.shape, np.float32)
        self._weight = np.zeros((*self.shape[:2], *one_weight), np.float32)
        self._tile_shape = tile_shape_px
        self._feather = _feather(tile_shape_px[:2]).reshape(*tile_shape_px[:2], *one_weight)

    def add(self, tile_number: int, pixels: NDArray[Any]) -> None:
        """Blend in the tile that stands at ``offsets_px[tile_number]``."""
        if pixels.shape != self._tile_shape:
            raise ValueError(f"a tile of {pixels.shape} px does not fit a mosaic of {self._tile_shape} px tiles")
        top, left = self._corners[tile_number]
        where = np.s_[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        self._sum[where] += pixels * self._feather
        self._weight[where] += self._feather

    def image(self) -> NDArray[Any]:
        """The mosaic; 0 where no tile is."""
        blended = np.divide(self._sum, self._weight, out=np.zeros_like(self._sum), where=self._weight > 0)
        return np.rint(blended).astype(self._dtype)


def _feather(shape_px: tuple[int, ...]) -> NDArray[np.float32]:
    """Distance to the nearest edge, at least half a pixel: a single tile still has weight everywhere."""
    ramps = [np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5 for side in shape_px]
    return np.minimum(ramps[0][:, None], ramps[1]).astype(np.float32)


def crop_square(
    pixels: NDArray[Any], *, side_px: int, centre_px: tuple[float, float] | None = None, scale: int = 1
) -> NDArray[Any]:
    """The square of ``side_px`` around ``centre_px`` (y, x), a view.

    ``side_px`` and ``centre_px`` are in pixels of the camera; ``pixels`` has ``scale`` times as many a side.

    Raises
    ------
    ValueError
        It does not lie inside the frame.
    """
    height, width = (side // scale for side in pixels.shape[:2])
    centre_y, centre_x = centre_px if centre_px is not None else ((height - 1) / 2, (width - 1) / 2)
    top, left = round(centre_y - (side_px - 1) / 2), round(centre_x - (side_px - 1) / 2)
    if top < 0 or left < 0 or top + side_px > height or left + side_px > width:
        raise ValueError(
            f"a square of {side_px} px around y {centre_y:g}, x {centre_x:g} does not lie inside a frame of "
            f"{height} x {width} px; enlarge the camera's area or make [sphere] field_um smaller"
        )
    return pixels[scale * top : scale * (top + side_px), scale * left : scale * (left + side_px)]

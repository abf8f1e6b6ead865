"""Geometric correction of scan tiles: taking the sphere's pincushion out before tiles are placed side by side.

A feature at radius r from the optical axis on the specimen appears at ``r * (1 + d(r))``. ``d`` is a table from a
calibration (``[sphere] distortion``) or, for a simulated camera, from the optics it declares. Live video and recorded
tiles are never warped; only a mosaic is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DistortionTable = Sequence[tuple[float, float]]
"""(radius on the specimen in um, relative change of magnification there), radius growing from 0."""


class Undistortion:
    """Maps square tiles around the optical axis to what they would be without distortion.

    Parameters
    ----------
    table
        See :data:`DistortionTable`; +0.03 is 3 % pincushion.
    side_px
        Side of the tiles as they were cut from the frame.
    pixel_size_nm
        On the axis.

    Attributes
    ----------
    side_px
        Side of the corrected tiles: the largest square that needs nothing from outside the original.
    """

    def __init__(self, table: DistortionTable, *, side_px: int, pixel_size_nm: float) -> None:
        radius_um, relative = np.array(table, np.float64).T
        pixel_um = pixel_size_nm / 1e3
        half = (side_px - 1) / 2
        # Pincushion: the corners reach farthest out. Barrel: the middles of the edges do. Both must lie inside.
        sides = np.arange(side_px, 0, -1)
        corner_um = (sides - 1) / 2 * np.sqrt(2) * pixel_um
        edge_um = (sides - 1) / 2 * pixel_um
        fits = [
            self._stretch(corner, radius_um, relative) * (side - 1) / 2 <= half
            and self._stretch(edge, radius_um, relative) * (side - 1) / 2 <= half
            for side, corner, edge in zip(sides, corner_um, edge_um, strict=True)
        ]
        self.side_px = int(sides[int(np.argmax(fits))])
        offset = np.arange(self.side_px) - (self.side_px - 1) / 2
        y, x = np.meshgrid(offset, offset, indexing="ij")
        stretch = self._stretch(np.hypot(y, x) * pixel_um, radius_um, relative)
        self._coordinates = np.stack([y * stretch + half, x * stretch + half])

    @staticmethod
    def _stretch(at_um: Any, radius_um: NDArray[np.float64], relative: NDArray[np.float64]) -> Any:
        return 1 + np.interp(at_um, radius_um, relative)

    def apply(self, tile: NDArray[Any]) -> NDArray[Any]:
        """The corrected tile, (:attr:`side_px`, :attr:`side_px`) or with colours, same dtype, by cubic splines.

        Splines overshoot at sharp edges by a few counts; what would leave the dtype's range saturates.
        """
        if tile.ndim == 3:
            return np.stack([self.apply(tile[..., colour]) for colour in range(tile.shape[2])], axis=2)
        values = ndimage.map_coordinates(tile.astype(np.float32), self._coordinates, order=3, mode="nearest")
        limits = np.iinfo(tile.dtype)
        return np.asarray(np.rint(values).clip(limits.min, limits.max), tile.dtype)

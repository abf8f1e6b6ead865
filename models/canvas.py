"""The canvas that specimens are drawn on: shapes as coverage of its pixels, in nanometres (numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Canvas:
    """The grid a specimen is drawn on: `shape_px` pixels of `pixel_nm`, origin at the top left corner."""

    shape_px: tuple[int, int]
    pixel_nm: float

    @property
    def size_nm(self) -> tuple[float, float]:
        """(height, width) in nm."""
        return self.shape_px[0] * self.pixel_nm, self.shape_px[1] * self.pixel_nm

    @property
    def y(self) -> Image:
        """Column (height, 1) of pixel centres, nm."""
        return ((np.arange(self.shape_px[0], dtype=np.float32) + 0.5) * np.float32(self.pixel_nm))[:, None]

    @property
    def x(self) -> Image:
        """Row (1, width) of pixel centres, nm."""
        return ((np.arange(self.shape_px[1], dtype=np.float32) + 0.5) * np.float32(self.pixel_nm))[None, :]

    def full(self, value: float) -> Image:
        """A flat picture."""
        return np.full(self.shape_px, value, np.float32)

    def rotated(self, angle: float) -> tuple[Image, Image]:
        """Coordinates (along, across) of a frame turned by `angle` radians about the middle, nm."""
        y, x = self.y - self.size_nm[0] / 2, self.x - self.size_nm[1] / 2
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        return cos * x + sin * y, cos * y - sin * x

    def cover(self, signed_nm: Image) -> Image:
        """Share of each pixel inside a shape, from the signed distance to its edge (inside is negative)."""
        return np.asarray(np.clip(0.5 - signed_nm / np.float32(self.pixel_nm), 0, 1), dtype=np.float32)

    def point(self, rng: np.random.Generator, margin_nm: float = 0.0) -> tuple[float, float]:
        """A random point, at least `margin_nm` inside (or, negative, at most that far outside)."""
        height, width = self.size_nm
        return rng.uniform(margin_nm, height - margin_nm), rng.uniform(margin_nm, width - margin_nm)

    def disc(self, image: Image, centre_nm: tuple[float, float], radius_nm: float, value: float) -> None:
        """Paint a disc."""
        window, y, x = self._window(centre_nm, radius_nm, radius_nm)
        _blend(image[window], self.cover(np.hypot(y, x) - np.float32(radius_nm)), value)

    def ball(self, image: Image, centre_nm: tuple[float, float], radius_nm: float, value: float) -> None:
        """Paint a disc that darkens towards its rim, as a particle does."""
        window, y, x = self._window(centre_nm, radius_nm, radius_nm)
        r = np.hypot(y, x)
        shade = np.sqrt(np.clip(1 - 0.7 * (r / np.float32(radius_nm)) ** 2, 0.1, 1))
        part = image[window]
        part += self.cover(r - np.float32(radius_nm)) * (np.float32(value) * shade - part)

    def box(
        self, image: Image, centre_nm: tuple[float, float], half_nm: tuple[float, float], value: float, angle: float = 0
    ) -> None:
        """Paint a rectangle of half sides (y, x), turned by `angle` radians."""
        half_y, half_x = half_nm
        if angle == 0:
            window, y, x = self._window(centre_nm, half_y, half_x)
            cover = self.cover(np.abs(y) - np.float32(half_y)) * self.cover(np.abs(x) - np.float32(half_x))
        else:
            reach = math.hypot(half_y, half_x)
            window, y, x = self._window(centre_nm, reach, reach)
            cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
            cover = self.cover(np.abs(cos * y - sin * x) - np.float32(half_y))
            cover = cover * self.cover(np.abs(cos * x + sin * y) - np.float32(half_x))
        _blend(image[window], cover, value)

    def _window(
        self, centre_nm: tuple[float, float], reach_y_nm: float, reach_x_nm: float
    ) -> tuple[tuple[slice, slice], Image, Image]:
        """The part of the canvas around a point, and coordinates relative to the point there."""
        spans = []
        for centre, reach, size in zip(centre_nm, (reach_y_nm, reach_x_nm), self.shape_px, strict=True):
            first = math.floor((centre - reach) / self.pixel_nm) - 1
            last = math.ceil((centre + reach) / self.pixel_nm) + 1
            spans.append(slice(min(max(first, 0), size), min(max(last, 0), size)))
        window = (spans[0], spans[1])
        return window, self.y[spans[0]] - np.float32(centre_nm[0]), self.x[:, spans[1]] - np.float32(centre_nm[1])


def _blend(part: Image, cover: Image, value: float) -> None:
    part += cover * (np.float32(value) - part)

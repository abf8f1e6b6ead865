"""The prepare stage: what a camera's counts are, and how they become network input and back.

Written in numpy; every other form of it (graph nodes, a CUDA kernel) is held against this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.frames import DTYPE, PixelFormat


@dataclass(frozen=True, eq=False)
class Counts:
    """What the slots of one camera hold.

    Attributes
    ----------
    shape_px : (height, width).
    pixel_format, bit_depth : full scale is 2**bit_depth - 1 counts.
    dark : (height, width) counts, or None. flat : (height, width) relative gain, positive, or None.
    """

    shape_px: tuple[int, ...]
    pixel_format: PixelFormat
    bit_depth: int
    dark: NDArray[np.float32] | None = None
    flat: NDArray[np.float32] | None = None

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Of a slot."""
        return DTYPE[self.pixel_format]

    @property
    def full_scale(self) -> int:
        """The largest count the camera delivers."""
        return full_scale(self.bit_depth)

    def to_network(self, pixels: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write ``(counts - dark) / flat / full scale`` into ``out``: 0..1 for counts within full scale."""
        scale = np.float32(1 / self.full_scale)
        if self.dark is None and self.flat is None:
            np.multiply(pixels, scale, out=out)
            return
        np.subtract(pixels, np.float32(0) if self.dark is None else self.dark, out=out, casting="unsafe")
        if self.flat is not None:
            np.divide(out, self.flat, out=out)
        np.multiply(out, scale, out=out)

    def from_network(self, values: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Write 0..1 values of any shape as counts, rounded to even. ``values`` is used as scratch memory.

        The network's graph ends in a clamp to 0..1, so no count can exceed full scale.
        """
        np.multiply(values, np.float32(self.full_scale), out=values)
        np.rint(values, out=values)
        np.copyto(out, values, casting="unsafe")


def full_scale(bit_depth: int) -> int:
    """The largest count of a bit depth."""
    return (1 << bit_depth) - 1

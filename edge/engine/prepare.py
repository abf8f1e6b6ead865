"""The prepare stage: what a camera's counts are, and how they become network input and back.

Written in numpy; every other form of it (graph nodes, a CUDA kernel) is held against this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.frames import LAYOUTS, PixelFormat, slot_shape


@dataclass(frozen=True, eq=False)
class Counts:
    """What the slots of one camera hold.

    Attributes
    ----------
    shape_px : (height, width) of the picture; a slot's own is `slot_shape_px`.
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
        return LAYOUTS[self.pixel_format].slot

    @property
    def result_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Of the counts an engine delivers: 16 bits where the slot is packed, else the slot's."""
        return LAYOUTS[self.pixel_format].result

    @property
    def slot_shape(self) -> tuple[int, ...]:
        """Of a slot, see `edge.frames.slot_shape`."""
        return slot_shape(self.pixel_format, self.shape_px)

    @property
    def full_scale(self) -> int:
        """The largest count the camera delivers."""
        return full_scale(self.bit_depth)

    def to_network(self, pixels: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write ``(counts - dark) / flat / full scale`` into ``out``: 0..1 for counts within full scale."""
        scale = np.float32(1 / self.full_scale)
        counts = one_channel(pixels, self.pixel_format, self.shape_px[1])
        if self.dark is None and self.flat is None:
            np.multiply(counts, scale, out=out)
            return
        np.subtract(counts, np.float32(0) if self.dark is None else self.dark, out=out, casting="unsafe")
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


def one_channel(pixels: NDArray[Any], pixel_format: PixelFormat, width: int) -> NDArray[Any]:
    """The counts of a slot as one channel, (height, width); a view of ``pixels`` for mono8, mono16 and rgb8.

    Of colour it is the green: the networks know the point spread function at one wavelength, near 550 nm, and a mix
    with red and blue would blend three of them. At a Bayer mosaic's red and blue sites it is the mean of the green
    neighbours inside the frame, float32.
    """
    layout = LAYOUTS[pixel_format]
    if layout.packed:
        return unpacked(pixels, width, layout.bits)
    if pixel_format == "rgb8":
        return pixels[..., 1]
    if pixel_format.startswith("bayer"):
        return _green(pixels, first_is_green=pixel_format[len("bayer_")] == "g")
    return pixels


def unpacked(rows: NDArray[np.uint8], width: int, bits: int) -> NDArray[np.uint16]:
    """Counts (height, width) of packed rows of 10 or 12 bits a pixel (PFNC 2.4, Mono10p and Mono12p).

    Examples
    --------
    >>> [hex(count) for count in unpacked(np.array([[0x21, 0x43, 0x65]], np.uint8), 2, 12)[0]]
    ['0x321', '0x654']
    """
    counts = np.empty((len(rows), width), np.uint16)
    period = 8 // math.gcd(bits, 8)  # pixels until one begins with a byte again
    for phase in range(min(period, width)):
        byte, shift = divmod(phase * bits, 8)
        target = counts[:, phase::period]
        pair = slice(byte, None, period * bits // 8), slice(byte + 1, None, period * bits // 8)
        low, high = (rows[:, every][:, : target.shape[1]] for every in pair)  # a pixel lies in exactly two bytes
        np.left_shift(high, 8, out=target, dtype=np.uint16)
        np.bitwise_or(target, low, out=target)
        np.right_shift(target, shift, out=target)
        np.bitwise_and(target, (1 << bits) - 1, out=target)
    return counts


def _green(mosaic: NDArray[np.uint8], *, first_is_green: bool) -> NDArray[np.float32]:
    green = np.zeros(mosaic.shape, np.float32)
    sites = np.full(mosaic.shape, 4, np.uint8)
    for axis in (0, 1):
        towards, back = np.moveaxis(green, axis, 0), np.moveaxis(mosaic, axis, 0)
        towards[1:] += back[:-1]
        towards[:-1] += back[1:]
        at_edge = np.moveaxis(sites, axis, 0)
        at_edge[0] -= 1
        at_edge[-1] -= 1
    green /= sites
    for row in (0, 1):
        at = np.s_[row::2, (row if first_is_green else 1 - row) :: 2]
        green[at] = mosaic[at]
    return green

"""The prepare stage: what a camera's counts are, and how they become network input and back.

Written in numpy; every other form of it (graph nodes, a CUDA kernel) is held against this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.devices import Camera
from edge.errors import ConfigError, EngineError
from edge.frames import LAYOUTS, PixelFormat, slot_shape, unpacked

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Counts:
    """What the slots of one camera hold.

    Attributes
    ----------
    shape_px : (height, width) of the picture; a slot's own is `slot_shape`.
    pixel_format, bit_depth : full scale is 2**bit_depth - 1 counts.
    dark : (height, width) counts, or None. flat : (height, width) relative gain, positive, or None.
    tiles : the frames are parts of larger ones, and what dark and flat hold is written over from one to the next.

    Raises
    ------
    ConfigError
        Dark or flat is not float32 of ``shape_px``, not finite, or a flat is not positive everywhere: of what reaches a
        GPU, nothing is checked afterwards.
    """

    shape_px: tuple[int, ...]
    pixel_format: PixelFormat
    bit_depth: int
    dark: NDArray[np.float32] | None = None
    flat: NDArray[np.float32] | None = None
    tiles: bool = False

    def __post_init__(self) -> None:
        for name, values, least in (("dark", self.dark, -np.inf), ("flat", self.flat, 0.0)):
            if values is None:
                continue
            if values.shape != self.shape_px or values.dtype != np.float32:
                raise ConfigError(
                    f"The {name} is {values.dtype} of {values.shape} px, expected float32 of {self.shape_px} px, as "
                    "the frames. Take it with this camera, and convert it with .astype(np.float32)."
                )
            if not (self.tiles or (np.isfinite(values).all() and values.min() > least)):
                bad = values.size - int((np.isfinite(values) & (values > least)).sum())
                raise ConfigError(
                    f"The {name} has {bad} pixels that are not finite{' or not above 0' if name == 'flat' else ''}. "
                    "Take it again, or give them the value of their neighbours."
                )

    @classmethod
    def of(cls, camera: Camera) -> Counts:
        """What this camera fills slots with, uncorrected."""
        return cls((camera.shape[0], camera.shape[1]), camera.format, camera.bit_depth)

    @property
    def corrected(self) -> bool:
        """Whether there is a dark or a flat."""
        return self.dark is not None or self.flat is not None

    def cut(self, pixels: NDArray[Any], rows: slice, columns: slice) -> NDArray[Any]:
        """A view of the slot of a part, which begins with a byte: in every format a multiple of 8 px does."""
        if LAYOUTS[self.pixel_format].packed:
            width = columns.stop - columns.start
            start = columns.start * LAYOUTS[self.pixel_format].bits // 8
            columns = slice(start, start + slot_shape(self.pixel_format, (1, width))[1])
        return pixels[rows, columns]

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
        if not self.corrected:
            np.multiply(counts, scale, out=out)
            return
        np.subtract(counts, np.float32(0) if self.dark is None else self.dark, out=out, casting="unsafe")
        if self.flat is not None:
            np.divide(out, self.flat, out=out)
        np.multiply(out, scale, out=out)

    def picture(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The counts that the network is given, (height, width) of `result_dtype`: what screens and files show as raw.

        A view of ``pixels`` for mono8, mono16 and rgb8, else a pass over them.
        """
        counts = one_channel(pixels, self.pixel_format, self.shape_px[1])
        return counts if counts.dtype == self.result_dtype else np.rint(counts).astype(self.result_dtype)

    def from_network(self, values: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Write 0..1 values of any shape as counts, rounded to even. ``values`` is used as scratch memory.

        The network's graph ends in a clamp to 0..1, so no count can exceed full scale.
        """
        np.multiply(values, np.float32(self.full_scale), out=values)
        np.rint(values, out=values)
        np.copyto(out, values, casting="unsafe")


def kept_for(pixels: NDArray[Any], kept: Mapping[int, T]) -> T:
    """What an engine keeps for one of its slots, by the slot's address.

    Raises
    ------
    EngineError
        It has no such slot: another engine has, or none, or it was closed.
    """
    try:
        return kept[pixels.ctypes.data]
    except KeyError:
        raise EngineError("This frame is no slot of the engine: fill slots of allocate(), before close().") from None


def full_scale(bit_depth: int) -> int:
    """The largest count of a bit depth."""
    return (1 << bit_depth) - 1


def raw_words(pixel_format: PixelFormat) -> str:
    """What `Counts.picture` is of a format, for files."""
    if pixel_format == "rgb8":
        return "the green channel"
    if pixel_format.startswith("bayer"):
        return "green, at red and blue sites the mean of its neighbours"
    return "the camera's counts"


def one_channel(pixels: NDArray[Any], pixel_format: PixelFormat, width: int) -> NDArray[Any]:
    """The counts of a slot as one channel, (height, width); a view of ``pixels`` for mono8, mono16 and rgb8.

    Of colour it is the green: the networks know the point spread function at one wavelength, near 550 nm, and a mix
    with red and blue would blend three of them. At a Bayer mosaic's red and blue sites it is the mean of the green
    neighbours inside the frame, float32.
    """
    layout = LAYOUTS[pixel_format]
    if layout.packed:
        return unpacked(pixels, width, layout)
    if pixel_format == "rgb8":
        return pixels[..., 1]
    if pixel_format.startswith("bayer"):
        return _green(pixels, first_is_green=pixel_format[len("bayer_")] == "g")
    return pixels


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

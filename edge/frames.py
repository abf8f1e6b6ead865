"""Frame, Tile and the FramePool whose slots are engine memory.

A slot has one owner at a time: the pool, then the camera that fills it, then the queue and the engine, then the pool
again. Whoever takes a slot out with :meth:`FramePool.acquire` gives it back with :meth:`FramePool.release`, once.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.config import PixelFormat as PixelFormat
from edge.errors import CameraTimeoutError
from firmware_bridge.pzt import PositionUm


class Layout(NamedTuple):
    """How a format lies in a frame slot: ``bits`` of a pixel there, ``depth`` of one of its counts.

    ``slot`` is the slot's type, ``result`` that of the counts an engine delivers: 16 bits where packed.
    """

    slot: type[np.uint8] | type[np.uint16]
    bits: int
    depth: int
    result: type[np.uint8] | type[np.uint16]

    @property
    def packed(self) -> bool:
        """Whether a pixel may begin inside a byte."""
        return self.bits % 8 != 0

    @property
    def phases(self) -> Iterator[tuple[slice, slice, slice, int]]:
        """Where the pixels of a packed row lie: for each place in a byte that one may begin at, which pixels do, their
        low and their high bytes, and the bit of the low byte that is their first.

        A pixel of 10 or 12 bits lies in exactly two bytes.
        """
        period = 8 // math.gcd(self.bits, 8)  # pixels until one begins with a byte again
        for phase in range(period):
            byte, shift = divmod(phase * self.bits, 8)
            stride = period * self.bits // 8
            yield slice(phase, None, period), slice(byte, None, stride), slice(byte + 1, None, stride), shift


_BYTE = Layout(np.uint8, 8, 8, np.uint8)
LAYOUTS: Mapping[PixelFormat, Layout] = {
    "mono8": _BYTE,
    "mono10p": Layout(np.uint8, 10, 10, np.uint16),
    "mono12p": Layout(np.uint8, 12, 12, np.uint16),
    "mono16": Layout(np.uint16, 16, 16, np.uint16),
    "bayer_rg8": _BYTE,
    "bayer_gr8": _BYTE,
    "bayer_gb8": _BYTE,
    "bayer_bg8": _BYTE,
    "rgb8": Layout(np.uint8, 24, 8, np.uint8),
}

DTYPE: Mapping[PixelFormat, type[np.uint8] | type[np.uint16]] = {name: one.slot for name, one in LAYOUTS.items()}
"""Of a slot."""


def slot_shape(pixel_format: PixelFormat, shape_px: tuple[int, ...]) -> tuple[int, ...]:
    """Of a slot for frames of (height, width): a row is bytes where packed, and rgb8 has its colours last.

    Examples
    --------
    >>> slot_shape("mono12p", (4, 5)), slot_shape("mono16", (4, 5)), slot_shape("rgb8", (4, 5))
    ((4, 8), (4, 5), (4, 5, 3))
    """
    height, width = shape_px[:2]
    layout = LAYOUTS[pixel_format]
    if layout.packed:
        return height, -(-width * layout.bits // 8)
    return (height, width, 3) if pixel_format == "rgb8" else (height, width)


def pack(counts: NDArray[np.uint16], layout: Layout, out: NDArray[np.uint8]) -> None:
    """Write counts (height, width) as the rows of a packed slot, as a sensor's read-out does.

    Examples
    --------
    >>> row = np.empty((1, 3), np.uint8)
    >>> pack(np.array([[0x321, 0x654]], np.uint16), LAYOUTS["mono12p"], row)
    >>> row.tobytes().hex()
    '214365'
    """
    out[:] = 0
    for pixels, low, high, shift in layout.phases:
        shifted = counts[:, pixels] << np.uint16(shift)
        out[:, low][:, : shifted.shape[1]] |= (shifted & 0xFF).astype(np.uint8)
        out[:, high][:, : shifted.shape[1]] |= (shifted >> 8).astype(np.uint8)


def unpacked(rows: NDArray[np.uint8], width: int, layout: Layout) -> NDArray[np.uint16]:
    """Counts (height, width) of the rows of a packed slot.

    Examples
    --------
    >>> [hex(count) for count in unpacked(np.array([[0x21, 0x43, 0x65]], np.uint8), 2, LAYOUTS["mono12p"])[0]]
    ['0x321', '0x654']
    """
    counts = np.empty((len(rows), width), np.uint16)
    for pixels, *pair, shift in layout.phases:
        target = counts[:, pixels]
        low, high = (rows[:, every][:, : target.shape[1]] for every in pair)
        np.left_shift(high, 8, out=target, dtype=np.uint16)
        np.bitwise_or(target, low, out=target)
        np.right_shift(target, shift, out=target)
        np.bitwise_and(target, (1 << layout.bits) - 1, out=target)
    return counts


SLOT_ALIGNMENT = 64
"""Bytes. A cache line, and what OpenVINO wants of memory it reads in place."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Copies (bytes moved unchanged) and passes (bytes converted) a frame has cost, counted where they happen."""

    copies: int = 0
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One exposure as the camera left it.

    Attributes
    ----------
    pixels : a slot of the pool, as :func:`slot_shape` says: counts of (height, width), packed or coloured.
    index : the camera's own count from 0; a jump is a loss in the camera.
    t_exposure_end_ns : monotonic, the end of the exposure. Latency counts from here.
    position_um : the measured stage position the frame was taken at, or None when there is no stage.
    true_position_um : where a simulated stage really was; None on a real instrument, which nobody can know.
    ledger : what filling the slot cost, see :class:`Ledger`.
    """

    pixels: NDArray[Any]
    index: int
    t_exposure_end_ns: int
    position_um: PositionUm | None = None
    true_position_um: PositionUm | None = None
    ledger: Ledger = Ledger()


@dataclass(frozen=True, slots=True)
class Tile:
    """What the engine made of one frame.

    ``outputs`` by name, (height, width) or in colour (height, width, 3). The arrays belong to the engine and are valid
    until its next call: copy what you keep.
    """

    outputs: Mapping[str, NDArray[Any]]
    index: int
    position_um: PositionUm | None = None
    ledger: Ledger = Ledger()


@dataclass(frozen=True, slots=True)
class Gap:
    """A frame that should be here and is not."""

    index: int
    reason: str


class FramePool:
    """A fixed set of frame slots in memory the engine reads without a copy.

    Parameters
    ----------
    slots
        Arrays of one shape and dtype, made by ``Engine.allocate``; their memory outlives the pool.
    """

    def __init__(self, slots: Sequence[NDArray[Any]]) -> None:
        self.shape: tuple[int, ...] = slots[0].shape
        self.dtype: np.dtype[Any] = slots[0].dtype
        self.slots = tuple(slots)
        self._addresses = {slot.ctypes.data for slot in slots}
        self._free = deque(slots)
        self._changed = threading.Condition()

    def acquire(self, *, timeout_s: float) -> NDArray[Any]:
        """Take a free slot, waiting for one.

        Raises
        ------
        CameraTimeoutError
            No slot became free in time: whoever reads the frames is stuck or too slow.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._free, timeout_s):
                raise CameraTimeoutError(
                    f"All {len(self.slots)} frame slots were still in use after {timeout_s:g} s: the engine does not "
                    "keep up. Lower the frame rate or use a smaller model."
                )
            return self._free.popleft()

    def release(self, pixels: NDArray[Any]) -> None:
        """Give a slot back.

        Raises
        ------
        ValueError
            The array is no slot of this pool, or the slot was given back before: two owners would share memory.
        """
        with self._changed:
            address = pixels.ctypes.data
            if address not in self._addresses:
                raise ValueError("this array is not a slot of this pool")
            if any(slot.ctypes.data == address for slot in self._free):
                raise ValueError("this slot was released twice")
            self._free.append(pixels)
            self._changed.notify()

    @property
    def free(self) -> int:
        """Slots nobody holds at this moment."""
        return len(self._free)


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialised C-contiguous array that starts on a :data:`SLOT_ALIGNMENT` boundary."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + SLOT_ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % SLOT_ALIGNMENT
    return np.asarray(raw[start : start + size].view(dtype).reshape(shape))

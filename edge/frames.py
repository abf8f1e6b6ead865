"""Frame, Tile and the FramePool whose slots are engine memory.

A slot has one owner at a time: the pool, then the camera that fills it, then the queue and the engine, then the pool
again. Whoever takes a slot out with :meth:`FramePool.acquire` gives it back with :meth:`FramePool.release`, once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.errors import CameraTimeoutError
from firmware_bridge.pzt import PositionUm

PixelFormat = Literal["mono8", "mono16"]
"""What a camera delivers. Packed and Bayer formats arrive with the cameras that speak them."""

DTYPE: Mapping[PixelFormat, type[np.uint8] | type[np.uint16]] = {"mono8": np.uint8, "mono16": np.uint16}

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
    pixels : array (height, width), counts; a slot of the pool.
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

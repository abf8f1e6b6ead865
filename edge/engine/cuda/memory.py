"""Memory of the loop: mapped host memory that both sides work in, and device memory for what lies between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from edge.engine.cuda.thread import GpuThread, explained

STRIDE = 256
"""Bytes. Every array begins on a multiple of it: what CUDA gives its own allocations."""


class MappedMemory:
    """Page-locked host arrays the GPU reads and writes in place: pieces of one allocation.

    Parameters
    ----------
    pieces
        (shape, dtype) of each array.

    Attributes
    ----------
    arrays
        What the host sees, C-contiguous. The memory is freed after :meth:`close` and the last view of any of them.
    addresses
        Where the GPU sees each of them.

    Raises
    ------
    EngineError
        There is not so much memory to lock.
    """

    def __init__(self, pieces: Sequence[tuple[tuple[int, ...], Any]]) -> None:
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in pieces]
        ends = np.cumsum([-(-size // STRIDE) * STRIDE for size in sizes]).tolist()
        with explained(f"{ends[-1] / 2**20:.1f} MB of host memory cannot be locked and mapped"):
            block = cuda.pagelocked_empty(
                ends[-1], np.uint8, mem_flags=cuda.host_alloc_flags.DEVICEMAP | cuda.host_alloc_flags.PORTABLE
            )
            first = int(block.base.get_device_pointer())
        starts = (0, *ends[:-1])
        self.addresses = tuple(first + start for start in starts)
        lent = GpuThread.current().lend(block)
        self.arrays: tuple[NDArray[Any], ...] = tuple(
            lent[start : start + size].view(dtype).reshape(shape)
            for start, size, (shape, dtype) in zip(starts, sizes, pieces, strict=True)
        )

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        self.arrays = ()


class DeviceMemory:
    """Device memory that is allocated at the start and freed in :meth:`close`."""

    def __init__(self) -> None:
        self._allocations: list[Any] = []

    def empty(self, size: int, what: str) -> int:
        """The address of ``size`` bytes for ``what``, a multiple of :data:`STRIDE`.

        Raises
        ------
        EngineError
            The GPU has not so much left.
        """
        with explained(f"{size / 2**20:.1f} MB of GPU memory for {what} cannot be had"):
            self._allocations.append(cuda.mem_alloc(size))
        return int(self._allocations[-1])

    def holding(self, values: NDArray[np.float32], what: str) -> int:
        """The address of a copy of ``values``, for what is the same in all frames."""
        address = self.empty(values.nbytes, what)
        with explained(f"{what} cannot be copied to the GPU"):
            cuda.memcpy_htod(address, np.ascontiguousarray(values))
        return address

    def close(self) -> None:
        """Free everything. May be called twice."""
        while self._allocations:
            self._allocations.pop().free()

"""What `TensorRtEngine` stands on, without CUDA: the thread, and a loop that prepares and delivers in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from edge.engine.prepare import Counts, kept_for
from edge.errors import EngineError
from edge.frames import FramePool
from export.manifest import Manifest

STREAM = 0x5EED
_T = TypeVar("_T")


class HostThread:
    """As `edge.engine.cuda.thread.GpuThread`."""

    def __init__(self, device: int = 0) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu")
        self._closed = False

    def run(self, call: Callable[[], _T], *, timeout_s: float | None = None) -> _T:
        if self._closed:
            raise EngineError("The GPU was closed. Load the engine again.")
        return self._worker.submit(call).result()

    def close(self, last: Callable[[], object] = lambda: None) -> None:
        if not self._closed:
            self.run(last)
            self._closed = True
            self._worker.shutdown()


class HostLoop:
    """As `edge.engine.cuda.loop.CudaLoop`; ``misalign`` puts its tensors where TensorRT refuses them."""

    misalign = 0

    def __init__(self, executable: Any, counts: Counts, manifest: Manifest, *, graphs: bool = True) -> None:
        self.captured = False
        self._slots: dict[int, np.ndarray] = {}
        self._executable, self._counts = executable, counts
        height, width = counts.shape_px
        sides = (height * manifest.scale, width * manifest.scale)
        self._input = _tensor((1, 1, height, width), self.misalign)
        self._tensors = {spec.name: _tensor((1, spec.channels, *sides), self.misalign) for spec in manifest.outputs}
        self._outputs = {
            spec.name: np.empty((*sides, 3) if spec.channels == 3 else sides, counts.result_dtype)
            for spec in manifest.outputs
        }
        tensors = {manifest.inputs[0].name: self._input, **self._tensors}
        executable.bind({name: tensor.ctypes.data for name, tensor in tensors.items()})

    def allocate(self, slots: int) -> FramePool:
        pool = FramePool([np.zeros(self._counts.slot_shape, self._counts.dtype) for _ in range(slots)])
        self._slots |= {slot.ctypes.data: slot for slot in pool.slots}
        return pool

    def infer(self, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        self._counts.to_network(kept_for(pixels, self._slots), self._input[0, 0])
        self._executable.enqueue(STREAM)
        for name, tensor in self._tensors.items():
            picture = np.moveaxis(np.atleast_3d(self._outputs[name]), 2, 0)
            self._counts.from_network(tensor[0].copy(), picture)
        return self._outputs

    def close(self) -> None:
        self._tensors.clear()


def _tensor(shape: tuple[int, ...], offset: int) -> np.ndarray:
    """Memory as cuMemAlloc gives it: on a multiple of 256 bytes (plus ``offset``)."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + 512, np.uint8)
    start = -raw.ctypes.data % 256 + offset
    return raw[start : start + size].view(np.float32).reshape(shape)

"""A frame's way over the GPU: counts in mapped memory, prepare kernel, network, deliver kernels, counts again."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from edge.engine.cuda.graph import Graph
from edge.engine.cuda.kernels import Kernels
from edge.engine.cuda.memory import DeviceMemory, MappedMemory
from edge.engine.cuda.thread import GpuThread, explained
from edge.engine.prepare import Counts, kept_for
from edge.errors import EngineError
from edge.frames import FramePool
from export.manifest import Manifest, TensorSpec

log = logging.getLogger(__name__)


class Executable(Protocol):
    """What runs between prepare and deliver: a TensorRT context."""

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Take the device pointers of all tensors by name; once, before the first :meth:`enqueue`."""

    def enqueue(self, stream: int) -> None:
        """Launch the network on a CUDA stream, without waiting.

        Raises
        ------
        EngineError
            It was refused.
        """


class CudaLoop:
    """All memory and all launches of one camera's frames; built, used and closed in the :class:`GpuThread`.

    Frame slots and results are host memory that the GPU works on in place, everything between is device memory, all of
    it allocated before the first frame: :meth:`infer` allocates nothing and copies nothing.

    Parameters
    ----------
    executable
        Bound here; its owner closes it, after this.
    graphs
        Record each slot's launches as a CUDA graph.

    Attributes
    ----------
    captured
        Whether frames replay a graph; None before :meth:`allocate`.
    copies_per_frame, passes_per_frame
        Of the host: none. The tests hold the first against what the driver is asked to copy.

    Raises
    ------
    EngineError
        The GPU has too little memory or no compiler, or the network's edges are not float32.
    """

    copies_per_frame = 0
    passes_per_frame = 0

    def __init__(self, executable: Executable, counts: Counts, manifest: Manifest, *, graphs: bool = True) -> None:
        self.captured: bool | None = None
        self._executable, self._counts, self._graphs = executable, counts, graphs
        self._owned = contextlib.ExitStack()
        self._launch: dict[int, Callable[[], None]] = {}
        self._deliver: list[tuple[Callable[..., None], tuple[float, ...]]] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._build(manifest)
            undo.pop_all()

    def _build(self, manifest: Manifest) -> None:
        counts, (height, width) = self._counts, self._counts.shape_px[:2]
        for spec in (*manifest.inputs, *manifest.outputs):
            if spec.dtype != "float32":
                raise EngineError(f"{manifest.name}: {spec.name} is {spec.dtype}, expected float32 at the edges.")
        if len(manifest.inputs) != 1:
            raise EngineError(f"{manifest.name} takes {len(manifest.inputs)} inputs, expected one: the frame.")
        with explained("a stream cannot be had"):
            # 1: it does not wait for the default stream, where other libraries may be at work.
            self._stream = cuda.Stream(1)
            self._done = cuda.Event(cuda.event_flags.BLOCKING_SYNC | cuda.event_flags.DISABLE_TIMING)
        kernels = Kernels()
        self._owned.callback(kernels.close)
        memory = DeviceMemory()
        self._owned.callback(memory.close)

        frame = memory.empty(4 * height * width, f"the network's input {manifest.inputs[0].name}")
        addresses = {manifest.inputs[0].name: frame}
        self._prepare = kernels.launcher(f"prepare_{counts.pixel_format}", threads=(32, 8), over_px=(width, height))
        self._prepare_into = (
            0 if counts.dark is None else memory.holding(counts.dark, "the dark frame"),
            0 if counts.flat is None else memory.holding(counts.flat, "the flat field"),
            frame,
            width,
            height,
            1 / counts.full_scale,
        )

        sides = (manifest.scale * height, manifest.scale * width)
        pixels = math.prod(sides)
        results = MappedMemory([(_picture(spec, sides), counts.result_dtype) for spec in manifest.outputs])
        self._owned.callback(results.close)
        self._outputs = dict(zip(manifest.output_names, results.arrays, strict=True))
        for spec, picture in zip(manifest.outputs, results.addresses, strict=True):
            planes = addresses[spec.name] = memory.empty(4 * spec.channels * pixels, f"the output {spec.name}")
            kind = f"{'rgb' if spec.channels == 3 else 'grey'}{8 * np.dtype(counts.result_dtype).itemsize}"
            deliver = kernels.launcher(f"deliver_{kind}", threads=(256, 1), over_px=(pixels, 1))
            self._deliver.append((deliver, (planes, picture, pixels, counts.full_scale)))
        self._executable.bind(addresses)

    def allocate(self, slots: int) -> FramePool:
        """``slots`` frames in mapped memory, cleared; the network runs on one of them, to warm up and to try its graph.

        Raises
        ------
        EngineError
            There is not so much memory to lock, or the network does not run.
        """
        ring = MappedMemory([(self._counts.slot_shape, self._counts.dtype)] * slots)
        self._owned.callback(ring.close)
        work = []
        for pixels, address in zip(ring.arrays, ring.addresses, strict=True):
            pixels[...] = 0
            work.append(functools.partial(self._enqueue, address, pixels.strides[0]))
        self._run(work[0])
        launch = self._record(ring.arrays, work) or work
        self._launch.update(zip((pixels.ctypes.data for pixels in ring.arrays), launch, strict=True))
        return FramePool(ring.arrays)

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """The outputs by name, (h, w) or (h, w, 3), counts like the camera's, in mapped memory until the next call.

        Raises
        ------
        EngineError
            ``pixels`` is no slot of :meth:`allocate`, or the GPU failed.
        """
        self._run(kept_for(pixels, self._launch))
        return self._outputs

    def close(self) -> None:
        """Give everything back; slots and outputs somebody holds stay readable. May be called twice.

        Raises
        ------
        EngineError
            This is not the thread that owns the GPU.
        """
        GpuThread.current()
        self._launch.clear()
        self._outputs = {}
        try:
            self._owned.close()
        except EngineError as exc:
            log.warning("a part of the GPU's memory was not given back: %s", str(exc))
        self._stream = self._done = None  # pycuda frees them with the last reference, in this thread or never

    def _enqueue(self, frame: int, pitch: int) -> None:
        stream = self._stream.handle
        self._prepare(stream, frame, pitch, *self._prepare_into)
        self._executable.enqueue(stream)
        for deliver, arguments in self._deliver:
            deliver(stream, *arguments)

    def _run(self, launch: Callable[[], None]) -> None:
        with explained("The GPU did not finish a frame"):
            launch()
            self._done.record(self._stream)
            self._done.synchronize()

    def _record(
        self, frames: Sequence[NDArray[Any]], work: Sequence[Callable[[], None]]
    ) -> list[Callable[[], None]] | None:
        if not self._graphs:
            self.captured = False
            return None
        graphs = []
        try:
            for enqueue in work:
                graphs.append(Graph(self._stream, enqueue))
                self._owned.callback(graphs[-1].close)
            for frame, enqueue, graph in zip(frames, work, graphs, strict=True):
                self._prove(frame, enqueue, graph.launch)
        except EngineError as exc:
            self._graphs = self.captured = False
            # As text: a log keeps its records, and with the error whatever of pycuda its traceback holds.
            log.warning("no CUDA graphs, the launches of a frame are enqueued one by one: %s", str(exc))
            self._run(work[0])  # what spoiled the recording may have hit more than the recording
            return None
        self.captured = True
        return [graph.launch for graph in graphs]

    def _prove(self, frame: NDArray[Any], enqueue: Callable[[], None], replay: Callable[[], None]) -> None:
        """Believe a graph when it gives the picture of a frame that its launches gave, after they had another one.

        What a library launches on a stream of its own is no error while this one records: it is missing afterwards.
        """
        full_scale = self._counts.full_scale
        least = 0.01 * full_scale  # not 0: a network may add up in any order
        noise = np.random.default_rng(0).integers(0, 256, frame.nbytes, np.uint8).view(frame.dtype)
        noise = (noise & full_scale if frame.itemsize > 1 else noise).reshape(frame.shape)

        def pictures(counts: NDArray[Any] | int, launch: Callable[[], None]) -> list[NDArray[np.int32]]:
            frame[...] = counts
            self._run(launch)
            return [picture.astype(np.int32) for picture in self._outputs.values()]

        wanted, black = pictures(noise, enqueue), pictures(0, enqueue)
        found = pictures(noise, replay)
        frame[...] = 0
        if (differ := min(map(_difference, wanted, black))) <= least:
            raise EngineError(
                f"noise and black are {differ} of {full_scale} counts apart, so that a replay shows nothing"
            )
        if (off := max(map(_difference, wanted, found))) > least:
            raise EngineError(f"the replay of a frame is up to {off} of {full_scale} counts off")


def _difference(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    return int(np.abs(one - other).max())


def _picture(spec: TensorSpec, sides: tuple[int, int]) -> tuple[int, ...]:
    return (*sides, 3) if spec.channels == 3 else sides

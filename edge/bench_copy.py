"""`superlens bench copy`: how often the bytes of a frame are copied on their way, per kind of camera.

The figures come from the ledgers of frames that ran through the pipeline into the engine. Two of the cameras stand for
how drivers deliver: one is told where to put a frame (V4L2's USERPTR, GenICam's announced buffers), the other hands out
memory of its own (V4L2's MMAP). The kernel writes their frames there, as a device's DMA does, and nothing else may:
each frame is compared with what was sent, in the slot it arrived in.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge import pipeline
from edge.bench import render
from edge.cameras import open_camera
from edge.cameras.simulated import SimulatedCamera
from edge.config import Config
from edge.devices import Camera
from edge.engine import find_bundle, load_for
from edge.engine.prepare import Counts
from edge.errors import CameraError, CameraTimeoutError, ConfigError, EdgeError
from edge.frames import LAYOUTS, Frame, FramePool, Ledger, PixelFormat, Tile, aligned_empty, slot_shape
from firmware_bridge.simulator.controller import TRAVEL_UM

FRAMES = 32
SHAPE_PX = (256, 256)


class FileCamera:
    """A device of another's: a file that is read over and over, by the kernel, straight into memory it is given.

    Parameters
    ----------
    path
        Frames one after the other, as bytes.
    own_buffer
        Deliver in a buffer of its own, from which each frame has to be copied into a slot.
    """

    shutter: Literal["global", "rolling"] = "global"
    pixel_size_nm: float | None = None
    frame_time_s: float | None = None
    microscope: str | None = None
    distortion: tuple[tuple[float, float], ...] | None = None
    simulated = True
    lossless = True

    def __init__(self, path: Path, shape: tuple[int, ...], pixel_format: PixelFormat, *, own_buffer: bool) -> None:
        self.name = "own buffer" if own_buffer else "userptr"
        self.shape, self.format = shape, pixel_format
        layout, slot = LAYOUTS[pixel_format], slot_shape(pixel_format, shape)
        self.bit_depth = layout.depth
        self._buffer = aligned_empty(slot, layout.slot) if own_buffer else None
        self._file = os.open(path, os.O_RDONLY)
        self._length = os.fstat(self._file).st_size // (np.dtype(layout.slot).itemsize * math.prod(slot))
        self._stopped = threading.Event()

    def start(self, pool: FramePool, *, exposure_s: float, triggered: bool) -> None:
        """From the first frame on; nothing triggers a file."""
        del exposure_s, triggered
        self._pool, self._index = pool, 0
        self._stopped.clear()

    def next_frame(self, *, timeout_s: float) -> Frame:
        """The next frame, where this kind of camera leaves it; a copy is counted where it is made."""
        if self._stopped.is_set():
            raise CameraTimeoutError(f"The camera {self.name} was stopped.")
        slot = self._pool.acquire(timeout_s=timeout_s)
        target = slot if self._buffer is None else self._buffer
        if os.preadv(self._file, [target.data], self._index % self._length * target.nbytes) != target.nbytes:
            self._pool.release(slot)
            raise CameraError(f"The camera {self.name} sent half a frame.")
        t_exposure_end_ns, ledger = time.monotonic_ns(), Ledger()
        if self._buffer is not None:
            slot[:] = self._buffer
            ledger = Ledger(copies=1)
        self._index += 1
        return Frame(slot, self._index - 1, t_exposure_end_ns, ledger=ledger)

    def stop(self) -> None:
        """End."""
        self._stopped.set()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class WholeFrames:
    """A sink that holds every frame against what was sent, in the memory that the engine read."""

    def __init__(self, sent: NDArray[Any] | None, pool: FramePool, camera: str) -> None:
        self._sent, self._camera = sent, camera
        self._slots = {slot.ctypes.data for slot in pool.slots}

    def write(self, frame: Frame, tile: Tile) -> None:
        """EdgeError where it lies elsewhere or is another."""
        del tile
        if frame.pixels.ctypes.data not in self._slots:
            raise EdgeError(f"The camera {self._camera} left frame {frame.index} outside the engine's memory.")
        if self._sent is not None and not np.array_equal(frame.pixels, self._sent[frame.index % len(self._sent)]):
            raise EdgeError(f"Frame {frame.index} of the camera {self._camera} is not what was sent.")

    def skip(self, index: int, reason: str) -> None:
        """No camera here loses frames."""
        raise EdgeError(f"The camera {self._camera} lost frame {index}: {reason}.")

    def close(self) -> None:
        """Nothing is held."""


def bench_copy(config: Config, *, frames: int = FRAMES) -> dict[str, float]:
    """Copies per frame by kind of camera: ``simulated``, ``replay`` (of mono8 and mono16), ``userptr`` and
    ``own_buffer``.

    Raises
    ------
    EdgeError
        A frame did not arrive as it was sent.
    """
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="superlens-")))
        simulated = open_camera(config, pose_um=lambda: TRAVEL_UM.centre)
        closing.callback(simulated.close)
        if not isinstance(simulated, SimulatedCamera):
            raise ConfigError("bench copy draws its frames with the simulated camera. Leave --camera out.")
        engine = load_for(
            find_bundle(config.engine.model),
            Counts.of(simulated),
            backend=config.engine.backend,
            precision=config.engine.precision,
            hint=config.engine.hint,
        )
        closing.callback(engine.close)
        pool = engine.allocate(pipeline.SLOTS)
        sent = render(simulated, pool, exposure_s=config.camera.exposure_s, frames=8)
        raw, recorded = folder / "frames.raw", folder / "frames.npz"
        sent.tofile(raw)
        np.savez(recorded, sent)
        replayed = {"driver": "replay", "path": recorded}
        cameras: dict[str, Callable[[], Camera]] = {
            "simulated": lambda: simulated,
            "replay": lambda: open_camera(
                config.model_copy(update={"camera": config.camera.model_copy(update=replayed)}), pose_um=None
            ),
            "userptr": lambda: FileCamera(raw, simulated.shape, simulated.format, own_buffer=False),
            "own_buffer": lambda: FileCamera(raw, simulated.shape, simulated.format, own_buffer=True),
        }
        if simulated.format not in ("mono8", "mono16"):
            del cameras["replay"]  # no recording holds another format
        figures = {}
        for name, make in cameras.items():
            camera = make()
            closing.callback(camera.close)
            sinks = [WholeFrames(None if name == "simulated" else sent, pool, camera.name)]
            figures[name] = pipeline.copies_per_frame(camera, engine, pool, sinks, exposure_s=0.005, frames=frames)
        return figures

"""The replay camera: recorded frames instead of a microscope. Lossless, and as fast as its reader unless paced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from edge.config import Config
from edge.errors import CameraError, CameraTimeoutError, ConfigError
from edge.frames import Frame, FramePool, Ledger
from edge.images import Stack, open_stack
from firmware_bridge.pzt import PositionUm


def open_replay(config: Config, pose_um: Callable[[], PositionUm] | None) -> ReplayCamera:
    """Open ``[camera] path``; the pose is of no use to recorded frames."""
    del pose_um
    if config.camera.path is None:
        raise ConfigError("The replay camera needs a path: --camera replay:FILE, or path in [camera].")
    stack = open_stack(config.camera.path, bit_depth=config.camera.bit_depth)
    return ReplayCamera(stack, fps=config.camera.fps, pixel_size_nm=config.camera.pixel_size_nm)


class ReplayCamera:
    """Delivers the frames of a stack in order, and begins again when more are asked for.

    Parameters
    ----------
    fps
        Frames per second; None delivers as fast as frames are taken. No frame is ever dropped.
    pixel_size_nm
        On the specimen; None takes what the file says of itself, if it does.
    """

    shutter: Literal["global", "rolling"] = "global"
    lossless = True
    microscope: str | None = None
    distortion: tuple[tuple[float, float], ...] | None = None

    def __init__(
        self,
        stack: Stack,
        *,
        fps: float | None,
        pixel_size_nm: float | None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.name = f"replay of {stack.source.name}"
        self.shape: tuple[int, ...] = stack.shape
        self.format = stack.format
        self.bit_depth = stack.bit_depth
        self.simulated = stack.origin.simulated  # a recording of a simulation is one
        self.pixel_size_nm = pixel_size_nm if pixel_size_nm is not None else stack.origin.pixel_size_nm
        self.frame_time_s = None if fps is None else 1 / fps
        self._stack = stack
        self._stopped = threading.Event()
        self._stopped.set()
        self._clock_ns, self._sleep = clock_ns, sleep or self._stopped.wait
        self._index = 0
        self._due_ns = 0

    def start(self, pool: FramePool, *, exposure_s: float, triggered: bool) -> None:
        """Begin at the first frame. A recording hears no trigger, so ``triggered`` is refused."""
        del exposure_s
        if triggered:
            raise CameraError("A replay cannot be triggered: scan with the simulated camera, or with a real one.")
        self._pool, self._index, self._due_ns = pool, 0, self._clock_ns()
        self._stopped.clear()

    def next_frame(self, *, timeout_s: float) -> Frame:
        """The next recorded frame, copied into a free slot."""
        if self._stopped.is_set():
            raise CameraError("The replay is not started.")
        slot = self._pool.acquire(timeout_s=timeout_s)
        try:
            if self.frame_time_s is not None:
                self._due_ns += round(self.frame_time_s * 1e9)
                self._sleep(max(0, self._due_ns - self._clock_ns()) / 1e9)
                if self._stopped.is_set():
                    raise CameraTimeoutError("The replay was stopped.")
            t_exposure_end_ns = self._clock_ns()
            slot[:] = self._stack.read(self._index % self._stack.length)
        except BaseException:
            self._pool.release(slot)
            raise
        frame = Frame(slot, self._index, t_exposure_end_ns, ledger=Ledger(copies=1, passes=self._stack.passes))
        self._index += 1
        return frame

    def stop(self) -> None:
        """End; a wait for the next frame, in another thread, ends with a CameraTimeoutError."""
        self._stopped.set()

    def close(self) -> None:
        """Close the file."""
        self.stop()
        self._stack.close()

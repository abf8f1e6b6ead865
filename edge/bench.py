"""`superlens bench loop`: the whole loop against the bare engine, in one run, on this machine.

What is compared is the same engine object on the same slots. At least 64 distinct frames are rendered before the clock
starts and written into the slots as a camera's DMA would; every delivered frame's number and checksum are verified; a
viewer in a process of its own reads /video all the time. A window during which other programs used more than 0.05 core
is thrown away and repeated.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import pipeline
from edge.cameras.simulated import DEFAULT_FPS, SimulatedCamera
from edge.config import Config
from edge.daemon import Daemon
from edge.devices import FrameSink
from edge.errors import ConfigError, EdgeError
from edge.frames import Frame, FramePool, Tile
from edge.instrument import Instrument
from edge.jobs import preview_sink
from edge.meter import FlowMeter, peak_rss_mb, rss_mb
from edge.windows import OtherWork, quiet, undisturbed
from firmware_bridge.simulator.controller import TRAVEL_UM

DISTINCT_FRAMES = 64
SETTLED_FRAME = 200
"""Memory growth is counted from this frame on: before it, caches and threads still come into being."""
PATH_UM = 8.0
"""The distinct frames are taken along a line of this length through the middle of the travel."""

_VIEWER = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1]) as stream:
    print("watching", flush=True)
    while stream.read(65536):
        pass
"""


@dataclass(frozen=True, slots=True)
class Window:
    """One measurement of both, and how much of the machine others used meanwhile."""

    engine_fps: float
    loop_fps: float
    other_cores: float


class RecordedSource:
    """Frames from memory, numbered, into free slots: what a camera with DMA costs the host, and nothing else."""

    def __init__(self, frames: NDArray[Any], pool: FramePool, *, fps: float | None = None) -> None:
        self._frames, self._pool, self._fps = frames, pool, fps

    def __call__(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames until ``stop`` is set; paced when a rate was given."""
        due_ns, index = time.monotonic_ns(), 0
        while not stop.is_set():
            if self._fps is not None:
                due_ns += round(1e9 / self._fps)
                time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
            slot = self._pool.acquire(timeout_s=10)
            exposure_end_ns = time.monotonic_ns()
            slot[:] = self._frames[index % len(self._frames)]
            yield Frame(slot, index, exposure_end_ns)
            index += 1


class CheckSink:
    """Verifies that each frame arrives whole; in lossless windows, also that none is missing."""

    def __init__(self, frames: NDArray[Any], *, lossless: bool, memory: MemoryWatch) -> None:
        self._checksums = [_checksum(frame) for frame in frames]
        self._lossless, self._memory = lossless, memory
        self._next = 0

    def write(self, frame: Frame, tile: Tile) -> None:
        """Compare number and checksum."""
        if tile.index != frame.index or frame.index < self._next or (self._lossless and frame.index != self._next):
            raise EdgeError(f"bench: frame {frame.index} came where {self._next} was due")
        self._next = frame.index + 1
        if _checksum(frame.pixels) != self._checksums[frame.index % len(self._checksums)]:
            raise EdgeError(f"bench: frame {frame.index} was changed on its way")
        self._memory.frame()

    def skip(self, index: int, reason: str) -> None:
        """No source here skips."""
        raise EdgeError(f"bench: frame {index} was skipped: {reason}")

    def close(self) -> None:
        """Nothing is held."""


class MemoryWatch:
    """Memory at frame 200 and now, over all windows."""

    def __init__(self) -> None:
        self.frames = 0
        self._settled_mb = float("nan")

    def frame(self) -> None:
        """One more frame has passed."""
        self.frames += 1
        if self.frames == SETTLED_FRAME:
            self._settled_mb = rss_mb()

    def growth_mb(self) -> float:
        """MB gained since frame 200."""
        return rss_mb() - self._settled_mb


def bench_loop(config: Config, *, viewers: int, windows: int, frames: int) -> dict[str, Any]:
    """Measure; see the module's docstring.

    Parameters
    ----------
    viewers
        Processes that read /video throughout.
    windows
        Undisturbed windows whose median is taken.
    frames
        Loop frames in all, at least; more windows are not made for it, longer ones are.

    Raises
    ------
    ConfigError
        The camera is not the simulated one, which renders the frames.
    EdgeError
        A frame was lost, changed or out of order.
    """
    daemon = Daemon(config)
    with ExitStack() as closing:
        closing.callback(daemon.close)
        instrument = daemon.open()
        if not isinstance(instrument.camera, SimulatedCamera):
            raise ConfigError("bench loop renders its frames with the simulated camera. Leave --camera out.")
        if instrument.making is not None:
            raise EdgeError(
                f"{instrument.engine.backend} would be measured in the place of an engine that is not made yet. Let "
                "superlens doctor --selftest make it first, with the same configuration."
            )
        camera = instrument.camera
        exposure_s = config.camera.exposure_s
        pictures = render(camera, instrument.pool, exposure_s=exposure_s, frames=DISTINCT_FRAMES)
        memory = MemoryWatch()
        watching = [_start_viewer(daemon, closing) for _ in range(viewers)]
        per_window = max(SETTLED_FRAME, -(-frames // windows))
        _bare_fps(instrument, pictures, 20)  # warm
        kept, tried = _windows(daemon, instrument, pictures, memory, watching, windows, per_window)
        growth_mb = memory.growth_mb()
        paced_fps = config.camera.fps or DEFAULT_FPS
        paced = _run(
            daemon,
            instrument,
            RecordedSource(pictures, instrument.pool, fps=paced_fps),
            CheckSink(pictures, lossless=False, memory=memory),
            round(10 * paced_fps),
            "newest",
        )
        physics = _run(daemon, instrument, _live_noise(camera, instrument.pool), None, per_window // 2, "lossless")
        flow = paced.flow()
        return {
            "loop_fps": statistics.median(window.loop_fps for window in kept),
            "loop_physics_fps": physics.fps(),
            "engine_fps": statistics.median(window.engine_fps for window in kept),
            "ratio": statistics.median(window.loop_fps / window.engine_fps for window in kept),
            "latency_s": paced.latency_s().model_dump(),
            "latency_camera_fps": paced_fps,
            "copies_per_frame": flow.copies_per_frame,
            "passes_per_frame": flow.passes_per_frame,
            "dropped": paced.dropped,
            "rss_mb": peak_rss_mb(),
            "rss_growth_mb": growth_mb,
            "frames": memory.frames,
            "windows": len(kept),
            "windows_tried": tried,
            "other_cores": max(window.other_cores for window in kept),
            "contended": not all(map(quiet, kept)),
            "viewers": viewers,
            "shape_px": camera.shape,
            "model": instrument.engine.manifest.name,
            "backend": instrument.engine.backend,
            "precision": instrument.engine.precision,
            "model_precision": instrument.engine.manifest.precision,
            "simulated": True,
        }


def _windows(
    daemon: Daemon,
    instrument: Instrument,
    pictures: NDArray[Any],
    memory: MemoryWatch,
    watching: list[int],
    wanted: int,
    frames: int,
) -> tuple[list[Window], int]:
    """As `undisturbed` finds them, and how many were tried."""

    def window() -> Window:
        others = OtherWork(watching)
        engine_fps = _bare_fps(instrument, pictures, max(50, frames // 4))
        check = CheckSink(pictures, lossless=True, memory=memory)
        meter = _run(daemon, instrument, RecordedSource(pictures, instrument.pool), check, frames, "lossless")
        return Window(engine_fps, meter.fps() or 0.0, others.cores())

    return undisturbed(window, wanted)


def _bare_fps(instrument: Instrument, pictures: NDArray[Any], frames: int) -> float:
    """The engine alone, on slots that were filled before."""
    pool = instrument.pool
    slots = [pool.acquire(timeout_s=1) for _ in pool.slots]
    try:
        for slot, picture in zip(slots, pictures, strict=False):
            slot[:] = picture
        begun = time.perf_counter()
        for index in range(frames):
            instrument.engine.infer(slots[index % len(slots)])
        return frames / (time.perf_counter() - begun)
    finally:
        for slot in slots:
            pool.release(slot)


def _run(
    daemon: Daemon,
    instrument: Instrument,
    source: Callable[[threading.Event], Iterator[Frame]],
    check: CheckSink | None,
    frames: int,
    policy: pipeline.Policy,
) -> FlowMeter:
    """The product's pipeline, preview and board, over another source."""
    meter, stop = FlowMeter(), threading.Event()
    preview = preview_sink(instrument, daemon.board, meter)
    sinks: list[FrameSink] = [preview] if check is None else [check, preview]
    daemon.board.clear_preview()
    pipeline.run(
        source(stop), instrument.engine, instrument.pool, sinks, policy=policy, stop=stop, meter=meter, frames=frames
    )
    return meter


def render(camera: SimulatedCamera, pool: FramePool, *, exposure_s: float, frames: int) -> NDArray[Any]:
    """Distinct frames as they lie in slots, (n, ...), along a line through the middle of the travel."""
    camera.start(pool, exposure_s=exposure_s, triggered=False)
    pictures, middle_um = np.empty((frames, *pool.shape), pool.dtype), TRAVEL_UM.centre
    for index, picture in enumerate(pictures):
        camera.expose(middle_um._replace(x=middle_um.x + PATH_UM * (index / frames - 0.5)), picture)
    camera.stop()
    return pictures


def _live_noise(camera: SimulatedCamera, pool: FramePool) -> Callable[[threading.Event], Iterator[Frame]]:
    """The simulated camera unpaced, its noise drawn for every frame, the stage at rest."""

    def source(stop: threading.Event) -> Iterator[Frame]:
        index = 0
        while not stop.is_set():
            slot = pool.acquire(timeout_s=10)
            exposure_end_ns = time.monotonic_ns()
            camera.expose(TRAVEL_UM.centre, slot)
            yield Frame(slot, index, exposure_end_ns)
            index += 1

    return source


def _start_viewer(daemon: Daemon, closing: ExitStack) -> int:
    """A process that reads /video; its id."""
    from edge.web import create_app, serve

    app = create_app(
        daemon.board,
        submit=lambda request: None,
        stop=daemon.stop,
        show=daemon.show,
        snapshot=daemon.snapshot,
        reset=lambda: None,
    )
    server = serve(app, host="127.0.0.1", port=0, threads=4)
    server.start()
    closing.callback(server.close)
    url = f"http://127.0.0.1:{server.port}/video"
    viewer = subprocess.Popen([sys.executable, "-c", _VIEWER, url], stdout=subprocess.PIPE)
    closing.callback(viewer.wait, 10)
    closing.callback(viewer.kill)
    if viewer.stdout is None or viewer.stdout.readline() != b"watching\n":
        raise EdgeError("bench: the viewer could not read /video")
    closing.callback(viewer.stdout.close)
    return viewer.pid


def _checksum(pixels: NDArray[Any]) -> int:
    """The sum of the 64-bit words: it costs microseconds, and a torn or foreign frame changes it."""
    flat = pixels.reshape(-1).view(np.uint8)
    words = flat[: flat.size // 8 * 8].view(np.uint64)
    return int(words.sum(dtype=np.uint64)) + int(flat[words.nbytes :].sum(dtype=np.uint64))

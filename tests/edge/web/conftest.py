"""A box without an instrument: a board the test writes, and a record of what the page asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from flask import Flask
from numpy.typing import NDArray

from edge.errors import EdgeError
from edge.status import (
    AxisStatus,
    CameraStatus,
    EngineStatus,
    FlowStatus,
    InterlockStatus,
    Percentiles,
    Preview,
    RunState,
    StageStatus,
    Status,
    StatusBoard,
)
from edge.web import JobRequest, PageServer, create_app, serve

SIDE_PX = 128

LIVE = Status(
    name="bench 3",
    version="0.1.0",
    state=RunState.LIVE,
    note="40.0 frames/s",
    simulated=("camera", "stage"),
    start_error=None,
    camera=CameraStatus(
        name="simulated", shape_px=(SIDE_PX, SIDE_PX), format="mono12p", bit_depth=12, frame_time_s=0.025
    ),
    engine=EngineStatus(
        model="enhance-rt",
        task="enhance",
        outputs=("enhanced",),
        shown="enhanced",
        trained_on="synthetic pairs",
        backend="openvino",
        precision="bf16",
        sha256="9f2c" * 16,
        engine_s=Percentiles(p50=0.0061, p99=0.0083),
    ),
    stage=StageStatus(
        identity="simulated E-727",
        axes=tuple(
            AxisStatus(name=name, measured_um=at + 0.001, target_um=at, low_um=0.0, high_um=high)
            for name, at, high in (("x", 48.12, 100.0), ("y", 51.3, 100.0), ("z", 4.862, 10.0))
        ),
        on_target=True,
        servo_on=True,
    ),
    interlock=InterlockStatus(state="armed", why=None, contact_v=1.002, set_point_v=1.2, contact_age_s=0.004),
    flow=FlowStatus(
        capture_fps=40.0, inference_fps=39.8, preview_fps=30.0, frames=41208, latency_s=Percentiles(p50=0.012, p99=0.02)
    ),
    pixel_size_nm=48.1,
    field_um=4.5,
    rss_mb=182.0,
    disk_free_mb=202_000.0,
    uptime_s=4211.0,
)


class FakeBox:
    """What the daemon is to the page. Set ``refuses`` to make the next commands fail."""

    def __init__(self) -> None:
        self.board = StatusBoard(LIVE)
        self.calls: list[str] = []
        self.requests: list[JobRequest] = []
        self.refuses: EdgeError | None = None
        self.after_stop = RunState.IDLE  # the state that stop() leaves
        self._counter = 0

    def app(self, **options: Any) -> Flask:
        app = create_app(
            self.board,
            submit=self.submit,
            stop=self.stop,
            show=self.show_output,
            snapshot=self.snapshot,
            reset=self.reset,
            **options,
        )
        app.testing = True
        return app

    def submit(self, request: JobRequest) -> None:
        self.requests.append(request)
        self._called("start")
        self.publish(state=RunState.LIVE, start_error=None)

    def stop(self) -> None:
        self._called("stop")
        self.publish(state=self.after_stop, note="ready")

    def reset(self) -> None:
        self._called("reset")
        self.publish(state=RunState.IDLE, problems=())

    def show_output(self, output: str) -> None:
        self._called(f"show {output}")
        self.publish(engine=self.board.status().engine.model_copy(update={"shown": output}))

    def snapshot(self) -> list[Path]:
        self._called("snapshot")
        return [Path("shots/1_raw.ome.tif"), Path("shots/1_enhanced.ome.tif")]

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.refuses is not None:
            raise self.refuses

    def publish(self, **changes: Any) -> None:
        """Change the status, stamped with the clock as the daemon does."""
        stamp = {
            "box_utc": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            "box_monotonic_ns": self.board.clock_ns(),
        }
        self.board.publish(self.board.status().model_copy(update={**stamp, **changes}))

    def show(self, raw: NDArray[np.uint8], enhanced: NDArray[np.uint8], *, age_s: float = 0.0) -> Preview:
        """Publish one picture of the output on view, grey or in colour, exposed ``age_s`` ago."""
        colour = enhanced.ndim == 3
        both = np.hstack((np.dstack([raw] * 3) if colour else raw[..., None], np.atleast_3d(enhanced)))
        self._counter += 1
        preview = Preview(
            jpeg=simplejpeg.encode_jpeg(np.ascontiguousarray(both), quality=90, colorspace="RGB" if colour else "GRAY"),
            counter=self._counter,
            frame_index=10 * self._counter,
            t_exposure_end_ns=self.board.clock_ns() - round(age_s * 1e9),
            output=self.board.status().engine.shown,
        )
        self.board.publish_preview(preview)
        return preview

    def show_grey(self, raw: int, enhanced: int, *, age_s: float = 0.0) -> Preview:
        """Publish one picture of two flat halves."""
        return self.show(*(np.full((SIDE_PX, SIDE_PX), level, np.uint8) for level in (raw, enhanced)), age_s=age_s)


class Rhythm:
    """The daemon's heartbeat and a camera: publishes status and pictures on a thread until told not to."""

    def __init__(self, box: FakeBox, *, fps: float = 25.0) -> None:
        self.frames = threading.Event()  # set: pictures flow
        self.frames.set()
        self._box, self._interval_s = box, 1 / fps
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rhythm", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        rng = np.random.default_rng(3)
        beat = 0
        while not self._quit.wait(self._interval_s):
            beat += 1
            if self.frames.is_set():
                raw = rng.integers(20, 90, (SIDE_PX, SIDE_PX), dtype=np.uint8)
                self._box.show(raw, raw + np.uint8(120))
            if beat % 5 == 0:
                self._box.publish()

    def close(self) -> None:
        self._quit.set()
        self._thread.join(5.0)


@pytest.fixture
def box() -> Iterator[FakeBox]:
    """A box that is LIVE, with nothing on its board that moves."""
    fake = FakeBox()
    yield fake
    fake.board.close()


@pytest.fixture
def served(box: FakeBox) -> Iterator[Callable[..., PageServer]]:
    """Serve the box's page with a real server on a free port."""
    servers: list[PageServer] = []

    def begin(**options: Any) -> PageServer:
        server = serve(box.app(**options), host="127.0.0.1", port=0, threads=20)
        server.start()
        servers.append(server)
        return server

    yield begin
    box.board.close()
    for server in servers:
        server.close()


@pytest.fixture
def rhythm(box: FakeBox) -> Iterator[Rhythm]:
    """Pictures and heartbeats, as of a healthy instrument."""
    beating = Rhythm(box)
    yield beating
    beating.close()

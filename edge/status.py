"""What the instrument is doing, as frozen values, and the board that carries them between threads.

The job thread and the daemon publish, the page reads. Nothing else of the instrument is visible to the page: it can
neither block the loop nor see half a state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict

Severity = Literal["fault", "warning", "note"]


class RunState(str, Enum):
    """The five words of the top bar."""

    IDLE = "IDLE"
    LIVE = "LIVE"
    SCANNING = "SCANNING"
    PAUSED = "PAUSED"
    FAULT = "FAULT"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Percentiles(_Frozen):
    """Seconds; None until something was measured."""

    p50: float | None = None
    p99: float | None = None


class Problem(_Frozen):
    """One entry of the Health list: what is wrong and what to do about it."""

    key: str
    severity: Severity
    title: str
    what_to_do: str
    since_utc: str


class CameraStatus(_Frozen):
    """The source of the frames. ``shape_px`` is (height, width); ``frame_time_s`` is None for an unpaced replay.

    ``microscope`` says in words what a simulated camera looks through; None where nobody knows.
    """

    name: str
    shape_px: tuple[int, ...]
    format: str
    bit_depth: int
    frame_time_s: float | None
    microscope: str | None = None


class CandidateStatus(_Frozen):
    """One precision that was measured on this device; ``problem`` says why it is not used."""

    precision: str
    median_s: float | None
    p99_s: float | None
    psnr_db: float | None
    problem: str | None


class BuildStatus(_Frozen):
    """An engine that is being made while another runs. ``fraction`` of the phase, 0 to 1; None where nobody knows."""

    precision: str
    phase: str
    fraction: float | None


class EngineStatus(_Frozen):
    """The model that enhances, and how it is run. ``shown`` is the one of its ``outputs`` that is on view.

    ``precision`` is the arithmetic, ``model_precision`` that of the file. Where TensorRT was asked for: ``fallback`` is
    True while another back end stands in for it, ``note`` says what runs and why, ``candidates`` are what was measured,
    and ``building`` is what will take over.
    """

    model: str
    task: str
    outputs: tuple[str, ...]
    shown: str
    trained_on: str
    backend: str
    precision: str
    sha256: str
    engine_s: Percentiles = Percentiles()
    model_precision: str = "fp32"
    fallback: bool = False
    note: str | None = None
    candidates: tuple[CandidateStatus, ...] = ()
    building: BuildStatus | None = None


class AxisStatus(_Frozen):
    """One axis of the stage, um."""

    name: Literal["x", "y", "z"]
    measured_um: float | None
    target_um: float | None
    low_um: float
    high_um: float


class StageStatus(_Frozen):
    """The stage as last read; ``error`` says in words why it is not read any more."""

    identity: str
    axes: tuple[AxisStatus, ...]
    on_target: bool | None
    servo_on: bool | None
    error: str | None = None


class InterlockStatus(_Frozen):
    """What says what may move. ``why`` is the reason of a fault or a loss.

    ``contact_v`` is the newest sample of the contact signal and ``contact_age_s`` how old it is; they and
    ``set_point_v`` are None where no contact is read.
    """

    state: Literal["disarmed", "armed", "approaching", "engaged", "fault"]
    why: str | None
    contact_v: float | None
    set_point_v: float | None
    contact_age_s: float | None


class FlowStatus(_Frozen):
    """How frames flow now: rates over the last second, counts since the job began. A rate nobody measures is None."""

    capture_fps: float | None = None
    inference_fps: float | None = None
    preview_fps: float | None = None
    frames: int = 0
    dropped: int = 0
    gaps: int = 0
    latency_s: Percentiles = Percentiles()
    copies_per_frame: float | None = None
    passes_per_frame: float | None = None


class ScanStatus(_Frozen):
    """Progress of the scan that runs or was the last to run."""

    name: str
    tiles: int
    done: int
    missing: int
    eta_s: float | None
    folder: str
    complete: bool | None  # None while it runs


class Status(_Frozen):
    """One snapshot of the whole box; what /api/status and the event stream say."""

    name: str
    version: str
    state: RunState
    note: str
    simulated: tuple[str, ...]  # which parts are simulated, e.g. ("camera", "stage"); empty on a real instrument
    start_error: str | None  # why the instrument did not start; the page then shows this instead of the image
    problems: tuple[Problem, ...] = ()
    camera: CameraStatus | None = None
    engine: EngineStatus | None = None
    stage: StageStatus | None = None
    interlock: InterlockStatus | None = None  # None: nothing is open that moves
    flow: FlowStatus = FlowStatus()
    scan: ScanStatus | None = None
    pixel_size_nm: float | None = None  # None: unknown, and the page says so
    field_um: float | None = None  # diameter of the sphere's usable field, None when none is marked
    field_centre_px: tuple[float, float] | None = None  # (y, x) in the frame
    rss_mb: float | None = None
    disk_free_mb: float | None = None
    uptime_s: float = 0.0
    box_utc: str = ""
    box_monotonic_ns: int = 0


@dataclass(frozen=True, slots=True)
class Preview:
    """One JPEG that holds raw (left half) and enhanced (right half) of the same instant.

    ``output`` is the model's output in the right half. ``counter`` grows by one with each preview, from job to job.
    """

    jpeg: bytes
    counter: int
    frame_index: int
    t_exposure_end_ns: int
    output: str


class StatusBoard:
    """The one place where state crosses threads: the newest :class:`Status` and the newest :class:`Preview`.

    Readers wait for something newer than they have; they never queue, so a slow reader sees fewer values, not older.
    """

    def __init__(self, status: Status, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._status = status
        self._status_counter = 0
        self._preview: Preview | None = None
        self._preview_counter = 0
        self._closed = False
        self._changed = threading.Condition()
        self.clock_ns = clock_ns

    def publish(self, status: Status) -> None:
        """Replace the snapshot."""
        with self._changed:
            self._status = status
            self._status_counter += 1
            self._changed.notify_all()

    def publish_preview(self, preview: Preview) -> None:
        """Replace the newest preview."""
        with self._changed:
            self._preview = preview
            self._preview_counter = preview.counter
            self._changed.notify_all()

    @property
    def preview_counter(self) -> int:
        """Counter of the last preview, also after :meth:`clear_preview`: the next job counts on from it."""
        return self._preview_counter

    def clear_preview(self) -> None:
        """Forget the preview: a new job must not begin with the picture of the last one."""
        with self._changed:
            self._preview = None
            self._changed.notify_all()

    def status(self) -> Status:
        """The newest snapshot."""
        return self._status

    def preview(self) -> Preview | None:
        """The newest preview, or None when no frame was enhanced since the job began."""
        return self._preview

    def wait_status(self, after: int, *, timeout_s: float) -> tuple[int, Status]:
        """The newest snapshot and its counter, as soon as the counter exceeds ``after`` or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._status_counter > after or self._closed, timeout_s)
            return self._status_counter, self._status

    def wait_preview(self, after: int, *, timeout_s: float) -> Preview | None:
        """The newest preview whose counter exceeds ``after``; None when none came in time."""
        with self._changed:
            self._changed.wait_for(
                lambda: (self._preview is not None and self._preview.counter > after) or self._closed, timeout_s
            )
            preview = self._preview
        return preview if preview is not None and preview.counter > after else None

    def close(self) -> None:
        """Wake every waiting reader for good: the process is ending."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called; streams end then."""
        return self._closed

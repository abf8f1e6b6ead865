"""From the running instrument to one frozen :class:`Status`: what the page, the metrics and the log see."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from edge import __version__
from edge.config import Config
from edge.engine.builder import BuildProgress
from edge.engine.choice import Candidate
from edge.instrument import Instrument
from edge.jobs import Job
from edge.meter import rss_mb
from edge.problems import Notice, Problems
from edge.recorder import existing
from edge.status import (
    AxisStatus,
    BuildStatus,
    CameraStatus,
    CandidateStatus,
    EngineStatus,
    FlowStatus,
    Percentiles,
    RunState,
    ScanStatus,
    StageStatus,
    Status,
)
from edge.utc import utc_now
from firmware_bridge.pzt import PztStage

RECENT_FRAMES = 256
"""Percentiles on the page are over this many newest frames."""


QUIET_S = 120.0
"""Warnings are silent for so long after the start: much settles by itself. Faults are not."""
LEAST_DISK_MB = 2000.0
KEEPS_UP = 0.9
"""Share of the camera's frames below which the engine is said not to keep up."""


def observe_stage(stage: PztStage) -> StageStatus:
    """Ask the controller. Raises FirmwareError when it does not answer."""
    measured, target = stage.position_um(), stage.target_um()
    limits = stage.limits_um
    return StageStatus(
        identity=stage.identity,
        axes=tuple(
            AxisStatus(name=name, measured_um=m, target_um=t, low_um=low, high_um=high)
            for name, m, t, low, high in zip(("x", "y", "z"), measured, target, limits.low, limits.high, strict=True)
        ),
        on_target=stage.on_target(),
        servo_on=stage.servo_is_on(),
    )


def observe(
    config: Config,
    instrument: Instrument | None,
    job: Job | None,
    *,
    stage: StageStatus | None,
    problems: Problems,
    start_error: str | None,
    begun_ns: int,
    data_dir: Path,
) -> Status:
    """One snapshot. ``stage`` is what :func:`observe_stage` last gave."""
    state = RunState.FAULT if problems.hands_off else _state(job, start_error)
    flow = FlowStatus() if job is None else job.meter.flow()
    if job is not None and not job.running:
        # A rate that stays on view after frames stop is a lie.
        flow = flow.model_copy(update={"capture_fps": None, "inference_fps": None, "preview_fps": None})
    sphere = config.sphere if instrument is None else instrument.config.sphere
    now_ns = time.monotonic_ns()
    return Status(
        name=config.box.name,
        version=__version__,
        state=state,
        note=_note(state, flow, job, opened=instrument is not None),
        simulated=() if instrument is None else instrument.simulated,
        start_error=start_error,
        problems=problems.all(),
        camera=None if instrument is None else _camera(instrument),
        engine=None if instrument is None else _engine(instrument, job),
        stage=stage,
        interlock=None if instrument is None or instrument.motion is None else instrument.motion.status(),
        flow=flow,
        scan=None if job is None else _scan(job),
        pixel_size_nm=None if instrument is None else instrument.pixel_size_nm,
        field_um=None if instrument is None or instrument.field is None else sphere.field_um,
        field_centre_px=sphere.centre_px,
        rss_mb=rss_mb(),
        disk_free_mb=shutil.disk_usage(existing(data_dir)).free / 2**20,
        uptime_s=(now_ns - begun_ns) / 1e9,
        box_utc=utc_now(),
        box_monotonic_ns=now_ns,
    )


def warnings(status: Status) -> dict[str, tuple[str, str]]:
    """What stands out in a snapshot: (title, what to do) by key. Nothing during the first two minutes."""
    found: dict[str, tuple[str, str]] = {}
    if status.uptime_s < QUIET_S:
        return found
    flow = status.flow
    if flow.capture_fps and flow.inference_fps is not None and flow.inference_fps < KEEPS_UP * flow.capture_fps:
        found["slow"] = (
            f"{flow.inference_fps:.0f} of {flow.capture_fps:.0f} frames/s are enhanced",
            "The engine is slower than the camera, so frames are skipped; the newest is always shown. "
            "Lower [camera] fps, or use a smaller model.",
        )
    if status.disk_free_mb is not None and status.disk_free_mb < LEAST_DISK_MB:
        found["disk"] = (
            f"Disk: {status.disk_free_mb / 1000:.1f} GB left",
            "A scan may not fit. Copy finished scans off the box, then delete them there.",
        )
    return found


def _state(job: Job | None, start_error: str | None) -> RunState:
    if start_error is not None:
        return RunState.FAULT
    if job is None:
        return RunState.IDLE
    if job.running:
        return job.state
    return RunState.IDLE if job.error is None else RunState.FAULT


def _note(state: RunState, flow: FlowStatus, job: Job | None, *, opened: bool) -> str:
    if not opened:
        return "starting" if state is RunState.IDLE else "not started"
    if state is RunState.SCANNING and job is not None and job.recorder is not None:
        return f"tile {len(job.recorder.tiles)} of {job.recorder.plan.tiles}"
    if state is RunState.LIVE:
        return f"{flow.inference_fps:.1f} frames/s" if flow.inference_fps is not None else "first frame"
    return "see Health" if state is RunState.FAULT else "ready"


def _camera(instrument: Instrument) -> CameraStatus:
    camera = instrument.camera
    return CameraStatus(
        name=camera.name,
        shape_px=camera.shape,
        format=camera.format,
        bit_depth=camera.bit_depth,
        frame_time_s=camera.frame_time_s,
        microscope=camera.microscope,
    )


def _engine(instrument: Instrument, job: Job | None) -> EngineStatus:
    manifest, choice, making = instrument.engine.manifest, instrument.choice, instrument.making
    return EngineStatus(
        model=manifest.name,
        task=manifest.task,
        outputs=manifest.output_names,
        shown=instrument.shown,
        trained_on=manifest.training_data,
        backend=instrument.engine.backend,
        precision=instrument.engine.precision,
        sha256=manifest.sha256,
        engine_s=Percentiles() if job is None else job.meter.engine_s(RECENT_FRAMES),
        model_precision=manifest.precision,
        fallback=choice is not None and choice.fallback,
        note=None if choice is None else choice.note,
        candidates=() if choice is None else tuple(map(_candidate, choice.candidates)),
        building=None if making is None else _building(making.progress),
    )


def _candidate(one: Candidate) -> CandidateStatus:
    return CandidateStatus(**one.model_dump(include=set(CandidateStatus.model_fields)))


def _building(progress: BuildProgress) -> BuildStatus:
    return BuildStatus(**progress.model_dump(include=set(BuildStatus.model_fields)))


def _scan(job: Job) -> ScanStatus | None:
    recorder = job.recorder
    if recorder is None:
        return None
    total, taken = recorder.plan.tiles, len(recorder.tiles) + len(recorder.missing)
    elapsed_s = (time.monotonic_ns() - job.begun_ns) / 1e9
    return ScanStatus(
        name=recorder.folder.name,
        tiles=total,
        done=len(recorder.tiles),
        missing=len(recorder.missing),
        eta_s=elapsed_s / taken * (total - taken) if job.running and taken else None,
        folder=str(recorder.folder),
        complete=None if job.running else recorder.complete,
    )


def unwritable(folder: Path) -> Notice | None:
    """What to put into the Health list where nothing can be written to ``folder``, or where it is to be made."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            return None
    except OSError as exc:
        what_to_do = (
            f"{folder} cannot be written ({exc.strerror or exc}). Set [box] data_dir to a folder that this program may "
            "write to, and start it again."
        )
        return Notice("Scans and snapshots cannot be saved", what_to_do, "warning")

"""The two jobs of the instrument, a live view and a scan, and saving a snapshot of either.

A job runs in the "job" thread until it ends or is stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from edge import pipeline
from edge.devices import Camera, FrameSink
from edge.errors import ConfigError, EdgeError
from edge.instrument import Instrument
from edge.meter import FlowMeter
from edge.ometiff import enhanced_kind, enhanced_words, write_ome_tiff
from edge.recorder import ScanRecorder, check_room
from edge.scan import ScanPlan, acquire, inscribed_square_um
from edge.sinks import PreviewSink, Shot, SnapshotSink
from edge.status import RunState, StatusBoard
from edge.stitch import camera_from_stage, crop_square
from edge.utc import utc_stamp
from firmware_bridge.pzt import PositionUm

FRAME_TIMEOUT_S = 5.0
LEAST_TILE_PX = 16


@dataclass(slots=True)
class Job:
    """One live view or scan: what it is doing, and the event that ends it. ``endless``: only a person ends it."""

    state: RunState
    work: Callable[[Job], None]
    recorder: ScanRecorder | None = None
    endless: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    meter: FlowMeter = field(default_factory=FlowMeter)
    snapshot: SnapshotSink = field(default_factory=SnapshotSink)
    begun_ns: int = field(default_factory=time.monotonic_ns)
    interrupt: Callable[[], None] = lambda: None  # ends a wait for the next frame
    error: Exception | None = None
    thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether its thread is alive."""
        return self.thread is not None and self.thread.is_alive()

    def end(self) -> None:
        """Ask it to end, from any thread; a wait for a frame ends too."""
        self.stop.set()
        self.interrupt()


def live_job(instrument: Instrument, board: StatusBoard, *, frames: int | None = None) -> Job:
    """A live view: every frame is enhanced, the newest wins (a replay waits instead), ``frames`` of them or no end."""
    camera = instrument.camera

    def work(job: Job) -> None:
        camera.start(instrument.pool, exposure_s=instrument.config.camera.exposure_s, triggered=False)
        try:
            pipeline.run(
                pipeline.live(camera, job.stop, timeout_s=_frame_timeout_s(camera)),
                instrument.engine,
                instrument.pool,
                [preview_sink(instrument, board, job.meter), job.snapshot],
                policy="lossless" if camera.lossless else "newest",
                stop=job.stop,
                meter=job.meter,
                frames=frames,
            )
        finally:
            camera.stop()

    return Job(RunState.LIVE, work, endless=frames is None, interrupt=camera.stop)


def check_scan(*, region_um: tuple[float, float], overlap: float, settle_s: float) -> None:
    """Refuse (ConfigError) a scan that no instrument can do, before one is opened for it."""
    _planned(region_um, overlap, settle_s, centre_um=PositionUm(0, 0, 0), tile_um=1.0)


def _planned(
    region_um: tuple[float, float], overlap: float, settle_s: float, *, centre_um: PositionUm, tile_um: float
) -> ScanPlan:
    try:
        return ScanPlan(region_um=region_um, centre_um=centre_um, tile_um=tile_um, overlap=overlap, settle_s=settle_s)
    except ValidationError as exc:
        fault = exc.errors()[0]
        raise ConfigError(f"The scan's {fault['loc'][0]}: {fault['msg']} (found {fault['input']!r}).") from exc


def plan_scan(instrument: Instrument, *, region_um: tuple[float, float], overlap: float, settle_s: float) -> ScanPlan:
    """A plan for this instrument: tiles are the inscribed square of the field (without a field, the frame's largest
    square), x and y centred on the stage's travel.

    z stays where it is: at the distance from the sphere that somebody chose.

    Raises
    ------
    ConfigError
        There is no stage or no known pixel size; a value is out of bounds; the region does not fit the travel, or the
        tile not the frame.
    FirmwareError
        The stage does not say where it is.
    """
    if instrument.stage is None:
        raise ConfigError("A replay has no stage to scan with. Use the simulated camera.")
    if instrument.pixel_size_nm is None:
        raise ConfigError("A scan needs the pixel size (--pixel-size-nm), to know its tiles.")
    field_um = instrument.config.sphere.field_um
    frame_um = min(instrument.camera.shape) * instrument.pixel_size_nm / 1e3
    plan = _planned(
        region_um,
        overlap,
        settle_s,
        centre_um=instrument.stage.limits_um.centre._replace(z=instrument.stage.target_um().z),
        tile_um=frame_um if field_um is None else inscribed_square_um(field_um),
    )
    side_px = tile_side_px(plan, instrument.pixel_size_nm)
    if side_px < LEAST_TILE_PX:
        raise ConfigError(
            f"A tile of {plan.tile_um:g} µm is {side_px} px at {instrument.pixel_size_nm:g} nm a pixel; a scan "
            f"needs {LEAST_TILE_PX} px. Correct [sphere] field_um, or the pixel size. Nothing was moved."
        )
    try:
        frame = np.broadcast_to(np.uint8(0), instrument.camera.shape)
        crop_square(frame, side_px=side_px, centre_px=instrument.config.sphere.centre_px)
    except ValueError as exc:
        raise ConfigError(f"The tiles of the scan do not fit the camera's frame: {exc}.") from exc
    plan.check(instrument.stage.limits_um)
    return plan


def tile_side_px(plan: ScanPlan, pixel_size_nm: float) -> int:
    """Whole pixels in a tile's side."""
    return int(plan.tile_um * 1e3 / pixel_size_nm + 1e-6)  # a whole number must not lose one by rounding


def scan_job(instrument: Instrument, board: StatusBoard, plan: ScanPlan, folder: Path) -> Job:
    """A raster scan into ``folder``: lossless, and a gap is recorded as a gap.

    It keeps the output that is on view when it begins, to its end.

    Raises
    ------
    ConfigError
        The instrument cannot scan, its stage is not armed, or the folder is in use or its disk too full.
    """
    camera, stage, trigger, pixel_size_nm = (
        instrument.camera,
        instrument.stage,
        instrument.trigger,
        instrument.pixel_size_nm,
    )
    if stage is None or trigger is None or pixel_size_nm is None:
        raise ConfigError("A scan needs a stage, a trigger and a known pixel size.")
    if instrument.motion is not None:
        instrument.motion.check_armed()
    sphere, manifest, output = instrument.config.sphere, instrument.engine.manifest, instrument.shown
    side_px, counts = tile_side_px(plan, pixel_size_nm), instrument.counts
    channels = next(spec.channels for spec in manifest.outputs if spec.name == output)
    per_px = np.dtype(counts.result_dtype).itemsize * (1 + channels * manifest.scale**2)
    check_room(folder, plan, side_px=side_px, bytes_per_px=per_px)
    recorder = ScanRecorder(
        folder,
        plan,
        side_px=side_px,
        centre_px=sphere.centre_px,
        pixel_size_nm=pixel_size_nm,
        a_px_per_um=camera_from_stage(pixel_size_nm, sphere.camera_from_stage_px_per_um),
        output=output,
        words=enhanced_words(manifest, output),
        scale=manifest.scale,
        distortion=sphere.distortion if sphere.distortion is not None else camera.distortion,
        picture=counts.picture,
        facts=instrument.facts(),
    )

    def work(job: Job) -> None:
        sinks: list[FrameSink] = [recorder, preview_sink(instrument, board, job.meter), job.snapshot]
        camera.start(instrument.pool, exposure_s=instrument.config.camera.exposure_s, triggered=True)
        try:
            pipeline.run(
                acquire(
                    plan,
                    stage,
                    trigger,
                    camera,
                    stop=job.stop,
                    discard=lambda frame: instrument.pool.release(frame.pixels),
                    timeout_s=FRAME_TIMEOUT_S,
                ),
                instrument.engine,
                instrument.pool,
                sinks,
                policy="lossless",
                stop=job.stop,
                meter=job.meter,
            )
        finally:
            camera.stop()
            recorder.close()

    return Job(RunState.SCANNING, work, recorder, interrupt=camera.stop)


def _frame_timeout_s(camera: Camera) -> float:
    """Two frames of a slow camera, and never less than FRAME_TIMEOUT_S."""
    return max(FRAME_TIMEOUT_S, 2 * (camera.frame_time_s or 0))


def save_shot(instrument: Instrument, shot: Shot, folder: Path) -> list[Path]:
    """Write raw and every output of one frame, each into a file of its own; the paths, raw first.

    Raises
    ------
    EdgeError
        The disk refuses.
    """
    manifest, sphere = instrument.engine.manifest, instrument.config.sphere
    stamp = utc_stamp()
    mark = "_SIMULATED" if instrument.simulated else ""
    facts = {**instrument.facts(), "frame": shot.index, "taken_utc": stamp}
    if instrument.field is not None:
        facts["field_um"] = sphere.field_um
        facts["field_centre_px"] = sphere.centre_px or "middle"
        facts["field_note"] = "enhanced pixels outside the sphere's field mean nothing"
    files = [("raw", instrument.counts.picture(shot.raw), "raw", {"kind": "raw"}, 1)]
    for name, pixels in shot.outputs.items():
        what = {"kind": "enhanced", "output": name}
        files.append((enhanced_kind(manifest, name), pixels, enhanced_words(manifest, name), what, manifest.scale))
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, pixels, words, what, scale in files:
            size_nm = None if instrument.pixel_size_nm is None else instrument.pixel_size_nm / scale
            paths.append(folder / f"{stamp}_{kind}{mark}.ome.tif")
            write_ome_tiff(paths[-1], pixels, channels=(words,), pixel_size_nm=size_nm, facts={**facts, **what})
    except OSError as exc:
        raise EdgeError(f"The snapshot could not be written to {folder}: {exc}.") from exc
    return paths


def preview_sink(instrument: Instrument, board: StatusBoard, meter: FlowMeter) -> PreviewSink:
    """The live picture of this instrument on the board."""
    preview = instrument.config.preview
    return PreviewSink(
        board,
        meter,
        show=lambda: instrument.shown,
        bit_depth=instrument.camera.bit_depth,
        fps=preview.fps,
        quality=preview.jpeg_quality,
        field=instrument.field,
        picture=instrument.counts.picture,
    )

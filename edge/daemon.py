"""The daemon: opens the instrument, runs one job at a time, keeps the status board true, and stops cleanly.

docs/code-flow.md lists the threads. The caller of :meth:`Daemon.wait` is the heartbeat; the web workers read the board
and call :meth:`start_live`, :meth:`start_scan_of`, :meth:`stop`, :meth:`reset`, :meth:`show` and :meth:`snapshot`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge import pipeline
from edge.config import Config
from edge.devices import Engine
from edge.engine.builder import BuildProgress
from edge.errors import BusyError, EdgeError, EngineError
from edge.handover import Succession
from edge.instrument import Instrument, open_instrument
from edge.jobs import FRAME_TIMEOUT_S, Job, live_job, plan_scan, save_shot, scan_job
from edge.observe import observe, observe_stage, unwritable, warnings
from edge.problems import Notice, Problems
from edge.runner import Runner
from edge.scan import ScanPlan
from edge.status import RunState, StageStatus, Status, StatusBoard
from edge.utc import utc_stamp
from firmware_bridge.errors import FirmwareError, RefusedError, StoppedError

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.2
# An opening that takes longer hangs, and the watchdog may have it: a Jetson loads and times its engines in minutes.
OPENING_S = 600.0
SNAPSHOT_TIMEOUT_S = 2.0


class Daemon:
    """The box as a program.

    Parameters
    ----------
    config
        What to open. :meth:`open` may be called again after it failed.
    alive
        Called at every turn of the main thread, and for at most `OPENING_S` while the instrument is being opened.
    """

    def __init__(self, config: Config, *, alive: Callable[[], None] = lambda: None) -> None:
        self.config = config
        self._alive = alive
        self.instrument: Instrument | None = None
        self._starting = threading.Lock()  # held while the instrument is opened or a job is begun
        self._runner = Runner()
        self._beating = threading.Lock()
        self._problems = Problems()
        self._succession = Succession(self._problems)
        self._start_error: str | None = None
        self._stage: StageStatus | None = None
        self._stage_lost = False  # until it is opened anew: where it is, nobody knows
        self._begun_ns = time.monotonic_ns()
        self._quit = threading.Event()
        self.board = StatusBoard(self._status())

    def open(self) -> Instrument:
        """Open the instrument, as :func:`edge.instrument.open_instrument` says.

        Raises
        ------
        BusyError
            It is being opened by another thread.
        EdgeError, FirmwareError
            A part does not answer or does not fit; the board says so, and the page can be shown.
        """
        with self._one_start():
            return self._opened(self._runner.stops)

    @contextmanager
    def _one_start(self) -> Iterator[None]:
        if not self._starting.acquire(blocking=False):
            raise BusyError("The instrument is being started. Wait a moment.")
        try:
            yield
        finally:
            self._starting.release()

    def _opened(self, stops: int) -> Instrument:
        """The open instrument; one whose stage or engine is gone is closed and opened anew.

        It is armed, unless STOP was pressed since `stops`.
        """
        if self.instrument is not None and not self._stage_lost and not self.instrument.broken:
            self._succession.take_over(self.instrument, running=self.running)
            self._arm(self.instrument, stops)  # again, after a reset
            return self.instrument
        self._close_instrument()
        try:
            with self._beating_meanwhile():
                self.instrument = open_instrument(self.config, progress=self._note_build, cancelled=self._quit)
                self._arm(self.instrument, stops)  # last: nothing moves before all is there
        except (EdgeError, FirmwareError) as exc:
            self._close_instrument()
            self._start_error = str(exc)
            self._succession.settled()
            self.beat()
            raise
        self._start_error = None
        self._stage_lost = False
        self._problems.put("stage", None)
        self._problems.put("data", unwritable(self.data_dir))
        self._succession.settled()
        if self.instrument.making is not None:
            self.instrument.making.start()
        simulated = ", ".join(self.instrument.simulated)
        microscope = self.instrument.camera.microscope
        log.info(
            "instrument open: %s%s, %s on %s %s%s",
            self.instrument.camera.name,
            f" behind a {microscope}" if microscope else "",
            self.instrument.engine.manifest.name,
            self.instrument.engine.backend,
            self.instrument.engine.precision,
            f", SIMULATED {simulated}" if simulated else "",
        )
        self.beat()
        return self.instrument

    @contextmanager
    def _beating_meanwhile(self) -> Iterator[None]:
        """Keep the board fresh, and the watchdog quiet, while this thread, which may be the one that does, is busy."""
        done = threading.Event()
        until_s = time.monotonic() + OPENING_S

        def beat() -> None:
            while not done.wait(HEARTBEAT_S):
                self.beat()
                if time.monotonic() < until_s:
                    self._alive()

        thread = threading.Thread(target=beat, name="opening", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(FRAME_TIMEOUT_S)

    def _arm(self, instrument: Instrument, stops: int) -> None:
        """Let the stage move, as :meth:`edge.motion.Motion.arm` may, unless STOP comes between."""
        if instrument.motion is None:
            return
        try:
            with instrument.motion.stage.series():  # a stop from here on ends it; one before is counted
                if self._runner.stops == stops:
                    instrument.motion.arm()
        except StoppedError:
            log.info("STOP: the stage is not armed")

    def _close_instrument(self) -> None:
        instrument, self.instrument = self.instrument, None
        try:
            if instrument is not None:
                instrument.close()
        except FirmwareError as exc:  # its other parts are closed all the same
            log.error("while the instrument was closed: %s", exc)

    def start_live(self, *, frames: int | None = None) -> None:
        """Begin the live view, for ``frames`` enhanced frames or until stopped. Opens the instrument if need be.

        Raises
        ------
        BusyError
            A job runs already, or STOP was pressed while this one was being started.
        EdgeError, FirmwareError
            The instrument does not open.
        """
        self._begin(lambda instrument: live_job(instrument, self.board, frames=frames))

    def start_scan(self, plan: ScanPlan, folder: Path) -> None:
        """Begin a raster scan into ``folder``. Errors as :meth:`start_live`; ConfigError when the folder is in use."""
        self._begin(lambda instrument: scan_job(instrument, self.board, plan, folder))

    def start_scan_of(self, *, region_um: tuple[float, float], overlap: float) -> None:
        """Begin a raster scan into a new folder of :attr:`data_dir`; a live view gives way to it.

        Raises
        ------
        BusyError
            A scan runs already.
        ConfigError
            The region does not fit; the live view goes on.
        """
        folder = self.data_dir / "scans" / utc_stamp()

        def make_job(instrument: Instrument) -> Job:
            plan = plan_scan(instrument, region_um=region_um, overlap=overlap, settle_s=0)
            return scan_job(instrument, self.board, plan, folder)

        self._begin(make_job, instead_of_live=True)

    def stop(self) -> None:
        """STOP: halt the stage ahead of everything queued, end the job, hold position, keep all tiles. Any thread.

        A job that is being started when it is called does not begin.

        Raises
        ------
        FirmwareError
            The stop could not be sent to the stage. The job was ended all the same.
        """
        log.info("STOP")
        self._runner.stop()
        instrument = self.instrument  # asked after the stop was counted: one that is opened later sees that it was
        try:
            if instrument is not None and instrument.motion is not None:
                instrument.motion.stop()
        finally:
            self._runner.join(FRAME_TIMEOUT_S)
            self.beat()

    def reset(self, *, by: str) -> None:
        """Unlatch the interlock's fault, for a person who has looked. Nothing moves; the next start arms again.

        Raises
        ------
        BusyError
            A job still runs, no fault is latched, or the contact is still overloaded.
        """
        with self._one_start():
            if self.running:
                raise BusyError("The instrument is busy with a job. Wait for its end, then reset.")
            if self.instrument is None or self.instrument.motion is None:
                raise BusyError("No stage is open, so there is no fault to reset.")
            self.instrument.motion.reset(by=by)
        self.beat()

    def snapshot(self) -> list[Path]:
        """Save raw and every output of the next frame, with metadata; the paths, raw first.

        Raises
        ------
        BusyError
            Nothing is live.
        EdgeError
            No frame comes, or the disk refuses.
        """
        instrument, job = self.instrument, self.job
        if instrument is None or job is None or not job.running:
            raise BusyError("Nothing is live, so there is nothing to save. Start the live view first.")
        shot = job.snapshot.take(timeout_s=SNAPSHOT_TIMEOUT_S)
        return save_shot(instrument, shot, self.data_dir / "snapshots")

    def show(self, output: str) -> None:
        """Put another output of the model on view; a scan that runs goes on with the one it began with.

        Raises
        ------
        BusyError
            The instrument is not open, so nobody knows its outputs.
        ConfigError
            The model has no such output.
        """
        instrument = self.instrument
        if instrument is None:
            raise BusyError("The instrument is not open, so there is nothing to choose from. Start it first.")
        instrument.show(output)
        # An instrument that has to be opened anew shows the same again.
        engine = self.config.engine.model_copy(update={"show": output})
        self.config = self.config.model_copy(update={"engine": engine})
        log.info("on view: %s", output)
        self.beat()

    @property
    def data_dir(self) -> Path:
        """Where snapshots and the scans of the page go."""
        return self.config.box.folder

    @property
    def job(self) -> Job | None:
        """The job that runs, or was the last to run."""
        return self._runner.job

    @property
    def running(self) -> bool:
        """Whether a job runs."""
        return self._runner.running

    def wait(self, *, until_job_ends: bool = False) -> None:
        """Keep the board fresh until :meth:`quit`, or until the job ends. The main thread's place."""
        while not self._quit.wait(HEARTBEAT_S):
            ended = not self.running  # asked first, so that the last beat shows the end
            self.turn()
            if until_job_ends and ended and not self.running and self._succession.broken_off is None:
                break

    def turn(self) -> None:
        """One turn of :meth:`wait`: let the next engine take over, publish a fresh snapshot, say that all is well."""
        self._switch()
        self.beat()
        self._alive()

    @property
    def quitting(self) -> bool:
        """Whether :meth:`quit` was called."""
        return self._quit.is_set()

    def quit(self) -> None:
        """Ask :meth:`wait` to return; safe in a signal handler."""
        self._quit.set()

    def close(self) -> None:
        """End the job, close the instrument, end every stream. May be called twice."""
        self._quit.set()
        with self._starting:  # what is being opened has to be closed too; no job begins any more
            if self.job is not None:
                self.job.end()
                self._runner.join(pipeline.JOIN_TIMEOUT_S + FRAME_TIMEOUT_S)
            self.board.close()
            self._close_instrument()

    def beat(self) -> None:
        """Publish a fresh snapshot."""
        with self._beating:
            instrument = self.instrument  # another thread may open it anew meanwhile
            if instrument is not None and instrument.motion is not None:
                try:
                    instrument.motion.tick()
                    self._stage = observe_stage(instrument.motion.stage)
                except FirmwareError as exc:
                    if instrument is self.instrument:
                        self._lose_stage(exc)
                found = instrument.motion.tell(self._problems) if instrument is self.instrument else None
                if found == "lost":
                    self._stage_lost = True
                if found is not None and self.job is not None:
                    self.job.end()
            status = self._status()
            warned = warnings(status)
            for key in ("slow", "disk"):
                self._problems.put(key, Notice(*warned[key], "warning") if key in warned else None)
            self.board.publish(status.model_copy(update={"problems": self._problems.all()}))

    def _lose_stage(self, error: FirmwareError) -> None:
        """A fault until a person starts again, which opens the stage anew: where it is, nobody knows."""
        words = f"{str(error).rstrip('.')}. Lift the sphere, then start again."
        self._stage_lost = True
        self._problems.put("stage", Notice("The stage does not answer", words))
        if self._stage is not None:
            self._stage = self._stage.model_copy(update={"on_target": None, "error": str(error)})
        if self.job is not None:
            self.job.end()

    def _note_build(self, progress: BuildProgress) -> None:
        """An engine is made before anything can run; the page says so."""
        self._succession.being_made(progress)
        self.beat()
        self._alive()  # for as long as it goes forward

    def _switch(self) -> None:
        """Let an engine that was made meanwhile take over: between two live views, or before what comes next. Begin a
        live view again that its engine broke off, once another stands in.

        A scan, and a live view of so many frames, are left as they began.
        """
        instrument, job = self.instrument, self.job
        if instrument is None:
            return
        self._succession.made_meanwhile(instrument)
        making, stops = instrument.making, self._runner.stops
        try:
            if not self.running and self._succession.resumes(
                instrument, stops=stops, hands_off=self._problems.hands_off
            ):
                self._begin(lambda opened: live_job(opened, self.board), stops=stops)
            elif making is not None and making.done:
                if making.failure is None and self.running and job is not None and job.endless:
                    self._begin(lambda opened: live_job(opened, self.board), instead_of_live=True, only_then=True)
                else:
                    with self._one_start():
                        self._succession.take_over(instrument, running=self.running)
        except (EdgeError, FirmwareError) as exc:  # somebody starts or stops something: at the next beat, then
            log.debug("the engine waits: %s", exc)

    def _begin(
        self,
        make_job: Callable[[Instrument], Job],
        *,
        instead_of_live: bool = False,
        only_then: bool = False,
        stops: int | None = None,
    ) -> None:
        """``only_then``: if nobody is stopping the live view it replaces; ``stops``: if STOP came no oftener."""
        with self._one_start():
            stops = self._runner.stops if stops is None else stops
            live = self.job is not None and self.job.state is RunState.LIVE
            wanted = self.running and self.job is not None and not self.job.stop.is_set()
            if only_then and not (live and wanted):
                return
            gives_way = instead_of_live and live
            if self.running and not gives_way:
                raise BusyError("The instrument is busy with another job. Stop it first.")
            if self.instrument is not None and self.instrument.motion is not None:
                self.instrument.motion.check_reset()  # first: what is opened anew has forgotten
            instrument = self._opened(stops)
            job, engine = make_job(instrument), instrument.engine
            refusal = self._give_way(job, instrument, engine) if gives_way else None
            if refusal is None and not self._runner.begin(
                job, lambda: self._run(job, instrument, stops), stops=stops, quitting=self._quit, first=self._forget_job
            ):
                refusal = "STOP was pressed while the job was being started."
        if refusal is not None:
            if job.recorder is not None:
                job.recorder.close()
            raise BusyError(f"{refusal} Start it again if it is wanted.")
        log.info("%s begins", job.state.value)
        self.beat()

    def _give_way(self, job: Job, instrument: Instrument, engine: Engine) -> str | None:
        """End the live view for ``job``, which was made for ``engine``; why that cannot begin all the same, or None."""
        if self.job is not None:
            self.job.end()
        self._runner.join(FRAME_TIMEOUT_S)
        if self.running:
            return f"The live view has not ended within {FRAME_TIMEOUT_S:g} s. Wait for its end."
        if job.state is RunState.LIVE:
            self._succession.take_over(instrument, running=False)
        elif instrument.engine is not engine or instrument.broken:
            return "The engine failed while the job was being started."  # the scan's files name the one before
        return None

    def _forget_job(self) -> None:
        """What the one before left on the page, and what was to come after it."""
        self.board.clear_preview()
        self._problems.put("job", None)
        self._succession.broken_off = None

    def _run(self, job: Job, instrument: Instrument, stops: int) -> None:
        """The job thread. Whatever a job raises ends here, once, and is shown."""
        try:
            self._work(job, instrument, stops)
        except StoppedError:
            log.info("the stage was stopped in mid-move")
        except Exception as exc:
            if isinstance(exc, RefusedError) and instrument.motion is not None and instrument.motion.latched:
                log.info("%s ended: %s", job.state.value, exc)  # the interlock's fault is a problem of its own
                return
            job.error = exc
            self._problems.put("job", Notice(f"{job.state.value} ended", str(exc) or type(exc).__name__))
            log.error("%s ended: %s", job.state.value, exc, exc_info=not isinstance(exc, (EdgeError, FirmwareError)))
        else:
            log.info("%s ended after %d frames", job.state.value, job.meter.frames)

    def _work(self, job: Job, instrument: Instrument, stops: int) -> None:
        try:
            job.work(job)
        except EngineError as exc:
            if instrument.engine.backend == "tensorrt" and instrument is self.instrument:
                self._succession.give_up(instrument, exc, resume=stops if job.endless else None)
            raise

    def _status(self) -> Status:
        return observe(
            self.config,
            self.instrument,
            self.job,
            stage=self._stage,
            problems=self._problems,
            start_error=self._start_error,
            begun_ns=self._begun_ns,
            data_dir=self.data_dir,
        )

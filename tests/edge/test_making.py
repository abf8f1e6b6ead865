"""The daemon with TensorRT: what was chosen runs; else the CPU, labelled, until what a thread makes takes over."""

from __future__ import annotations

import functools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge import making
from edge.bench import bench_loop
from edge.config import Config
from edge.daemon import Daemon
from edge.devices import Engine
from edge.engine import load_engine
from edge.engine.builder import BuildJob, BuildProgress
from edge.engine.choice import Candidate, Choice
from edge.errors import EdgeError, EngineError
from edge.jobs import plan_scan
from edge.status import RunState
from export.build_engine import Request, build
from export.plan import PlanKey
from models.optics import Optics
from tests.tensorrt.host_loop import HostLoop, HostThread
from tests.tensorrt.models import ORIN, load_fake

SHAPE_PX = (64, 64)
KEY = PlanKey(
    tensorrt="10.3.0",
    cuda="12.6",
    gpu="Orin, 8 SM",
    compute_capability="8.7",
    l4t="36.4.0",
    onnx_sha256="0" * 64,
    precision="fp16",
    shape_px=SHAPE_PX,
)
CHOICE = Choice(
    model="gain",
    shape_px=SHAPE_PX,
    backend="tensorrt",
    precision="fp32",
    candidates=(
        Candidate(precision="fp16", key=KEY, median_s=2e-3, p99_s=3e-3, psnr_db=60.0),
        Candidate(precision="int8_fp16", key=KEY, problem="21.0 dB from FP32, expected at least 35"),
    ),
    frames=4,
    note="fp16 runs: 2.00 ms a frame, 60.0 dB from FP32",
    chosen_utc="2026-11-21T17:00:00+00:00",
)


class Workshop:
    """Stands for TensorRT: makes engines when it is told, of the CPU's under another name."""

    def __init__(self) -> None:
        self.stored: Choice | None = None
        self.to_do: str | None = None
        self.failure: Exception | None = None
        self.go_on = threading.Event()
        self.frames: list[np.ndarray] = []
        self.closed: list[str] = []
        self.fault: str | None = None
        self.sound = 0  # frames that still go well before the fault
        self.cancelled = False

    def stored_choice(self, job: BuildJob) -> Choice:
        if self.stored is None:
            raise EngineError("No TensorRT plan was chosen yet.")
        return self.stored

    def unfinished(self, job: BuildJob, choice: Choice) -> str | None:
        return self.to_do

    def choose(
        self, job: BuildJob, frames: Any, *, progress: Any, cancelled: threading.Event | None, again: bool = False
    ) -> Choice:
        self.frames = list(frames)
        progress(BuildProgress(model=job.bundle.name, precision="fp16", phase="Building engine", fraction=0.5))
        while not self.go_on.wait(0.005):
            if cancelled is not None and cancelled.is_set():
                self.cancelled = True
                raise EngineError("The build was cancelled.")
        if self.failure is not None:
            raise self.failure
        return CHOICE

    def load_plan(self, job: BuildJob, precision: Any, folder: Path | None) -> Engine:
        counts = job.counts
        engine = load_engine(
            job.bundle,
            frame_shape_px=counts.shape_px,
            pixel_format=counts.pixel_format,
            bit_depth=counts.bit_depth,
            hint="f32",
        )
        if folder is not None:
            engine.backend = "tensorrt"
            infer = engine.infer

            def fail_or_infer(pixels: np.ndarray) -> Any:
                if self.fault is not None:
                    if self.sound == 0:
                        raise EngineError(self.fault)
                    self.sound -= 1
                return infer(pixels)

            engine.infer = fail_or_infer  # type: ignore[method-assign]
        close = engine.close
        engine.close = lambda: (self.closed.append(engine.backend), close())[-1]  # type: ignore[method-assign]
        return engine

    def fall_back(self, job: BuildJob, reason: str) -> tuple[Engine, Choice]:
        note = f"OpenVINO runs in place of TensorRT: {reason}"
        stands_in = CHOICE.model_copy(
            update={"backend": "openvino", "fallback": True, "note": note, "candidates": (), "frames": 0}
        )
        return self.load_plan(job, "fp32", None), stands_in


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    shop = Workshop()
    for name in ("stored_choice", "unfinished", "choose", "load_plan", "fall_back"):
        monkeypatch.setattr(making, name, getattr(shop, name))
    return shop


@pytest.fixture
def make(
    identity_bundle: Path, small_specimen: Path, tmp_path: Path, workshop: Workshop
) -> Iterator[Callable[..., Daemon]]:
    daemons: list[Daemon] = []

    def make_daemon(**engine: Any) -> Daemon:
        config = Config.model_validate(
            {
                "box": {"data_dir": str(tmp_path / "data")},
                "camera": {"shape_px": SHAPE_PX, "fps": 200},
                "engine": {"model": str(identity_bundle), "backend": "tensorrt", "fallback": "openvino", **engine},
                "specimen": {"path": str(small_specimen), "pixel_size_nm": Optics().pixel_size_nm},
                "sphere": {"field_um": 2.0},
            }
        )
        daemons.append(Daemon(config))
        return daemons[-1]

    yield make_daemon
    workshop.go_on.set()
    for daemon in daemons:
        daemon.close()


def finish(daemon: Daemon, workshop: Workshop) -> None:
    """Let the thread make its engine, and wait for that; then the heart beats once."""
    making = daemon.instrument.making
    workshop.go_on.set()
    assert making.wait(10)
    daemon.turn()


def test_a_plan_that_was_chosen_before_runs_at_once_with_its_figures(
    make: Callable[..., Daemon], workshop: Workshop
) -> None:
    workshop.stored = CHOICE
    daemon = make()
    daemon.start_live(frames=3)
    daemon.wait(until_job_ends=True)
    status = daemon.board.status()
    assert (status.engine.backend, status.engine.fallback, status.engine.note) == ("tensorrt", False, CHOICE.note)
    assert [(one.precision, one.median_s, one.problem) for one in status.engine.candidates] == [
        ("fp16", 2e-3, None),
        ("int8_fp16", None, "21.0 dB from FP32, expected at least 35"),
    ]
    assert status.engine.building is None
    assert status.problems == ()
    assert workshop.frames == []


def test_meanwhile_the_cpu_runs_and_the_page_says_so_and_how_far_it_is(
    make: Callable[..., Daemon], workshop: Workshop
) -> None:
    daemon = make()
    daemon.start_live()
    daemon.turn()
    status = daemon.board.status()
    assert (status.state, status.engine.backend, status.engine.fallback) == (RunState.LIVE, "openvino", True)
    assert status.engine.note == "OpenVINO runs in place of TensorRT: No TensorRT plan was chosen yet."
    (problem,) = status.problems
    assert (problem.key, problem.severity) == ("engine", "note")
    assert problem.title == "gain runs on openvino in f32 while an engine is made"
    assert "Then it takes over by itself" in problem.what_to_do
    while not workshop.frames:  # the thread has begun
        daemon.job.thread.join(0.005)
    assert [(frame.shape, frame.dtype) for frame in workshop.frames] == [(SHAPE_PX, np.uint8)] * 4
    daemon.beat()
    building = daemon.board.status().engine.building
    assert (building.precision, building.phase, building.fraction) == ("fp16", "Building engine", 0.5)


def test_the_engine_takes_over_between_two_live_views_by_itself(
    make: Callable[..., Daemon], workshop: Workshop
) -> None:
    daemon = make()
    daemon.start_live()
    first = daemon.job
    finish(daemon, workshop)
    assert daemon.job is not first
    assert not first.running
    assert first.error is None
    daemon.board.wait_preview(-1, timeout_s=10)
    status = daemon.board.status()
    assert (status.state, status.engine.backend, status.engine.fallback) == (RunState.LIVE, "tensorrt", False)
    assert (status.engine.note, status.engine.building, status.problems) == (CHOICE.note, None, ())
    assert workshop.closed == ["openvino"]


def test_a_plan_that_was_chosen_before_runs_while_another_precision_is_tried_again(
    make: Callable[..., Daemon], workshop: Workshop
) -> None:
    workshop.stored, workshop.to_do = CHOICE, "int8_fp16: the builder was killed"
    daemon = make()
    daemon.start_live()
    daemon.turn()
    status = daemon.board.status()
    assert (status.engine.backend, status.engine.fallback) == ("tensorrt", False)
    (problem,) = status.problems
    assert (problem.severity, problem.title) == ("note", "gain runs on tensorrt in f32 while an engine is made")
    finish(daemon, workshop)
    daemon.board.wait_preview(-1, timeout_s=10)
    status = daemon.board.status()
    assert (status.state, status.engine.backend, status.problems) == (RunState.LIVE, "tensorrt", ())
    assert workshop.closed == ["tensorrt"]


def test_a_scan_goes_on_as_it_began_and_loses_no_tile(
    make: Callable[..., Daemon], workshop: Workshop, tmp_path: Path
) -> None:
    daemon = make()
    plan = plan_scan(daemon.open(), region_um=(8, 8), overlap=0.15, settle_s=0)
    daemon.start_scan(plan, tmp_path / "scan")
    scan = daemon.job
    while len(scan.recorder.tiles) < 2:
        scan.thread.join(0.005)
    finish(daemon, workshop)
    assert daemon.job is scan
    scan.thread.join(30)
    assert scan.recorder.complete
    assert json.loads((tmp_path / "scan" / "scan.json").read_text())["facts"]["backend"] == "openvino"
    daemon.turn()
    assert daemon.instrument.engine.backend == "tensorrt"


def test_the_next_job_finds_the_engine_that_was_made(make: Callable[..., Daemon], workshop: Workshop) -> None:
    daemon = make()
    instrument = daemon.open()
    workshop.go_on.set()
    assert instrument.making.wait(10)
    daemon.start_live(frames=3)
    assert instrument.engine.backend == "tensorrt"
    daemon.wait(until_job_ends=True)
    assert (daemon.job.error, daemon.job.meter.frames) == (None, 3)
    assert instrument.pool.free == len(instrument.pool.slots)


def test_a_live_view_that_is_being_stopped_is_not_begun_again(make: Callable[..., Daemon], workshop: Workshop) -> None:
    daemon = make()
    daemon.start_live()
    job = daemon.job
    job.stop.set()  # what STOP does first
    finish(daemon, workshop)
    assert daemon.job is job


@pytest.mark.parametrize("failure", [EngineError("The GPU's memory is full."), RuntimeError("bindings")], ids=str)
def test_a_failed_build_keeps_what_runs_and_the_page_says_what_and_why(
    make: Callable[..., Daemon], workshop: Workshop, failure: Exception
) -> None:
    workshop.failure = failure
    daemon = make()
    daemon.start_live()
    job = daemon.job
    finish(daemon, workshop)
    assert daemon.job is job
    assert job.running
    status = daemon.board.status()
    assert (status.engine.backend, status.engine.fallback, status.engine.building) == ("openvino", True, None)
    (problem,) = status.problems
    assert (problem.severity, problem.title) == ("warning", "gain runs on openvino in f32: no engine could be made")
    assert str(failure) in problem.what_to_do


LOST = "The GPU did not finish a frame: unspecified launch failure. The GPU is lost to this process."
FULL = "The graph of a frame cannot be launched: CUDA_ERROR_OUT_OF_MEMORY. 3 of 8192 MB are free."


def fail(daemon: Daemon, workshop: Workshop, fault: str) -> None:
    """The GPU fails while a job runs; wait for the job's end."""
    job = daemon.job
    workshop.fault = fault
    job.thread.join(60)
    assert not job.running
    assert str(job.error) == fault


@pytest.mark.parametrize("fault", [LOST, FULL], ids=["device lost", "out of memory"])
def test_a_gpu_that_fails_in_the_live_view_gives_way_to_the_cpu_labelled_and_the_view_goes_on(
    make: Callable[..., Daemon], workshop: Workshop, fault: str
) -> None:
    workshop.stored = CHOICE
    daemon = make()
    daemon.start_live()
    assert daemon.board.wait_preview(-1, timeout_s=10) is not None
    first = daemon.job
    fail(daemon, workshop, fault)
    daemon.turn()
    assert daemon.job is not first
    assert daemon.board.wait_preview(-1, timeout_s=10) is not None
    daemon.beat()
    status = daemon.board.status()
    assert (status.state, status.engine.backend, status.engine.fallback) == (RunState.LIVE, "openvino", True)
    assert status.engine.note == f"OpenVINO runs in place of TensorRT: {fault}"
    (problem,) = status.problems
    assert (problem.key, problem.severity) == ("engine", "warning")
    assert problem.title == "gain runs on openvino in f32: TensorRT failed"
    assert problem.what_to_do == f"{fault} Restart the program to try the GPU again."
    assert set(workshop.closed) == {"tensorrt"}


def test_the_command_line_goes_on_on_the_cpu_too(make: Callable[..., Daemon], workshop: Workshop) -> None:
    workshop.stored = CHOICE
    daemon = make()
    daemon.start_live()
    waiting = threading.Thread(target=lambda: daemon.wait(until_job_ends=True))
    waiting.start()
    fail(daemon, workshop, LOST)
    counter, status = daemon.board.wait_status(0, timeout_s=10)
    while (status.state, status.engine.backend) != (RunState.LIVE, "openvino"):
        counter, status = daemon.board.wait_status(counter, timeout_s=10)
    assert waiting.is_alive()
    daemon.stop()
    waiting.join(10)
    assert not waiting.is_alive()


def test_stop_after_the_gpu_failed_keeps_the_view_from_going_on(
    make: Callable[..., Daemon], workshop: Workshop
) -> None:
    workshop.stored = CHOICE
    daemon = make()
    daemon.start_live()
    job = daemon.job
    fail(daemon, workshop, LOST)
    daemon.stop()
    daemon.turn()
    daemon.turn()
    assert daemon.job is job
    assert not daemon.running


def test_a_view_does_not_go_on_by_itself_where_a_person_has_to_look_at_the_stage(
    make: Callable[..., Daemon], workshop: Workshop
) -> None:
    workshop.stored = CHOICE
    daemon = make()
    daemon.start_live()
    job, stage = daemon.job, daemon.instrument.stage
    fail(daemon, workshop, LOST)
    stage.close()  # what an unplugged cable is to those who ask
    daemon.beat()
    daemon.turn()
    assert daemon.job is job
    assert daemon.instrument.stage is stage


@pytest.mark.parametrize("fault", [LOST, FULL], ids=["device lost", "out of memory"])
def test_a_scan_whose_gpu_fails_ends_with_its_tiles_and_the_next_one_runs_on_the_cpu(
    make: Callable[..., Daemon], workshop: Workshop, tmp_path: Path, fault: str
) -> None:
    workshop.stored = CHOICE
    daemon = make()
    plan = plan_scan(daemon.open(), region_um=(8, 8), overlap=0.15, settle_s=0)
    workshop.fault, workshop.sound = fault, 2
    daemon.start_scan(plan, tmp_path / "scan")
    scan = daemon.job
    fail(daemon, workshop, fault)
    daemon.turn()
    assert daemon.job is scan
    daemon.beat()
    assert {problem.key for problem in daemon.board.status().problems} == {"job", "engine"}
    index = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert (index["complete"], len(index["tiles"])) == (False, 2)
    daemon.start_scan(plan, tmp_path / "again")
    daemon.job.thread.join(30)
    assert daemon.job.recorder.complete
    assert json.loads((tmp_path / "again" / "scan.json").read_text())["facts"]["backend"] == "openvino"


@pytest.mark.parametrize("fault", [LOST, FULL], ids=["device lost", "out of memory"])
def test_without_leave_for_a_fallback_the_next_start_opens_the_engine_anew(
    make: Callable[..., Daemon], workshop: Workshop, fault: str
) -> None:
    workshop.stored = CHOICE
    daemon = make(fallback=None)
    daemon.start_live()
    broken = daemon.instrument
    fail(daemon, workshop, fault)
    daemon.turn()
    status = daemon.board.status()
    assert status.state is RunState.FAULT
    words = {problem.key: f"{problem.title}. {problem.what_to_do}" for problem in status.problems}
    assert words["engine"].startswith(f"gain stopped on tensorrt. {fault} Then start again.")
    assert workshop.closed[0] == "tensorrt"
    workshop.fault = None
    daemon.start_live(frames=3)
    daemon.wait(until_job_ends=True)
    assert daemon.instrument is not broken
    assert (daemon.job.error, daemon.job.meter.frames) == (None, 3)
    assert daemon.board.status().engine.backend == "tensorrt"
    assert daemon.board.status().problems == ()


def test_where_the_cpu_does_not_run_the_model_either_both_reasons_are_said(
    make: Callable[..., Daemon], workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(job: BuildJob, reason: str) -> None:
        raise EngineError("There is no memory for OpenVINO.")

    workshop.stored = CHOICE
    monkeypatch.setattr(making, "fall_back", no_memory)
    daemon = make()
    daemon.start_live()
    fail(daemon, workshop, LOST)
    daemon.turn()
    status = daemon.board.status()
    assert status.state is RunState.FAULT
    (engine,) = [problem for problem in status.problems if problem.key == "engine"]
    assert engine.what_to_do == f"{LOST} Nor does the CPU run it: There is no memory for OpenVINO."
    assert daemon.instrument.broken


def test_without_leave_for_a_fallback_nothing_runs_before_the_engine_is_made(
    make: Callable[..., Daemon], workshop: Workshop
) -> None:
    daemon = make(fallback=None)
    opening = threading.Thread(target=daemon.open)
    opening.start()
    counter, status = daemon.board.wait_status(0, timeout_s=10)
    while not status.problems:
        counter, status = daemon.board.wait_status(counter, timeout_s=10)
    assert (status.engine, status.problems[0].title) == (None, "An engine is being made")
    assert "fp16: Building engine, 50 of 100" in status.problems[0].what_to_do
    workshop.go_on.set()
    opening.join(10)
    assert daemon.instrument.engine.backend == "tensorrt"
    assert daemon.board.status().problems == ()


def test_quitting_cancels_a_build_that_everything_waits_for(make: Callable[..., Daemon], workshop: Workshop) -> None:
    daemon = make(fallback=None)
    errors: list[Exception] = []

    def open_it() -> None:
        try:
            daemon.open()
        except EngineError as exc:
            errors.append(exc)

    opening = threading.Thread(target=open_it)
    opening.start()
    while not workshop.frames:
        opening.join(0.005)
    daemon.quit()
    opening.join(10)
    assert [str(error) for error in errors] == ["The build was cancelled."]
    assert daemon.instrument is None
    assert (daemon.board.status().start_error, daemon.board.status().problems) == ("The build was cancelled.", ())


def test_closing_cancels_the_build_and_waits_for_it(make: Callable[..., Daemon], workshop: Workshop) -> None:
    daemon = make()
    daemon.open()
    daemon.close()
    assert workshop.cancelled


def test_the_bench_does_not_measure_what_stands_in(make: Callable[..., Daemon], workshop: Workshop) -> None:
    with pytest.raises(EdgeError, match="openvino would be measured in the place of an engine that is not made yet"):
        bench_loop(make().config, viewers=0, windows=1, frames=400)


def test_an_engine_that_nobody_took_is_closed(make: Callable[..., Daemon], workshop: Workshop) -> None:
    daemon = make()
    daemon.open()
    workshop.go_on.set()
    assert daemon.instrument.making.wait(10)
    daemon.close()
    assert sorted(workshop.closed) == ["openvino", "tensorrt"]


@pytest.fixture
def box(
    new_bundle: Callable[..., Path], small_specimen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """The real choice, plans and engine; only TensorRT, the GPU and the child process are others."""
    load_fake(monkeypatch, "10.3.0")
    monkeypatch.setattr("export.plan.this_device", lambda: ORIN)
    loop = ModuleType("edge.engine.cuda.loop")
    loop.CudaLoop = HostLoop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edge.engine.cuda.loop", loop)
    monkeypatch.setattr("edge.engine.tensorrt.GpuThread", HostThread)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "state").mkdir(mode=0o700)

    def build_here(job: BuildJob, precision: Any, folder: Path, progress: Any, cancelled: threading.Event) -> None:
        request = Request(job.bundle.model_path(precision), folder, job.bundle.name, precision, job.shape_px)
        build(request, emit=lambda event: None, cancelled=cancelled.is_set)

    monkeypatch.setattr(making, "choose", functools.partial(making.choose, build=build_here))
    return Config.model_validate(
        {
            "box": {"data_dir": str(tmp_path / "data")},
            "camera": {"shape_px": SHAPE_PX, "fps": 200},
            "engine": {"model": str(new_bundle()), "backend": "tensorrt", "fallback": "openvino"},
            "specimen": {"path": str(small_specimen), "pixel_size_nm": Optics().pixel_size_nm},
        }
    )


def make_the_engine(daemon: Daemon) -> None:
    assert daemon.open().making.wait(60)
    daemon.turn()
    assert daemon.instrument.engine.backend == "tensorrt"


def test_the_whole_way_on_the_stand_in_for_tensorrt(box: Config) -> None:
    with closing(Daemon(box)) as daemon:
        assert daemon.open().making.wait(60)
        daemon.start_live(frames=5)
        daemon.wait(until_job_ends=True)
        status = daemon.board.status()
        assert (status.engine.backend, status.engine.fallback) == ("tensorrt", False)
        assert [one.problem for one in status.engine.candidates] == [None]
        assert (status.flow.frames, status.flow.copies_per_frame, daemon.job.error) == (5, 0, None)
    with closing(Daemon(box)) as again:  # what was chosen runs at once
        assert again.open().making is None
        assert again.instrument.engine.backend == "tensorrt"


@pytest.mark.parametrize("changed", ["tensorrt", "gpu", "onnx_sha256"])
def test_a_plan_whose_key_changed_is_refused_with_the_command_while_the_cpu_runs_until_a_new_one_takes_over(
    box: Config, changed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Daemon(box)) as daemon:
        make_the_engine(daemon)
    (beside,) = (tmp_path / "state" / "plans").glob("*.plan.json")
    record = json.loads(beside.read_text())
    record["key"][changed] = "0" * 64 if changed == "onnx_sha256" else "another"
    beside.write_text(json.dumps(record))
    with closing(Daemon(box)) as daemon:
        with caplog.at_level("INFO", logger="edge.making"):
            daemon.start_live()
        (refusal,) = [record.getMessage() for record in caplog.records if record.name == "edge.making"]
        command = f"{sys.executable.rpartition('/')[0]}/superlens doctor --selftest --rebuild"
        assert refusal.count("was built for") == refusal.count(command) == 1
        engine = daemon.board.status().engine
        assert (engine.backend, engine.fallback) == ("openvino", True)
        assert engine.note == f"OpenVINO runs in place of TensorRT: {refusal}"
        assert daemon.instrument.making.wait(60)
        daemon.turn()
        daemon.board.wait_preview(-1, timeout_s=10)
        status = daemon.board.status()
        assert (status.state, status.engine.backend, status.engine.fallback) == (RunState.LIVE, "tensorrt", False)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("device lost", "unspecified launch failure"), ("out of memory in a frame", "The GPU's memory is full")],
)
def test_the_stand_in_for_tensorrt_fails_in_the_running_loop_and_the_view_goes_on_on_the_cpu(
    box: Config, fault: str, words: str
) -> None:
    with closing(Daemon(box)) as daemon:
        make_the_engine(daemon)
        daemon.start_live()
        assert daemon.board.wait_preview(-1, timeout_s=10) is not None
        job = daemon.job
        sys.modules["tensorrt"].FAULTS.add(fault)
        job.thread.join(20)
        assert words in str(job.error)
        daemon.turn()
        assert daemon.board.wait_preview(-1, timeout_s=10) is not None
        daemon.beat()
        status = daemon.board.status()
        assert (status.state, status.engine.backend, status.engine.fallback) == (RunState.LIVE, "openvino", True)
        assert words in (status.engine.note or "")

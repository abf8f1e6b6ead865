"""Which plan runs: every decision with figures of our own, and the whole way with real child processes."""

from __future__ import annotations

import fcntl
import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.devices import Engine
from edge.engine import builder
from edge.engine.builder import BuildProgress, Job, build_in_child
from edge.engine.choice import Candidate, Choice, fastest
from edge.engine.measure import REPEATS, WARM_UP
from edge.engine.onnxruntime import OnnxRuntimeEngine
from edge.engine.prepare import Counts
from edge.engine.select import choose, load_plan, open_engine, stored_choice
from edge.errors import ConfigError, EngineError
from export.build_engine import Request, build
from export.errors import CancelledBuildError, PlanError
from export.manifest import Bundle, Precision, load_bundle
from tests.tensorrt.models import ORIN, make_precisions

CAMERA = Counts((32, 48), "mono8", 8)
FRAMES = list(np.random.default_rng(5).integers(0, 200, (3, 32, 48), np.uint8))


@dataclass
class Lab:
    """Builds in this process, and a clock on which a frame takes as long as a test says."""

    frame_s: Mapping[str, float] = field(default_factory=lambda: {"fp16": 2e-3, "int8_fp16": 1e-3, "fp32": 5e-3})
    broken: dict[str, PlanError] = field(default_factory=dict)
    unusable: set[tuple[str, str]] = field(default_factory=set)  # (precision, folder's name)
    built: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    now_s: float = 0.0

    def build(self, job: Job, precision: Precision, folder: Path, progress: Any, cancelled: threading.Event) -> None:
        self.built.append(precision)
        if precision in self.broken:
            raise self.broken[precision]
        request = Request(job.bundle.model_path(precision), folder, job.bundle.name, precision, job.shape_px)
        build(request, emit=lambda event: None, cancelled=cancelled.is_set)

    def load(self, job: Job, precision: Precision, folder: Path | None) -> Engine:
        self.loaded.append(f"{precision} on the CPU" if folder is None else precision)
        if folder is None:
            path, manifest = job.bundle.model_path(precision), job.bundle.manifest(precision)
            return OnnxRuntimeEngine(path, manifest, job.counts, hint="f32")
        if (precision, folder.name) in self.unusable:
            raise EngineError("the GPU's memory is full")
        engine = load_plan(job, precision, folder)
        infer = engine.infer

        def slow(pixels: np.ndarray) -> Mapping[str, np.ndarray]:
            self.now_s += self.frame_s[precision]
            return infer(pixels)

        engine.infer = slow  # type: ignore[method-assign]
        return engine

    def means(self) -> dict[str, Any]:
        return {"build": self.build, "load": self.load, "clock": lambda: self.now_s}


@pytest.fixture
def lab(fake_tensorrt: Callable[..., Any], host_loop: None) -> Lab:
    fake_tensorrt()
    return Lab()


@pytest.fixture
def accurate(tmp_path: Path) -> Bundle:
    """Both fast precisions are near FP32."""
    return load_bundle(make_precisions(tmp_path / "accurate", {"fp16": 1.001, "int8_fp16": 0.999}))


@pytest.fixture
def job(accurate: Bundle, plans: Path) -> Job:
    return Job(accurate, CAMERA, plans)


def figures(choice: Choice) -> dict[str, tuple[float | None, bool]]:
    return {one.precision: (one.median_s and round(one.median_s, 6), one.problem is None) for one in choice.candidates}


def test_the_faster_of_two_accurate_plans_is_kept_with_its_figures(lab: Lab, job: Job) -> None:
    choice = choose(job, FRAMES, **lab.means())
    assert (choice.backend, choice.precision, choice.fallback, choice.frames) == ("tensorrt", "int8_fp16", False, 3)
    assert figures(choice) == {"fp16": (2e-3, True), "int8_fp16": (1e-3, True)}
    assert choice.note.startswith("int8_fp16 runs: 1.00 ms a frame, ")
    stored = job.plans / "gain_32x48.choice.json"
    assert Choice.model_validate_json(stored.read_bytes()) == choice == stored_choice(job)
    assert lab.loaded == ["fp32 on the CPU", "fp16", "int8_fp16"]


def test_int8_that_is_slower_is_not_taken(lab: Lab, job: Job) -> None:
    lab.frame_s = {"fp16": 2e-3, "int8_fp16": 3e-3}
    assert choose(job, FRAMES, **lab.means()).precision == "fp16"


def test_a_fast_plan_that_is_not_accurate_is_not_taken_and_not_kept(lab: Lab, bundle: Bundle, plans: Path) -> None:
    choice = choose(Job(bundle, CAMERA, plans), FRAMES, **lab.means())
    assert figures(choice) == {"fp16": (2e-3, True), "int8_fp16": (1e-3, False)}
    assert choice.precision == "fp16"
    assert "int8_fp16: 20.9 dB from FP32, expected at least 35" in choice.note
    assert sorted(path.name for path in plans.glob("*.plan")) == ["gain_fp16_32x48.plan"]
    assert not (plans / "new").exists()


def test_fp32_is_the_last_resort(lab: Lab, bundle: Bundle, plans: Path) -> None:
    lab.broken["fp16"] = PlanError("TensorRT has no such layer")
    choice = choose(Job(bundle, CAMERA, plans), FRAMES, **lab.means())
    assert (choice.precision, lab.built) == ("fp32", ["fp16", "int8_fp16", "fp32"])
    assert "fp16: not built (TensorRT has no such layer)" in choice.note


def test_a_bundle_of_fp32_alone_is_built_once(lab: Lab, tmp_path: Path, plans: Path) -> None:
    job = Job(load_bundle(make_precisions(tmp_path / "one")), CAMERA, plans)
    assert choose(job, FRAMES, **lab.means()).precision == "fp32"
    assert lab.built == ["fp32"]
    assert stored_choice(job).precision == "fp32"


def test_nothing_usable_is_an_error_with_every_reason(lab: Lab, job: Job) -> None:
    lab.broken = {name: PlanError(f"{name} is broken") for name in ("fp16", "int8_fp16", "fp32")}
    with pytest.raises(EngineError, match=r"fp16: not built \(fp16 is .*int8_fp16: not .*fp32: not built"):
        choose(job, FRAMES, **lab.means())
    assert not list(job.plans.glob("*.json"))


def test_what_was_chosen_is_not_built_or_measured_again(lab: Lab, job: Job) -> None:
    choice = choose(job, FRAMES, **lab.means())
    lab.loaded.clear()
    engine, again = open_engine(job, lambda: pytest.fail("nothing is to be measured"), fallback=False, **lab.means())
    engine.close()
    assert again == choice
    assert (lab.built, lab.loaded) == (["fp16", "int8_fp16"], ["int8_fp16"])


def test_plans_in_order_are_measured_without_a_build(lab: Lab, job: Job) -> None:
    choose(job, FRAMES, **lab.means())
    (job.plans / "gain_32x48.choice.json").unlink()
    choose(job, FRAMES, **lab.means())
    assert lab.built == ["fp16", "int8_fp16"]


@pytest.mark.parametrize("changed", ["tensorrt", "gpu", "compute_capability", "l4t", "cuda", "onnx_sha256"])
def test_any_key_that_changed_refuses_the_choice_and_builds_again(
    lab: Lab, job: Job, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    choose(job, FRAMES, **lab.means())
    for name in ("fp16", "int8_fp16"):
        beside = job.plans / f"gain_{name}_32x48.plan.json"
        record = json.loads(beside.read_text())
        record["key"][changed] = "0" * 64 if changed == "onnx_sha256" else "another"
        beside.write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"was built for .*\(here .*Build it: python -m export\.build_engine"):
        stored_choice(job)
    engine, _ = open_engine(job, lambda: FRAMES, fallback=False, **lab.means())
    engine.close()
    assert lab.built == ["fp16", "int8_fp16"] * 2


def test_a_precision_that_came_later_is_measured_too(lab: Lab, job: Job, tmp_path: Path) -> None:
    small = replace(job, bundle=load_bundle(make_precisions(tmp_path / "small", {"fp16": 1.001})))
    assert choose(small, FRAMES, **lab.means()).precision == "fp16"
    with pytest.raises(EngineError, match="int8_fp16 of gain has changed since"):
        stored_choice(job)


def test_a_failed_rebuild_keeps_the_plan_before_and_says_so(lab: Lab, job: Job) -> None:
    choose(job, FRAMES, **lab.means())
    before = (job.plans / "gain_int8_fp16_32x48.plan").read_bytes()
    lab.broken["int8_fp16"] = PlanError("No space left on device")
    choice = choose(job, FRAMES, again=True, **lab.means())
    assert choice.precision == "int8_fp16"
    assert "the plan built before is used: not built (No space left on device)" in choice.note
    assert (job.plans / "gain_int8_fp16_32x48.plan").read_bytes() == before


def test_a_new_plan_that_fails_does_not_replace_the_one_before(lab: Lab, job: Job) -> None:
    choose(job, FRAMES, **lab.means())
    lab.unusable = {("int8_fp16", "new")}
    choice = choose(job, FRAMES, again=True, **lab.means())
    assert choice.precision == "int8_fp16"
    assert "the plan built before is used: does not run (the GPU's memory is full)" in choice.note


def test_a_cancelled_build_ends_the_choice_and_leaves_the_one_before(lab: Lab, job: Job) -> None:
    choice = choose(job, FRAMES, **lab.means())
    lab.broken["fp16"] = CancelledBuildError("stop")
    with pytest.raises(EngineError, match=r"cancelled\. What ran before goes on"):
        choose(job, FRAMES, again=True, **lab.means())
    assert stored_choice(job) == choice


def test_the_cpu_runs_labelled_only_where_it_is_allowed(lab: Lab, job: Job) -> None:
    lab.broken = {name: PlanError("the builder was killed") for name in ("fp16", "int8_fp16", "fp32")}
    with pytest.raises(EngineError, match="the builder was killed"):
        open_engine(job, lambda: FRAMES, fallback=False, **lab.means())
    engine, choice = open_engine(job, lambda: FRAMES, fallback=True, **lab.means())
    assert (choice.backend, choice.precision, choice.fallback) == ("openvino", "fp32", True)
    assert choice.note.startswith("OpenVINO runs in place of TensorRT: No TensorRT plan of gain can be used.")
    engine.close()


def test_a_plan_that_does_not_load_any_more_falls_back_too(lab: Lab, job: Job) -> None:
    choose(job, FRAMES, **lab.means())
    lab.unusable = {("int8_fp16", "plans")}
    with pytest.raises(EngineError, match="memory is full"):
        open_engine(job, lambda: FRAMES, fallback=False, **lab.means())
    engine, choice = open_engine(job, lambda: FRAMES, fallback=True, **lab.means())
    assert choice.fallback
    engine.close()


def test_without_tensorrt_the_fallback_is_labelled_with_that(
    job: Job, fake_tensorrt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    engine, choice = open_engine(job, lambda: FRAMES, fallback=True)
    assert (engine.backend, engine.precision) == ("openvino", "f32")
    assert "TensorRT cannot be imported" in choice.note
    engine.close()


@pytest.mark.parametrize(
    "frames", [[], [np.zeros((32, 48), np.uint16)], [np.zeros((32, 32), np.uint8)]], ids=["none", "dtype", "shape"]
)
def test_frames_that_are_not_the_cameras_are_refused(lab: Lab, job: Job, frames: list[np.ndarray]) -> None:
    with pytest.raises(ConfigError, match=r"frames of \(32, 48\) px uint8"):
        choose(job, frames, **lab.means())


def test_two_processes_do_not_build_at_once(lab: Lab, job: Job) -> None:
    with (job.plans / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match="Another process builds engines"):
            choose(job, FRAMES, **lab.means())


def test_a_folder_that_others_write_is_refused(lab: Lab, job: Job) -> None:
    job.plans.chmod(0o777)
    with pytest.raises(EngineError, match="others could put"):
        choose(job, FRAMES, **lab.means())


def test_a_choice_that_is_damaged_is_made_again(lab: Lab, job: Job) -> None:
    choose(job, FRAMES, **lab.means())
    (job.plans / "gain_32x48.choice.json").write_text("{}")
    with pytest.raises(EngineError, match="is no choice of a plan"):
        stored_choice(job)
    engine, choice = open_engine(job, lambda: FRAMES, fallback=False, **lab.means())
    engine.close()
    assert choice.precision == "int8_fp16"


def test_the_median_counts_and_the_first_frames_do_not(lab: Lab, job: Job) -> None:
    seen: list[float] = []

    def clock() -> float:
        seen.append(0.0)
        frame, ends = divmod(len(seen) - 1, 2)
        frame %= WARM_UP + REPEATS
        length_s = 9.0 if frame < WARM_UP else 0.004 if frame % 10 else 0.5
        return length_s if ends else 0.0

    choice = choose(job, FRAMES, build=lab.build, load=lab.load, clock=clock)
    assert [(one.median_s, one.p99_s) for one in choice.candidates] == [(0.004, 0.5)] * 2


def test_fastest_takes_only_what_was_measured_and_has_no_problem(lab: Lab, job: Job) -> None:
    key = job.key("fp16")
    bad = Candidate(precision="int8_fp16", key=key, median_s=1e-3, problem="not accurate")
    good = Candidate(precision="fp16", key=key, median_s=2e-3, note="as it was")
    assert fastest([bad, good]) == good
    assert fastest([bad]) is None


class TestWithChildProcesses:
    """The builder as it runs on a device, on the stand-ins."""

    @pytest.fixture
    def on_device(self, lab: Lab, child_environment: pytest.MonkeyPatch) -> None:
        child_environment.setattr("export.plan.this_device", lambda: ORIN._replace(l4t=None))

    def test_both_are_built_with_progress_and_the_accurate_one_runs(
        self, on_device: None, bundle: Bundle, plans: Path
    ) -> None:
        seen: list[BuildProgress] = []
        engine, choice = open_engine(Job(bundle, CAMERA, plans), lambda: FRAMES, fallback=False, progress=seen.append)
        assert (engine.backend, engine.precision, choice.precision) == ("tensorrt", "fp16", "fp16")
        phases = list(dict.fromkeys(one.phase for one in seen if one.precision == "fp16"))
        assert phases[-2:] == ["Building engine", "Measuring"]
        slot = engine.allocate(1).acquire(timeout_s=0)
        slot[:] = FRAMES[0]
        assert np.abs(engine.infer(slot)["enhanced"].astype(int) - FRAMES[0]).max() <= 1
        engine.close()

    def test_cancelling_asks_the_child_to_stop(
        self, on_device: None, job: Job, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setattr(builder, "GRACE_S", 1e9)  # it is asked, not killed
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        stop = threading.Event()
        with pytest.raises(CancelledBuildError):
            build_in_child(job, "fp16", job.plans, lambda _: stop.set(), stop)
        assert not list(job.plans.iterdir())

    def test_whoever_waits_for_a_silent_build_is_told_that_it_goes_on(
        self, on_device: None, job: Job, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setattr(builder, "_POLL_S", 0.0)  # every moment without a line is a silence
        child_environment.setattr(builder, "_SILENCE_S", 0.0)
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        stop, seen = threading.Event(), []

        def listen(progress: BuildProgress) -> None:
            seen.append(progress)
            if seen.count(progress) == 3:
                stop.set()

        with pytest.raises(CancelledBuildError):
            build_in_child(job, "fp16", job.plans, listen, stop)

    def test_a_child_that_does_not_stop_is_killed(
        self, on_device: None, job: Job, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setattr(builder, "GRACE_S", 0.0)
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        stop = threading.Event()
        with pytest.raises(CancelledBuildError):
            build_in_child(job, "fp16", job.plans, lambda _: stop.set(), stop)

    def test_a_child_that_was_killed_is_an_error_that_names_the_signal(
        self, on_device: None, job: Job, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "killed build")
        with pytest.raises(PlanError, match=r"ended by SIGKILL; .*the memory was full"):
            build_in_child(job, "fp16", job.plans, lambda _: None, threading.Event())

    def test_a_failed_build_comes_back_in_the_builders_words(
        self, on_device: None, job: Job, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "Builder.build_serialized_network")
        with pytest.raises(
            PlanError, match=r"could not build gain_fp16\.onnx: Builder\.build_serialized_network failed"
        ):
            build_in_child(job, "fp16", job.plans, lambda _: None, threading.Event())

    def test_a_listener_that_fails_takes_the_child_with_it(
        self, on_device: None, job: Job, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")

        def broken(progress: BuildProgress) -> None:
            raise ValueError("a listener")

        with pytest.raises(ValueError, match="a listener"):
            build_in_child(job, "fp16", job.plans, broken, threading.Event())
        assert not list(job.plans.iterdir())

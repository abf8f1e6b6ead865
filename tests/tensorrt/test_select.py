"""Which plan runs: every decision with figures of our own, and the whole way with real child processes."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import making
from edge.devices import Engine
from edge.engine import builder, find_bundle, load_engine, select
from edge.engine.builder import BuildJob, BuildProgress, build_in_child
from edge.engine.choice import LEAST_PSNR_DB, MOST_ATTEMPTS, Candidate, Choice, fastest
from edge.engine.measure import REPEATS, TEXTURES, WARM_UP, pictures_of, psnr_db, textures
from edge.engine.onnxruntime import OnnxRuntimeEngine
from edge.engine.prepare import Counts
from edge.engine.select import choose, fall_back, load_plan, stored_choice, unfinished
from edge.engine.tiling import TiledEngine
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

    def build(
        self, job: BuildJob, precision: Precision, folder: Path, progress: Any, cancelled: threading.Event
    ) -> None:
        self.built.append(precision)
        if precision in self.broken:
            raise self.broken[precision]
        request = Request(job.bundle.model_path(precision), folder, job.bundle.name, precision, job.shape_px)
        build(request, emit=lambda event: None, cancelled=cancelled.is_set)

    def load(self, job: BuildJob, precision: Precision, folder: Path | None) -> Engine:
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
def begin(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Engine, Choice, making.Making | None]]:
    """What the instrument begins with, in this lab; an engine that was begun with is closed at once."""
    monkeypatch.setattr(making, "choose", functools.partial(choose, **lab.means()))
    monkeypatch.setattr(making, "fall_back", functools.partial(fall_back, load=lab.load))
    monkeypatch.setattr(making, "load_plan", lab.load)

    def open_and_close(
        job: BuildJob, frames: Callable[[], Any] = lambda: FRAMES, *, fallback: bool = False, **options: Any
    ) -> tuple[Engine, Choice, making.Making | None]:
        engine, choice, made = making.open_engine(job, frames, slots=2, fallback=fallback, **options)
        engine.close()
        return engine, choice, made

    return open_and_close


def finish(made: making.Making) -> Choice:
    """Let it choose as it does beside what runs; the engine is closed at once."""
    made.start()
    assert made.wait(60)
    engine, _, choice = made.made()
    engine.close()
    return choice


@pytest.fixture
def accurate(tmp_path: Path) -> Bundle:
    """Both fast precisions are near FP32."""
    return load_bundle(make_precisions(tmp_path / "accurate", {"fp16": 1.001, "int8_fp16": 0.999}))


@pytest.fixture
def job(accurate: Bundle, plans: Path) -> BuildJob:
    return BuildJob(accurate, CAMERA, plans)


def figures(choice: Choice) -> dict[str, tuple[float | None, bool]]:
    return {one.precision: (one.median_s and round(one.median_s, 6), one.problem is None) for one in choice.candidates}


def test_the_faster_of_two_accurate_plans_is_kept_with_its_figures(lab: Lab, job: BuildJob) -> None:
    choice = choose(job, FRAMES, **lab.means())
    assert (choice.backend, choice.precision, choice.fallback) == ("tensorrt", "int8_fp16", False)
    assert choice.frames == len(FRAMES) + TEXTURES
    assert figures(choice) == {"fp16": (2e-3, True), "int8_fp16": (1e-3, True)}
    assert choice.note.startswith("int8_fp16 runs: 1.00 ms a frame, ")
    stored = job.plans / "gain_32x48.choice.json"
    assert Choice.model_validate_json(stored.read_bytes()) == choice == stored_choice(job)
    assert lab.loaded == ["fp32 on the CPU", "fp16", "int8_fp16"]


def test_int8_that_is_slower_is_not_taken(lab: Lab, job: BuildJob) -> None:
    lab.frame_s = {"fp16": 2e-3, "int8_fp16": 3e-3}
    assert choose(job, FRAMES, **lab.means()).precision == "fp16"


def test_a_fast_plan_that_is_not_accurate_is_not_taken_and_not_kept(lab: Lab, bundle: Bundle, plans: Path) -> None:
    choice = choose(BuildJob(bundle, CAMERA, plans), FRAMES, **lab.means())
    assert figures(choice) == {"fp16": (2e-3, True), "int8_fp16": (1e-3, False)}
    assert choice.precision == "fp16"
    assert "int8_fp16: 19.5 dB from FP32, expected at least 35" in choice.note
    assert sorted(path.name for path in plans.glob("*.plan")) == ["gain_fp16_32x48.plan"]
    assert not (plans / "new").exists()


def test_fp32_is_the_last_resort(lab: Lab, bundle: Bundle, plans: Path) -> None:
    lab.broken["fp16"] = PlanError("TensorRT has no such layer")
    choice = choose(BuildJob(bundle, CAMERA, plans), FRAMES, **lab.means())
    assert (choice.precision, lab.built) == ("fp32", ["fp16", "int8_fp16", "fp32"])
    assert "fp16: not built (TensorRT has no such layer)" in choice.note


def test_a_bundle_of_fp32_alone_is_built_once(lab: Lab, tmp_path: Path, plans: Path) -> None:
    job = BuildJob(load_bundle(make_precisions(tmp_path / "one")), CAMERA, plans)
    assert choose(job, FRAMES, **lab.means()).precision == "fp32"
    assert lab.built == ["fp32"]
    assert stored_choice(job).precision == "fp32"


def test_nothing_usable_is_an_error_with_every_reason(lab: Lab, job: BuildJob) -> None:
    lab.broken = {name: PlanError(f"{name} is broken") for name in ("fp16", "int8_fp16", "fp32")}
    with pytest.raises(EngineError, match=r"fp16: not built \(fp16 is .*int8_fp16: not .*fp32: not built"):
        choose(job, FRAMES, **lab.means())
    assert not list(job.plans.glob("*.json"))


@pytest.mark.parametrize("counts", [0, 2], ids=["black", "nearly black"])
def test_a_wrong_plan_is_refused_although_the_camera_sees_nothing(
    lab: Lab, tmp_path: Path, plans: Path, counts: int
) -> None:
    """A cap on the lens, a lamp that is off: a tenth of nothing is nothing too."""
    gains: dict[Precision, float] = {"fp16": 1.001, "int8_fp16": 0.1}
    job = BuildJob(load_bundle(make_precisions(tmp_path / "dark", gains)), CAMERA, plans)
    choice = choose(job, [np.full((32, 48), counts, np.uint8)] * 4, **lab.means())
    assert choice.precision == "fp16"
    (_, wrong) = choice.candidates
    assert wrong.psnr_db is not None
    assert wrong.psnr_db < 10
    assert wrong.problem is not None


@pytest.mark.parametrize(
    ("pixel_format", "bit_depth"),
    [("mono8", 8), ("mono10p", 10), ("mono12p", 12), ("mono16", 12), ("bayer_rg8", 8), ("rgb8", 8)],
)
def test_the_frames_with_something_to_see_are_the_cameras_and_always_the_same(
    pixel_format: Any, bit_depth: int
) -> None:
    counts = Counts((33, 50), pixel_format, bit_depth)
    first, second = textures(counts)
    for frame in (first, second):
        assert (frame.shape, frame.dtype) == (counts.slot_shape, np.dtype(counts.dtype))
        network = np.empty((33, 50), np.float32)
        counts.to_network(frame, network)
        assert 0.15 < network.min() < network.max() < 0.85
        assert network.std() > 0.08
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, textures(counts)[0])


@pytest.mark.parametrize("name", ["enhance-rt", "enhance-rt-x2", "srcnn"])
def test_a_sound_int8_network_passes_on_them_with_room_to_spare(name: str) -> None:
    counts = Counts((128, 128), "mono8", 8)
    bundle = find_bundle(name)
    camera: dict[str, Any] = {"frame_shape_px": (128, 128), "pixel_format": "mono8", "bit_depth": 8, "hint": "f32"}
    engines = [load_engine(bundle, **camera, precision=one) for one in ("fp32", "int8")]
    for frame in textures(counts):
        wanted, found = (pictures_of(engine, frame)["enhanced"] for engine in engines)
        assert psnr_db(found, wanted, 255) > LEAST_PSNR_DB + 5
    for engine in engines:
        engine.close()


def test_large_frames_are_cut_for_the_reference_and_the_fallback_on_the_cpu(
    plans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, srcnn takes 400 bytes a pixel in f32: 6.7 GB at 4096 x 4096."""
    monkeypatch.setattr("edge.engine.tiling.TILE_PX", 64)
    job = BuildJob(find_bundle("srcnn"), Counts((96, 200), "mono8", 8), plans)
    engine, choice = fall_back(job, "the GPU was lost")
    assert isinstance(engine, TiledEngine)
    assert (engine.backend, engine.precision, choice.fallback) == ("openvino", "f32", True)
    whole = load_engine(job.bundle, frame_shape_px=(96, 200), pixel_format="mono8", bit_depth=8, hint="f32")
    frame = textures(job.counts)[0]
    found, wanted = (pictures_of(one, frame)["enhanced"].astype(int) for one in (engine, whole))
    assert np.abs(found - wanted).max() <= 1
    engine.close()
    whole.close()


def test_what_was_chosen_is_not_built_or_measured_again(lab: Lab, job: BuildJob, begin: Callable[..., Any]) -> None:
    choice = choose(job, FRAMES, **lab.means())
    lab.loaded.clear()
    _, again, made = begin(job, lambda: pytest.fail("nothing is to be measured"))
    assert (again, made) == (choice, None)
    assert (lab.built, lab.loaded) == (["fp16", "int8_fp16"], ["int8_fp16"])


def test_asked_to_everything_is_built_and_measured_again_here_and_now(
    lab: Lab, job: BuildJob, begin: Callable[..., Any]
) -> None:
    choose(job, FRAMES, **lab.means())
    engine, choice, made = begin(job, fallback=True, again=True)
    assert (engine.backend, choice.fallback, made) == ("tensorrt", False, None)
    assert lab.built == ["fp16", "int8_fp16"] * 2


def test_plans_in_order_are_measured_without_a_build(lab: Lab, job: BuildJob) -> None:
    choose(job, FRAMES, **lab.means())
    (job.plans / "gain_32x48.choice.json").unlink()
    choose(job, FRAMES, **lab.means())
    assert lab.built == ["fp16", "int8_fp16"]


@pytest.mark.parametrize("changed", ["tensorrt", "gpu", "compute_capability", "l4t", "cuda", "onnx_sha256"])
def test_any_key_that_changed_refuses_the_choice_and_builds_again(
    lab: Lab, job: BuildJob, begin: Callable[..., Any], changed: str
) -> None:
    choose(job, FRAMES, **lab.means())
    for name in ("fp16", "int8_fp16"):
        beside = job.plans / f"gain_{name}_32x48.plan.json"
        record = json.loads(beside.read_text())
        record["key"][changed] = "0" * 64 if changed == "onnx_sha256" else "another"
        beside.write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"was built for .*\(here .*: superlens doctor --selftest --rebuild \("):
        stored_choice(job)
    begin(job)
    assert lab.built == ["fp16", "int8_fp16"] * 2


def test_the_service_is_told_where_its_plans_are_kept(lab: Lab, job: BuildJob, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(job, FRAMES, **lab.means())
    (job.plans / "gain_int8_fp16_32x48.plan").unlink()
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/superlens")
    user = pwd.getpwuid(os.geteuid()).pw_name
    command = f"sudo -u {user} env STATE_DIRECTORY=/var/lib/superlens .*/superlens doctor --selftest --rebuild"
    with pytest.raises(EngineError, match=f"measure it: {command}"):
        stored_choice(job)


@pytest.mark.parametrize("file", ["gain_32x48.choice.json", "gain_int8_fp16_32x48.plan"])
def test_a_file_that_only_root_may_read_is_an_error_that_says_so_and_the_cpu_runs(
    lab: Lab, job: BuildJob, begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Who rebuilds with sudo makes such files."""
    choose(job, FRAMES, **lab.means())
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: _refuse(errno.EACCES) if path == job.plans / file else read(path)
    )
    with pytest.raises(EngineError, match=rf"{file} cannot be read: Permission denied\. .*chown -R \S+ {job.plans}"):
        stored_choice(job)
    _, choice, made = begin(job, fallback=True)
    assert choice.fallback
    assert made is not None


def test_a_folder_that_only_root_may_write_says_whose_it_must_be(
    lab: Lab, job: BuildJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_alone", lambda folder: _refuse(errno.EACCES))
    with pytest.raises(EngineError, match=rf"kept in .*: Permission denied\. .*sudo chown -R \S+ {job.plans}"):
        choose(job, FRAMES, **lab.means())


def test_a_plan_that_nobody_measured_is_refused_and_measured(
    lab: Lab, job: BuildJob, tmp_path: Path, begin: Callable[..., Any]
) -> None:
    """Built by hand, it has a sound record, but the figures are those of the one before."""
    choose(job, FRAMES, **lab.means())
    plan = job.plans / "gain_int8_fp16_32x48.plan"
    wrong = load_bundle(make_precisions(tmp_path / "wrong", {"fp16": 0.1}))
    onnx = wrong.model_path("fp16").read_bytes()  # something else under the same key
    facts = plan.read_bytes()[len(b"fake plan\n") + 32 :].partition(b"\n")[0]
    plan.write_bytes(b"fake plan\n" + hashlib.sha256(facts + b"\n" + onnx).digest() + facts + b"\n" + onnx)
    beside = plan.with_name(f"{plan.name}.json")
    record = json.loads(beside.read_text()) | {"sha256": hashlib.sha256(plan.read_bytes()).hexdigest()}
    beside.write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"not the one that was measured at .*superlens doctor --selftest --rebuild"):
        stored_choice(job)
    choice = begin(job)[1]
    assert choice.precision == "fp16"
    assert lab.built == ["fp16", "int8_fp16"]  # it is in order: measuring is enough
    measured = {one.precision: one for one in choice.candidates}["int8_fp16"]
    assert measured.plan_sha256 == record["sha256"]
    assert "dB from FP32" in (measured.problem or "")


def test_a_bundle_that_lost_the_chosen_precision_is_chosen_anew(
    lab: Lab, job: BuildJob, tmp_path: Path, begin: Callable[..., Any]
) -> None:
    assert choose(job, FRAMES, **lab.means()).precision == "int8_fp16"
    small = replace(job, bundle=load_bundle(make_precisions(tmp_path / "small", {"fp16": 1.001})))
    with pytest.raises(EngineError, match=r"gain has changed since .*: it has no int8_fp16 any more"):
        stored_choice(small)
    assert begin(small)[1].precision == "fp16"


@pytest.mark.parametrize("kind", ["not built", "does not run"])
def test_what_could_not_be_built_or_run_once_is_tried_again_at_the_next_start(
    lab: Lab, job: BuildJob, begin: Callable[..., Any], kind: str
) -> None:
    if kind == "not built":
        lab.broken = {name: PlanError("The builder was ended by SIGKILL") for name in ("fp16", "int8_fp16")}
    else:
        lab.unusable = {(name, "new") for name in ("fp16", "int8_fp16")}
    assert begin(job)[1].precision == "fp32"
    lab.broken, lab.unusable = {}, set()
    words = unfinished(job, stored_choice(job)) or ""
    assert words.startswith(f"gain is chosen again, for what may have passed. fp16: {kind}")
    _, choice, made = begin(job)
    assert choice.precision == "fp32"  # what is there runs meanwhile
    assert finish(made).precision == "int8_fp16"
    choice = stored_choice(job)
    assert (choice.precision, unfinished(job, choice)) == ("int8_fp16", None)


def test_one_precision_that_failed_does_not_take_the_other_off_the_gpu(
    lab: Lab, job: BuildJob, begin: Callable[..., Any]
) -> None:
    lab.broken["int8_fp16"] = PlanError("The builder was ended by SIGKILL")
    begin(job)
    lab.broken.clear()
    lab.loaded.clear()
    engine, choice, made = begin(job, fallback=True)
    assert (engine.backend, choice.precision, choice.fallback, lab.loaded) == ("tensorrt", "fp16", False, ["fp16"])
    assert finish(made).precision == "int8_fp16"


def test_a_key_of_another_precision_that_changed_does_not_take_this_one_off_the_gpu(
    lab: Lab, job: BuildJob, begin: Callable[..., Any], tmp_path: Path
) -> None:
    choose(job, FRAMES, **lab.means())
    other = replace(job, bundle=load_bundle(make_precisions(tmp_path / "new", {"fp16": 1.002, "int8_fp16": 0.999})))
    _, choice, made = begin(other, fallback=True)
    assert (choice.precision, choice.fallback) == ("int8_fp16", False)
    assert lab.built == ["fp16", "int8_fp16"]
    finish(made)
    assert lab.built == ["fp16", "int8_fp16", "fp16"]
    assert unfinished(other, stored_choice(other)) is None


def test_what_fails_at_every_start_is_given_up_in_the_end_until_somebody_asks(
    lab: Lab, job: BuildJob, begin: Callable[..., Any]
) -> None:
    lab.broken["int8_fp16"] = PlanError("no such layer")
    for start in range(1, MOST_ATTEMPTS + 3):
        _, choice, made = begin(job)
        assert choice.precision == "fp16"
        assert (made is not None) == (1 < start <= MOST_ATTEMPTS)
        if made is not None:
            finish(made)
        assert lab.built.count("int8_fp16") == min(start, MOST_ATTEMPTS)
    assert lab.built.count("fp16") == 1
    lab.broken.clear()
    assert begin(job, again=True)[1].precision == "int8_fp16"


def test_a_plan_that_is_not_accurate_is_not_tried_again(
    lab: Lab, bundle: Bundle, plans: Path, begin: Callable[..., Any]
) -> None:
    job = BuildJob(bundle, CAMERA, plans)
    for _ in range(2):
        assert begin(job)[1].precision == "fp16"
    assert lab.built == ["fp16", "int8_fp16"]


def test_a_precision_that_came_later_is_measured_too(lab: Lab, job: BuildJob, tmp_path: Path) -> None:
    small = replace(job, bundle=load_bundle(make_precisions(tmp_path / "small", {"fp16": 1.001})))
    assert choose(small, FRAMES, **lab.means()).precision == "fp16"
    assert (unfinished(job, stored_choice(job)) or "").startswith("int8_fp16 of gain has changed since")


def test_a_failed_rebuild_keeps_the_plan_before_and_says_so(lab: Lab, job: BuildJob) -> None:
    choose(job, FRAMES, **lab.means())
    before = (job.plans / "gain_int8_fp16_32x48.plan").read_bytes()
    lab.broken["int8_fp16"] = PlanError("No space left on device")
    choice = choose(job, FRAMES, again=True, **lab.means())
    assert choice.precision == "int8_fp16"
    assert "the plan built before is used: not built (No space left on device)" in choice.note
    assert (job.plans / "gain_int8_fp16_32x48.plan").read_bytes() == before


def test_a_new_plan_that_fails_does_not_replace_the_one_before(lab: Lab, job: BuildJob) -> None:
    choose(job, FRAMES, **lab.means())
    lab.unusable = {("int8_fp16", "new")}
    choice = choose(job, FRAMES, again=True, **lab.means())
    assert choice.precision == "int8_fp16"
    assert "the plan built before is used: does not run (the GPU's memory is full)" in choice.note


def test_a_cancelled_build_ends_the_choice_and_leaves_the_one_before(lab: Lab, job: BuildJob) -> None:
    choice = choose(job, FRAMES, **lab.means())
    lab.broken["fp16"] = CancelledBuildError("stop")
    with pytest.raises(EngineError, match=r"cancelled\. What ran before goes on"):
        choose(job, FRAMES, again=True, **lab.means())
    assert stored_choice(job) == choice


def test_the_cpu_runs_labelled_only_where_it_is_allowed(lab: Lab, job: BuildJob, begin: Callable[..., Any]) -> None:
    lab.broken = {name: PlanError("the builder was killed") for name in ("fp16", "int8_fp16", "fp32")}
    with pytest.raises(EngineError, match="the builder was killed"):
        begin(job)
    _, choice, made = begin(job, fallback=True)
    assert (choice.backend, choice.precision, choice.fallback) == ("openvino", "fp32", True)
    assert choice.note.startswith("OpenVINO runs in place of TensorRT: No TensorRT plan was chosen yet for gain")
    assert made is not None


def test_a_plan_that_does_not_load_any_more_falls_back_too(lab: Lab, job: BuildJob, begin: Callable[..., Any]) -> None:
    choose(job, FRAMES, **lab.means())
    lab.unusable = {("int8_fp16", "plans")}
    assert begin(job)[1].precision == "fp16"  # measured anew: it does not run
    choose(job, FRAMES, **lab.means())
    lab.unusable = {("fp16", "plans"), ("int8_fp16", "plans")}
    _, choice, made = begin(job, fallback=True)
    assert choice.fallback
    assert made is not None


def test_without_tensorrt_the_fallback_is_labelled_with_that(
    job: BuildJob, fake_tensorrt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    engine, choice, _ = making.open_engine(job, lambda: FRAMES, slots=1, fallback=True)
    assert (engine.backend, engine.precision) == ("openvino", "f32")
    assert "TensorRT cannot be imported" in choice.note
    engine.close()


@pytest.mark.parametrize(
    "frames", [[], [np.zeros((32, 48), np.uint16)], [np.zeros((32, 32), np.uint8)]], ids=["none", "dtype", "shape"]
)
def test_frames_that_are_not_the_cameras_are_refused(lab: Lab, job: BuildJob, frames: list[np.ndarray]) -> None:
    with pytest.raises(ConfigError, match=r"frames of \(32, 48\) px uint8"):
        choose(job, frames, **lab.means())


def test_two_processes_do_not_build_at_once(lab: Lab, job: BuildJob) -> None:
    with (job.plans / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match="Another process builds engines"):
            choose(job, FRAMES, **lab.means())


def test_a_folder_that_others_write_is_refused(lab: Lab, job: BuildJob) -> None:
    job.plans.chmod(0o777)
    with pytest.raises(EngineError, match="others could put"):
        choose(job, FRAMES, **lab.means())


@pytest.mark.parametrize("spoil", ["empty", "no figures"])
def test_a_choice_that_is_damaged_is_made_again(lab: Lab, job: BuildJob, begin: Callable[..., Any], spoil: str) -> None:
    choice = choose(job, FRAMES, **lab.means())
    text = "{}" if spoil == "empty" else choice.model_copy(update={"candidates": ()}).model_dump_json()
    (job.plans / "gain_32x48.choice.json").write_text(text)
    with pytest.raises(EngineError, match="is no choice of a plan"):
        stored_choice(job)
    assert begin(job)[1].precision == "int8_fp16"


def test_a_disk_that_is_full_when_the_choice_is_written_leaves_the_one_before(
    lab: Lab, job: BuildJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choose(job, FRAMES, **lab.means())
    monkeypatch.setattr("export.plan.os.fsync", lambda _: _refuse(errno.ENOSPC))
    with pytest.raises(EngineError, match=r"Engines cannot be kept in .*: No space left on device\. Free some"):
        choose(job, FRAMES, **lab.means())
    assert stored_choice(job) == choice
    assert sorted(path.name for path in job.plans.glob(".gain*")) == []


def test_a_folder_of_plans_that_cannot_be_made_is_an_error(lab: Lab, accurate: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match=r"Engines cannot be kept in .*file/plans: Not a directory"):
        choose(BuildJob(accurate, CAMERA, tmp_path / "file" / "plans"), FRAMES, **lab.means())


def _refuse(code: int) -> None:
    raise OSError(code, os.strerror(code))


def test_while_plans_are_measured_whoever_waits_is_told_that_it_goes_on(
    lab: Lab, job: BuildJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog of the service among them: the reference on the CPU of a Jetson takes its time."""
    monkeypatch.setattr(select, "_SILENCE_S", 0.0)
    seen: list[BuildProgress] = []
    choose(job, FRAMES, progress=seen.append, **lab.means())
    told = [(one.precision, one.phase) for one in seen]
    assert told.count(("fp32", "Reference on the CPU")) == 1 + len(FRAMES) + TEXTURES
    assert told.count(("fp16", "Measuring")) == 1 + len(FRAMES) + TEXTURES + WARM_UP + REPEATS


def test_a_measurement_is_cancelled_too(lab: Lab, job: BuildJob) -> None:
    stop = threading.Event()

    def listen(progress: BuildProgress) -> None:
        if progress.phase == "Measuring":
            stop.set()

    with pytest.raises(EngineError, match=r"cancelled\. What ran before goes on"):
        choose(job, FRAMES, progress=listen, cancelled=stop, **lab.means())
    assert not list(job.plans.glob("*.plan"))


def test_the_median_counts_and_the_first_frames_do_not(lab: Lab, job: BuildJob) -> None:
    seen: list[float] = []

    def clock() -> float:
        seen.append(0.0)
        frame, ends = divmod(len(seen) - 1, 2)
        frame %= WARM_UP + REPEATS
        length_s = 0.3 if frame < WARM_UP else 0.004 if frame % 10 else 0.5
        return length_s if ends else 0.0

    choice = choose(job, FRAMES, build=lab.build, load=lab.load, clock=clock)
    assert [(one.median_s, one.p99_s) for one in choice.candidates] == [(0.004, 0.5)] * 2


def test_fastest_takes_only_what_was_measured_and_has_no_problem(lab: Lab, job: BuildJob) -> None:
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
        job = BuildJob(bundle, CAMERA, plans)
        engine, choice, _ = making.open_engine(job, lambda: FRAMES, slots=1, fallback=False, progress=seen.append)
        assert (engine.backend, engine.precision, choice.precision) == ("tensorrt", "fp16", "fp16")
        phases = list(dict.fromkeys(one.phase for one in seen if one.precision == "fp16"))
        assert phases[-2:] == ["Building engine", "Measuring"]
        slot = engine.allocate(1).acquire(timeout_s=0)
        slot[:] = FRAMES[0]
        assert np.abs(engine.infer(slot)["enhanced"].astype(int) - FRAMES[0]).max() <= 1
        engine.close()

    def test_cancelling_asks_the_child_to_stop(
        self, on_device: None, job: BuildJob, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setattr(builder, "GRACE_S", 1e9)  # it is asked, not killed
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        stop = threading.Event()
        with pytest.raises(CancelledBuildError):
            build_in_child(job, "fp16", job.plans, lambda _: stop.set(), stop)
        assert not list(job.plans.iterdir())

    def test_whoever_waits_for_a_silent_build_is_told_that_it_goes_on(
        self, on_device: None, job: BuildJob, child_environment: pytest.MonkeyPatch
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
        self, on_device: None, job: BuildJob, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setattr(builder, "GRACE_S", 0.0)
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        stop = threading.Event()
        with pytest.raises(CancelledBuildError):
            build_in_child(job, "fp16", job.plans, lambda _: stop.set(), stop)

    def test_a_child_that_was_killed_is_an_error_that_names_the_signal(
        self, on_device: None, job: BuildJob, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "killed build")
        with pytest.raises(PlanError, match=r"ended by SIGKILL; .*the memory was full"):
            build_in_child(job, "fp16", job.plans, lambda _: None, threading.Event())

    def test_the_child_is_nicer_than_what_watches_the_stage(
        self, on_device: None, job: BuildJob, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        children: list[subprocess.Popen[bytes]] = []
        start = subprocess.Popen

        def started(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            children.append(start(*arguments, **options))
            return children[-1]

        child_environment.setattr(builder.subprocess, "Popen", started)
        stop, found = threading.Event(), set()

        def listen(progress: BuildProgress) -> None:
            found.add(os.getpriority(os.PRIO_PROCESS, children[0].pid))
            stop.set()

        with pytest.raises(CancelledBuildError):
            build_in_child(job, "fp16", job.plans, listen, stop)
        assert found == {min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)}

    def test_a_signal_without_a_name_and_a_line_somebody_printed_into_are_no_surprise(
        self, job: BuildJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        line = '{"event": "phase", [W] a warning of a library'
        code = f"import os; print({line!r}, flush=True); os.kill(os.getpid(), 36)"
        monkeypatch.setattr(BuildJob, "build_command", lambda *_: ("-c", code))
        with caplog.at_level("INFO"), pytest.raises(PlanError, match="The builder was ended by signal 36; its log"):
            build_in_child(job, "fp16", job.plans, lambda _: None, threading.Event())
        assert f"builder: {line}" in caplog.text

    def test_a_failed_build_comes_back_in_the_builders_words(
        self, on_device: None, job: BuildJob, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "Builder.build_serialized_network")
        with pytest.raises(
            PlanError, match=r"could not build gain_fp16\.onnx: Builder\.build_serialized_network failed"
        ):
            build_in_child(job, "fp16", job.plans, lambda _: None, threading.Event())

    def test_a_listener_that_fails_takes_the_child_with_it(
        self, on_device: None, job: BuildJob, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")

        def broken(progress: BuildProgress) -> None:
            raise ValueError("a listener")

        with pytest.raises(ValueError, match="a listener"):
            build_in_child(job, "fp16", job.plans, broken, threading.Event())
        assert not list(job.plans.iterdir())

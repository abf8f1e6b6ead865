"""The builder, on a stand-in for TensorRT: what it writes, what it refuses, and that a failure changes nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from export.bindings import checked, make_logger
from export.build_engine import CANCELLED, FAILED, Request, build
from export.errors import CancelledBuildError, PlanError
from export.manifest import Bundle
from export.plan import PlanRecord, build_command
from tests.tensorrt.bindings import RELEASES, ROOT

PLAN = "gain_fp16_32x48.plan"


@pytest.fixture
def request_(bundle: Bundle, plans: Path) -> Request:
    return Request(bundle.model_path("fp16"), plans, "gain", "fp16", (32, 48))


def run(request: Request, cancelled: Callable[[], bool] = lambda: False) -> tuple[PlanRecord, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return build(request, emit=events.append, cancelled=cancelled), events


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("release", RELEASES)
def test_a_plan_and_its_record_are_written_by_every_release(
    fake_tensorrt: Callable[..., Any], request_: Request, bundle: Bundle, release: str
) -> None:
    fake_tensorrt(release)
    record, events = run(request_)
    written = files(request_.folder)
    assert set(written) == {PLAN, f"{PLAN}.json", "timing.cache"}
    assert PlanRecord.model_validate_json(written[f"{PLAN}.json"]) == record
    assert record.sha256 == hashlib.sha256(written[PLAN]).hexdigest()
    assert (record.key.tensorrt, record.key.onnx_sha256) == (release, bundle.manifest("fp16").sha256)
    assert (record.key.gpu, record.key.l4t, record.key.shape_px) == ("Orin, 8 SM", "36.4.0", (32, 48))
    assert record.layers == 7
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("start", "done")
    assert kinds.count("step") == 3
    assert {event["parent"] for event in events if event["event"] == "phase"} == {None, "Building engine"}


@pytest.mark.parametrize(
    "fault",
    [
        "no library",
        "Builder.create_network",
        "Builder.create_builder_config",
        "Builder.create_optimization_profile",
        "IBuilderConfig.add_optimization_profile",
        "Builder.build_serialized_network",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_engine_inspector",
    ],
)
def test_every_none_of_tensorrt_is_an_error_with_its_words_and_the_plan_before_stays(
    fake_tensorrt: Callable[..., Any], request_: Request, fault: str
) -> None:
    fake_tensorrt()
    run(request_)
    before = files(request_.folder)
    fake_tensorrt("10.3.0", fault)
    with pytest.raises(PlanError, match="nullptr" if fault == "no library" else f"{fault} failed"):
        run(request_)
    assert files(request_.folder) == before


@pytest.mark.parametrize(
    "fault", ["IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache", "ITimingCache.serialize"]
)
def test_a_plan_needs_no_timing_cache(fake_tensorrt: Callable[..., Any], request_: Request, fault: str) -> None:
    fake_tensorrt("10.3.0", fault)
    run(request_)
    assert set(files(request_.folder)) == {PLAN, f"{PLAN}.json"}


def test_an_inspector_that_gives_no_json_costs_the_number_of_layers_only(
    fake_tensorrt: Callable[..., Any], request_: Request
) -> None:
    fake_tensorrt("10.3.0", "EngineInspector.get_engine_information")
    assert run(request_)[0].layers is None


def test_timings_are_kept_for_the_next_build_and_shared_where_asked(
    fake_tensorrt: Callable[..., Any], request_: Request, tmp_path: Path
) -> None:
    fake_tensorrt()
    request = replace(request_, timing_cache=tmp_path / "shared.cache")
    for built in (1, 2):
        run(request)
        assert (tmp_path / "shared.cache").read_bytes() == b"10.3.0:" + b"+" * built


@pytest.mark.parametrize("content", [b"garbage", b"10.16.1.11:+"])
def test_timings_that_are_damaged_or_of_another_release_are_said_and_begun_anew(
    fake_tensorrt: Callable[..., Any], request_: Request, content: bytes
) -> None:
    fake_tensorrt()
    request_.timings.write_bytes(content)
    _, events = run(request_)
    assert [event["message"] for event in events if event["event"] == "warning"] == [
        f"{request_.timings} is damaged or of another device: begun anew"
    ]
    assert request_.timings.read_bytes() == b"10.3.0:+"


@pytest.mark.parametrize("which", [1, 2])
def test_a_full_disk_leaves_the_plan_before_and_nothing_half_written(
    fake_tensorrt: Callable[..., Any], request_: Request, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    fake_tensorrt()
    run(request_)
    before = files(request_.folder)
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == which:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("export.plan.os.fsync", full)
    with pytest.raises(PlanError, match=r"could not be written .*No space left.*untouched"):
        run(replace(request_, optimization_level=5))
    assert files(request_.folder) == before


def test_no_room_for_the_timings_is_a_warning(
    fake_tensorrt: Callable[..., Any], request_: Request, tmp_path: Path
) -> None:
    fake_tensorrt()
    record, events = run(replace(request_, timing_cache=tmp_path / "no such folder" / "timing.cache"))
    assert [event["event"] for event in events][-2:] == ["warning", "done"]
    assert record.file in files(request_.folder)


def test_a_cancelled_build_writes_nothing(fake_tensorrt: Callable[..., Any], request_: Request) -> None:
    fake_tensorrt("10.3.0", "endless build")
    asked: list[int] = []
    with pytest.raises(CancelledBuildError):
        run(request_, cancelled=lambda: bool(asked.append(0)) or len(asked) > 4)
    assert files(request_.folder) == {}


def test_a_cancel_after_the_build_and_before_its_plan_is_written_leaves_the_plan_before(
    fake_tensorrt: Callable[..., Any], request_: Request
) -> None:
    fake_tensorrt()
    asked: list[int] = []
    run(request_, cancelled=lambda: bool(asked.append(0)))
    before, last = files(request_.folder), len(asked)
    asked.clear()
    with pytest.raises(CancelledBuildError, match="before its plan was written"):
        run(replace(request_, optimization_level=5), cancelled=lambda: bool(asked.append(0)) or len(asked) == last)
    assert files(request_.folder) == before


def test_what_a_killed_build_left_behind_is_cleared_away(fake_tensorrt: Callable[..., Any], request_: Request) -> None:
    fake_tensorrt()
    (request_.folder / f".{PLAN}.k1ll3d").write_bytes(b"half a plan")
    run(request_)
    assert not list(request_.folder.glob(".*"))


def test_a_folder_that_others_write_is_refused_before_minutes_are_spent(
    fake_tensorrt: Callable[..., Any], request_: Request
) -> None:
    fake_tensorrt()
    request_.folder.chmod(0o777)
    with pytest.raises(PlanError, match="chmod -R go-w"):
        run(request_)
    assert files(request_.folder) == {}


def test_a_file_that_is_no_onnx_is_refused_in_the_parsers_words(
    fake_tensorrt: Callable[..., Any], request_: Request, tmp_path: Path
) -> None:
    fake_tensorrt()
    (tmp_path / "no.onnx").write_bytes(b"no ONNX")
    with pytest.raises(PlanError, match=r"cannot read .*no\.onnx.*(rotobuf|parse)"):
        run(replace(request_, onnx=tmp_path / "no.onnx"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([("image", TensorProto.FLOAT, [1, 1, 64, 64])], "fixed to"),
        ([("image", TensorProto.FLOAT16, [1, 1, "h", "w"])], "expected float32"),
        ([("image", TensorProto.FLOAT, [1, 2, "h", "w"])], "expected float32"),
        ([("image", TensorProto.FLOAT, [1, 1, "h", "w"]), ("more", TensorProto.FLOAT, [1, 1, "h", "w"])], "2 inputs"),
    ],
)
def test_a_graph_with_other_inputs_than_one_float_frame_is_refused(
    fake_tensorrt: Callable[..., Any], request_: Request, tmp_path: Path, inputs: list[Any], message: str
) -> None:
    fake_tensorrt()
    graph = helper.make_graph(
        [helper.make_node("Identity", [inputs[0][0]], ["out"])],
        "other",
        [helper.make_tensor_value_info(*put) for put in inputs],
        [helper.make_tensor_value_info("out", inputs[0][1], None)],
    )
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    with pytest.raises(PlanError, match=message):
        run(replace(request_, onnx=path))


def test_a_graph_that_is_already_of_the_frames_shape_needs_no_profile(
    fake_tensorrt: Callable[..., Any], request_: Request, tmp_path: Path
) -> None:
    fake_tensorrt("10.3.0", "Builder.create_optimization_profile")
    model = onnx.load(request_.onnx)
    for dimension, side in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 1, 32, 48), strict=True):
        dimension.dim_value = side
    onnx.save(model, str(tmp_path / "static.onnx"))
    assert run(replace(request_, onnx=tmp_path / "static.onnx"))[0].layers == 7


def test_an_old_tensorrt_is_refused_and_a_newer_one_is_warned_of(
    fake_tensorrt: Callable[..., Any], request_: Request, caplog: pytest.LogCaptureFixture
) -> None:
    fake_tensorrt("8.6.2")
    with pytest.raises(PlanError, match=r"8\.6\.2 is too old"):
        run(request_)
    fake_tensorrt("12.0.1").NetworkDefinitionCreationFlag  # noqa: B018
    run(request_)
    assert "newer than 11.4" in caplog.text


def test_without_tensorrt_the_message_says_where_it_comes_from(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PlanError, match=r"cannot be imported .*--system-site-packages"):
        run(request_)


class TestAsAChild:
    """`python -m export.build_engine`, as the appliance runs it."""

    @pytest.fixture
    def command(self, request_: Request, child_environment: pytest.MonkeyPatch) -> list[str]:
        made = build_command(request_.onnx, model="gain", precision="fp16", shape_px=(32, 48), folder=request_.folder)
        return [sys.executable, *made]

    def test_its_output_is_json_and_its_plan_is_there(self, command: list[str], request_: Request) -> None:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert (done.returncode, events[-1]["event"]) == (0, "done")
        assert events[-1]["record"]["key"]["gpu"] == "Orin, 8 SM"
        assert (request_.folder / PLAN).is_file()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_cancels_it(
        self, command: list[str], request_: Request, child_environment: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdout is not None
            while json.loads(child.stdout.readline())["event"] != "step":
                pass
            child.send_signal(number)
            events = [json.loads(line) for line in child.stdout]
        assert child.returncode == CANCELLED
        assert events[-1]["cancelled"] is True
        assert files(request_.folder) == {}

    def test_it_ends_when_nobody_listens_any_more(
        self, command: list[str], request_: Request, child_environment: pytest.MonkeyPatch
    ) -> None:
        child_environment.setenv("FAKE_TENSORRT_FAULTS", "endless build")
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            assert child.stdout is not None
            child.stdout.readline()
            child.stdout.close()
            assert child.wait(60) == CANCELLED
        assert files(request_.folder) == {}

    def test_without_a_gpu_it_fails_in_words(self, command: list[str], child_environment: pytest.MonkeyPatch) -> None:
        child_environment.setenv("FAKE_NO_GPU", "1")
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == FAILED
        assert "cuInit returned error 100" in json.loads(done.stdout)["message"]

    def test_it_needs_neither_torch_nor_onnx(self, child_environment: pytest.MonkeyPatch) -> None:
        code = "import sys, export.build_engine; sys.exit(bool({'torch', 'onnx', 'tensorrt'} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_error_is_told_once_and_not_of_a_call_that_went_well(fake_tensorrt: Callable[..., Any]) -> None:
    trt = fake_tensorrt()
    logger = make_logger()
    logger.log(trt.ILogger.ERROR, "the first")
    with pytest.raises(PlanError, match="TensorRT made nothing: the first"):
        checked(None, "made nothing", logger)
    with pytest.raises(PlanError, match="TensorRT made nothing: it gave no reason"):
        checked(None, "made nothing", logger)
    logger.log(trt.ILogger.ERROR, "one that was overcome")
    assert checked(3, "made nothing", logger) == 3
    with pytest.raises(PlanError, match="it gave no reason"):
        checked(False, "made nothing", logger)

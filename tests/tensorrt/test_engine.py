"""The TensorRT engine on stand-ins for TensorRT and CUDA: the engine contract, and every plan it must not use."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.devices import Engine
from edge.engine import find_bundle, load_engine
from edge.engine.builder import BuildJob, default_plans
from edge.engine.measure import pictures_of
from edge.engine.onnxruntime import OnnxRuntimeEngine
from edge.engine.prepare import Counts
from edge.engine.select import load_plan
from edge.engine.tensorrt import TensorRtEngine
from edge.errors import ConfigError, EngineError
from export.build_engine import Request, build
from export.manifest import Bundle, Precision, load_bundle
from tests.contracts import EngineContract
from tests.tensorrt.bindings import RELEASES, ROOT
from tests.tensorrt.host_loop import HostLoop
from tests.tensorrt.models import make_precisions

CAMERA = Counts((32, 48), "mono8", 8)
PLAN = "gain_fp16_32x48.plan"


def make_plan(bundle: Bundle, precision: Precision, shape_px: tuple[int, int], plans: Path) -> None:
    request = Request(bundle.model_path(precision), plans, bundle.name, precision, shape_px)
    build(request, emit=lambda event: None, cancelled=lambda: False)


@pytest.fixture
def engine_of(
    fake_tensorrt: Callable[..., Any], host_loop: None, bundle: Bundle, plans: Path
) -> Callable[..., TensorRtEngine]:
    """Build the FP16 plan, then load it with ``faults``."""

    def make(*faults: str) -> TensorRtEngine:
        fake_tensorrt()
        make_plan(bundle, "fp16", (32, 48), plans)
        fake_tensorrt("10.3.0", *faults)
        return load(bundle, plans)

    return make


def load(bundle: Bundle, plans: Path, hint: str = "auto") -> TensorRtEngine:
    return TensorRtEngine(bundle.model_path("fp16"), bundle.manifest("fp16"), CAMERA, hint=hint, plans=plans)


class TestContract(EngineContract):
    """As every other engine, through `load_engine`."""

    @pytest.fixture
    def load(
        self,
        fake_tensorrt: Callable[..., Any],
        host_loop: None,
        tmp_path: Path,
        plans: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Callable[..., Engine]:
        fake_tensorrt()
        monkeypatch.setattr("edge.engine.tensorrt.default_plans", lambda: plans)

        def load(bundle: dict[str, Any] | None = None, **arguments: Any) -> Engine:
            options = dict(bundle or {})
            made = load_bundle(make_precisions(tmp_path / "bundle", {"fp32": options.pop("gain", 1.0)}, **options))
            camera = {"frame_shape_px": (32, 48), "pixel_format": "mono8", "bit_depth": 8, **arguments}
            make_plan(made, "fp32", camera["frame_shape_px"], plans)
            return load_engine(made, **camera, backend="tensorrt")

        return load


@pytest.mark.parametrize("release", RELEASES)
def test_it_gives_what_onnx_runtime_gives(
    fake_tensorrt: Callable[..., Any], host_loop: None, bundle: Bundle, plans: Path, release: str
) -> None:
    fake_tensorrt(release)
    make_plan(bundle, "int8_fp16", (32, 48), plans)
    path, manifest = bundle.model_path("int8_fp16"), bundle.manifest("int8_fp16")
    ours = TensorRtEngine(path, manifest, CAMERA, hint="auto", plans=plans)
    # A gain in float, whatever it is called: ONNX Runtime of Python 3.10 is right about it.
    reference = OnnxRuntimeEngine(path, manifest.model_copy(update={"precision": "fp32"}), CAMERA, hint="auto")
    assert (ours.backend, ours.precision, ours.passes_per_frame) == ("tensorrt", "int8_fp16", 0)
    frame = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)
    pictures = []
    for engine in (ours, reference):
        slot = engine.allocate(2).acquire(timeout_s=0)
        slot[:] = frame
        pictures.append(engine.infer(slot)["enhanced"].copy())
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].max() == round(0.8 * 255)


@pytest.mark.parametrize("name", ["enhance-rt", "enhance-rt-x2"])
def test_a_model_of_the_zoo_gives_what_onnx_runtime_gives(
    fake_tensorrt: Callable[..., Any], host_loop: None, plans: Path, name: str
) -> None:
    fake_tensorrt()
    job = BuildJob(find_bundle(name), Counts((64, 72), "mono16", 12), plans)
    make_plan(job.bundle, "fp32", job.shape_px, plans)
    frame = np.random.default_rng(1).integers(0, 4096, job.shape_px, np.uint16)
    ours = load_plan(job, "fp32", plans)
    reference = load_engine(
        job.bundle, frame_shape_px=(64, 72), pixel_format="mono16", bit_depth=12, backend="onnxruntime"
    )
    pictures = [pictures_of(engine, frame)["enhanced"].astype(int) for engine in (ours, reference)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert pictures[0].std() > 100


@pytest.mark.parametrize(
    ("field", "other", "words"),
    [
        ("tensorrt", "10.16.1.11", r"TensorRT 10\.16\.1\.11 \(here 10\.3\.0\)"),
        ("cuda", "13.0", r"CUDA 13\.0 \(here 12\.6\)"),
        ("gpu", "Orin, 16 SM", r"the GPU Orin, 16 SM \(here Orin, 8 SM\)"),
        ("compute_capability", "11.0", r"compute capability 11\.0 \(here 8\.7\)"),
        ("l4t", None, r"L4T none \(here 36\.4\.0\)"),
        ("onnx_sha256", "0" * 64, r"the ONNX file 000000000000… \(here [0-9a-f]{12}…\)"),
        ("precision", "fp32", r"precision fp32 \(here fp16\)"),
        ("shape_px", [64, 48], r"frames of \(height, width\) px \(64, 48\) \(here \(32, 48\)\)"),
    ],
)
def test_a_plan_of_another_key_is_refused_and_the_command_that_builds_it_is_named(
    engine_of: Callable[..., Any], bundle: Bundle, plans: Path, field: str, other: object, words: str
) -> None:
    engine_of().close()
    beside = plans / f"{PLAN}.json"
    record = json.loads(beside.read_text())
    record["key"][field] = other
    beside.write_text(json.dumps(record))
    with pytest.raises(EngineError, match=rf"was built for {words}\. Build and measure it: superlens doctor"):
        load(bundle, plans)


def test_all_that_differs_is_in_one_message(engine_of: Callable[..., Any], bundle: Bundle, plans: Path) -> None:
    engine_of().close()
    beside = plans / f"{PLAN}.json"
    record = json.loads(beside.read_text())
    record["key"] |= {"tensorrt": "11.4.1", "cuda": "13.2"}
    beside.write_text(json.dumps(record))
    with pytest.raises(
        EngineError, match=r"TensorRT 11\.4\.1 \(here 10\.3\.0\), CUDA 13\.2 \(here 12\.6\)\. Build and"
    ):
        load(bundle, plans)


def _cut(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "damaged or cut off"),
        (lambda plan: plan.unlink(), "no TensorRT plan"),
        (lambda plan: plan.with_name(f"{PLAN}.json").unlink(), "no TensorRT plan"),
        (lambda plan: plan.with_name(f"{PLAN}.json").write_text('{"file": 3}'), "no record of a plan.*sha256"),
        (lambda plan: plan.chmod(0o666), "others could put their own code"),
        (lambda plan: plan.parent.chmod(0o770), "others could put their own code"),
        (lambda plan: plan.parent.parent.chmod(0o777), "others could put their own code"),
    ],
)
def test_a_plan_that_is_damaged_or_not_ours_alone_is_refused(
    engine_of: Callable[..., Any], bundle: Bundle, plans: Path, spoil: Callable[[Path], object], message: str
) -> None:
    engine_of().close()
    spoil(plans / PLAN)
    with pytest.raises(EngineError, match=message):
        load(bundle, plans)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no library", "TensorRT does not start"),
        ("Runtime.deserialize_cuda_engine", "cannot load the plan"),
        ("ICudaEngine.create_execution_context", "made no execution context"),
        ("out of memory", "OutOfMemory.*The GPU's memory is full"),
        ("IExecutionContext.set_input_shape", r"takes no image of \(1, 1, 32, 48\)"),
        ("IExecutionContext.infer_shapes", "lacks image"),
        ("shapes raise", r"cannot tell the shapes of .*gain_fp16\.onnx: .*a shape cannot be inferred"),
        ("IExecutionContext.set_tensor_address", "refuses the memory at .* for the tensor image"),
    ],
)
def test_every_false_and_none_of_tensorrt_is_an_error_that_says_what(
    engine_of: Callable[..., Any], fault: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        engine_of(fault)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("IExecutionContext.execute_async_v3", "did not run image, enhanced"),
        ("device lost", r"unspecified launch failure\)\. If the GPU was lost, restart"),
    ],
)
def test_a_launch_that_is_refused_is_an_error_and_the_engine_still_closes(
    engine_of: Callable[..., Any], fault: str, message: str
) -> None:
    engine = engine_of(fault)
    slot = engine.allocate(1).acquire(timeout_s=0)
    with pytest.raises(EngineError, match=message):
        engine.infer(slot)
    engine.close()


def test_an_error_of_an_earlier_frame_does_not_explain_a_later_one(engine_of: Callable[..., Any]) -> None:
    engine = engine_of()
    slot = engine.allocate(1).acquire(timeout_s=0)
    network = engine._loop._executable
    network._logger.errors.append("something of long ago, that did no harm")
    network._context.execute_async_v3 = lambda stream: False
    with pytest.raises(EngineError, match="did not run image, enhanced: it gave no reason"):
        engine.infer(slot)
    engine.close()


def test_memory_that_is_not_aligned_is_refused(engine_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostLoop, "misalign", 4)
    with pytest.raises(EngineError, match=r"tensor image: .*a multiple of 256"):
        engine_of()


def test_the_stand_in_refuses_another_thread_and_unset_addresses(
    engine_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    network = engine._loop._executable
    with pytest.raises(EngineError, match="invalid device context"):
        network.enqueue(1)
    network._context._addresses.clear()
    with pytest.raises(EngineError, match="no address of enhanced, image"):
        engine._gpu.run(lambda: network.enqueue(1))


def test_closing_gives_the_engine_back_in_the_end(
    engine_of: Callable[..., Any], fake_tensorrt: Callable[..., Any]
) -> None:
    engine = engine_of()
    kind = type(engine._loop._executable._engine)
    gc.collect()
    alive = kind.alive
    engine.close()
    assert kind.alive == alive - 1


@pytest.mark.parametrize("hint", ["bf16", "f32"])
def test_a_hint_that_is_not_the_files_arithmetic_is_refused(
    engine_of: Callable[..., Any], bundle: Bundle, plans: Path, hint: str
) -> None:
    engine_of().close()
    with pytest.raises(ConfigError, match=f"in fp16.*hint = '{hint}'"):
        load(bundle, plans, hint=hint)


def test_a_plan_with_other_tensors_than_the_manifest_is_refused(
    engine_of: Callable[..., Any], bundle: Bundle, plans: Path
) -> None:
    engine_of().close()
    manifest = bundle.manifest("fp16")
    other = manifest.model_copy(update={"outputs": (manifest.outputs[0].model_copy(update={"name": "sharp"}),)})
    with pytest.raises(EngineError, match="has the tensors enhanced, image, its manifest image, sharp"):
        TensorRtEngine(bundle.model_path("fp16"), other, CAMERA, hint="auto", plans=plans)


def test_plans_are_kept_where_systemd_says_else_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/superlens:/var/lib/other")
    assert default_plans() == Path("/var/lib/superlens/plans")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/someone/.cache")
    assert default_plans() == Path("/home/someone/.cache/superlens/plans")


def test_nothing_of_it_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "box.toml").write_text('[engine]\nbackend = "tensorrt"\nfallback = "openvino"\n')
    code = (
        "import sys; from edge.__main__ import main;"
        f"main(['check-config', {str(tmp_path / 'box.toml')!r}, '--json', '-'], standalone_mode=False);"
        "assert not {'tensorrt', 'pycuda', 'cuda.bindings', 'edge.engine.cuda.loop'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)["engine"]
    assert (shown["backend"], shown["fallback"]) == ("tensorrt", "openvino")

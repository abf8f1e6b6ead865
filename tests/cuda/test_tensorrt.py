"""The TensorRT engine on the real loop, pycuda and cuda-bindings, with stand-ins for the driver and for TensorRT."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge.devices import Engine
from edge.engine import load_engine
from edge.engine.builder import BuildJob
from edge.engine.prepare import Counts
from edge.engine.select import choose, load_plan, stored_choice
from edge.errors import EngineError
from export.build_engine import Request, build
from export.manifest import Bundle, Precision, load_bundle
from export.plan import this_device
from tests.contracts import EngineContract
from tests.cuda.standin import Standin
from tests.tensorrt.models import load_fake, make_precisions

if TYPE_CHECKING:
    from edge.engine.cuda.thread import GpuThread

CAMERA = Counts((32, 48), "mono16", 12)


class OnStream:
    """Puts the stand-in's networks on their CUDA stream as host functions, which a graph can record."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._calls: list[Any] = []

    def __call__(self, stream: int, run: Callable[[], None]) -> None:
        self._calls.append(self._type(lambda _: run()))
        assert self._driver.cuLaunchHostFunc(ctypes.c_void_p(stream), self._calls[-1], None) == 0


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    folder = tmp_path / "plans"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def tensorrt(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def load(*faults: str) -> Any:
        fake = load_fake(monkeypatch, "10.3.0", *faults)
        monkeypatch.setattr(fake, "launch", OnStream())
        return fake

    load()
    return load


@pytest.fixture
def opened(standin: Standin) -> Iterator[list[Engine]]:
    """Engines of a test; all they held is given back in the end."""
    engines: list[Engine] = []
    yield engines
    threads = [engine._gpu._thread for engine in engines]  # type: ignore[attr-defined]
    while engines:
        engines.pop().close()
    gc.collect()
    for thread in threads:
        thread.join(5)
    assert standin.live == 0


def make_plan(bundle: Bundle, precision: Precision, shape_px: tuple[int, int], plans: Path) -> None:
    request = Request(bundle.model_path(precision), plans, bundle.name, precision, shape_px)
    build(request, emit=lambda event: None, cancelled=lambda: False)


class TestContract(EngineContract):
    @pytest.fixture
    def load(
        self, tensorrt: Any, opened: list[Engine], tmp_path: Path, plans: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Engine]:
        monkeypatch.setattr("edge.engine.tensorrt.default_plans", lambda: plans)

        def load(bundle: dict[str, Any] | None = None, **arguments: Any) -> Engine:
            options = dict(bundle or {})
            made = load_bundle(make_precisions(tmp_path / "bundle", {"fp32": options.pop("gain", 1.0)}, **options))
            camera = {"frame_shape_px": (32, 48), "pixel_format": "mono8", "bit_depth": 8, **arguments}
            make_plan(made, "fp32", camera["frame_shape_px"], plans)
            opened.append(load_engine(made, **camera, backend="tensorrt"))
            return opened[-1]

        return load


@pytest.fixture
def job(tmp_path: Path, plans: Path) -> BuildJob:
    bundle = load_bundle(make_precisions(tmp_path / "bundle", {"fp16": 1.001, "int8_fp16": 0.8}))
    return BuildJob(bundle, CAMERA, plans)


def test_a_slots_launches_are_recorded_with_the_network_among_them(
    tensorrt: Any, opened: list[Engine], job: BuildJob, standin: Standin
) -> None:
    make_plan(job.bundle, "fp16", (32, 48), job.plans)
    engine = load_plan(job, "fp16", job.plans)
    opened.append(engine)
    pool = engine.allocate(3)
    assert engine.captured is True  # type: ignore[attr-defined]
    before = standin.calls("cuLaunchKernel")
    for level in (100, 2000, 4000):
        slot = pool.acquire(timeout_s=0)
        slot[:] = level
        assert abs(int(engine.infer(slot)["enhanced"].max()) - min(1.001 * level, 4095)) <= 0.5
    assert standin.calls("cuLaunchKernel") == before
    assert standin.calls("cuGraphLaunch") >= 3


def test_the_key_is_the_drivers_own(tensorrt: Any, job: BuildJob) -> None:
    device = this_device()
    assert device.gpu.startswith("CPU stand-in, ")
    assert device.compute_capability == "8.7"


def test_plans_are_measured_and_the_accurate_one_runs(tensorrt: Any, opened: list[Engine], job: BuildJob) -> None:
    frames = list(np.random.default_rng(2).integers(0, 4096, (2, 32, 48), np.uint16))

    def build_here(job: BuildJob, precision: Precision, folder: Path, progress: Any, cancelled: Any) -> None:
        request = Request(job.bundle.model_path(precision), folder, job.bundle.name, precision, job.shape_px)
        build(request, emit=lambda event: None, cancelled=cancelled.is_set)

    choice = choose(job, frames, build=build_here)
    assert (choice.precision, choice.candidates[1].problem is None) == ("fp16", False)
    assert choice.candidates[0].psnr_db == pytest.approx(64.8, abs=0.5)
    assert stored_choice(job) == choice
    opened.append(load_plan(job, choice.precision, job.plans))


def test_a_gpu_that_hangs_does_not_hang_the_one_who_closes_the_engine(
    tensorrt: Any, job: BuildJob, standin: Standin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_plan(job.bundle, "fp16", (32, 48), job.plans)
    engine = load_plan(job, "fp16", job.plans)
    gpu: GpuThread = engine._gpu  # type: ignore[attr-defined]
    monkeypatch.setattr("edge.engine.cuda.thread.CLOSE_TIMEOUT_S", 0.05)
    hanging, entered = threading.Event(), threading.Event()
    frame = threading.Thread(target=lambda: gpu.run(lambda: (entered.set(), hanging.wait(20))))
    frame.start()
    assert entered.wait(5)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    assert caplog.text.count("the GPU does not answer") == 1
    assert standin.live > 0
    hanging.set()
    frame.join(5)
    gpu._thread.join(5)
    engine.close()
    gc.collect()
    assert standin.live == 0  # what was asked for is done when the GPU comes back


def test_a_gpu_that_hangs_in_a_frame_is_an_engine_error_and_the_engine_closes(
    tensorrt: Any, job: BuildJob, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_plan(job.bundle, "fp16", (32, 48), job.plans)
    engine = load_plan(job, "fp16", job.plans)
    gpu: GpuThread = engine._gpu  # type: ignore[attr-defined]
    monkeypatch.setattr("edge.engine.tensorrt.FRAME_TIMEOUT_S", 0.01)
    hanging = threading.Event()
    monkeypatch.setattr(engine._loop, "infer", lambda pixels: hanging.wait(20))  # type: ignore[attr-defined]
    slot = engine.allocate(1).acquire(timeout_s=0)
    with pytest.raises(EngineError, match=r"The GPU has not answered for 0\.01 s"):
        engine.infer(slot)
    engine.close()
    hanging.set()
    del slot
    gpu._thread.join(5)
    gc.collect()
    assert standin.live == 0


@pytest.mark.parametrize("fault", ["device lost", "out of memory", "IExecutionContext.set_tensor_address"])
def test_what_tensorrt_refuses_is_an_engine_error_and_all_is_given_back(
    tensorrt: Callable[..., Any], job: BuildJob, standin: Standin, fault: str
) -> None:
    make_plan(job.bundle, "fp16", (32, 48), job.plans)
    tensorrt(fault)

    def use() -> None:
        engine = load_plan(job, "fp16", job.plans)
        try:
            engine.allocate(1)
        finally:
            engine.close()

    with pytest.raises(EngineError, match=r"launch failure|memory is full|refuses the memory"):
        use()
    gc.collect()
    assert standin.live == 0

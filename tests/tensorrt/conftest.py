"""The stand-in for TensorRT in this process and in child processes, a GPU to build for, and a bundle."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from export.manifest import Bundle, load_bundle
from tests.bench import missing
from tests.tensorrt.bindings import ROOT, build_library
from tests.tensorrt.host_loop import HostLoop, HostThread
from tests.tensorrt.models import FAKE, ORIN, load_fake, make_precisions


@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """``fake_tensorrt(version, *faults)`` is what `import tensorrt` gives from then on; the GPU is an Orin."""
    monkeypatch.setattr("export.plan.this_device", lambda: ORIN)

    return lambda version="10.3.0", *faults: load_fake(monkeypatch, version, *faults)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 with one Orin."""
    if shutil.which("gcc") is None:
        missing("no gcc on PATH: it compiles the stand-in for the CUDA driver")
    return build_library("DRIVER", tmp_path_factory.mktemp("driver") / "libcuda.so.1").parent


@pytest.fixture
def child_environment(driver: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Child processes find the stand-ins; more of their environment is set with what this gives."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), str(ROOT)]))
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", "10.3.0")
    monkeypatch.setenv("FAKE_TENSORRT_FAULTS", "")
    return monkeypatch


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """FP16 is nearly FP32; INT8 with FP16 is darker by a fifth, 21 dB from it."""
    folder = tmp_path_factory.mktemp("bundles") / "gain"
    return load_bundle(make_precisions(folder, {"fp16": 1.001, "int8_fp16": 0.8}))


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """A folder that nobody else writes."""
    folder = tmp_path / "plans"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def host_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine runs on host memory, in a thread that owns no GPU."""
    loop = ModuleType("edge.engine.cuda.loop")
    loop.CudaLoop = HostLoop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edge.engine.cuda.loop", loop)
    monkeypatch.setattr("edge.engine.tensorrt.GpuThread", HostThread)

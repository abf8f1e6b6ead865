"""What the doctor says is installed, and what an instrument has to have."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge import doctor
from edge.doctor import Package, packages
from edge.engine import BACKENDS, Backend

ON_THE_GPU = {"tensorrt", "pycuda", "cuda-bindings", "NVRTC"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_an_engine_computes_with_is_needed(backend: Backend) -> None:
    needed = {package.name for package in packages(backend) if package.needed}
    assert needed >= {"numpy", "openvino", "pyserial"}
    assert {package.name for package in packages(backend) if package.computes} <= needed
    assert needed & {*ON_THE_GPU, "onnxruntime"} == {
        "openvino": set(),
        "onnxruntime": {"onnxruntime"},
        "tensorrt": ON_THE_GPU,
    }[backend]  # fmt: skip


def found(name: str) -> Package:
    return next(package for package in packages("tensorrt") if package.name == name)


def test_a_tensorrt_that_cannot_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    assert found("tensorrt").version == "10.3.0"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert found("tensorrt").version is None
    assert "--system-site-packages" in found("tensorrt").how


def test_the_compiler_of_the_kernels_has_a_version_or_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def with_nvrtc(version: Any) -> None:
        module = SimpleNamespace(nvrtcVersion=version)
        monkeypatch.setattr(importlib, "import_module", lambda name: module if name.endswith("nvrtc") else load(name))

    def absent() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so"')

    with_nvrtc(lambda: (0, 12, 6))
    assert found("NVRTC").version == "12.6"
    with_nvrtc(absent)
    assert found("NVRTC").version is None
    assert "cuda-nvrtc-12-6" in found("NVRTC").how


def test_the_doctor_lists_what_the_gpu_needs() -> None:
    assert set(doctor.examine(Path())["optional"]) >= ON_THE_GPU

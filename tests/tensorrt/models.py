"""The stand-in for TensorRT, a GPU to build for, and bundles in several precisions whose error from FP32 is known."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from export.manifest import BundleIndex, Precision, load_bundle, read_manifest, write_manifest
from export.plan import Device
from tests.bundles import make_bundle

ORIN = Device(gpu="Orin, 8 SM", compute_capability="8.7", cuda="12.6", l4t="36.4.0")
FAKE = Path(__file__).with_name("fake")


def load_fake(monkeypatch: pytest.MonkeyPatch, version: str, *faults: str) -> ModuleType:
    """What `import tensorrt` gives from now on."""
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", version)
    monkeypatch.setenv("FAKE_TENSORRT_FAULTS", ",".join(faults))
    spec = importlib.util.spec_from_file_location("tensorrt", FAKE / "tensorrt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    spec.loader.exec_module(module)
    return module


def make_precisions(folder: Path, gains: Mapping[Precision, float] | None = None, **options: Any) -> Path:
    """A bundle of `tests.bundles.make_bundle` whose network multiplies by another gain in each precision."""
    index = None
    for precision, gain in {"fp32": 1.0, **(gains or {})}.items():
        one = make_bundle(folder / precision, gain=gain, precision=precision, **options)
        manifest = read_manifest(one / "fp32.json").model_copy(update={"file": f"gain_{precision}.onnx"})
        index = index or load_bundle(one).index
        (one / "gain_fp32.onnx").rename(folder / manifest.file)
        write_manifest(manifest, folder / f"{precision}.json")
        index = index.model_copy(update={"precisions": {**index.precisions, precision: f"{precision}.json"}})
        shutil.rmtree(one)
    assert isinstance(index, BundleIndex)
    write_manifest(index, folder / "bundle.json")
    return folder

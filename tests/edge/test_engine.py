"""Every back end against the engine contract, and what `load_engine` refuses."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from edge.devices import Engine
from edge.engine import BACKENDS, check_pixel_size, find_bundle, load_engine
from edge.engine.prepare import Counts
from edge.errors import ConfigError, EngineError
from export.manifest import load_bundle
from tests.contracts import EngineContract
from tests.tensorrt.models import make_precisions

DEFAULTS: dict[str, Any] = {"frame_shape_px": (32, 48), "pixel_format": "mono8", "bit_depth": 8}


class TestOpenVino(EngineContract):
    @pytest.fixture
    def load(self, new_bundle: Callable[..., Path]) -> Callable[..., Engine]:
        return lambda bundle=None, **arguments: load_engine(
            load_bundle(new_bundle(**(bundle or {}))), **{**DEFAULTS, **arguments}, backend="openvino"
        )

    def test_no_host_pass_is_needed(self, load: Callable[..., Engine]) -> None:
        assert load().passes_per_frame == 0
        assert load({"outputs": ("enhanced", "colour"), "scale": 2}).passes_per_frame == 0
        assert load(pixel_format="rgb8").passes_per_frame == 0

    @pytest.mark.parametrize("pixel_format", ["mono10p", "mono12p", "bayer_rg8"])
    def test_the_pass_over_packed_and_bayer_frames_is_counted(
        self, load: Callable[..., Engine], pixel_format: str
    ) -> None:
        assert load(pixel_format=pixel_format).passes_per_frame == 1

    def test_the_arithmetic_is_pinned_and_shown(self, load: Callable[..., Engine]) -> None:
        assert load(hint="f32").precision == "f32"
        assert load(hint="auto").precision in ("bf16", "f32")

    def test_slots_are_aligned(self, load: Callable[..., Engine]) -> None:
        assert all(slot.ctypes.data % 64 == 0 for slot in load(frame_shape_px=(17, 19)).allocate(4).slots)


def test_a_signal_is_survived_after_engines_came_and_went_in_any_order(identity_bundle: Path) -> None:
    """Each plugin of OpenVINO's takes the thread's stack for signals; in a process of its own, for it would die."""
    code = """
import gc, pathlib, signal, sys
from edge.engine import load_engine
from export.manifest import load_bundle
def load():
    return load_engine(load_bundle(sys.argv[1]), frame_shape_px=(32, 48), pixel_format="mono8", bit_depth=8)
first, second = load(), load()
del first
gc.collect()
third = load()
del second, third
gc.collect()
heard = []
signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
signal.raise_signal(signal.SIGTERM)
sys.exit(len(heard) != 1)
"""
    assert subprocess.run([sys.executable, "-c", code, str(identity_bundle)], check=False).returncode == 0


class TestOnnxRuntime(EngineContract):
    @pytest.fixture
    def load(self, new_bundle: Callable[..., Path]) -> Callable[..., Engine]:
        return lambda bundle=None, **arguments: load_engine(
            load_bundle(new_bundle(**(bundle or {}))), **{**DEFAULTS, **arguments}, backend="onnxruntime"
        )

    def test_a_pass_in_and_one_for_each_output_are_counted(self, load: Callable[..., Engine]) -> None:
        assert load().passes_per_frame == 2
        assert load({"outputs": ("enhanced", "colour")}).passes_per_frame == 3

    def test_bf16_is_refused(self, load: Callable[..., Engine]) -> None:
        with pytest.raises(ConfigError, match="no bf16"):
            load(hint="bf16")


@pytest.mark.parametrize(
    ("backend", "part", "call", "words"),
    [
        ("openvino", "_request", "infer", r"OpenVINO [\d.].* did not run gain: no memory"),
        ("onnxruntime", "_session", "run_with_iobinding", r"ONNX Runtime [\d.]+ did not run gain: no memory"),
    ],
)
def test_a_back_end_that_fails_at_a_frame_says_which_and_of_which_model(
    identity_bundle: Path, backend: Any, part: str, call: str, words: str
) -> None:
    engine = load_engine(load_bundle(identity_bundle), **DEFAULTS, backend=backend)
    slot = engine.allocate(1).acquire(timeout_s=0)
    failing = Mock(**{f"{call}.side_effect": RuntimeError("no memory")})
    setattr(engine, part, failing)
    with pytest.raises(EngineError, match=words):
        engine.infer(slot)


def test_a_missing_back_end_names_the_extra_and_nothing_takes_its_place(
    identity_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(EngineError, match=r"pip install -e '\.\[export\]' in the checkout"):
        load_engine(load_bundle(identity_bundle), **DEFAULTS, backend="onnxruntime")


def test_every_back_end_of_the_table_can_be_imported() -> None:
    for where in BACKENDS.values():
        module, name = where.split(":")
        assert hasattr(importlib.import_module(module), name)


def test_a_bit_depth_that_does_not_fit_the_format_is_refused(identity_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="bit depth of 12 does not fit mono8"):
        load_engine(load_bundle(identity_bundle), **{**DEFAULTS, "bit_depth": 12})


def test_the_bits_of_a_packed_format_are_its_own_and_not_those_of_its_bytes(identity_bundle: Path) -> None:
    bundle = load_bundle(identity_bundle)
    load_engine(bundle, **{**DEFAULTS, "pixel_format": "mono12p", "bit_depth": 12})
    with pytest.raises(ConfigError, match="bit depth of 12 does not fit mono10p: expected 1 to 10"):
        load_engine(bundle, **{**DEFAULTS, "pixel_format": "mono10p", "bit_depth": 12})


def test_colour_frames_may_be_told_by_the_shape_of_their_array(identity_bundle: Path) -> None:
    bundle, colour = load_bundle(identity_bundle), {**DEFAULTS, "pixel_format": "rgb8"}
    for shape in ((32, 48), (32, 48, 3)):
        engine = load_engine(bundle, **{**colour, "frame_shape_px": shape})
        assert engine.allocate(1).shape == (32, 48, 3)
    with pytest.raises(ConfigError, match="one channel"):
        load_engine(bundle, **{**DEFAULTS, "frame_shape_px": (32, 48, 3)})


def test_a_frame_smaller_than_the_model_takes_is_refused(identity_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="at least 16 x 16"):
        load_engine(load_bundle(identity_bundle), **{**DEFAULTS, "frame_shape_px": (15, 48)})


def test_sides_the_network_cannot_divide_are_refused_with_those_it_can(lens_bundle: Path) -> None:
    bundle = load_bundle(lens_bundle)
    load_engine(bundle, **{**DEFAULTS, "frame_shape_px": (32, 96)})
    with pytest.raises(ConfigError, match=r"multiples of 32 px.*shape_px = \[64, 32\]"):
        load_engine(bundle, **{**DEFAULTS, "frame_shape_px": (65, 31)})


def test_a_model_file_with_a_wrong_hash_is_refused(identity_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(identity_bundle, tmp_path / "changed")
    with (bundle / "gain_fp32.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError, match=r"SHA-256.*superlens-export convert"):
        load_engine(load_bundle(bundle), **DEFAULTS)


def test_a_precision_that_is_not_in_the_bundle_names_the_command_that_makes_it(identity_bundle: Path) -> None:
    bundle = load_bundle(identity_bundle)
    command = rf"superlens-export convert {bundle.folder} --out {bundle.folder} --precision int8 --calibration"
    with pytest.raises(ConfigError, match=rf"not there in int8, only in fp32.*{command} synthetic:calibration"):
        load_engine(bundle, **DEFAULTS, precision="int8")
    with pytest.raises(ConfigError, match=r"--precision fp16$"):
        load_engine(bundle, **DEFAULTS, precision="fp16")


def test_int8_on_a_release_of_onnxruntime_that_computes_it_wrongly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(make_precisions(tmp_path / "two", {"int8": 0.5}))
    monkeypatch.setattr("edge.engine.onnxruntime.ort.__version__", "1.23.2")
    load_engine(bundle, **DEFAULTS, backend="onnxruntime")
    with pytest.raises(EngineError, match=r"1\.23\.2 computes int8 wrongly.*1\.31 or later.*openvino for int8"):
        load_engine(bundle, **DEFAULTS, backend="onnxruntime", precision="int8")


def test_openvino_runs_the_int8_file_where_the_bundle_has_it(tmp_path: Path) -> None:
    bundle = load_bundle(make_precisions(tmp_path / "two", {"int8": 0.5}))
    engine = load_engine(bundle, **DEFAULTS, precision="int8", hint="f32")
    slot = engine.allocate(1).acquire(timeout_s=0)
    slot[:] = 100
    assert (engine.manifest.precision, engine.precision) == ("int8", "f32")
    np.testing.assert_array_equal(engine.infer(slot)["enhanced"], 50)


def test_a_model_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"superlens ships with: .*enhance-rt"):
        find_bundle("no-such-model")


@pytest.mark.parametrize("pixel_size_nm", [None, 48.0, 52.9, 43.4])
def test_a_pixel_size_that_is_unknown_or_near_is_accepted(identity_bundle: Path, pixel_size_nm: float | None) -> None:
    check_pixel_size(load_bundle(identity_bundle), "fp32", pixel_size_nm, remedy="")


@pytest.mark.parametrize("pixel_size_nm", [53.1, 43.2, 100.0])
def test_a_pixel_size_more_than_ten_percent_off_is_refused(identity_bundle: Path, pixel_size_nm: float) -> None:
    with pytest.raises(ConfigError, match="Do this"):
        check_pixel_size(load_bundle(identity_bundle), "fp32", pixel_size_nm, remedy="Do this.")


def test_the_prepare_reference_and_its_way_back_are_inverse() -> None:
    counts = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    values, back = np.empty((64, 64), np.float32), np.empty_like(counts)
    camera = Counts((64, 64), "mono16", 12)
    camera.to_network(counts, values)
    assert values.min() == 0
    assert values.max() == pytest.approx(1)
    camera.from_network(values, back)
    np.testing.assert_array_equal(back, counts)

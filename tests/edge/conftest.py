"""What the tests of the appliance share: a bundle that needs no training, and a clock that needs no waiting."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
from onnx import TensorProto, helper

from export.manifest import BundleIndex, Manifest, TensorSpec, Verification, sha256_of, write_manifest

PIXEL_SIZE_NM = 6500 / (50 * 2.70)


def make_bundle(folder: Path, *, gain: float = 1.0, pixel_size_nm: float = PIXEL_SIZE_NM) -> Path:
    """A bundle whose network multiplies by ``gain`` and clamps to 0..1: for tests that are not about science."""
    folder.mkdir(parents=True)
    shape = [1, 1, "height", "width"]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["image", "gain"], ["brighter"]),
            helper.make_node("Clip", ["brighter", "low", "high"], ["enhanced"]),
        ],
        "gain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("enhanced", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("gain", TensorProto.FLOAT, [], [gain]),
            helper.make_tensor("low", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("high", TensorProto.FLOAT, [], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / "gain_fp32.onnx"
    onnx.save(model, str(path))
    side = ("height", "width")
    write_manifest(
        Manifest(
            name="gain",
            task="enhance",
            file=path.name,
            sha256=sha256_of(path),
            format="onnx",
            precision="fp32",
            inputs=(TensorSpec(name="image", shape=(1, 1, *side), dtype="float32", range=(0, 1)),),
            outputs=(TensorSpec(name="enhanced", shape=(1, 1, *side), dtype="float32", range=(0, 1)),),
            scale=1,
            halo_px=0,
            min_side_px=16,
            pixel_size_nm=pixel_size_nm,
            training_data="none: multiplies by a constant",
            checkpoint_sha256="0" * 64,
            verify=Verification(against="itself", max_abs_error=0, psnr_db=200, ssim=1, shapes_px=((16, 16),)),
        ),
        folder / "fp32.json",
    )
    write_manifest(BundleIndex(name="gain", task="enhance", precisions={"fp32": "fp32.json"}), folder / "bundle.json")
    return folder


@pytest.fixture(scope="session")
def identity_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose output is its input."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "identity")


@pytest.fixture
def bundle_with_gain(tmp_path: Path) -> Callable[[float], Path]:
    """Make a bundle that multiplies by a factor."""
    made = itertools.count()
    return lambda gain: make_bundle(tmp_path / f"bundle-{next(made)}", gain=gain)


@pytest.fixture
def frames() -> np.ndarray:
    """Twelve different 8-bit frames, (12, 64, 96)."""
    return np.random.default_rng(7).integers(0, 256, (12, 64, 96), dtype=np.uint8)


@pytest.fixture(scope="session")
def small_specimen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image file to put under the simulated sphere: quicker than drawing the 127 um demonstration specimen."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(20, 236, (64, 64), np.uint8)
    path = tmp_path_factory.mktemp("specimen") / "blocks.tif"
    tifffile.imwrite(path, np.kron(blocks, np.ones((16, 16), np.uint8)))
    return path

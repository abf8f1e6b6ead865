"""What the tests of the appliance share: a bundle that needs no training, and a clock that needs no waiting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tifffile
from onnx import TensorProto, helper

from export.manifest import BundleIndex, Manifest, TensorSpec, Verification, sha256_of, write_manifest

PIXEL_SIZE_NM = 6500 / (50 * 2.70)


# What the graph of `make_bundle` offers under which name: the tensor, and its channels.
OUTPUTS = {"enhanced": 1, "inverted": 1, "colour": 3}


def make_bundle(
    folder: Path,
    *,
    gain: float = 1.0,
    pixel_size_nm: float = PIXEL_SIZE_NM,
    outputs: Sequence[str] = ("enhanced",),
    scale: int = 1,
    **fields: Any,
) -> Path:
    """A bundle whose network multiplies by ``gain`` and clamps to 0..1: for tests that are not about science.

    ``enhanced`` is that, ``inverted`` is 1 less it, ``colour`` is red ``enhanced``, no green, blue ``inverted``.
    ``scale`` repeats pixels. ``fields`` go into the manifest, the task also into the index.
    """
    folder.mkdir(parents=True)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["image", "gain"], ["brighter"]),
            helper.make_node("Clip", ["brighter", "zero", "one"], ["small"]),
            helper.make_node("Resize", ["small", "", "scales"], ["enhanced"], mode="nearest", nearest_mode="floor",
                             coordinate_transformation_mode="asymmetric"),
            helper.make_node("Sub", ["one", "enhanced"], ["inverted"]),
            helper.make_node("Mul", ["enhanced", "zero"], ["black"]),
            helper.make_node("Concat", ["enhanced", "black", "inverted"], ["colour"], axis=1),
        ],
        "gain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, "height", "width"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, OUTPUTS[name], "tall", "wide"])
            for name in reversed(outputs)  # a back end goes by the names, not by the graph's order
        ],
        [
            helper.make_tensor("gain", TensorProto.FLOAT, [], [gain]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, scale, scale]),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / "gain_fp32.onnx"
    onnx.save(model, str(path))
    task = fields.setdefault("task", "enhance")
    sides = ("height", "width") if scale == 1 else (f"{scale}*height", f"{scale}*width")
    given = {
        "file": path.name,
        "name": "gain",
        "sha256": sha256_of(path),
        "format": "onnx",
        "precision": "fp32",
        "inputs": (TensorSpec(name="image", shape=(1, 1, "height", "width"), dtype="float32", range=(0, 1)),),
        "outputs": tuple(
            TensorSpec(name=name, shape=(1, OUTPUTS[name], *sides), dtype="float32", range=(0, 1)) for name in outputs
        ),
        "scale": scale,
        "halo_px": 0,
        "min_side_px": 16,
        "pixel_size_nm": pixel_size_nm,
        "training_data": "none: multiplies by a constant",
        "checkpoint_sha256": "0" * 64,
        "verify": Verification(against="itself", max_abs_error=0, psnr_db=200, ssim=1, shapes_px=((16, 16),)),
    }
    write_manifest(Manifest.model_validate({**given, **fields}), folder / "fp32.json")
    write_manifest(BundleIndex(name="gain", task=task, precisions={"fp32": "fp32.json"}), folder / "bundle.json")
    return folder


@pytest.fixture(scope="session")
def identity_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose output is its input."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "identity")


@pytest.fixture(scope="session")
def lens_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle like a neural lens: three outputs, one of them in colour, trained behind a 20x objective."""
    return make_bundle(
        tmp_path_factory.mktemp("bundle") / "lens",
        outputs=("enhanced", "inverted", "colour"),
        task="neural-lens",
        pixel_size_nm=332.0,
        side_multiple_px=32,
    )


@pytest.fixture
def new_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Make a bundle with the arguments of :func:`make_bundle`."""
    made = itertools.count()
    return lambda **options: make_bundle(tmp_path / f"bundle-{next(made)}", **options)


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

"""Bundles that need no training, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from export.files import sha256_of
from export.manifest import BundleIndex, Manifest, TensorSpec, Verification, write_manifest

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
    told: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A bundle whose network multiplies by ``gain`` and clamps to 0..1: for tests that are not about science.

    ``enhanced`` is that, ``inverted`` is 1 less it, ``colour`` is red ``enhanced``, no green, blue ``inverted``.
    ``scale`` repeats pixels. ``fields`` go into the manifest, the task also into the index; ``told`` as well, over what
    the graph is.
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
    write_manifest(Manifest.model_validate({**given, **fields, **(told or {})}), folder / "fp32.json")
    write_manifest(BundleIndex(name="gain", task=task, precisions={"fp32": "fp32.json"}), folder / "bundle.json")
    return folder


def make_lens_bundle(folder: Path) -> Path:
    """A bundle like a neural lens: three outputs, the last in colour, trained behind a 20x objective."""
    return make_bundle(
        folder,
        outputs=("enhanced", "inverted", "colour"),
        task="neural-lens",
        pixel_size_nm=332.0,
        side_multiple_px=32,
    )

"""A bundle's FP32 network as a bioimage.io package, which other microscopy programs read."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.files import sha256_of, write_atomically
from export.graph import opset, read_model
from export.manifest import Bundle, Manifest, TensorSpec
from export.runtime import infer_with
from models.checkpoint import load_checkpoint

# The model description of bioimage.io that this writes; its file is YAML, of which JSON is a part.
FORMAT_VERSION = "0.5.4"
_TEST_SIDE_PX = 128
_COLOURS = {1: ["intensity"], 3: ["red", "green", "blue"]}
# A zip file's entries carry a time; a fixed one, so that the same bundle gives the same file.
_WHEN = (1980, 1, 1, 0, 0, 0)


def package(bundle: Bundle, out: Path) -> None:
    """Write a bundle's FP32 model, its card, and a test picture with its outputs as one zip file.

    Raises
    ------
    ManifestError
        The bundle is damaged.
    CheckpointError
        Its weights are: they say which kind of picture to test with.
    """
    manifest, model = bundle.manifest("fp32"), bundle.model_path("fp32")
    recipe = load_checkpoint(bundle.folder / bundle.index.weights).recipe
    step = manifest.side_multiple_px
    side = -(-max(_TEST_SIDE_PX, 4 * manifest.halo_px, manifest.min_side_px) // step) * step
    image = recipe.example((side, side), 0)
    made = infer_with(model)(image)
    pictures = {manifest.inputs[0].name: image} | {name: made[name] for name in manifest.output_names}
    tensors = {f"test_{name}.npy": _saved(picture) for name, picture in pictures.items()}
    about = description(manifest, opset(read_model(model)), sha256_of(model))
    files = {
        "bioimageio.yaml": json.dumps(about, indent=2).encode(),
        "README.md": (bundle.folder / bundle.index.card).read_bytes(),
        manifest.file: model.read_bytes(),
        **tensors,
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _WHEN), data, zipfile.ZIP_DEFLATED)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, packed.getvalue())


def description(manifest: Manifest, opset_version: int, sha256: str) -> dict[str, Any]:
    """The model description (bioimage.io, spec-bioimage-io, model 0.5)."""
    (image,) = manifest.inputs
    step = manifest.side_multiple_px
    # A picture must be more than its own border.
    least = max(manifest.min_side_px, 2 * manifest.halo_px + 1)
    sides: dict[str, dict[str, Any]] = {axis: {"min": -(-least // step) * step, "step": step} for axis in "yx"}
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": manifest.name,
        "description": f"{manifest.task}, scale {manifest.scale}. {manifest.training_data}"[:1000],
        "documentation": "README.md",
        "authors": [{"name": "superlens maintainers"}],
        "license": "Apache-2.0",
        "tags": ["superlens", manifest.task, "microscopy", "2d"],
        "inputs": [_tensor(image, sides, manifest.pixel_size_nm)],
        "outputs": [
            _tensor(
                spec,
                {
                    axis: {"tensor_id": image.name, "axis_id": axis}
                    for axis in "yx"
                },
                manifest.pixel_size_nm / manifest.scale,
                halo=manifest.halo_px * manifest.scale,
            )
            for spec in manifest.outputs
        ],
        "weights": {"onnx": {"source": manifest.file, "opset_version": opset_version, "sha256": sha256}},
    }  # fmt: skip


def _tensor(spec: TensorSpec, sides: dict[str, dict[str, Any]], pixel_nm: float, halo: int = 0) -> dict[str, Any]:
    space: list[dict[str, Any]] = [
        {"type": "space", "id": axis, "unit": "nanometer", "scale": pixel_nm, "size": size}
        | ({"halo": halo} if halo else {})
        for axis, size in sides.items()
    ]
    return {
        "id": spec.name,
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": _COLOURS[spec.channels]}, *space],
        "test_tensor": {"source": f"test_{spec.name}.npy"},
        "data": {"type": spec.dtype, "range": list(spec.range)},
    }


def _saved(picture: NDArray[np.float32]) -> bytes:
    """(h, w) or (h, w, 3) as a .npy file of (1, channels, h, w)."""
    planes = picture[None, None] if picture.ndim == 2 else np.moveaxis(picture, -1, 0)[None]
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(planes))
    return file.getvalue()

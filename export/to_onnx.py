"""Checkpoint to ONNX: the fused network in FP32, checked against torch on several sizes."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from export.errors import ParityError
from export.files import sha256_of
from export.graph import checked
from export.manifest import Manifest, Precision, TensorSpec, Verification
from export.runtime import infer_with
from models import metrics
from models.checkpoint import Checkpoint
from models.network import Network
from models.recipe import Recipe

# What TensorRT 10.3, OpenVINO 2025 and ONNX Runtime 1.20 all read.
OPSET = 18
ALLOWED_ERROR = 1e-4
# Square and not, multiples of 8 and not, the smallest, and a live frame; rounded up to what a network can take.
PARITY_SHAPES_PX = ((16, 16), (17, 23), (171, 128), (256, 256), (512, 512))

INPUT = "image"


def export_fp32(checkpoint: Checkpoint, folder: Path) -> Manifest:
    """Write model.onnx beside the weights.safetensors of a folder, check it, and give its manifest.

    Raises
    ------
    ParityError
        ONNX Runtime's pictures differ from torch's by more than 1e-4.
    """
    net, recipe = checkpoint.net.fused(), checkpoint.recipe
    path = folder / "model.onnx"
    path.write_bytes(graph_of(net))
    weights = sha256_of(folder / "weights.safetensors")
    return manifest_of(recipe, net, path, "fp32", weights, verify(path, net, recipe))


def manifest_of(
    recipe: Recipe, net: Network, path: Path, precision: Precision, checkpoint_sha256: str, verification: Verification
) -> Manifest:
    """The manifest of a file that was made of a network."""
    return Manifest(
        name=recipe.name,
        task=recipe.task,
        file=path.name,
        sha256=sha256_of(path),
        format="onnx",
        precision=precision,
        inputs=(_tensor(INPUT, 1, 1),),
        outputs=tuple(_tensor(name, channels, net.scale) for name, channels in net.outputs),
        scale=net.scale,
        halo_px=net.halo_px,
        min_side_px=net.min_side_px,
        side_multiple_px=net.side_multiple_px,
        pixel_size_nm=round(recipe.pixel_size_nm, 2),
        training_data=" ".join(recipe.description.split()),
        checkpoint_sha256=checkpoint_sha256,
        verify=verification,
    )


def graph_of(net: Network) -> bytes:
    """The ONNX file of a fused network, height and width free.

    Raises
    ------
    GraphError
        The exported graph does not pass ONNX's own checks.
    """
    multiple = net.side_multiple_px
    least = -(-net.min_side_px // multiple)
    sides = {axis: multiple * torch.export.Dim(name, min=least) for axis, name in ((2, "rows"), (3, "columns"))}
    # Not square, and not the least: what is special about an example may be taken for a rule.
    example = torch.zeros(1, 1, *(multiple * max(2 * least, -(-side // multiple)) for side in (64, 72)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        # torch's exporter warns about its own use of torch; nothing in that is for the user.
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            net,
            (example,),
            path,
            input_names=[INPUT],
            output_names=[output.name for output in net.outputs],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"image": sides},
            external_data=False,
        )
        graph = onnx.load(path)
    _strip(graph)
    specs = [_tensor(INPUT, 1, 1), *(_tensor(name, channels, net.scale) for name, channels in net.outputs)]
    for put, spec in zip([*graph.graph.input, *graph.graph.output], specs, strict=True):
        # The sides under the manifest's names instead of the exporter's expressions.
        for dimension, side in zip(put.type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(side, str):
                dimension.dim_param = side
            else:
                dimension.dim_value = side
    return bytes(checked(graph).SerializeToString(deterministic=True))


def verify(model: Path, net: Network, recipe: Recipe) -> Verification:
    """Compare ONNX Runtime with torch on the recipe's pictures in all `PARITY_SHAPES_PX`; ParityError above 1e-4."""
    infer = infer_with(model)
    shapes_px = _parity_shapes(net)
    errors, psnrs, ssims = [], [], []
    for seed, shape_px in enumerate(shapes_px):
        image = recipe.example(shape_px, seed)
        with torch.inference_mode():
            made = net(torch.from_numpy(image)[None, None])
        expected = [made] if isinstance(made, torch.Tensor) else list(made)
        for want, got in zip(expected, infer(image).values(), strict=True):
            wanted = np.moveaxis(want[0].numpy(), 0, -1) if want.shape[1] > 1 else want[0, 0].numpy()
            if got.shape != wanted.shape:
                raise ParityError(f"the exported graph makes {got.shape} px of {shape_px} px, torch {wanted.shape} px")
            errors.append(float(np.abs(got - wanted).max()))
            psnrs.append(metrics.psnr_db(got, wanted))
            ssims.append(1.0 if wanted.ndim == 3 else metrics.ssim(got, wanted))
    if max(errors) > ALLOWED_ERROR:
        raise ParityError(
            f"ONNX Runtime differs from torch by {max(errors):.1e} of full scale, expected at most"
            f" {ALLOWED_ERROR:.0e}; use the pinned torch and onnxruntime releases"
        )
    return Verification(
        against=f"torch {torch.__version__} FP32, by ONNX Runtime {onnxruntime.__version__}",
        max_abs_error=max(errors),
        psnr_db=round(min(psnrs), 2),
        ssim=round(min(ssims), 6),  # floating point makes it 1.00000000x
        shapes_px=shapes_px,
    )


def _tensor(name: str, channels: int, scale: int) -> TensorSpec:
    factor = "" if scale == 1 else f"{scale}*"
    shape = (1, channels, f"{factor}height", f"{factor}width")
    return TensorSpec(name=name, shape=shape, dtype="float32", range=(0.0, 1.0))


def _parity_shapes(net: Network) -> tuple[tuple[int, int], ...]:
    multiple = net.side_multiple_px
    shapes = [(-(-h // multiple) * multiple, -(-w // multiple) * multiple) for h, w in PARITY_SHAPES_PX]
    return tuple(dict.fromkeys(shapes))


def _strip(graph: Any) -> None:
    """Remove the exporter's diary (stack traces with this machine's paths): it would change the file's hash."""
    del graph.metadata_props[:]
    graph.producer_name, graph.producer_version, graph.doc_string = "superlens", "", ""
    graph.graph.name = "superlens"
    del graph.graph.metadata_props[:]
    del graph.graph.value_info[:]
    parts = [*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and logs what is not installed; neither is news to the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)

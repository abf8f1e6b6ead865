"""Checkpoint to bundle: the fused network as ONNX FP32, checked against torch on several sizes."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from export.card import model_card
from export.errors import ExportError, ParityError
from export.manifest import (
    Bundle,
    BundleIndex,
    Manifest,
    TensorSpec,
    Verification,
    load_bundle,
    sha256_of,
    write_manifest,
)
from export.runtime import infer_with
from models import metrics
from models.checkpoint import load_checkpoint
from models.enhance.networks import MIN_SIDE_PX, RTNetG
from models.samples import render

# What TensorRT 10.3, OpenVINO 2025 and ONNX Runtime 1.20 all read.
OPSET = 18
ALLOWED_ERROR = 1e-4
# Square and not, multiples of 8 and not, the smallest, and a live frame.
PARITY_SHAPES_PX = ((16, 16), (17, 23), (171, 128), (256, 256), (512, 512))

INPUT, OUTPUT = "image", "enhanced"


def convert(checkpoint_path: Path, out: Path) -> Bundle:
    """Make the bundle of a checkpoint: model.onnx, model.json, weights.safetensors, README.md, bundle.json.

    The files are made and checked beside `out` and moved there at the end, bundle.json last: a failure leaves
    `out` as it was.

    Raises
    ------
    CheckpointError
        The checkpoint is none.
    ParityError
        ONNX Runtime's pictures differ from torch's by more than 1e-4.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    recipe = checkpoint.recipe
    net = checkpoint.net.fused()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        work = Path(folder)
        shutil.copyfile(checkpoint_path, work / "weights.safetensors")
        (work / "model.onnx").write_bytes(graph_of(net))
        verification = verify(work / "model.onnx", net)
        side = {"dtype": "float32", "range": (0.0, 1.0), "shape": (1, 1, "height", "width")}
        manifest = Manifest(
            name=recipe.name,
            task=recipe.task,
            file="model.onnx",
            sha256=sha256_of(work / "model.onnx"),
            format="onnx",
            precision="fp32",
            inputs=(TensorSpec.model_validate({"name": INPUT, **side}),),
            outputs=(TensorSpec.model_validate({"name": OUTPUT, **side}),),
            scale=net.scale,
            halo_px=net.halo_px,
            min_side_px=MIN_SIDE_PX,
            pixel_size_nm=round(recipe.data.pixel_size_nm, 2),
            training_data=" ".join(recipe.description.split()),
            checkpoint_sha256=sha256_of(work / "weights.safetensors"),
            verify=verification,
        )
        write_manifest(manifest, work / "model.json")
        (work / "README.md").write_text(model_card(checkpoint, manifest, figures=None), encoding="utf-8")
        index = BundleIndex(name=recipe.name, task=recipe.task, precisions={"fp32": "model.json"})
        write_manifest(index, work / "bundle.json")
        out.mkdir(exist_ok=True)
        for name in ("weights.safetensors", "model.onnx", "model.json", "README.md", "bundle.json"):
            (work / name).replace(out / name)
    return load_bundle(out)


def graph_of(net: RTNetG) -> bytes:
    """The ONNX file of a fused network, height and width free.

    Raises
    ------
    ExportError
        The exported graph does not pass ONNX's own checks.
    """
    sides = {2: torch.export.Dim("height", min=MIN_SIDE_PX), 3: torch.export.Dim("width", min=MIN_SIDE_PX)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        # torch's exporter warns about its own use of torch; nothing in that is for the user.
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            net,
            (torch.zeros(1, 1, 64, 72),),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"image": sides},
            external_data=False,
        )
        graph = onnx.load(path)
    _strip(graph)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as exc:
        raise ExportError(f"the exported graph is not valid ONNX ({exc}); use the pinned torch release") from exc
    return bytes(graph.SerializeToString(deterministic=True))


def verify(model: Path, net: RTNetG) -> Verification:
    """Compare ONNX Runtime with torch on specimens of all `PARITY_SHAPES_PX`; ParityError above 1e-4."""
    infer = infer_with(model)
    errors, psnrs, ssims = [], [], []
    for seed, shape_px in enumerate(PARITY_SHAPES_PX):
        image = render("leaves", shape_px=shape_px, pixel_size_nm=48.1, seed=seed)
        with torch.inference_mode():
            expected = net(torch.from_numpy(image)[None, None])[0, 0].numpy()
        got = infer(image)
        if got.shape != expected.shape:
            raise ParityError(f"the exported graph makes {got.shape} px of {shape_px} px, torch {expected.shape} px")
        errors.append(float(np.abs(got - expected).max()))
        psnrs.append(metrics.psnr_db(got, expected))
        ssims.append(metrics.ssim(got, expected))
    if max(errors) > ALLOWED_ERROR:
        worst = PARITY_SHAPES_PX[int(np.argmax(errors))]
        raise ParityError(
            f"ONNX Runtime differs from torch by {max(errors):.1e} at {worst} px, expected at most"
            f" {ALLOWED_ERROR:.0e}; use the pinned torch and onnxruntime releases"
        )
    return Verification(
        against=f"torch {torch.__version__} FP32, by ONNX Runtime {onnxruntime.__version__}",
        max_abs_error=max(errors),
        psnr_db=round(min(psnrs), 2),
        ssim=round(min(ssims), 6),  # floating point makes it 1.00000000x
        shapes_px=PARITY_SHAPES_PX,
    )


def _strip(graph: Any) -> None:
    """Remove the exporter's diary (stack traces with this machine's paths): it would change the file's hash."""
    del graph.metadata_props[:]
    graph.producer_name, graph.producer_version, graph.doc_string = "superlens", "", ""
    graph.graph.name = OUTPUT
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

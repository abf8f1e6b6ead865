"""Bundles of seeded random weights: the speed and memory of networks that the project has not trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch

from export import audit, calibration, gate, graph, half, quantize, rewrite
from export.calibration import Progress, Sample
from export.convert import check_out, file_stem, ordered, silent, unnamed
from export.errors import CalibrationError, ExportError, GraphError
from export.files import move, room
from export.manifest import (
    BUNDLE_FILE,
    Bundle,
    BundleIndex,
    Precision,
    check_onnxruntime,
    load_bundle,
    write_manifest,
)
from export.runtime import infer_with
from export.to_onnx import graph_of, manifest_of
from models.lens.data import Conditions, scenes
from models.lens.networks import NeuralLens
from models.lens.recipe import LensRecipe
from models.recipe import read_recipe

# Maps of the first layer: 64 are the paper's (Grant-Jacob et al. 2019), four networks of 80 million parameters.
NGF = {"neural-lens-4x64": 64, "neural-lens-4x32": 32}
_PICTURES = 2
_MOST_DOWNS = 10


def random_bundle(
    name: str,
    out: Path,
    *,
    size_px: int = 1024,
    precisions: Sequence[Precision] = ("int8",),
    seed: int = 0,
    progress: Progress = silent,
) -> Bundle:
    """Make a bundle of `name`, with random weights, for square pictures of `size_px`.

    INT8 ranges are the largest values on two scenes of synthetic:calibration. How far each file is from FP32 stands in
    its manifest and is not judged: nothing that random weights show can be right or wrong. No weights file is written;
    the seed is the weights.

    Raises
    ------
    ExportError
        There is no such network or size; or as its kinds say.
    """
    if name not in NGF:
        raise ExportError(f"there is no random network {name!r}; choose one of {', '.join(NGF)}")
    if size_px < 64 or size_px & (size_px - 1):
        raise ExportError(f"the size is {size_px} px, expected a power of two from 64 on: a U-Net halves it to one")
    check_out(out, name, "neural-lens")
    wanted = ordered(precisions)
    if any(precision.startswith("int8") for precision in wanted):
        check_onnxruntime("int8", onnxruntime.__version__)
    downs = min(size_px.bit_length() - 1, _MOST_DOWNS)
    recipe = read_recipe("neural-lens")
    if not isinstance(recipe, LensRecipe) or not isinstance(recipe.data, Conditions):
        raise CalibrationError("the recipe neural-lens draws no scenes; reinstall superlens")
    torch.manual_seed(seed)
    net = NeuralLens(recipe.data.types, downs=downs, ngf=NGF[name]).fused()
    words = f"NONE: random weights of seed {seed}, for measuring speed and memory only."
    drawn = scenes(recipe.data, count=_PICTURES, side_px=size_px, seed=calibration.SEED)
    samples = [Sample(scene.image, {}) for scene in drawn]
    recipe = recipe.model_copy(update={"name": name, "description": words})
    with room(out) as work:
        progress("exporting fp32", 0, 1)
        (work / "model.onnx").write_bytes(graph_of(net))
        progress("exporting fp32", 1, 1)
        weights = _hash(net)
        net.to("meta")  # its outputs are still asked for, its gigabyte of weights is not
        fp32 = gate.outputs_of(infer_with(work / "model.onnx"), samples, "running fp32", progress)
        ranges: dict[str, float] = {}
        for precision in wanted:
            path = work / f"{file_stem(precision)}.onnx"
            engine = "onnxruntime"
            if precision != "fp32":
                model = graph.read_model(work / "model.onnx")
                if precision != "fp16" and not ranges:
                    images = [sample.image for sample in samples]
                    ranges = calibration.ranges(model, quantize.measured_values(model), images, "max", progress)
                path.write_bytes(_lesser(model, precision, ranges).SerializeToString())
                del model  # gigabytes, before another copy is loaded
                engine = "openvino" if precision == "int8" else engine
            found = gate.outputs_of(infer_with(path, engine, precision=precision), samples, "judging", progress)
            data = f"{_PICTURES} scenes of {calibration.SYNTHETIC}, not judged"
            figures = gate.judged(found, fp32, samples, border_px=0, data=data, against=f"fp32, by {engine}")
            write_manifest(manifest_of(recipe, net, path, precision, weights, figures), path.with_suffix(".json"))
        if "fp32" not in wanted:
            (work / "model.onnx").unlink()
        (work / "README.md").write_text(_card(name, seed, size_px), encoding="utf-8")
        index = BundleIndex(
            name=name, task="neural-lens", precisions={entry: f"{file_stem(entry)}.json" for entry in wanted}
        )
        write_manifest(index, work / BUNDLE_FILE)
        move(work, out, last=BUNDLE_FILE, without=unnamed(index))
    return load_bundle(out)


def _lesser(model: onnx.ModelProto, precision: Precision, ranges: dict[str, float]) -> onnx.ModelProto:
    """The graph in another precision, audited; INT8 without a search: narrow and outer layers in float."""
    if precision == "fp16":
        made, findings = half.half(model), audit.unreadable(model)
    else:
        subpixel = rewrite.subpixel(model)
        scheme = quantize.schemes(subpixel)[-1]
        made = quantize.quantized(subpixel, scheme, ranges, paired_weights=precision == "int8_fp16")
        made = half.half(made) if precision == "int8_fp16" else rewrite.for_openvino(made)
        findings = audit.audit(made)
    if findings:
        raise GraphError(f"TensorRT would not run {precision} as it is meant: {'; '.join(findings)}")
    return made


def _hash(net: NeuralLens) -> str:
    """SHA-256 over all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _card(name: str, seed: int, size_px: int) -> str:
    return f"""# {name}

**Random weights.** Nobody trained this network: its pictures mean nothing. It is there to measure speed and memory.

Made by `superlens-export random {name} --size {size_px}` with seed {seed}; INT8 ranges are the largest values on two
scenes of {calibration.SYNTHETIC}; no precision was judged.
"""

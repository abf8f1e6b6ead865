"""The staged form: the same pictures as the merged one, to the bit, without the networks of what is not there."""

import functools
import os
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

import numpy as np
import onnx
import torch
from click.testing import CliRunner
from onnx import helper

from export import calibration, graph, half, quantize, rewrite
from export.__main__ import main
from export.convert import convert, silent
from export.errors import GraphError
from export.manifest import load_bundle
from export.runtime import infer_with
from export.staged import magnifiers, merged, staged
from export.to_onnx import graph_of
from models.checkpoint import build_network, save_checkpoint
from models.lens.networks import NeuralLens
from models.recipe import read_recipe
from tests.graphs import picture, residual_net

PRECISIONS = ("fp32", "fp16", "int8", "int8_fp16")
PRESENT = {"both": (2.0, 2.1), "the first": (50.0, -50.0), "the second": (-50.0, 50.0), "none": (-50.0, -50.0)}


@functools.cache
def exported() -> bytes:
    """A small lens of random weights."""
    torch.manual_seed(3)
    net = NeuralLens(downs=3, ngf=8, cap=16, margin_px=2).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return graph_of(net.fused())


def lens(present: str = "both", *, poisoned: int | None = None) -> onnx.ModelProto:
    """A lens that finds these types nearly everywhere; the weights of one magnifier may be no numbers."""
    model = onnx.load_from_string(exported())
    for constant in model.graph.initializer:
        values = graph.array(constant).copy()
        if constant.name == "label.up.2.conv.bias":
            values[:] = PRESENT[present]
        elif constant.name.startswith(f"magnify.{poisoned}."):
            values[:] = np.nan
        constant.CopyFrom(graph.tensor(values, constant.name))
    return model


def in_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    if precision == "fp32":
        return model
    if precision == "fp16":
        return half.half(model)
    values = quantize.measured_values(model)
    found = calibration.ranges(model, values, [picture(32, seed=seed) for seed in range(2)], "max", silent)
    subpixel = rewrite.subpixel(model)
    scheme = quantize.schemes(subpixel)[0]
    if precision == "int8":
        return rewrite.for_openvino(quantize.quantized(subpixel, scheme, found, paired_weights=False))
    return half.half(quantize.quantized(subpixel, scheme, found, paired_weights=True))


def run(model: onnx.ModelProto, image: np.ndarray, folder: Path, engine: str = "onnxruntime", **how: str) -> dict:
    path = folder / "run.onnx"
    path.write_bytes(model.SerializeToString())
    return dict(infer_with(path, engine, **how)(image))


def assert_same(found: dict, wanted: dict, atol: float = 0) -> None:
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("present", PRESENT)
def test_it_gives_the_pictures_of_the_merged_form_to_the_bit(present: str, tmp_path: Path) -> None:
    whole = lens(present)
    parts = staged(whole, magnifiers(whole))
    for side_px in (32, 48):
        image = picture(side_px)
        wanted = run(whole, image, tmp_path)
        assert_same(run(parts, image, tmp_path), wanted)
        assert_same(run(parts, image, tmp_path, "openvino"), run(whole, image, tmp_path, "openvino"), 1e-6)
        assert [bool(wanted[f"filtered_{kind}"].any()) for kind in ("spiny", "smooth")] == [
            level > 0 for level in PRESENT[present]
        ]


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("present", ["both", "the second"])
def test_so_it_does_in_less_than_fp32(precision: str, present: str, tmp_path: Path) -> None:
    fp32 = lens(present)
    whole = in_precision(fp32, precision)
    parts = staged(whole, magnifiers(fp32))
    image = picture(32)
    # ONNX Runtime has no FP16 on the CPU: it widens, and rounds where a graph begins and ends, which an If does too.
    atol = 0.0 if precision == "int8" else 2e-3
    assert_same(
        run(parts, image, tmp_path, precision=precision), run(whole, image, tmp_path, precision=precision), atol
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_network_of_an_absent_type_is_not_executed(engine: str, tmp_path: Path) -> None:
    """Weights that are no numbers would show: nothing times NaN is NaN."""
    whole = lens("the first", poisoned=1)
    found = run(staged(whole, magnifiers(whole)), picture(32), tmp_path, engine)
    assert_same(found, run(lens("the first"), picture(32), tmp_path, engine), 1e-6)
    assert np.isnan(run(whole, picture(32), tmp_path, "onnxruntime")["filtered_smooth"]).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_staged_graph_can_be_merged_again(precision: str) -> None:
    fp32 = lens()
    whole = in_precision(fp32, precision)
    again = merged(staged(whole, magnifiers(fp32)))
    assert [node.SerializeToString() for node in again.graph.node] == [
        node.SerializeToString() for node in whole.graph.node
    ]
    read = {name for node in whole.graph.node for name in node.input}
    wanted = {name: tensor for name, tensor in graph.constants(whole).items() if name in read}
    assert graph.constants(again) == wanted


def test_constants_lie_in_the_branch_that_reads_them(tmp_path: Path) -> None:
    """What comes from outside is data to OpenVINO, and is packed for nobody."""
    fp32 = lens()
    model = staged(in_precision(fp32, "int8"), magnifiers(fp32))
    outer = set(graph.constants(model))
    for node in model.graph.node:
        if node.op_type == "If":
            then = graph.attributes(node)["then_branch"]
            assert not outer.intersection(name for inner in then.node for name in inner.input)
            assert then.initializer


def test_a_network_without_magnifiers_has_no_staged_form() -> None:
    with pytest.raises(GraphError, match="only a neural lens has a staged form"):
        magnifiers(residual_net())


def test_a_value_inside_a_magnifier_that_is_read_elsewhere_is_refused() -> None:
    model = lens()
    (first, _) = magnifiers(model)
    (reader,) = graph.consumers(model)[first.light]
    model.graph.node.append(helper.make_node("Relu", [reader.output[0]], ["stolen"]))
    with pytest.raises(GraphError, match=f"{reader.output[0]} inside a magnifier is read elsewhere"):
        staged(model, [first])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    recipe = read_recipe("neural-lens-mini").tiny()
    net = build_network(recipe).eval()
    path = tmp_path_factory.mktemp("staged") / "best.safetensors"
    save_checkpoint(path, net, recipe, 1)
    return path


@pytest.mark.slow
def test_the_command_writes_both_forms_of_every_precision_and_turns_one_into_the_other(
    checkpoint: Path, tmp_path: Path
) -> None:
    whole = convert(checkpoint, tmp_path / "whole", ["fp16", "int8"], data="synthetic:calibration")
    call = ["convert", str(checkpoint), "--out", str(tmp_path / "parts"), "--form", "staged"]
    done = CliRunner().invoke(main, [*call, "--precision", "fp16", "int8", "--calibration", "synthetic:calibration"])
    parts = load_bundle(tmp_path / "parts")
    assert (done.exit_code, parts.precisions) == (bool(whole.refused), whole.bundle.precisions), done.output
    for precision in parts.precisions:
        forms = [bundle.manifest(precision) for bundle in (whole.bundle, parts)]
        assert [manifest.form for manifest in forms] == ["merged", "staged"]
        assert forms[0].sha256 != forms[1].sha256
        # Above 80 dB ONNX Runtime's widening of FP16 decides, which an If interrupts.
        assert min(80.0, forms[1].verify.psnr_db) == pytest.approx(min(80.0, forms[0].verify.psnr_db), abs=0.5)
        assert "If" in {node.op_type for node in graph.read_model(parts.model_path(precision)).graph.node}
    again = convert(parts.folder, tmp_path / "again", ["fp16"]).bundle
    other = convert(whole.bundle.folder, tmp_path / "other", ["fp16"]).bundle
    for precision in other.precisions:
        mine = graph.read_model(again.model_path(precision))
        assert mine.graph.node == graph.read_model(other.model_path(precision)).graph.node
        assert again.manifest(precision).form == "merged"


def test_another_network_in_staged_form_is_refused_in_one_line(tmp_path: Path) -> None:
    zoo = Path(__file__).parents[2] / "models" / "zoo" / "srcnn"
    done = CliRunner().invoke(main, ["convert", str(zoo), "--out", str(tmp_path / "out"), "--form", "staged"])
    assert done.exit_code == 2
    assert "only a neural lens has a staged form" in done.output
    assert not (tmp_path / "out").exists()

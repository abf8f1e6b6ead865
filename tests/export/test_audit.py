"""The audit names everything that TensorRT refuses or does not fuse, and is silent on what we write."""

import os
from collections.abc import Callable

import numpy as np
import onnx
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("onnx", reason="needs the extra [export]")

from onnx import NodeProto, TensorProto, helper

from export import graph
from export.audit import audit, unreadable
from export.half import half
from export.quantize import measured_values, quantized, schemes
from tests.graphs import model_of, node_of, residual_net


@pytest.fixture
def int8() -> onnx.ModelProto:
    model = residual_net()
    return quantized(model, schemes(model)[0], dict.fromkeys(measured_values(model), 4.0), paired_weights=True)


def replace(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:  # type: ignore[type-arg]
    for entry in model.graph.initializer:
        if entry.name == name:
            entry.CopyFrom(graph.tensor(values, name))


def insert(model: onnx.ModelProto, before: str, *nodes: NodeProto) -> None:
    place = list(model.graph.node).index(node_of(model, before))
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)


def zero_point(model: onnx.ModelProto) -> None:
    replace(model, "zero", np.int8(3))


def unsigned(model: onnx.ModelProto) -> None:
    replace(model, "zero", np.uint8(0))


def no_zero_point(model: onnx.ModelProto) -> None:
    node_of(model, "head_relu/for/first/int8").input.pop()


def negative_scale(model: onnx.ModelProto) -> None:
    replace(model, "head_relu/scale", np.float32(-1))


def computed_scale(model: onnx.ModelProto) -> None:
    insert(model, "head_relu/for/first/int8", helper.make_node("Abs", ["head_relu/scale"], ["computed"]))
    node_of(model, "head_relu/for/first/int8").input[1] = "computed"


def two_scales(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(graph.tensor(np.float32(9), "other"))
    node_of(model, "head_relu/for/first").input[1] = "other"


def int32_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(graph.tensor(np.zeros(32, np.int32), "bias32"))
    insert(model, "first", helper.make_node("DequantizeLinear", ["bias32", "first/weights/scale"], ["bias"], axis=0))
    node_of(model, "first").input[2] = "bias"


def one_scale_for_weights(model: onnx.ModelProto) -> None:
    replace(model, "first/weights/scale", np.float32(0.1))
    replace(model, "first/weights/zero", np.int8(0))


def wrong_axis(model: onnx.ModelProto) -> None:
    node_of(model, "first/weights").attribute[0].i = 1


def float_weights(model: onnx.ModelProto) -> None:
    node_of(model, "first").input[1] = "first/weights/float"


def float_data(model: onnx.ModelProto) -> None:
    node_of(model, "first").input[0] = "head_relu"


def shared_pair(model: onnx.ModelProto) -> None:
    insert(model, "first", helper.make_node("Tanh", ["head_relu/for/first"], ["tanh"]))


def both_branches(model: onnx.ModelProto) -> None:
    insert(
        model,
        "sum",
        helper.make_node("QuantizeLinear", ["second", "head_relu/scale", "zero"], ["second/int8"]),
        helper.make_node("DequantizeLinear", ["second/int8", "head_relu/scale", "zero"], ["second/pair"]),
    )
    node_of(model, "sum").input[1] = "second/pair"


def nothing_to_fuse(model: onnx.ModelProto) -> None:
    insert(model, "sum", helper.make_node("Relu", ["second"], ["second_relu"]))
    node_of(model, "sum").input[1] = "second_relu"


def dynamic(model: onnx.ModelProto) -> None:
    insert(model, "first", helper.make_node("DynamicQuantizeLinear", ["head"], ["q", "s", "z"]))


def plugin(model: onnx.ModelProto) -> None:
    insert(model, "first", helper.make_node("Gelu", ["head"], ["g"], domain="com.microsoft"))


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (zero_point, "has the zero point 3, TensorRT takes 0 only"),
        (unsigned, "is UINT8, TensorRT takes INT8"),
        (no_zero_point, "head_relu has no zero point"),
        (negative_scale, "has a scale that is not positive"),
        (computed_scale, "computes its scale"),
        (two_scales, "the pair of head_relu has two scales"),
        (int32_bias, "bias32 is a bias in INT32"),
        (one_scale_for_weights, "expected 32 along axis 0"),
        (wrong_axis, "32 scales along axis 1, expected 32 along axis 0"),
        (float_weights, "Conv first has INT8 data and float weights"),
        (float_data, "Conv first has INT8 weights and float data"),
        (shared_pair, "the DequantizeLinear of head_relu has 2 readers"),
        (shared_pair, "stands before Tanh, which TensorRT does not run in INT8"),
        (both_branches, "Add sum has pairs on both branches"),
        (nothing_to_fuse, "its other branch is no INT8 convolution"),
        (dynamic, "DynamicQuantizeLinear quantises without explicit scales"),
        (plugin, "operators of domain com.microsoft"),
        (old_opset, "is of opset 11, expected 13 to 20"),
    ],
)
def test_what_is_spoilt_is_found(int8: onnx.ModelProto, spoil: Callable[[onnx.ModelProto], None], finding: str) -> None:
    assert audit(int8) == []
    spoil(int8)
    assert any(finding in found for found in audit(int8)), audit(int8)


def test_a_file_without_int8_is_none() -> None:
    assert audit(residual_net()) == ["no convolution is quantised: this is no INT8 file"]


def test_weights_stored_in_int8_are_for_openvino_only() -> None:
    model = residual_net()
    stored = quantized(model, schemes(model)[0], dict.fromkeys(measured_values(model), 4.0), paired_weights=False)
    assert audit(stored) == []
    assert "TensorRT wants a Q and a DQ on floats" in audit(half(stored))[0]


def test_inputs_and_outputs_are_single_float_pictures() -> None:
    model = residual_net()
    assert unreadable(model) == []
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 4, 8]))
    assert unreadable(model) == [
        "the graph has 2 inputs, expected one picture",
        "more has the shape [1, 4, 8], expected [1, 1, height, width]",
        "enhanced is FLOAT16, expected FLOAT at the edges",
    ]


def test_an_operator_that_cannot_be_exported_is_named() -> None:
    model = model_of([helper.make_node("NonZero", ["image"], ["enhanced"])], {})
    assert "NonZero is not among the operators that can be exported" in unreadable(model)

"""FP16 inside, FP32 at the edges, and honest about what rounding costs."""

import os

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("onnx", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export import graph
from export.errors import GraphError
from export.half import emulated, half
from export.quantize import measured_values, quantized, schemes
from tests.graphs import kinds, model_of, node_of, picture, residual_net, run


@settings(max_examples=10, deadline=None)
@given(channels=st.sampled_from([4, 32]), seed=st.integers(0, 99), side_px=st.sampled_from([8, 17, 24]))
def test_the_picture_is_that_of_fp32_to_half_a_thousandth(channels: int, seed: int, side_px: int) -> None:
    model = residual_net(channels, seed=seed)
    image = picture(side_px, seed=seed)
    np.testing.assert_allclose(run(half(model), image), run(model, image), atol=2e-3)


def test_inputs_outputs_and_what_touches_them_stay_float() -> None:
    made = half(residual_net())
    assert [put.type.tensor_type.elem_type for put in [*made.graph.input, *made.graph.output]] == [1, 1]
    types = graph.element_types(made)
    assert {types[name] for name in ("brighter", "enhanced", "mean")} == {TensorProto.FLOAT}
    assert {types[name] for name in ("head", "sum", "centred", "up", "tail")} == {TensorProto.FLOAT16}
    assert made.graph.name == "test"


def test_weights_are_stored_in_half_and_only_once() -> None:
    model = residual_net()
    made = half(model)
    stored = graph.constants(made)
    assert "first_w" not in stored
    assert stored["first_w/half"].data_type == TensorProto.FLOAT16
    assert len(made.SerializeToString()) < 0.55 * len(model.SerializeToString())


def test_an_output_that_a_convolution_makes_keeps_its_name_and_type() -> None:
    model = model_of([helper.make_node("Conv", ["image", "w"], ["enhanced"])], {"w": np.ones((1, 1, 1, 1), np.float32)})
    made = half(model)
    assert kinds(made) == ["Cast", "Conv", "Cast"]
    np.testing.assert_allclose(run(made, picture()), run(model, picture()), atol=1e-3)


def test_scales_of_a_resize_stay_what_onnx_wants_them_to_be() -> None:
    weights = {"w": np.ones((4, 1, 1, 1), np.float32), "v": np.ones((1, 4, 1, 1), np.float32)}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["x"]),
        helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest"),
        helper.make_node("Conv", ["y", "v"], ["enhanced"]),
    ]
    made = half(model_of(nodes, weights))
    assert graph.element_types(made)["y"] == TensorProto.FLOAT16
    assert node_of(made, "y").input[2] == "scales"


def test_the_emulation_rounds_where_a_cpu_does_not() -> None:
    model = residual_net(32, seed=1)
    made = half(model)
    spelled = graph.checked(emulated(made))
    assert TensorProto.FLOAT16 not in {entry.data_type for entry in spelled.graph.initializer}
    image = picture(32)
    exact, rounded = run(model, image), run(spelled, image)
    assert 0 < np.abs(rounded - exact).max() < 2e-3
    inside = graph.rebuilt(spelled, spelled.graph.node)
    del inside.graph.output[:]
    inside.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, None))
    values = run(inside, image)
    np.testing.assert_array_equal(values, values.astype(np.float16))


def test_q_and_dq_are_of_the_type_of_the_convolution_they_feed() -> None:
    model = residual_net()
    scheme = schemes(model)[0]
    made = half(quantized(model, scheme, dict.fromkeys(measured_values(model), 4.0), paired_weights=True))
    types = graph.element_types(made)
    for node in graph.convolutions(made):
        assert [types[name] for name in node.input] == [TensorProto.FLOAT16] * len(node.input)
        assert graph.producers(made)[node.input[0]].op_type == "DequantizeLinear", "no cast between the two"
    assert graph.opset(made) == 19


def test_a_weight_beyond_fp16_is_refused() -> None:
    weights = {"w": np.full((1, 1, 1, 1), 1e6, np.float32)}
    model = model_of([helper.make_node("Conv", ["image", "w"], ["enhanced"])], weights)
    with pytest.raises(GraphError, match=r"w has a value of 1e\+06, but FP16 ends at 65504"):
        half(model)


def test_a_graph_without_convolutions_is_refused() -> None:
    with pytest.raises(GraphError, match="no convolution that could run in FP16"):
        half(model_of([helper.make_node("Relu", ["image"], ["enhanced"])], {}))

"""Symmetric pairs where TensorRT fuses them, the same numbers in both files, float where it pays."""

import os
from typing import Any

import numpy as np
import onnx
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("onnx", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from export import graph
from export.audit import audit
from export.calibration import ranges
from export.errors import GraphError
from export.quantize import LEVELS, measured_values, quantized, schemes
from export.rewrite import subpixel
from tests.graphs import kinds, model_of, picture, residual_net, run


def measured(model: onnx.ModelProto) -> dict[str, float]:
    return ranges(model, measured_values(model), [picture(seed=s) for s in range(3)], "max", lambda *_: None)


@settings(max_examples=8, deadline=None)
@given(channels=st.sampled_from([8, 32]), seed=st.integers(0, 99), paired=st.booleans())
def test_every_scheme_is_near_fp32_and_passes_the_audit(channels: int, seed: int, paired: bool) -> None:
    model = residual_net(channels, seed=seed)
    found, image = measured(model), picture(seed=7)
    doubled = subpixel(model)
    for scheme in schemes(doubled):
        made = quantized(doubled, scheme, found, paired_weights=paired)
        assert audit(made) == []
        assert np.abs(run(made, image) - run(model, image)).max() < 0.05


def test_both_forms_of_the_weights_are_the_same_numbers() -> None:
    model = subpixel(residual_net())
    found, scheme = measured(model), schemes(model)[0]
    stored, paired = (quantized(model, scheme, found, paired_weights=pair) for pair in (False, True))
    np.testing.assert_array_equal(run(stored, picture()), run(paired, picture()))
    assert len(stored.SerializeToString()) < 0.4 * len(paired.SerializeToString())


def test_scales_are_numbers_of_fp16_and_reach_the_largest_value() -> None:
    model = residual_net()
    found = measured(model)
    made = quantized(model, schemes(model)[0], found, paired_weights=False)
    known = graph.constants(made)
    for name, largest in found.items():
        scale = graph.array(known[f"{name}/scale"])
        assert scale == scale.astype(np.float16)
        assert largest <= scale * LEVELS < 1.002 * largest
    levels = graph.array(known["first/weights/int8"])
    assert levels.dtype == np.int8
    assert levels.min() >= -LEVELS
    assert set(np.abs(levels).max((1, 2, 3))) <= {LEVELS - 1, LEVELS}, "every output channel uses all levels"


def test_schemes_go_from_all_to_the_inner_wide_layers() -> None:
    tried = schemes(subpixel(residual_net(32)))
    assert [sorted(scheme.floats) for scheme in tried[:3]] == [[], ["tail"], ["head", "tail"]]
    assert tried[-1].float_sums
    assert tried[-1].name.endswith("and residual sums")


def test_narrow_layers_are_left_in_float_only_where_something_else_remains() -> None:
    assert all("less than 32" not in scheme.name for scheme in schemes(residual_net(8)))


def test_of_a_residual_sum_one_branch_has_a_pair() -> None:
    model = residual_net()
    made = quantized(model, schemes(model)[0], measured(model), paired_weights=False)
    (total,) = [node for node in made.graph.node if node.output[0] == "sum"]
    before = [graph.producers(made)[name].op_type for name in total.input]
    assert before == ["DequantizeLinear", "Conv"]
    without = quantized(model, schemes(model)[-1], measured(model), paired_weights=False)
    (total,) = [node for node in without.graph.node if node.output[0] == "sum"]
    assert list(total.input) == ["head_relu", "second"]


def test_a_channel_of_zeros_and_a_value_that_is_always_zero_have_a_scale() -> None:
    model = residual_net()
    for entry in model.graph.initializer:
        if entry.name == "first_w":
            weight = graph.array(entry).copy()
            weight[3] = 0
            entry.CopyFrom(graph.tensor(weight, "first_w"))
    found = measured(model) | {"first_relu": 0.0}
    made = quantized(model, schemes(model)[0], found, paired_weights=False)
    assert audit(made) == []
    assert np.isfinite(run(made, picture())).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"first_w": np.nan}, "first_w has weights that are not finite"),
        ({"first_w": 1e8}, "beyond the range of INT8 with FP16 scales"),
    ],
)
def test_weights_that_have_no_scale_are_refused(change: dict[str, Any], complaint: str) -> None:
    model = residual_net()
    for entry in model.graph.initializer:
        if entry.name in change:
            entry.CopyFrom(graph.tensor(np.full(tuple(entry.dims), change[entry.name], np.float32), entry.name))
    with pytest.raises(GraphError, match=complaint):
        quantized(model, schemes(model)[0], dict.fromkeys(measured_values(model), 1.0), paired_weights=False)


def test_a_value_that_nobody_measured_is_refused() -> None:
    model = residual_net()
    with pytest.raises(GraphError, match="no range was measured for image, which head reads"):
        quantized(model, schemes(model)[0], {}, paired_weights=False)


def test_a_graph_without_convolutions_is_refused() -> None:
    with pytest.raises(GraphError, match="no convolution that could run in INT8"):
        schemes(model_of([helper.make_node("Relu", ["image"], ["enhanced"])], {}))


def test_a_convolution_with_computed_weights_is_left_alone() -> None:
    nodes = [
        helper.make_node("Relu", ["v"], ["w"]),
        helper.make_node("Conv", ["image", "w"], ["x"]),
        helper.make_node("Conv", ["x", "v"], ["enhanced"]),
    ]
    model = model_of(nodes, {"v": np.ones((1, 1, 1, 1), np.float32)})
    made = quantized(model, schemes(model)[0], {"image": 1.0, "x": 1.0}, paired_weights=False)
    assert kinds(made).count("QuantizeLinear") == 1

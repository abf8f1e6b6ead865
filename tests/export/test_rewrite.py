"""Rewritings compute what the graph computed before."""

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("onnx", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from export.graph import checked
from export.quantize import Scheme, quantized
from export.rewrite import for_openvino, subpixel
from export.runtime import infer_with
from tests.graphs import kinds, model_of, picture, residual_net, run


@settings(max_examples=25, deadline=None)
@given(
    before=st.integers(1, 5), after=st.integers(1, 5), side_px=st.integers(1, 7), bias=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_doubling_is_a_convolution_and_a_shuffle(
    before: int, after: int, side_px: int, bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = {"spread": rng.standard_normal((before, 1, 1, 1)).astype(np.float32)}
    weights["w"] = rng.standard_normal((before, after, 4, 4)).astype(np.float32)
    if bias:
        weights["b"] = rng.standard_normal(after).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "spread"], ["x"]),
        helper.make_node(
            "ConvTranspose", ["x", "w", "b"][: 2 + bias], ["enhanced"],
            kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1],
        ),
    ]  # fmt: skip
    model = model_of(nodes, weights, outputs={"enhanced": after})
    made = checked(subpixel(model))
    assert kinds(made) == ["Conv", "Conv", "DepthToSpace"]
    image = rng.standard_normal((side_px, side_px + 2)).astype(np.float32)
    np.testing.assert_allclose(run(made, image), run(model, image), atol=2e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"kernel_shape": [2, 2], "pads": [0, 0, 0, 0]},
        {"pads": [0, 0, 0, 0]},
        {"strides": [1, 1]},
        {"output_padding": [1, 1]},
        {"group": 2},
    ],
)
def test_other_transposed_convolutions_stay(changed: dict[str, object]) -> None:
    attributes = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]} | changed
    size = attributes["kernel_shape"][0]  # type: ignore[index]
    weights = {"spread": np.ones((2, 1, 1, 1), np.float32), "w": np.ones((2, 1, size, size), np.float32)}
    nodes = [
        helper.make_node("Conv", ["image", "spread"], ["x"]),
        helper.make_node("ConvTranspose", ["x", "w"], ["enhanced"], **attributes),
    ]
    assert "ConvTranspose" in kinds(subpixel(model_of(nodes, weights)))


def test_a_whole_graph_keeps_its_function_and_is_not_touched_itself() -> None:
    model = residual_net(8)
    before = model.SerializeToString()
    made = subpixel(model)
    np.testing.assert_allclose(run(made, picture()), run(model, picture()), atol=1e-6)
    assert model.SerializeToString() == before
    assert "ConvTranspose" not in kinds(made)
    assert "up_w" not in {entry.name for entry in made.graph.initializer}


def test_openvino_computes_int8_behind_a_skip_as_the_file_says(tmp_path: Path) -> None:
    """It would be 17 % off with the Relu in the graph (OpenVINO 2026.4)."""
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal(shape) * scale).astype(np.float32)
        for name, shape, scale in (("a_w", (16, 1, 3, 3), 0.6), ("b_w", (16, 1, 3, 3), 0.6), ("w", (1, 32, 3, 3), 0.1))
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "a_w"], ["a"], **pads),
        helper.make_node("Conv", ["image", "b_w"], ["b"], **pads),
        helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
        helper.make_node("Relu", ["both"], ["relu"]),
        helper.make_node("Conv", ["relu", "w"], ["enhanced"], **pads),
    ]
    model = model_of(nodes, weights)
    int8 = quantized(model, Scheme("", frozenset({"a", "b"})), {"relu": 3.0, "image": 1.0}, paired_weights=False)
    made = checked(for_openvino(int8))
    assert kinds(made).count("Clip") == 1
    want = run(int8, picture())[0, 0]
    np.testing.assert_array_equal(run(made, picture())[0, 0], want)
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    found = infer_with(path, "openvino", precision="int8")(picture())["enhanced"]
    np.testing.assert_allclose(found, want, atol=2e-3)

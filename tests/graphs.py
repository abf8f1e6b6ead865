"""Hand-made ONNX graphs for tests of what rewrites them: no torch, milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


def model_of(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, NDArray[Any]],
    *,
    outputs: Mapping[str, int] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """A graph from `image` (1, 1, height, width) to the named outputs and their channels."""
    puts = {"enhanced": 1} if outputs is None else outputs
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, "height", "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, c, "tall", "wide"]) for name, c in puts.items()],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def residual_net(channels: int = 32, *, seed: int = 0, gain: float = 1.0) -> onnx.ModelProto:
    """A head, a residual block, a mean that is added back, a doubling, a tail and a clamp, all sides kept."""
    rng = np.random.default_rng(seed)

    def kernel(after: int, before: int, size: int) -> NDArray[np.float32]:
        values = rng.standard_normal((after, before, size, size)) * gain / (size * np.sqrt(before))
        return values.astype(np.float32)

    weights: dict[str, NDArray[Any]] = {
        "head_w": kernel(channels, 1, 3), "head_b": rng.random(channels, dtype=np.float32),
        "first_w": kernel(channels, channels, 3), "first_b": rng.random(channels, dtype=np.float32) - np.float32(0.5),
        "second_w": kernel(channels, channels, 3),
        "up_w": np.ascontiguousarray(kernel(channels, channels, 4).transpose(1, 0, 2, 3)),
        "up_b": rng.random(channels, dtype=np.float32) * np.float32(0.1),
        "tail_w": kernel(1, channels, 2) * np.float32(0.2), "tail_b": np.full(1, 0.3, np.float32),
        "axes": np.array([2, 3]), "low": np.float32(0), "high": np.float32(1),
    }  # fmt: skip
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "head_w", "head_b"], ["head"], kernel_shape=[3, 3], **same),
        helper.make_node("Relu", ["head"], ["head_relu"]),
        helper.make_node("Conv", ["head_relu", "first_w", "first_b"], ["first"], kernel_shape=[3, 3], **same),
        helper.make_node("Relu", ["first"], ["first_relu"]),
        helper.make_node("Conv", ["first_relu", "second_w"], ["second"], kernel_shape=[3, 3], **same),
        helper.make_node("Add", ["head_relu", "second"], ["sum"]),
        helper.make_node("ReduceMean", ["sum", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["sum", "mean"], ["centred"]),
        helper.make_node(
            "ConvTranspose", ["centred", "up_w", "up_b"], ["up"], kernel_shape=[4, 4], strides=[2, 2], **same
        ),
        helper.make_node("Relu", ["up"], ["up_relu"]),
        helper.make_node("Conv", ["up_relu", "tail_w", "tail_b"], ["tail"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Add", ["image", "tail"], ["brighter"]),
        helper.make_node("Clip", ["brighter", "low", "high"], ["enhanced"]),
    ]
    return model_of(nodes, weights)


def picture(side_px: int = 24, *, seed: int = 0) -> NDArray[np.float32]:
    """Noise on a slope, (side, side) in 0..1."""
    noise = np.random.default_rng(seed).random((side_px, side_px))
    return (0.5 * noise + 0.5 * np.linspace(0, 1, side_px)).astype(np.float32)


def run(model: onnx.ModelProto, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output, computed node by node."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"image": image[None, None]})[0]
    return found


def kinds(model: onnx.ModelProto) -> list[str]:
    """The operators in order."""
    return [node.op_type for node in model.graph.node]


def node_of(model: onnx.ModelProto, output: str) -> NodeProto:
    """The node that makes a value."""
    return next(node for node in model.graph.node if output in node.output)

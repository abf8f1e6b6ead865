"""Exact rewritings of a graph: the same function in operators that a run time computes faster, or rightly.

Batch norms are folded and the pixel-unshuffle of an enhancer's head is taken into its convolution before the export
(`Network.fused`).
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from export import graph

# Of output row 2 m + d, tap t of the 3x3 kernel (input row m - 1 + t) is tap k of the 4x4 kernel: k = d + 3 - 2 t.
_TAPS = {0: ((0, 3), (1, 1)), 1: ((1, 2), (2, 0))}


def subpixel(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every transposed convolution of kernel 4, stride 2 and padding 1 as Conv3x3 and DepthToSpace; the same function.

    A stride-2 transposed convolution computes each of its four phases from 2x2 inputs; as one 3x3 convolution to four
    times the channels it is what INT8 and bf16 kernels are made for (Shi et al. 2016, "Is the deconvolution layer the
    same as a convolutional layer?"). Others stay as they are. Names of values outside stay.
    """
    known = graph.constants(model)
    nodes: list[NodeProto] = []
    replaced: dict[str, TensorProto] = {}
    for node in model.graph.node:
        if not _is_doubling(node) or node.input[1] not in known or (len(node.input) > 2 and node.input[2] not in known):
            nodes.append(node)
            continue
        weight, bias, phases = (f"{node.output[0]}/{part}" for part in ("weight", "bias", "phases"))
        inputs = [node.input[0], weight]
        replaced[weight] = graph.tensor(subpixel_weight(graph.array(known[node.input[1]])), weight)
        if len(node.input) > 2:
            inputs.append(bias)
            replaced[bias] = graph.tensor(np.repeat(graph.array(known[node.input[2]]), 4), bias)
        nodes += [
            helper.make_node("Conv", inputs, [phases], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]),
            helper.make_node("DepthToSpace", [phases], [node.output[0]], blocksize=2, mode="CRD"),
        ]
    return graph.rebuilt(model, nodes, replaced.values())


def for_openvino(model: onnx.ModelProto) -> onnx.ModelProto:
    """A Relu behind a Concat as a Clip from 0 on: the same function, which OpenVINO computes rightly in INT8.

    OpenVINO 2026.4 moves the quantisation that follows Concat and Relu to before the Concat, and there rounds to whole
    numbers instead of to the scale: a decoder with skips comes out 20 dB worse than the file says. It moves nothing
    over a Clip.
    """
    made, bound = graph.producers(model), "nothing"
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        before = made.get(node.input[0]) if node.op_type == "Relu" else None
        if before is not None and before.op_type == "Concat":
            nodes.append(helper.make_node("Clip", [node.input[0], bound], list(node.output)))
        else:
            nodes.append(node)
    return graph.rebuilt(model, nodes, [graph.tensor(np.zeros((), np.float32), bound)])


def subpixel_weight(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(in, out, 4, 4) of a transposed convolution to (4 out, in, 3, 3), channel 4 c + 2 dy + dx for phase (dy, dx)."""
    inputs, outputs = weight.shape[:2]
    kernel = np.zeros((outputs, 2, 2, inputs, 3, 3), weight.dtype)
    turned = weight.transpose(1, 0, 2, 3)
    for dy, rows in _TAPS.items():
        for dx, columns in _TAPS.items():
            for ty, ky in rows:
                for tx, kx in columns:
                    kernel[:, dy, dx, :, ty, tx] = turned[:, :, ky, kx]
    return kernel.reshape(4 * outputs, inputs, 3, 3)


def _is_doubling(node: NodeProto) -> bool:
    wanted = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    others = {"group": 1, "dilations": [1, 1], "output_padding": [0, 0], "auto_pad": b"NOTSET"}
    has = graph.attributes(node)
    return (
        node.op_type == "ConvTranspose"
        and all(has.get(name) == value for name, value in wanted.items())
        and all(has.get(name, value) == value for name, value in others.items())
        and "output_shape" not in has
    )

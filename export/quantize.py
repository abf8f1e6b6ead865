"""A graph in INT8: symmetric Q/DQ pairs where TensorRT fuses them, float elsewhere.

Activations have one scale per tensor, weights one per output channel, zero points are 0, biases stay float (NVIDIA
TensorRT documentation, "Explicit Quantization"; Wu et al. 2020, arXiv:2004.09602, sections 3 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from export import graph
from export.errors import GraphError

LEVELS = 127  # -128 is not used: symmetric
# GPUs fill INT8 tensor cores with 32 channels; a narrower layer is no faster in INT8 than in FP16.
NARROW_CHANNELS = 32
_SMALLEST_SCALE, _LARGEST_SCALE = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)


class Scheme(NamedTuple):
    """Which convolutions stay in float, by the value they make, whether residual sums do, and all of it in words."""

    name: str
    floats: frozenset[str]
    float_sums: bool = False


def schemes(model: onnx.ModelProto) -> list[Scheme]:
    """What is tried, from the most INT8 to the least; never one that has none.

    The first convolutions see the camera's counts and the last ones make the picture: both are narrow, and an error
    there is seen as it is. A residual sum in INT8 rounds what has passed all blocks again after each of them.

    Raises
    ------
    GraphError
        No convolution has constant weights.
    """
    known = graph.constants(model)
    able = [node for node in graph.convolutions(model) if node.input[1] in known]
    if not able:
        raise GraphError("the graph has no convolution that could run in INT8; leave --precision int8 out")
    head, tail = graph.reached(model), graph.reached(model, backwards=True)
    last = {node.output[0] for node in able if node.output[0] in tail}
    first = {node.output[0] for node in able if node.input[0] in head}
    narrow = {node.output[0] for node in able if min(graph.weight_channels(node, known)) < NARROW_CHANNELS}
    steps = {
        "all convolutions in INT8": frozenset[str](),
        "the last convolutions in float": frozenset(last),
        "the first and last convolutions in float": frozenset(last | first),
        f"the first, the last and those of less than {NARROW_CHANNELS} channels in float": frozenset(
            last | first | narrow
        ),
    }
    names = {node.output[0] for node in able}
    distinct: dict[frozenset[str], str] = {}
    for name, floats in steps.items():
        if names - floats:
            distinct.setdefault(floats, name)
    tried = [Scheme(name, floats) for floats, name in distinct.items()]
    least = tried[-1]
    if _residuals(model, least.floats):
        tried.append(Scheme(f"{least.name}, and residual sums", least.floats, float_sums=True))
    return tried


def measured_values(model: onnx.ModelProto) -> list[str]:
    """The values whose range decides a scale: what convolutions read, and what is added to what they make."""
    read = [node.input[0] for node in graph.convolutions(model)]
    return list(dict.fromkeys([*read, *_residuals(model, frozenset()).values()]))


def quantized(
    model: onnx.ModelProto, scheme: Scheme, ranges: Mapping[str, float], *, paired_weights: bool
) -> onnx.ModelProto:
    """The graph with Q/DQ pairs round its convolutions.

    Parameters
    ----------
    model
        FP32, batch norms folded.
    scheme
        What stays float.
    ranges
        The largest absolute value of each of `measured_values` that is still told apart.
    paired_weights
        True: weights in float behind a Q and a DQ, as TensorRT reads them. False: weights in INT8 behind a DQ, a
        quarter of the size. Both hold the same numbers.

    Raises
    ------
    GraphError
        A value was not measured, or a weight is not finite.
    """
    known, outputs = graph.constants(model), graph.output_names(model)
    residuals = {} if scheme.float_sums else _residuals(model, scheme.floats)
    nodes: list[NodeProto] = []
    replaced = [graph.tensor(np.zeros((), np.int8), "zero")]

    def pair(value: str, reader: str) -> str:
        if value not in ranges:
            raise GraphError(f"no range was measured for {value}, which {reader} reads")
        scale, stem = f"{value}/scale", f"{value}/for/{reader}"
        replaced.append(graph.tensor(_scale(np.float32(ranges[value])), scale))
        nodes.append(helper.make_node("QuantizeLinear", [value, scale, "zero"], [f"{stem}/int8"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{stem}/int8", scale, "zero"], [stem]))
        return stem

    for node in model.graph.node:
        new = NodeProto()
        new.CopyFrom(node)
        made = node.output[0]
        if made in residuals:
            place = list(node.input).index(residuals[made])
            new.input[place] = pair(residuals[made], made)
        elif node.op_type in graph.CONVOLUTIONS and made not in scheme.floats and node.input[1] in known:
            new.input[0] = pair(node.input[0], made)
            steps, stored = _weights(node, graph.array(known[node.input[1]]), paired=paired_weights)
            nodes += steps
            replaced += stored
            new.input[1] = steps[-1].output[0]
        nodes.append(new)
    if outputs.intersection(entry.name for entry in replaced):
        raise GraphError("an output of the graph has the name of a scale; rename it in Network.outputs")
    return graph.checked(graph.rebuilt(model, nodes, replaced))


def _weights(
    node: NodeProto, weight: NDArray[np.float32], *, paired: bool
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes and constants that give a convolution's weights their INT8 values."""
    axis = 1 if node.op_type == "ConvTranspose" else 0
    others = tuple(place for place in range(weight.ndim) if place != axis)
    if not np.isfinite(weight).all():
        raise GraphError(f"{node.input[1]} has weights that are not finite; train the network again")
    scale = _scale(np.abs(weight).max(others))
    spread = np.expand_dims(scale, others)
    levels = np.clip(np.rint(weight / spread), -LEVELS, LEVELS)
    stem = f"{node.output[0]}/weights"
    names = [f"{stem}/int8", f"{stem}/scale", f"{stem}/zero"]
    stored = [graph.tensor(scale, names[1]), graph.tensor(np.zeros(scale.shape, np.int8), names[2])]
    nodes = [helper.make_node("DequantizeLinear", names, [stem], axis=axis)]
    if paired:
        # Multiples of the scale: FP16's rounding of them cannot move one to another level.
        stored.append(graph.tensor((levels * spread).astype(np.float32), f"{stem}/float"))
        nodes.insert(0, helper.make_node("QuantizeLinear", [f"{stem}/float", *names[1:]], names[:1], axis=axis))
    else:
        stored.append(graph.tensor(levels.astype(np.int8), names[0]))
    return nodes, stored


def _scale(largest: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """The step between levels, rounded up to a number that FP16 has too: one set of scales for both files."""
    exact = np.maximum(np.asarray(largest, np.float32) / np.float32(LEVELS), np.float32(_SMALLEST_SCALE))
    if not (exact <= _LARGEST_SCALE).all():
        raise GraphError(f"a value of {np.max(largest):.3g} is beyond the range of INT8 with FP16 scales")
    near = exact.astype(np.float16)
    up = np.where(near.astype(np.float32) < exact, np.nextafter(near, np.float16(np.inf)), near)
    return np.asarray(up, np.float32)


def _residuals(model: onnx.ModelProto, floats: frozenset[str]) -> dict[str, str]:
    """For each sum of an INT8 convolution's own output and something else, that something else.

    TensorRT takes the sum into the convolution when the other branch comes in INT8; a pair on the convolution's own
    branch would part the two.
    """
    known, made, feeds = graph.constants(model), graph.producers(model), graph.consumers(model)
    tail = graph.reached(model, backwards=True)

    def fusable(name: str) -> bool:
        node = made.get(name)
        return (
            node is not None
            and node.op_type == "Conv"
            and node.input[1] in known
            and name not in floats
            and len(feeds[name]) == 1
        )

    found = {}
    for node in model.graph.node:
        if node.op_type != "Add" or node.output[0] in tail or len(set(node.input) - known.keys()) < 2:
            continue
        own = [name for name in node.input if fusable(name)]
        # Of two convolutions that could, the one of the sum's second input takes it in.
        if own:
            (other,) = [name for name in node.input if name != own[-1]]
            found[node.output[0]] = other
    return found

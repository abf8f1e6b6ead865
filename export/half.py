"""A graph in FP16: half precision inside, FP32 at the edges and where sums are long. Precision lives in the file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from export import graph
from export.errors import GraphError

# Sums over a whole picture overflow or lose their last digits; squares, roots and exponentials leave FP16's range.
FP32_ONLY = frozenset(
    {
        "ReduceMean", "ReduceSum", "ReduceL2", "GlobalAveragePool", "Pow", "Sqrt", "Reciprocal", "Exp", "Log",
        "Softmax", "LayerNormalization", "InstanceNormalization", "Constant", "ConstantOfShape", "Cast", "Range",
    }
)  # fmt: skip
_QUANTISING = ("QuantizeLinear", "DequantizeLinear")
# What these inputs hold is not data: the ONNX types them float whatever the data are.
_ALWAYS_FLOAT = {"Resize": (1, 2)}
_LARGEST = float(np.finfo(np.float16).max)
# FP16 scales of Q and DQ are part of ONNX since opset 19.
_OPSET_OF_HALF_SCALES = 19


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with FP16 weights and values between its first and its last convolutions.

    Inputs and outputs stay float32, and so does whatever has no convolution between itself and an input or an output
    (padding, the global skip, what evens out the light, the clamp): a step of FP16 just below 1 is half of a 1024th,
    and there nothing averages it out. `FP32_ONLY` stays as well. Q and DQ are of the type of what they feed.

    Raises
    ------
    GraphError
        There is no convolution, or a weight is beyond FP16's range.
    """
    known, types = graph.constants(model), graph.element_types(model)
    halved = _halved(model, types)
    if not any(node.op_type in graph.CONVOLUTIONS for node in halved):
        raise GraphError("the graph has no convolution that could run in FP16; leave --precision fp16 out")
    ids = {id(node) for node in halved}
    in_half = {output for node in halved for output in node.output if types.get(output) == TensorProto.FLOAT}
    outputs = graph.output_names(model)
    replaced: dict[str, TensorProto] = {}
    cast_to: set[str] = set()
    nodes: list[NodeProto] = []

    def cast(name: str, to: int) -> str:
        other = f"{name}/{'half' if to == TensorProto.FLOAT16 else 'float'}"
        if other not in cast_to:
            nodes.append(helper.make_node("Cast", [name], [other], to=to))
            cast_to.add(other)
        return other

    for node in model.graph.node:
        new = NodeProto()
        new.CopyFrom(node)
        to_half = id(node) in ids
        for place, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT or place in _ALWAYS_FLOAT.get(node.op_type, ()):
                continue
            if to_half and name in known:
                new.input[place] = f"{name}/half"
                replaced[new.input[place]] = _halved_weight(known[name], new.input[place])
            elif to_half and name not in in_half:
                new.input[place] = cast(name, TensorProto.FLOAT16)
            elif not to_half and name in in_half:
                new.input[place] = cast(_inner(name, outputs), TensorProto.FLOAT)
            elif name in in_half:
                new.input[place] = _inner(name, outputs)
        for place, name in enumerate(node.output):
            if name in in_half:
                new.output[place] = _inner(name, outputs)
        nodes.append(new)
        nodes += [
            helper.make_node("Cast", [_inner(name, outputs)], [name], to=TensorProto.FLOAT)
            for name in node.output
            if name in in_half and name in outputs
        ]
    quantised = any(node.op_type in _QUANTISING for node in model.graph.node)
    version = max(graph.opset(model), _OPSET_OF_HALF_SCALES) if quantised else graph.opset(model)
    return graph.checked(graph.rebuilt(model, nodes, replaced.values(), opset_version=version))


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """An FP16 graph in float32, every FP16 value rounded by a pair of casts: what a GPU that sums in FP32 computes.

    ONNX Runtime's CPU kernels have no FP16: it widens whole chains of operators and leaves the roundings between them
    out, so that a file looks better there than it is.
    """
    types = graph.element_types(model)
    replaced: list[TensorProto] = []
    for entry in model.graph.initializer:
        if entry.data_type == TensorProto.FLOAT16:
            replaced.append(graph.tensor(graph.array(entry).astype(np.float32), entry.name))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        new = NodeProto()
        new.CopyFrom(node)
        if node.op_type == "Cast":
            if graph.attributes(node)["to"] == TensorProto.FLOAT16:
                nodes += _rounded(node.input[0], node.output[0])
                continue
            if types.get(node.input[0]) == TensorProto.FLOAT16:
                new.attribute[0].i = TensorProto.FLOAT
        halves = [name for name in node.output if types.get(name) == TensorProto.FLOAT16]
        for place, name in enumerate(node.output):
            if name in halves:
                new.output[place] = f"{name}/exact"
        nodes.append(new)
        for name in halves:
            nodes += _rounded(f"{name}/exact", name)
    return graph.rebuilt(model, nodes, replaced)


def _rounded(exact: str, name: str) -> Iterator[NodeProto]:
    yield helper.make_node("Cast", [exact], [f"{name}/rounded"], to=TensorProto.FLOAT16)
    yield helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT)


def _halved(model: onnx.ModelProto, types: dict[str, int]) -> list[NodeProto]:
    """The nodes that compute in FP16."""
    head, tail = graph.reached(model), graph.reached(model, backwards=True)
    feeds = graph.consumers(model)

    def inside(node: NodeProto) -> bool:
        makes_floats = node.op_type == "QuantizeLinear" or types.get(node.output[0]) == TensorProto.FLOAT
        return makes_floats and node.op_type not in FP32_ONLY and not (head | tail).intersection(node.output)

    return [
        node
        for node in model.graph.node
        if node.op_type in graph.CONVOLUTIONS
        or (node.op_type in _QUANTISING and _feeds_convolution(node, feeds))
        or inside(node)
    ]


def _feeds_convolution(node: NodeProto, feeds: dict[str, list[NodeProto]]) -> bool:
    """Whether a Q or DQ stands before a convolution, or before a sum inside: a cast between them would part the two."""
    after = [reader for name in node.output for reader in feeds.get(name, [])]
    if node.op_type == "QuantizeLinear":
        return any(_feeds_convolution(reader, feeds) for reader in after)
    return any(reader.op_type in graph.CONVOLUTIONS for reader in after)


def _inner(name: str, outputs: set[str]) -> str:
    """The FP16 value of a name; of an output, whose own name is kept for float32, another."""
    return f"{name}/half" if name in outputs else name


def _halved_weight(tensor: TensorProto, name: str) -> TensorProto:
    values = graph.array(tensor)
    largest = float(np.abs(values).max(initial=0))
    if not largest <= _LARGEST:
        raise GraphError(
            f"{tensor.name} has a value of {largest:.3g}, but FP16 ends at {_LARGEST:g}; leave --precision fp16 out,"
            " or train with weight decay"
        )
    return graph.tensor(values.astype(np.float16), name)

"""What TensorRT 10.3 to 11.4 would refuse, or run slower than it looks, in an INT8 graph: findings in words.

TensorRT takes explicit quantisation as symmetric INT8 only: zero points 0, float biases, weights per output channel,
activations per tensor (NVIDIA TensorRT documentation, "Working with Quantized Types", "Explicit Quantization"). It
fuses DQ -> operator -> Q; a pair anywhere else costs time and accuracy and gains nothing. Q and DQ are QuantizeLinear
and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from export import graph

OPSETS = (13, 20)  # from the first with per-channel Q and DQ to the last that TensorRT 10.3 reads

# Ranges measured while running, or integers in the graph itself: none has an explicit scale that TensorRT could read.
_OTHER_QUANTISATION = frozenset(
    {
        "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QLinearAdd",
        "DynamicQuantizeLSTM", "QAttention",
    }
)  # fmt: skip

# What the exporter makes of our networks, the rewritings make of that, and TensorRT 10.3's ONNX parser takes
# (onnx-tensorrt, release/10.3-GA, docs/operators.md). Not in it: control flow, and sizes that depend on values. The If
# of the staged form (export/staged.py), which TensorRT takes too, is put round nodes that were audited without it.
SUPPORTED = frozenset(
    {
        "Abs", "Add", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
        "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Equal", "Exp", "Expand", "Flatten", "Floor",
        "Gather", "Gemm", "GlobalAveragePool", "Greater", "HardSigmoid", "Identity", "InstanceNormalization",
        "LeakyRelu", "Less", "Log", "MatMul", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg", "Not", "PRelu", "Pad",
        "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split",
        "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip


def unreadable(model: onnx.ModelProto) -> list[str]:
    """Why a graph of any precision cannot be exported: its operators, opset, inputs and outputs; empty if it can."""
    return [*_operators(model), *_opset(model), *_edges(model)]


def audit(model: onnx.ModelProto) -> list[str]:
    """All findings on an INT8 graph, in the order of the graph; empty if TensorRT takes it as it is meant."""
    known, made, feeds = graph.constants(model), graph.producers(model), graph.consumers(model)
    types = {entry.name: entry.data_type for entry in model.graph.initializer}
    findings = unreadable(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            findings += _scales(node, known)
            findings += _pairs(node, known, feeds, graph.output_names(model))
        elif node.op_type == "DequantizeLinear":
            findings += _scales(node, known)
            findings += _bias(node, types)
            findings += _fused(node, made, feeds)
        elif node.op_type in graph.CONVOLUTIONS:
            findings += _convolution(node, known, made)
        elif node.op_type == "Add":
            findings += _sum(node, made, feeds)
    if not any(_weights_of(node, made) for node in graph.convolutions(model)):
        findings.append("no convolution is quantised: this is no INT8 file")
    return findings


def _operators(model: onnx.ModelProto) -> Iterator[str]:
    for domain in sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"}):
        yield f"operators of domain {domain} are not part of ONNX: TensorRT has no plugin for them"
    for kind in sorted({node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")} - SUPPORTED):
        if kind in _OTHER_QUANTISATION:
            yield f"{kind} quantises without explicit scales; TensorRT takes QuantizeLinear and DequantizeLinear only"
        else:
            yield f"{kind} is not among the operators that can be exported"


def _opset(model: onnx.ModelProto) -> Iterator[str]:
    version, (first, last) = graph.opset(model), OPSETS
    if not first <= version <= last:
        yield f"the graph is of opset {version}, expected {first} to {last}, which TensorRT 10.3 reads"


def _edges(model: onnx.ModelProto) -> Iterator[str]:
    known = graph.constants(model)
    inputs = [put for put in model.graph.input if put.name not in known]
    if len(inputs) != 1:
        yield f"the graph has {len(inputs)} inputs, expected one picture"
    for put in [*inputs, *model.graph.output]:
        tensor = put.type.tensor_type
        if tensor.elem_type != TensorProto.FLOAT:
            yield f"{put.name} is {TensorProto.DataType.Name(tensor.elem_type)}, expected FLOAT at the edges"
        sides = [side.dim_param or side.dim_value for side in tensor.shape.dim]
        channels = (1,) if put in inputs else (1, 3)
        if len(sides) != 4 or sides[0] != 1 or sides[1] not in channels:
            wanted = " or ".join(map(str, channels))
            yield f"{put.name} has the shape {sides}, expected [1, {wanted}, height, width]"


def _scales(node: NodeProto, known: dict[str, TensorProto]) -> Iterator[str]:
    what = f"{node.op_type} of {node.input[0]}"
    if node.input[1] not in known:
        yield f"{what} computes its scale: TensorRT needs a constant"
        return
    scale = graph.array(known[node.input[1]]).astype(np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{what} has a scale that is not positive"
    if len(node.input) < 3 or node.input[2] not in known:
        yield f"{what} has no zero point: ONNX then means UINT8, TensorRT takes INT8"
        return
    zero = known[node.input[2]]
    if zero.data_type not in (TensorProto.INT8, TensorProto.INT32):
        yield f"{what} is {TensorProto.DataType.Name(zero.data_type)}, TensorRT takes INT8"
    if graph.array(zero).any():
        yield f"{what} has the zero point {graph.array(zero).ravel()[0]}, TensorRT takes 0 only"


def _bias(node: NodeProto, types: dict[str, int]) -> Iterator[str]:
    if types.get(node.input[0]) == TensorProto.INT32 or (len(node.input) > 2 and types.get(node.input[2]) == 6):
        yield f"{node.input[0]} is a bias in INT32 behind a DequantizeLinear: TensorRT wants biases in float"


def _pairs(
    node: NodeProto, known: dict[str, TensorProto], feeds: dict[str, list[NodeProto]], outputs: set[str]
) -> Iterator[str]:
    after = feeds.get(node.output[0], [])
    if len(after) != 1 or after[0].op_type != "DequantizeLinear" or outputs.intersection(node.output):
        yield f"QuantizeLinear of {node.input[0]} is not followed by one DequantizeLinear and nothing else"
        return
    for q, dq, name in zip(node.input[1:], after[0].input[1:], ("scale", "zero point"), strict=False):
        if q != dq and not (
            q in known and dq in known and np.array_equal(graph.array(known[q]), graph.array(known[dq]))
        ):
            yield f"the pair of {node.input[0]} has two {name}s"


def _fused(node: NodeProto, made: dict[str, NodeProto], feeds: dict[str, list[NodeProto]]) -> Iterator[str]:
    after = feeds.get(node.output[0], [])
    source = _source(node, made)
    if len(after) != 1:
        yield f"the DequantizeLinear of {source} has {len(after)} readers: each needs its own pair"
    for reader in after:
        if reader.op_type not in (*graph.CONVOLUTIONS, "Add"):
            yield f"the pair of {source} stands before {reader.op_type}, which TensorRT does not run in INT8"


def _convolution(node: NodeProto, known: dict[str, TensorProto], made: dict[str, NodeProto]) -> Iterator[str]:
    data = made.get(node.input[0])
    weights = _weights_of(node, made)
    quantised_data = data is not None and data.op_type == "DequantizeLinear"
    if weights is None:
        if quantised_data:
            yield f"{node.op_type} {node.output[0]} has INT8 data and float weights: it runs in float"
        return
    if not quantised_data:
        yield f"{node.op_type} {node.output[0]} has INT8 weights and float data: it runs in float"
    elif data is not None and data.input[1] in known and graph.array(known[data.input[1]]).size != 1:
        yield f"{node.op_type} {node.output[0]} has data of several scales: TensorRT takes one per tensor"
    axis = 1 if node.op_type == "ConvTranspose" else 0
    first = made.get(weights.input[0])
    for step in filter(None, (first, weights)):
        scale = known.get(step.input[1])
        stored = known.get(step.input[0] if first is None else first.input[0])
        if scale is None or stored is None:
            yield f"the weights of {node.op_type} {node.output[0]} are not constants"
            return
        found = graph.attributes(step).get("axis", 1)
        if list(scale.dims) != [stored.dims[axis]] or found != axis:
            yield (
                f"{step.op_type} of the weights of {node.op_type} {node.output[0]} has {max(scale.dims, default=1)}"
                f" scales along axis {found}, expected {stored.dims[axis]} along axis {axis}"
            )
        if first is None and scale.data_type == TensorProto.FLOAT16:
            what = f"{node.op_type} {node.output[0]}"
            yield f"the weights of {what} are stored in INT8: TensorRT wants a Q and a DQ on floats"


def _sum(node: NodeProto, made: dict[str, NodeProto], feeds: dict[str, list[NodeProto]]) -> Iterator[str]:
    before = [made.get(name) for name in node.input]
    pairs = [maker for maker in before if maker is not None and maker.op_type == "DequantizeLinear"]
    if len(pairs) == 2:
        yield f"Add {node.output[0]} has pairs on both branches: the convolution could not take the sum in"
    elif pairs:
        (other,) = [maker for maker in before if maker is not pairs[0]]
        alone = other is not None and len(feeds.get(other.output[0], [])) == 1
        if other is None or not alone or _weights_of(other, made) is None:
            yield f"Add {node.output[0]} has a pair, but its other branch is no INT8 convolution to fuse it with"


def _weights_of(node: NodeProto, made: dict[str, NodeProto]) -> NodeProto | None:
    """The DequantizeLinear of a convolution's weights."""
    if node.op_type not in graph.CONVOLUTIONS:
        return None
    maker = made.get(node.input[1])
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _source(node: NodeProto, made: dict[str, NodeProto]) -> str:
    before = made.get(node.input[0])
    return str(before.input[0] if before is not None else node.input[0])

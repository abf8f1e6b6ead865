"""Questions about an ONNX graph that every rewriting asks, and the new graph it makes. Pure: no graph is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.errors import GraphError

CONVOLUTIONS = ("Conv", "ConvTranspose")
# Small constants are shapes, axes and scales, which shape inference reads; large ones are weights, which it need not.
_SMALL_BYTES = 1024


def read_model(path: Any) -> onnx.ModelProto:
    """The graph in a file; GraphError where the file is none."""
    try:
        return onnx.load(str(path))
    except Exception as exc:  # protobuf's errors share no public base class
        raise GraphError(f"{path} is no ONNX file ({exc}); make the bundle again from its checkpoint") from exc


def constants(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """The initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def array(tensor: TensorProto) -> NDArray[Any]:
    """The values of an initializer."""
    values: NDArray[Any] = numpy_helper.to_array(tensor)
    return values


def tensor(values: NDArray[Any], name: str) -> TensorProto:
    """An initializer of these values."""
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def producers(model: onnx.ModelProto) -> dict[str, NodeProto]:
    """The node that makes each value."""
    return {output: node for node in model.graph.node for output in node.output}


def consumers(model: onnx.ModelProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each value, once for each time they do."""
    found: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in filter(None, node.input):
            found[name].append(node)
    return found


def output_names(model: onnx.ModelProto) -> set[str]:
    """The names of the graph's outputs."""
    return {put.name for put in model.graph.output}


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def opset(model: onnx.ModelProto) -> int:
    """The release of ONNX's own operators that the graph is written in; 0 where it says none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def rebuilt(
    model: onnx.ModelProto,
    nodes: Iterable[NodeProto],
    replaced: Iterable[TensorProto] = (),
    *,
    opset_version: int | None = None,
) -> onnx.ModelProto:
    """A model of the same inputs and outputs with other nodes.

    Initializers are those of `model` and `replaced`, as far as a node reads them; of one name, the replaced one.
    """
    new = onnx.ModelProto()
    new.ir_version, new.producer_name = model.ir_version, model.producer_name
    if opset_version is None:
        new.opset_import.extend(model.opset_import)
    else:
        new.opset_import.append(helper.make_opsetid("", opset_version))
    new.graph.name = model.graph.name
    new.graph.node.extend(nodes)
    new.graph.input.extend(model.graph.input)
    new.graph.output.extend(model.graph.output)
    read = {name for node in new.graph.node for name in node.input}
    changed = {entry.name: entry for entry in replaced}
    new.graph.initializer.extend(entry for name, entry in changed.items() if name in read)
    new.graph.initializer.extend(
        entry for entry in model.graph.initializer if entry.name in read and entry.name not in changed
    )
    return new


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with large initializers as inputs: protobuf serialises 2 GB at most, and checks serialise."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for entry in model.graph.initializer:
        if len(entry.raw_data) > _SMALL_BYTES:
            light.graph.input.append(helper.make_tensor_value_info(entry.name, entry.data_type, entry.dims))
        else:
            light.graph.initializer.append(entry)
    return light


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The `TensorProto` data type of each value that has one.

    Raises
    ------
    GraphError
        The types of the graph contradict each other.
    """
    light = without_weights(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as exc:
        raise GraphError(f"the graph's types and shapes do not fit each other ({exc})") from exc
    puts = [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]
    types: dict[str, int] = {put.name: put.type.tensor_type.elem_type for put in puts}
    return types | {entry.name: entry.data_type for entry in model.graph.initializer}


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model after ONNX's own checks; GraphError where it does not pass them."""
    try:
        onnx.checker.check_model(without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise GraphError(f"the graph is not valid ONNX ({exc})") from exc
    return model


def reached(model: onnx.ModelProto, *, backwards: bool = False) -> set[str]:
    """The values between the graph's inputs and the first convolutions; `backwards`, the last ones and the outputs.

    A convolution's own output does not belong to them, backwards it does.
    """
    found = output_names(model) if backwards else {put.name for put in model.graph.input}
    for node in reversed(model.graph.node) if backwards else model.graph.node:
        if node.op_type in CONVOLUTIONS:
            continue
        here, there = (node.output, node.input) if backwards else (node.input, node.output)
        if found.intersection(here):
            found.update(filter(None, there))
    return found


def convolutions(model: onnx.ModelProto) -> list[NodeProto]:
    """The convolutions in the order they are computed."""
    return [node for node in model.graph.node if node.op_type in CONVOLUTIONS]


def weight_channels(node: NodeProto, known: Mapping[str, TensorProto]) -> tuple[int, int]:
    """(input, output) channels of a convolution whose weights are an initializer; (0, 0) of another."""
    weight = known.get(node.input[1])
    if weight is None:
        return 0, 0
    groups = int(attributes(node).get("group", 1))
    first, second = weight.dims[:2]
    return (first, second * groups) if node.op_type == "ConvTranspose" else (second * groups, first)

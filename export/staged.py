"""The neural lens in staged form: a magnifier whose type is not in the picture does not run.

The form is one graph with an ONNX `If` round each magnifier. What a magnifier makes reaches the outputs through its
mask only, as a factor, so the outputs are those of the merged form, to the bit: where the mask is 0 everywhere, it does
not matter what is multiplied by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx
from onnx import NodeProto, TensorProto, helper

from export import graph
from export.errors import GraphError

_WEIGHT = re.compile(r"magnify\.(\d+)\.(down|up)\.(\d+)\.conv\.weight")
# How the names of the nodes that decide begin; what stands before a value's own name in a branch ends so.
_CONDITION, _OF = "is it there: ", "::"
_STRANGE = "this is no neural lens as it is exported: make the bundle again from its checkpoint"


class Magnifier(NamedTuple):
    """The names of a magnifier's first and last value: the light of its type, and the scores of its picture."""

    light: str
    scores: str


def magnifiers(model: onnx.ModelProto) -> list[Magnifier]:
    """The magnifiers of a neural lens in FP32, found by the names of their weights; rewritings keep those of values.

    Raises
    ------
    GraphError
        There are none: this is no neural lens.
    """
    layers: dict[int, list[tuple[tuple[str, int], NodeProto]]] = {}
    for node in graph.convolutions(model):
        if found := _WEIGHT.fullmatch(node.input[1]):
            layers.setdefault(int(found[1]), []).append(((found[2], int(found[3])), node))
    if not layers:
        raise GraphError("only a neural lens has a staged form, and this graph has no magnifiers; leave --form out")
    found_all = []
    for _, nodes in sorted(layers.items()):
        ordered = [node for _, node in sorted(nodes, key=lambda layer: layer[0])]  # "down" stands before "up"
        found_all.append(Magnifier(ordered[0].input[0], ordered[-1].output[0]))
    return found_all


def staged(model: onnx.ModelProto, parts: Sequence[Magnifier]) -> onnx.ModelProto:
    """The same function of any precision, with an `If` round each of its magnifiers.

    Raises
    ------
    GraphError
        A magnifier reads something else than its light, or something else than its scores is read of it.
    """
    nodes = list(model.graph.node)
    for part in parts:
        inside = _inside(model, part)
        gone = {id(node) for node in inside}
        last = nodes.index(inside[-1])
        nodes[last : last + 1] = [*_condition(model, part), _if(model, part, inside)]
        nodes = [node for node in nodes if id(node) not in gone]
    return graph.checked(graph.rebuilt(model, nodes))


def merged(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `staged` was given."""
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    for node in model.graph.node:
        if node.op_type == "If":
            then = graph.attributes(node)["then_branch"]
            nodes += [_renamed(inner, _outer) for inner in then.node]
            for constant in then.initializer:
                constants.append(TensorProto())
                constants[-1].CopyFrom(constant)
                constants[-1].name = _outer(constant.name)
        elif not node.name.startswith(_CONDITION):
            nodes.append(node)
    return graph.checked(graph.rebuilt(model, nodes, constants))


def _inside(model: onnx.ModelProto, part: Magnifier) -> list[NodeProto]:
    """The nodes from a magnifier's light to its scores, in the order of the graph."""
    made, known, feeds = graph.producers(model), graph.constants(model), graph.consumers(model)
    names, ahead = set[str](), [part.scores]
    while ahead:
        name = ahead.pop()
        if name in names or name == part.light or name in known or not name:
            continue
        if name not in made:
            raise GraphError(f"a magnifier reads {name} beside its light; {_STRANGE}")
        names.add(name)
        ahead.extend(made[name].input)
    inside = [node for node in model.graph.node if names.intersection(node.output)]
    ids = {id(node) for node in inside}
    leaks = [name for name in names - {part.scores} for reader in feeds[name] if id(reader) not in ids]
    if leaks:
        raise GraphError(f"{', '.join(sorted(leaks))} inside a magnifier is read elsewhere too; {_STRANGE}")
    return inside


def _condition(model: onnx.ModelProto, part: Magnifier) -> list[NodeProto]:
    """Whether the mask, by which the light was multiplied, is above 0 anywhere."""
    product = graph.producers(model)[part.light]
    untouched = graph.reached(model)  # by any convolution: the picture's light is, the mask is not
    masks = [name for name in product.input if name not in untouched]
    if product.op_type != "Mul" or len(masks) != 1:
        raise GraphError(f"{part.light} is no light times a mask; {_STRANGE}")
    most, any_ = f"{part.light}/most", f"{part.light}/any"
    return [
        helper.make_node("ReduceMax", masks, [most], name=f"{_CONDITION}{most}", keepdims=0),
        helper.make_node("Cast", [most], [any_], name=f"{_CONDITION}{any_}", to=TensorProto.BOOL),
    ]


def _if(model: onnx.ModelProto, part: Magnifier, inside: Sequence[NodeProto]) -> NodeProto:
    known = graph.constants(model)
    kind = graph.element_types(model)[part.scores]
    # Constants lie in the branch, even if others read them too: OpenVINO takes what comes from outside for data.
    own = {name for node in inside for name in node.input} & known.keys()
    inner = {name: f"{part.scores}{_OF}{name}" for name in {*own, part.scores}}
    constants = []
    for name in sorted(own):
        constants.append(TensorProto())
        constants[-1].CopyFrom(known[name])
        constants[-1].name = inner[name]
    then = helper.make_graph(
        [_renamed(node, lambda name: inner.get(name, name)) for node in inside],
        "magnified",
        [],
        [helper.make_tensor_value_info(inner[part.scores], kind, None)],
        constants,
    )
    # The light of an absent type is 0, and of the size of the scores: no size has to be computed.
    black = f"{part.scores}/absent"
    otherwise = helper.make_graph(
        [helper.make_node("Cast", [part.light], [black], to=kind)],
        "absent",
        [],
        [helper.make_tensor_value_info(black, kind, None)],
    )
    return helper.make_node("If", [f"{part.light}/any"], [part.scores], then_branch=then, else_branch=otherwise)


def _renamed(node: NodeProto, name_of: Callable[[str], str]) -> NodeProto:
    new = NodeProto()
    new.CopyFrom(node)
    new.input[:] = map(name_of, node.input)
    new.output[:] = map(name_of, node.output)
    return new


def _outer(name: str) -> str:
    """The name outside of what is renamed in a branch."""
    return name.partition(_OF)[2] or name

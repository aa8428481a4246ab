"""Nodes of an exported graph: what they are, where they come from, and how their
constants are changed."""

import ast
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir


def name_after_layers(model: ir.Model) -> None:
    """Name each node, its output and its weights after the layer that it comes from,
    uniquely; drop all metadata.

    A convolution or linear layer has the layer's own name, as `layer1.0.conv1`; any
    other operator is added to it, as `layer1.0.act1.relu`. The exporter's metadata,
    which are dropped, would carry paths of the exporting machine.
    """
    taken: Counter[str] = Counter()
    for node in model.graph:
        weighted = node.op_type in ("Conv", "Gemm")
        name = layer_of(node) if weighted else f"{layer_of(node)}.{node.op_type.lower()}"
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}.{taken[name]}"
        node.name = name
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = name
        for value, kind in zip(node.inputs[1:], ("weight", "bias"), strict=False):
            if weighted and value is not None and len(value.uses()) == 1:
                value.name = f"{name}.{kind}"
        node.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None):
        value.metadata_props.clear()


def layer_of(node: ir.Node) -> str:
    """The module of the network that a node comes from, as the exporter wrote it
    down."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return scopes[-2] if len(scopes) > 1 and scopes[-2] else node.name or node.op_type


def input_of(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def producer_of(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def channels_of(value: ir.Value) -> int:
    """How many channels an image has; 0 if that is not known."""
    channels = None if value.shape is None else value.shape[1]
    return channels if isinstance(channels, int) else 0


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """What a value always is; None if that depends on the graph's input, or there is no
    value."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def unshared_conv(value: ir.Value) -> ir.Node | None:
    """The convolution that a value comes from, if the value has one reader, so that the
    weights may change."""
    node = value.producer()
    return node if node is not None and node.op_type == "Conv" and len(value.uses()) == 1 else None


def set_constant(node: ir.Node, index: int, array: NDArray[Any]) -> None:
    """Give a node a constant input of its own."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{layer_of(node)}.absorbed.{len(graph.initializers)}"
    tensor = ir.tensor(np.array(array, dtype=np.float32, order="C"), name=name)
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def weight_of(node: ir.Node) -> NDArray[np.float64]:
    """That of a convolution or linear layer; in float64, so that what is computed with
    it is rounded once."""
    weight = constant_of(node.inputs[1])
    assert weight is not None
    return weight.astype(np.float64)


def insert(before: ir.Node, operator: str, x: ir.Value, attributes: dict[str, Any] | None = None) -> ir.Node:
    """A new node that reads x, with the shape and the layer of the node that it will
    stand for."""
    node = ir.node(operator, [x], attributes, metadata_props=dict(before.metadata_props))
    node.outputs[0].shape, node.outputs[0].type = before.outputs[0].shape, before.outputs[0].type
    assert isinstance(before.graph, ir.Graph)
    before.graph.insert_before(before, node)
    return node

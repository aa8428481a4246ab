"""Orders of channels (`Gather`) and NormProp's constants (`Sub`, `Div`), moved along
until weights take them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from suite.export.nodes import (
    channels_of,
    constant_of,
    input_of,
    insert,
    layer_of,
    set_constant,
    unshared_conv,
    weight_of,
)


@dataclass(frozen=True)
class DeferredTransform:
    """How a stored value stands for the true one: `true[:, c] = (stored[:, order[c]] -
    shift) / scale`."""

    scale: float = 1.0
    shift: float = 0.0
    order: NDArray[np.int64] | None = None

    @property
    def nothing(self) -> bool:
        return self.scale == 1 and self.shift == 0 and self.order is None


def absorb(graph: ir.Graph) -> dict[str, int]:
    """Move every `Gather` of channels and every `Sub` and `Div` by a constant into
    weights and biases.

    A positive factor commutes with rectifiers, pools and sums, and ends in the next
    weights. Where a sum has a convolution on one side, that convolution takes the other
    side's factor: the identity path keeps its values, and its factor grows from block
    to block until a shortcut has weights again.

    A subtraction does not commute with a rectifier, nor with the zero padding of a
    convolution. There are three ways:

    - `relu(x) - m` is `max(x - m, -m)`. If x comes from a convolution, its bias takes
      the shift, and the rectifier becomes a `Clip`, which ONNX Runtime fuses into a
      convolution as it does `Relu`, though not into a sum.
    - Where x is a sum and no reader pads (bottlenecks), the biases of the readers and
      of the next sum take it.
    - Else (basic blocks) it is a depthwise 1x1 convolution with that bias, which stays
      blocked.
    """
    counts = dict.fromkeys(("order of channels into weights", *CONSTANTS), 0)
    carried: dict[ir.Value, DeferredTransform] = {}
    for node in graph:
        x, y = input_of(node), node.outputs[0]
        carry = carried.get(x, DeferredTransform())
        constant = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        movable = constant is not None and len(x.uses()) == 1 and not y.is_graph_output()
        if node.op_type in ("Gather", "Div", "Sub") and movable:
            assert constant is not None
            stored = x
            if node.op_type == "Gather":
                way = "order of channels into weights"
                carry = replace(carry, order=constant if carry.order is None else carry.order[constant])
            elif node.op_type == "Div" and (conv := unshared_conv(x)) is not None:
                way = "division into weights"
                _scale_output(conv, 1 / float(constant))
            elif node.op_type == "Div":
                way = "division into weights"
                carry = replace(carry, scale=carry.scale * float(constant))
            elif (clip := _as_clip(node, carry.scale * float(constant))) is not None:
                way, stored = "subtraction into bias and clip", clip
            elif not any(map(_pads, _readers(y))):
                way = "subtraction into biases"
                carry = replace(carry, shift=carry.shift + carry.scale * float(constant))
            else:
                way, stored = "subtraction as depthwise convolution", _depthwise(node, carry.scale * float(constant))
            counts[way] += 1
            carried[stored] = carry
            ir.convenience.replace_all_uses_with(y, stored)
            graph.remove(node, safe=True)
        elif node.op_type == "Add":
            carried[y] = _add(node, carried)
        elif carry.nothing:
            continue
        elif node.op_type in ("Conv", "Gemm"):
            _into_weights(node, carry)
        elif node.op_type in ("MaxPool", "GlobalAveragePool", "Reshape") or (
            node.op_type == "Relu" and not carry.shift
        ):
            carried[y] = carry
        else:
            raise RuntimeError(
                f"{layer_of(node)}: no rule moves a constant or an order of channels past {node.op_type}"
            )
    for output in graph.outputs:
        if not carried.get(output, DeferredTransform()).nothing:
            raise RuntimeError(f"{output.name}: no weights are left that could take a constant or an order of channels")
    return counts


CONSTANTS = (
    "division into weights",
    "subtraction into bias and clip",
    "subtraction into biases",
    "subtraction as depthwise convolution",
)


def _readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, past the division and the pool that may follow
    it."""
    first = [use.node for use in value.uses()]
    return [r for node in first for r in (_readers(node.outputs[0]) if node.op_type in ("Div", "MaxPool") else [node])]


def _pads(node: ir.Node) -> bool:
    return node.op_type == "Conv" and any(node.attributes.get_ints("pads", []))


def _add_to_bias(node: ir.Node, shift: NDArray[np.float64] | float) -> None:
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    set_constant(node, 2, shift + (np.zeros(len(weight_of(node))) if bias is None else bias.astype(np.float64)))


def _scale_output(conv: ir.Node, scale: float) -> None:
    for index, value in enumerate(conv.inputs):
        constant = constant_of(value)
        if index > 0 and constant is not None:
            set_constant(conv, index, scale * constant.astype(np.float64))


def _into_weights(node: ir.Node, carry: DeferredTransform) -> None:
    """Let a convolution or linear layer read the stored value as it is."""
    weight = weight_of(node) / carry.scale
    if carry.shift:
        if _pads(node):
            raise RuntimeError(f"{layer_of(node)}: a shift cannot pass a convolution that pads")
        _add_to_bias(node, -carry.shift * weight.sum(axis=tuple(range(1, weight.ndim))))
    if carry.order is not None:
        if len(carry.order) != weight.shape[1]:
            raise RuntimeError(f"{layer_of(node)}: an order of channels cannot go into a grouped convolution")
        weight = weight[:, np.argsort(carry.order)]
    set_constant(node, 1, weight)


def _add(add: ir.Node, carried: dict[ir.Value, DeferredTransform]) -> DeferredTransform:
    """Bring both sides of a sum to one scale, and leave it no shift; returns what its
    result carries."""
    for value, other in (add.inputs, reversed(add.inputs)):
        assert value is not None  # for the type checker, as the next one
        assert other is not None
        mine, carry = carried.get(value, DeferredTransform()), carried.get(other, DeferredTransform())
        if mine.nothing and carry.order is None:
            if carry.nothing:
                return carry
            conv = unshared_conv(value)
            if conv is not None:
                _scale_output(conv, carry.scale)
                _add_to_bias(conv, -carry.shift)
                return replace(carry, shift=0.0)
    raise RuntimeError(f"{layer_of(add)}: a sum without a convolution that could take what its other side carries")


def _as_clip(sub: ir.Node, shift: float) -> ir.Value | None:
    """`relu(conv) - shift` as `clip(conv - shift, -shift)`, or None if it is not of
    that form."""
    relu = input_of(sub).producer()
    conv = unshared_conv(input_of(relu)) if relu is not None and relu.op_type == "Relu" else None
    if relu is None or conv is None:
        return None
    _add_to_bias(conv, -shift)
    clip = insert(sub, "Clip", conv.outputs[0])
    set_constant(clip, 1, np.array(-shift))
    sub.replace_input_with(0, clip.outputs[0])
    relu.graph.remove(relu, safe=True)  # type: ignore[union-attr] # a node that was found in a graph has one
    return clip.outputs[0]


def _depthwise(sub: ir.Node, shift: float) -> ir.Value:
    """`x - shift` as a depthwise 1x1 convolution."""
    channels = channels_of(input_of(sub))
    conv = insert(sub, "Conv", input_of(sub), {"kernel_shape": [1, 1], "group": channels})
    set_constant(conv, 1, np.ones((channels, 1, 1, 1)))
    set_constant(conv, 2, np.full(channels, -shift))
    return conv.outputs[0]

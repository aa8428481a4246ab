"""Rewrites of an exported graph that let ONNX Runtime's CPU provider run it faster; none changes what it computes.

ONNX Runtime keeps images in blocks of channels (its NCHWc layout) as long as every operator has a kernel for that
layout, and fuses an addition and a rectifier into the convolution before them. The exporter's graph of these networks
breaks both: `Neg` (in CReLU), `Slice` and `Pad` (type-A shortcuts), `Sub` and `Div` (NormProp's constants) and
`ReduceMean` (the pool) have no such kernel, and what cannot stay blocked is reordered before and after. The rules
below leave only convolutions, rectifiers, additions and pools, so that from the first convolution to the pool the
optimised graph has no reorder, and no addition of its own.
"""

import ast
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxscript import ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule

# Channels of a block on the widest vector unit that ONNX Runtime knows (AVX-512); narrower blocks divide it.
BLOCK = 16

# Values of one image, channels x height x width, from which CReLU is faster as two convolutions (see `_halves`). Below
# are all of ResNet-110 at 32x32 (16,384 at most) and the 7x7 of ImageNet networks (25,088); above, all before (50,176).
LARGE = 40_000

# The largest difference of logits that rounding explains, relative to the largest logit.
TOLERANCE = 1e-5


def apply_rewrites(model: ir.Model) -> dict[str, int]:
    """Apply every rewrite to `model`, in place.

    Returns:
        How often each rewrite was applied.

    Raises:
        RuntimeError: a constant or an order of channels reaches an operator that no rule knows.
    """
    counts = {name: pattern.RewriteRuleSet([rule]).apply_to_model(model) for name, rule in RULES.items()}
    counts |= _absorb(model.graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return counts


def name_after_layers(model: ir.Model) -> None:
    """Name each node, its output and its weights after the layer that it comes from, uniquely; drop all metadata.

    A convolution or linear layer has the layer's own name, as `layer1.0.conv1`; any other operator is added to it, as
    `layer1.0.act1.relu`. The exporter's metadata, which are dropped, would carry paths of the exporting machine.
    """
    taken: Counter[str] = Counter()
    for node in model.graph:
        weighted = node.op_type in ("Conv", "Gemm")
        name = _layer(node) if weighted else f"{_layer(node)}.{node.op_type.lower()}"
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


def _layer(node: ir.Node) -> str:
    """The module of the network that a node comes from, as the exporter wrote it down."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return scopes[-2] if len(scopes) > 1 and scopes[-2] else node.name or node.op_type


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _channels(value: ir.Value) -> int:
    """How many channels an image has; 0 if that is not known."""
    channels = None if value.shape is None else value.shape[1]
    return channels if isinstance(channels, int) else 0


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _equals(value: ir.Value | None, expected: list[int]) -> bool:
    constant = _constant(value)
    return constant is not None and constant.tolist() == expected


# Type-A shortcuts: Pad(Slice(Slice(x))) is a strided 1x1 convolution with an identity matrix above zero filters.
# Sums of one product and zeros, hence exact; and a BatchNorm behind it (NormProp) folds into it like any other.


def _subsample_and_pad(op: Any, x: ir.Value) -> Any:
    rows = op.Slice(x, _allow_other_inputs=True, _outputs=["rows"])
    columns = op.Slice(rows, _allow_other_inputs=True, _outputs=["columns"])
    return op.Pad(columns, _allow_other_inputs=True, _outputs=["padded"])


def _is_shortcut(context: Any, x: ir.Value, rows: ir.Value, columns: ir.Value, padded: ir.Value) -> bool:
    for axis, value in ((2, rows), (3, columns)):
        _, starts, ends, axes, steps = _producer(value).inputs
        end = _constant(ends)
        whole = end is not None and end[0] >= 2**31 - 1
        if not (_equals(starts, [0]) and whole and _equals(axes, [axis]) and _constant(steps) is not None):
            return False
    pads = _constant(_producer(padded).inputs[1])
    only_channels = pads is not None and not np.delete(pads, 5).any()
    return only_channels and len(_producer(padded).inputs) == 2 and _channels(x) > 0


def _identity_convolution(op: Any, x: ir.Value, rows: ir.Value, columns: ir.Value, padded: ir.Value) -> Any:
    steps, pads = (_constant(_producer(value).inputs[i]) for value, i in ((rows, 4), (padded, 1)))
    column_steps = _constant(_producer(columns).inputs[4])
    assert steps is not None and column_steps is not None and pads is not None  # noqa: PT018 - for the type checker
    identity = np.eye(_channels(x) + int(pads[5]), _channels(x), dtype=np.float32)[:, :, None, None]
    weight = op.initializer(ir.tensor(identity), name=f"{_layer(_producer(padded))}.weight")
    return op.Conv(x, weight, kernel_shape=[1, 1], strides=[int(steps[0]), int(column_steps[0])])


# The pool, which the exporter writes as a mean over the two spatial axes.


def _mean(op: Any, x: ir.Value, axes: ir.Value) -> Any:
    return op.ReduceMean(x, axes, keepdims=1)


def _is_pool(context: Any, x: ir.Value, axes: ir.Value) -> bool:
    return _equals(axes, [-1, -2]) or _equals(axes, [2, 3])


def _pool(op: Any, x: ir.Value, axes: ir.Value) -> Any:
    return op.GlobalAveragePool(x)


# CReLU has two forms. Sums of kernel times, relative to the exported graph, in interleaved profiles (two cores with
# AVX-512, batch 1; "shared" while other work slowed the machine to less than half its speed):
#
#                                  ResNet-34, 224x224   ResNet-50, 224x224   ResNet-110, 32x32
#                                     idle   shared        idle   shared          shared
#   one signed convolution            0.97    0.89         0.96    0.92            0.69
#   two halves                        0.97    0.85         0.96    0.85            0.72
#
# On an idle machine the convolutions alone are 0.95 of the exported ResNet-34, so little is left to gain.
#
# Others were slower, by wall clock in one run of ResNet-110, where the signed convolution took 0.76 of the exported
# graph: a depthwise convolution of -1 and `Concat` 0.89, `Concat` of x with itself and a depthwise convolution of +-1
# 0.82, `Concat` of relu(x) and x with the weights of `_halves` 0.83, a dense signed convolution at any width 0.79.
#
# 1. `_signed_convolution`, for small images: one convolution with filters +1 and -1, and a rectifier that fuses into
# it. Sums of one product and zeros, hence exact. Where the channels fill blocks, it has one group a block,
# (x0..x15) -> (x0..x15, -x0..-x15), which needs 16 multiplications an output, not one for every channel; its outputs
# then stand in another order than CReLU's, which `_absorb` hands on to the weights that read them.
#
# 2. `_halves`, for large ones: relu(-x) = relu(x) - x, so that a convolution with weights [P, N] of CReLU is
# (P + N) * relu(x) - N * x: two convolutions, of which the second adds to the result of the first. Nothing is copied;
# but it is one node more, and rounds differently.
#
# A signed convolution can also write zeros that the next one pads with. ONNX Runtime's kernel computes six or three
# outputs of a row at a time and the rest, like those beside padding, one by one. At a width of 7, 16 or 28 (1 modulo 3)
# one column of zeros on the right leaves fewer of them: the 3x3 convolutions at 7x7 took 0.97 in ResNet-34, the whole
# of ResNet-110 0.99. At 28x28 the gain (0.98) does not pay for the signed form where `_halves` is faster.


def _crelu(op: Any, x: ir.Value) -> Any:
    return op.Concat(op.Relu(x), op.Relu(op.Neg(x)), axis=1, _outputs=["both"])


def _has_width(context: Any, x: ir.Value, both: ir.Value) -> bool:
    return _channels(x) > 0


def _signed_convolution(op: Any, x: ir.Value, both: ir.Value, zero_columns: int = 0) -> Any:
    channels = _channels(x)
    width = BLOCK if channels % BLOCK == 0 else channels
    groups = channels // width
    signs = np.vstack([np.eye(width), -np.eye(width)]).astype(np.float32)[:, :, None, None]
    layer = _layer(_producer(both))
    weight = op.initializer(ir.tensor(np.tile(signs, (groups, 1, 1, 1))), name=f"{layer}.weight")
    signed = op.Conv(x, weight, kernel_shape=[1, 1], group=groups, pads=[0, 0, 0, zero_columns])
    rectified = op.Relu(signed)
    for value in (signed, rectified):
        _producer(value).metadata_props.update(_producer(both).metadata_props)
    if groups == 1:
        return rectified
    order = np.arange(2 * channels).reshape(groups, 2, width).swapaxes(0, 1).ravel()
    return op.Gather(rectified, op.initializer(ir.tensor(order), name=f"{layer}.order"), axis=1)


def _conv_of_crelu(op: Any, x: ir.Value, w: ir.Value) -> Any:
    return op.Conv(_crelu(op, x), w, _allow_other_inputs=True, _outputs=["y"])


def _leaves_single_columns(context: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> bool:
    conv = _producer(y)
    strides, pads = (list(conv.attributes.get_ints(name, [])) for name in ("strides", "pads"))
    width = None if x.shape is None else x.shape[3]
    same = strides in ([], [1, 1]) and pads == [1, 1, 1, 1]
    return same and isinstance(width, int) and width % 3 == 1 and len(both.uses()) == 1 and _channels(x) > 0


def _beside_zeros(op: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> Any:
    conv = _producer(y)
    rectified = _signed_convolution(op, x, both, zero_columns=1)
    result = op.Conv(rectified, *conv.inputs[1:], **dict(conv.attributes) | {"pads": [1, 1, 1, 0]})
    _producer(result).metadata_props.update(conv.metadata_props)
    return result


def _is_large(context: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> bool:
    sizes = [] if x.shape is None else [size for size in x.shape[1:] if isinstance(size, int)]
    return len(sizes) == 3 and math.prod(sizes) >= LARGE and len(both.uses()) == 1 and _constant(w) is not None


def _halves(op: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> Any:
    conv = _producer(y)
    positive, negative = np.split(_weight(conv), 2, axis=1)
    layer = _layer(conv)
    first, second = (
        op.initializer(ir.tensor(weight.astype(np.float32)), name=f"{layer}.{kind}")
        for weight, kind in ((positive + negative, "rectified"), (-negative, "linear"))
    )
    rectified = op.Relu(x)
    _producer(rectified).metadata_props.update(_producer(both).metadata_props)
    sides = [op.Conv(rectified, first, *conv.inputs[2:], **conv.attributes), op.Conv(x, second, **conv.attributes)]
    total = op.Add(*sides)
    for value in (*sides, total):
        _producer(value).metadata_props.update(conv.metadata_props)
    return total


# With the identity path that makes a sum of three, (a + b) + c. ONNX Runtime fuses one addition a convolution, hence
# a + (b + c).


def _sum_of_three(op: Any, first: ir.Value, second: ir.Value, identity: ir.Value) -> Any:
    return op.Add(op.Add(first, second), identity)


def _two_are_convolutions(context: Any, first: ir.Value, second: ir.Value, identity: ir.Value) -> bool:
    return _own_conv(first) is not None and _own_conv(second) is not None


def _reassociated(op: Any, first: ir.Value, second: ir.Value, identity: ir.Value) -> Any:
    return op.Add(second, op.Add(first, identity))


RULES = {
    "type-A shortcut as convolution": pattern.RewriteRule(_subsample_and_pad, _identity_convolution, _is_shortcut),
    "BatchNorm into shortcut": fuse_batchnorm_into_conv_rule,
    "mean as pool": pattern.RewriteRule(_mean, _pool, _is_pool),
    "convolution of CReLU in halves": pattern.RewriteRule(_conv_of_crelu, _halves, _is_large),
    "sum of three": pattern.RewriteRule(_sum_of_three, _reassociated, _two_are_convolutions),
    "CReLU beside a column of zeros": pattern.RewriteRule(_conv_of_crelu, _beside_zeros, _leaves_single_columns),
    "CReLU as convolution": pattern.RewriteRule(_crelu, _signed_convolution, _has_width),
}


# What is left are orders of channels (Gather) and NormProp's constants (Sub, Div). They move along the graph until
# they meet weights that take them.


@dataclass(frozen=True)
class Carried:
    """How a stored value stands for the true one: `true[:, c] = (stored[:, order[c]] - shift) / scale`."""

    scale: float = 1.0
    shift: float = 0.0
    order: NDArray[np.int64] | None = None

    @property
    def nothing(self) -> bool:
        return self.scale == 1 and self.shift == 0 and self.order is None


def _absorb(graph: ir.Graph) -> dict[str, int]:
    """Move every `Gather` of channels and every `Sub` and `Div` by a constant into weights and biases.

    A positive factor commutes with rectifiers, pools and sums, and ends in the next weights. Where a sum has a
    convolution on one side, that convolution takes the other side's factor: the identity path keeps its values, and
    its factor grows from block to block until a shortcut has weights again.

    A subtraction does not commute with a rectifier, nor with the zero padding of a convolution. There are three ways:
    - `relu(x) - m` is `max(x - m, -m)`. If x comes from a convolution, its bias takes the shift, and the rectifier
      becomes a `Clip`, which ONNX Runtime fuses into a convolution as it does `Relu`, though not into a sum.
    - Where x is a sum and no reader pads (bottlenecks), the biases of the readers and of the next sum take it.
    - Else (basic blocks) it is a depthwise 1x1 convolution with that bias, which stays blocked.
    """
    counts = dict.fromkeys(("order of channels into weights", *CONSTANTS), 0)
    carried: dict[ir.Value, Carried] = {}
    for node in graph:
        x, y = _input(node), node.outputs[0]
        carry = carried.get(x, Carried())
        constant = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
        movable = constant is not None and len(x.uses()) == 1 and not y.is_graph_output()
        if node.op_type in ("Gather", "Div", "Sub") and movable:
            assert constant is not None
            stored = x
            if node.op_type == "Gather":
                way = "order of channels into weights"
                carry = replace(carry, order=constant if carry.order is None else carry.order[constant])
            elif node.op_type == "Div" and (conv := _own_conv(x)) is not None:
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
            raise RuntimeError(f"{_layer(node)}: no rule moves a constant or an order of channels past {node.op_type}")
    for output in graph.outputs:
        if not carried.get(output, Carried()).nothing:
            raise RuntimeError(f"{output.name}: no weights are left that could take a constant or an order of channels")
    return counts


CONSTANTS = (
    "division into weights",
    "subtraction into bias and clip",
    "subtraction into biases",
    "subtraction as depthwise convolution",
)


def _own_conv(value: ir.Value) -> ir.Node | None:
    """The convolution that a value comes from, if the value has one reader, so that the weights may change."""
    node = value.producer()
    return node if node is not None and node.op_type == "Conv" and len(value.uses()) == 1 else None


def _readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, past the division and the pool that may follow it."""
    first = [use.node for use in value.uses()]
    return [r for node in first for r in (_readers(node.outputs[0]) if node.op_type in ("Div", "MaxPool") else [node])]


def _pads(node: ir.Node) -> bool:
    return node.op_type == "Conv" and any(node.attributes.get_ints("pads", []))


def _set_constant(node: ir.Node, index: int, array: NDArray[Any]) -> None:
    """Give a node a constant input of its own."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{_layer(node)}.absorbed.{len(graph.initializers)}"
    tensor = ir.tensor(np.ascontiguousarray(array, dtype=np.float32), name=name)
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _weight(node: ir.Node) -> NDArray[np.float64]:
    weight = _constant(node.inputs[1])
    assert weight is not None
    return weight.astype(np.float64)


def _add_to_bias(node: ir.Node, shift: NDArray[np.float64] | float) -> None:
    bias = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    _set_constant(node, 2, shift + (np.zeros(len(_weight(node))) if bias is None else bias.astype(np.float64)))


def _scale_output(conv: ir.Node, scale: float) -> None:
    for index, value in enumerate(conv.inputs):
        constant = _constant(value)
        if index > 0 and constant is not None:
            _set_constant(conv, index, scale * constant.astype(np.float64))


def _into_weights(node: ir.Node, carry: Carried) -> None:
    """Let a convolution or linear layer read the stored value as it is."""
    weight = _weight(node) / carry.scale
    if carry.shift:
        if _pads(node):
            raise RuntimeError(f"{_layer(node)}: a shift cannot pass a convolution that pads")
        _add_to_bias(node, -carry.shift * weight.sum(axis=tuple(range(1, weight.ndim))))
    if carry.order is not None:
        if len(carry.order) != weight.shape[1]:
            raise RuntimeError(f"{_layer(node)}: an order of channels cannot go into a grouped convolution")
        weight = weight[:, np.argsort(carry.order)]
    _set_constant(node, 1, weight)


def _add(add: ir.Node, carried: dict[ir.Value, Carried]) -> Carried:
    """Bring both sides of a sum to one scale, and leave it no shift; returns what its result carries."""
    for value, other in (add.inputs, reversed(add.inputs)):
        assert value is not None and other is not None  # noqa: PT018 - for the type checker
        mine, carry = carried.get(value, Carried()), carried.get(other, Carried())
        if mine.nothing and carry.order is None:
            if carry.nothing:
                return carry
            conv = _own_conv(value)
            if conv is not None:
                _scale_output(conv, carry.scale)
                _add_to_bias(conv, -carry.shift)
                return replace(carry, shift=0.0)
    raise RuntimeError(f"{_layer(add)}: a sum without a convolution that could take what its other side carries")


def _as_clip(sub: ir.Node, shift: float) -> ir.Value | None:
    """`relu(conv) - shift` as `clip(conv - shift, -shift)`, or None if it is not of that form."""
    relu = _input(sub).producer()
    conv = _own_conv(_input(relu)) if relu is not None and relu.op_type == "Relu" else None
    if relu is None or conv is None:
        return None
    _add_to_bias(conv, -shift)
    clip = _insert(sub, "Clip", conv.outputs[0])
    _set_constant(clip, 1, np.array(-shift))
    sub.replace_input_with(0, clip.outputs[0])
    relu.graph.remove(relu, safe=True)  # type: ignore[union-attr]
    return clip.outputs[0]


def _depthwise(sub: ir.Node, shift: float) -> ir.Value:
    """`x - shift` as a depthwise 1x1 convolution."""
    channels = _channels(_input(sub))
    conv = _insert(sub, "Conv", _input(sub), {"kernel_shape": [1, 1], "group": channels})
    _set_constant(conv, 1, np.ones((channels, 1, 1, 1)))
    _set_constant(conv, 2, np.full(channels, -shift))
    return conv.outputs[0]


def _insert(before: ir.Node, operator: str, x: ir.Value, attributes: dict[str, Any] | None = None) -> ir.Node:
    """A new node that reads x, with the shape and the layer of the node that it will stand for."""
    node = ir.node(operator, [x], attributes, metadata_props=dict(before.metadata_props))
    node.outputs[0].shape, node.outputs[0].type = before.outputs[0].shape, before.outputs[0].type
    assert isinstance(before.graph, ir.Graph)
    before.graph.insert_before(before, node)
    return node


def difference(first: bytes, second: bytes, shape: tuple[int, ...]) -> float:
    """How far the logits of two ONNX models lie apart on random images, relative to the largest logit."""
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected, actual = (
        ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(["logits"], {"input": images})[0]
        for model in (first, second)
    )
    return float(np.abs(actual - expected).max() / np.abs(expected).max())

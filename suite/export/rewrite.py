"""Rewrites of an exported graph that let ONNX Runtime's CPU provider run it faster;
none changes what it computes.

ONNX Runtime keeps images in blocks of channels (its NCHWc layout) as long as every
operator has a kernel for that layout, and fuses an addition and a rectifier into the
convolution before them. The exporter's graph of these networks breaks both: `Neg` (in
CReLU), `Slice` and `Pad` (type-A shortcuts), `Sub` and `Div` (NormProp's constants) and
`ReduceMean` (the pool) have no such kernel, and what cannot stay blocked is reordered
before and after. The rules below leave only convolutions, rectifiers, additions and
pools, so that from the first convolution to the pool the optimised graph has no
reorder, and no addition of its own.
"""

import math
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import pattern

from suite.export.absorb import absorb
from suite.export.blocks import BLOCK, fill_channel_blocks
from suite.export.nodes import channels_of, constant_of, layer_of, producer_of, unshared_conv, weight_of
from suite.session import load_onnxruntime

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
        RuntimeError: a constant or an order of channels reaches an operator that no
            rule knows.
    """
    counts = {name: pattern.RewriteRuleSet([rule]).apply_to_model(model) for name, rule in RULES.items()}
    counts |= absorb(model.graph)
    counts["image filled up to a block"] = fill_channel_blocks(model.graph)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return counts


def _equals(value: ir.Value | None, expected: list[int]) -> bool:
    constant = constant_of(value)
    return constant is not None and constant.tolist() == expected


# Type-A shortcuts: Pad(Slice(Slice(x))) is a strided 1x1 convolution with an identity matrix above zero filters.
# Sums of one product and zeros, hence exact.


def _subsample_and_pad(op: Any, x: ir.Value) -> Any:
    rows = op.Slice(x, _allow_other_inputs=True, _outputs=["rows"])
    columns = op.Slice(rows, _allow_other_inputs=True, _outputs=["columns"])
    return op.Pad(columns, _allow_other_inputs=True, _outputs=["padded"])


def _is_shortcut(context: Any, x: ir.Value, rows: ir.Value, columns: ir.Value, padded: ir.Value) -> bool:
    for axis, value in ((2, rows), (3, columns)):
        _, starts, ends, axes, steps = producer_of(value).inputs
        end = constant_of(ends)
        whole = end is not None and end[0] >= 2**31 - 1
        if not (_equals(starts, [0]) and whole and _equals(axes, [axis]) and constant_of(steps) is not None):
            return False
    pads = constant_of(producer_of(padded).inputs[1])
    only_channels = pads is not None and not np.delete(pads, 5).any()
    return only_channels and len(producer_of(padded).inputs) == 2 and channels_of(x) > 0


def _identity_convolution(op: Any, x: ir.Value, rows: ir.Value, columns: ir.Value, padded: ir.Value) -> Any:
    steps, pads = (constant_of(producer_of(value).inputs[i]) for value, i in ((rows, 4), (padded, 1)))
    column_steps = constant_of(producer_of(columns).inputs[4])
    assert steps is not None  # for the type checker, as the next two
    assert column_steps is not None
    assert pads is not None
    identity = np.eye(channels_of(x) + int(pads[5]), channels_of(x), dtype=np.float32)[:, :, None, None]
    weight = op.initializer(ir.tensor(identity), name=f"{layer_of(producer_of(padded))}.weight")
    return op.Conv(x, weight, kernel_shape=[1, 1], strides=[int(steps[0]), int(column_steps[0])])


# The pool, which the exporter writes as a mean over the two spatial axes.


def _mean(op: Any, x: ir.Value, axes: ir.Value) -> Any:
    return op.ReduceMean(x, axes, keepdims=1)


def _is_pool(context: Any, x: ir.Value, axes: ir.Value) -> bool:
    return _equals(axes, [-1, -2]) or _equals(axes, [2, 3])


def _pool(op: Any, x: ir.Value, axes: ir.Value) -> Any:
    return op.GlobalAveragePool(x)


# CReLU has two forms, of which the first can also write zeros for the padding behind it. Wall clock of chains of
# residual blocks, relative to the exported form, in turns and with no other thread awake (two threads of two cores with
# AVX-512, one image; in two runs):
#
#                                one signed        beside a column        two halves
#                                convolution          of zeros
#   basic, 16 x 32x32             0.73, 0.73               -              0.91, 0.90
#   basic, 32 x 16x16             0.87, 0.79          0.82, 0.77          0.87, 0.81
#   basic, 64 x 8x8               0.89, 0.87               -              0.88, 0.84
#   basic, 64 x 56x56             0.97, 0.98               -              0.95, 0.94
#   basic, 128 x 28x28            0.99, 0.97          0.97, 0.96          0.98, 0.95
#   basic, 256 x 14x14            0.98, 0.99               -              0.97, 0.99
#   basic, 512 x 7x7              1.00, 0.99          0.95, 0.97          0.97, 0.99
#   bottleneck, 64 x 56x56        0.96, 0.93               -              0.95, 0.92
#   bottleneck, 128 x 28x28       0.98, 0.98          0.98, 0.97          0.97, 0.98
#   bottleneck, 256 x 14x14       0.94, 0.98               -              0.93, 0.97
#   bottleneck, 512 x 7x7         1.00, 0.98          0.98, 0.95          0.99, 0.98
#
# Little is left to gain. In the networks for 224x224, convolutions are 0.98 of the time and run at 0.92 to 1.00 of the
# speed of a large matrix product; the rectifiers between the halves are 0.01.
#
# Others were slower, by wall clock in one run of ResNet-110, where the signed convolution took 0.76 of the exported
# graph: a depthwise convolution of -1 and `Concat` 0.89, `Concat` of x with itself and a depthwise convolution of +-1
# 0.82, `Concat` of relu(x) and x with the weights of `_halves` 0.83, a dense signed convolution at any width 0.79.
#
# 1. `_signed_convolution`, for small images: one convolution with filters +1 and -1, and a rectifier that fuses into
# it. Sums of one product and zeros, hence exact. Where the channels fill blocks, it has one group a block,
# (x0..x15) -> (x0..x15, -x0..-x15), which needs 16 multiplications an output, not one for every channel; its outputs
# then stand in another order than CReLU's, which `absorb` hands on to the weights that read them.
#
# 2. `_halves`, for large ones: relu(-x) = relu(x) - x, so that a convolution with weights [P, N] of CReLU is
# (P + N) * relu(x) - N * x: two convolutions, of which the second adds to the result of the first. Nothing is copied;
# but it is one node more, and rounds differently.
#
# The zeros: ONNX Runtime's kernel computes six or three outputs of a row at a time and the rest, like those beside
# padding, one by one. At a width of 7, 16 or 28 (1 modulo 3) a column of zeros on the right leaves fewer of them.


def _crelu(op: Any, x: ir.Value) -> Any:
    return op.Concat(op.Relu(x), op.Relu(op.Neg(x)), axis=1, _outputs=["both"])


def _has_width(context: Any, x: ir.Value, both: ir.Value) -> bool:
    return channels_of(x) > 0


def _signed_convolution(op: Any, x: ir.Value, both: ir.Value, zero_columns: int = 0) -> Any:
    channels = channels_of(x)
    width = BLOCK if channels % BLOCK == 0 else channels
    groups = channels // width
    signs = np.vstack([np.eye(width), -np.eye(width)]).astype(np.float32)[:, :, None, None]
    layer = layer_of(producer_of(both))
    weight = op.initializer(ir.tensor(np.tile(signs, (groups, 1, 1, 1))), name=f"{layer}.weight")
    signed = op.Conv(x, weight, kernel_shape=[1, 1], group=groups, pads=[0, 0, 0, zero_columns])
    rectified = op.Relu(signed)
    for value in (signed, rectified):
        producer_of(value).metadata_props.update(producer_of(both).metadata_props)
    if groups == 1:
        return rectified
    order = np.arange(2 * channels).reshape(groups, 2, width).swapaxes(0, 1).ravel()
    return op.Gather(rectified, op.initializer(ir.tensor(order), name=f"{layer}.order"), axis=1)


def _conv_of_crelu(op: Any, x: ir.Value, w: ir.Value) -> Any:
    return op.Conv(_crelu(op, x), w, _allow_other_inputs=True, _outputs=["y"])


def _leaves_single_columns(context: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> bool:
    conv = producer_of(y)
    strides, pads = (list(conv.attributes.get_ints(name, [])) for name in ("strides", "pads"))
    width = None if x.shape is None else x.shape[3]
    same = strides in ([], [1, 1]) and pads == [1, 1, 1, 1]
    return same and isinstance(width, int) and width % 3 == 1 and len(both.uses()) == 1 and channels_of(x) > 0


def _with_zero_column(op: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> Any:
    conv = producer_of(y)
    rectified = _signed_convolution(op, x, both, zero_columns=1)
    result = op.Conv(rectified, *conv.inputs[1:], **dict(conv.attributes) | {"pads": [1, 1, 1, 0]})
    producer_of(result).metadata_props.update(conv.metadata_props)
    return result


def _is_large(context: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> bool:
    sizes = [] if x.shape is None else [size for size in x.shape[1:] if isinstance(size, int)]
    return len(sizes) == 3 and math.prod(sizes) >= LARGE and len(both.uses()) == 1 and constant_of(w) is not None


def _halves(op: Any, x: ir.Value, w: ir.Value, y: ir.Value, both: ir.Value) -> Any:
    conv = producer_of(y)
    positive, negative = np.split(weight_of(conv), 2, axis=1)
    layer = layer_of(conv)
    first, second = (
        op.initializer(ir.tensor(weight.astype(np.float32)), name=f"{layer}.{kind}")
        for weight, kind in ((positive + negative, "rectified"), (-negative, "linear"))
    )
    rectified = op.Relu(x)
    producer_of(rectified).metadata_props.update(producer_of(both).metadata_props)
    sides = [op.Conv(rectified, first, *conv.inputs[2:], **conv.attributes), op.Conv(x, second, **conv.attributes)]
    total = op.Add(*sides)
    for value in (*sides, total):
        producer_of(value).metadata_props.update(conv.metadata_props)
    return total


# With the identity path that makes a sum of three, (a + b) + c. ONNX Runtime fuses one addition a convolution, hence
# a + (b + c).


def _sum_of_three(op: Any, first: ir.Value, second: ir.Value, identity: ir.Value) -> Any:
    return op.Add(op.Add(first, second), identity)


def _two_are_convolutions(context: Any, first: ir.Value, second: ir.Value, identity: ir.Value) -> bool:
    return unshared_conv(first) is not None and unshared_conv(second) is not None


def _reassociated(op: Any, first: ir.Value, second: ir.Value, identity: ir.Value) -> Any:
    return op.Add(second, op.Add(first, identity))


RULES = {
    "type-A shortcut as convolution": pattern.RewriteRule(_subsample_and_pad, _identity_convolution, _is_shortcut),
    "mean as pool": pattern.RewriteRule(_mean, _pool, _is_pool),
    "convolution of CReLU in halves": pattern.RewriteRule(_conv_of_crelu, _halves, _is_large),
    "sum of three": pattern.RewriteRule(_sum_of_three, _reassociated, _two_are_convolutions),
    "CReLU beside a column of zeros": pattern.RewriteRule(_conv_of_crelu, _with_zero_column, _leaves_single_columns),
    "CReLU as convolution": pattern.RewriteRule(_crelu, _signed_convolution, _has_width),
}


def difference(first: bytes, second: bytes, shape: tuple[int, ...]) -> float:
    """How far the logits of two ONNX models lie apart on random images, relative to the
    largest of the first one's, or absolutely if all of these are zero.

    Raises:
        RuntimeError: the first one's are not finite, so that nothing can be compared
            with them.
    """
    ort = load_onnxruntime()
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected, actual = (
        ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(["logits"], {"input": images})[0]
        for model in (first, second)
    )
    if not np.isfinite(expected).all():
        raise RuntimeError("the network's logits are not finite on random images, rewritten or not")
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1))

"""Products and convolutions, as ONNX models, that measure the peak speed of a machine.

No network is to be faster than the machine's peak, and one product of matrices is not
enough for that: on a CPU whole networks were up to 13 % faster than a product of 2048 x
2048. ONNX Runtime has other kernels for convolutions, and which size is fastest depends
on caches and threads. So there are several of both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

# Sides of square matrices, and images, channels and side of 3x3 convolutions, as in ResNet's first three stages. A GPU
# of 1 PFLOP/s takes a tenth of a millisecond for the least of its own, beside which a kernel's start does not count.
PRODUCTS = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
CONVOLUTIONS = {
    "cpu": ((4, 64, 56), (4, 128, 28), (4, 256, 14)),
    "cuda": ((256, 64, 56), (256, 128, 28), (256, 256, 14)),
}
# Convolutions one after the other, so that what is done once at the ends of a graph does not count.
CHAIN = 4

_FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Candidate:
    """One thing to run: a `model`, its `inputs` by name, and how many `operations`
    (multiplications and additions) it takes, counted as a direct convolution's or a
    plain product's are."""

    name: str
    model: ModelProto
    inputs: dict[str, NDArray[Any]]
    operations: int


def candidates(device: str, precision: str) -> Iterator[Candidate]:
    """What is to be tried, the fastest of which is the peak.

    Args:
        device: "cpu" or "cuda".
        precision: "fp32", "fp16" or "int8"; of the last a GPU has no convolution that
            is not part of a TensorRT engine.
    """
    random = np.random.default_rng(0)
    for side in PRODUCTS[device]:
        yield _product(device, precision, side, random)
    if precision != "int8" or device == "cpu":
        for shape in CONVOLUTIONS[device]:
            yield _convolutions(precision, shape, random)


def _product(device: str, precision: str, side: int, random: np.random.Generator) -> Candidate:
    if precision == "int8":
        # ONNX Runtime is fastest at unsigned by signed on CPUs, and has signed by signed alone on GPUs.
        first = TensorProto.UINT8 if device == "cpu" else TensorProto.INT8
        operator, types = "MatMulInteger", (first, TensorProto.INT8, TensorProto.INT32)
    else:
        operator, types = "MatMul", (_FLOATS[precision],) * 3
    values = [helper.make_tensor_value_info(name, kind, [side, side]) for name, kind in zip("abc", types, strict=True)]
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], "peak", values[:2], values[2:])
    inputs = {name: _small(random, kind, (side, side)) for name, kind in zip("ab", types[:2], strict=True)}
    return Candidate(f"product of {side} x {side}", _model(graph), inputs, 2 * side**3)


def _convolutions(precision: str, shape: tuple[int, int, int], random: np.random.Generator) -> Candidate:
    images, channels, side = shape
    kind, weights = (_FLOATS[precision],) * 2 if precision != "int8" else (TensorProto.UINT8, TensorProto.INT8)
    square: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    # A scale and a zero of int8 for all values; what they are does not matter to the time.
    constants = []
    if precision == "int8":
        constants = [
            numpy_helper.from_array(np.array(0.01, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.uint8), "zero"),
            numpy_helper.from_array(np.array(0, np.int8), "weights_zero"),
        ]
    nodes, last = [], "x"
    for number in range(CHAIN):
        filters, following = f"w{number}", f"y{number}"
        constants.append(numpy_helper.from_array(_small(random, weights, (channels, channels, 3, 3)), filters))
        if precision == "int8":
            names = [last, "scale", "zero", filters, "scale", "weights_zero", "scale", "zero"]
            nodes.append(helper.make_node("QLinearConv", names, [following], **square))
        else:
            nodes.append(helper.make_node("Conv", [last, filters], [following], **square))
        last = following
    size = (images, channels, side, side)
    ends = [helper.make_tensor_value_info(name, kind, size) for name in ("x", last)]
    graph = helper.make_graph(nodes, "peak", ends[:1], ends[1:], constants)
    operations = CHAIN * 2 * images * channels * channels * 9 * side * side
    name = f"{CHAIN} convolutions of {images} x {channels} x {side} x {side}"
    return Candidate(name, _model(graph), {"x": _small(random, kind, size)}, operations)


def _small(random: np.random.Generator, kind: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Small whole numbers, which all the types hold; floats a thousandth of them, so
    that a chain of convolutions does not leave what float16 holds."""
    values = random.integers(0, 8, shape) / (1000 if kind in _FLOATS.values() else 1)
    return values.astype(helper.tensor_dtype_to_np_dtype(kind))


def _model(graph: Any) -> ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

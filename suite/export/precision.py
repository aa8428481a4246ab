"""An exported network in half precision or in eight bits, for the providers that gain
from it."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript import ir

from suite.session import load_onnxruntime, open_session

FLOAT16 = np.finfo(np.float16)

# Operators that can give a greater magnitude than they get. All others of these graphs pick, turn or average values.
ENLARGING = ("Conv", "Gemm", "Add", "Sub", "Mul", "Div", "BatchNormalization")

Activations = Literal["unsigned", "signed", "symmetric"]

# TensorRT takes eight bits only around zero, biases only in floating point, and a pair of QuantizeLinear and
# DequantizeLinear at every place where there is one, weights too. The CUDA provider has no DequantizeLinear for biases
# of 32 bits either.
FOR_GPUS = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True, "DedicatedQDQPair": True}


def to_float16(path: Path, out: Path) -> None:
    """Write `path` with float16 weights and arithmetic as `out`; `input` and `logits`
    stay float32.

    For GPUs: ONNX Runtime's CPU provider has few float16 kernels and converts forth and
    back around the others. Whether float16 holds the activations too is for
    `activation_magnitudes` to say.

    Raises:
        RuntimeError: a weight is too large for float16.
    """
    load_onnxruntime()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size and np.abs(array).max() > FLOAT16.max:
            raise RuntimeError(f"{path.name}: {tensor.name} has values that float16 cannot hold")
    # The converter raises what is smaller to the least positive value, which then is that of float16 itself.
    least = float(FLOAT16.smallest_subnormal)
    half = ir.from_proto(convert_float_to_float16(model, keep_io_types=True, min_positive_val=least))
    half.graph.sort()  # it puts the cast of the input behind the nodes that read it, which the standard forbids
    ir.save(half, out)


def activation_magnitudes(path: Path, batches: Iterable[NDArray[np.float32]], threads: int = 1) -> dict[str, float]:
    """The greatest magnitude that each node of a float32 file gives on some images, in
    the graph's order.

    ONNX Runtime's CPU provider computes float16 in float32, so that a file whose
    activations float16 cannot hold passes there and gives no numbers on a GPU. The
    maxima are taken within the graph, hence this costs little more than to run it, in
    time and in memory.

    Args:
        path: a graph that `suite.export.exporter` wrote.
        batches: of images (B, channels, size, size), normalised as in training.
        threads: of ONNX Runtime.

    Returns:
        By name, which tells the layer, the magnitude for nodes that can enlarge what
        they get; infinite or not a number where float32 does not hold it either.
    """
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in ENLARGING]
    helper = onnx.helper
    found = {}
    for number, node in enumerate(nodes):
        size, greatest = f"magnitude.{number}", f"greatest.{number}"
        model.graph.node.append(helper.make_node("Abs", [node.output[0]], [size]))
        model.graph.node.append(helper.make_node("ReduceMax", [size], [greatest], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(greatest, onnx.TensorProto.FLOAT, []))
        found[greatest] = node.name
    session = open_session(model.SerializeToString(), "cpu", threads)
    values = np.stack([session.run(list(found), {"input": images}) for images in batches])
    return dict(zip(found.values(), values.max(0).tolist(), strict=True))


def difference(path: Path, reference: Path, batches: Iterable[NDArray[np.float32]], threads: int = 1) -> float:
    """Root mean square of the difference of two files' logits, or first outputs, over
    that of the second's, on the CPU provider; 0 where all logits are, and no number
    where they are not finite."""
    sessions = [open_session(str(file), "cpu", threads) for file in (path, reference)]
    apart, whole = 0.0, 0.0
    for images in batches:
        actual, expected = (
            session.run([session.get_outputs()[0].name], {"input": images})[0].astype(np.float64)
            for session in sessions
        )
        with np.errstate(invalid="ignore"):  # of initial weights, infinity less infinity
            apart += float(np.square(actual - expected).sum())
        whole += float(np.square(expected).sum())
    if not whole:
        return float("inf") if apart else 0.0
    return float(np.sqrt(apart / whole))


def to_int8(
    path: Path,
    out: Path,
    calibration: Iterable[NDArray[np.float32]],
    keep_float: Sequence[str] = (),
    activations: Activations = "unsigned",
    normprop: bool = True,
) -> None:
    """Write `path` quantised to eight bits as `out`: static, in QDQ form, `input` and
    `logits` float32.

    Weights are signed, with one scale a filter. Activations are unsigned by default: on
    x86 ONNX Runtime has fast kernels for unsigned times signed only, and signed
    activations took as long as float32. Their ranges are the least and the largest
    value that each takes on the calibration images, except after NormProp (see
    `_off_values`). "symmetric" is the form for GPUs: signed, around zero, with biases
    in floating point.

    Measured on two cores of a CPU with AVX-512 VNNI, 224x224, batch 1, against the
    rewritten float32 graph, in interleaved runs: ResNet-50 ReLU 0.28; CReLU 0.34 as two
    halves, 0.40 as signed convolution (see `rewrite`; in another spell the signed
    convolution 0.31, and the default export's Neg and Concat 0.33). Of untrained logits
    the error was 2.5 % with halves and 2.1 % in the other forms. So there is no form
    for this precision alone.

    Without VNNI the CPU provider adds pairs of products in 16 bits, which saturates.
    With initial weights and NormProp's constants everywhere, ResNet-20 ReLU NormProp
    was 8 to 28 % of its logits off there (three seeds, AVX2), and 2.0 to 2.8 % by the
    file's own arithmetic; with constants in the branches alone 0.7 to 5.2 %, and 0.5 to
    0.7 %.

    Args:
        path: a graph that `suite.export.exporter` wrote.
        out: the file to write.
        calibration: batches of images (B, channels, size, size), normalised as in
            training.
        keep_float: names of nodes that stay in float32, as `conv1` or `fc`.
        activations: their kind.
        normprop: whether the graph is one of this project's, which NormProp's constants
            are looked for in.

    Raises:
        ValueError: there are no calibration images, or the graph has no node of a name
            in `keep_float`.
    """
    load_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    missing = set(keep_float) - {node.name for node in onnx.load(path, load_external_data=False).graph.node}
    if missing:
        raise ValueError(f"{path.name} has no node {', '.join(sorted(missing))}")
    batches = list(calibration)
    if not batches:
        raise ValueError("quantisation needs calibration images, and there are none")

    symmetric = activations == "symmetric"

    def quantise(steps: Mapping[str, Any]) -> None:
        quantize_static(
            path,
            out,
            _reader(iter(batches)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8 if activations == "unsigned" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep_float),
            extra_options={"TensorQuantOverrides": steps} | (FOR_GPUS if symmetric else {}),
        )

    logging.disable(logging.WARNING)  # it recommends what the export has done already
    try:
        quantise({})
        if normprop and (steps := _steps(out, _off_values(path), symmetric)):
            quantise(steps)
    finally:
        logging.disable(logging.NOTSET)


def _off_values(path: Path) -> dict[str, float]:
    """What rectifiers give where they are off, by name of their output, where that is
    not zero.

    It is a value below zero where NormProp subtracts a mean from what it rectifies.
    Most of the values are off, all with the same error if eight bits have no code for
    just this value: of a trained ResNet-20 on CIFAR-10 the logits were 14 % off, and
    2.0 points of accuracy lost. With a code for it, 3.7 % and 0.05 points, as in other
    networks.
    """
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {node.output[0]: node.op_type for node in graph.node}
    off: dict[str, float] = {}
    for node in graph.node:
        known = [off.get(name) for name in node.input]
        if node.op_type == "Relu":
            value = 0.0
        elif node.op_type == "Clip":
            value = _first(constants[node.input[1]])
        elif node.op_type == "Conv" and producers.get(node.input[0]) == "Relu" and _is_depthwise(node):
            value = _first(constants[node.input[2]])
        elif node.op_type == "Concat" and known[0] is not None and len(set(known)) == 1:  # the exporter's CReLU
            value = known[0]
        elif node.op_type in ("Sub", "Div") and known[0] is not None and node.input[1] in constants:
            by = _first(constants[node.input[1]])
            value = known[0] - by if node.op_type == "Sub" else known[0] / by
        else:
            continue
        off[node.output[0]] = value
    return {name: value for name, value in off.items() if value < 0}


def _first(constant: onnx.TensorProto) -> float:
    return float(onnx.numpy_helper.to_array(constant).flat[0])


def _is_depthwise(conv: onnx.NodeProto) -> bool:
    """Whether a convolution subtracts a constant from each channel (see
    `suite.export.rewrite`)."""
    return len(conv.input) > 2 and any(each.name == "group" and each.i > 1 for each in conv.attribute)


def _steps(quantised: Path, off: Mapping[str, float], symmetric: bool) -> dict[str, Any]:
    """Steps of eight bits that divide the values `off`, and are as fine as those of a
    file, or little coarser."""
    graph = onnx.load(quantised).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    steps = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in off:
            continue
        value, scale, zero = off[node.input[0]], constants[node.input[1]], constants[node.input[2]]
        codes = int(-value / scale)
        if codes:
            of_zero = 0 if symmetric else np.iinfo(zero.dtype).min + codes
            steps[node.input[0]] = [
                {"scale": np.array(-value / codes, np.float32), "zero_point": np.array(of_zero, zero.dtype)}
            ]
    return steps


def _reader(batches: Iterator[NDArray[np.float32]]) -> Any:
    """ONNX Runtime's interface to calibration data."""
    load_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            images = next(batches, None)
            return None if images is None else {"input": images}

    return Reader()

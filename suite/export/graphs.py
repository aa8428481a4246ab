"""ONNX files of any maker, opset and names: what they take and give, and how many
operations they take.

Nothing is run, and of weights that lie outside a file only small tables of whole
numbers are read, which shapes may depend on.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from suite.errors import InputError, first_line

# A dimension: known, or free, with a name if the file has one for it.
Dimension = int | str | None
# Constants of at most so many values are kept where shapes are inferred: longer ones are weights, not shapes.
SMALL = 4096
# ONNX's types that are numpy's own.
_NUMBERS = (*range(TensorProto.FLOAT, TensorProto.STRING), *range(TensorProto.BOOL, TensorProto.UINT64 + 1))
_WEIGHTS: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.BFLOAT16: "bf16",
}


@dataclass(frozen=True)
class Slot:
    """An input of a graph.

    Attributes:
        name: as the file has it.
        type: numpy's name of it, or ONNX's of one that numpy has not, in capitals.
        dimensions: of its values.
        below: rows of the table that it picks from, if it does; else 0.
    """

    name: str
    type: str
    dimensions: tuple[Dimension, ...]
    below: int = 0


@dataclass(frozen=True, eq=False)
class Graph:
    """A file as it is described by itself.

    Attributes:
        path: the file.
        model: its message, without weights that lie outside.
        inputs: what has to be given.
        outputs: names of what it computes.
        precision: "int8", "fp16" or "fp32", by what most of its work is in; another
            type's name if all is in that.
        operators: how many nodes of each.
    """

    path: Path
    model: ModelProto
    inputs: tuple[Slot, ...]
    outputs: tuple[str, ...]
    precision: str
    operators: Mapping[str, int]


def read(path: Path) -> Graph:
    """Read a file, of whatever opset.

    Raises:
        InputError: it is no ONNX file, its weights lie outside its folder or are cut
            short, or an input is no tensor of numbers, or one without any.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: its name is not UTF-8, which ONNX and its runtimes ask for; rename it") from None
    model = load(path)
    graph = model.graph
    _check_outside(path, model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    inputs = tuple(
        Slot(value.name, *_type_of(path, value), _rows(graph, value.name, constants))
        for value in graph.input
        if value.name not in constants
    )
    operators = Counter(node.op_type for node in graph.node)
    outputs = tuple(value.name for value in graph.output)
    return Graph(path, model, inputs, outputs, _precision(model, operators), dict(operators))


def load(path: Path) -> ModelProto:
    """The message of a file, without weights that lie outside.

    Raises:
        InputError: it is no ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (
        Exception
    ) as error:  # of the reader for the name's ending: protobuf's, of its text or of JSON, each has its own
        raise InputError(f"{path}: not an ONNX file ({first_line(error)})") from None
    if not model.graph.node and not model.graph.output:
        why = "it holds no graph" if path.stat().st_size else "it is empty"
        raise InputError(f"{path}: not an ONNX file ({why})")
    return model


def _check_outside(path: Path, model: ModelProto) -> None:
    """See to it that weights outside the file lie in its folder: a file is not to have
    others read."""
    folder = path.resolve().parent
    for tensor in tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        where = said.get("location", "")
        there = (folder / where).resolve()
        if not where or not there.is_relative_to(folder) or there == folder:
            raise InputError(
                f"{path}: {tensor.name!r} lies in {where!r}, which is outside the file's folder and is not read"
            )
        if not there.is_file():
            raise InputError(f"{path}: its weights are to lie in {where!r} beside it, and there is no such file")
        places = [said.get(key) or "0" for key in ("offset", "length")]
        end, size = sum(int(each) for each in places if each.isdecimal()), there.stat().st_size
        if size < end:
            raise InputError(
                f"{path}: {where!r} beside it has {size} bytes, which is shorter than the file says: {tensor.name!r} "
                f"ends at {end}; copy or export it again"
            )


def tensors(message: Any) -> Iterator[Any]:
    """All tensors in a message, wherever they are."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                if field.message_type.name == "TensorProto":
                    yield part
                else:
                    yield from tensors(part)


def _type_of(path: Path, value: Any) -> tuple[str, tuple[Dimension, ...]]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InputError(f"{path}: input {value.name!r} is a {kind}; give a file that takes tensors of numbers")
    tensor = value.type.tensor_type
    if tensor.elem_type == TensorProto.STRING:
        raise InputError(f"{path}: input {value.name!r} takes strings; give a file that takes tensors of numbers")
    name = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type else "UNDEFINED"
    if not tensor.HasField("shape"):
        raise InputError(f"{path}: input {value.name!r} does not say how many dimensions it has")
    dimensions = tuple(
        side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else side.dim_param or None
        for side in tensor.shape.dim
    )
    if any(side.HasField("dim_value") and side.dim_value == 0 for side in tensor.shape.dim):
        shape = "x".join(
            str(0 if side.HasField("dim_value") and not side.dim_value else each or "?")
            for side, each in zip(tensor.shape.dim, dimensions, strict=True)
        )
        raise InputError(
            f"{path}: input {value.name!r} is {shape}, which has no values to compute from; export it with a free "
            "dimension, or one of at least 1, in the place of 0"
        )
    if tensor.elem_type in _NUMBERS:
        name = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return name, dimensions


def _rows(graph: Any, name: str, constants: Mapping[str, Any]) -> int:
    """The fewest rows of a table that an input picks from, on its way through operators
    that change no value."""
    names, rows = {name}, 0
    unpacked = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"):
            if node.input[0] in names:
                names.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in names:
            table = constants.get(unpacked.get(node.input[0], node.input[0]))
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            if table is not None and -len(table.dims) <= axis < len(table.dims):
                rows = min(rows or table.dims[axis], table.dims[axis])
    return rows


def _precision(model: ModelProto, operators: Mapping[str, int]) -> str:
    quantised = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger")
    if any(operators.get(each) for each in quantised):
        return "int8"
    values: Counter[int] = Counter()
    for tensor in model.graph.initializer:
        if tensor.data_type in _WEIGHTS:
            values[tensor.data_type] += math.prod(tensor.dims)
    most = values.most_common(1)[0][0] if values else TensorProto.FLOAT
    return _WEIGHTS[most]


def macs(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Multiply-accumulates of convolutions and of products of matrices in one run on
    inputs of these shapes; None if an operator's shape cannot be told, or it is one
    that is not known here, such as a recurrent layer."""
    if any(graph.operators.get(each) for each in _UNCOUNTED):
        return None
    bare = _bare(graph, shapes)
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (
        Exception
    ):  # what onnx raises depends on the operator, and others than ONNX's may be in it; nothing is known then
        return None
    known: dict[str, list[int]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        sides = value.type.tensor_type.shape.dim
        if value.type.HasField("tensor_type") and all(side.HasField("dim_value") for side in sides):
            known[value.name] = [side.dim_value for side in sides]
    known |= {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    total = 0
    for node in inferred.graph.node:
        count = _MACS.get(node.op_type)
        if count is None:
            continue
        sizes = [known.get(name) for name in (*node.input, node.output[0])]
        total_of_node = count(node, dict(zip((*node.input, "="), sizes, strict=False)))
        if total_of_node is None:
            return None
        total += total_of_node
    return total


def _bare(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """The graph with these shapes and without its weights, so that to infer shapes
    takes no copy of them."""
    bare = ModelProto()
    bare.CopyFrom(graph.model)
    del bare.graph.initializer[:], bare.graph.value_info[:]
    folder = str(graph.path.resolve().parent)
    listed = {value.name for value in bare.graph.input}
    for tensor in graph.model.graph.initializer:
        if tensor.data_type in (TensorProto.INT64, TensorProto.INT32) and math.prod(tensor.dims) <= SMALL:
            if tensor.data_location == TensorProto.EXTERNAL:
                array = numpy_helper.to_array(tensor, base_dir=folder)
                bare.graph.initializer.append(numpy_helper.from_array(array, tensor.name))
            else:
                bare.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            bare.graph.input.append(value)
    for value in bare.graph.input:
        if value.name in shapes:
            sides = value.type.tensor_type.shape
            sides.ClearField("dim")
            for size in shapes[value.name]:
                sides.dim.add().dim_value = size
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    return bare


Shapes = Mapping[str, list[int] | None]


def _of_convolution(node: Any, shapes: Shapes) -> int | None:
    weight = shapes[node.input[3 if node.op_type == "QLinearConv" else 1]]
    moved = shapes[node.input[0]] if node.op_type == "ConvTranspose" else shapes["="]
    return None if weight is None or moved is None else math.prod(moved) * math.prod(weight[1:])


def _of_product(node: Any, shapes: Shapes) -> int | None:
    first, result = shapes[node.input[0]], shapes["="]
    if not first or result is None:
        return None
    turned = node.op_type == "Gemm" and any(each.name == "transA" and each.i for each in node.attribute)
    return math.prod(result) * (first[0] if turned else first[-1])


_MACS = dict.fromkeys(("Conv", "ConvTranspose", "QLinearConv", "ConvInteger"), _of_convolution)
_MACS |= dict.fromkeys(("Gemm", "MatMul", "QLinearMatMul", "MatMulInteger"), _of_product)
# Operators that multiply, and are not counted: with one of them nothing is said of the whole.
_UNCOUNTED = (
    *("LSTM", "GRU", "RNN", "Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention", "DeformConv", "STFT"),
    *("DFT", "Loop", "Scan", "If", "FusedConv", "FusedMatMul", "FusedGemm", "MatMulNBits", "QGemm"),
)

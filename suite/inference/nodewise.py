"""The values of two graphs node by node, and the first one at which they depart from
each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from suite.session import load_onnxruntime, open_session

# Nodes whose values are held at a time.
AT_A_TIME = 50

Values = Mapping[str, NDArray[Any]]
# The values of so many nodes, given by name.
ValuesOf = Callable[[Sequence[str]], Values]


def first_difference_of_files(
    a: Path, b: Path, values: Values, tolerance: float, threads: int = 1
) -> dict[str, Any] | None:
    """The first node at which two files of one network depart from each other, as they
    are written: both are run on the CPU without optimisation, and compared where
    tensors have the same names and mean the same value.

    Args:
        a: the file that is expected to be right.
        b: the other one.
        values: by name of the inputs, which both files have.
        tolerance: difference from which on a value departs, as a share of the greatest
            one of its tensor in `a`.
        threads: of ONNX Runtime.

    Returns:
        None if nothing departs, or nothing has the same name. Else what
        `first_departure` says of a node, with the `tensor` that it gives, and whether
        it is looked at behind the eight bits of a file in which it is `quantised`;
        without a layer and a comparison.

    Raises:
        RuntimeError: one of them cannot be run in this way, as where it is beyond 2
            GB.
    """
    first, second = (onnx.load(path) for path in (a, b))
    common = _common_values(first.graph, second.graph)

    def values_of(model: onnx.ModelProto, place: int, names: Sequence[str]) -> Values:
        return _tensor_values(model, {name: common[name].places[place] for name in names}, values, threads)

    found = first_difference(partial(values_of, first, 0), partial(values_of, second, 1), list(common), tolerance)
    if found is None:
        return None
    tensor = found["node"]
    of = common[tensor]
    return found | {"node": of.node.name, "tensor": tensor, "operator": of.node.op_type, "quantised": of.quantised}


@dataclass(frozen=True)
class _Common:
    """A value that two graphs have by one name: the tensors that hold it in the first
    and in the second, and the node that gives it."""

    places: tuple[str, str]
    node: onnx.NodeProto
    quantised: bool


def _common_values(first: onnx.GraphProto, second: onnx.GraphProto) -> dict[str, _Common]:
    """The values that have one name in both graphs, by that name, in the first one's
    order.

    A quantiser leaves out a rectifier that the range of the eight bits stands for, and
    gives its name to what it read. The rectifier's values are then those that come out
    of the eight bits. So where different operators give a tensor, and a graph does
    nothing but quantise it, its value there is what DequantizeLinear makes of it; it is
    left out where no DequantizeLinear does.
    """
    theirs = {node.output[0]: node for node in second.node if node.output}
    found = {}
    for node in first.node:
        name = node.output[0] if node.output else ""
        if not name or name not in theirs:
            continue
        if node.op_type == theirs[name].op_type:
            found[name] = _Common((name, name), node, quantised=False)
            continue
        here, there = (_behind_eight_bits(graph, name) for graph in (first, second))
        if here and there:  # and the node is that of the graph where the tensor is read as it is
            giver = node if here == name else theirs[name]
            found[name] = _Common((here, there), giver, quantised=(here, there) != (name, name))
    return found


def _behind_eight_bits(graph: onnx.GraphProto, tensor: str) -> str | None:
    """Where what reads a tensor finds its values: itself, or if it is only quantised
    what DequantizeLinear makes of that; None if nothing does."""
    readers = _readers(graph, tensor)
    if not readers or tensor in {output.name for output in graph.output}:
        return tensor
    if any(reader.op_type != "QuantizeLinear" for reader in readers):
        return tensor
    behind = [node for reader in readers for node in _readers(graph, reader.output[0])]
    return next((node.output[0] for node in behind if node.op_type == "DequantizeLinear"), None)


def _readers(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if tensor in node.input]


def first_difference(
    expected: ValuesOf, actual: ValuesOf, nodes: Sequence[str], tolerance: float
) -> dict[str, Any] | None:
    for start in range(0, len(nodes), AT_A_TIME):
        names = nodes[start : start + AT_A_TIME]
        wanted, got = expected(names), actual(names)
        for name in names:
            found = _difference(wanted[name], got[name], tolerance)
            if found:
                return {"node": name} | found
    return None


def _difference(expected: NDArray[Any], actual: NDArray[Any], tolerance: float) -> dict[str, Any] | None:
    if not (isinstance(expected, np.ndarray) and expected.dtype.kind in "fiub" and expected.size):
        return None  # texts, lists and nothing at all
    # Differences of whole numbers would wrap around, and those of float16 be infinite.
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    scale = float(np.abs(expected).max(where=np.isfinite(expected), initial=0.0))
    if expected.shape != actual.shape:
        return {"difference": None, "scale": scale, "position": None, "expected": None, "actual": None}
    alike = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(invalid="ignore"):
        apart = np.where(alike, 0.0, np.nan_to_num(np.abs(expected - actual), nan=np.inf, posinf=np.inf))
    if apart.max() <= tolerance * scale:
        return None
    position = np.unravel_index(apart.argmax(), apart.shape)
    difference, *values = (
        float(value) if np.isfinite(value) else None
        for value in (apart[position], expected[position], actual[position])
    )
    at = [int(index) for index in position]
    return {"difference": difference, "scale": scale, "position": at, "expected": values[0], "actual": values[1]}


def graph_values(
    model: onnx.ModelProto,
    nodes: Sequence[str],
    images: NDArray[Any] | Values,
    threads: int,
    provider: str | None = None,
) -> dict[str, NDArray[Any]]:
    """What nodes give out for images or other inputs, by name: optimised on a provider,
    or on the CPU as the graph is written."""
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in set(nodes)}
    return _tensor_values(
        model, outputs, {"input": images} if isinstance(images, np.ndarray) else images, threads, provider
    )


def _tensor_values(
    model: onnx.ModelProto, tensors: Mapping[str, str], inputs: Values, threads: int, provider: str | None = None
) -> dict[str, NDArray[Any]]:
    """The values of tensors, which are given by what they are to be called."""

    def configure(session_options: Any) -> None:
        if provider is None:
            session_options.graph_optimization_level = load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL

    wanted = list(dict.fromkeys(tensors.values()))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    already = {value.name for value in model.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in already)
    session = open_session(exposed.SerializeToString(), provider or "cpu", threads, configure=configure)
    values = dict(zip(wanted, session.run(wanted, dict(inputs)), strict=True))
    return {name: values[tensor] for name, tensor in tensors.items()}

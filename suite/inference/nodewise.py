"""The values of two graphs node by node, and the first one at which they depart from
each other."""

from collections.abc import Callable, Mapping, Sequence
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
    tensors have the same names.

    Args:
        a: the file that is expected to be right.
        b: the other one.
        values: by name of the inputs, which both files have.
        tolerance: difference from which on a value departs, as a share of the greatest
            one of its tensor in `a`.
        threads: of ONNX Runtime.

    Returns:
        None if nothing departs, or nothing has the same name. Else what
        `first_departure` says of a node, with the `tensor` that it gives and without a
        layer and a comparison.

    Raises:
        RuntimeError: one of them cannot be run in this way, as where it is beyond 2
            GB.
    """
    first, second = (onnx.load(path) for path in (a, b))
    theirs = {node.output[0]: node for node in second.graph.node}
    for number, node in enumerate(second.graph.node):
        node.name = f"{number}"
    common = [node for node in first.graph.node if node.output[0] in theirs]
    operators = {node.output[0]: (node.op_type, node.name) for node in common}
    for node in common:  # by tensors, whose names are unique
        node.name = theirs[node.output[0]].name = node.output[0]
    for node in first.graph.node:
        if node.output[0] not in theirs:
            node.name = ""
    expected, actual = (partial(graph_values, model, images=values, threads=threads) for model in (first, second))
    found = first_difference(expected, actual, [node.output[0] for node in common], tolerance)
    if found is None:
        return None
    tensor = found["node"]
    operator, name = operators[tensor]
    return found | {"node": name, "tensor": tensor, "operator": operator}


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

    def configure(session_options: Any) -> None:
        if provider is None:
            session_options.graph_optimization_level = load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL

    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in set(nodes)}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    already = {value.name for value in model.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs.values() if name not in already)
    session = open_session(exposed.SerializeToString(), provider or "cpu", threads, configure=configure)
    values = session.run(list(outputs.values()), {"input": images} if isinstance(images, np.ndarray) else images)
    return dict(zip(outputs, values, strict=True))

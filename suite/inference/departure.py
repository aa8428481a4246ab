"""Parity of an exported file, and where it departs: the first node whose values are not
the network's."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from msgspec import structs
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor, nn

from suite import env
from suite.export import zoo
from suite.export.exporter import last_convolution, to_graph
from suite.export.nodes import name_after_layers
from suite.export.rewrite import apply_rewrites
from suite.inference.nodewise import ValuesOf, first_difference, graph_values
from suite.registry import ORT
from suite.schema.outcomes import Departure, ParityResult

if TYPE_CHECKING:
    from suite.data.batches import Batches

# Difference from which on a value departs, as a share of the greatest value of its tensor. Rounding stays below: across
# runtimes, and (far below) where one runtime computes one graph in one order.
ACROSS_RUNTIMES = 1e-4
SAME_RUNTIME = 1e-5


def first_departure(
    model: nn.Module, path: Path, images: Tensor, provider: str = "cpu", threads: int = 1
) -> Departure | None:
    """The first node at which an exported float32 file does not compute its network.

    A rewritten graph has other tensors than the network: other orders of channels,
    factors, halves of convolutions. So the network is exported once more, and three
    comparisons follow; the first that fails names the node.

    1. "export": torch's convolutions and linear layers (with their BatchNorm, if any)
       against the fresh export as the exporter wrote it. A fault of folding or of the
       exporter shows here, at the first such layer after it. Left out are the two
       convolutions of a sum that BatchNorm follows (NormProp), which fold with it.
    2. "file": each node of the fresh export, rewritten if the file is, against the node
       of this name in the file, both on the CPU without optimisation. A damaged file,
       or one of other weights, shows here, at the node itself.
    3. "runtime": each node of the file without optimisation on the CPU against the same
       on `provider` with all optimisations, and then its logits alone, since a node
       whose output is looked at is not fused with its reader.

    Nodes are compared one by one in the graph's order, not by bisection: behind a wrong
    shortcut come the right nodes of the branch beside it, so that "departs" is not
    monotonous.

    Args:
        model: the trained network in evaluation mode, on the CPU.
        path: the file, as `suite.export.exporter` wrote it.
        images: (N, channels, size, size), normalised as in training; a few are enough,
            on which the two disagree.
        provider: of ONNX Runtime, on which the file is run.
        threads: of ONNX Runtime.

    Returns:
        None if nothing departs.

    Raises:
        RuntimeError: the file has no node in common with an export of this network.
    """
    file = onnx.load(path)
    exported = to_graph(model, images.shape[-1])
    default_export = _to_named_proto(ir.from_proto(ir.to_proto(exported)))
    same_graph = default_export
    if all(node.op_type != "ReduceMean" for node in file.graph.node):  # the pool, which rewriting replaces
        apply_rewrites(exported)
        same_graph = _to_named_proto(exported)
    operators = {node.name: node.op_type for node in file.graph.node}
    common = [node.name for node in same_graph.graph.node if node.name in operators]
    if not common:
        raise RuntimeError(f"{path.name} has no node in common with an export of this network")

    pixels = images.contiguous().numpy()
    layers = _torch_values(model, images)
    on_cpu = partial(graph_values, images=pixels, threads=threads)
    as_run = partial(graph_values, file, images=pixels, threads=threads, provider=provider)
    as_written = partial(on_cpu, file)
    comparisons: list[tuple[str, ValuesOf, ValuesOf, Sequence[str], float]] = [
        ("export", lambda names: layers, partial(on_cpu, default_export), list(layers), ACROSS_RUNTIMES),
        ("file", partial(on_cpu, same_graph), as_written, common, SAME_RUNTIME),
        ("runtime", as_written, as_run, list(operators), ACROSS_RUNTIMES),
        ("runtime", as_written, as_run, [file.graph.node[-1].name], ACROSS_RUNTIMES),
    ]
    for comparison, expected, actual, nodes, tolerance in comparisons:
        found = first_difference(expected, actual, nodes, tolerance)
        if found:
            node = found["node"]
            layer = _layer(model, node)
            return Departure(comparison=comparison, layer=layer, operator=operators.get(node), **found)
    return None


def _torch_values(model: nn.Module, images: Tensor) -> dict[str, NDArray[Any]]:
    """The outputs of convolutions, with their BatchNorm, and of linear layers, by
    layer, in the order of execution."""
    found: dict[str, NDArray[Any]] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[name] = output.numpy()

    hooks = []
    refolded = {
        f"{name}.{part}"
        for name, block in model.named_modules()
        if isinstance(getattr(block, "sum_norm", None), nn.BatchNorm2d)
        for part in (last_convolution(block), "shortcut.0")
    }
    for parent_name, parent in model.named_modules():
        children = [*parent.named_children(), ("", None)]
        for (name, child), (_, following) in pairwise(children):
            layer = f"{parent_name}.{name}".lstrip(".")
            if isinstance(child, nn.Conv2d | nn.Linear) and layer not in refolded:
                whole = following if isinstance(following, nn.BatchNorm2d) else child
                hooks.append(whole.register_forward_hook(partial(keep, layer)))
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _to_named_proto(graph: ir.Model) -> onnx.ModelProto:
    name_after_layers(graph)
    return ir.to_proto(graph)


def _layer(model: nn.Module, node: str) -> str:
    """The module that a node is named after; the node itself if there is none."""
    modules = {name for name, _ in model.named_modules()}
    layer = node
    while layer not in modules and "." in layer:
        layer = layer.rpartition(".")[0]
    return layer if layer in modules else node


def check(
    weights: Path,
    path: Path,
    batches: "Batches",
    precision: str,
    provider: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    runtime: str = ORT,
) -> ParityResult:
    """What `parity.compare` says of a file and the weights that it was made from; and
    if a float32 file of one of this project's networks fails in ONNX Runtime,
    `departure`: the first node that departs, as `first_departure` finds it.

    Raises:
        RuntimeError: nothing can be compared; where that is a float32 file's fault,
            with the first node that departs.
    """
    from suite.inference.parity import LogitsError, compare

    of = zoo.from_folder(weights)
    model = zoo.build(of)

    def first_apart_here() -> Departure | None:
        images, _ = next(iter(batches.test()))
        return first_departure(model, path, images[:4].contiguous(), provider)

    by_node = of.ours and precision == "fp32" and runtime == ORT
    try:
        found = compare(model, path, batches, env.available_cores(), progress, provider, precision, runtime)
    except LogitsError as error:
        if by_node and error.of != "torch" and (first := first_apart_here()):
            raise RuntimeError(f"{error}; it departs first at {first.node}") from None
        raise
    if found.passed or not by_node:
        return found
    return structs.replace(found, departure=first_apart_here())

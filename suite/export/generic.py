"""Any torch network of one input to ONNX: what PyTorch's exporter makes of it, and of
the rewrites those that apply.

Nothing is known of the network. So BatchNorm is folded by the exporter, where it is
directly behind a convolution, and each rewrite is tried by itself, run against the
graph before it, and left out where the results are not the same.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import ir
from onnxscript.rewriter import pattern
from torch import Tensor, nn

from suite import env
from suite.errors import describe_error, first_line
from suite.export.exporter import OPSET, cost, to_onnx
from suite.export.nodes import name_after_layers
from suite.export.rewrite import RULES, TOLERANCE, difference
from suite.session import open_session
from suite.tables.spec import TOLERANCE as PARITY
from suite.tf32 import without_tf32

# Operators that normalise, of which the exporter leaves those that are not behind a convolution.
NORM = "BatchNormalization"


def export(
    model: nn.Module,
    shape: Sequence[int],
    out: Path,
    metadata: Mapping[str, str],
    rewrite: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write a network as the ONNX file `out`, with its weights in it.

    The graph takes `input`, float32 (batch, *shape), with a free batch size where the
    network has one, and gives `logits`, or several outputs under the exporter's names.

    Args:
        model: in evaluation mode, on the CPU; it is left as it is.
        shape: of one input, as (3, 224, 224).
        out: the file to write.
        metadata: what the file is to say of itself.
        rewrite: use the rewrites for ONNX Runtime's CPU provider that apply.
        say: told what is being done.

    Returns:
        `opset`, `operators` (how many of each), `bytes`, `parameters`, `macs` (of one
        input; None if the network cannot be counted), `batch` ("free" or "1"),
        `rewrites` (how often each was applied), `difference_from_torch` (on random
        images on the CPU, relative to the greatest value of an output), and `warnings`,
        sentences.

    Raises:
        RuntimeError: its forward fails on such an input, the exporter cannot make a
            graph of it, or one that ONNX's own check refuses.
    """
    say("export")
    graph, batch, said, expected = _graph(model, shape)
    counts: dict[str, int] = {}
    if rewrite:
        say("rewrites")
        graph, counts, left = rewrite_graph(graph, (2 if batch == "free" else 1, *shape))
        said += [f"left out, since it changed the results: {name}" for name in left]
    name_after_layers(graph)
    graph.metadata_props.update(metadata)
    ir.save(graph, out)
    onnx.checker.check_model(str(out), full_check=True)
    apart = _difference(out, shape, batch, expected)
    if not apart <= PARITY:  # nor if it is not a number
        said.append(f"differs from torch by {apart:.1e} of the greatest output, which is more than rounding")
    operators = Counter(node.op_type for node in onnx.load(out, load_external_data=False).graph.node)
    if operators[NORM]:
        said.append(f"{operators[NORM]} BatchNorm cannot be folded, since no convolution is directly before them")
    return {
        "opset": OPSET,
        "operators": dict(sorted(operators.items())),
        "bytes": out.stat().st_size,
        **cost_of(model, shape),
        "batch": batch,
        "rewrites": counts,
        "difference_from_torch": apart,
        "warnings": said,
    }


def cost_of(model: nn.Module, shape: Sequence[int]) -> dict[str, int | None]:
    """Trainable `parameters`, and `macs` of one input: of convolutions and products;
    None if they cannot be counted."""
    parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
    if len(shape) != 3 or shape[1] != shape[2]:
        return {"parameters": parameters, "macs": None}
    try:
        return dict(cost(model, shape[-1]))
    except Exception:  # a user's network may raise anything on torch's device "meta", where its layers are counted
        return {"parameters": parameters, "macs": None}


def _example(shape: Sequence[int]) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))  # one would be taken for a constant


def difference_from_torch(model: nn.Module, path: Path, shape: Sequence[int], batch: str) -> float:
    """How far the file of a network is from it on random images on the CPU, relative to
    the greatest value of an output.

    Args:
        model: in evaluation mode, on the CPU.
        path: its file, in whatever precision.
        shape: of one input, without the batch.
        batch: of the file, "free" or "1".
    """
    with torch.no_grad(), without_tf32():
        return _difference(path, shape, batch, _tensors(model(_example(shape))))


def _difference(path: Path, shape: Sequence[int], batch: str, expected: Sequence[Tensor]) -> float:
    """How far a file's outputs are from torch's for the example, over the greatest
    value of each; the greatest."""
    images = _example(shape).numpy()
    session = open_session(str(path), "cpu", env.available_cores())
    parts = [images] if batch == "free" else np.split(images, len(images))
    actual = [session.run(None, {"input": part}) for part in parts]
    shares = []
    for place, wanted in enumerate(expected):
        if batch != "free" and wanted.shape[:1] != (2,):
            continue  # an output without a batch
        got = np.concatenate([part[place] for part in actual]) if batch != "free" else actual[0][place]
        if got.shape != wanted.shape:
            return math.inf
        scale = float(wanted.abs().max()) or 1.0
        shares.append(float(np.abs(got.astype(np.float64) - wanted.numpy()).max()) / scale)
    return max(shares, default=0.0)


def _graph(model: nn.Module, shape: Sequence[int]) -> tuple[ir.Model, str, list[str], list[Tensor]]:
    """The exporter's graph, whether its batch size is "free" or "1", what is to be said
    of it, and torch's outputs."""
    said: list[str] = []
    example = _example(shape)
    try:
        with torch.no_grad(), without_tf32():
            result = model(example)
    except Exception as error:  # a user's network may raise anything; the caller expects a RuntimeError
        size = "x".join(map(str, example.shape))
        raise RuntimeError(f"its forward fails on float32 of {size}: {describe_error(error)}") from error
    outputs = _tensors(result)
    names = ["logits"] if isinstance(result, Tensor) else None
    try:
        return to_onnx(model, example, names), "free", said, outputs
    except Exception as error:  # of torch's exporter, whose errors have no base of their own; the next try may succeed
        said.append(f"the batch size is fixed at 1, since the exporter finds no free one: {first_line(error)[:120]}")
    try:
        return to_onnx(model, example[:1], names, free=False), "1", said, outputs
    except Exception as error:  # of torch's exporter too; the caller expects a RuntimeError
        raise RuntimeError(f"PyTorch's exporter cannot make a graph of it: {first_line(error)}") from None


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a network's output in order: one, several, or by name."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def rewrite_graph(graph: ir.Model, shape: tuple[int, ...]) -> tuple[ir.Model, dict[str, int], list[str]]:
    """The graph with each rewrite of `suite.export.rewrite.RULES` that applies to it
    and changes no result.

    Left out are those that move constants and orders of channels through a whole
    network, which know this project's networks alone.

    Args:
        graph: with one input and `logits`; it is left as it is.
        shape: of the input that it is tried on.

    Returns:
        The new graph, how often each rewrite was applied, and the names of those that
        changed results.
    """
    counts: dict[str, int] = {}
    left: list[str] = []
    if [output.name for output in graph.graph.outputs] != ["logits"]:
        return graph, counts, left
    plain = ir.to_proto(graph).SerializeToString()
    for name, rule in RULES.items():
        trial = ir.from_proto(ir.to_proto(graph))
        if not (count := pattern.RewriteRuleSet([rule]).apply_to_model(trial)):
            continue
        ir.passes.common.RemoveUnusedNodesPass()(trial)
        if difference(plain, ir.to_proto(trial).SerializeToString(), shape) <= TOLERANCE:
            graph, counts[name] = trial, count
        else:
            left.append(name)
    return graph, counts, left

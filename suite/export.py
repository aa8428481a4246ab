"""PyTorch to ONNX: the network as it is deployed, with normalisation folded into the convolutions."""

import copy
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

import models
from suite.nodes import name_after_layers
from suite.rewrite import TOLERANCE, apply_rewrites, difference
from suite.weights import load_weights as load_weights

# The opset of PyTorch's dynamo exporter, which writes it whatever else is asked for.
OPSET = 18


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy in which each NormProp convolution and each convolution with BatchNorm is one plain convolution.

    Computed in float64, so that the only rounding is that of the folded float32 weights.
    """
    model = copy.deepcopy(model).double().eval()
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for name, child in children:
            if isinstance(child, models.NormPropConv2d):
                setattr(parent, name, _plain(child))
        children = list(parent.named_children())
        for (name, conv), (next_name, norm) in pairwise(children):
            # In every block a convolution is registered directly before its norm.
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, nn.Identity())
    return model.float()


def _plain(conv: models.NormPropConv2d) -> nn.Conv2d:
    """The same convolution with its normalised filters as weights."""
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=1, bias=True, dtype=conv.weight.dtype)
    plain.kernel_size, plain.stride, plain.padding = conv.kernel_size, conv.stride, conv.padding
    plain.weight = nn.Parameter(conv.normalized_weight())
    plain.bias = conv.bias
    return plain


def cost(model: nn.Module, size: int) -> dict[str, int]:
    """Trainable `parameters`, and `macs`: multiply-accumulates of convolutions and linear layers for one image."""
    shadow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, _in_channels(model), size, size, device="meta"))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}


def export(weights: Path, size: int, out: Path, metadata: dict[str, str], rewrite: bool = True) -> dict[str, Any]:
    """Write the trained network in folder `weights` as the ONNX file `out`, for images of size x size pixels.

    The graph takes `input`, float32 (batch, channels, size, size) normalised as in training, with a free batch size,
    and gives `logits` (batch, classes). With `rewrite` it has the form that ONNX Runtime's CPU provider runs fastest
    (see `suite.rewrite`), and has been found to give the same logits; without, the exporter's own.

    Returns:
        `opset`, `operators` (how many of each), `parameters`, `macs`, `bytes`; and of a rewritten graph `rewrites`
        (how often each was applied) and `rewrite_difference` (of its logits on random images, relative to the
        largest). `macs` are the network's own, whatever form the graph has.

    Raises:
        RuntimeError: the file is not what this function promises; nothing can then be measured with it.
    """
    model = load_weights(weights)
    graph = to_graph(model, size)
    graph.metadata_props.update(metadata)
    plain = ir.to_proto(graph).SerializeToString()
    counts = apply_rewrites(graph) if rewrite else {}
    name_after_layers(graph)
    ir.save(graph, out)
    result = {**check(out, batch_norms=0 if rewrite else _unfoldable(model)), **cost(model, size)}
    if rewrite:
        changed = difference(plain, out.read_bytes(), (2, _in_channels(model), size, size))
        if not changed <= TOLERANCE:  # nor if it is not a number
            raise RuntimeError(f"{out.name}: rewriting changed the logits by {changed:.1e} of the largest")
        result |= {"rewrites": counts, "rewrite_difference": changed}
    return result


def to_graph(model: nn.Module, size: int) -> ir.Model:
    """The exporter's graph of the folded network, for images of size x size pixels; its input and output as `export`
    says, its nodes with the names of their modules in their metadata."""
    return _to_onnx(fold(model), size).model


def _to_onnx(model: nn.Module, size: int) -> torch.onnx.ONNXProgram:
    example = torch.randn(2, _in_channels(model), size, size)  # a batch of one would be taken for a constant
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter's own use of what PyTorch deprecates; nothing that a caller could change.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["input"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns nothing
    return program


def _in_channels(model: nn.Module) -> int:
    """How many channels an image has."""
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _unfoldable(model: nn.Module) -> int:
    """BatchNorms that follow no convolution: those of NormProp nets on type-A shortcuts."""
    padded = (m for m in model.modules() if isinstance(m, nn.Sequential) and len(m) == 2)
    return sum(isinstance(m[0], models.SubsampleAndPad) for m in padded)


def check(path: Path, batch_norms: int = 0) -> dict[str, Any]:
    """Verify an exported file and describe it.

    Raises:
        RuntimeError: wrong opset, a fixed batch size, weights outside the file, or BatchNorm left in the graph.
    """
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    description = describe(path)
    opset, operators = description["opset"], description["operators"]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    side_files = [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for wrong, what in (
        (opset != OPSET, f"opset {opset} instead of {OPSET}"),
        (not batch.dim_param, "a fixed batch size"),
        (bool(side_files), "weights outside the file"),
        (
            operators.get("BatchNormalization", 0) != batch_norms,
            f"{operators.get('BatchNormalization', 0)} BatchNorm not folded",
        ),
    ):
        if wrong:
            raise RuntimeError(f"{path.name}: the exported graph has {what}")
    return description


def describe(path: Path) -> dict[str, Any]:
    """The `opset` of a file, its `operators` (how many of each) and its `bytes`."""
    model = onnx.load(str(path))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    operators = Counter(node.op_type for node in model.graph.node)
    return {"opset": opset, "operators": dict(sorted(operators.items())), "bytes": path.stat().st_size}

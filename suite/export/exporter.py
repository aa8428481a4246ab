"""PyTorch to ONNX: the network as it is deployed, with normalisation folded into the
convolutions."""

import copy
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import torch
from msgspec import structs
from onnxscript import ir
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

import models
from suite.export.nodes import name_after_layers
from suite.export.rewrite import TOLERANCE, apply_rewrites, difference
from suite.export.weights import load_weights as load_weights
from suite.schema.outcomes import ExportResult, File, none_if_unset

# The opset of PyTorch's dynamo exporter, which writes it whatever else is asked for.
OPSET = 18


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy without normalisation: each NormProp convolution, each convolution with
    BatchNorm and each BatchNorm of NormProp's identity path is part of plain
    convolutions.

    All of it is exact. One normalisation stays, in a reading that is not the default:
    BatchNorm of the input of a basic block (`np_batchnorm="trunk_input"`), whose
    readers pad with zeros or rectify first, becomes a depthwise 1x1 convolution, which
    multiplies each value of that input (16,384 of an image at the first reduction for
    CIFAR).

    Computed in float64, so that the only rounding is that of the folded float32
    weights.
    """
    model = copy.deepcopy(model).double().eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, models.NormPropConv2d):
                setattr(parent, name, _plain(child))
            elif isinstance(child, nn.Sequential) and len(child) == 2 and isinstance(child[0], models.SubsampleAndPad):
                child[0] = _as_convolution(child[0])
        children = list(parent.named_children())
        for (name, conv), (next_name, norm) in pairwise(children):
            # In every block a convolution is registered directly before its norm.
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, nn.Identity())
    for block in model.modules():
        if isinstance(getattr(block, "sum_norm", None), nn.BatchNorm2d):
            _fold_sum(block)
        if isinstance(getattr(block, "input_norm", None), nn.BatchNorm2d):
            _fold_input(block)
    return model.float()


def _plain(conv: models.NormPropConv2d) -> nn.Conv2d:
    """The same convolution with its normalised filters as weights."""
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=1, bias=True, dtype=conv.weight.dtype)
    plain.kernel_size, plain.stride, plain.padding = conv.kernel_size, conv.stride, conv.padding
    plain.weight = nn.Parameter(conv.normalized_weight())
    plain.bias = conv.bias
    return plain


def _as_convolution(path: models.SubsampleAndPad) -> nn.Conv2d:
    """A type-A shortcut as a strided 1x1 convolution: an identity matrix above filters
    of zeros."""
    channels = path.in_channels
    conv = nn.Conv2d(channels, channels + path.extra, 1, path.stride, bias=False, dtype=torch.float64)
    conv.weight = nn.Parameter(torch.eye(conv.out_channels, channels, dtype=torch.float64)[:, :, None, None])
    return conv.eval()  # which fusing BatchNorm asks for


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What BatchNorm in evaluation mode multiplies each channel by, and what it then
    adds."""
    assert norm.running_var is not None  # for the type checker, as the next one
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def last_convolution(block: nn.Module) -> str:
    """The name in its block of the convolution before the addition."""
    return f"conv{block.convolutions}"


def _fold_sum(block: Any) -> None:
    """Give BatchNorm of branch + shortcut to their convolutions: the scale to both, the
    shift to the branch's."""
    scale, shift = _scale_and_shift(block.sum_norm)
    if isinstance(block.shortcut, models.SubsampleAndPad):
        block.shortcut = _as_convolution(block.shortcut)
    identity: Any = block.shortcut[0] if isinstance(block.shortcut, nn.Sequential) else block.shortcut
    branch: Any = getattr(block, last_convolution(block))
    for conv in (branch, identity):
        conv.weight.mul_(scale.view(-1, 1, 1, 1))
        if conv.bias is not None:
            conv.bias.mul_(scale)
    branch.bias = nn.Parameter(shift if branch.bias is None else branch.bias + shift)
    block.sum_norm = nn.Identity()


def _fold_input(block: Any) -> None:
    """Give BatchNorm of a block's input to the 1x1 convolutions that read it, or else
    make it a depthwise one."""
    scale, shift = _scale_and_shift(block.input_norm)
    if isinstance(block, models.Bottleneck):
        readers: tuple[Any, Any] = block.conv1, next(block.shortcut.children())
        for conv in readers:
            added = conv.weight.sum((2, 3)) @ shift
            conv.bias = nn.Parameter(added if conv.bias is None else conv.bias + added)
            conv.weight.mul_(scale.view(1, -1, 1, 1))
        block.input_norm = nn.Identity()
        return
    channels = len(scale)
    conv = nn.Conv2d(channels, channels, 1, groups=channels, dtype=torch.float64)
    conv.weight, conv.bias = nn.Parameter(scale.view(-1, 1, 1, 1)), nn.Parameter(shift)
    block.input_norm = conv


def cost(model: nn.Module, size: int) -> dict[str, int]:
    """Trainable `parameters`, and `macs`: multiply-accumulates of convolutions and
    linear layers for one image."""
    shadow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, _in_channels(model), size, size, device="meta"))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}


def export(weights: Path, size: int, out: Path, metadata: dict[str, str], rewrite: bool = True) -> ExportResult:
    """Write the trained network in folder `weights` as the ONNX file `out`, for images
    of size x size pixels.

    The graph takes `input`, float32 (batch, channels, size, size) normalised as in
    training, with a free batch size, and gives `logits` (batch, classes). With
    `rewrite` it is the graph that ONNX Runtime's CPU provider runs fastest (see
    `suite.export.rewrite`), and has been found to give the same logits; without, the
    default export.

    Raises:
        RuntimeError: the file is not what this function promises; nothing can then be
            measured with it.
    """
    model = load_weights(weights)
    graph = to_graph(model, size)
    graph.metadata_props.update(metadata)
    plain = ir.to_proto(graph).SerializeToString()
    counts = apply_rewrites(graph) if rewrite else {}
    name_after_layers(graph)
    ir.save(graph, out)
    taken = cost(model, size)
    result = ExportResult(**structs.asdict(check(out)), parameters=taken["parameters"], macs=taken["macs"])
    if not rewrite:
        return result
    changed = difference(plain, out.read_bytes(), (2, _in_channels(model), size, size))
    if not changed <= TOLERANCE:  # nor if it is not a number
        raise RuntimeError(f"{out.name}: rewriting changed the logits by {changed:.1e} of the largest")
    return structs.replace(result, rewrites=counts, rewrite_difference=changed)


def to_graph(model: nn.Module, size: int) -> ir.Model:
    """The exporter's graph of the folded network, for images of size x size pixels; its
    input and output as `export` says, its nodes with the names of their modules in
    their metadata."""
    return to_onnx(fold(model), torch.randn(2, _in_channels(model), size, size), ["logits"])


def to_onnx(model: nn.Module, example: Tensor, outputs: list[str] | None, free: bool = True) -> ir.Model:
    """What PyTorch's exporter makes of a network: the graph of the default export.

    Args:
        model: in evaluation mode, on the CPU.
        example: for which it is traced; of two inputs, since a batch of one would be
            taken for a constant.
        outputs: their names; None for the exporter's own.
        free: whether the batch size is free.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter's own use of what PyTorch deprecates; nothing that a caller could change.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["input"],
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if free else None,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns nothing
    return program.model


def _in_channels(model: nn.Module) -> int:
    """How many channels an image has."""
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def check(path: Path) -> File:
    """Verify an exported file and describe it.

    Raises:
        RuntimeError: wrong opset, a fixed batch size, weights outside the file, or
            BatchNorm left in the graph.
    """
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    description = _describe(model, path)
    opset, operators = description.opset, none_if_unset(description.operators) or {}
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    side_files = [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for wrong, what in (
        (opset != OPSET, f"opset {opset} instead of {OPSET}"),
        (not batch.dim_param, "a fixed batch size"),
        (bool(side_files), "weights outside the file"),
        (
            "BatchNormalization" in operators,
            f"{operators.get('BatchNormalization')} BatchNorm not folded",
        ),
    ):
        if wrong:
            raise RuntimeError(f"{path.name}: the exported graph has {what}")
    return description


def describe(path: Path) -> File:
    """What an ONNX file is made of."""
    return _describe(onnx.load(str(path)), path)


def _describe(model: onnx.ModelProto, path: Path) -> File:
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    operators = Counter(node.op_type for node in model.graph.node)
    return File(opset=opset, operators=dict(sorted(operators.items())), bytes=path.stat().st_size)

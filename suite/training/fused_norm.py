"""BatchNorm, the residual addition and the activation of a block in one pass each way,
by kernels of our own.

`use_norms` puts them into a network. Forward, a convolution by our kernels finds the
statistics of what it computes; of any other's output a kernel reads them. A small one
merges them, and one normalises, adds and rectifies. Backward there are three. The
kernels are in `suite.training.triton_norm`. In tests a block computes as before.
torch.compile does the like itself.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.blocks import BasicBlock, PreActBasicBlock
from models.layers import CReLU
from suite.training import kernels
from suite.training.operators import Statistics, add_parts, next_power, on_device_of, part_block, relative_difference

Activation = Literal["none", "relu", "crelu"]

# Pixels are divided between so many programs at most for each block of channels, and a program reads so many values at
# a time.
PROGRAMS, VALUES = 528, 4096
# Channels of a norm that uses these kernels.
MOST_CHANNELS = 1024
# A product and its sum may be rounded once. Triton warns where it is not told.
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def _division(pixels: int, channels: int) -> tuple[int, int, int, int]:
    """Parts of the pixels, tiles of a part, pixels of a tile, and the channels of a
    tile, which are a power of two."""
    block = channels & -channels  # the greatest that divides them, so that none is read in vain, unless it is small
    if block < 16:
        block = next_power(channels)
    tile = max(1, min(VALUES // block, next_power(pixels)))
    tiles = -(-pixels // (tile * PROGRAMS))
    return -(-pixels // (tile * tiles)), tiles, tile, block


def _statistics(x: Tensor) -> Statistics:
    """Those of values that no kernel of ours has computed."""
    from suite.training import triton_norm

    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    parts, tiles, tile, block = _division(pixels, channels)
    found = torch.empty((parts, 2, channels), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        triton_norm.part_statistics[parts, -(-channels // block)](
            x, found, pixels, channels, tiles, tile, block, **_OPTIONS
        )
    return Statistics(found, tiles * tile)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        norm: nn.BatchNorm2d,
        activation: Activation,
        groups: int,
        statistics: Statistics | None,
    ) -> Tensor:
        from suite.training import triton_norm

        channels, pixels = x.shape[1], x.numel() // x.shape[1]
        _, _, tile, block = _division(pixels, channels)
        found, of_a_part = statistics or _statistics(x)
        mean, inverse = torch.empty((2, channels), dtype=torch.float32, device=x.device)
        shape = x.shape[0], channels * (2 if activation == "crelu" else 1), *x.shape[2:]
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        with on_device_of(x):
            rows, columns = part_block(len(found))
            triton_norm.merge_statistics[(-(-channels // columns),)](
                found, mean, inverse, norm.running_mean, norm.running_var, norm.num_batches_tracked,
                pixels, len(found), of_a_part, norm.momentum, norm.eps, channels, rows, columns, **_OPTIONS,
            )  # fmt: skip
            triton_norm.normalize[-(-pixels // tile), -(-channels // block)](
                x, mean, inverse, weight, bias, residual, y,
                pixels, channels, activation, channels // groups, tile, block, **_OPTIONS,
            )  # fmt: skip
        masks = residual is not None and activation != "none"
        ctx.save_for_backward(x, weight, bias, mean, inverse, y if masks else None)
        ctx.activation, ctx.half, ctx.adds = activation, channels // groups, residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from suite.training import triton_norm

        x, weight, bias, mean, inverse, y = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        channels, pixels = x.shape[1], x.numel() // x.shape[1]
        parts, tiles, tile, block = _division(pixels, channels)
        sums = torch.empty((parts, 2, channels), dtype=torch.float32, device=x.device)
        total = torch.empty((2, channels), dtype=torch.float32, device=x.device)
        of_x = torch.empty_like(x)
        of_residual = None if y is None else torch.empty_like(x)
        given = x, y, gradient, mean, inverse, weight, bias
        with on_device_of(x):
            triton_norm.part_gradients[parts, -(-channels // block)](
                *given, sums, pixels, channels, ctx.activation, ctx.half, tiles, tile, block, **_OPTIONS
            )
            add_parts(sums, total)
            triton_norm.input_gradient[-(-pixels // tile), -(-channels // block)](
                *given, total, of_x, of_residual, pixels, channels, ctx.activation, ctx.half, tile, block, **_OPTIONS
            )
        if ctx.adds and of_residual is None:
            of_residual = gradient  # of a sum that nothing follows
        return of_x, total[1], total[0], of_residual, None, None, None, None


def normalize(
    norm: nn.BatchNorm2d,
    x: Tensor,
    activation: Activation = "none",
    residual: Tensor | None = None,
    groups: int = 1,
    statistics: Statistics | None = None,
) -> Tensor:
    """`activation(norm(x) + residual)` in training, which brings the norm's running
    statistics up to date.

    Args:
        norm: one for which `is_supported` is true.
        x: (B, C, H, W), of more than one pixel in all.
        activation: "crelu" only without a residual.
        residual: of x's shape, or None for no addition.
        groups: of how many parts of its channels CReLU keeps the two halves together.
        statistics: of x, if they are known.

    Returns:
        (B, C, H, W), or (B, 2C, H, W) for CReLU, in x's type, channels_last. It is
        rounded to that type once.
    """
    assert activation != "crelu" or residual is None
    layout = torch.channels_last
    if residual is not None:
        residual = residual.to(x.dtype).contiguous(memory_format=layout)
    given = norm.weight, norm.bias, residual, norm, activation, groups, statistics
    found: Tensor = _Normalize.apply(x.contiguous(memory_format=layout), *given)
    return found


def _conv_norm_act(convolution: nn.Module, norm: nn.BatchNorm2d, rectifier: nn.Module, x: Tensor) -> Tensor:
    y, statistics = kernels.convolve_with_statistics(convolution, x)
    if isinstance(rectifier, CReLU):
        return normalize(norm, y, "crelu", groups=getattr(rectifier, "groups", 1), statistics=statistics)
    return normalize(norm, y, "relu", statistics=statistics)


def _forward_basic(block: Any, x: Tensor) -> Tensor:
    y = _conv_norm_act(block.conv1, block.norm1, block.act1, x)
    y, statistics = kernels.convolve_with_statistics(block.conv2, y)
    return normalize(block.norm2, y, "relu", block.shortcut(x), statistics=statistics)


def _forward_pre_act(block: Any, x: Tensor) -> Tensor:
    y = _conv_norm_act(block.conv1, block.norm1, block.act2, block.act1(x))
    y, statistics = kernels.convolve_with_statistics(block.conv2, y)
    return normalize(block.norm2, y, "none", block.shortcut(x), statistics=statistics)


_FORWARD: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    BasicBlock: _forward_basic,
    PreActBasicBlock: _forward_pre_act,
}


def is_supported(norm: nn.Module) -> bool:
    """Whether our kernels can stand in for this layer: an ordinary BatchNorm in
    float32."""
    if type(norm) is not nn.BatchNorm2d or norm.num_features > MOST_CHANNELS:
        return False
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def use_norms(model: nn.Module) -> int:
    """Have the blocks of a network with BatchNorm use our kernels; returns how many
    norms do.

    Weights, their names and what else the network does stay as they are. A block with a
    norm elsewhere, such as in NormProp's networks, is left alone, and so are tests and
    what `kernels.precision_for` leaves to the library.
    """
    count = 0
    for block in model.modules():
        fused = _FORWARD.get(type(block))
        if fused is None:
            continue
        assert isinstance(block, BasicBlock | PreActBasicBlock)
        others = block.input_norm, block.sum_norm
        if (
            is_supported(block.norm1)
            and is_supported(block.norm2)
            and all(isinstance(other, nn.Identity) for other in others)
        ):
            forward = functools.partial(_forward, block, block.forward, fused)
            block.forward = forward  # type: ignore[method-assign] # of this block alone, whose class others share
            count += 2
    return count


def _forward(
    block: nn.Module, plain: Callable[[Tensor], Tensor], fused: Callable[[Any, Tensor], Tensor], x: Tensor
) -> Tensor:
    ours = block.training and torch.is_grad_enabled() and kernels.precision_for(x) is not None
    return fused(block, x) if ours else plain(x)


@functools.cache
def why_unusable(device: torch.device) -> str | None:
    """Why these kernels cannot be used on this device, in one line; None if they
    can."""
    return kernels.why_inaccurate(device, differences)


def differences(device: torch.device, precision: torch.dtype) -> dict[str, float]:
    """How far our kernels in a precision are from the library in float32, in parts of
    the largest value."""
    draws = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=draws).to(device, precision).float()
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    found: dict[str, float] = {}
    x, residual = draw(5, 12, 7, 9).requires_grad_(), draw(5, 12, 7, 9).requires_grad_()
    for activation, added in (("relu", residual), ("none", residual), ("relu", None), ("crelu", None)):
        norms = [nn.BatchNorm2d(12, device=device) for _ in range(2)]
        ours = normalize(norms[0], x.to(precision), activation, added)  # type: ignore[arg-type] # mypy takes the names for any text
        theirs = norms[1](x) if added is None else norms[1](x) + added
        # What a rounded value has let through decides on its gradient, so that it is taken from ours.
        if activation == "crelu":
            theirs = torch.cat((theirs * (ours[:, :12] > 0), -theirs * (ours[:, 12:] > 0)), dim=1)
        elif activation == "relu":
            theirs = theirs * (ours > 0)
        gradient, inputs = draw(*ours.shape), [x] if added is None else [x, added]
        a = ours, *torch.autograd.grad(ours, [*norms[0].parameters(), *inputs], gradient.to(precision))
        b = theirs, *torch.autograd.grad(theirs, [*norms[1].parameters(), *inputs], gradient)
        for name, one, other in zip(("output", "weight", "bias", "input", "addition"), a, b, strict=False):
            found[f"{activation} {name}"] = relative_difference(one, other)
    return found

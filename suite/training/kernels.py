"""Convolutions and CReLU of training by kernels of our own, where cuDNN is slow: few channels in bfloat16 on a GPU.

`use_kernels` puts them into a network. They are operators of torch, so that torch.compile and CUDA graphs hold them.
The kernels themselves are in `suite.training.triton_kernels`, which is imported when one of them runs.
"""

import functools
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import CReLU, NormPropConv2d
from suite.errors import in_words
from suite.training.grouped import GroupedCReLU

# Channels of a convolution that our kernels take. Those of more have not been compared with cuDNN's on any GPU.
LEAST, MOST_IN, MOST_OUT = 12, 192, 128
# Of several networks side by side, our kernels take the stem's too. Libraries are slow at convolutions of many groups.
LEAST_GROUPED = 3
# A weight's gradient is divided between so many programs at most, since a GPU of 132 cores holds several on each, and
# its partial sums take so many bytes at most, which its cache holds.
PROGRAMS, PARTIAL_SUMS = 400, 4 * 2**20
# Kernels count values of a tensor in 32 bits, and what a layer gives has up to 16 values for each 3 of its input.
MOST_VALUES = 2**31 // 6
# How far the kernels may be from the library, in parts of the largest value: bfloat16 rounds to 1/256.
TOLERANCE = 0.02
# A product and its sum may be rounded once. Triton warns where it is not told.
_OPTIONS = {"enable_fp_fusion": True}


def _channels_last(like: Tensor, channels: int) -> Tensor:
    """An empty tensor for as many pixels."""
    batch, _, height, width = like.shape
    shape = batch, channels, height, width
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _strided(x: Tensor, channels: int, stride: int) -> Tensor:
    """An empty tensor for the output of a convolution of x."""
    batch, _, height, width = x.shape
    shape = batch, channels, -(-height // stride), -(-width // stride)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _on(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _next_power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _block(channels: int) -> int:
    """How many channels to take at a time, a power of two: the fewest that are not there, then the fewest blocks."""
    return min((64, 32, 16), key=lambda size: (-(-channels // size) * size, -size))


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, stride: int, transposed: bool) -> Tensor:
    """Convolve into y with a weight (groups out, in, 3, 3) or, from out to in, with its transpose; returns y."""
    from suite.training import triton_kernels

    batch, channels, height, width = y.shape
    groups = (y if transposed else x).shape[1] // weight.shape[1]
    c_in, c_out = x.shape[1] // groups, channels // groups
    pixels = batch * height * width
    block = _next_power(max(c_out, 16)) if c_out <= MOST_OUT else 64
    tile = 256 if pixels >= 65536 and block <= 32 else 128 if pixels >= 65536 and block <= 64 else 64
    grid = (-(-pixels // tile) * groups, -(-c_out // block))
    with _on(x):
        triton_kernels.convolve[grid](
            x, weight, bias, y, pixels, height, width, c_in, c_out, groups, stride, x.shape[2], x.shape[3], transposed,
            tile, _block(c_in), block, num_warps=4, **_OPTIONS,
        )  # fmt: skip
    return y


@torch.library.custom_op("suite::conv3x3", mutates_args=())
def conv3x3(x: Tensor, weight: Tensor, cast: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """A 3x3 convolution with "same" padding, summed in float32; in groups of channels where x has more of them than the
    weight.

    Args:
        x: (B, groups in, H, W), channels_last.
        weight: (groups out, in, 3, 3), which gets the gradient, in float32.
        cast: the same in x's type, channels_last, which is what is convolved with. It gets no gradient.
        bias: (groups out,) or None.
        stride: of both axes.

    Returns:
        (B, groups out, ceil(H / stride), ceil(W / stride)) in x's type, channels_last.
    """
    return _launch(x, cast, bias, _strided(x, cast.shape[0], stride), stride, transposed=False)


@conv3x3.register_fake
def _(x: Tensor, weight: Tensor, cast: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    return _strided(x, cast.shape[0], stride)


@torch.library.custom_op("suite::conv3x3_input_gradient", mutates_args=())
def conv3x3_input_gradient(gradient: Tensor, cast: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """The gradient of `conv3x3` with respect to x, of which only the shape is used, from that of its output."""
    return _launch(gradient, cast, None, _channels_last(x, x.shape[1]), stride, transposed=True)


@conv3x3_input_gradient.register_fake
def _(gradient: Tensor, cast: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    return _channels_last(x, x.shape[1])


@torch.library.custom_op("suite::conv3x3_weight_gradient", mutates_args=())
def conv3x3_weight_gradient(x: Tensor, gradient: Tensor, groups: int = 1, stride: int = 1) -> Tensor:
    """The gradient of `conv3x3` with respect to its weight, in float32.

    Each program writes the sum over its pixels to a place of its own. A second kernel adds these sums. Nothing depends
    on which program is first, so the result is the same bit for bit every time.
    """
    from suite.training import triton_kernels

    batch, _, height, width = gradient.shape
    c_in, c_out = x.shape[1] // groups, gradient.shape[1] // groups
    pixels = batch * height * width
    block_in, block_out = min(_block(c_in), 32), min(max(_next_power(c_out), 16), 64)
    blocks = -(-c_in // block_in) * -(-c_out // block_out)
    tile = 128 if block_in * block_out <= 1024 else 64
    wanted = max(1, min(PROGRAMS // (3 * blocks * groups), PARTIAL_SUMS // (4 * 9 * groups * c_in * c_out)))
    tiles = -(-pixels // (tile * wanted))
    parts = -(-pixels // (tile * tiles))
    sums = torch.empty((parts, groups, c_out, 9, c_in), dtype=torch.float32, device=x.device)
    total = _weight_like(x, gradient, groups)
    with _on(x):
        triton_kernels.weight_gradient[(parts * groups, 3, blocks)](
            x, gradient, sums, pixels, height, width, c_in, c_out, groups, stride, x.shape[2], x.shape[3], tiles, tile,
            block_in, block_out, num_warps=4, num_stages=3, **_OPTIONS,
        )  # fmt: skip
        size = total.numel()
        triton_kernels.add_parts[(-(-size // 64),)](sums, total, parts, size, 32, 64, num_warps=4, **_OPTIONS)
    return total


@conv3x3_weight_gradient.register_fake
def _(x: Tensor, gradient: Tensor, groups: int = 1, stride: int = 1) -> Tensor:
    return _weight_like(x, gradient, groups)


def _weight_like(x: Tensor, gradient: Tensor, groups: int) -> Tensor:
    """An empty tensor for the weight's gradient."""
    shape = gradient.shape[1], x.shape[1] // groups, 3, 3
    return torch.empty(shape, dtype=torch.float32, device=x.device, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
    x, _, cast, _, ctx.stride = inputs
    ctx.save_for_backward(x, cast)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
    x, cast = ctx.saved_tensors
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    of_x, of_weight, _, of_bias = ctx.needs_input_grad[:4]  # torch leaves out a stride that is the default
    return (
        conv3x3_input_gradient(gradient, cast, x, ctx.stride) if of_x else None,
        conv3x3_weight_gradient(x, gradient, x.shape[1] // cast.shape[1], ctx.stride) if of_weight else None,
        None,
        gradient.sum((0, 2, 3), dtype=torch.float32) if of_bias else None,
        None,
    )


conv3x3.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("suite::crelu", mutates_args=())
def crelu(x: Tensor, groups: int = 1) -> Tensor:
    """`cat(relu(x), relu(-x))` along the channels of each group, of (B, C, H, W) in channels_last."""
    from suite.training import triton_kernels

    channels = x.shape[1] // groups
    pixels = x.numel() // channels  # of each group
    y = _channels_last(x, 2 * x.shape[1])
    block = _next_power(channels)
    tile = max(1, 2048 // block)
    with _on(x):
        triton_kernels.rectify_both[(-(-pixels // tile),)](x, y, pixels, channels, tile, block, **_OPTIONS)
    return y


@crelu.register_fake
def _(x: Tensor, groups: int = 1) -> Tensor:
    return _channels_last(x, 2 * x.shape[1])


@torch.library.custom_op("suite::crelu_gradient", mutates_args=())
def crelu_gradient(y: Tensor, gradient: Tensor, groups: int = 1) -> Tensor:
    """The gradient of `crelu` with respect to x, from its output y and the gradient of y."""
    from suite.training import triton_kernels

    channels = y.shape[1] // (2 * groups)
    pixels = y.numel() // (2 * channels)
    result = _channels_last(gradient, groups * channels)
    block = _next_power(channels)
    tile = max(1, 2048 // block)
    with _on(y):
        triton_kernels.rectify_both_gradient[(-(-pixels // tile),)](
            y, gradient, result, pixels, channels, tile, block, **_OPTIONS
        )
    return result


@crelu_gradient.register_fake
def _(y: Tensor, gradient: Tensor, groups: int = 1) -> Tensor:
    return _channels_last(gradient, y.shape[1] // 2)


def _keep_output(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    _, ctx.groups = inputs
    ctx.save_for_backward(output)


def _crelu_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (y,) = ctx.saved_tensors
    return crelu_gradient(y, gradient.contiguous(memory_format=torch.channels_last), ctx.groups), None


crelu.register_autograd(_crelu_gradient, setup_context=_keep_output)


def precision_for(x: Tensor) -> torch.dtype | None:
    """The type in which our kernels are to compute on this input; None if they are not to.

    They are for what runs under bfloat16 autocast on a GPU: training, and the quick tests between epochs.
    """
    if not x.is_cuda or x.numel() >= MOST_VALUES or not torch.is_autocast_enabled("cuda"):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype("cuda") == torch.bfloat16 else None


class _Convolution(nn.Conv2d):
    """What a convolution of any class does once its filters are known, by our kernels where they are to compute."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        precision = precision_for(x)
        y: Tensor
        if precision is None:
            y = super()._conv_forward(x, weight, bias)
        else:
            x = x.to(precision).contiguous(memory_format=torch.channels_last)
            cast = weight.detach().to(precision).contiguous(memory_format=torch.channels_last)
            y = conv3x3(x, weight, cast, bias, self.stride[0])
        return y


class _NormPropConvolution(_Convolution, NormPropConv2d):
    pass


class _CReLU(CReLU):
    groups = 1

    def forward(self, x: Tensor) -> Tensor:
        # torch.compile makes one kernel of CReLU and what is around it.
        precision = None if torch.compiler.is_compiling() or x.dim() != 4 else precision_for(x)
        if precision is None:
            return super().forward(x)
        found: Tensor = crelu(x.contiguous(memory_format=torch.channels_last), self.groups)
        return found


class _GroupedCReLU(_CReLU, GroupedCReLU):
    pass


def fits(module: nn.Module) -> bool:
    """Whether our kernels can stand in for this layer."""
    if type(module) not in (nn.Conv2d, NormPropConv2d):
        return False
    assert isinstance(module, nn.Conv2d)
    groups = module.groups
    least, strides = (LEAST, [(1, 1)]) if groups == 1 else (LEAST_GROUPED, [(1, 1), (2, 2)])
    few = least <= module.in_channels // groups <= MOST_IN and least <= module.out_channels // groups <= MOST_OUT
    geometry = module.kernel_size, module.padding, module.dilation, module.padding_mode
    return few and module.stride in strides and geometry == ((3, 3), (1, 1), (1, 1), "zeros")


def use_kernels(model: nn.Module) -> int:
    """Have a network's convolutions and CReLUs use our kernels; returns how many convolutions do.

    Weights, their names and what else the network does stay as they are. Where `precision_for` says so, a layer still
    computes as it did.
    """
    count = 0
    for module in model.modules():
        if type(module) in (CReLU, GroupedCReLU):
            module.__class__ = _CReLU if type(module) is CReLU else _GroupedCReLU
        elif fits(module):
            module.__class__ = _Convolution if type(module) is nn.Conv2d else _NormPropConvolution
            count += 1
    return count


@functools.cache
def fault(device: torch.device) -> str | None:
    """Why our kernels cannot be used on this device, in one line; None if they can.

    They are tried: a small convolution with CReLU and its gradients are held against the library's in float32.
    """
    return tried(device, differences)


def tried(device: torch.device, differences: Callable[[torch.device, torch.dtype], dict[str, float]]) -> str | None:
    """Why kernels that differ by so much from the library cannot be used on a device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton"
    try:
        differing = differences(device, torch.bfloat16)
    except Exception as error:  # such as a machine without a compiler, or a GPU without bfloat16
        return in_words(error)
    wrong = ", ".join(name for name, difference in differing.items() if not difference < TOLERANCE)
    return f"a try gave other values than the library: {wrong}" if wrong else None


def differences(device: torch.device, precision: torch.dtype) -> dict[str, float]:
    """How far our kernels in a precision are from the library in float32, in parts of the largest value."""
    draws = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=draws).to(device, precision).float()
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    result: dict[str, float] = {}
    for groups, stride, of in ((1, 1, ""), (2, 2, " of two networks")):
        x, weight, bias = draw(5, groups * 16, 7, 9), draw(groups * 24, 16, 3, 3), draw(groups * 24)
        inputs = [value.requires_grad_() for value in (x, weight, bias)]
        ours = crelu(conv3x3(x.to(precision), weight, weight.detach().to(precision), bias, stride), groups)
        theirs = nn.functional.conv2d(x, weight, bias, stride, padding=1, groups=groups)
        halves = theirs.relu().chunk(groups, 1), (-theirs).relu().chunk(groups, 1)
        theirs = torch.cat([half for pair in zip(*halves, strict=True) for half in pair], dim=1)
        gradient = draw(*theirs.shape)
        found = ours, *torch.autograd.grad(ours, inputs, gradient.to(precision))
        expected = theirs, *torch.autograd.grad(theirs, inputs, gradient)
        names = "output", "gradient of the input", "gradient of the weight", "gradient of the bias"
        result |= {
            name + of: float((a - b).detach().abs().max() / b.detach().abs().max())
            for name, a, b in zip(names, found, expected, strict=True)
        }
    return result

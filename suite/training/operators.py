"""Operators of torch over our own Triton kernels: 3x3 convolutions of few channels, and
CReLU, with their gradients.

torch.compile and CUDA graphs hold them. The kernels are in
`suite.training.triton_kernels`, which is imported when one of them runs. All images are
channels_last.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Output channels that one program computes together.
MOST_OUT = 128
# A weight's gradient is divided between so many programs at most, since a GPU of 132 cores holds several on each, and
# its partial sums take so many bytes at most, which its cache holds.
PROGRAMS, PARTIAL_SUMS = 400, 4 * 2**20
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


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def next_power(count: int) -> int:
    """The least power of two that is not below."""
    return 1 << (count - 1).bit_length()


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference of two tensors, in parts of the second one's largest
    value."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def part_block(parts: int) -> tuple[int, int]:
    """How many partial sums a program reads at once, and of how many columns: all parts
    where it can, since each further read waits for memory again."""
    rows = min(1024, next_power(parts))
    return rows, max(8, 2048 // rows)


def add_parts(sums: Tensor, total: Tensor) -> None:
    """Sum (parts, ...) over the parts into a total, in the same order every time."""
    from suite.training import triton_kernels

    parts, size = len(sums), total.numel()
    rows, tile = part_block(parts)
    with on_device_of(sums):
        triton_kernels.add_parts[(-(-size // tile),)](sums, total, parts, size, rows, tile, num_warps=4, **_OPTIONS)


def _block(channels: int) -> int:
    """How many channels to take at a time, a power of two: the one that leaves the
    fewest unused, then the fewest blocks."""
    return min((64, 32, 16), key=lambda size: (-(-channels // size) * size, -size))


def _tiles(pixels: int, channels: int) -> tuple[int, int]:
    """How many pixels of the output, and how many channels of a group, one program
    computes."""
    block = next_power(max(channels, 16)) if channels <= MOST_OUT else 64
    tile = 256 if pixels >= 65536 and block <= 32 else 128 if pixels >= 65536 and block <= 64 else 64
    return tile, block


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    stride: int,
    transposed: bool,
    statistics: Tensor | None = None,
) -> Tensor:
    """Convolve into y with a weight (groups out, in, 3, 3) or, from out to in, with its
    transpose; returns y."""
    from suite.training import triton_kernels

    batch, channels, height, width = y.shape
    groups = (y if transposed else x).shape[1] // weight.shape[1]
    c_in, c_out = x.shape[1] // groups, channels // groups
    pixels = batch * height * width
    tile, block = _tiles(pixels, c_out)
    grid = (-(-pixels // tile) * groups, -(-c_out // block))
    with on_device_of(x):
        triton_kernels.convolve[grid](
            x, weight, bias, y, statistics, pixels, height, width, c_in, c_out, groups, stride, x.shape[2], x.shape[3],
            transposed, tile, _block(c_in), block, num_warps=4, num_stages=3, **_OPTIONS,
        )  # fmt: skip
    return y


@torch.library.custom_op("suite::conv3x3", mutates_args=())
def conv3x3(x: Tensor, weight: Tensor, cast: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """A 3x3 convolution with "same" padding, summed in float32; in groups of channels
    where x has more of them than the weight.

    Args:
        x: (B, groups in, H, W), channels_last.
        weight: (groups out, in, 3, 3), which gets the gradient, in float32.
        cast: the same in x's type, channels_last, which is what is convolved with. It
            gets no gradient.
        bias: (groups out,) or None.
        stride: of both axes.

    Returns:
        (B, groups out, ceil(H / stride), ceil(W / stride)) in x's type,
        channels_last.
    """
    return _launch(x, cast, bias, _strided(x, cast.shape[0], stride), stride, transposed=False)


@conv3x3.register_fake
def _(x: Tensor, weight: Tensor, cast: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    return _strided(x, cast.shape[0], stride)


class Statistics(NamedTuple):
    """What is known of the values of each channel before BatchNorm reads them.

    Attributes:
        parts: (parts, 2, C), float32: of each part of the pixels the mean, and the sum
            of squared deviations from it.
        pixels: how many there are in each part but the last.
    """

    parts: Tensor
    pixels: int


@torch.library.custom_op("suite::conv3x3_with_statistics", mutates_args=())
def conv3x3_and_parts(x: Tensor, weight: Tensor, cast: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
    y, parts = _and_parts(x, weight, cast, stride)
    return _launch(x, cast, None, y, stride, False, parts), parts


@conv3x3_and_parts.register_fake
def _and_parts(x: Tensor, weight: Tensor, cast: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
    y = _strided(x, cast.shape[0], stride)
    parts = -(-y.numel() // y.shape[1] // _pixels_of_a_part(x, cast, y))
    return y, torch.empty((parts, 2, y.shape[1]), dtype=torch.float32, device=x.device)


def _pixels_of_a_part(x: Tensor, cast: Tensor, y: Tensor) -> int:
    tile, _ = _tiles(y.numel() // y.shape[1], cast.shape[0] * cast.shape[1] // x.shape[1])
    return tile


def conv3x3_with_statistics(x: Tensor, weight: Tensor, cast: Tensor, stride: int = 1) -> tuple[Tensor, Statistics]:
    """`conv3x3` without a bias, and the statistics of its output, which BatchNorm then
    need not read for them."""
    y, parts = conv3x3_and_parts(x, weight, cast, stride)
    return y, Statistics(parts, _pixels_of_a_part(x, cast, y))


@torch.library.custom_op("suite::conv3x3_input_gradient", mutates_args=())
def conv3x3_input_gradient(gradient: Tensor, cast: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """The gradient of `conv3x3` with respect to x, of which only the shape is used,
    from that of its output."""
    return _launch(gradient, cast, None, _channels_last(x, x.shape[1]), stride, transposed=True)


@conv3x3_input_gradient.register_fake
def _(gradient: Tensor, cast: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    return _channels_last(x, x.shape[1])


@torch.library.custom_op("suite::conv3x3_weight_gradient", mutates_args=())
def conv3x3_weight_gradient(x: Tensor, gradient: Tensor, groups: int = 1, stride: int = 1) -> Tensor:
    """The gradient of `conv3x3` with respect to its weight, in float32.

    Each program writes the sum over its pixels to a place of its own. A second kernel
    adds these sums. Nothing depends on which program is first, so the result is the
    same bit for bit every time.
    """
    from suite.training import triton_kernels

    batch, _, height, width = gradient.shape
    c_in, c_out = x.shape[1] // groups, gradient.shape[1] // groups
    pixels = batch * height * width
    block_in, block_out = min(_block(c_in), 32), min(max(next_power(c_out), 16), 64)
    blocks = -(-c_in // block_in) * -(-c_out // block_out)
    tile = 128 if block_in * block_out <= 1024 else 64
    wanted = max(1, min(PROGRAMS // (3 * blocks * groups), PARTIAL_SUMS // (4 * 9 * groups * c_in * c_out)))
    tiles = -(-pixels // (tile * wanted))
    parts = -(-pixels // (tile * tiles))
    sums = torch.empty((parts, groups, c_out, 9, c_in), dtype=torch.float32, device=x.device)
    total = _weight_like(x, gradient, groups)
    with on_device_of(x):
        triton_kernels.weight_gradient[(parts * groups, 3, blocks)](
            x, gradient, sums, pixels, height, width, c_in, c_out, groups, stride, x.shape[2], x.shape[3], tiles, tile,
            block_in, block_out, num_warps=4, num_stages=3, **_OPTIONS,
        )  # fmt: skip
        add_parts(sums, total)
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


def _keep_with_statistics(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    x, _, cast, ctx.stride = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # which would fill one of zeros for the statistics
    ctx.save_for_backward(x, cast)


def _gradients_with_statistics(
    ctx: Any, gradient: Tensor, of_parts: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, cast = ctx.saved_tensors
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    of_x, of_weight = ctx.needs_input_grad[:2]
    return (
        conv3x3_input_gradient(gradient, cast, x, ctx.stride) if of_x else None,
        conv3x3_weight_gradient(x, gradient, x.shape[1] // cast.shape[1], ctx.stride) if of_weight else None,
        None,
        None,
    )


conv3x3_and_parts.register_autograd(_gradients_with_statistics, setup_context=_keep_with_statistics)


@torch.library.custom_op("suite::crelu", mutates_args=())
def crelu(x: Tensor, groups: int = 1) -> Tensor:
    """`cat(relu(x), relu(-x))` along the channels of each group, of (B, C, H, W) in
    channels_last."""
    from suite.training import triton_kernels

    channels = x.shape[1] // groups
    pixels = x.numel() // channels  # of each group
    y = _channels_last(x, 2 * x.shape[1])
    block = next_power(channels)
    tile = max(1, 2048 // block)
    with on_device_of(x):
        triton_kernels.rectify_both[(-(-pixels // tile),)](x, y, pixels, channels, tile, block, **_OPTIONS)
    return y


@crelu.register_fake
def _(x: Tensor, groups: int = 1) -> Tensor:
    return _channels_last(x, 2 * x.shape[1])


@torch.library.custom_op("suite::crelu_gradient", mutates_args=())
def crelu_gradient(y: Tensor, gradient: Tensor, groups: int = 1) -> Tensor:
    """The gradient of `crelu` with respect to x, from its output y and the gradient of
    y."""
    from suite.training import triton_kernels

    channels = y.shape[1] // (2 * groups)
    pixels = y.numel() // (2 * channels)
    result = _channels_last(gradient, groups * channels)
    block = next_power(channels)
    tile = max(1, 2048 // block)
    with on_device_of(y):
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

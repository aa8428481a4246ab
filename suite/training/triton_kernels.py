"""Kernels in Triton for training: 3x3 convolutions of few channels, and CReLU.

All tensors are channels_last, so that the channels of one pixel lie together. A pixel has a number, counted over the
images of the batch, their rows and their columns. The pixel one row below has a number that is higher by the width.
Each program works on a tile of pixels. Masks leave out pixels behind the last one and channels that are not there.
Products are summed in float32, and always in the same order.
"""

import triton
import triton.language as tl


@triton.jit
def convolve(
    x,  # (pixels, c_in)
    weight,  # (c_out, 9, c_in), or (c_in, 9, c_out) if `transposed`
    bias,  # (c_out,) or None
    y,  # (pixels, c_out)
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    c_in: tl.constexpr,
    c_out: tl.constexpr,
    transposed: tl.constexpr,
    tile: tl.constexpr,
    tile_in: tl.constexpr,
    tile_out: tl.constexpr,
):
    """A convolution, or with `transposed` the one that takes an output's gradient to the input's gradient."""
    pixel = tl.program_id(0) * tile + tl.arange(0, tile)
    column, row = pixel % width, pixel // width % height
    out = tl.program_id(1) * tile_out + tl.arange(0, tile_out)
    total = tl.zeros((tile, tile_out), tl.float32)
    for tap in tl.static_range(9):
        down = tap // 3 - 1
        right = tap % 3 - 1
        inside = (pixel < pixels) & (row + down >= 0) & (row + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        source = pixel + down * width + right
        for start in range(0, c_in, tile_in):
            channel = start + tl.arange(0, tile_in)
            there = channel < c_in
            values = tl.load(
                x + source[:, None] * c_in + channel[None, :], mask=inside[:, None] & there[None, :], other=0.0
            )
            if transposed:  # with the filter turned by half a turn
                at = (channel[:, None] * 9 + (8 - tap)) * c_out + out[None, :]
            else:
                at = (out[None, :] * 9 + tap) * c_in + channel[:, None]
            filters = tl.load(weight + at, mask=there[:, None] & (out < c_out)[None, :], other=0.0)
            total = tl.dot(values, filters, total)
    if bias is not None:
        total += tl.load(bias + out, mask=out < c_out, other=0.0).to(tl.float32)[None, :]
    known = (pixel < pixels)[:, None] & (out < c_out)[None, :]
    tl.store(y + pixel[:, None] * c_out + out[None, :], total.to(y.dtype.element_ty), mask=known)


@triton.jit
def weight_gradient(
    x,  # (pixels, c_in)
    gradient,  # of the output, (pixels, c_out)
    sums,  # (parts, c_out, 9, c_in), float32
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    c_in: tl.constexpr,
    c_out: tl.constexpr,
    tiles: tl.constexpr,
    tile: tl.constexpr,
    tile_in: tl.constexpr,
    tile_out: tl.constexpr,
):
    """The weight's gradient, summed over each part of the pixels, which is so many tiles.

    A program sums one row of the filter for a block of its channels, whose three taps share the output's gradient.
    """
    part, tap_row, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks_in: tl.constexpr = (c_in + tile_in - 1) // tile_in
    channel = block % blocks_in * tile_in + tl.arange(0, tile_in)
    out = block // blocks_in * tile_out + tl.arange(0, tile_out)
    there = (channel < c_in)[None, :]
    left = tl.zeros((tile_out, tile_in), tl.float32)
    middle = tl.zeros((tile_out, tile_in), tl.float32)
    right = tl.zeros((tile_out, tile_in), tl.float32)
    for number in range(tiles):
        pixel = (part * tiles + number) * tile + tl.arange(0, tile)
        column, row = pixel % width, pixel // width % height + tap_row - 1
        inside = (pixel < pixels) & (row >= 0) & (row < height)
        known = (pixel < pixels)[None, :] & (out < c_out)[:, None]
        of_output = tl.load(gradient + pixel[None, :] * c_out + out[:, None], mask=known, other=0.0)
        at = x + (pixel + (tap_row - 1) * width)[:, None] * c_in + channel[None, :]
        before = tl.load(at - c_in, mask=(inside & (column > 0))[:, None] & there, other=0.0)
        same = tl.load(at, mask=inside[:, None] & there, other=0.0)
        after = tl.load(at + c_in, mask=(inside & (column < width - 1))[:, None] & there, other=0.0)
        left = tl.dot(of_output, before, left)
        middle = tl.dot(of_output, same, middle)
        right = tl.dot(of_output, after, right)
    place = sums + ((part * c_out + out[:, None]) * 9 + tap_row * 3) * c_in + channel[None, :]
    stored = (out < c_out)[:, None] & there
    tl.store(place, left, mask=stored)
    tl.store(place + c_in, middle, mask=stored)
    tl.store(place + 2 * c_in, right, mask=stored)


@triton.jit
def add_parts(
    sums,  # (parts, size)
    total,  # (size,)
    parts,
    size,
    rows: tl.constexpr,
    tile: tl.constexpr,
):
    """The sum over the parts, so many rows of them at a time."""
    at = tl.program_id(0) * tile + tl.arange(0, tile)
    found = tl.zeros((tile,), tl.float32)
    for first in range(0, parts, rows):
        part = first + tl.arange(0, rows)
        mask = (part < parts)[:, None] & (at < size)[None, :]
        found += tl.sum(tl.load(sums + part[:, None] * size + at[None, :], mask=mask, other=0.0), 0)
    tl.store(total + at, found, mask=at < size)


@triton.jit
def rectify_both(
    x,  # (pixels, channels)
    y,  # (pixels, 2 channels)
    pixels,
    channels: tl.constexpr,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """CReLU. What is not a number stays so."""
    pixel = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    channel = tl.arange(0, tile_channels)[None, :]
    known = (pixel < pixels) & (channel < channels)
    values = tl.load(x + pixel * channels + channel, mask=known, other=0.0)
    at = y + pixel * (2 * channels) + channel
    tl.store(at, tl.where(values <= 0, 0.0, values).to(values.dtype), mask=known)
    tl.store(at + channels, tl.where(values >= 0, 0.0, -values).to(values.dtype), mask=known)


@triton.jit
def rectify_both_gradient(
    y,  # (pixels, 2 channels)
    gradient,  # of y
    result,  # the gradient of x, (pixels, channels)
    pixels,
    channels: tl.constexpr,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """The gradient of CReLU, from its output."""
    pixel = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    channel = tl.arange(0, tile_channels)[None, :]
    known = (pixel < pixels) & (channel < channels)
    at = pixel * (2 * channels) + channel
    positive = tl.where(tl.load(y + at, mask=known, other=0.0) <= 0, 0.0, tl.load(gradient + at, mask=known, other=0.0))
    at += channels
    negative = tl.where(tl.load(y + at, mask=known, other=0.0) <= 0, 0.0, tl.load(gradient + at, mask=known, other=0.0))
    tl.store(result + pixel * channels + channel, (positive - negative).to(result.dtype.element_ty), mask=known)

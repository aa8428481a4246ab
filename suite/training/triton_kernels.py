"""Kernels in Triton for training: 3x3 convolutions of few channels, and CReLU.

All tensors are channels_last, so that the channels of one pixel lie together. A pixel
has a number, counted over the images of the batch, their rows and their columns. The
pixel one row below has a number that is higher by the width. Each program works on a
tile of pixels. Masks leave out pixels behind the last one and channels that are not
there. Products are summed in float32, and always in the same order.

Equal networks side by side (see `grouped`) are groups of a pixel's channels. A program
works for one group, and the channel counts of a kernel are those of one.
"""

import triton
import triton.language as tl


@triton.jit
def convolve(
    x,  # (pixels of x, groups, c_in)
    weight,  # (groups, c_out, 9, c_in), or (groups, c_in, 9, c_out) if `transposed`
    bias,  # (groups, c_out) or None
    y,  # (pixels, groups, c_out)
    statistics,  # (tiles, 2, groups, c_out), float32, as `triton_norm.part_statistics` leaves them, of y; or None
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    c_in: tl.constexpr,
    c_out: tl.constexpr,
    groups: tl.constexpr,
    stride: tl.constexpr,
    x_height: tl.constexpr,
    x_width: tl.constexpr,
    transposed: tl.constexpr,
    tile: tl.constexpr,
    tile_in: tl.constexpr,
    tile_out: tl.constexpr,
):
    """A convolution, or with `transposed` the one that takes an output's gradient to
    the input's gradient.

    The stride is that of the convolution: `transposed` goes from the smaller image to
    the larger one.
    """
    step: tl.constexpr = 1 if transposed else stride
    # Programs of one tile and all groups run at about the same time, since their channels share lines of the cache.
    group = tl.program_id(0) % groups
    x += group * c_in
    y += group * c_out
    weight += group * 9 * c_in * c_out
    if bias is not None:
        bias += group * c_out
    pixel = tl.program_id(0) // groups * tile + tl.arange(0, tile)
    column, row, image = pixel % width, pixel // width % height, pixel // (width * height)
    out = tl.program_id(1) * tile_out + tl.arange(0, tile_out)
    total = tl.zeros((tile, tile_out), tl.float32)
    # One loop over all taps and channels, since Triton reads ahead only within a loop.
    for start in range(0, 9 * c_in, tile_in):
        term = start + tl.arange(0, tile_in)
        channel = term % c_in
        if c_in % tile_in == 0:  # then all terms are of one tap
            tap = tl.full((1, 1), start // c_in, tl.int32)
        else:
            tap = (term // c_in)[None, :]
        down, right = tap // 3 - 1, tap % 3 - 1
        source_row, source_column = row[:, None] * step + down, column[:, None] * step + right
        inside = (pixel < pixels)[:, None] & (source_row >= 0) & (source_column >= 0)
        if transposed and stride > 1:  # most outputs have no share in this pixel
            inside = inside & (source_row % stride == 0) & (source_column % stride == 0)
            source_row, source_column = source_row // stride, source_column // stride
        inside = inside & (source_row < x_height) & (source_column < x_width)
        if 9 * c_in % tile_in != 0:
            inside = inside & (term < 9 * c_in)[None, :]
        if stride == 1:
            source = pixel[:, None] + down * width + right
        else:
            source = (image[:, None] * x_height + source_row) * x_width + source_column
        values = tl.load(x + source * (groups * c_in) + channel[None, :], mask=inside, other=0.0)
        if transposed:  # with the filter turned by half a turn
            at = (channel * 9 + 8 - term // c_in)[:, None] * c_out + out[None, :]
        else:
            at = out[None, :] * (9 * c_in) + term[:, None]
        there = (term < 9 * c_in)[:, None] & (out < c_out)[None, :]
        total = tl.dot(values, tl.load(weight + at, mask=there, other=0.0), total)
    if bias is not None:
        total += tl.load(bias + out, mask=out < c_out, other=0.0).to(tl.float32)[None, :]
    known = (pixel < pixels)[:, None] & (out < c_out)[None, :]
    rounded = total.to(y.dtype.element_ty)
    tl.store(y + pixel[:, None] * (groups * c_out) + out[None, :], rounded, mask=known)
    if statistics is not None:  # of what is stored, which is what will be normalised
        first = tl.program_id(0) // groups * tile
        values = tl.where(known, rounded.to(tl.float32), 0.0)
        mean = tl.sum(values, 0) / tl.minimum(pixels - first, tile).to(tl.float32)
        apart = tl.where(known, values - mean[None, :], 0.0)
        place = statistics + (tl.program_id(0) // groups * 2 * groups + group) * c_out + out
        tl.store(place, mean, mask=out < c_out)
        tl.store(place + groups * c_out, tl.sum(apart * apart, 0), mask=out < c_out)


@triton.jit
def weight_gradient(
    x,  # (pixels of x, groups, c_in)
    gradient,  # of the output, (pixels, groups, c_out)
    sums,  # (parts, groups, c_out, 9, c_in), float32
    pixels,
    height: tl.constexpr,
    width: tl.constexpr,
    c_in: tl.constexpr,
    c_out: tl.constexpr,
    groups: tl.constexpr,
    stride: tl.constexpr,
    x_height: tl.constexpr,
    x_width: tl.constexpr,
    tiles,
    tile: tl.constexpr,
    tile_in: tl.constexpr,
    tile_out: tl.constexpr,
):
    """The weight's gradient, summed over each part of the pixels, which is so many
    tiles.

    A program sums one row of the filter for a block of its channels, whose three taps
    share the output's gradient.
    """
    group, part = tl.program_id(0) % groups, tl.program_id(0) // groups
    tap_row, block = tl.program_id(1), tl.program_id(2)
    x += group * c_in
    gradient += group * c_out
    blocks_in: tl.constexpr = (c_in + tile_in - 1) // tile_in
    channel = block % blocks_in * tile_in + tl.arange(0, tile_in)
    out = block // blocks_in * tile_out + tl.arange(0, tile_out)
    there = (channel < c_in)[None, :]
    left = tl.zeros((tile_out, tile_in), tl.float32)
    middle = tl.zeros((tile_out, tile_in), tl.float32)
    right = tl.zeros((tile_out, tile_in), tl.float32)
    for number in range(tiles):
        pixel = (part * tiles + number) * tile + tl.arange(0, tile)
        image, column = pixel // (width * height), pixel % width * stride
        row = pixel // width % height * stride + tap_row - 1
        inside = (pixel < pixels) & (row >= 0) & (row < x_height)
        known = (pixel < pixels)[None, :] & (out < c_out)[:, None]
        of_output = tl.load(gradient + pixel[None, :] * (groups * c_out) + out[:, None], mask=known, other=0.0)
        if stride == 1:
            source = pixel + (tap_row - 1) * width
        else:
            source = (image * x_height + row) * x_width + column
        at = x + source[:, None] * (groups * c_in) + channel[None, :]
        before = tl.load(at - groups * c_in, mask=(inside & (column > 0))[:, None] & there, other=0.0)
        same = tl.load(at, mask=inside[:, None] & there, other=0.0)
        after = tl.load(at + groups * c_in, mask=(inside & (column < x_width - 1))[:, None] & there, other=0.0)
        left = tl.dot(of_output, before, left)
        middle = tl.dot(of_output, same, middle)
        right = tl.dot(of_output, after, right)
    place = sums + (((part * groups + group) * c_out + out[:, None]) * 9 + tap_row * 3) * c_in + channel[None, :]
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

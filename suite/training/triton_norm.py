"""Kernels in Triton for training: BatchNorm with the residual addition and the
activation that follow it.

Tensors are channels_last and pixels are counted as in `triton_kernels`. Programs sum
over parts of the pixels for a block of channels, and each sum has a place of its own,
so that nothing depends on which program is first. All sums are in float32.
"""

import triton
import triton.language as tl


@triton.jit
def part_statistics(
    x,  # (pixels, channels)
    found,  # (parts, 2, channels), float32: the mean and the sum of squared deviations from it
    pixels,
    channels: tl.constexpr,
    tiles,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """Mean and squared deviations of each part of the pixels, which is so many tiles.

    Tile by tile, as Chan, Golub and LeVeque (1979) merge them: a sum of squares would
    lose a small deviation from a large mean.
    """
    part = tl.program_id(0)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    mean = tl.zeros((tile_channels,), tl.float32)
    squares = tl.zeros((tile_channels,), tl.float32)
    for number in range(tiles):
        first = (part * tiles + number) * tile
        pixel = first + tl.arange(0, tile)
        known = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        values = tl.load(x + pixel[:, None] * channels + channel[None, :], mask=known, other=0.0).to(tl.float32)
        before = (first - part * tiles * tile).to(tl.float32)  # all tiles are whole but the last ones
        count = tl.minimum(tl.maximum(pixels - first, 0), tile).to(tl.float32)
        own = tl.sum(values, 0) / tl.maximum(count, 1.0)
        apart = tl.where(known, values - own[None, :], 0.0)
        difference = own - mean
        share = count / tl.maximum(before + count, 1.0)
        squares += tl.sum(apart * apart, 0) + tl.where(count > 0, difference * difference * before * share, 0.0)
        mean += difference * share
    place = found + part * 2 * channels + channel
    tl.store(place, mean, mask=channel < channels)
    tl.store(place + channels, squares, mask=channel < channels)


@triton.jit
def merge_statistics(
    found,  # as `part_statistics` leaves it
    mean,  # (channels,), float32
    inverse,  # (channels,), float32: 1 / sqrt(variance + eps)
    running_mean,  # (channels,), float32, brought up to date
    running_var,  # the same
    batches,  # the number of batches so far, counted on
    pixels,
    parts,
    of_a_part,  # pixels of each part but the last
    momentum,
    eps,
    channels: tl.constexpr,
    rows: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """The statistics of a batch from those of its parts, merged as in
    `part_statistics`, so many rows of them at a time."""
    channel = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    there = channel < channels
    center = tl.zeros((tile_channels,), tl.float32)
    squares = tl.zeros((tile_channels,), tl.float32)
    for first in range(0, parts, rows):
        part = first + tl.arange(0, rows)
        mask = (part < parts)[:, None] & there[None, :]
        count = tl.where(part < parts, tl.minimum(pixels - part * of_a_part, of_a_part), 0).to(tl.float32)[:, None]
        at = found + part[:, None] * 2 * channels + channel[None, :]
        means = tl.load(at, mask=mask, other=0.0)
        within = tl.load(at + channels, mask=mask, other=0.0)
        before = (first * of_a_part).to(tl.float32)
        new = tl.minimum(pixels - first * of_a_part, rows * of_a_part).to(tl.float32)
        own = tl.sum(count * means, 0) / new
        apart = means - own[None, :]
        difference, share = own - center, new / (before + new)
        squares += tl.sum(within + count * apart * apart, 0) + difference * difference * before * share
        center += difference * share
    tl.store(mean + channel, center, mask=there)
    tl.store(inverse + channel, 1.0 / tl.sqrt(squares / pixels + eps), mask=there)
    before = tl.load(running_mean + channel, mask=there, other=0.0)
    tl.store(running_mean + channel, (1.0 - momentum) * before + momentum * center, mask=there)
    before = tl.load(running_var + channel, mask=there, other=0.0)
    tl.store(running_var + channel, (1.0 - momentum) * before + momentum * (squares / (pixels - 1)), mask=there)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _per_channel(values, channel, channels: tl.constexpr):
    return tl.load(values + channel, mask=channel < channels, other=0.0)[None, :]


@triton.jit
def normalize(
    x,  # (pixels, channels)
    mean,
    inverse,
    weight,
    bias,
    residual,  # (pixels, channels), which is added, or None
    y,  # (pixels, channels), or (pixels, 2 channels) for CReLU
    pixels,
    channels: tl.constexpr,
    activation: tl.constexpr,  # "none", "relu" or "crelu"
    half: tl.constexpr,  # channels that CReLU takes together: their positive half, then their negative half
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """Scale, shift, addition and activation. What is not a number stays so."""
    pixel = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    scale = _per_channel(inverse, channel, channels) * _per_channel(weight, channel, channels)
    center, shift = _per_channel(mean, channel, channels), _per_channel(bias, channel, channels)
    known = (pixel < pixels) & (channel < channels)[None, :]
    at = pixel * channels + channel[None, :]
    values = (tl.load(x + at, mask=known, other=0.0).to(tl.float32) - center) * scale + shift
    if residual is not None:
        values += tl.load(residual + at, mask=known, other=0.0).to(tl.float32)
    if activation == "crelu":
        at += pixel * channels + (channel // half * half)[None, :]
        negative = tl.where(values >= 0, 0.0, -values)
        tl.store(y + at + half, negative.to(y.dtype.element_ty), mask=known)
    if activation != "none":
        values = tl.where(values <= 0, 0.0, values)
    tl.store(y + at, values.to(y.dtype.element_ty), mask=known)


@triton.jit
def _gradient_before_activation(
    values,  # of x, float32
    y,  # the output if a residual was added, else None: then x alone says what the activation has let through
    gradient,
    center,
    scale,
    shift,
    pixel,
    channel,
    known,
    channels: tl.constexpr,
    activation: tl.constexpr,
    half: tl.constexpr,
):
    at = pixel * channels + channel
    if activation == "none":
        found = tl.load(gradient + at, mask=known, other=0.0).to(tl.float32)
    else:
        if y is None:
            rectified = (values - center) * scale + shift  # as in `normalize`
        else:
            rectified = tl.load(y + at, mask=known, other=0.0).to(tl.float32)
        if activation == "crelu":
            at += pixel * channels + channel // half * half
        found = tl.where(rectified <= 0, 0.0, tl.load(gradient + at, mask=known, other=0.0).to(tl.float32))
        if activation == "crelu":
            negative = tl.load(gradient + at + half, mask=known, other=0.0).to(tl.float32)
            found -= tl.where(rectified >= 0, 0.0, negative)
    return tl.where(known, found, 0.0)


@triton.jit
def part_gradients(
    x,  # (pixels, channels)
    y,  # as in `_gradient_before_activation`
    gradient,  # of the output
    mean,
    inverse,
    weight,
    bias,
    sums,  # (parts, 2, channels), float32: the gradients of bias and weight
    pixels,
    channels: tl.constexpr,
    activation: tl.constexpr,
    half: tl.constexpr,
    tiles,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """The gradients of bias and weight, summed over each part of the pixels."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    center, factor = _per_channel(mean, channel, channels), _per_channel(inverse, channel, channels)
    scale, shift = factor * _per_channel(weight, channel, channels), _per_channel(bias, channel, channels)
    of_bias = tl.zeros((tile_channels,), tl.float32)
    of_weight = tl.zeros((tile_channels,), tl.float32)
    for number in range(tiles):
        pixel = ((part * tiles + number) * tile + tl.arange(0, tile))[:, None]
        known = (pixel < pixels) & (channel < channels)[None, :]
        values = tl.load(x + pixel * channels + channel[None, :], mask=known, other=0.0).to(tl.float32)
        found = _gradient_before_activation(
            values, y, gradient, center, scale, shift, pixel, channel[None, :], known, channels, activation, half
        )
        of_bias += tl.sum(found, 0)
        of_weight += tl.sum(found * ((values - center) * factor), 0)
    place = sums + part * 2 * channels + channel
    tl.store(place, of_bias, mask=channel < channels)
    tl.store(place + channels, of_weight, mask=channel < channels)


@triton.jit
def input_gradient(
    x,  # (pixels, channels)
    y,  # as in `_gradient_before_activation`
    gradient,  # of the output
    mean,
    inverse,
    weight,
    bias,
    sums,  # (2, channels), float32: the gradients of bias and weight
    result,  # the gradient of x, (pixels, channels)
    of_residual,  # the gradient of what was added, (pixels, channels), or None
    pixels,
    channels: tl.constexpr,
    activation: tl.constexpr,
    half: tl.constexpr,
    tile: tl.constexpr,
    tile_channels: tl.constexpr,
):
    """The gradients of x and of the residual."""
    pixel = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    center, factor = _per_channel(mean, channel, channels), _per_channel(inverse, channel, channels)
    scale, shift = factor * _per_channel(weight, channel, channels), _per_channel(bias, channel, channels)
    of_bias, of_weight = _per_channel(sums, channel, channels), _per_channel(sums + channels, channel, channels)
    known = (pixel < pixels) & (channel < channels)[None, :]
    at = pixel * channels + channel[None, :]
    values = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
    found = _gradient_before_activation(
        values, y, gradient, center, scale, shift, pixel, channel[None, :], known, channels, activation, half
    )
    if of_residual is not None:
        tl.store(of_residual + at, found.to(of_residual.dtype.element_ty), mask=known)
    found = scale * (found - (of_bias + (values - center) * factor * of_weight) / pixels)
    tl.store(result + at, found.to(result.dtype.element_ty), mask=known)

"""Kernels in Triton for training: NormProp's filters of all layers, normalised in one
launch each way.

Filters lie one after the other. A program works on one of them. All sums are in
float32.
"""

import triton
import triton.language as tl


@triton.jit
def normalize_filters(
    weights,  # (values,), float32
    gains,  # (filters,), float32
    starts,  # (filters + 1,), int32: where each filter begins, and where the last one ends
    scaled,  # (values,), float32: gain * weight / norm
    cast,  # the same in the type that convolutions compute in
    norms,  # (filters,), float32
    tile: tl.constexpr,  # at least as many values as the largest filter has
):
    """Bring each filter to the norm that is its gain."""
    number = tl.program_id(0)
    first = tl.load(starts + number)
    at = first + tl.arange(0, tile)
    there = at < tl.load(starts + number + 1)
    values = tl.load(weights + at, mask=there, other=0.0)
    norm = tl.sqrt(tl.sum(values * values, 0))
    values *= tl.load(gains + number) / norm
    tl.store(scaled + at, values, mask=there)
    tl.store(cast + at, values.to(cast.dtype.element_ty), mask=there)
    tl.store(norms + number, norm)


@triton.jit
def filter_gradients(
    weights,  # as in `normalize_filters`
    gains,
    starts,
    norms,
    gradient,  # of the scaled filters, (values,), float32
    of_weights,  # (values,), float32
    of_gains,  # (filters,), float32
    tile: tl.constexpr,
):
    """The gradients of weights and gains."""
    number = tl.program_id(0)
    first = tl.load(starts + number)
    at = first + tl.arange(0, tile)
    there = at < tl.load(starts + number + 1)
    norm = tl.load(norms + number)
    unit = tl.load(weights + at, mask=there, other=0.0) / norm
    found = tl.load(gradient + at, mask=there, other=0.0)
    along = tl.sum(unit * found, 0)
    tl.store(of_weights + at, tl.load(gains + number) / norm * (found - along * unit), mask=there)
    tl.store(of_gains + number, along)

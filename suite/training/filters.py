"""NormProp's filters of all layers of a network, normalised in one launch each way.

One by one a deep network needs several launches for each of its layers, which take a
GPU longer than their arithmetic. The kernels are in `suite.training.triton_filters`,
which is imported when one of them runs.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.layers import NormPropConv2d
from suite.training.operators import next_power, on_device_of, relative_difference


class FlatFilters:
    """The filters of convolutions, one after the other in memory.

    Args:
        convolutions: whose weights and gains are used as they are when this is
            called.
    """

    def __init__(self, convolutions: Sequence[NormPropConv2d]) -> None:
        self.convolutions = convolutions
        self.shapes = [convolution.weight.shape for convolution in convolutions]
        filters = [shape[0] for shape in self.shapes]
        sizes = [shape[1:].numel() for shape in self.shapes]
        each = [size for count, size in zip(filters, sizes, strict=True) for _ in range(count)]
        self.starts = torch.tensor([0, *accumulate(each)], dtype=torch.int32)
        self.filters, self.values, self.tile = len(each), sum(each), next_power(max(each))

    def __call__(self, precision: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Of each layer the filters that are convolved with, in float32 with their
        gradient, and cast to `precision`; both (out, in, kh, kw) in channels_last."""
        weights = [convolution.weight for convolution in self.convolutions]
        gains = [convolution.gain for convolution in self.convolutions]
        found = _Normalize.apply(self, precision, *weights, *gains)
        return list(zip(found[: len(weights)], found[len(weights) :], strict=True))

    def starts_on(self, device: torch.device) -> Tensor:
        """Where filters begin. It is on the device from the first call on, before a
        CUDA graph is captured."""
        if self.starts.device != device:
            self.starts = self.starts.to(device)
        return self.starts

    def layers(self, values: Tensor) -> list[Tensor]:
        """Views (out, in, kh, kw), channels_last, of each layer's part of the values of
        all."""
        parts = torch.split(values, [shape.numel() for shape in self.shapes])
        return [
            part.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def gains_of(self, values: Tensor) -> list[Tensor]:
        """Views (out,) of each layer's part of one value a filter."""
        return list(torch.split(values, [shape[0] for shape in self.shapes]))


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: FlatFilters, precision: torch.dtype, *given: Tensor) -> tuple[Tensor, ...]:
        from suite.training import triton_filters

        device = given[0].device
        weights, scaled = torch.empty((2, flat.values), device=device)
        gains, norms = torch.empty((2, flat.filters), device=device)
        cast = torch.empty(flat.values, dtype=precision, device=device)
        starts = flat.starts_on(device)
        torch._foreach_copy_([*flat.layers(weights), *flat.gains_of(gains)], list(given))
        with on_device_of(weights):
            triton_filters.normalize_filters[(flat.filters,)](
                weights, gains, starts, scaled, cast, norms, flat.tile, enable_fp_fusion=True
            )
        ctx.flat = flat
        ctx.save_for_backward(weights, gains, starts, norms)
        casts = flat.layers(cast)
        ctx.mark_non_differentiable(*casts)
        ctx.set_materialize_grads(False)
        return (*flat.layers(scaled), *casts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from suite.training import triton_filters

        flat: FlatFilters = ctx.flat
        weights, gains, starts, norms = ctx.saved_tensors
        known = gradients[: len(flat.shapes)]
        gradient = (torch.empty_like if all(each is not None for each in known) else torch.zeros_like)(weights)
        pairs = [(place, each) for place, each in zip(flat.layers(gradient), known, strict=True) if each is not None]
        torch._foreach_copy_([place for place, _ in pairs], [each for _, each in pairs])
        of_weights, of_gains = torch.empty_like(weights), torch.empty_like(gains)
        with on_device_of(weights):
            triton_filters.filter_gradients[(flat.filters,)](
                weights, gains, starts, norms, gradient, of_weights, of_gains, flat.tile, enable_fp_fusion=True
            )
        found = [*flat.layers(of_weights), *flat.gains_of(of_gains)]
        needed = ctx.needs_input_grad[2:]
        return (None, None, *(each if wanted else None for each, wanted in zip(found, needed, strict=True)))


def differences(device: torch.device, precision: torch.dtype) -> dict[str, float]:
    """How far our kernels, which also cast to a precision, are from the library, in
    parts of the largest value."""
    draws = torch.Generator().manual_seed(0)
    layers = [NormPropConv2d(channels, 12, 3).to(device) for channels in (16, 3)]
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.gain)]
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=draws))
    gradients = [torch.randn(layer.weight.shape, generator=draws).to(device) for layer in layers]
    made, theirs = FlatFilters(layers)(precision), [layer.normalized_weight() for layer in layers]
    found = torch.autograd.grad([scaled for scaled, _ in made], parameters, gradients)
    expected = torch.autograd.grad(theirs, parameters, gradients)
    pairs = {
        "filters": ([each for both in made for each in both], [each for each in theirs for _ in range(2)]),
        "gradients of filters": (found[::2], expected[::2]),
        "gradients of gains": (found[1::2], expected[1::2]),
    }
    return {
        f"NormProp's {name} {number}": relative_difference(a, b)
        for name, both in pairs.items()
        for number, (a, b) in enumerate(zip(*both, strict=True), start=1)
    }

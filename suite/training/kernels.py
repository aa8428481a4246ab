"""Layers that compute by kernels of our own where cuDNN is slow: convolutions of few
channels in bfloat16 on a GPU.

`use_kernels` puts them into a network. What they call is in
`suite.training.operators`.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import CReLU, NormPropConv2d
from suite.errors import describe_error
from suite.training import filters
from suite.training.filters import FlatFilters
from suite.training.grouped import GroupedCReLU
from suite.training.operators import (
    MOST_OUT,
    Statistics,
    conv3x3,
    conv3x3_with_statistics,
    crelu,
    relative_difference,
)

# Channels of a convolution that our kernels take. Those of more have not been compared with cuDNN's on any GPU.
LEAST, MOST_IN = 12, 192
# Of several networks side by side, our kernels take the stem's too. Libraries are slow at convolutions of many groups.
LEAST_GROUPED = 3
# Kernels count values of a tensor in 32 bits, and what a layer gives has up to 16 values for each 3 of its input.
MOST_VALUES = 2**31 // 6
# How far the kernels may be from the library, in parts of the largest value: bfloat16 rounds to 1/256.
TOLERANCE = 0.02


def precision_for(x: Tensor) -> torch.dtype | None:
    """The type in which our kernels are to compute on this input; None if they are not
    to.

    They are for what runs under bfloat16 autocast on a GPU: training, and the quick
    tests between epochs.
    """
    if not x.is_cuda or x.numel() >= MOST_VALUES or not torch.is_autocast_enabled("cuda"):
        return None
    return torch.bfloat16 if torch.get_autocast_dtype("cuda") == torch.bfloat16 else None


class _Convolution(nn.Conv2d):
    """What a convolution of any class does once its filters are known, by our kernels
    where they are to compute.

    Attributes:
        cast: its filters in bfloat16 while the network computes, where all have been
            cast in one launch.
    """

    cast: Tensor | None = None

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        precision = precision_for(x)
        y: Tensor
        if precision is None:
            y = super()._conv_forward(x, weight, bias)
        else:
            x = x.to(precision).contiguous(memory_format=torch.channels_last)
            y = conv3x3(x, weight, self._cast(weight, precision), bias, self.stride[0])
        return y

    def _cast(self, weight: Tensor, precision: torch.dtype) -> Tensor:
        if not torch.compiler.is_compiling() and self.cast is not None:
            return self.cast
        return weight.detach().to(precision).contiguous(memory_format=torch.channels_last)

    def with_statistics(self, x: Tensor, precision: torch.dtype) -> tuple[Tensor, Statistics]:
        x = x.to(precision).contiguous(memory_format=torch.channels_last)
        return conv3x3_with_statistics(x, self.weight, self._cast(self.weight, precision), self.stride[0])


def convolve_with_statistics(convolution: nn.Module, x: Tensor) -> tuple[Tensor, Statistics | None]:
    """The convolution of x, and the statistics of the result where a kernel of ours
    finds them by the way."""
    precision = precision_for(x)
    if type(convolution) is not _Convolution or convolution.bias is not None or precision is None:
        return convolution(x), None
    return convolution.with_statistics(x, precision)


class _PreparedNormProp(NormPropConv2d):
    """NormProp's convolution, by the library or by our kernels.

    Attributes:
        normalized: its filters while the network computes, where those of all layers
            were normalised in one launch.
    """

    normalized: Tensor | None = None

    def normalized_weight(self) -> Tensor:
        if not torch.compiler.is_compiling() and self.normalized is not None:
            return self.normalized
        return super().normalized_weight()


class _NormPropConvolution(_Convolution, _PreparedNormProp):
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


def is_supported(module: nn.Module) -> bool:
    """Whether our kernels can stand in for this layer."""
    if type(module) not in (nn.Conv2d, NormPropConv2d):
        return False
    assert isinstance(module, nn.Conv2d)
    groups = module.groups
    least, strides = (LEAST, [(1, 1)]) if groups == 1 else (LEAST_GROUPED, [(1, 1), (2, 2)])
    few = least <= module.in_channels // groups <= MOST_IN and least <= module.out_channels // groups <= MOST_OUT
    geometry = module.kernel_size, module.padding, module.dilation, module.padding_mode
    return few and module.stride in strides and geometry == ((3, 3), (1, 1), (1, 1), "zeros")


def use_kernels(model: nn.Module, compiled: bool = False) -> int:
    """Have a network's convolutions and CReLUs use our kernels; returns how many
    convolutions do.

    Weights, their names and what else the network does stay as they are. Where
    `precision_for` says so, a layer still computes as it did.

    Args:
        model: the network, on its device.
        compiled: whether torch.compile is used in training. It then casts and
            normalises filters itself, block by block.
    """
    count = 0
    for module in model.modules():
        if type(module) in (CReLU, GroupedCReLU):
            module.__class__ = _CReLU if type(module) is CReLU else _GroupedCReLU
        elif is_supported(module):
            module.__class__ = _Convolution if type(module) is nn.Conv2d else _NormPropConvolution
            count += 1
        elif type(module) is NormPropConv2d:  # by the library, with filters that are normalised with the others'
            module.__class__ = _PreparedNormProp
    if count:
        preparation = _FilterPreparation(model, compiled)
        model.register_forward_pre_hook(preparation.prepare)
        model.register_forward_hook(preparation.forget, always_call=True)
    return count


class _FilterPreparation:
    """Casts the filters of a network's convolutions in one launch before each forward
    pass, normalises those of NormProp in another, and drops both after it. A block that
    is called by itself casts and normalises its own."""

    def __init__(self, model: nn.Module, compiled: bool) -> None:
        self._plain = [module for module in model.modules() if type(module) is _Convolution]
        self._normprop = [module for module in model.modules() if isinstance(module, _PreparedNormProp)]
        self._flat = FlatFilters(self._normprop) if self._normprop else None
        self._compiled = compiled

    def prepare(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        precision = precision_for(inputs[0])
        if precision is None or torch.compiler.is_compiling() or (self._compiled and model.training):
            return
        weights = [convolution.weight.detach() for convolution in self._plain]
        casts = [torch.empty_like(weight, dtype=precision, memory_format=torch.channels_last) for weight in weights]
        if weights:
            torch._foreach_copy_(casts, weights)
        for convolution, cast in zip(self._plain, casts, strict=True):
            convolution.cast = cast
        if self._flat is None:
            return
        for layer, (scaled, cast) in zip(self._normprop, self._flat(precision), strict=True):
            layer.normalized = scaled
            if isinstance(layer, _Convolution):
                layer.cast = cast

    def forget(self, *_: Any) -> None:
        for convolution in self._plain:
            convolution.cast = None
        for layer in self._normprop:
            layer.normalized = None
            if isinstance(layer, _Convolution):
                layer.cast = None


@functools.cache
def why_unusable(device: torch.device) -> str | None:
    """Why our kernels cannot be used on this device, in one line; None if they can.

    They are tried: a small convolution with CReLU, NormProp's filters, and the
    gradients of both are held against the library's in float32.
    """
    return why_inaccurate(device, differences)


def why_inaccurate(
    device: torch.device, differences: Callable[[torch.device, torch.dtype], dict[str, float]]
) -> str | None:
    """Why kernels that differ by so much from the library cannot be used on a device;
    None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton"
    try:
        differing = differences(device, torch.bfloat16)
    except Exception as error:  # such as a machine without a compiler, or a GPU without bfloat16
        return describe_error(error)
    wrong = ", ".join(name for name, difference in differing.items() if not difference < TOLERANCE)
    return f"a try gave other values than the library: {wrong}" if wrong else None


def differences(device: torch.device, precision: torch.dtype) -> dict[str, float]:
    """How far our kernels in a precision are from the library in float32, in parts of
    the largest value."""
    draws = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=draws).to(device, precision).float()
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    result = filters.differences(device, precision)
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
        result |= {name + of: relative_difference(a, b) for name, a, b in zip(names, found, expected, strict=True)}
    return result

"""The parts that the paper varies: activation, normalisation and shortcut.

Everything here follows Shang, Chiu, Sohn, "Exploring Normalization in Deep Residual
Networks with Concatenated Rectified Linear Units" (AAAI 2017); section names below are
that paper's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

Init = Literal["msr", "torch", "xavier"]
INITS: tuple[Init, ...] = get_args(Init)

# Initial value of NormProp's gain, and its fixed value in NormProp3 ("Normalization Propagation in ResNets").
NORMPROP_GAIN = 1 / 1.21

# Mean and standard deviation of ReLU(x) for x ~ N(0, 1). The paper's Proposition 2 prints the mean as
# 1/(2 pi), a misprint of 1/sqrt(2 pi): its NormProp formula has the latter.
RECTIFIED_MEAN = 1 / math.sqrt(2 * math.pi)
RECTIFIED_STD = math.sqrt(1 / 2 - 1 / (2 * math.pi))


class _RectifyBoth(torch.autograd.Function):
    """CReLU in fewer passes over memory than its written-out form takes in training,
    and with less of it kept: the gradient needs the output alone, which the next
    convolution keeps anyway."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.cat((x, -x), dim=1).relu_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        positive, negative = torch.ops.aten.threshold_backward(gradient, output, 0).chunk(2, dim=1)
        return positive - negative


@torch.fx.wrap  # a leaf of torch.fx graphs, because it branches on whether a gradient is wanted
def concatenated_relu(x: Tensor) -> Tensor:
    """`cat(relu(x), relu(-x))` along the channels."""
    # TorchScript knows no custom gradients. It skips a branch unread only if its condition is this call alone.
    if not torch.jit.is_scripting():  # noqa: SIM102 - two conditions, as just said
        if torch.is_grad_enabled() and x.requires_grad:
            return _RectifyBoth.apply(x)
    return torch.cat((F.relu(x), F.relu(-x)), dim=1)


class CReLU(nn.Module):
    """Concatenated ReLU (Definition 1): (B, C, ...) -> (B, 2C, ...), `cat(relu(x),
    relu(-x))`."""

    def forward(self, x: Tensor) -> Tensor:
        return concatenated_relu(x)


@dataclass(frozen=True)
class Activation:
    """An activation by its name in a network's.

    Attributes:
        module: makes one.
        copies: how many channels it gives for each that it is given.
        after_sum: the name of the one that stands behind an addition, where channels
            may not become more.
    """

    module: Callable[[], nn.Module]
    copies: int
    after_sum: str


ACTIVATIONS = {
    "relu": Activation(nn.ReLU, 1, "relu"),
    "crelu": Activation(CReLU, 2, "relu"),
}


def last_rectifier(model: nn.Module) -> nn.Module | None:
    """The last activation of a network, which is the one before its classifier; None if
    it has none."""
    kinds = tuple({type(each.module()) for each in ACTIVATIONS.values()})
    rectifiers = [module for module in model.modules() if isinstance(module, kinds)]
    return rectifiers[-1] if rectifiers else None


class StandardizeRectified(nn.Module):
    """NormProp's constants: bring a rectified standard normal variable to mean 0 and
    variance 1."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = RECTIFIED_MEAN, RECTIFIED_STD  # TorchScript reads attributes, not globals

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@torch.fx.wrap  # a leaf of torch.fx graphs, because it branches on the tensor's type
def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


class NormPropConv2d(nn.Conv2d):
    """Convolution with normalised filters, `g * (W x) / |W| + b` (NormProp2; NormProp
    without its activation).

    `|W|` is the L2 norm of each output filter over (in, kh, kw). It takes part in the
    gradient and is computed in float32 at least, whatever the precision of the
    convolution itself.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as in
            `torch.nn.Conv2d`.
        learn_gain: whether `g` is trained (NormProp, NormProp2) or fixed at 1/1.21
            (NormProp3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        learn_gain: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=True)
        gain = torch.full((out_channels,), NORMPROP_GAIN)
        if learn_gain:
            self.gain = nn.Parameter(gain)
        else:
            self.register_buffer("gain", gain)

    def normalized_weight(self) -> Tensor:
        """The filters that are convolved with: `g * W / |W|`, shape (out, in, kh,
        kw)."""
        weight = at_least_float32(self.weight)
        norm = torch.linalg.vector_norm(weight, dim=(1, 2, 3))
        return (weight * (self.gain / norm).view(-1, 1, 1, 1)).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalized_weight(), self.bias)


class SubsampleAndPad(nn.Module):
    """The parameter-free type-A shortcut: keep every `stride`-th position, append zero
    channels last.

    (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stride = stride
        self.extra = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def activation(act: str, standardize: bool = False) -> nn.Module:
    """An activation of `ACTIVATIONS`, followed by NormProp's constants when
    `standardize` is set."""
    rectifier = ACTIVATIONS[act].module()
    return nn.Sequential(rectifier, StandardizeRectified()) if standardize else rectifier


@dataclass(frozen=True)
class Normalization:
    """A normalisation by its name in a network's.

    Attributes:
        layers: makes a convolution and what normalises its output, an identity where
            the convolution does; its arguments are those of `torch.nn.Conv2d` from
            `in_channels` to `padding`.
        init: initial weights where none are asked for (see `initialize`).
        batch_norm_between_stages: whether the blocks that halve the image have a
            BatchNorm of their own (NormProp's footnote 2).
        constants: whether rectifiers are followed by NormProp's constants.
    """

    layers: Callable[[int, int, int, int, int], tuple[nn.Conv2d, nn.Module]]
    init: Init
    batch_norm_between_stages: bool = False
    constants: bool = False


def _batch_norm(in_chs: int, out_chs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Conv2d, nn.Module]:
    return nn.Conv2d(in_chs, out_chs, kernel, stride, padding, bias=False), nn.BatchNorm2d(out_chs)


def _plain(in_chs: int, out_chs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Conv2d, nn.Module]:
    return nn.Conv2d(in_chs, out_chs, kernel, stride, padding), nn.Identity()


def _no_bias(in_chs: int, out_chs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Conv2d, nn.Module]:
    return nn.Conv2d(in_chs, out_chs, kernel, stride, padding, bias=False), nn.Identity()


def _norm_prop(in_chs: int, out_chs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Conv2d, nn.Module]:
    return NormPropConv2d(in_chs, out_chs, kernel, stride, padding), nn.Identity()


def _norm_prop_3(in_chs: int, out_chs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Conv2d, nn.Module]:
    return NormPropConv2d(in_chs, out_chs, kernel, stride, padding, learn_gain=False), nn.Identity()


NORMALIZATIONS = {
    "bn": Normalization(_batch_norm, "msr"),
    "plain": Normalization(_plain, "torch"),
    "nobias": Normalization(_no_bias, "torch"),
    "np": Normalization(_norm_prop, "xavier", batch_norm_between_stages=True, constants=True),
    "np2": Normalization(_norm_prop, "xavier", batch_norm_between_stages=True),
    "np3": Normalization(_norm_prop_3, "xavier", batch_norm_between_stages=True),
}


def conv_norm(
    norm: str, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.Module]:
    """A "same"-padded convolution and what normalises its output (an identity where the
    convolution does)."""
    return NORMALIZATIONS[norm].layers(in_channels, out_channels, kernel_size, stride, kernel_size // 2)


def shortcut(
    norm: str, kind: Literal["A", "B"], in_channels: int, out_channels: int, stride: int, batch_norm: bool = False
) -> nn.Module:
    """The identity path of a block: type A (CIFAR) or type B (ImageNet) where the
    channel count changes.

    Args:
        norm: of the network; a type-B shortcut has its normalisation, without
            activation.
        kind: "A" subsamples and appends zero channels, "B" is a 1x1 convolution.
        in_channels, out_channels, stride: of the block.
        batch_norm: have BatchNorm after the shortcut's own operation instead of the
            network's normalisation.
    """
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if kind == "A":
        subsample = SubsampleAndPad(in_channels, out_channels, stride)
        return nn.Sequential(subsample, nn.BatchNorm2d(out_channels)) if batch_norm else subsample
    return nn.Sequential(*conv_norm("bn" if batch_norm else norm, in_channels, out_channels, 1, stride))


@torch.no_grad()
def initialize(module: nn.Module, init: Init, in_block: bool = True) -> None:
    """Set the initial weights of one layer; biases become 0, BatchNorm's scale 1,
    NormProp's gain 1/1.21.

    With `fan_in = in * k * k` and `fan_out = out * k * k`:

    | init | convolutions in blocks | stem | linear |
    |---|---|---|---|
    | "msr" | N(0, sqrt(2 / fan_out)) | the same | U(+-1/sqrt(fan_in)) |
    | "xavier" | U(+-sqrt(6 / (fan_in + fan_out))) | the same | U(+-1/sqrt(fan_in)) |
    | "torch" | U(+-1/sqrt(fan_in)) | U(+-sqrt(6 / (fan_in + fan_out))) | as the stem |

    "msr" is fb.resnet.torch's ConvInit with Torch7's default for the linear layer.
    "torch" is what a Torch7 script of that time makes of "Xavier initialization": it
    reaches the stem and the linear layer (Glorot and Bengio, 2010), and leaves the
    convolutions inside the blocks at Torch7's default, which is PyTorch's too
    (docs/interpretations.md).

    Args:
        module: the layer; one without weights is left as it is.
        init: which row of this table.
        in_block: whether the layer is part of a residual block, its shortcut
            included.
    """
    if isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return
    convolution = isinstance(module, nn.Conv2d)
    if init == "msr" and convolution:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif (init == "xavier" and convolution) or (init == "torch" and not in_block):
        nn.init.xavier_uniform_(module.weight)
    else:
        bound = 1 / math.sqrt(module.weight[0].numel())
        nn.init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, NormPropConv2d):
        module.gain.fill_(NORMPROP_GAIN)

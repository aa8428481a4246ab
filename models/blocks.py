"""The residual blocks of the paper, and what differs between the readings of its
normalisation."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from .layers import ACTIVATIONS, NORMALIZATIONS, activation, conv_norm, shortcut

NormPropConstants = Literal["branch", "direct", "all"]
NormPropBatchNorm = Literal["trunk", "trunk_input", "shortcut"]
NORMPROP_CONSTANTS: tuple[NormPropConstants, ...] = get_args(NormPropConstants)
NORMPROP_BATCH_NORMS: tuple[NormPropBatchNorm, ...] = get_args(NormPropBatchNorm)

# Where rectifiers stand, and which of them carry NormProp's constants in each reading: behind the stem, at the head of
# a block (of a `PreActBasicBlock` alone), inside its branch behind a convolution, and behind a sum.
Place = Literal["stem", "head", "inside", "sum"]
_STANDARDIZED: dict[NormPropConstants, tuple[Place, ...]] = {
    "branch": ("head", "inside"),
    "direct": ("stem", "inside"),
    "all": ("stem", "head", "inside", "sum"),
}


@dataclass(frozen=True)
class Scheme:
    """What all blocks of a network share; see `ResNet` for the values."""

    act: str
    norm: str
    constants: NormPropConstants
    batch_norm: NormPropBatchNorm
    shortcut: Literal["A", "B"]

    @property
    def copies(self) -> int:
        """How many channels the activation gives for each that it is given."""
        return ACTIVATIONS[self.act].copies

    def rectifier(self, place: Place, keep_channels: bool = False) -> nn.Module:
        """The activation, or the one that gives as many channels as it is given, with
        NormProp's constants if the network has them in this place."""
        act = ACTIVATIONS[self.act].after_sum if keep_channels else self.act
        return activation(act, NORMALIZATIONS[self.norm].constants and place in _STANDARDIZED[self.constants])

    def identity_path(self, in_chs: int, out_chs: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """What normalises the input of a block, its shortcut, and what normalises its
        sum."""
        batch_norm = self.batch_norm if NORMALIZATIONS[self.norm].batch_norm_between_stages and stride > 1 else None
        return (
            nn.BatchNorm2d(in_chs) if batch_norm == "trunk_input" else nn.Identity(),
            shortcut(self.norm, self.shortcut, in_chs, out_chs, stride, batch_norm == "shortcut"),
            nn.BatchNorm2d(out_chs) if batch_norm == "trunk" else nn.Identity(),
        )


class BasicBlock(nn.Module):
    """3x3 - norm - act - 3x3 - norm - add - ReLU; with CReLU this is the "inner"
    placement."""

    expansion = 1
    convolutions = 2  # of the branch

    def __init__(self, scheme: Scheme, in_chs: int, width: int, stride: int) -> None:
        super().__init__()
        norm, copies = scheme.norm, scheme.copies
        self.input_norm, identity, sum_norm = scheme.identity_path(in_chs, width, stride)
        self.conv1, self.norm1 = conv_norm(norm, in_chs, width, 3, stride)
        self.act1 = scheme.rectifier("inside")
        self.conv2, self.norm2 = conv_norm(norm, copies * width, width, 3)
        self.shortcut, self.sum_norm = identity, sum_norm
        self.act2 = scheme.rectifier("sum", keep_channels=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_norm(x)
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.act2(self.sum_norm(y + self.shortcut(x)))


class PreActBasicBlock(nn.Module):
    """CReLU - 3x3 - norm - CReLU - 3x3 - norm - add: the "both" placement, whose
    identity path carries the sum before activation, so that every 3x3 convolution sees
    a CReLU while the width of the sum stays."""

    expansion = 1
    convolutions = 2  # of the branch

    def __init__(self, scheme: Scheme, in_chs: int, width: int, stride: int) -> None:
        super().__init__()
        norm, copies = scheme.norm, scheme.copies
        self.input_norm, identity, sum_norm = scheme.identity_path(in_chs, width, stride)
        self.act1 = scheme.rectifier("head")
        self.conv1, self.norm1 = conv_norm(norm, copies * in_chs, width, 3, stride)
        self.act2 = scheme.rectifier("inside")
        self.conv2, self.norm2 = conv_norm(norm, copies * width, width, 3)
        self.shortcut, self.sum_norm = identity, sum_norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_norm(x)
        y = self.norm1(self.conv1(self.act1(x)))
        y = self.norm2(self.conv2(self.act2(y)))
        return self.sum_norm(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 - norm - act - 3x3(stride) - norm - act - 1x1 - norm - add - ReLU (Figure
    1b)."""

    expansion = 4
    convolutions = 3

    def __init__(self, scheme: Scheme, in_chs: int, width: int, stride: int) -> None:
        super().__init__()
        norm, copies = scheme.norm, scheme.copies
        self.input_norm, identity, sum_norm = scheme.identity_path(in_chs, width * self.expansion, stride)
        self.conv1, self.norm1 = conv_norm(norm, in_chs, width, 1)
        self.act1 = scheme.rectifier("inside")
        self.conv2, self.norm2 = conv_norm(norm, copies * width, width, 3, stride)
        self.act2 = scheme.rectifier("inside")
        self.conv3, self.norm3 = conv_norm(norm, copies * width, width * self.expansion, 1)
        self.shortcut, self.sum_norm = identity, sum_norm
        self.act3 = scheme.rectifier("sum", keep_channels=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_norm(x)
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return self.act3(self.sum_norm(y + self.shortcut(x)))

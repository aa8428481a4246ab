"""Models for my_table.toml: ResNet-20 with GroupNorm, and with an activation of one's own."""

from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from models import ACTIVATIONS, NORMALIZATIONS, ResNet
from models.layers import Activation, Normalization


class SquaredReLU(nn.Module):
    """The square of ReLU, bounded so that it does not explode."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, 0, 2).square()


def group_norm(in_chs: int, out_chs: int, kernel: int, stride: int, padding: int) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution and the GroupNorm behind it."""
    return nn.Conv2d(in_chs, out_chs, kernel, stride, padding, bias=False), nn.GroupNorm(4, out_chs)


# Of each its name, and for an activation how many channels it makes of one.
NORMALIZATIONS["gn"] = Normalization(group_norm, "msr")
ACTIVATIONS["sqrelu"] = Activation(SquaredReLU, 1, "sqrelu")


@register_model
def resnet20_relu_gn(pretrained: bool = False, num_classes: int = 10, **kwargs: Any) -> ResNet:
    return ResNet(20, "relu", "gn", num_classes=num_classes)


@register_model
def resnet20_sqrelu_bn(pretrained: bool = False, num_classes: int = 10, **kwargs: Any) -> ResNet:
    return ResNet(20, "sqrelu", "bn", num_classes=num_classes)

"""The networks of the paper. Importing this package registers them with timm:

import models, timm
timm.create_model("resnet50_crelu_bn")
"""

from .blocks import BasicBlock, Bottleneck, PreActBasicBlock
from .crelu_resnet import ResNet, from_torchvision
from .layers import (
    ACTIVATIONS,
    INITS,
    NORMALIZATIONS,
    CReLU,
    NormPropConv2d,
    StandardizeRectified,
    SubsampleAndPad,
    last_rectifier,
)

__all__ = [
    "ACTIVATIONS",
    "INITS",
    "NORMALIZATIONS",
    "BasicBlock",
    "Bottleneck",
    "CReLU",
    "NormPropConv2d",
    "PreActBasicBlock",
    "ResNet",
    "StandardizeRectified",
    "SubsampleAndPad",
    "from_torchvision",
    "last_rectifier",
]

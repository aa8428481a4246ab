"""The networks of the paper. Importing this package registers them with timm:

import models, timm
timm.create_model("resnet50_crelu_bn")
"""

from .crelu_resnet import ResNet, from_torchvision
from .layers import ACTS, INITS, NORMS, CReLU, NormPropConv2d, StandardizeRectified, SubsampleAndPad

__all__ = [
    "ACTS",
    "INITS",
    "NORMS",
    "CReLU",
    "NormPropConv2d",
    "ResNet",
    "StandardizeRectified",
    "SubsampleAndPad",
    "from_torchvision",
]

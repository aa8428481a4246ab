"""Equal networks side by side in one, whose layers have a group of channels for each of
them.

Every tensor of the one network is that of the single ones, joined along its first axis.
An image (B, C, H, W) of the single ones is one (B, K C, H, W) of all K, in which the
channels of a network lie together. Convolutions have a group for each network.
BatchNorm, ReLU, pools and additions know channels alone, so that they stay as they are.
No network has a share in the values of another one.
"""

from collections.abc import Mapping, Sequence

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import functional as F

from models import CReLU, NormPropConv2d, ResNet, StandardizeRectified, SubsampleAndPad
from models.blocks import BasicBlock, Bottleneck, PreActBasicBlock
from models.layers import concatenated_relu

# Layers that treat each channel by itself, and what only holds other layers.
_BY_CHANNEL = (nn.ReLU, nn.MaxPool2d, nn.Identity, nn.AdaptiveAvgPool2d, nn.Flatten, StandardizeRectified)
_HOLDS_LAYERS = (nn.Sequential, ResNet, BasicBlock, Bottleneck, PreActBasicBlock, SelectAdaptivePool2d)
_WITH_WEIGHTS = (nn.Conv2d, NormPropConv2d, nn.BatchNorm2d, nn.Linear)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(B, K C, H, W) in channels_last as a view (B, H, W, K, C)."""
    return torch.unflatten(x.permute(0, 2, 3, 1), -1, (groups, -1))


def _ungroup(x: Tensor) -> Tensor:
    """What undoes `_by_group`."""
    return x.flatten(-2).permute(0, 3, 1, 2)


class GroupedCReLU(CReLU):
    """CReLU of each group: the positive and negative halves of a network's channels
    stay together."""

    groups: int

    def forward(self, x: Tensor) -> Tensor:
        parts = _by_group(x, self.groups)
        return _ungroup(concatenated_relu(parts.reshape(-1, parts.shape[-1])).view(*parts.shape[:-1], -1))


class GroupedSubsampleAndPad(SubsampleAndPad):
    """The type-A shortcut of each group: zero channels behind those of each network."""

    groups: int

    def forward(self, x: Tensor) -> Tensor:
        parts = _by_group(x[:, :, :: self.stride, :: self.stride], self.groups)
        return _ungroup(F.pad(parts, (0, self.extra)))


class GroupedLinear(nn.Linear):
    """A linear layer of each group: (B, K in) -> (B, K out)."""

    groups: int

    def forward(self, x: Tensor) -> Tensor:
        images = torch.unflatten(x, 1, (self.groups, -1)).transpose(0, 1)
        weight = torch.unflatten(self.weight, 0, (self.groups, -1)).transpose(1, 2)
        bias = torch.unflatten(self.bias, 0, (self.groups, 1, -1))
        return torch.baddbmm(bias, images, weight).transpose(0, 1).flatten(1)


_GROUPED: dict[type[nn.Module], type[nn.Module]] = {
    CReLU: GroupedCReLU,
    SubsampleAndPad: GroupedSubsampleAndPad,
    nn.Linear: GroupedLinear,
}


def obstacle(model: nn.Module) -> str | None:
    """Why several networks like this one cannot be put side by side; None if they
    can."""
    if getattr(model, "drop_rate", 0.0):
        return "it has dropout"
    known = (*_BY_CHANNEL, *_HOLDS_LAYERS, *_WITH_WEIGHTS, *_GROUPED)
    strange = {type(module).__name__ for module in model.modules() if type(module) not in known}
    if strange:
        return f"it has layers of another kind: {', '.join(sorted(strange))}"
    if any(isinstance(module, nn.Linear) and module.bias is None for module in model.modules()):
        return "its classifier has no bias"
    return None


def side_by_side(model: nn.Module, groups: int) -> nn.Module:
    """Make a network into one for so many of its kind, in place; returns it. Its
    weights are then without meaning.

    Raises:
        ValueError: there is an `obstacle`.
    """
    if reason := obstacle(model):
        raise ValueError(f"networks of this kind cannot be put side by side: {reason}")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.in_channels *= groups
            module.out_channels *= groups
            module.groups *= groups
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features *= groups
        elif kind := _GROUPED.get(type(module)):
            module.__class__ = kind
            setattr(module, "groups", groups)  # noqa: B010 - which its former class has not
        for parameter in module.parameters(recurse=False):
            parameter.data = _repeat(parameter.data, groups)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _repeat(buffer, groups)
    return model


def _repeat(value: Tensor, groups: int) -> Tensor:
    return torch.cat([value] * groups) if value.dim() else value.clone()


def join(values: Sequence[Tensor]) -> Tensor:
    """A tensor of several networks, from that of each. A count, which has no axes, is
    the same for all."""
    return torch.cat(list(values)) if values[0].dim() else values[0]


def part(value: Tensor, number: int, groups: int) -> Tensor:
    """The tensor of one network as a view of that of all."""
    return value.chunk(groups)[number] if value.dim() else value


def share(model: nn.Module, together: Mapping[str, Tensor], number: int, groups: int) -> None:
    """Have a single network hold its part of the tensors of all, so that it changes as
    they are trained.

    Args:
        model: the single network, whose weights and buffers are replaced.
        together: weights and buffers of all by name, as `state_dict` gives them.
        number, groups: which of how many it is.
    """
    for prefix, module in model.named_modules():
        for name, value in module.named_parameters(prefix, recurse=False):
            value.data, value.grad = part(together[name], number, groups), None
        for name in module._buffers:
            full = f"{prefix}.{name}" if prefix else name
            module._buffers[name] = part(together[full], number, groups)

"""Residual networks with ReLU or CReLU under six normalisation schemes, registered with
timm.

Names are `resnet{depth}_{act}_{norm}`: depth 20, 32, 44, 56, 110 in the CIFAR layout,
34, 50, 101 in the ImageNet layout. Architecture: Shang, Chiu, Sohn (AAAI 2017), Figure
1, on top of fb.resnet.torch.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, register_model, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn
from torch.nn.functional import dropout

from .blocks import (
    NORMPROP_BATCH_NORMS,
    NORMPROP_CONSTANTS,
    BasicBlock,
    Bottleneck,
    NormPropBatchNorm,
    NormPropConstants,
    PreActBasicBlock,
    Scheme,
)
from .checks import check_classes, check_counts, check_effect, check_value
from .layers import ACTIVATIONS, INITS, NORMALIZATIONS, Init, conv_norm, initialize
from .published import require_as_published, with_weights

Placement = Literal["both", "inner"]

# Blocks per stage of the ImageNet layout (He et al. 2016a); CIFAR depths have (depth - 2) / 6 per stage.
IMAGENET_BLOCKS = {34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
BOTTLENECK_DEPTHS = (50, 101)


class ResNet(nn.Module):
    """A residual network of the paper, with the interface of a timm model.

    Input (B, in_chans, H, W), output (B, num_classes) logits; with `num_classes=0` the
    pooled features.

    Args:
        depth: 20, 32, 44, 56, 110 (CIFAR layout: 3x3 stem, three stages, type-A
            shortcuts) or 34, 50, 101 (ImageNet layout: 7x7/2 stem and max-pool, four
            stages, type-B shortcuts).
        act: "relu" or "crelu".
        norm: "bn", "plain" (biases, no normalisation), "nobias", "np", "np2" or "np3".
        width: filters of the first stage; None for 16 (CIFAR) or 64 (ImageNet).
        crelu_placement: where basic blocks have CReLU. "both" (default) activates
            before either convolution; "inner" only between the two, with a ReLU after
            the addition. Bottlenecks are always "inner".
        np_constants: which rectifiers of an "np" model carry NormProp's constants:
            those of the residual "branch"es (default; with placement "both" the CReLU
            at the head of a branch is one), those that "direct"ly follow a normalised
            convolution (the stem's too, and no head), or "all".
        np_batchnorm: where an "np", "np2" or "np3" model has BatchNorm in the blocks
            that halve the image (the paper's footnote 2): "trunk" normalises the sum of
            branch and shortcut, before its activation (default), "trunk_input" what
            enters the block, "shortcut" the shortcut's output alone.
        init: initial weights, "msr", "torch" or "xavier" as `layers.initialize`
            describes them. None (default) for "msr" with "bn", "torch" with "plain" and
            "nobias", and "xavier" with "np", "np2" and "np3".
        num_classes, in_chans, global_pool, drop_rate: as in every timm model;
            `num_classes` from 0, `in_chans` from 1.

    Raises:
        ValueError: an argument has no legal value, or one that has no effect on this
            network; the message states the legal ones.
    """

    def __init__(
        self,
        depth: int,
        act: str = "relu",
        norm: str = "bn",
        width: int | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        crelu_placement: Placement | None = None,
        np_constants: NormPropConstants = "branch",
        np_batchnorm: NormPropBatchNorm = "trunk",
        init: Init | None = None,
    ) -> None:
        super().__init__()
        _check_reading(depth, act, norm, crelu_placement, np_constants, np_batchnorm, init)
        check_counts(width, in_chans, num_classes)
        cifar = depth in CIFAR_DEPTHS
        block: type[BasicBlock] | type[PreActBasicBlock] | type[Bottleneck] = BasicBlock
        if depth in BOTTLENECK_DEPTHS:
            block = Bottleneck
        elif ACTIVATIONS[act].copies > 1 and crelu_placement != "inner":
            block = PreActBasicBlock
        preact = block is PreActBasicBlock
        scheme = Scheme(act, norm, np_constants, np_batchnorm, "A" if cifar else "B")

        self.init: Init = init or NORMALIZATIONS[norm].init
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False

        width = width or (16 if cifar else 64)
        self.conv1, self.norm1 = conv_norm(norm, in_chans, width, 3 if cifar else 7, 1 if cifar else 2)
        self.act1 = nn.Identity() if preact else scheme.rectifier("stem", keep_channels=True)
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, stride=2, padding=1)
        feature_info: list[dict[str, Any]] = [dict(num_chs=width, reduction=1 if cifar else 2, module="act1")]

        channels, reduction = width, 1 if cifar else 4
        counts = ((depth - 2) // 6,) * 3 + (0,) if cifar else IMAGENET_BLOCKS[depth]
        for stage, count in enumerate(counts):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(scheme, channels, width * 2**stage, stride))
                channels, reduction = width * 2**stage * block.expansion, reduction * stride
            name = f"layer{stage + 1}"
            self.add_module(name, nn.Sequential(*blocks))  # layer4 of the CIFAR layout is empty
            if blocks:
                feature_info.append(dict(num_chs=channels, reduction=reduction, module=name))
        self.feature_info = feature_info
        self.stage_names = [info["module"] for info in feature_info[1:]]

        self.final_act = scheme.rectifier("sum") if preact else nn.Identity()
        if preact:
            channels *= scheme.copies
            feature_info[-1]["num_chs_norm"] = channels
        self.num_features = channels
        self.global_pool, self.fc = create_classifier(channels, num_classes, pool_type=global_pool)
        self.head_hidden_size = channels * self.global_pool.feat_mult()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Set all initial weights (see `layers.initialize`)."""
        for name, module in self.named_modules():
            initialize(module, self.init, in_block=name.startswith("layer"))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that group parameters by depth, as timm's layer-wise
        decay wants them."""
        return dict(stem=r"^conv1|^norm1", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its
        activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The linear layer (an identity when `num_classes` is 0), or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, freshly initialised, and optionally the pooling (""
        for none)."""
        check_classes(num_classes)
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        like = next(self.parameters())
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        initialize(self.fc.to(like.device, like.dtype), self.init, in_block=False)
        self.train(self.training)  # the new modules too

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of the stem and of the stages, and with them what
        `forward_features` returns.

        Args:
            x: images (B, in_chans, H, W).
            indices: which of the outputs: the last n, a list of indices, or all for
                None.
            norm: apply the final activation, if the network has one, to the
                intermediates of the last stage's width.
            stop_early: do not run the stages after the last one wanted.
            output_fmt: only "NCHW".
            intermediates_only: return the list alone.
        """
        check_value("output_fmt", output_fmt, ("NCHW",))
        take, last = feature_take_indices(len(self.feature_info), indices)
        x = self.act1(self.norm1(self.conv1(x)))
        found = [x] if 0 in take else []
        x = self.maxpool(x)
        for index, name in enumerate(self.stage_names[:last] if stop_early else self.stage_names, start=1):
            stage = getattr(self, name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in take:
                is_last = index == len(self.stage_names)
                found.append(self.final_act(x) if norm and is_last else x)
        if intermediates_only:
            return found
        return x if stop_early and last < len(self.stage_names) else self.final_act(x), found

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that the given intermediates do not need; returns the indices
        kept."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        for name in self.stage_names[last:]:
            setattr(self, name, nn.Sequential())
        if last == 0:
            self.maxpool = nn.Identity()
        cut = last < len(self.stage_names)
        if cut or prune_norm:
            self.final_act = nn.Identity()
            self.num_features = self.feature_info[last]["num_chs"]
        if cut or prune_norm or prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H / r, W / r), after the last
        activation."""
        x = self.maxpool(self.act1(self.norm1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        else:
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.final_act(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop and classify: (B, num_features, h, w) -> (B, num_classes), or the
        pooled features."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _check_reading(
    depth: int, act: str, norm: str, crelu_placement: str | None, np_constants: str, np_batchnorm: str, init: str | None
) -> None:
    """Raise ValueError unless there is such a network, in such a reading of the
    paper."""
    check_value("depth", depth, (*CIFAR_DEPTHS, *IMAGENET_BLOCKS))
    check_value("act", act, tuple(ACTIVATIONS))
    check_value("norm", norm, tuple(NORMALIZATIONS))
    check_value("np_constants", np_constants, NORMPROP_CONSTANTS)
    check_value("np_batchnorm", np_batchnorm, NORMPROP_BATCH_NORMS)
    if np_constants != "branch":
        check_effect("np_constants", np_constants, norm, [n for n, of in NORMALIZATIONS.items() if of.constants])
    if np_batchnorm != "trunk":
        legal = [n for n, of in NORMALIZATIONS.items() if of.batch_norm_between_stages]
        check_effect("np_batchnorm", np_batchnorm, norm, legal)
    check_value("init", init, (None, *INITS))
    if crelu_placement is not None:
        basic_crelu = ACTIVATIONS[act].copies > 1 and depth not in BOTTLENECK_DEPTHS
        check_value("crelu_placement", crelu_placement, ("both", "inner") if basic_crelu else ("inner",))


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a torchvision `resnet34/50/101` state dict to those of
    `resnet*_relu_bn`.

    Keys that already have this package's names stay as they are.
    """

    def rename(key: str) -> str:
        return re.sub(r"\bbn(\d)", r"norm\1", key).replace("downsample.", "shortcut.")

    return {rename(key): value for key, value in state_dict.items()}


def _cfg(depth: int) -> dict[str, Any]:
    """timm's description of a model: CIFAR-10 statistics on [0, 1] for the CIFAR
    layout, else ImageNet's."""
    shared = dict(url="", first_conv="conv1", classifier="fc", license="mit", interpolation="bicubic")
    if depth in CIFAR_DEPTHS:
        mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # fb.resnet.torch datasets/cifar10.lua
        statistics = dict(mean=tuple(m / 255 for m in mean), std=tuple(s / 255 for s in std))
        return dict(shared, num_classes=10, input_size=(3, 32, 32), pool_size=(8, 8), crop_pct=1.0, **statistics)
    statistics = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    return dict(shared, num_classes=1000, input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, **statistics)


# Every combination, then the widths of Tables 2 ("double") and 3. `register_model` looks the configuration up
# when it registers a name, so this stands above the entrypoints.
_VARIANTS: dict[str, dict[str, Any]] = {
    f"resnet{depth}_{act}_{norm}": dict(depth=depth, act=act, norm=norm)
    for depth in (*CIFAR_DEPTHS, *IMAGENET_BLOCKS)
    for act in ACTIVATIONS
    for norm in NORMALIZATIONS
} | {
    f"resnet{depth}_w{width}_{act}_bn": dict(depth=depth, act=act, norm="bn", width=width)
    for depth in CIFAR_DEPTHS
    for width, act in ((32, "relu"), (12, "crelu"), (24, "crelu"))
}
default_cfgs = with_weights({name: _cfg(variant["depth"]) for name, variant in _VARIANTS.items()})


def _build(device: torch.device | str | None = None, dtype: torch.dtype | None = None, **model_args: Any) -> ResNet:
    """A `ResNet` on a device and in a type, which timm takes as arguments of
    `create_model`."""
    with nullcontext() if device is None else torch.device(device):
        return ResNet(**model_args).to(dtype=dtype)


def _entrypoint(name: str, variant: dict[str, Any]) -> Callable[..., nn.Module]:
    """A timm entrypoint called `name`, which builds this variant."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            told = (kwargs.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay"))
            require_as_published(resolve_pretrained_cfg(name, *told).file)
        stages = 3 if variant["depth"] in CIFAR_DEPTHS else 4
        feature_cfg = dict(out_indices=tuple(range(stages + 1))) | kwargs.pop("feature_cfg", {})
        model: nn.Module = build_model_with_cfg(
            _build,
            name,
            pretrained,
            pretrained_filter_fn=from_torchvision,
            feature_cfg=feature_cfg,
            **(variant | kwargs),
        )
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"`ResNet` with {', '.join(f'{key}={value}' for key, value in variant.items())}."
    return register_model(entrypoint)


globals().update({name: _entrypoint(name, variant) for name, variant in _VARIANTS.items()})

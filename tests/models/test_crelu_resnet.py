"""Architecture: parameter counts, torchvision's logits, and an independent forward pass of every variant."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import models
from models import (
    ACTIVATIONS,
    INITS,
    NORMALIZATIONS,
    BasicBlock,
    Bottleneck,
    CReLU,
    NormPropConv2d,
    PreActBasicBlock,
    ResNet,
)
from suite.data import sets as data


def randomize(model: nn.Module) -> nn.Module:
    """Draw everything that starts at a constant, so that no term of a forward pass is invisible."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)
            elif name.endswith(("running_var", "gain")) or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.0)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "arguments", "millions"),
    [
        ("resnet110_relu_bn", {}, "1.728"),
        ("resnet110_crelu_bn", {}, "3.447"),
        ("resnet110_crelu_bn", {"crelu_placement": "inner"}, "2.599"),
        ("resnet110_w32_relu_bn", {}, "6.893"),
        ("resnet110_w12_crelu_bn", {}, "1.941"),
        ("resnet110_w24_crelu_bn", {}, "7.749"),
        ("resnet34_relu_bn", {}, "21.80"),
        ("resnet50_relu_bn", {}, "25.56"),
        ("resnet101_relu_bn", {}, "44.55"),
        ("resnet34_crelu_bn", {}, "43.40"),
        ("resnet34_crelu_bn", {"crelu_placement": "inner"}, "33.11"),
        ("resnet50_crelu_bn", {}, "41.90"),
        ("resnet101_crelu_bn", {}, "75.38"),
    ],
)
def test_parameter_counts_are_those_of_the_paper_and_of_torchvision(
    name: str, arguments: dict[str, str], millions: str
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count / 1e6:.{len(millions.split('.')[1])}f}" == millions


def test_normalization_by_batchnorm_or_biases_is_all_that_parameter_counts_differ_by() -> None:
    counts = {
        norm: sum(p.numel() for p in ResNet(20, norm=norm, num_classes=10).parameters()) for norm in NORMALIZATIONS
    }
    filters = 16 + 3 * 2 * (16 + 32 + 64)
    assert counts["bn"] == counts["nobias"] + 2 * filters
    assert counts["plain"] == counts["nobias"] + filters
    trunk_batch_norms = 2 * (32 + 64)
    assert counts["np"] == counts["np2"] == counts["nobias"] + 2 * filters + trunk_batch_norms
    assert counts["np3"] == counts["nobias"] + filters + trunk_batch_norms


@pytest.mark.parametrize(("depth", "size"), [(34, 64), (50, 64), (101, 40)])
def test_torchvisions_weights_give_torchvisions_logits(depth: int, size: int) -> None:
    torch.manual_seed(0)
    theirs = randomize(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    model = timm.create_model(f"resnet{depth}_relu_bn").eval()
    model.load_state_dict(models.from_torchvision(theirs.state_dict()))
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = theirs(x)
        logits = model(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_from_torchvision_leaves_this_packages_own_names_alone() -> None:
    state = ResNet(20, norm="np").state_dict()
    assert list(models.from_torchvision(state)) == list(state)


def reference(
    state: dict[str, Tensor],
    x: Tensor,
    depth: int,
    act: str,
    norm: str,
    placement: str = "both",
    constants: str = "branch",
    batch_norm_at: str = "trunk",
) -> Tensor:
    """Logits from a state dict alone, written from the paper's description with functional operations."""
    cifar = depth not in (34, 50, 101)
    bottleneck = depth in (50, 101)
    both = act == "crelu" and placement == "both" and not bottleneck

    def rectify(y: Tensor, kind: str, in_branch: bool, after_conv: bool) -> Tensor:
        y = torch.cat((y.clamp(min=0), (-y).clamp(min=0)), 1) if kind == "crelu" else y.clamp(min=0)
        if norm == "np" and {"all": True, "branch": in_branch, "direct": after_conv}[constants]:
            y = (y - (2 * math.pi) ** -0.5) / (0.5 - 0.5 / math.pi) ** 0.5
        return y

    def batch_norm(y: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    def convolve(y: Tensor, prefix: str, index: int | str, size: int, stride: int = 1) -> Tensor:
        name = f"{prefix}conv{index}"
        weight = state[f"{name}.weight"]
        assert weight.shape[2:] == (size, size)
        if norm.startswith("np"):
            weight = weight * (state[f"{name}.gain"] / weight.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
        bias = None if norm in ("bn", "nobias") else state[f"{name}.bias"]
        y = F.conv2d(y, weight, bias, stride, size // 2)
        return batch_norm(y, f"{prefix}norm{index}") if norm == "bn" else y

    def identity(y: Tensor, prefix: str, channels: int, stride: int) -> Tensor:
        if y.shape[1] == channels:
            return y
        on_shortcut = norm.startswith("np") and stride > 1 and batch_norm_at == "shortcut"
        if cifar:
            y = F.pad(y[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, channels - y.shape[1]))
            return batch_norm(y, f"{prefix}shortcut.1") if on_shortcut else y
        weight, bias = state[f"{prefix}shortcut.0.weight"], state.get(f"{prefix}shortcut.0.bias")
        if norm.startswith("np") and not on_shortcut:
            weight = weight * (state[f"{prefix}shortcut.0.gain"] / weight.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
        y = F.conv2d(y, weight, bias, stride)
        return batch_norm(y, f"{prefix}shortcut.1") if norm == "bn" or on_shortcut else y

    y = convolve(x, "", 1, 3 if cifar else 7, 1 if cifar else 2)
    if not both:
        y = rectify(y, "relu", in_branch=False, after_conv=True)
    if not cifar:
        y = F.max_pool2d(y, 3, 2, 1)
    for stage, count in enumerate([(depth - 2) // 6] * 3 if cifar else [3, 4, 23 if depth == 101 else 6, 3]):
        for index in range(count):
            prefix = f"layer{stage + 1}.{index}."
            stride = 2 if stage and not index else 1
            resets = norm.startswith("np") and stride > 1
            if resets and batch_norm_at == "trunk_input":
                y = batch_norm(y, f"{prefix}input_norm")
            if bottleneck:
                z = rectify(convolve(y, prefix, 1, 1), act, in_branch=True, after_conv=True)
                z = rectify(convolve(z, prefix, 2, 3, stride), act, in_branch=True, after_conv=True)
                z = convolve(z, prefix, 3, 1)
            else:
                z = rectify(y, "crelu", in_branch=True, after_conv=False) if both else y
                z = rectify(convolve(z, prefix, 1, 3, stride), act, in_branch=True, after_conv=True)
                z = convolve(z, prefix, 2, 3)
            y = identity(y, prefix, z.shape[1], stride) + z
            if resets and batch_norm_at == "trunk":
                y = batch_norm(y, f"{prefix}sum_norm")
            if not both:
                y = rectify(y, "relu", in_branch=False, after_conv=False)
    if both:
        y = rectify(y, "crelu", in_branch=False, after_conv=False)
    return F.linear(y.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("norm", NORMALIZATIONS)
@pytest.mark.parametrize(
    ("depth", "act", "placement"),
    [
        (20, "relu", None),
        (20, "crelu", None),
        (20, "crelu", "inner"),
        (34, "relu", None),
        (34, "crelu", "both"),
        (34, "crelu", "inner"),
        (50, "relu", None),
        (50, "crelu", None),
    ],
)
def test_logits_equal_those_computed_by_hand_from_the_state_dict(
    depth: int, act: str, placement: str | None, norm: str
) -> None:
    torch.manual_seed(0)
    readings = [("branch", "trunk")]
    if norm == "np":
        readings += [("direct", "trunk_input"), ("all", "shortcut")]
    elif norm == "np2":
        readings += [("branch", "trunk_input"), ("branch", "shortcut")]
    for constants, batch_norm in readings:
        model = ResNet(
            depth,
            act,
            norm,
            width=4,
            num_classes=7,
            crelu_placement=placement,
            np_constants=constants,
            np_batchnorm=batch_norm,
        )
        model = randomize(model.double())
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64) if depth == 20 else torch.randn(2, 3, 48, 48).double()
        with torch.no_grad():
            expected = reference(model.state_dict(), x, depth, act, norm, placement or "both", constants, batch_norm)
            torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("norm", NORMALIZATIONS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("depth", "size"), [(20, 16), (34, 48), (50, 48)])
def test_every_parameter_receives_a_gradient(depth: int, size: int, act: str, norm: str) -> None:
    torch.manual_seed(0)
    model = ResNet(depth, act, norm, width=None if depth == 20 else 8, num_classes=10).train()
    F.cross_entropy(model(torch.randn(4, 3, size, size)), torch.tensor([3, 1, 4, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def zero_last_convolution(block: nn.Module) -> None:
    last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
    nn.init.zeros_(last.weight)


def test_the_identity_carries_the_sum_before_activation_in_the_both_placement() -> None:
    torch.manual_seed(0)
    block = ResNet(20, "crelu", "plain").layer1[1]
    assert isinstance(block, PreActBasicBlock)
    x = torch.randn(2, 16, 8, 8)
    z = F.conv2d(torch.cat((F.relu(x), F.relu(-x)), 1), block.conv1.weight, block.conv1.bias, padding=1)
    z = F.conv2d(torch.cat((F.relu(z), F.relu(-z)), 1), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x), x + z)
    zero_last_convolution(block)
    assert torch.equal(block(x), x)  # negative values pass


def test_a_relu_follows_the_addition_in_the_inner_placement() -> None:
    torch.manual_seed(0)
    block = ResNet(20, "crelu", "plain", crelu_placement="inner").layer1[1]
    assert isinstance(block, BasicBlock)
    x = torch.randn(2, 16, 8, 8)
    z = F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1)
    z = F.conv2d(torch.cat((F.relu(z), F.relu(-z)), 1), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x), F.relu(x + z))
    zero_last_convolution(block)
    assert torch.equal(block(x), F.relu(x))


def test_a_bottleneck_has_crelu_after_the_first_two_convolutions_and_relu_after_the_addition() -> None:
    torch.manual_seed(0)
    model = ResNet(50, "crelu", "nobias", width=4)
    block = model.layer1[1]
    x = torch.randn(2, 16, 8, 8)
    z = F.conv2d(x, block.conv1.weight)
    z = F.conv2d(torch.cat((F.relu(z), F.relu(-z)), 1), block.conv2.weight, padding=1)
    z = F.conv2d(torch.cat((F.relu(z), F.relu(-z)), 1), block.conv3.weight)
    torch.testing.assert_close(block(x), F.relu(x + z))
    assert sum(isinstance(layer, CReLU) for layer in model.modules()) == 2 * (3 + 4 + 6 + 3)
    assert model.num_features == 4 * 8 * 4  # the classifier sees a ReLU


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution() -> None:
    with torch.device("meta"):
        model = ResNet(50)
    for stage, stride in ((model.layer1, 1), (model.layer2, 2), (model.layer3, 2), (model.layer4, 2)):
        first = stage[0]
        assert first.conv2.kernel_size == (3, 3)
        assert [conv.stride[0] for conv in (first.conv1, first.conv2, first.conv3)] == [1, stride, 1]
        assert all(block.conv2.stride == (1, 1) for block in list(stage)[1:])


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_cifar_layout_has_three_stages_of_equal_depth_and_doubling_width(depth: int, act: str) -> None:
    with torch.device("meta"):
        model = ResNet(depth, act, width=12)
    stages = (model.layer1, model.layer2, model.layer3)
    assert [len(stage) for stage in stages] == [(depth - 2) // 6] * 3
    assert [stage[-1].conv2.out_channels for stage in stages] == [12, 24, 48]
    assert sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) == depth - 1
    assert model.fc.in_features == (96 if act == "crelu" else 48)


def test_the_networks_width_is_16_or_64_unless_it_is_given() -> None:
    with torch.device("meta"):
        assert ResNet(20).conv1.out_channels == 16
        assert ResNet(34).conv1.out_channels == 64
        assert timm.create_model("resnet110_w24_crelu_bn").conv1.out_channels == 24
        assert timm.create_model("resnet20_relu_bn", width=5).conv1.out_channels == 5


@pytest.mark.parametrize("norm", NORMALIZATIONS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("depth", [20, 34, 50])
def test_batchnorm_stands_nowhere_but_where_normprops_trunk_is_reduced(depth: int, act: str, norm: str) -> None:
    def batch_norms(**arguments: str) -> list[str]:
        with torch.device("meta"):
            model = ResNet(depth, act, norm, **arguments)
        return [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]

    with torch.device("meta"):
        layers = list(ResNet(depth, act, norm).modules())
    if norm == "bn":
        assert len(batch_norms()) == sum(isinstance(layer, nn.Conv2d) for layer in layers)
    elif norm in ("plain", "nobias"):
        assert batch_norms() == []
    else:
        places = {"trunk": "sum_norm", "trunk_input": "input_norm", "shortcut": "shortcut.1"}
        for argument, place in places.items():
            found = batch_norms(np_batchnorm=argument)
            assert found == [f"layer{stage}.0.{place}" for stage in range(2, 4 if depth == 20 else 5)]
        assert batch_norms() == batch_norms(np_batchnorm="trunk")
        # All convolutions, those of type-B shortcuts too, are NormProp's.
        assert all(isinstance(layer, NormPropConv2d) for layer in layers if isinstance(layer, nn.Conv2d))


def test_batchnorm_of_the_trunk_gives_unit_variance_to_what_runs_along_in_training() -> None:
    for act in ("relu", "crelu"):
        torch.manual_seed(0)
        block = ResNet(20, act, "np2").layer2[0].train()
        found: list[Tensor] = []
        block.sum_norm.register_forward_hook(lambda module, inputs, output, found=found: found.append(output))
        y = block(1e3 * torch.randn(8, 16, 16, 16))
        (whole,) = found
        assert torch.equal(y, F.relu(whole) if act == "relu" else whole)
        torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(32), rtol=0, atol=1e-4)
        torch.testing.assert_close(whole.var((0, 2, 3), correction=0), torch.ones(32), rtol=1e-2, atol=0)


def distribution(init: str, layer: nn.Module, in_block: bool) -> tuple[str, float]:
    """What the initial weights of a layer are to be: "normal" or "uniform", and their standard deviation."""
    positions = math.prod(getattr(layer, "kernel_size", (1,)))
    outputs, inputs = (layer.weight.shape[0] * positions, layer.weight.shape[1] * positions)
    if init == "msr" and isinstance(layer, nn.Conv2d):
        return "normal", math.sqrt(2 / outputs)
    glorot = not in_block if init == "torch" else init == "xavier" and isinstance(layer, nn.Conv2d)
    return "uniform", math.sqrt(6 / (inputs + outputs) if glorot else 1 / inputs) / math.sqrt(3)


@pytest.mark.parametrize("norm", NORMALIZATIONS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("depth", [20, 34, 50])
def test_a_model_starts_with_the_initial_weights_of_its_normalisation(depth: int, act: str, norm: str) -> None:
    usual = {"bn": "msr", "plain": "torch", "nobias": "torch", "np": "xavier", "np2": "xavier", "np3": "xavier"}[norm]
    for init in (None, *INITS) if depth == 20 else (None,):
        torch.manual_seed(0)
        # Narrow, so that the large layouts do not take long.
        model = ResNet(depth, act, norm, width=None if depth == 20 else 16, num_classes=100, init=init)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                kind, std = distribution(init or usual, layer, name.startswith("layer"))
                count = layer.weight.numel()
                assert layer.weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(count)), name
                assert abs(layer.weight.mean().item()) < 5 * std / math.sqrt(count), name
                farthest = layer.weight.abs().max().item() / std
                assert farthest > 2 if kind == "normal" else 0.95 * math.sqrt(3) < farthest <= 1.0001 * math.sqrt(3)
                if layer.bias is None:
                    assert norm in ("bn", "nobias"), name
                else:
                    assert (layer.bias == 0).all(), name
            if isinstance(layer, NormPropConv2d):
                torch.testing.assert_close(layer.gain.detach(), torch.full((layer.out_channels,), 1 / 1.21))
            if isinstance(layer, nn.BatchNorm2d):  # the last of a block, too
                assert (layer.weight == 1).all(), name
                assert (layer.bias == 0).all(), name
                assert (layer.eps, layer.momentum) == (1e-5, 0.1)


@pytest.fixture(scope="module")
def normalized_images() -> tuple[Tensor, Tensor]:
    """64 embedded images with mean 0 and deviation 1 in each channel, as training images have."""
    dataset = data.load("digits10")
    images = torch.from_numpy(dataset.train.images[:64]).permute(0, 3, 1, 2).float()
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    return images, torch.from_numpy(dataset.train.labels[:64])


@pytest.mark.parametrize(
    ("act", "norm", "most"),
    [(act, norm, 3.5) for act in ACTIVATIONS for norm in ("plain", "nobias", "np2", "np3")] + [("relu", "np", 10.0)],
)
def test_resnet110_without_batchnorm_starts_at_a_moderate_loss(
    act: str, norm: str, most: float, normalized_images: tuple[Tensor, Tensor]
) -> None:
    images, labels = normalized_images
    torch.manual_seed(0)
    model = ResNet(110, act, norm, num_classes=10).train()
    with torch.no_grad():
        assert F.cross_entropy(model(images), labels) < most


def test_with_xavier_in_every_block_resnet110_starts_at_an_absurd_loss(
    normalized_images: tuple[Tensor, Tensor],
) -> None:
    images, labels = normalized_images
    for arguments in ({"norm": "plain", "init": "xavier"}, {"norm": "np", "np_batchnorm": "shortcut"}):
        torch.manual_seed(0)
        with torch.no_grad():
            assert F.cross_entropy(ResNet(110, num_classes=10, **arguments).train()(images), labels) > 50


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_plain_blocks_change_less_than_those_with_batchnorm_at_the_start(
    act: str, normalized_images: tuple[Tensor, Tensor]
) -> None:
    """Figure 2: a plain network has "hardly any Delta in the first 36 blocks"."""
    deltas = []
    for norm in ("plain", "bn"):
        torch.manual_seed(0)
        model = ResNet(110, act, norm, num_classes=10).train()
        norms: list[float] = []
        for block in model.modules():
            if isinstance(block, BasicBlock | PreActBasicBlock):
                block.norm2.register_forward_hook(
                    lambda module, inputs, output, norms=norms: norms.append(output.norm(dim=1).mean().item())
                )
        with torch.no_grad():
            model(normalized_images[0])
        deltas.append(norms)
    assert [len(norms) for norms in deltas] == [54, 54]
    assert all(plain < batch_norm for plain, batch_norm in list(zip(*deltas, strict=True))[:36])


@pytest.mark.parametrize(
    ("arguments", "use"),
    [
        ({"depth": 18}, "one of 20, 32, 44, 56, 110, 34, 50, 101"),
        # Other tests of this process may have added activations and normalisations.
        ({"act": "unknown"}, r"one of 'relu', 'crelu'(, '\w+')*"),
        ({"norm": "unknown"}, r"one of 'bn', 'plain', 'nobias', 'np', 'np2', 'np3'(, '\w+')*"),
        ({"act": "crelu", "crelu_placement": "outer"}, "one of 'both', 'inner'"),
        ({"depth": 50, "act": "crelu", "crelu_placement": "both"}, "'inner'"),
        ({"act": "relu", "crelu_placement": "both"}, "'inner'"),
        ({"np_constants": "some"}, "one of 'branch', 'direct', 'all'"),
        ({"np_batchnorm": "stem"}, "one of 'trunk', 'trunk_input', 'shortcut'"),
        ({"in_chans": 0}, "a positive integer"),
        ({"in_chans": 1.0}, "a positive integer"),
        ({"num_classes": -1}, "a positive integer, or 0 for no classifier"),
        ({"num_classes": True}, "a positive integer, or 0 for no classifier"),
        ({"init": "zero"}, "one of None, 'msr', 'torch', 'xavier'"),
        ({"width": 0}, "None or a positive integer"),
        ({"width": "16"}, "None or a positive integer"),
    ],
)
def test_an_argument_that_is_not_valid_is_an_error_that_says_what_to_use(
    arguments: dict[str, object], use: str
) -> None:
    name, value = list(arguments.items())[-1]
    with pytest.raises(ValueError, match=rf"^{name}={value!r} is not valid; use {use}$"):
        ResNet(**({"depth": 20} | arguments))


@pytest.mark.parametrize(
    ("name", "arguments", "norms"),
    [
        ("resnet20_relu_bn", {"np_batchnorm": "shortcut"}, "one of 'np', 'np2', 'np3'"),
        ("resnet20_crelu_plain", {"np_batchnorm": "trunk_input"}, "one of 'np', 'np2', 'np3'"),
        ("resnet20_crelu_np2", {"np_constants": "all"}, "'np'"),
        ("resnet50_relu_bn", {"np_constants": "direct"}, "'np'"),
    ],
)
def test_an_argument_without_effect_on_a_network_is_an_error(name: str, arguments: dict[str, str], norms: str) -> None:
    ((argument, value),) = arguments.items()
    norm = name.rpartition("_")[2]
    said = f"^{argument}={value!r} has no effect with norm={norm!r}; for norm use {norms}$"
    with pytest.raises(ValueError, match=said):
        timm.create_model(name, **arguments)


def test_timm_is_told_of_wrong_counts_of_channels_and_classes() -> None:
    for arguments in ({"in_chans": 0}, {"num_classes": -1}):
        with pytest.raises(ValueError, match="is not valid; use a positive integer"):
            timm.create_model("resnet20_relu_bn", **arguments)
    model = timm.create_model("resnet20_relu_bn", num_classes=0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 64)
    with pytest.raises(
        ValueError, match=r"^num_classes=-1 is not valid; use a positive integer, or 0 for no classifier$"
    ):
        model.reset_classifier(-1)

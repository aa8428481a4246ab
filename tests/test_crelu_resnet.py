"""Architecture: parameter counts, torchvision's logits, and an independent forward pass of every variant."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import models
from models import ACTS, NORMS, CReLU, NormPropConv2d, ResNet
from models.crelu_resnet import BasicBlock, Bottleneck, PreActBasicBlock


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
    counts = {norm: sum(p.numel() for p in ResNet(20, norm=norm, num_classes=10).parameters()) for norm in NORMS}
    filters = 16 + 3 * 2 * (16 + 32 + 64)
    assert counts["bn"] == counts["nobias"] + 2 * filters
    assert counts["plain"] == counts["nobias"] + filters
    identity_batch_norms = 2 * (32 + 64)
    assert counts["np"] == counts["np2"] == counts["nobias"] + 2 * filters + identity_batch_norms
    assert counts["np3"] == counts["nobias"] + filters + identity_batch_norms


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
    state: dict[str, Tensor], x: Tensor, depth: int, act: str, norm: str, placement: str, constants: str
) -> Tensor:
    """Logits from a state dict alone, written from the paper's description with functional operations."""
    cifar = depth not in (34, 50, 101)
    bottleneck = depth in (50, 101)
    both = act == "crelu" and placement == "both" and not bottleneck

    def rectify(y: Tensor, kind: str, after_sum: bool) -> Tensor:
        y = torch.cat((y.clamp(min=0), (-y).clamp(min=0)), 1) if kind == "crelu" else y.clamp(min=0)
        if norm == "np" and (constants == "all" or not after_sum):
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
        if cifar:
            y = F.pad(y[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, channels - y.shape[1]))
            return batch_norm(y, f"{prefix}shortcut.1") if norm.startswith("np") else y
        weight, bias = state[f"{prefix}shortcut.0.weight"], state.get(f"{prefix}shortcut.0.bias")
        if norm.startswith("np") and stride == 1:
            weight = weight * (state[f"{prefix}shortcut.0.gain"] / weight.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
        y = F.conv2d(y, weight, bias, stride)
        return batch_norm(y, f"{prefix}shortcut.1") if norm == "bn" or (norm[:2] == "np" and stride > 1) else y

    y = convolve(x, "", 1, 3 if cifar else 7, 1 if cifar else 2)
    if not both:
        y = rectify(y, "relu", after_sum=False)
    if not cifar:
        y = F.max_pool2d(y, 3, 2, 1)
    for stage, count in enumerate([(depth - 2) // 6] * 3 if cifar else [3, 4, 23 if depth == 101 else 6, 3]):
        for index in range(count):
            prefix = f"layer{stage + 1}.{index}."
            stride = 2 if stage and not index else 1
            if bottleneck:
                z = rectify(convolve(y, prefix, 1, 1), act, after_sum=False)
                z = rectify(convolve(z, prefix, 2, 3, stride), act, after_sum=False)
                z = convolve(z, prefix, 3, 1)
            else:
                z = rectify(y, "crelu", after_sum=True) if both else y
                z = rectify(convolve(z, prefix, 1, 3, stride), act, after_sum=False)
                z = convolve(z, prefix, 2, 3)
            y = identity(y, prefix, z.shape[1], stride) + z
            if not both:
                y = rectify(y, "relu", after_sum=True)
    if both:
        y = rectify(y, "crelu", after_sum=True)
    return F.linear(y.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("norm", NORMS)
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
    for constants in ("all", "direct") if norm == "np" else ("all",):
        model = ResNet(depth, act, norm, width=4, num_classes=7, crelu_placement=placement, np_constants=constants)
        model = randomize(model.double())
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64) if depth == 20 else torch.randn(2, 3, 48, 48).double()
        with torch.no_grad():
            expected = reference(model.state_dict(), x, depth, act, norm, placement or "both", constants)
            torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
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


@pytest.mark.parametrize("act", ACTS)
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


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("depth", "shortcuts"), [(20, 2), (34, 3), (50, 4)])
def test_batchnorm_stands_nowhere_but_on_the_shrinking_identity_paths_of_normprop(
    depth: int, shortcuts: int, norm: str
) -> None:
    with torch.device("meta"):
        model = ResNet(depth, norm=norm)
    batch_norms = [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    if norm == "bn":
        convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.modules())
        assert len(batch_norms) == convolutions
    elif norm in ("plain", "nobias"):
        assert batch_norms == []
    else:
        stages = range(2, 4 if depth == 20 else 5)
        assert batch_norms == [f"layer{stage}.0.shortcut.1" for stage in stages]
        own = sum(isinstance(layer, NormPropConv2d) for name, layer in model.named_modules() if "shortcut" in name)
        assert own == shortcuts - len(batch_norms)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
def test_a_model_starts_with_the_values_of_its_kind(act: str, norm: str) -> None:
    torch.manual_seed(0)
    model = ResNet(20, act, norm, num_classes=10)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            size = layer.kernel_size[0] ** 2
            if norm == "bn":
                std = math.sqrt(2 / (size * layer.out_channels))
            else:
                bound = math.sqrt(6 / (size * (layer.in_channels + layer.out_channels)))
                std = bound / math.sqrt(3)
                assert 0.95 * bound < layer.weight.abs().max() <= bound, name
            assert layer.weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(layer.weight.numel())), name
            if norm in ("bn", "nobias"):
                assert layer.bias is None, name
            else:
                assert (layer.bias == 0).all(), name
        if isinstance(layer, NormPropConv2d):
            torch.testing.assert_close(layer.gain.detach(), torch.full((layer.out_channels,), 1 / 1.21))
        if isinstance(layer, nn.BatchNorm2d):  # the last of a block, too
            assert (layer.weight == 1).all(), name
            assert (layer.bias == 0).all(), name
            assert (layer.eps, layer.momentum) == (1e-5, 0.1)
    bound = 1 / math.sqrt(model.num_features)
    assert 0.95 * bound < model.fc.weight.abs().max() <= bound
    assert (model.fc.bias == 0).all()


@pytest.mark.parametrize(
    ("arguments", "legal"),
    [
        ({"depth": 18}, "20, 32, 44, 56, 110, 34, 50, 101"),
        ({"act": "gelu"}, "'relu', 'crelu'"),
        ({"norm": "gn"}, "'bn', 'plain', 'nobias', 'np', 'np2', 'np3'"),
        ({"act": "crelu", "crelu_placement": "outer"}, "'both', 'inner'"),
        ({"depth": 50, "act": "crelu", "crelu_placement": "both"}, "'inner'"),
        ({"act": "relu", "crelu_placement": "both"}, "'inner'"),
        ({"np_constants": "some"}, "'all', 'direct'"),
        ({"width": 0}, "positive integers"),
    ],
)
def test_an_illegal_argument_is_an_error_that_states_the_legal_values(arguments: dict[str, object], legal: str) -> None:
    name, value = list(arguments.items())[-1]
    with pytest.raises(ValueError, match=rf"^{name}={value!r}: legal values are .*{legal}"):
        ResNet(**({"depth": 20} | arguments))

"""CReLU, NormProp, shortcuts and initial weights against NumPy and the definitions."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import nn

from models import INITS, NORMALIZATIONS, CReLU, NormPropConv2d, StandardizeRectified, SubsampleAndPad
from models.layers import activation, conv_norm, initialize, shortcut

Array = NDArray[np.float64]
NORMPROP = ("np", "np2", "np3")
OTHERS = ("bn", "plain", "nobias")


def conv2d(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Cross-correlation of (B, I, H, W) with (O, I, k, k)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bihwkl,oikl->bohw", windows, weight)


def normprop(
    norm: str, act: str, x: Array, weight: Array, gain: Array, bias: Array, stride: int, padding: int
) -> Array:
    """The paper's three forms, straight from their formulas; act "none" is a block's last convolution."""
    lengths = np.sqrt((weight**2).sum(axis=(1, 2, 3)))
    y = conv2d(x, weight, stride, padding) * (gain / lengths)[:, None, None] + bias[:, None, None]
    if act == "none":
        return y
    y = np.concatenate((np.maximum(y, 0), np.maximum(-y, 0)), axis=1) if act == "crelu" else np.maximum(y, 0)
    if norm == "np":
        y = (y - 1 / np.sqrt(2 * np.pi)) / np.sqrt(1 / 2 - 1 / (2 * np.pi))
    return y


def central_difference(f: Callable[[], float], at: Array, step: float = 1e-6) -> Array:
    """The gradient of `f`, which reads `at`, by moving each entry of `at` both ways."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        value = at[index]
        at[index] = value + step
        above = f()
        at[index] = value - step
        gradient[index] = (above - f()) / (2 * step)
        at[index] = value
    return gradient


@pytest.mark.parametrize("kernel_size_and_stride", [(3, 1), (3, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("act", ["none", "relu", "crelu"])
@pytest.mark.parametrize("norm", NORMPROP)
def test_normprop_and_its_gradients_equal_the_formula_in_numpy(
    norm: str, act: str, kernel_size_and_stride: tuple[int, int]
) -> None:
    kernel_size, stride = kernel_size_and_stride
    rng = np.random.default_rng(0)
    conv, after = conv_norm(norm, 3, 4, kernel_size, stride)
    assert isinstance(after, nn.Identity)
    layer = nn.Sequential(conv, nn.Identity() if act == "none" else activation(act, norm == "np")).double()

    x, weight, bias = rng.normal(size=(2, 3, 5, 5)), rng.normal(size=conv.weight.shape), rng.normal(size=4)
    gain = np.full(4, 1 / 1.21) if norm == "np3" else rng.normal(size=4)
    values = {"x": x, "weight": weight, "gain": gain, "bias": bias}
    tensors = {"x": torch.tensor(x, requires_grad=True), "weight": conv.weight, "bias": conv.bias}
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(weight))
        conv.bias.copy_(torch.tensor(bias))
        if norm == "np3":
            conv.gain.fill_(1 / 1.21)  # the buffer was rounded to float32
        else:
            conv.gain.copy_(torch.tensor(gain))
            tensors["gain"] = conv.gain

    def reference() -> Array:
        return normprop(norm, act, **values, stride=stride, padding=kernel_size // 2)

    output = layer(tensors["x"])
    np.testing.assert_allclose(output.detach().numpy(), reference(), rtol=0, atol=1e-12)

    slope = rng.normal(size=output.shape)
    output.backward(torch.tensor(slope))
    for name, tensor in tensors.items():
        expected = central_difference(lambda: float((reference() * slope).sum()), values[name])
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=0, atol=1e-7, err_msg=name)


def test_normprop3_has_a_fixed_gain_and_the_others_train_it() -> None:
    for norm in NORMPROP:
        conv, _ = conv_norm(norm, 3, 4, 3)
        trained = dict(conv.named_parameters())
        assert set(trained) == ({"weight", "bias"} if norm == "np3" else {"weight", "bias", "gain"})
        assert "gain" in conv.state_dict()
        torch.testing.assert_close(conv.gain.detach(), torch.full((4,), 1 / 1.21))


def test_the_gradient_flows_through_the_filter_norm() -> None:
    torch.manual_seed(0)
    conv = NormPropConv2d(3, 4, 3).double()
    conv(torch.randn(2, 3, 6, 6, dtype=torch.float64)).square().sum().backward()
    # The output does not depend on a filter's length, so its gradient has no part along the filter.
    assert conv.weight.grad.abs().max() > 0.01
    along = (conv.weight.grad * conv.weight).sum(dim=(1, 2, 3))
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)


def test_the_filter_norm_stays_float32_under_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    conv = NormPropConv2d(64, 16, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        filters = conv.normalized_weight()
        output = conv(torch.randn(1, 64, 8, 8))
    assert output.dtype == torch.bfloat16
    assert filters.dtype == torch.float32
    lengths = filters.double().flatten(1).norm(dim=1) * 1.21
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)  # bfloat16 would miss 1e-3


def test_the_filter_norm_of_a_bfloat16_model_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    conv = NormPropConv2d(64, 16, 3).bfloat16()
    weight, gain = conv.weight.detach().double(), conv.gain.detach().double()
    exact = weight * (gain / weight.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    filters = conv.normalized_weight()
    assert filters.dtype == torch.bfloat16
    # One rounding, to the nearest bfloat16, is all that may be lost.
    rounded = (filters.double() - exact).abs() <= 2**-8 * exact.abs() * 1.001
    assert rounded.all()


def test_the_constants_bring_a_rectified_standard_normal_to_mean_0_and_variance_1() -> None:
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi)
    values = StandardizeRectified()(F.relu(grid))
    mean = torch.trapezoid(values * density, grid)
    variance = torch.trapezoid(values.square() * density, grid)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-8)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-8)


def test_only_an_activation_with_constants_standardizes() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(activation("relu")(x), x.clamp(min=0))
    assert torch.equal(activation("crelu")(x), CReLU()(x))
    for act in ("relu", "crelu"):
        rectified = activation(act)(x)
        expected = (rectified - 0.3989422804) / 0.5838193702  # moments of a rectified standard normal
        torch.testing.assert_close(activation(act, standardize=True)(x), expected)


def test_crelu_concatenates_the_positive_and_the_negative_part_on_channels() -> None:
    x = torch.tensor([[[-2.0, 3.0]], [[0.0, -1.0]]]).view(2, 1, 1, 2)
    expected = torch.tensor([[[0.0, 3.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]).view(2, 2, 1, 2)
    assert torch.equal(CReLU()(x), expected)


def test_crelu_has_the_gradient_of_its_definition() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    x[0, 0, 0, :2] = 0.0  # where ReLU's gradient is 0 on either side
    weight = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    gradients = []
    for function in (CReLU(), lambda v: torch.cat((torch.relu(v), torch.relu(-v)), dim=1)):
        leaf = x.clone().requires_grad_()
        (function(leaf) * weight).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert torch.autograd.gradgradcheck(CReLU(), (torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True),))


def test_crelu_computes_the_same_with_and_without_a_gradient() -> None:
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert torch.equal(CReLU()(x), CReLU()(x.clone().requires_grad_()))


def test_crelu_loses_nothing_of_its_input() -> None:
    x = torch.randn(3, 5, 4, 2)
    positive, negative = CReLU()(x).chunk(2, dim=1)
    assert torch.equal(positive - negative, x)
    assert (positive * negative == 0).all()


@pytest.mark.parametrize("norm", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["A", "B"])
def test_the_shortcut_of_equal_shapes_is_the_identity(kind: str, norm: str) -> None:
    x = torch.randn(2, 4, 5, 5)
    path = shortcut(norm, kind, 4, 4, 1)
    assert path(x) is x
    assert not list(path.parameters())


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("norm", OTHERS)
def test_type_a_subsamples_and_appends_zero_channels_without_parameters(norm: str, size: int) -> None:
    x = torch.randn(2, 3, size, size)
    path = shortcut(norm, "A", 3, 8, 2)
    y = path(x)
    assert not path.state_dict()
    assert y.shape == (2, 8, math.ceil(size / 2), math.ceil(size / 2))
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert (y[:, 3:] == 0).all()


def randomize_batch_norm(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.normal_(tensor)


@pytest.mark.parametrize("norm", NORMPROP)
@pytest.mark.parametrize("kind", ["A", "B"])
def test_a_shortcut_has_batchnorm_after_its_own_operation_where_it_is_asked_for(kind: str, norm: str) -> None:
    torch.manual_seed(0)
    path = shortcut(norm, kind, 3, 8, 2, batch_norm=True).eval()
    randomize_batch_norm(path)
    operation, batch_norm = path
    assert isinstance(batch_norm, nn.BatchNorm2d)
    x = torch.randn(2, 3, 6, 6)
    if kind == "A":
        y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 5))
    else:
        assert type(operation) is nn.Conv2d
        assert operation.bias is None
        y = F.conv2d(x, operation.weight, stride=2)
    scale = batch_norm.weight / (batch_norm.running_var + 1e-5).sqrt()
    y = (y - batch_norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + batch_norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(path(x), y)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", NORMPROP)
def test_normprop_normalizes_a_type_b_shortcut_itself(norm: str, stride: int) -> None:
    path = shortcut(norm, "B", 3, 8, stride)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in path.modules())
    x = torch.randn(2, 3, 4, 4)
    weight = path[0].weight
    expected = F.conv2d(x, weight / weight.norm(dim=1, keepdim=True), stride=stride) / 1.21
    torch.testing.assert_close(path(x), expected + path[0].bias.view(-1, 1, 1))
    assert (path(x) < 0).any()  # no activation on this path


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", OTHERS)
def test_the_type_b_shortcut_of_the_other_models_is_normalized_as_they_are(norm: str, stride: int) -> None:
    path = shortcut(norm, "B", 3, 8, stride)
    conv, after = path
    assert type(conv) is nn.Conv2d
    assert (conv.kernel_size, conv.stride) == ((1, 1), (stride, stride))
    assert (conv.bias is not None) == (norm == "plain")
    assert isinstance(after, nn.BatchNorm2d if norm == "bn" else nn.Identity)


def test_subsampling_also_works_without_a_change_of_channels() -> None:
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(SubsampleAndPad(3, 3, 2)(x), x[:, :, ::2, ::2])


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("in_block", [True, False])
def test_msr_filters_are_normal_with_the_fan_out(kernel_size: int, in_block: bool) -> None:
    torch.manual_seed(0)
    conv, norm = conv_norm("bn", 64, 128, kernel_size)
    initialize(conv, "msr", in_block)
    assert conv.bias is None
    std = math.sqrt(2 / (kernel_size**2 * 128))
    z = conv.weight.detach() / std
    noise = 1 / math.sqrt(z.numel())
    assert abs(z.mean()) < 5 * noise
    assert abs(z.std() - 1) < 5 * noise
    assert abs((z**4).mean() - 3) < 50 * noise  # a normal's fourth moment; a uniform's is 1.8

    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    initialize(norm, "msr", in_block)
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)


def assert_uniform(weight: torch.Tensor, bound: float) -> None:
    assert 0.99 * bound < weight.abs().max() <= bound
    assert abs(weight.std() / (bound / math.sqrt(3)) - 1) < 0.02
    assert abs(weight.mean()) < 5 * bound / math.sqrt(3 * weight.numel())


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("norm", [norm for norm in NORMALIZATIONS if norm != "bn"])
@pytest.mark.parametrize(("init", "in_block"), [("torch", True), ("torch", False), ("xavier", True), ("xavier", False)])
def test_uniform_filters_have_the_bound_of_their_kind_and_zero_biases(
    init: str, in_block: bool, norm: str, kernel_size: int
) -> None:
    torch.manual_seed(0)
    conv, _ = conv_norm(norm, 64, 128, kernel_size)
    for parameter in conv.parameters():
        nn.init.normal_(parameter)
    initialize(conv, init, in_block)
    default = init == "torch" and in_block
    assert_uniform(conv.weight.detach(), math.sqrt((1 / 64 if default else 6 / (64 + 128)) / kernel_size**2))
    assert (conv.bias is None) == (norm == "nobias")
    if conv.bias is not None:
        assert (conv.bias == 0).all()
    if norm.startswith("np"):
        torch.testing.assert_close(conv.gain.detach(), torch.full((128,), 1 / 1.21))


@pytest.mark.parametrize("init", INITS)
def test_linear_weights_are_uniform_with_zero_biases(init: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(400, 50)
    initialize(linear, init, in_block=False)
    assert_uniform(linear.weight.detach(), math.sqrt(6 / 450) if init == "torch" else 1 / 20)
    assert (linear.bias == 0).all()

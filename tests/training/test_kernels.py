"""Kernels of our own: against float32 by Triton's interpreter on the CPU, compiled for a GPU that need not be there,
and in networks.

Triton decides when a kernel is defined whether it is interpreted, so each test with it is a process of its own, which
runs one function of this file.
"""

import copy
import importlib.util
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from models.layers import CReLU, NormPropConv2d
from suite import env
from suite.tables import spec
from suite.training import filters, fused_norm, grouped, kernels, operators
from suite.training.step import Engine, Step

CPU = torch.device("cpu")
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton for this system")

# Input and output channels and image size of every 3x3 convolution with stride 1 in the residual blocks of Tables 1 to
# 3: ReLU at widths 16 and 32, CReLU at 16, 12 and 24 in both of its places.
SHAPES = sorted(
    {
        (copies * width * 2**stage, width * 2**stage, 32 // 2**stage)
        for copies, widths in ((1, (16, 32)), (2, (16, 12, 24)))
        for width, stage in product(widths, range(3))
    }
)


def draw(*shape: int) -> Tensor:
    values = torch.randn(*shape)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def compare(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, again: bool = True) -> None:
    """Values and gradients are the library's, and those of the weight the same if they are computed `again`."""
    groups = x.shape[1] // weight.shape[1]
    inputs = [value.requires_grad_() for value in (x, weight, bias) if value is not None]
    ours = operators.conv3x3(x, weight, weight.detach(), bias, stride)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    theirs = nn.functional.conv2d(x, weight, bias, stride, padding=1, groups=groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    gradient = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, inputs, gradient) for y in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    if again:
        assert torch.equal(operators.conv3x3_weight_gradient(x.detach(), gradient, groups, stride), found[1])


def interpreted_shapes() -> None:
    torch.manual_seed(0)
    for c_in, c_out, size in SHAPES:
        # A part of a tile each, since the interpreter is slow; `interpreted_counts` has whole ones and several.
        images, height = {32: (1, 2), 16: (1, 4), 8: (2, 2)}[size]
        x, bias = draw(images, c_in, height, size - 1), draw(c_out) if c_in % 32 else None
        compare(x, draw(c_out, c_in, 3, 3), bias, again=False)


def interpreted_counts() -> None:
    torch.manual_seed(0)
    for images, height, width in ((80, 2, 2), (48, 2, 3), (1, 1, 1), (3, 5, 2), (3, 1, 40)):
        compare(draw(images, 16, height, width), draw(16, 16, 3, 3), None)
    operators.PARTIAL_SUMS = 0  # one part for all pixels
    compare(draw(5, 16, 7, 8), draw(16, 16, 3, 3), None)


def interpreted_seeds() -> None:
    """Several networks side by side, the stem and the strided convolutions too; each is what it is alone."""
    torch.manual_seed(0)
    for groups, c_in, c_out, stride, height, width in (
        (3, 16, 16, 1, 2, 3),
        (2, 24, 12, 1, 1, 3),
        (2, 3, 16, 1, 3, 2),
        (2, 16, 32, 2, 4, 2),
        (2, 48, 24, 2, 3, 3),
    ):
        x, weight, bias = draw(2, groups * c_in, height, width), draw(groups * c_out, c_in, 3, 3), draw(groups * c_out)
        compare(x, weight, bias if c_in > 3 else None, stride)
        x, weight = x.detach(), weight.detach()
        whole = operators.conv3x3(x, weight, weight, None, stride).chunk(groups, 1)
        for number, (image, own) in enumerate(zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)):
            image = image.contiguous(memory_format=torch.channels_last)
            assert torch.equal(operators.conv3x3(image, own, own, None, stride), whole[number])
    x = draw(2, 3 * 12, 3, 5)
    x[:, 12:24] = torch.nan
    halves = [CReLU()(part) for part in x.chunk(3, 1)]
    torch.testing.assert_close(operators.crelu(x, 3), torch.cat(halves, 1), rtol=0, atol=0, equal_nan=True)
    gradient = draw(2, 3 * 24, 3, 5)
    ours = operators.crelu_gradient(operators.crelu(x, 3), gradient, 3)
    parts = zip(x.chunk(3, 1), gradient.chunk(3, 1), strict=True)
    for number, (part, of_part) in enumerate(parts):
        leaf = part.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(CReLU()(leaf), leaf, of_part)
        torch.testing.assert_close(ours.chunk(3, 1)[number], theirs, rtol=0, atol=0, equal_nan=True)


def interpreted_crelu() -> None:
    torch.manual_seed(0)
    for channels in (12, 16, 96):
        x = draw(3, channels, 5, 7)
        x[0, 0, 0, :4] = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])
        x.requires_grad_()
        gradient = draw(3, 2 * channels, 5, 7)
        ours, theirs = operators.crelu(x), CReLU()(x)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        (a,), (b,) = (torch.autograd.grad(y, x, gradient) for y in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def interpreted_operators() -> None:
    """What torch asks of operators that its graphs and torch.compile are to hold."""
    torch.manual_seed(0)
    x, weight, bias = draw(2, 16, 3, 4), draw(12, 16, 3, 3), draw(12)
    gradient = draw(2, 12, 3, 4)
    asked = "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_(), weight, bias.clone().requires_grad_()
    torch.library.opcheck(operators.conv3x3, leaves, test_utils=asked)
    torch.library.opcheck(operators.conv3x3_and_parts, (*leaves[:2], weight), test_utils=asked)
    torch.library.opcheck(operators.conv3x3_input_gradient, (gradient, weight, x), test_utils=asked)
    torch.library.opcheck(operators.conv3x3_weight_gradient, (x, gradient), test_utils=asked)
    torch.library.opcheck(operators.crelu, (leaves[0],), test_utils=asked)
    torch.library.opcheck(
        operators.crelu_gradient, (operators.crelu(gradient), operators.crelu(gradient)), test_utils=asked
    )


def interpreted_statistics() -> None:
    """Those of a convolution's output, which BatchNorm then need not read for them."""
    torch.manual_seed(0)
    for images, groups, c_in, c_out, stride, height, width in (
        (3, 1, 16, 16, 1, 5, 9),  # parts of 64, 64 and 7 pixels
        (2, 1, 12, 24, 1, 4, 8),  # one whole part
        (1, 1, 16, 12, 1, 1, 1),
        (2, 3, 16, 12, 1, 5, 7),
        (2, 2, 16, 32, 2, 13, 14),
    ):
        x, weight = draw(images, groups * c_in, height, width), draw(groups * c_out, c_in, 3, 3)
        x += 100  # a sum of squares would lose the deviations
        x, weight = x.requires_grad_(), weight.requires_grad_()
        y, (parts, pixels) = operators.conv3x3_with_statistics(x, weight, weight.detach(), stride)
        alone = operators.conv3x3(x, weight, weight.detach(), None, stride)
        assert torch.equal(y, alone)
        assert not parts.requires_grad
        values = y.detach().double().movedim(1, -1).flatten(0, -2)
        each = values.split(pixels)
        assert len(each) == len(parts)
        for (mean, squares), part in zip(parts.double(), each, strict=True):
            torch.testing.assert_close(mean, part.mean(0), rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(squares, ((part - part.mean(0)) ** 2).sum(0), rtol=1e-3, atol=1e-2)
        gradient = torch.randn_like(y)
        for a, b in zip(*(torch.autograd.grad(of, (x, weight), gradient) for of in (y, alone)), strict=True):
            assert torch.equal(a, b)


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid: Any) -> Any:
        self.launches += 1
        return self.kernel[grid]


def interpreted_filters() -> None:
    """NormProp's, of all layers in one launch each way: of a learnt gain and a fixed one, of one network and of two."""
    from suite.training import triton_filters as triton

    torch.manual_seed(0)
    for name, difference in filters.differences(CPU, torch.float32).items():
        assert difference < 1e-5, name
    kernels.precision_for, kernels.LEAST = lambda x: x.dtype, 4
    kernels.conv3x3 = lambda x, weight, cast, bias, stride: nn.functional.conv2d(  # which others are about
        x, weight, bias, stride, padding=1, groups=x.shape[1] // weight.shape[1]
    )
    for name, networks in (("resnet20_relu_np2", 1), ("resnet20_relu_np3", 1), ("resnet20_relu_np", 2)):
        plain = timm.create_model(name, num_classes=10, width=4).train().to(memory_format=torch.channels_last)
        plain = grouped.side_by_side(plain, networks) if networks > 1 else plain
        for parameter in plain.parameters():  # networks side by side that differ
            parameter.data *= torch.rand_like(parameter) + 0.5
        ours = copy.deepcopy(plain)
        assert kernels.use_kernels(ours) == (16 if networks == 1 else 19)
        triton.normalize_filters, triton.filter_gradients = map(
            Counted, (triton.normalize_filters, triton.filter_gradients)
        )
        compare_networks(plain, ours, draw(2, 3 * networks, 8, 8))
        assert (triton.normalize_filters.launches, triton.filter_gradients.launches) == (1, 1)
        assert all(layer.normalized is None for layer in ours.modules() if isinstance(layer, NormPropConv2d))
        with torch.no_grad():
            ours.eval()(draw(1, 3 * networks, 8, 8))
        assert triton.normalize_filters.launches == 2
        triton.normalize_filters, triton.filter_gradients = (
            triton.normalize_filters.kernel,
            triton.filter_gradients.kernel,
        )


def interpreted_odd_inputs() -> None:
    """One gradient alone, layouts of another kind, a filter that is zero, and gradients of gradients."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, 5, 16).permute(0, 3, 1, 2), draw(12, 16, 3, 3)
    x, strided = x.requires_grad_(), torch.randn(3, 32, 4, 10)[:, ::2, :, ::2]
    y = operators.conv3x3(x, weight, weight, None)
    (alone,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(nn.functional.conv2d(x, weight, padding=1).sum(), x)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
    kernels.precision_for = lambda x: x.dtype
    network = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), CReLU())
    expected = network(strided)
    assert kernels.use_kernels(network) == 1
    torch.testing.assert_close(network(strided), expected, rtol=1e-4, atol=1e-4)
    layers = [NormPropConv2d(16, 12, 3), NormPropConv2d(16, 24, 3)]
    layers[0].weight.data[5] = 0
    (first, _), (second, cast) = filters.FlatFilters(layers)(torch.float32)
    torch.testing.assert_close(first, layers[0].normalized_weight(), equal_nan=True)
    assert not cast.requires_grad
    first_gradient, second_gradient = torch.autograd.grad(second.sum(), [layer.weight for layer in layers])
    (expected,) = torch.autograd.grad(layers[1].normalized_weight().sum(), layers[1].weight)
    torch.testing.assert_close(second_gradient, expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(first_gradient[:5]).all()
    for output, leaf in (
        (operators.conv3x3(x, weight, weight, None), x),
        (operators.crelu(x), x),
        (fused_norm.normalize(nn.BatchNorm2d(16), x, "relu"), x),
        (filters.FlatFilters(layers)(torch.float32)[1][0], layers[1].weight),
    ):
        (gradient,) = torch.autograd.grad((output**2).sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=r"differentiate twice|no autograd formula"):
            gradient.sum().backward()


def interpreted_networks() -> None:
    kernels.precision_for = lambda x: x.dtype
    for name in ("resnet20_crelu_np", "resnet20_relu_bn"):
        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=10, width=12).train()
        del plain.layer1[1:], plain.layer2[2:], plain.layer3[1:]
        ours = copy.deepcopy(plain)
        assert kernels.use_kernels(ours) == 6
        compare_networks(plain, ours, draw(2, 3, 4, 8))


def interpreted_others() -> None:
    """In one process, since torch takes long to load; the last one replaces functions."""
    interpreted_operators()
    interpreted_odd_inputs()
    interpreted_networks()
    interpreted_filters()


def compare_networks(plain: nn.Module, ours: nn.Module, images: Tensor) -> None:
    """Their gradients are the same."""
    for model in (plain, ours):
        (model(images) ** 2).sum().backward()
    # Before NormProp's BatchNorm a bias has no gradient but rounding.
    rounding = 1e-6 * max(float(parameter.grad.abs().max()) for parameter in plain.parameters())
    for (parameter, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        scale = float(b.grad.abs().max())
        assert float((a.grad - b.grad).abs().max()) <= 1e-3 * scale + rounding, parameter


def compiled_for_a_gpu() -> None:
    """Compile every kernel to the machine code of a GPU with compute capability 9.0, in bfloat16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from suite.training import triton_filters, triton_kernels

    image = dict(height=32, width=32, c_in=12, c_out=24)
    alone = dict(groups=1, stride=1, x_height=32, x_width=32)
    seeds = dict(groups=5, stride=2)
    blocks = dict(tile=64, tile_in=16, tile_out=32)
    rectify = dict(channels=12, tile=128, tile_channels=16)
    for name, constants, in_float32 in (
        ("convolve", dict(transposed=False, statistics=None, **image, **alone, **blocks), {"bias"}),
        # All terms of a step of the sum are of one tap.
        ("convolve", dict(transposed=False, bias=None, **(image | dict(c_in=16)), **alone, **blocks), {"statistics"}),
        (
            "convolve",
            dict(transposed=True, bias=None, statistics=None, **image, **seeds, x_height=16, x_width=16, **blocks),
            set[str](),
        ),
        ("weight_gradient", dict(**image, **seeds, x_height=64, x_width=64, **blocks), {"sums"}),
        ("add_parts", dict(rows=32, tile=64), {"sums", "total"}),
        ("rectify_both", rectify, set[str]()),
        ("rectify_both_gradient", rectify, set[str]()),
        ("normalize_filters", dict(tile=1024), {"weights", "gains", "scaled", "norms"}),
        ("filter_gradients", dict(tile=1024), set(triton_filters.filter_gradients.arg_names)),
    ):
        kernel = getattr(triton_filters if "filter" in name else triton_kernels, name)
        types = dict.fromkeys(kernel.arg_names, "*bf16") | dict.fromkeys(in_float32, "*fp32")
        types |= {"starts": "*i32"} if "starts" in types else {}
        types |= {count: "i32" for count in ("pixels", "parts", "size", "tiles") if count in types}
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, types, {(kernel.arg_names.index(key),): value for key, value in constants.items()})
        options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert done.asm["cubin"], name


@NEEDS_TRITON
@pytest.mark.parametrize(
    "what",
    [
        pytest.param("shapes", marks=pytest.mark.full),
        pytest.param("counts", marks=pytest.mark.full),
        pytest.param("seeds", marks=pytest.mark.full),
        "crelu",
        pytest.param("statistics", marks=pytest.mark.full),
        pytest.param("others", marks=pytest.mark.full),
    ],
)
def test_the_kernels_compute_what_the_library_does(what: str, in_process: Callable[..., None]) -> None:
    in_process(f"interpreted_{what}", TRITON_INTERPRET="1")


@pytest.mark.full
@NEEDS_TRITON
def test_the_kernels_compile_for_a_gpu(tmp_path: Path, in_process: Callable[..., None]) -> None:
    in_process("compiled_for_a_gpu", TRITON_CACHE_DIR=str(tmp_path))


def test_every_convolution_of_the_tables_that_is_not_strided_fits() -> None:
    assert len(SHAPES) == 15
    for c_in, c_out, _ in SHAPES:
        assert kernels.is_supported(nn.Conv2d(c_in, c_out, 3, padding=1))
        assert kernels.is_supported(NormPropConv2d(c_in, c_out, 3, padding=1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 32, 3, 2, padding=1),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding=1, groups=8),
        nn.Conv2d(16, 32, 3, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding="same", dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(256, 16, 3, padding=1),
        nn.Linear(16, 16),
    ],
    ids=str,
)
def test_other_layers_stay_with_the_library(layer: nn.Module) -> None:
    before = type(layer)
    assert kernels.use_kernels(layer) == 0
    assert type(layer) is before


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_np"])
def test_on_the_cpu_a_network_with_kernels_computes_as_without(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=10).train()
    ours = copy.deepcopy(plain)
    assert kernels.use_kernels(ours) == 16
    assert list(ours.state_dict()) == list(plain.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(images := draw(2, 3, 32, 32)), plain(images))


def test_weights_are_cast_in_one_go_for_one_forward_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it would cast its own, and anew once they have changed."""
    monkeypatch.setattr(kernels, "precision_for", lambda x: torch.bfloat16)
    given: list[tuple[Tensor, Tensor]] = []

    def convolve(x: Tensor, weight: Tensor, cast: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
        given.append((weight.detach().clone(), cast))
        return nn.functional.conv2d(x, cast, bias, stride, padding=1)

    monkeypatch.setattr(kernels, "conv3x3", convolve)
    network = timm.create_model("resnet20_relu_plain", num_classes=10).to(memory_format=torch.channels_last)
    network.act1 = nn.Identity()
    assert kernels.use_kernels(network) == 16
    times: list[int] = []
    real = torch._foreach_copy_

    def copy_all(*lists: Any) -> None:
        times.append(len(lists[0]))
        real(*lists)

    monkeypatch.setattr(torch, "_foreach_copy_", copy_all)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            network(draw(2, 3, 8, 8))
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter += 1
        assert times == [16, 16]
        network.layer1(draw(2, 16, 8, 8))  # a part by itself casts its own
    assert times == [16, 16]
    assert len(given) == 2 * 16 + 6
    for weight, cast in given:
        assert cast.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(cast, weight.bfloat16())


def test_kernels_are_wanted_on_a_gpu_in_bfloat16_for_cifar_unless_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "cpu_multiplies_bfloat16", lambda: True)
    cifar, imagenet = (spec.load_table(number).recipe for number in (2, 4))
    gpu = torch.device("cuda")
    assert Engine().wants_kernels_on(gpu, cifar)
    assert not Engine().wants_kernels_on(gpu, imagenet)
    assert not Engine().wants_kernels_on(CPU, cifar)
    assert not Engine(precision="float32").wants_kernels_on(gpu, cifar)
    assert not Engine(kernels="library").wants_kernels_on(gpu, cifar)


def test_of_seeds_side_by_side_every_convolution_uses_kernels() -> None:
    network = grouped.side_by_side(timm.create_model("resnet20_crelu_np", num_classes=10, width=12), 2)
    assert kernels.use_kernels(network) == 19  # with the stem and two that are strided


def test_a_step_says_how_many_convolutions_use_kernels() -> None:
    recipe = spec.load_table(2).recipe
    for own, count in ((True, 16), (False, 0)):
        model = timm.create_model("resnet20_relu_bn", num_classes=10)
        assert Step(model, recipe, CPU, bfloat16=False, own_kernels=own).convolutions_by_kernels == count


def test_a_device_on_which_kernels_fail_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no C compiler\nhere")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels, "differences", fail)
    assert kernels.why_unusable.__wrapped__(CPU) == "RuntimeError: no C compiler here"
    monkeypatch.setattr(kernels, "differences", lambda *_: {"output": 0.001, "gradient of the weight": float("nan")})
    assert kernels.why_unusable.__wrapped__(CPU) == "a try gave other values than the library: gradient of the weight"
    monkeypatch.setattr(kernels, "differences", lambda *_: {"output": 0.001})
    assert kernels.why_unusable.__wrapped__(CPU) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert kernels.why_unusable.__wrapped__(CPU) == "there is no Triton"

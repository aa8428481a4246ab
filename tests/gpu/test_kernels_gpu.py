"""Kernels of our own on a GPU in bfloat16: values, reproducibility, CUDA graphs, torch.compile and training."""

import copy
import dataclasses
import importlib.util
from itertools import product

import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from models.layers import CReLU, NormPropConv2d
from suite.tables import spec
from suite.training import filters, kernels, operators
from suite.training.step import STEPS_BEFORE_CAPTURE, Step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton"),
]
GPU = torch.device("cuda")
# Those of tests/training/test_kernels.py, by the batch and the last batches of CIFAR's recipe.
SHAPES = sorted(
    {
        (copies * width * 2**stage, width * 2**stage, 32 // 2**stage)
        for copies, widths in ((1, (16, 32)), (2, (16, 12, 24)))
        for width, stage in product(widths, range(3))
    }
)


def draw(*shape: int) -> Tensor:
    """Values of bfloat16, in float32."""
    values = torch.randn(*shape, device=GPU).bfloat16().float()
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


@pytest.fixture(autouse=True)
def _exact_library() -> None:
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("images", [128, 80, 48, 3])
@pytest.mark.parametrize(("c_in", "c_out", "size"), SHAPES)
def test_a_convolution_is_float32s_within_bfloat16s_rounding(c_in: int, c_out: int, size: int, images: int) -> None:
    x, weight, bias = draw(images, c_in, size, size), draw(c_out, c_in, 3, 3), draw(c_out)
    inputs = [value.requires_grad_() for value in (x, weight, bias)]
    ours = operators.conv3x3(x.bfloat16(), weight, weight.detach().bfloat16(), bias)
    theirs = nn.functional.conv2d(x, weight, bias, padding=1)
    gradient = draw(*ours.shape)
    found = ours, *torch.autograd.grad(ours, inputs, gradient.bfloat16())
    expected = theirs, *torch.autograd.grad(theirs, inputs, gradient)
    for a, b in zip(found, expected, strict=True):
        # Half a step of bfloat16, and what float32 sums differ by.
        assert bool(((a.float() - b).abs() <= b.abs() / 256 + 1e-4 * b.abs().max()).all())


@pytest.mark.parametrize(("c_in", "c_out", "size"), SHAPES)
def test_gradients_are_the_same_every_time(c_in: int, c_out: int, size: int) -> None:
    x, gradient = draw(128, c_in, size, size).bfloat16(), draw(128, c_out, size, size).bfloat16()
    first, *others = (operators.conv3x3_weight_gradient(x, gradient) for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("channels", [12, 16, 24, 48, 96])
def test_crelu_is_the_librarys(channels: int) -> None:
    x = draw(80, channels, 16, 16).bfloat16()
    x[0, 0, 0, :4] = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])
    x.requires_grad_()
    ours, theirs = operators.crelu(x), CReLU()(x)
    gradient = draw(*ours.shape).bfloat16()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    (a,), (b,) = (torch.autograd.grad(y, x, gradient) for y in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_normprops_filters_are_the_librarys_and_the_same_every_time() -> None:
    layers = [NormPropConv2d(c_in, c_out, 3).to(GPU, memory_format=torch.channels_last) for c_in, c_out, _ in SHAPES]
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.gain)]
    for parameter in parameters:
        nn.init.normal_(parameter)
    theirs = [layer.normalized_weight() for layer in layers]
    gradients = [draw(*layer.weight.shape) for layer in layers]
    expected = torch.autograd.grad(theirs, parameters, gradients)
    runs = []
    for _ in range(2):
        made = filters.FlatFilters(layers)(torch.bfloat16)
        ours = [scaled for scaled, _ in made]
        assert all(torch.equal(cast, scaled.bfloat16()) for scaled, cast in made)
        runs.append([*ours, *torch.autograd.grad(ours, parameters, gradients)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    for a, b in zip(runs[0], [*theirs, *expected], strict=True):
        assert float((a - b).detach().abs().max()) <= 1e-5 * float(b.detach().abs().max())


def test_nothing_is_wrong_with_this_gpu() -> None:
    assert kernels.why_unusable(GPU) is None


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet20_relu_bn", 16), ("resnet20_crelu_bn", 16), ("resnet20_crelu_np", 16), ("resnet20_crelu_bn", 12)],
)
def test_losses_follow_the_librarys(name: str, width: int, compiled: bool) -> None:
    """Over steps before and after a CUDA graph is captured, with a smaller last batch between."""
    recipe = dataclasses.replace(spec.load_table(2).recipe, learning_rate=0.01)
    start = timm.create_model(name, num_classes=10, width=width)
    losses = []
    for own in (True, False):
        step = Step(copy.deepcopy(start).train(), recipe, GPU, True, compiled, own_kernels=own)
        assert step.convolutions_by_kernels == (16 if own else 0)
        torch.manual_seed(1)
        images, labels = draw(128, 3, 32, 32), torch.randint(10, (128,), device=GPU)
        losses.append([])
        for number in range(2 * STEPS_BEFORE_CAPTURE + 6):
            count = 80 if number % 2 else 128
            losses[-1].append(float(step(images[:count], labels[:count])))
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0][-1] < losses[0][0]

"""BatchNorm with addition and activation by kernels of our own: against the library in float32 by Triton's interpreter
on the CPU, compiled for a GPU that need not be there, and in networks.

Triton decides when a kernel is defined whether it is interpreted, so each test with it is a process of its own, which
runs one function of this file.
"""

import copy
import importlib.util
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter

import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from models.layers import CReLU
from suite.tables import spec
from suite.training import fused_norm, kernels
from suite.training.step import Step

CPU = torch.device("cpu")
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton for this system")
# Channels of every BatchNorm in the residual blocks of Tables 1 to 3: ReLU at widths 16 and 32, CReLU at 16, 12 and 24.
CHANNELS = sorted({width * 2**stage for width, stage in product((12, 16, 24, 32), range(3))})
# What follows the norm, and whether something is added.
KINDS: tuple[tuple[fused_norm.Activation, bool], ...] = (
    ("relu", False),
    ("crelu", False),
    ("relu", True),
    ("none", True),
    ("none", False),
)


def draw(*shape: int) -> Tensor:
    values = torch.randn(*shape)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def library(norm: nn.BatchNorm2d, x: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    y = norm(x) if residual is None else norm(x) + residual
    after: dict[str, nn.Module] = {"none": nn.Identity(), "relu": nn.ReLU(), "crelu": CReLU()}
    found: Tensor = after[activation](y)
    return found


def compare(channels: int, images: int, height: int, width: int, kinds: Sequence[int] = range(5)) -> None:
    """Both passes and the running statistics, in float32 against the library in float64."""
    for activation, added in [KINDS[kind] for kind in kinds]:
        x = draw(images, channels, height, width).requires_grad_()
        residual = draw(images, channels, height, width).requires_grad_() if added else None
        theirs = nn.BatchNorm2d(channels, momentum=0.3)
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
        ours, theirs = copy.deepcopy(theirs), theirs.double()
        y = fused_norm.normalize(ours, x, activation, residual)
        assert y.is_contiguous(memory_format=torch.channels_last)
        wide = None if residual is None else residual.double()
        expected = library(theirs, x.double(), activation, wide)
        gradient = torch.randn_like(y)
        added_to = [x] if residual is None else [x, residual]
        found = y, *torch.autograd.grad(y, [*ours.parameters(), *added_to], gradient), *ours.buffers()
        wanted = expected, *torch.autograd.grad(expected, [*theirs.parameters(), *added_to], gradient.double())
        for a, b in zip(found, (*wanted, *theirs.buffers()), strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=2e-4 * float(1 + b.detach().abs().max()))


def interpreted_shapes() -> None:
    torch.manual_seed(0)
    for channels in CHANNELS:
        compare(channels, 2, 3, 5, (1, 2))
    compare(320, 1, 3, 5, (1,))  # five seeds side by side


def interpreted_counts() -> None:
    torch.manual_seed(0)
    compare(16, 80, 2, 2)
    for images, height, width in ((48, 2, 3), (2, 1, 1), (3, 1, 40)):
        compare(16, images, height, width, (0, 2))
    fused_norm.VALUES = 64  # of 16 channels four pixels a tile, and 20 parts
    compare(16, 80, 1, 1, (2,))
    fused_norm.PROGRAMS = 3
    compare(16, 5, 3, 7)  # parts of nine tiles, the last of which is not whole


def interpreted_large_mean() -> None:
    """A sum of squares would leave nothing of a deviation of 1 from a mean of 1000."""
    torch.manual_seed(0)
    fused_norm.VALUES, fused_norm.PROGRAMS = 64, 3
    channels, x = 16, draw(5, 16, 3, 7) + 1000
    norm, exact = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels).double()
    # Values near 1000 have steps of 6e-5 in float32.
    torch.testing.assert_close(fused_norm.normalize(norm, x).double(), exact(x.double()), rtol=0, atol=1e-3)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-4, atol=0)


def interpreted_groups() -> None:
    """CReLU of two networks side by side is that of each."""
    torch.manual_seed(0)
    norms, x = [nn.BatchNorm2d(12) for _ in range(2)], draw(3, 24, 2, 3).requires_grad_()
    both = nn.BatchNorm2d(24)
    y = fused_norm.normalize(both, x, "crelu", groups=2)
    each = torch.cat([CReLU()(norm(part)) for norm, part in zip(norms, x.chunk(2, 1), strict=True)], dim=1)
    torch.testing.assert_close(y, each)
    gradient = torch.randn_like(y)
    (a,), (b,) = (torch.autograd.grad(value, x, gradient) for value in (y, each))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def interpreted_not_finite() -> None:
    for value in (torch.inf, torch.nan):
        x = draw(2, 16, 2, 3)
        x[0, 0, 0, 0] = value
        for activation, _ in KINDS:
            y = fused_norm.normalize(nn.BatchNorm2d(16), x, activation)
            assert y[:, 0].isnan().all()
            assert y[:, 1:16].isfinite().all()


def interpreted_stages() -> None:
    """Three blocks of either kind, the first of which halves the image; with convolutions by the library, and by our
    kernels, which find the statistics."""
    kernels.precision_for = lambda x: x.dtype
    for name, width in product(("resnet20_crelu_bn", "resnet20_relu_bn"), (4, 12)):
        torch.manual_seed(0)
        plain = timm.create_model(name, width=width).layer2.train()
        ours = copy.deepcopy(plain)
        assert kernels.use_kernels(ours) == (0 if width == 4 else 5)
        assert fused_norm.use_norms(ours) == 6
        images = draw(3, width, 6, 6)
        for stage in (plain, ours):
            (stage(images) ** 2).sum().backward()
        for (parameter, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
            assert float((a.grad - b.grad).abs().max()) <= 1e-3 * float(b.grad.abs().max()), (name, parameter)
        for (buffer, a), b in zip(ours.named_buffers(), plain.named_buffers(), strict=True):
            torch.testing.assert_close(a, b[1], rtol=1e-4, atol=1e-5, msg=buffer)
        assert not torch.equal(ours(images), plain(images))  # which rounds at other places
        with torch.no_grad():
            ours.load_state_dict(plain.state_dict())
            tested, expected = ours.eval()(images), plain.eval()(images)
        torch.testing.assert_close(tested, expected, rtol=1e-4 if width == 12 else 0, atol=1e-4 if width == 12 else 0)


def interpreted() -> None:
    """All of them in one process, since torch takes long to load."""
    size, programs = fused_norm.VALUES, fused_norm.PROGRAMS
    for name, function in list(globals().items()):
        if name.startswith("interpreted_"):
            start = perf_counter()
            fused_norm.VALUES, fused_norm.PROGRAMS = size, programs
            function()
            print(f"{name} passed, {perf_counter() - start:.1f} s", flush=True)


def interpreted_try() -> None:
    assert all(difference < 1e-4 for difference in fused_norm.differences(CPU, torch.float32).values())


def compiled_for_a_gpu() -> None:
    """Compile every kernel to the machine code of a GPU with compute capability 9.0, in bfloat16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from suite.training import triton_norm

    block = dict(channels=12, tile=128, tile_channels=16)
    relu, crelu, none = (dict(activation=kind, half=12) for kind in ("relu", "crelu", "none"))
    for name, constants in (
        ("part_statistics", block),
        ("merge_statistics", dict(channels=12, rows=64, tile_channels=16)),
        ("normalize", dict(residual=None, **crelu, **block)),
        ("normalize", dict(**relu, **block)),
        ("part_gradients", dict(y=None, **crelu, **block)),
        ("part_gradients", dict(**relu, **block)),
        ("input_gradient", dict(y=None, of_residual=None, **none, **block)),
        ("input_gradient", dict(**relu, **block)),
    ):
        kernel = getattr(triton_norm, name)
        scalars = dict.fromkeys(("pixels", "tiles", "parts", "of_a_part"), "i32")
        scalars |= dict(momentum="fp32", eps="fp32", batches="*i64")
        wide = ("x", "y", "gradient", "residual", "result", "of_residual")
        types = {argument: "*bf16" if argument in wide else "*fp32" for argument in kernel.arg_names}
        types |= {key: value for key, value in scalars.items() if key in types} | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, types, {(kernel.arg_names.index(key),): value for key, value in constants.items()})
        options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert done.asm["cubin"], name


@NEEDS_TRITON
@pytest.mark.full
def test_the_kernels_compute_what_the_library_does(in_process: Callable[..., None]) -> None:
    in_process("interpreted", TRITON_INTERPRET="1")


@pytest.mark.full
@NEEDS_TRITON
def test_the_kernels_compile_for_a_gpu(tmp_path: Path, in_process: Callable[..., None]) -> None:
    in_process("compiled_for_a_gpu", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(16, affine=False),
        nn.BatchNorm2d(16, track_running_stats=False),
        nn.BatchNorm2d(16, momentum=None),
        nn.BatchNorm2d(fused_norm.MOST_CHANNELS + 1),
        nn.InstanceNorm2d(16, affine=True, track_running_stats=True),
        nn.Identity(),
    ],
    ids=str,
)
def test_other_norms_stay_with_the_library(norm: nn.Module) -> None:
    assert fused_norm.is_supported(nn.BatchNorm2d(16))
    assert not fused_norm.is_supported(norm)


def test_blocks_with_a_norm_elsewhere_stay_with_the_library() -> None:
    for name in ("resnet20_crelu_np", "resnet20_relu_plain", "resnet50_relu_bn"):
        assert fused_norm.use_norms(timm.create_model(name, num_classes=10)) == 0


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_bn"])
def test_on_the_cpu_a_network_with_kernels_computes_as_without(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=10).train()
    ours = copy.deepcopy(plain)
    assert fused_norm.use_norms(ours) == 18
    assert list(ours.state_dict()) == list(plain.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(images := draw(2, 3, 8, 8)), plain(images))


def test_a_step_says_how_many_norms_use_kernels() -> None:
    recipe = spec.load_table(2).recipe
    for own, compiled, count in ((True, False, 18), (True, True, 0), (False, False, 0)):
        model = timm.create_model("resnet20_relu_bn", num_classes=10)
        step = Step(model, recipe, CPU, bfloat16=False, compiled=compiled, own_kernels=own)
        assert step.norms_by_kernels == count

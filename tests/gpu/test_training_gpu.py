"""Training on a GPU: BatchNorm's kernels in bfloat16, tests as CUDA graphs, float32 against the CPU, packs and
resumption."""

import copy
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from models.layers import CReLU
from suite.data import sets as data
from suite.data.batches import Batches
from suite.tables import spec
from suite.tf32 import without_tf32
from suite.training import fitting, fused_norm, testing, train
from suite.training.job import FinishedTraining
from suite.training.step import Engine, Step
from suite.training.testing import QuickForward, benchmark_convolutions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
RECIPE = dataclasses.replace(spec.load_table(2).recipe, epochs=3, learning_rate=0.02, milestones=(3,))


def draw(*shape: int) -> Tensor:
    """Values of bfloat16, in float32."""
    values = torch.randn(*shape, device=GPU).bfloat16().float()
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def source(train_images: int = 128 * 3 + 80, test_images: int = 250) -> data.Dataset:
    """Random images, each class brighter than the one before it, so that something can be learned."""
    random = np.random.default_rng(0)

    def split(count: int) -> data.Split:
        labels = np.arange(count, dtype=np.int64) % 10
        pixels = random.integers(0, 130, (count, 32, 32, 3)) + 12 * labels[:, None, None, None]
        return data.Split(pixels.astype(np.uint8), labels)

    mean, deviation = (120.0, 120.0, 120.0), (50.0, 50.0, 50.0)
    return data.Dataset("random", tuple("abcdefghij"), split(train_images), split(test_images), mean, deviation, {})


def job(model: str, seed: int, out: Path, recipe: spec.Recipe = RECIPE, **more: Any) -> train.Job:
    out.mkdir(parents=True, exist_ok=True)
    return train.Job(model, Batches(source(), recipe, GPU), seed, out, **more)


@NEEDS_TRITON
@pytest.mark.parametrize("images", [128, 80, 48])
@pytest.mark.parametrize(("channels", "size"), [(12, 32), (16, 32), (24, 16), (32, 16), (64, 8), (96, 8), (128, 8)])
@pytest.mark.parametrize(("activation", "added"), [("relu", False), ("crelu", False), ("relu", True), ("none", True)])
def test_batchnorm_is_float32s_within_bfloat16s_rounding(
    activation: fused_norm.Activation, added: bool, channels: int, size: int, images: int
) -> None:
    torch.manual_seed(0)
    x, residual = (draw(images, channels, size, size).requires_grad_() for _ in range(2))
    theirs = nn.BatchNorm2d(channels, device=GPU)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = copy.deepcopy(theirs)
    y = fused_norm.normalize(ours, x.bfloat16(), activation, residual.bfloat16() if added else None)
    expected = theirs(x) + residual if added else theirs(x)
    gradient = draw(*y.shape)
    # Near zero, rounding decides what an activation lets through. So the gradients are those through our output.
    if activation == "relu":
        masked = torch.where(y > 0, expected, 0)
    elif activation == "crelu":
        masked = torch.cat(
            (torch.where(y[:, :channels] > 0, expected, 0), torch.where(y[:, channels:] > 0, -expected, 0)), 1
        )
    else:
        masked = expected
    after: dict[str, nn.Module] = {"none": nn.Identity(), "relu": nn.ReLU(), "crelu": CReLU()}
    inputs = [x, residual] if added else [x]
    found = y, *torch.autograd.grad(y, [*ours.parameters(), *inputs], gradient.bfloat16()), *ours.buffers()
    wanted = torch.autograd.grad(masked, [*theirs.parameters(), *inputs], gradient)
    for a, b in zip(found, (after[activation](expected), *wanted, *theirs.buffers()), strict=True):
        # Half a step of bfloat16, and what float32 sums differ by.
        assert bool(((a.float() - b.float()).abs() <= b.abs() / 256 + 1e-3 * b.abs().max()).all())


@NEEDS_TRITON
def test_batchnorm_is_the_same_every_time() -> None:
    x, gradient = draw(128, 16, 32, 32).bfloat16().requires_grad_(), draw(128, 16, 32, 32).bfloat16()
    runs = []
    for _ in range(3):
        norm = nn.BatchNorm2d(16, device=GPU)
        y = fused_norm.normalize(norm, x, "relu")
        runs.append([y, *torch.autograd.grad(y, [x, *norm.parameters()], gradient), norm.running_var])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@NEEDS_TRITON
def test_nothing_is_wrong_with_batchnorm_on_this_gpu() -> None:
    assert fused_norm.why_unusable(GPU) is None


def test_training_in_float32_on_a_gpu_follows_that_on_a_cpu() -> None:
    """Over 12 steps, launch by launch and as a CUDA graph."""
    torch.manual_seed(0)
    start = timm.create_model("resnet20_relu_bn", num_classes=10)
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(64, 3, 32, 32, generator=draws).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (64,), generator=draws)
    recipe, losses = dataclasses.replace(RECIPE, learning_rate=0.01), []
    with without_tf32():
        for device in (CPU, GPU):
            step = Step(copy.deepcopy(start).train(), recipe, device, bfloat16=False)
            losses.append([float(step(images.to(device), labels.to(device))) for _ in range(12)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_quick_pass_sees_weights_as_they_are_now(bfloat16: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet20_relu_bn", num_classes=10).to(GPU, memory_format=torch.channels_last).eval()
    quick = QuickForward(model, bfloat16)
    images = draw(50, 3, 32, 32)
    with torch.inference_mode(), without_tf32(), benchmark_convolutions():
        for number in range(7):
            if number == 3:  # moved, as when networks are stacked; graphs are then captured anew
                for value in model.parameters():
                    value.data = value.data.clone()
            for value in model.parameters():
                value.mul_(1.05)
            expected = model(images)
            for part in (images, images[:20]):
                logits = quick(part)
                assert logits.dtype == torch.float32
                wanted = expected[: len(part)]
                limit = (0.05 if bfloat16 else 1e-4) * float(wanted.abs().max())
                assert float((logits - wanted).abs().max()) <= limit


def test_the_error_of_the_record_is_that_of_float32(tmp_path: Path) -> None:
    result = train.train(job("resnet20_relu_bn", 0, tmp_path)).result
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    again = testing.evaluate(model, Batches(source(), RECIPE, CPU).test())
    assert result.precision == "bfloat16 autocast"
    assert result.top1 == pytest.approx(again.top1, abs=0.81)  # two images whose logits are nearly equal


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_packed_networks_follow_each_alone(precision: Any, tmp_path: Path) -> None:
    engine = Engine(precision, "never")
    alone = [train.train(job("resnet20_crelu_bn", seed, tmp_path / f"alone{seed}"), engine) for seed in range(2)]
    packed = train.train_packed([job("resnet20_crelu_bn", seed, tmp_path / f"{seed}") for seed in range(2)], engine)
    for one, other in zip(alone, packed, strict=True):
        assert isinstance(other, FinishedTraining)
        assert other.result.epochs[0].train_loss == pytest.approx(one.result.epochs[0].train_loss, rel=0.02)
    losses = [one.result.epochs[0].train_loss for one in alone]
    assert losses[0] != losses[1]


class CrashError(Exception):
    """Stands for a process that is killed."""


def test_a_run_that_was_killed_goes_on_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)

    def crash(done: int, total: int, note: str) -> None:
        if done == 7:  # in the midst of the second epoch, when steps are CUDA graphs
            raise CrashError

    engine, name = Engine("float32", "never"), "resnet20_relu_bn"
    whole = train.train(job(name, 0, tmp_path / "whole"), engine)
    with pytest.raises(CrashError):
        train.train(job(name, 0, tmp_path / "parts", checkpoints=tmp_path / "saved", on_step=crash), engine)
    parts = train.train(job(name, 0, tmp_path / "parts", checkpoints=tmp_path / "saved"), engine)
    assert parts.result.steps == whole.result.steps
    found, expected = ([epoch.train_loss for epoch in each.result.epochs] for each in (parts, whole))
    assert found == pytest.approx(expected, rel=0.02)

"""One step of training: layouts, precision, torch.compile, and shares of a batch."""

import copy
import dataclasses
import functools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from msgspec import to_builtins
from torch import nn
from torch._dynamo.testing import CompileCounter

import models  # noqa: F401 - registers the networks with timm
from suite import env
from suite.distributed import Group
from suite.interrupt import Interruption
from suite.tables import spec
from suite.training import compiling
from suite.training.compiling import try_compile
from suite.training.step import Engine, Step, _compile, keep_channels_last

CPU = torch.device("cpu")
RECIPE = spec.load_table(2).recipe


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 32, 32, generator=draws).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (size,), generator=draws)


def net(name: str = "resnet20_crelu_bn", **model_args: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=10, **model_args)
    return model.train()


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_bn", "resnet34_relu_bn"])
def test_gradients_stay_channels_last_all_the_way_down(name: str) -> None:
    model = keep_channels_last(net(name))
    seen: list[bool] = []

    def look(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=torch.channels_last)))

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(look)
    model(batch()[0]).sum().backward()
    assert len(seen) > 18
    assert all(seen)


def test_the_layout_changes_no_gradient() -> None:
    plain, ours = net().double(), keep_channels_last(net().double())
    images = batch()[0].double()
    for model in (plain, ours):
        (model(images) ** 2).sum().backward()
    for expected, parameter in zip(plain.parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        assert parameter.grad is not None
        assert torch.allclose(expected.grad, parameter.grad, rtol=1e-9, atol=1e-9)


def test_precision_follows_the_device_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_instructions in (True, False):
        monkeypatch.setattr(env, "cpu_multiplies_bfloat16", lambda has=has_instructions: has)
        assert Engine().bfloat16_on(CPU) is has_instructions
        assert Engine().bfloat16_on(torch.device("cuda"))
        assert Engine(precision="bfloat16").bfloat16_on(CPU)
        assert not Engine(precision="float32").bfloat16_on(torch.device("cuda"))


def test_weights_momentum_and_sums_are_float32_under_bfloat16() -> None:
    one = Step(net(), RECIPE, CPU, bfloat16=True)
    loss = one(*batch())
    momenta = [state["momentum_buffer"] for state in one.optimizer.state.values()]
    tensors = [*one.model.state_dict().values(), *momenta, one.loss_sum, one.correct]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    assert float(one.loss_sum) == pytest.approx(6 * float(loss))


def test_the_learning_rate_is_that_of_the_last_call() -> None:
    one = Step(tiny(), dataclasses.replace(RECIPE, momentum=0.0, weight_decay=0.0), CPU, bfloat16=False)
    one.set_learning_rate(0.0)
    before = copy.deepcopy(one.model.state_dict())
    one(*batch())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), one.model.state_dict().values(), strict=True))
    one.set_learning_rate(0.5)
    one(*batch())
    for name, parameter in one.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter, before[name] - 0.5 * parameter.grad, atol=1e-7)


def test_unequal_shares_of_a_batch_are_weighted_by_their_images() -> None:
    images, labels = batch(5)
    whole = Step(tiny(), RECIPE, CPU, bfloat16=False)
    whole(images, labels)
    gradients = []
    for part in (slice(0, 3), slice(3, 5)):
        share = Step(tiny(), RECIPE, CPU, bfloat16=False)
        share.group = Group(size=2)  # as if, without the averaging itself
        share(images[part], labels[part], 5)
        gradients.append([p.grad for p in share.model.parameters()])
    for parameter, *parts in zip(whole.model.parameters(), *gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, (parts[0] + parts[1]) / 2, atol=1e-5)


def test_compiling_is_not_tried_where_little_training_is_left() -> None:
    found = try_compile(tiny(), RECIPE, False, batch(), steps=10)
    assert to_builtins(found).keys() == {"compiled", "step_seconds"}
    assert found.compiled is False


def test_a_trial_of_compiling_ends_at_the_next_step_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    class Interrupted(Step):
        def __call__(self, *batch: torch.Tensor) -> torch.Tensor:
            steps.append(len(steps))
            if len(steps) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*batch)

    monkeypatch.setattr(compiling, "Step", Interrupted)
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        try_compile(tiny(), RECIPE, False, batch(), steps=10, interruption=interruption)
    assert len(steps) == 2


@pytest.mark.full
def test_compiling_is_decided_by_measured_steps_and_leaves_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiling.WORTH_A_TRIAL, "cpu", 0.0)
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    found = try_compile(model, RECIPE, False, batch(), steps=1)
    assert found.compiled is (found.compiled_step_seconds < found.step_seconds)
    assert found.compile_seconds > 0
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Counts what is compiled, and has it computed as it stands."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


@pytest.mark.full
def test_every_network_of_a_long_table_is_compiled(counter: CompileCounter) -> None:
    names = [f"resnet20_{act}_{norm}" for act in ("relu", "crelu") for norm in ("bn", "np2")]
    for count, name in enumerate(names, start=1):
        Step(net(name, width=4), RECIPE, CPU, bfloat16=False, compiled=True)(*batch(2))
        # Of three stages, of which two begin with a block of another kind.
        assert counter.frame_count == 5 * count, name


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_np"])
def test_a_kind_of_block_is_compiled_once_for_all_seeds_depths_and_batch_sizes(
    name: str, counter: CompileCounter
) -> None:
    for other in (name, name, name.replace("20", "32")):
        one = Step(net(other, width=4), RECIPE, CPU, bfloat16=False, compiled=True)
        for size in (6, 4, 5):
            one(*batch(size))
        assert counter.frame_count == 5


def test_tests_of_a_compiled_network_compile_nothing(counter: CompileCounter) -> None:
    one = Step(net(), RECIPE, CPU, bfloat16=False, compiled=True)
    with torch.inference_mode():
        found = one.model.eval()(batch()[0])
        assert torch.equal(found, keep_channels_last(net()).eval()(batch()[0]))
    assert counter.frame_count == 0


@pytest.mark.full
def test_compiled_blocks_have_the_same_gradients() -> None:
    plain, compiled = net("resnet20_relu_bn").double(), net("resnet20_relu_bn").double()
    for model in (plain, compiled):  # of blocks that are compiled each by itself one of a kind, and one kind twice
        del model.layer1[2:], model.layer2[1:], model.layer3[1:]
    _compile(compiled)
    images = batch()[0].double()
    for model in (plain, compiled):
        (model(images) ** 2).sum().backward()
    for expected, parameter in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert expected.grad is not None
        assert parameter.grad is not None
        assert torch.allclose(expected.grad, parameter.grad, rtol=1e-6, atol=1e-6 * float(expected.grad.abs().max()))


@pytest.mark.full
def test_a_compiled_step_is_the_same_step() -> None:
    plain, compiled = (Step(tiny(), RECIPE, CPU, bfloat16=False, compiled=which) for which in (False, True))
    for _ in range(2):
        assert float(plain(*batch())) == pytest.approx(float(compiled(*batch())), rel=1e-5)
    for expected, parameter in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        assert torch.allclose(expected, parameter, atol=1e-6)

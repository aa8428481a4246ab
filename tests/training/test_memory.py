"""Blocks that are computed twice: the same results bit for bit, and less kept."""

import dataclasses

import pytest
import timm
import torch
from torch import Tensor, nn

import models  # noqa: F401 - registers the networks with timm
from suite.tables import spec
from suite.training import memory, step
from suite.training.step import Step

CPU = torch.device("cpu")
RECIPE = dataclasses.replace(spec.load_table(2).recipe, batch_size=4)
SHAPE = (4, 3, 32, 32)


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=10)
    return model.train()


def batch() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(*SHAPE, generator=draws).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (4,), generator=draws)


def bytes_kept(model: nn.Module) -> int:
    """Of the tensors that a forward pass really keeps for the gradient, each storage once, parameters left out."""
    own = {value.untyped_storage().data_ptr() for value in model.state_dict(keep_vars=True).values()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(batch()[0])
    assert logits.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_bn", "resnet20_crelu_np"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_computing_blocks_twice_changes_no_bit(name: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    for budget in (1e12, 0.0):
        monkeypatch.setattr(memory, "BUDGET", {2: budget, 4: budget})
        steps.append(Step(net(name), RECIPE, CPU, bfloat16))
    once, twice = steps
    assert (once.blocks_twice, twice.blocks_twice) == (0, 9)
    for _ in range(2):
        assert torch.equal(once(*batch()), twice(*batch()))
    expected, found = once.model.state_dict(), twice.model.state_dict()
    # Running statistics and their counts too: each batch is taken in once.
    assert list(expected) == list(found)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    with torch.inference_mode():
        assert torch.equal(once.model.eval()(batch()[0]), twice.model.eval()(batch()[0]))
    for one, other in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_bn", "resnet20_relu_plain"])
def test_what_is_kept_is_known_before_anything_is_computed(name: str) -> None:
    model = net(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, kept, rest = memory._values_kept(model, memory.blocks_of(model), SHAPE)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(kept) == 9
    assert 4 * (sum(kept) + rest) == pytest.approx(bytes_kept(model), rel=0.01)


def test_a_block_computed_twice_keeps_its_input_alone() -> None:
    plain, ours = net("resnet20_crelu_bn"), net("resnet20_crelu_bn")
    memory.recompute_activations(ours, SHAPE, 4, budget=0.0)
    assert bytes_kept(ours) < 0.3 * bytes_kept(plain)


def test_no_more_blocks_than_needed_are_computed_twice() -> None:
    counts = [
        memory.recompute_activations(net("resnet20_crelu_bn"), SHAPE, 4, budget)[0] for budget in (17e6, 12e6, 0.0)
    ]
    assert counts[0] == 0
    assert 0 < counts[1] < 9
    assert counts[2] == 9


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_bn", "resnet56_relu_bn"])
def test_nothing_is_computed_twice_that_fits_into_two_gigabytes_in_float32(name: str) -> None:
    # Their measured peaks at batch 128, all kept, are 1.29, 1.50 and 1.82 GB.
    assert memory.recompute_activations(net(name), (128, 3, 32, 32), 4) == (0, True)


def test_resnet110_with_crelu_fits_with_every_block_computed_twice() -> None:
    assert memory.recompute_activations(net("resnet110_crelu_bn"), (128, 3, 32, 32), 4) == (54, True)
    number, fits = memory.recompute_activations(net("resnet110_crelu_bn"), (128, 3, 32, 32), 2)
    assert fits
    assert 0 < number < 54


def test_a_network_without_blocks_stays_as_it_is() -> None:
    assert memory.recompute_activations(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), SHAPE, 4, budget=0.0) == (
        0,
        False,
    )


def test_torch_compile_chooses_itself_what_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step.memory, "recompute_activations", lambda *_: pytest.fail("interfered"))
    assert Step(net("resnet20_relu_bn"), RECIPE, CPU, bfloat16=False, compiled=True).blocks_twice == 0

"""Seeds of one network trained as one: each is what it is alone, in and out of the stack."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from msgspec import to_builtins
from torch import Tensor, nn

from suite.data import sets as data
from suite.data.batches import Batch, Batches
from suite.data.sets import Dataset, Split
from suite.tables import spec
from suite.training import checkpoint, feasible, fitting, fused_norm, kernels, train
from suite.training.job import FinishedTraining
from suite.training.pack import Outcome
from suite.training.stacked import Seed, Stack, State
from suite.training.step import Engine, Step

CPU = torch.device("cpu")
STACKED = Engine(precision="float32", compile="never", stack="always")
ALONE = dataclasses.replace(STACKED, stack="never")
RECIPE = dataclasses.replace(spec.load_table(2).recipe, epochs=2, batch_size=24, learning_rate=0.01, milestones=(2,))
SEEDS = 3


def digits(train_images: int = 60, test_images: int = 20) -> Dataset:
    """A few of the embedded digits."""
    whole = data.load("digits10")
    parts = [
        Split(split.images[:count], split.labels[:count])
        for split, count in ((whole.train, train_images), (whole.test, test_images))
    ]
    return dataclasses.replace(whole, train=parts[0], test=parts[1])


def jobs(folder: Path, batches: Batches, model: str = "resnet20_relu_bn", **more: Any) -> list[train.Job]:
    """A job for each seed of a narrow network, with a folder for its weights."""
    made = []
    for seed in range(SEEDS):
        out = folder / str(seed)
        out.mkdir(parents=True)
        options = {"model_args": {"width": 4}, "checkpoints": folder / f"saved{seed}"} | more
        made.append(train.Job(model, batches, seed, out, **options))
    return made


def weights(folder: Path) -> dict[str, Tensor]:
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.state_dict()


def assert_same(one: Outcome, other: Outcome) -> None:
    """Two results are of the same training but for rounding."""
    assert isinstance(one, FinishedTraining)
    assert isinstance(other, FinishedTraining)
    found, expected = one.result, other.result
    assert to_builtins(found).keys() == to_builtins(expected).keys()
    assert (found.steps, found.trained, len(found.tries)) == (
        expected.steps,
        expected.trained,
        len(expected.tries),
    )
    for tried, again in zip(found.tries, expected.tries, strict=True):
        assert tried.outcome == again.outcome
        assert tried.learning_rate == again.learning_rate
    for epoch, again in zip(found.epochs, expected.epochs, strict=True):
        assert epoch.train_loss == pytest.approx(again.train_loss, rel=1e-3)
        assert epoch.learning_rate == again.learning_rate


def assert_same_weights(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize(
    ("name", "momentum"),
    [
        ("resnet20_relu_bn", 0.9),
        ("resnet20_relu_bn", 0.0),
        ("resnet20_crelu_plain", 0.9),
        ("resnet20_crelu_np2", 0.9),
        ("resnet20_relu_np", 0.9),
    ],
)
def test_steps_of_a_stack_are_those_of_each_network_alone(name: str, momentum: float) -> None:
    """In float64, where rounding is small: losses, weights, statistics and momentum; with steps before and after."""
    # A CPU step by CIFAR's recipe estimates its memory in float32.
    recipe = dataclasses.replace(RECIPE, momentum=momentum, augment="imagenet")

    def step(model: nn.Module, seeds: int = 1) -> Step:
        return Step(model.double(), recipe, CPU, bfloat16=False, seeds=seeds)

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, num_classes=10, width=8)
        return model.double().train()

    def batches(number: int) -> list[Batch]:
        draws = torch.Generator().manual_seed(number)
        images = [torch.randn(5, 3, 8, 8, generator=draws, dtype=torch.float64) for _ in range(SEEDS)]
        return [(image, torch.randint(10, (5,), generator=draws)) for image in images]

    def state(one: Step) -> State:
        found = {f"model.{key}": value for key, value in one.model.state_dict().items()}
        found |= {f"momentum.{key}": value for key, value in one.momenta().items()}
        return found | {"loss_sum": one.loss_sum, "hits": one.correct}

    alone = [step(network(seed)) for seed in range(SEEDS)]
    for one, batch in zip(alone, batches(0), strict=True):
        one(*batch)
    stack = Stack(network(9), step, [state(one) for one in alone])
    seeds = [stack.seed(number, network(8)) for number in range(SEEDS)]
    for number in range(1, 4):
        losses = stack(batches(number))
        expected = [one(*batch) for one, batch in zip(alone, batches(number), strict=True)]
        torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-7, atol=0)
    for seed, one in zip(seeds, alone, strict=True):
        torch.testing.assert_close(seed.loss_sum, one.loss_sum)
        assert float(seed.correct) == float(one.correct)
        found, theirs = seed.momenta(), one.momenta()
        assert found.keys() == theirs.keys()
        assert bool(found) == (momentum > 0)
        for key, value in theirs.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9)
        for key, value in one.model.state_dict().items():
            torch.testing.assert_close(seed.model.state_dict()[key], value, rtol=1e-6, atol=1e-9)


def test_a_pack_of_seeds_is_stacked_and_each_ends_as_alone(tmp_path: Path) -> None:
    batches = Batches(digits(), RECIPE, CPU)
    alone = train.train_packed(jobs(tmp_path / "alone", batches), ALONE)
    together = train.train_packed(jobs(tmp_path / "stacked", batches), STACKED)
    for seed, (one, other) in enumerate(zip(together, alone, strict=True)):
        assert_same(one, other)
        assert_same_weights(tmp_path / "stacked" / str(seed), tmp_path / "alone" / str(seed))
        assert isinstance(one, FinishedTraining)
        assert isinstance(other, FinishedTraining)
        assert (one.timing.stacked, other.timing.stacked) == (SEEDS, 1)


@pytest.mark.full
def test_networks_whose_layers_are_our_own_kernels_are_stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but that each layer computes by the library here."""
    monkeypatch.setattr(Engine, "wants_kernels_on", lambda *_: True)
    monkeypatch.setattr(kernels, "why_unusable", lambda device: None)
    monkeypatch.setattr(fused_norm, "why_unusable", lambda device: None)
    batches = Batches(digits(), dataclasses.replace(RECIPE, epochs=1, milestones=()), CPU)
    of_sixteen = {"model": "resnet20_crelu_bn", "model_args": {"width": 16}}
    together = train.train_packed(
        jobs(tmp_path / "stacked", batches, **of_sixteen), dataclasses.replace(STACKED, stack="auto")
    )
    alone = train.train_packed(jobs(tmp_path / "alone", batches, **of_sixteen), ALONE)
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, FinishedTraining)
        assert (one.result.kernels, one.timing.stacked) == ("triton", SEEDS)
        assert_same(one, other)


def test_only_equal_networks_are_stacked(tmp_path: Path) -> None:
    batches = Batches(digits(), dataclasses.replace(RECIPE, epochs=1), CPU)
    first, second, third = jobs(tmp_path, batches)
    other_recipe = Batches(batches.dataset, dataclasses.replace(RECIPE, epochs=1, weight_decay=0.0), CPU)
    mixed = [first, second, dataclasses.replace(third, batches=other_recipe)]
    outcomes = train.train_packed(mixed, STACKED)
    assert [outcome.timing.stacked for outcome in outcomes if isinstance(outcome, FinishedTraining)] == [2, 2, 1]


class CrashError(Exception):
    """Stands for a process that is killed."""


@pytest.mark.parametrize(("before", "after"), [(STACKED, ALONE), (ALONE, STACKED)], ids=["to alone", "to a stack"])
def test_checkpoints_of_a_stack_and_of_a_network_alone_are_the_same(
    before: Engine, after: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    batches = Batches(digits(), RECIPE, CPU)
    expected = train.train_packed(jobs(tmp_path / "whole", batches), ALONE)

    def crash(done: int, total: int, note: str) -> None:
        if done == 5:
            raise CrashError

    begun = jobs(tmp_path / "parts", batches, on_step=crash)
    assert all(isinstance(outcome, CrashError) for outcome in train.train_packed(begun, before))
    saved = [checkpoint.read(job.checkpoints, pytest.fail) for job in begun if job.checkpoints]
    assert [state["steps"] for _, state in filter(None, saved)] == [4] * SEEDS
    again = [dataclasses.replace(job, on_step=lambda *_: None) for job in begun]
    for seed, (one, other) in enumerate(zip(train.train_packed(again, after), expected, strict=True)):
        assert_same(one, other)
        assert_same_weights(tmp_path / "parts" / str(seed), tmp_path / "whole" / str(seed))


def test_a_seed_that_diverges_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "LEAST_LEARNING_RATE", 0.004)
    batches = Batches(digits(), RECIPE, CPU)
    expected = train.train_packed(jobs(tmp_path / "alone", batches), ALONE)
    sizes: list[int] = []
    begun = jobs(tmp_path / "stacked", batches)

    def spoil(job: train.Job) -> train.Job:
        """Its images are not finite in the fourth step of its first try."""
        once = iter(range(3))

        class Spoilt(Batches):
            def train(self, seed: int, epoch: int, skip: int = 0) -> Any:
                for images, labels in super().train(seed, epoch, skip):
                    if next(once, None) is None and not getattr(self, "spoilt", False):
                        self.spoilt = True
                        images = images * torch.nan
                    yield images, labels

        return dataclasses.replace(job, batches=Spoilt(batches.dataset, RECIPE, CPU))

    kept = Stack.__init__

    def counted(self: Stack, network: nn.Module, step_of: Any, states: Any, streams: Any = ()) -> None:
        sizes.append(len(states))
        kept(self, network, step_of, states, streams)

    monkeypatch.setattr(Stack, "__init__", counted)
    outcomes = train.train_packed([begun[0], spoil(begun[1]), begun[2]], STACKED)
    assert sizes == [3, 2]
    for seed in (0, 2):
        assert_same(outcomes[seed], expected[seed])
        assert_same_weights(tmp_path / "stacked" / str(seed), tmp_path / "alone" / str(seed))
    spoilt = outcomes[1]
    assert isinstance(spoilt, FinishedTraining)
    assert [tried.learning_rate for tried in spoilt.result.tries] == [0.01, 0.005]
    assert [tried.outcome for tried in spoilt.result.tries] == [feasible.NOT_FINITE, feasible.TRAINED]


@pytest.mark.parametrize("when", ["made", "first step"])
def test_a_stack_that_cannot_be_made_or_begun_leaves_each_seed_alone_and_says_why(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Step._compute

    def fail(*_: object) -> None:
        raise MemoryError("no memory\nleft")

    def fail_if_stacked(step: Step, images: Tensor, labels: Tensor, batch_size: int | None = None) -> Tensor:
        loss = compute(step, images, labels, batch_size)
        if labels.dim() == 2:
            fail()  # when everything has changed already
        return loss

    batches = Batches(digits(), dataclasses.replace(RECIPE, epochs=1), CPU)
    expected = train.train_packed(jobs(tmp_path / "alone", batches), ALONE)
    if when == "made":
        monkeypatch.setattr(Stack, "__init__", fail)
    else:
        monkeypatch.setattr(Step, "_compute", fail_if_stacked)
    told: list[str] = []
    outcomes = train.train_packed(jobs(tmp_path / "stacked", batches), STACKED, warn=told.append)
    assert len(told) == 1
    assert "resnet20_relu_bn: its seeds go on one by one, since they could not be stacked: " in told[0]
    assert "no memory left" in told[0]
    for one, other in zip(outcomes, expected, strict=True):
        assert_same(one, other)
        assert one.timing.stacked == 1


def test_a_seed_that_cannot_leave_its_stack_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(digits(), dataclasses.replace(RECIPE, epochs=1), CPU)
    expected = train.train_packed(jobs(tmp_path / "alone", batches), ALONE)

    def broken(done: int, total: int, note: str) -> None:
        if done == 2:
            raise RuntimeError("broken")

    begun = jobs(tmp_path / "stacked", batches)
    leave = fitting.Fit.leave_stack

    def fail_once(self: fitting.Fit) -> None:
        if self.job.seed == 0:
            raise MemoryError("no memory left")
        leave(self)

    monkeypatch.setattr(fitting.Fit, "leave_stack", fail_once)
    outcomes = train.train_packed([begun[0], dataclasses.replace(begun[1], on_step=broken), begun[2]], STACKED)
    assert [type(outcome) for outcome in outcomes] == [MemoryError, RuntimeError, FinishedTraining]
    assert_same(outcomes[2], expected[2])


def test_seeds_are_stacked_where_our_own_kernels_compute() -> None:
    assert Engine().stacks(own_kernels=True)
    assert not Engine().stacks(own_kernels=False)
    assert not Engine(stack="never").stacks(own_kernels=True)
    assert Engine(stack="always").stacks(own_kernels=False)


def test_what_a_stack_keeps_is_that_of_all_its_seeds() -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=128)
    network = timm.create_model("resnet56_relu_bn", num_classes=10)
    alone = Step(network, recipe, CPU, bfloat16=False)
    states = [{f"model.{key}": value for key, value in network.state_dict().items()}] * 2
    states = [{**state, "loss_sum": torch.zeros(()), "hits": torch.zeros(())} for state in states]
    fresh = timm.create_model("resnet56_relu_bn", num_classes=10)
    stack = Stack(fresh, lambda model, seeds: Step(model, recipe, CPU, bfloat16=False, seeds=seeds), states)
    seed = stack.seed(0, network)
    assert isinstance(seed, Seed)
    assert alone.blocks_twice == 0 < seed.blocks_twice

import dataclasses
import os
import signal
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from suite.data import sets as data
from suite.data.batches import Batches
from suite.data.sets import Dataset, Split
from suite.distributed import Group
from suite.interrupt import Deadline, Interruption, TimeIsUp
from suite.schema.outcomes import Epoch, TrainResult
from suite.tables import spec
from suite.training import checkpoint, compiling, feasible, fitting, state, testing, train
from suite.training.job import FinishedTraining
from suite.training.position import Compiling
from suite.training.step import Engine

CPU = torch.device("cpu")
# Behaves as the networks of the tables do, in a fraction of the time.
NARROW = {"width": 4}
EXACT = Engine(precision="float32", compile="never")
RECIPE = dataclasses.replace(spec.load_table(2).recipe, epochs=2, batch_size=24, learning_rate=0.05, milestones=(2,))


def small(train_images: int = 60, test_images: int = 30) -> Dataset:
    """A few of the embedded digits."""
    whole = data.load("digits10")
    parts = [
        Split(split.images[:count], split.labels[:count])
        for split, count in ((whole.train, train_images), (whole.test, test_images))
    ]
    return dataclasses.replace(whole, train=parts[0], test=parts[1])


def fit(*arguments: Any, **more: Any) -> TrainResult:
    """What `timed` returns, without its speed."""
    return timed(*arguments, **more).result


def timed(
    model: str,
    batches: Batches,
    seed: int,
    out: Path,
    engine: Engine = EXACT,
    interruption: Interruption | None = None,
    **job: Any,
) -> FinishedTraining:
    return train.train(job_of(model, batches, seed, out, **job), engine, interruption)


def job_of(model: str, batches: Batches, seed: int, out: Path, **more: Any) -> train.Job:
    return train.Job(model, batches, seed, out, **({"model_args": NARROW} | more))


def run(out: Path, recipe: spec.Recipe = RECIPE, seed: int = 0, **options: Any) -> TrainResult:
    return fit("resnet20_relu_bn", Batches(small(), recipe, CPU), seed, out, **options)


def weights(folder: Path) -> list[torch.Tensor]:
    return list(timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict().values())


def test_training_visits_every_step_and_records_every_epoch(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = run(tmp_path, on_step=lambda done, total, note: seen.append((done, total)))
    # 60 images in batches of 24 are three steps an epoch, the last of 12.
    assert seen == [(step, 6) for step in range(1, 7)]
    assert result.steps == 6
    assert [epoch.learning_rate for epoch in result.epochs] == pytest.approx([0.05, 0.005])
    assert result.trained
    (tried,) = result.tries
    assert (tried.learning_rate, tried.epochs, tried.steps, tried.outcome) == (0.05, 2, 6, "trained")
    assert tried.train_error == result.epochs[-1].train_error
    assert 0 <= tried.dead_units < 0.5
    mean = sum(epoch.train_loss for epoch in result.epochs) / 2
    assert tried.last_loss == pytest.approx(mean, rel=0.05)  # of all six steps, of which each counts the same
    assert result.top1 == result.epochs[-1].top1
    assert result.best_top1 == min(epoch.top1 for epoch in result.epochs)
    assert result.test_images == 30


@pytest.mark.full
def test_a_few_epochs_on_real_digits_beat_chance(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=50, epochs=6, milestones=(6,))
    result = fit("resnet20_relu_bn", Batches(small(600, 200), recipe, CPU), 0, tmp_path, model_args={"width": 8})
    first, *_, last = result.epochs
    assert last.train_loss < first.train_loss - 0.1
    assert last.train_error < 85


def test_a_seed_decides_the_trained_weights(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        run(folder, seed=seed)
    first, again, other = map(weights, folders)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


class CrashError(Exception):
    """Stands for a process that is killed."""


def crash_after(steps: int) -> Callable[[int, int, str], None]:
    """A progress callback that ends the run at its n-th step, before that step's checkpoint."""
    calls = iter(range(1, steps + 1))

    def progress(done: int, total: int, note: str) -> None:
        if next(calls) == steps:
            raise CrashError

    return progress


@pytest.mark.full
@pytest.mark.parametrize(("model", "momentum"), [("resnet20_relu_bn", 0.9), ("resnet20_crelu_np2", 0.0)])
def test_a_run_killed_again_and_again_ends_bit_for_bit_as_if_undisturbed(
    model: str, momentum: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    batches = Batches(small(), dataclasses.replace(RECIPE, momentum=momentum), CPU)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = fit(model, batches, 0, whole)
    # Six steps in all; a crash at step n loses that step, so the runs begin at steps 0, 1, 3 and 4.
    for steps in (2, 3, 2):
        with pytest.raises(CrashError):
            fit(model, batches, 0, parts, checkpoints=tmp_path / "saved", on_step=crash_after(steps))
    result = timed(model, batches, 0, parts, checkpoints=tmp_path / "saved")
    assert result.timing.images_per_second > 0
    assert result.result == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(parts), weights(whole), strict=True))


def test_a_training_that_another_device_went_on_with_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    batches, saved = Batches(small(), RECIPE, CPU), tmp_path / "saved"
    bfloat16 = Engine("bfloat16", "never")
    with pytest.raises(CrashError):
        fit("resnet20_relu_bn", batches, 0, tmp_path, bfloat16, checkpoints=saved, on_step=crash_after(3))
    (*_, path) = sorted(saved.iterdir())
    tensors, state = checkpoint.read_one(path)
    assert (state["devices"], state["kernels"]) == (["cpu"], ["library"])
    checkpoint.write(saved, 10**6, tensors, state | {"devices": ["cuda"], "kernels": ["triton"]})  # as if begun there
    result = fit("resnet20_relu_bn", batches, 0, tmp_path, checkpoints=saved)
    assert result.precision == "bfloat16 autocast, float32"
    assert (result.device, result.kernels) == ("cuda, cpu", "triton, library")


def test_a_training_that_begins_anew_on_another_device_is_that_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all steps of the first try were done elsewhere, and only its test shows that it failed."""
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    recipe = dataclasses.replace(RECIPE, max_steps=2)
    batches, saved = Batches(small(), recipe, CPU), tmp_path / "saved"

    def crash(*_: Any) -> None:
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "evaluate", crash)
        with pytest.raises(CrashError):
            fit("resnet20_relu_bn", batches, 0, tmp_path, checkpoints=saved)
    (*_, path) = sorted(saved.iterdir())
    tensors, state = checkpoint.read_one(path)
    assert (state["steps"], state["devices"]) == (2, ["cpu"])
    spoilt = {name: value * torch.nan if name.startswith("model.fc") else value for name, value in tensors.items()}
    checkpoint.write(saved, 10**6, spoilt, state | {"devices": ["cuda"]})
    result = fit("resnet20_relu_bn", batches, 0, tmp_path, checkpoints=saved)
    assert [tried.outcome for tried in result.tries] == [feasible.NOT_FINITE, feasible.TRAINED]
    assert result.device == "cpu"


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    recipe = dataclasses.replace(RECIPE, max_steps=2)
    batches, saved = Batches(small(), recipe, CPU), tmp_path / "saved"

    def crash(*_: Any) -> None:
        raise CrashError

    monkeypatch.setattr(fitting, "evaluate", crash)
    with pytest.raises(CrashError):  # after the last step and its checkpoint, before the test that ends the epoch
        fit("resnet20_relu_bn", batches, 0, tmp_path, checkpoints=saved)
    monkeypatch.undo()
    (*_, path) = sorted(saved.iterdir())
    tensors, saved_state = checkpoint.read_one(path)
    assert saved_state["steps"] == 2
    del tensors["last_losses"]
    checkpoint.write(saved, 10**6, tensors, saved_state)
    (tried,) = fit("resnet20_relu_bn", batches, 0, tmp_path, checkpoints=saved).tries
    assert (tried.outcome, tried.last_loss) == ("trained", None)


@pytest.mark.full
def test_a_run_killed_after_halving_goes_on_at_the_halved_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    recipe = dataclasses.replace(RECIPE, learning_rate=1e6, max_steps=4)
    batches = Batches(small(), recipe, CPU)
    expected = fit("resnet20_relu_plain", batches, 0, tmp_path)
    tries = len(expected.tries)
    last = [0]

    def progress(done: int, total: int, note: str) -> None:
        last[0] += done == 1
        if last[0] == tries and done == 3:
            raise CrashError

    saved = tmp_path / "saved"
    with pytest.raises(CrashError):
        fit("resnet20_relu_plain", batches, 0, tmp_path, checkpoints=saved, on_step=progress)
    seen: list[int] = []
    result = fit(
        "resnet20_relu_plain", batches, 0, tmp_path, checkpoints=saved, on_step=lambda done, _, __: seen.append(done)
    )
    assert seen == [3, 4]
    assert result.tries == expected.tries
    assert result.epochs == expected.epochs


def test_an_interruption_is_given_way_to_after_a_checkpoint(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    batches = Batches(small(), RECIPE, CPU)
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        fit(
            "resnet20_relu_bn",
            batches,
            0,
            tmp_path,
            checkpoints=saved,
            interruption=interruption,
            on_step=lambda done, *_: os.kill(os.getpid(), signal.SIGINT) if done == 4 else None,
        )
    assert len(list(saved.iterdir())) == 1
    seen: list[int] = []
    fit("resnet20_relu_bn", batches, 0, tmp_path, checkpoints=saved, on_step=lambda d, _, __: seen.append(d))
    assert seen == [5, 6]


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path, dataclasses.replace(RECIPE, max_steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_steps_end_training_early(tmp_path: Path) -> None:
    result = run(tmp_path, dataclasses.replace(RECIPE, max_steps=2))
    assert result.steps == 2
    assert len(result.epochs) == 1


def test_one_step_is_nesterov_sgd_with_decay_on_every_parameter(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, max_steps=2, weight_decay=0.01)
    batches = Batches(small(), recipe, CPU)
    fit("resnet20_relu_plain", batches, 0, tmp_path)
    torch.manual_seed(0)
    model = timm.create_model("resnet20_relu_plain", num_classes=10, **NARROW).double()
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for _, (images, labels) in zip(range(2), batches.train(0, 1), strict=False):
        loss = nn.functional.cross_entropy(model(images.double()), labels)
        for p, v, gradient in zip(parameters, velocity, torch.autograd.grad(loss, parameters), strict=True):
            gradient = gradient + 0.01 * p.detach()
            # v starts at zero, so that the first step has v = gradient, as without dampening.
            v.mul_(0.9).add_(gradient)
            p.data -= 0.05 * (gradient + 0.9 * v)
    for trained, expected in zip(weights(tmp_path), model.state_dict().values(), strict=True):
        assert torch.allclose(trained.double(), expected, atol=1e-5, rtol=1e-4)


def test_an_infeasible_rate_is_halved_until_the_loss_is_finite(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=1e6, max_steps=3)
    batches = Batches(small(), recipe, CPU)
    halvings = 40
    result = fit("resnet20_relu_plain", batches, 0, tmp_path)
    rates = [attempt.learning_rate for attempt in result.tries]
    assert rates == [1e6 / 2**k for k in range(len(rates))]
    assert len(rates) < halvings
    assert {attempt.outcome for attempt in result.tries[:-1]} == {"the loss was not finite"}
    assert result.tries[-1].outcome == "trained"
    assert result.epochs[-1].learning_rate == rates[-1]
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path))


def test_below_the_floor_a_net_did_not_train_and_keeps_its_initial_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasible, "LEAST_LEARNING_RATE", 1e29)
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, max_steps=3)
    result = fit("resnet20_relu_plain", Batches(small(), recipe, CPU), 0, tmp_path)
    assert not result.trained
    assert (result.device, result.precision, result.kernels) == ("cpu", "float32", "library")
    assert result.top1 is result.top5 is result.best_top1 is None
    assert len(result.tries) == 4
    torch.manual_seed(0)
    start = timm.create_model("resnet20_relu_plain", num_classes=10, **NARROW).state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path), start, strict=True))


def test_a_net_that_stays_at_chance_counts_as_not_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "FIRST_EPOCHS", 1)
    monkeypatch.setattr(feasible, "LEAST_LEARNING_RATE", 1e-12)
    recipe = dataclasses.replace(RECIPE, learning_rate=1.5e-12)
    result = fit("resnet20_relu_bn", Batches(small(), recipe, CPU), 0, tmp_path)
    assert [attempt.outcome for attempt in result.tries] == ["no better than chance"]
    assert not result.trained


def test_a_try_says_of_a_collapsed_network_that_its_units_are_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def collapsed(*arguments: Any, **more: Any) -> nn.Module:
        model: Any = create(*arguments, **more)
        nn.init.constant_(model.layer3[-1].conv2.bias, -1e6)
        return model

    monkeypatch.setattr(timm, "create_model", collapsed)
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-6, max_steps=2)
    (tried,) = fit("resnet20_relu_plain", Batches(small(), recipe, CPU), 0, tmp_path).tries
    assert tried.dead_units == 1.0
    assert tried.last_loss == pytest.approx(2.303, abs=0.05)


def test_a_try_whose_loss_was_not_finite_has_neither_loss_nor_dead_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasible, "LEAST_LEARNING_RATE", 1e29)
    recipe = dataclasses.replace(RECIPE, learning_rate=1e29, max_steps=3)
    (tried,) = fit("resnet20_relu_plain", Batches(small(), recipe, CPU), 0, tmp_path).tries
    assert (tried.last_loss, tried.dead_units) == (None, None)
    assert tried.steps <= 3
    assert tried.outcome == "the loss was not finite"


def test_errors_are_counted_as_written_out_by_hand() -> None:
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0, -1], [0, 1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4, torch.nan]])
    labels = torch.tensor([0, 2, 0])
    # Right; second best at rank five, so wrong for top-1 alone; not finite, so wrong for both.
    model = nn.Identity()
    result = testing.evaluate(model, [(logits, labels)])
    assert (result.top1, result.top5) == pytest.approx((200 / 3, 100 / 3))
    assert not result.finite


def test_ten_crops_are_judged_by_their_summed_logits() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    images = torch.zeros(1, 10, 3, 2, 2)
    images[0, :9, 1] = 1.0  # nine crops say class 1
    images[0, 9, 2] = 10.0  # one crop says class 2, and louder than the nine together
    assert testing.evaluate(Mean(), [(images, torch.tensor([2]))]).top1 == 0.0


def test_weights_load_by_timm_with_the_data_sets_classes_and_statistics(tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(RECIPE, max_steps=1))
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    whole = data.load("digits10")
    assert model.num_classes == 10
    assert model.pretrained_cfg["mean"] == pytest.approx([value / 255 for value in whole.mean])
    assert model.pretrained_cfg["std"] == pytest.approx([value / 255 for value in whole.std])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_packed_networks_are_trained_as_each_would_be_alone(tmp_path: Path) -> None:
    names = ("resnet20_relu_bn", "resnet20_crelu_np2")
    jobs, alone = [], []
    for seed, name in enumerate(names):
        folders = [tmp_path / f"{name}{kind}" for kind in ("alone", "packed")]
        for folder in folders:
            folder.mkdir()
        # The second ends after two steps, the first goes on.
        recipe = dataclasses.replace(RECIPE, max_steps=5 - 3 * seed)
        alone.append(fit(name, Batches(small(), recipe, CPU), seed, folders[0]))
        jobs.append(job_of(name, Batches(small(), recipe, CPU), seed, folders[1]))
    packed = train.train_packed(jobs, EXACT)
    for name, one, other in zip(names, alone, packed, strict=True):
        assert isinstance(other, FinishedTraining)
        assert other.timing.packed == 2
        assert other.result == one
        pairs = zip(weights(tmp_path / f"{name}alone"), weights(tmp_path / f"{name}packed"), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_network_that_ends_makes_room_for_the_next_at_once(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    def job(name: str, steps: int, following: list[train.Job]) -> train.Job:
        folder = tmp_path / name
        folder.mkdir()
        batches = Batches(small(), dataclasses.replace(RECIPE, max_steps=steps), CPU)

        def end(outcome: FinishedTraining | Exception) -> train.Job | None:
            told.append((name, 0))
            return following.pop(0) if following else None

        def step(done: int, total: int, note: str) -> None:
            told.append((name, done))

        return job_of("resnet20_relu_bn", batches, 3, folder, on_step=step, on_end=end)

    last = job("last", 2, [])
    cannot = dataclasses.replace(job("cannot", 1, [last]), model_name="resnet20_gelu_bn")
    outcomes = train.train_packed([job("long", 5, []), job("short", 1, [cannot])], EXACT)
    # One that cannot begin gives way too; the long one goes on beside the last, which is as if it were alone.
    assert told == [
        *(("long", 1), ("short", 1)),
        *(("short", 0), ("cannot", 0)),
        *(("long", 2), ("last", 1)),
        *(("long", 3), ("last", 2)),
        *(("last", 0), ("long", 4)),
        *(("long", 5), ("long", 0)),
    ]
    assert [isinstance(outcome, FinishedTraining) for outcome in outcomes] == [True, True, False, True]
    alone = fit("resnet20_relu_bn", last.batches, 3, tmp_path)
    packed = outcomes[-1]
    assert isinstance(packed, FinishedTraining)
    assert packed.timing.packed == 2
    assert packed.result == alone
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "last"), weights(tmp_path), strict=True))


def test_a_network_that_cannot_begin_does_not_end_the_others(tmp_path: Path) -> None:
    batches = Batches(small(), dataclasses.replace(RECIPE, max_steps=1), CPU)
    jobs = [job_of(name, batches, 0, tmp_path) for name in ("resnet20_gelu_bn", "resnet20_relu_bn")]
    failed, trained = train.train_packed(jobs, EXACT)
    assert isinstance(failed, RuntimeError)
    assert isinstance(trained, FinishedTraining)
    assert trained.result.steps == 1


def test_without_a_compiler_training_goes_on_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr("torch.compile", compiler)
    monkeypatch.setitem(compiling.WORTH_A_TRIAL, "cpu", 0.0)
    monkeypatch.setattr(state, "TRIAL", 0)
    said: list[str] = []
    job = job_of("resnet20_relu_bn", Batches(small(), dataclasses.replace(RECIPE, max_steps=1), CPU), 0, tmp_path)
    result = train.train(job, Engine("float32", "auto"), warn=said.append)
    why = "RuntimeError: no C++ compiler here"
    assert said == [f"resnet20_relu_bn: goes on without torch.compile, which failed: {why}"]
    assert (result.result.compiled, result.timing.compile_error) == (False, why)


def test_seeds_of_a_pack_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "TRIAL", 0)
    tried: list[int] = []

    def trial(model: nn.Module, *_: Any) -> Compiling:
        tried.append(sum(value.numel() for value in model.parameters()))
        return Compiling(compiled=False, step_seconds=float(len(tried)))

    monkeypatch.setattr(state, "try_compile", trial)
    batches = Batches(small(), dataclasses.replace(RECIPE, max_steps=1), CPU)
    networks = [("resnet20_relu_bn", 0), ("resnet20_relu_np", 0), ("resnet20_relu_bn", 1)]
    outcomes = train.train_packed(
        [job_of(name, batches, seed, tmp_path) for name, seed in networks], Engine("float32", "auto")
    )
    assert len(tried) == len(set(tried)) == 2
    assert [each.timing.step_seconds for each in outcomes if isinstance(each, FinishedTraining)] == [1, 2, 1]


def test_every_test_is_of_the_statistics_that_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    evaluate = testing.evaluate

    def spread(group: Group, tensors: Iterable[torch.Tensor]) -> None:
        # Mean, variance and a count for each of ResNet-20's 19 convolutions.
        happened.append(f"spread {len(list(tensors))}")

    def test(*arguments: Any) -> testing.ErrorRates:
        happened.append("test")
        return evaluate(*arguments)

    monkeypatch.setattr(Group, "spread", spread)
    monkeypatch.setattr(fitting, "evaluate", test)
    run(tmp_path)
    assert happened == ["spread 57", "test"] * 2


def test_the_last_test_is_by_the_network_itself_and_those_before_by_the_quick_pass_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick: list[tuple[bool, bool]] = []

    def quick_forward(model: nn.Module, *_: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(images: torch.Tensor) -> torch.Tensor:
            quick.append((model.training, torch.backends.cudnn.benchmark))
            return torch.zeros(len(images), 10)

        return forward

    expected = run(tmp_path)
    monkeypatch.setattr(state, "quick_forward", quick_forward)
    found = run(tmp_path)
    assert quick == [(False, True)]  # one batch of 30 images after the first of two epochs
    assert not torch.backends.cudnn.benchmark
    assert found.epochs[1] == expected.epochs[1]


def test_on_a_cpu_no_test_is_quick() -> None:
    assert testing.quick_forward(nn.Identity(), CPU, True) is None


def test_training_has_no_tf32_and_leaves_it_to_others(tmp_path: Path) -> None:
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    seen: list[bool] = []
    before = [place.allow_tf32 for place in places]
    assert any(before)  # torch's own default
    run(tmp_path, on_step=lambda *_: seen.extend(place.allow_tf32 for place in places))
    assert seen
    assert not any(seen)
    assert [place.allow_tf32 for place in places] == before


def test_an_interruption_checkpoints_every_packed_network(tmp_path: Path) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    jobs = []
    for seed in range(2):
        job = job_of("resnet20_relu_bn", Batches(small(), RECIPE, CPU), seed, tmp_path)
        jobs.append(dataclasses.replace(job, checkpoints=tmp_path / str(seed), on_step=stop))
    with Interruption() as interruption, pytest.raises(SystemExit):
        train.train_packed(jobs[:1] + [dataclasses.replace(jobs[1], on_step=lambda *_: None)], EXACT, interruption)
    assert [len(list((tmp_path / str(seed)).iterdir())) for seed in range(2)] == [1, 1]


def test_the_end_of_the_time_checkpoints_every_packed_network_and_begins_no_other(tmp_path: Path) -> None:
    jobs = [
        job_of("resnet20_relu_bn", Batches(small(), RECIPE, CPU), seed, tmp_path, checkpoints=tmp_path / str(seed))
        for seed in range(2)
    ]
    with Interruption(Deadline(datetime.now(UTC))) as interruption, pytest.raises(TimeIsUp):
        train.train_packed(jobs, EXACT, interruption)
    assert [len(list((tmp_path / str(seed)).iterdir())) for seed in range(2)] == [1, 1]
    seen: list[int] = []
    train.train(dataclasses.replace(jobs[0], on_step=lambda done, _, __: seen.append(done)), EXACT)
    assert seen == [2, 3, 4, 5, 6]


def test_every_epoch_is_told_with_its_speed(tmp_path: Path) -> None:
    told: list[tuple[Epoch, float]] = []
    result = run(tmp_path, on_epoch=lambda epoch, speed: told.append((epoch, speed)))
    assert [epoch for epoch, _ in told] == result.epochs
    assert all(speed > 0 for _, speed in told)


def test_bfloat16_trains_and_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, engine=Engine(precision="bfloat16", compile="never"))
    exact = run(tmp_path)
    assert (result.precision, exact.precision) == ("bfloat16 autocast", "float32")
    # Eight bits of mantissa: near, but not the same.
    losses = [[epoch.train_loss for epoch in each.epochs] for each in (result, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_what_decided_on_compiling_is_kept_over_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(state, "TRIAL", 0)
    automatic = Engine(precision="float32", compile="auto")
    saved = tmp_path / "saved"
    with pytest.raises(CrashError):
        run(tmp_path, engine=automatic, checkpoints=saved, on_step=crash_after(3))
    monkeypatch.setattr(state, "try_compile", lambda *_: pytest.fail("measured again"))
    result = timed("resnet20_relu_bn", Batches(small(), RECIPE, CPU), 0, tmp_path, automatic, checkpoints=saved)
    assert result.result.compiled is False
    assert 0 < result.timing.step_seconds < 10

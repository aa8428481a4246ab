"""Seeds of one network trained as one on a GPU: each is what it is alone, over CUDA graphs, tests and resumption."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from suite.data import sets as data
from suite.data.batches import Batches
from suite.data.sets import Split
from suite.tables import spec
from suite.training import fitting, train
from suite.training.job import FinishedTraining
from suite.training.step import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GPU = torch.device("cuda")
RECIPE = dataclasses.replace(spec.load_table(2).recipe, epochs=5, learning_rate=0.01, milestones=(4,))
SEEDS = 3


def results(folder: Path, model: str, engine: Engine, **more: Any) -> list[FinishedTraining]:
    """Train all seeds at the same time: 9 batches of 128 and one of 80 an epoch, each of which becomes a CUDA graph."""
    whole = data.load("digits10")
    count = 9 * 128 + 80
    small = dataclasses.replace(whole, train=Split(whole.train.images[:count], whole.train.labels[:count]))
    jobs = []
    for seed in range(SEEDS):
        out = folder / str(seed)
        out.mkdir(parents=True, exist_ok=True)
        batches = Batches(small, RECIPE, GPU)
        jobs.append(train.Job(model, batches, seed, out, checkpoints=folder / f"saved{seed}", **more))
    outcomes = train.train_packed(jobs, engine, warn=pytest.fail)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, FinishedTraining)]


@pytest.mark.parametrize("name", ["resnet20_relu_bn", "resnet20_crelu_np2", "resnet20_crelu_plain"])
@pytest.mark.parametrize(("precision", "first", "last"), [("float32", 1e-3, 0.02), ("bfloat16", 0.05, 0.05)])
def test_seeds_of_a_pack_are_stacked_and_each_ends_as_alone(
    name: str, precision: Any, first: float, last: float, tmp_path: Path
) -> None:
    """Within so much of the loss in the first epoch and in the last: training multiplies differences of rounding."""
    engine = Engine(precision=precision, compile="never", stack="always" if precision == "float32" else "auto")
    stacked = results(tmp_path / "stacked", name, engine)
    alone = results(tmp_path / "alone", name, dataclasses.replace(engine, stack="never"))
    for one, other in zip(stacked, alone, strict=True):
        assert (one.timing.stacked, other.timing.stacked) == (SEEDS, 1)
        assert one.result.kernels == ("library" if precision == "float32" else "triton")
        losses, expected = ([epoch.train_loss for epoch in each.result.epochs] for each in (one, other))
        assert losses[0] == pytest.approx(expected[0], rel=first)
        assert losses == pytest.approx(expected, rel=last)


def test_a_stack_goes_on_from_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)

    def crash(done: int, total: int, note: str) -> None:
        if done == 8:
            raise OSError("as if killed")

    engine = Engine(compile="never")
    with pytest.raises(OSError, match="as if killed"):
        results(tmp_path / "parts", "resnet20_relu_bn", engine, on_step=crash)
    parts = results(tmp_path / "parts", "resnet20_relu_bn", engine)
    whole = results(tmp_path / "whole", "resnet20_relu_bn", engine)
    for one, other in zip(parts, whole, strict=True):
        assert one.timing.stacked == SEEDS
        assert [epoch.train_loss for epoch in one.result.epochs] == pytest.approx(
            [epoch.train_loss for epoch in other.result.epochs], rel=0.05
        )

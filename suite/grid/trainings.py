"""Trainings of a grid, done at the same time: what each is to train, and what is said of its epochs."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import ValidationError, convert

from suite import env
from suite.grid.stages import cell_of
from suite.interrupt import Interruption
from suite.results.record import key_of
from suite.schema.outcomes import TrainResult

if TYPE_CHECKING:
    from suite.grid.perform import End, Outcome, Performer, UnderWay
    from suite.grid.plan import Stage


def train(performer: "Performer", begun: "Sequence[UnderWay]", end: "End") -> None:
    """Train networks at the same time; `end` is told of each that ends, and gives the next."""
    import torch

    from suite.training.step import Engine
    from suite.training.train import Job, train_packed

    # torch knows of cores, not of a container's share of them.
    if env.cpu_quota() is not None and torch.get_num_threads() > performer.stages.threads:
        torch.set_num_threads(performer.stages.threads)
    device = env.device_of(performer.options.device)

    def job(each: "UnderWay") -> Job:
        def on_end(outcome: dict[str, Any] | Exception) -> Job | None:
            if isinstance(outcome, Exception):
                following = end(each, outcome)
            else:
                following = end(each, _trained(outcome), outcome["timing"])
            return job(following) if following else None

        cell = cell_of(each.stage)
        return Job(
            cell.row.model,
            performer.stages.batches(cell, cell.recipe, device, performer.group),
            cell.seed,
            each.folder,
            checkpoints=performer.store.checkpoints("train", each.stage.inputs),
            on_step=each.step,
            on_epoch=_epoch_log(performer, each.stage),
            on_end=on_end,
        )

    jobs = [job(each) for each in begun]
    with Interruption(performer.deadline) as interruption:
        engine = Engine(performer.options.precision, performer.options.compile, performer.options.kernels)
        train_packed(jobs, engine, interruption, performer.display.note)


def _epoch_log(performer: "Performer", stage: "Stage") -> Callable[[dict[str, Any], float], None]:
    """What is said of each epoch: a line where there is no bar, and the curves of TensorBoard."""
    cell, writer = cell_of(stage), None
    images = len(cell.dataset.train)
    epochs = -(-cell.recipe.steps(images) // cell.recipe.steps_an_epoch(images))
    if performer.options.tensorboard and performer.group.rank == 0:
        from torch.utils.tensorboard import SummaryWriter

        run = f"{cell.row.model}-{cell.dataset.name}-seed{cell.seed}-{key_of('train', stage.inputs)}"
        writer = SummaryWriter(str(performer.options.tensorboard / run))

    def log(epoch: dict[str, Any], images_per_second: float) -> None:
        number = epoch["epoch"]
        shown = {
            "train loss": epoch["train_loss"],
            "train error": epoch["train_error"],
            "test error": epoch.get("top1"),
            "learning rate": epoch["learning_rate"],
            "images per second": images_per_second,
        }
        figures = ", ".join(f"{what} {value:.4g}" for what, value in shown.items() if value is not None)
        performer.display.log(f"{stage.name}: epoch {number}/{epochs}, {figures}")
        if writer:
            for what, value in shown.items():
                if value is not None:
                    writer.add_scalar(what.replace(" ", "_"), value, number)
            writer.flush()

    return log


def _trained(outcome: Mapping[str, Any]) -> "Outcome":
    """What a training found, without what it says of its speed."""
    try:
        return convert(outcome, TrainResult)
    except ValidationError as error:  # which must not end the trainings beside this one
        return error

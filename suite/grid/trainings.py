"""Trainings of a grid, done at the same time: what each is to train, and what is said
of its epochs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import to_builtins

from suite import env
from suite.distributed import Group
from suite.grid.calls import Stages, cell_of
from suite.grid.plan import RunOptions, Stage
from suite.grid.underway import EndCallback, StageUnderWay
from suite.interrupt import Deadline, Interruption
from suite.results.record import key_of
from suite.schema.outcomes import Epoch, none_if_unset

if TYPE_CHECKING:
    from suite.training.job import FinishedTraining, Job


def train(
    stages: Stages,
    options: RunOptions,
    group: Group,
    begun: Sequence[StageUnderWay],
    end: EndCallback,
    deadline: Deadline,
) -> None:
    """Train networks at the same time; `end` is told of each that ends, and gives the
    next.

    Raises:
        TimeIsUp: trainings were stopped, of which there are checkpoints.
    """
    import torch

    from suite.training.step import Engine
    from suite.training.train import Job, train_packed

    # torch knows of cores, not of a container's share of them.
    if env.cpu_quota() is not None and torch.get_num_threads() > stages.threads:
        torch.set_num_threads(stages.threads)
    device = env.device_of(options.device)

    def job(each: StageUnderWay) -> Job:
        def on_end(outcome: "FinishedTraining | Exception") -> "Job | None":
            if isinstance(outcome, Exception):
                following = end(each, outcome)
            else:
                following = end(each, outcome.result, to_builtins(outcome.timing))
            return job(following) if following else None

        cell = cell_of(each.stage)
        return Job(
            cell.row.model,
            stages.batches(cell, cell.recipe, device, group),
            cell.seed,
            each.folder,
            dict(cell.row.arguments),
            checkpoints=stages.store.checkpoints("train", each.stage.inputs),
            on_step=each.step,
            on_epoch=_epoch_log(each.stage, stages.display.log, options if group.rank == 0 else None),
            on_end=on_end,
        )

    jobs = [job(each) for each in begun]
    with Interruption(deadline, stages.display.note) as interruption:
        engine = Engine(options.precision, options.compile, options.kernels)
        train_packed(jobs, engine, interruption, stages.display.note)


def _epoch_log(stage: Stage, say: Callable[[str], None], options: RunOptions | None) -> Callable[[Epoch, float], None]:
    """What is said of each epoch: a line where there is no bar, and the curves of
    TensorBoard if the options of the first process ask for them."""
    cell, writer = cell_of(stage), None
    steps, of_epoch = (count(len(cell.dataset.train)) for count in (cell.recipe.steps, cell.recipe.steps_per_epoch))
    epochs = -(-steps // of_epoch)
    if options and options.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        run = f"{cell.row.model}-{cell.dataset.name}-seed{cell.seed}-{key_of('train', stage.inputs)}"
        writer = SummaryWriter(str(options.tensorboard / run))

    def log(epoch: Epoch, images_per_second: float) -> None:
        shown = {
            "train loss": none_if_unset(epoch.train_loss),
            "train error": none_if_unset(epoch.train_error),
            "test error": none_if_unset(epoch.top1),
            "learning rate": none_if_unset(epoch.learning_rate),
            "images per second": images_per_second,
        }
        figures = ", ".join(f"{what} {value:.4g}" for what, value in shown.items() if value is not None)
        if steps < of_epoch:  # as in a record's `is_quick`: its errors are about those of chance
            figures = f"{images_per_second:.4g} images per second"
            say(f"{stage.name}: quick, {steps} of {of_epoch} steps of an epoch, {figures}")
        else:
            say(f"{stage.name}: epoch {epoch.epoch}/{epochs}, {figures}")
        if writer:
            for what, value in shown.items():
                if value is not None:
                    writer.add_scalar(what.replace(" ", "_"), value, epoch.epoch)
            writer.flush()

    return log

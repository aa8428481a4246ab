"""Train networks by a recipe, one or several at the same time."""

from collections.abc import Callable, Hashable, Sequence

from suite.interrupt import UNDISTURBED, Interruption
from suite.tf32 import without_tf32
from suite.training.fitting import Fit
from suite.training.job import FinishedTraining
from suite.training.job import Job as Job
from suite.training.pack import Outcome, synchronize, train_in_turns
from suite.training.position import Compiling
from suite.training.step import AUTOMATIC, Engine


def train(
    job: Job,
    engine: Engine = AUTOMATIC,
    interruption: Interruption | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> FinishedTraining:
    """Train a network and write its weights to `out` in timm's local layout
    (`model.safetensors`, `config.json`).

    A learning rate at which training is infeasible (a loss that is not finite, or no
    better than chance after the first epochs; see `feasible`) is halved and training
    begins again, as in the paper's Experiments section.

    Training that was stopped goes on from its last checkpoint. Batches depend on seed,
    epoch and position alone, so on the CPU the result is bit for bit that of a run
    which was never stopped.

    Args:
        job: what to train.
        engine: how to compute it.
        interruption: a pending one is delivered after a checkpoint.
        warn: told of a damaged checkpoint, and of a torch.compile or of kernels that
            failed.
    """
    (outcome,) = train_packed([job], engine, interruption, warn)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_packed(
    jobs: Sequence[Job],
    engine: Engine = AUTOMATIC,
    interruption: Interruption | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Train several networks at the same time, each as `train` would alone.

    They take turns step by step, and on a GPU each has a stream of its own, so that the
    small kernels of one fill the gaps of the others. Seeds of one network that are
    equally far are trained as one network where the engine wants it (see `stacked`);
    their losses are then those of each alone within rounding. One that ends makes room
    at once for the job that its `on_end` returns.

    Returns:
        For each job, in the order of their beginnings, what `train` returns, or the
        exception that ended it; it does not end the others.
    """
    trials: dict[Hashable, Compiling] = {}
    interruption = interruption or UNDISTURBED

    def begin(job: Job, others: bool) -> Fit:
        if others:
            synchronize(job.batches.device)  # what is measured of it is not to wait for the others
        # The others must be saved before an end.
        return Fit(job, engine, len(jobs), warn, trials, UNDISTURBED if others else interruption)

    def end(job: Job, outcome: Outcome) -> Job | None:
        if isinstance(outcome, Exception) and job.batches.group.size > 1:
            raise outcome  # the other processes wait for this one, and only its end tells them
        return job.on_end(outcome)

    with without_tf32():
        return train_in_turns(jobs, begin, end, interruption)

"""Do a grid by jobs of Slurm, each of which is one more worker on the shared results
folder.

What a job may use stands in the variables that sbatch reads, such as SBATCH_PARTITION,
SBATCH_GPUS, SBATCH_TIMELIMIT.
"""

import contextlib
import shutil
import socket
import sys
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
from submitit.helpers import DelayedSubmission

from suite.distributed import ALONE
from suite.errors import InputError
from suite.grid.plan import TIMED, RunOptions, plan
from suite.grid.runner import RunSummary, Worker, check_timing, check_training, lead, work

# Where submitit runs its jobs; "local" is for tests.
CLUSTER = "slurm"
# Minutes that a job asks for unless SBATCH_TIMELIMIT says otherwise; submitit's own default is 5.
MINUTES = 24 * 60


def run(options: RunOptions) -> RunSummary:
    """Run a table by `options.workers` jobs; timings are taken here when they have
    ended.

    Raises:
        InputError: there is no Slurm here, or a job cannot use the options.
    """
    if CLUSTER == "slurm" and not shutil.which("sbatch"):
        raise InputError("--executor slurm: there is no sbatch here; use a machine that submits jobs to Slurm")
    check_timing(options)
    return lead(options, plan(options), ALONE, _do_stages)


class _Job:
    """What a job does: one worker's part of a grid, and again after it was preempted or
    its time was up."""

    def __call__(self, options: RunOptions, argv: list[str]) -> str | None:
        sys.argv = argv  # a record tells the command
        try:
            check_training(options)
            work(options)
        except InputError as error:
            return f"{socket.gethostname()}: {error}"
        return None

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        return DelayedSubmission(self, *arguments)


def _submit(options: RunOptions, jobs: list["submitit.Job[str | None]"]) -> None:
    """Submit the jobs, and list each.

    Raises:
        InputError: Slurm does not take them.
    """
    try:
        executor = submitit.AutoExecutor(options.results / "slurm", cluster=CLUSTER)
        executor.update_parameters(name="crelu-norm-suite", timeout_min=MINUTES)
        for _ in range(options.workers):
            jobs.append(executor.submit(_Job(), options, sys.argv))
    except (OSError, FailedJobError, FailedSubmissionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--executor slurm: {reason}") from None


def _do_stages(worker: Worker) -> None:
    jobs: list[submitit.Job[str | None]] = []
    try:
        _submit(worker.options, jobs)
        worker.watch(lambda: not all(job.done() for job in jobs) and not _is_over(worker))
        for job in jobs if worker.deadline.passed else ():
            job.cancel(check=False)  # one that still waits for a machine
    except BaseException:
        for job in jobs:
            job.cancel(check=False)
        raise
    for job in jobs:
        # One that was killed has no result; what it left undone is seen below.
        with contextlib.suppress(UncompletedJobError):
            if job.done() and (problem := job.result()):
                raise InputError(problem)
    pending = dict.fromkeys(stage for stage in worker.grid.stages if stage.kind not in TIMED)
    worker.look(pending)
    for stage in pending if not worker.deadline.passed else ():
        worker.give_up(stage, "all jobs have ended before it")
    worker.drain()


def _is_over(worker: Worker) -> bool:
    """Whether the time is up and nobody is at a stage any more."""
    return worker.deadline.passed and not worker.look(dict.fromkeys(worker.grid.stages))

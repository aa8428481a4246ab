"""Have the stages of a grid done that the results folder lacks, together with whoever
else works on the same folder."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import psutil

from suite import distributed, env, progress
from suite.errors import InputError
from suite.grid import cleaning, own, status, workers
from suite.grid.claims import Claims, Presence
from suite.grid.perform import Performer
from suite.grid.plan import Grid, RunOptions, Stage, plan
from suite.grid.reach import describe_left_out, describe_unsupported_forms, within_reach
from suite.grid.worker import LOOK as LOOK
from suite.grid.worker import Worker as Worker
from suite.grid.worker import has_files, is_stored
from suite.interrupt import Deadline, TimeIsUp
from suite.results.store import Store
from suite.tables import spec
from suite.tables.spec import Table

# Cells for each of the workers that a quick run starts by itself, since each loads torch; and the memory of one.
CELLS_A_WORKER = 3
MEMORY_OF_WORKER = 3_000_000_000


@dataclass(frozen=True)
class RunSummary:
    """What a run came to: the table it ran, the keys of its training records, and how
    many stages failed.

    Of several processes that `torchrun` has started, the one that `speaks` is to print
    it.
    """

    table: Table
    trained: frozenset[str]
    failed: int
    speaks: bool = True


def run(options: RunOptions) -> RunSummary:
    """Run a table; what is stored already is not done again, and a stage that fails
    does not stop the others.

    Raises:
        InputError: the options or the data are not usable.
    """
    group = distributed.join()
    try:
        if group.size > 1 and options.workers > 1:
            raise InputError("--workers: torchrun has started the processes of this run; use 1")
        grid = plan(options, group.size)
        if group.rank:
            _follow(options, grid, group)
            return RunSummary(grid.table, frozenset(), 0, speaks=False)
        if not all(is_stored(Store(options.results), stage) for stage in grid.trainings):
            check_training(options)
        check_timing(options)
        outcome = lead(options, grid, group, _do_locally)
        group.share(None)
    finally:
        group.leave()
    return outcome


def lead(options: RunOptions, grid: Grid, group: distributed.Group, do_stages: Callable[[Worker], None]) -> RunSummary:
    """Show the work on a grid, and that of others on it, while `do_stages` does all
    of it or gives it up, or until the time is up."""
    store = Store(options.results)
    if grid.table.own and not all(is_stored(store, stage) for stage in grid.trainings):
        own.check_networks(grid.cells)
    grid, beyond = _within_reach(grid, store)
    display = progress.display(len(grid.stages), goes_on=True)
    try:
        for line in [*describe_left_out(grid.table, grid.cells), *beyond] if options.only is None else ():
            display.note(line)
        for line in describe_unsupported_forms(options):
            display.note(line)
        with Claims(options.results) as claims, Claims(options.results, "runs") as runs:
            worker = Worker(options, grid, group, display, claims)
            worker.store.sweep()
            if any(stage.key not in worker.done for stage in grid.stages):
                worker.store.check()
                plan_of_run = status.plan_of(grid, env.command())
                worker.store.save_plan(plan_of_run)
                runs.clear()
                runs.take(Presence(str(plan_of_run["command"])))
            do_stages(worker)
            claims.clear(worker.done)
            for line in worker.left() if worker.deadline.passed else ():
                display.note(line)
        if options.is_quick and not options.keep and options.stages == spec.STAGES and not worker.failures:
            cleaning.clean_after_quick_run(store, grid)
    finally:
        display.close()
    trained = frozenset(s.key for s in grid.trainings if s.key in worker.done or is_stored(store, s))
    return RunSummary(grid.table, trained, worker.failures)


def _do_locally(worker: Worker) -> None:
    count = worker.options.workers or _suitable(worker)
    if count > 1 and worker.pending_cells():
        with workers.start_workers(count, work, worker.options) as any_alive:
            worker.watch(any_alive)
    worker.drain()


def _suitable(worker: Worker) -> int:
    """How many processes of this machine suit a grid where nobody has said: of a quick
    run, most of whose work is that of one core, one for each core that has a few cells
    to do and memory for them."""
    options = worker.options
    if not options.is_quick or options.pack > 1 or worker.group.size > 1 or env.gpus():
        return 1
    room = psutil.virtual_memory().available // MEMORY_OF_WORKER
    return int(max(1, min(env.available_cores(), worker.pending_cells() // CELLS_A_WORKER, room)))


def work(options: RunOptions) -> None:
    """Do what nobody else does of a grid, except timings, and say nothing of it: one of
    several local workers."""
    store = Store(options.results)
    grid, _ = _within_reach(plan(options), store)
    with Claims(options.results) as claims:
        Worker(options, grid, distributed.ALONE, progress.Silent(len(grid.stages)), claims).drain(timings=False)


def work_on(options: RunOptions, keys: Collection[str]) -> None:
    """Do some stages of a grid, alone or with the other processes that `torchrun` has
    started, and say nothing of it.

    What another process holds is waited for only as long as it takes to know whether
    that one is dead.

    Raises:
        InputError: this machine cannot do them, or its grid has no such stages.
    """
    group = distributed.join()
    try:
        grid = plan(options, options.processes)
        wanted = [stage for stage in grid.stages if stage.key in keys]
        if len(wanted) < len(keys):
            raise InputError("plans another grid than the machine that asks: its data, its version or its cores differ")
        if any(stage.kind == "train" for stage in wanted):
            check_training(options)
        if group.rank:
            _follow(options, grid, group)
            return
        needs = [need for stage in wanted for need in stage.needs]
        grid = replace(grid, stages=tuple(dict.fromkeys([*needs, *wanted])))
        with Claims(options.results) as claims:
            Worker(options, grid, group, progress.Silent(0), claims).attempt(wanted)
        group.share(None)
    finally:
        group.leave()


def _within_reach(grid: Grid, store: Store) -> tuple[Grid, list[str]]:
    return within_reach(grid, partial(is_stored, store), partial(has_files, store))


def check_training(options: RunOptions) -> None:
    """See to it that this machine can train as the options ask, if they ask for it.

    Raises:
        InputError: it cannot.
    """
    if "train" not in options.stages:
        return
    env.device_of(options.device)
    if options.tensorboard and options.tensorboard.exists() and not options.tensorboard.is_dir():
        raise InputError(f"--tensorboard {options.tensorboard}: is no folder; give one for the learning curves")
    if options.tensorboard:
        env.require_package("tensorboard", "--tensorboard")


def check_timing(options: RunOptions) -> None:
    """See to it that this machine has what is to be checked and timed on, if that is
    asked for.

    Raises:
        InputError: it has not.
    """
    for provider in options.providers if {"parity", "latency"} & set(options.stages) else ():
        from suite.inference.latency import why_unavailable

        reason = why_unavailable(provider)
        if reason:
            raise InputError(f"--providers {provider}: not available here: {reason}")


def _follow(options: RunOptions, grid: Grid, group: distributed.Group) -> None:
    """Take part in each training that process 0 of the group begins, until it has no
    more."""
    stages = {stage.key: stage for stage in grid.stages}
    performer = Performer(options, Store(options.results), group, progress.Silent(0), deadline=Deadline(options.until))

    def next_of_pack(stage: Stage, succeeded: bool) -> Stage | None:
        key: str | None = group.share(None) if options.pack > 1 else None
        return stages[key] if key else None

    while keys := group.share(None):
        with suppress(TimeIsUp):  # as process 0 has found too, which then has no more
            performer.do([stages[key] for key in keys], next_of_pack)

"""Have the stages of a grid done that the results folder lacks, together with whoever else works on the same folder."""

import importlib.util
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic, sleep

from suite import distributed, env, progress
from suite.errors import InputError
from suite.grid import status, workers
from suite.grid.claims import BEAT, PATIENCE, Claims
from suite.grid.machine import Machine
from suite.grid.perform import Performer, device_of, longest_first
from suite.grid.plan import (
    TIMED,
    Grid,
    Options,
    Stage,
    for_their_own_sake,
    lacking,
    left_out,
    plan,
    turn_of,
    within_reach,
)
from suite.inference.latency import ALIVE
from suite.interrupt import Deadline, TimeIsUp
from suite.results.store import Store
from suite.tables.spec import Table

# Seconds between two looks at what others have done.
LOOK = 0.5


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the table it ran, the keys of its training records, and how many stages failed.

    Of several processes that `torchrun` has started, the one that `speaks` is to print it.
    """

    table: Table
    trained: frozenset[str]
    failed: int
    speaks: bool = True


def run(options: Options) -> Outcome:
    """Run a table; what is stored already is not done again, and a stage that fails does not stop the others.

    Raises:
        InputError: the options or the data are not usable.
    """
    group = distributed.join()
    try:
        if group.size > 1 and options.workers > 1:
            raise InputError("--workers: torchrun has started the processes of this run; legal with it: 1")
        grid = plan(options, group.size)
        if group.rank:
            _follow(options, grid, group)
            return Outcome(grid.table, frozenset(), 0, speaks=False)
        if not all(is_stored(Store(options.results), stage) for stage in grid.trainings):
            check_training(options)
        check_timing(options)
        outcome = lead(options, grid, group, _locally)
        group.share(None)
    finally:
        group.leave()
    return outcome


def lead(options: Options, grid: Grid, group: distributed.Group, have_done: Callable[["Worker"], None]) -> Outcome:
    """Show the work on a grid, and that of others on it, while `have_done` has all of it done or given up, or until the
    time is up."""
    store = Store(options.results)
    grid, beyond = within_reach(grid, lambda stage: is_stored(store, stage))
    display = progress.display(len(grid.stages))
    try:
        for line in [*left_out(grid.table, grid.cells), *beyond] if options.only is None else ():
            display.note(line)
        for line in lacking(options):
            display.note(line)
        with Claims(options.results) as claims:
            worker = Worker(options, grid, group, display, claims)
            worker.store.sweep()
            if any(stage.key not in worker.done for stage in grid.stages):
                worker.store.check()
                worker.store.keep_plan(status.plan_of(grid, env.command()))
            have_done(worker)
            claims.clear(worker.done)
            for line in worker.left() if worker.deadline.passed else ():
                display.note(line)
    finally:
        display.close()
    trained = frozenset(s.key for s in grid.trainings if s.key in worker.done or is_stored(store, s))
    return Outcome(grid.table, trained, worker.failures)


def is_stored(store: Store, stage: Stage) -> bool:
    """Whether a stage's result is there, with its files."""
    return store.get(stage.kind, stage.inputs) is not None


def _locally(worker: "Worker") -> None:
    if worker.options.workers > 1:
        with workers.started(worker.options.workers, work, worker.options) as any_alive:
            worker.watch(any_alive)
    worker.drain()


def work(options: Options) -> None:
    """Do what nobody else does of a grid, except timings, and say nothing of it: one of several local workers."""
    store = Store(options.results)
    grid, _ = within_reach(plan(options), lambda stage: is_stored(store, stage))
    with Claims(options.results) as claims:
        Worker(options, grid, distributed.ALONE, progress.Silent(len(grid.stages)), claims).drain(timings=False)


def work_on(options: Options, keys: Collection[str]) -> None:
    """Do some stages of a grid, alone or with the other processes that `torchrun` has started, and say nothing of it.

    What another process holds is waited for only as long as it takes to know whether that one is dead.

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


def check_training(options: Options) -> None:
    """See to it that this machine can train as the options ask, if they ask for it.

    Raises:
        InputError: it cannot.
    """
    if "train" not in options.stages:
        return
    device_of(options.device)
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard: needs the package tensorboard, which is not installed here: pip install tensorboard"
        )


def check_timing(options: Options) -> None:
    """See to it that this machine has what is to be checked and timed on, if that is asked for.

    Raises:
        InputError: it has not.
    """
    for provider in options.providers if {"parity", "latency"} & set(options.stages) else ():
        from suite.inference.latency import unavailable

        reason = unavailable(provider)
        if reason:
            raise InputError(f"--providers {provider}: not available here: {reason}")


def _follow(options: Options, grid: Grid, group: distributed.Group) -> None:
    """Take part in each training that process 0 of the group begins, until it has no more."""
    stages = {stage.key: stage for stage in grid.stages}
    performer = Performer(options, Store(options.results), group, progress.Silent(0), deadline=Deadline(options.until))

    def next_of_pack(stage: Stage, succeeded: bool) -> Stage | None:
        key: str | None = group.share(None) if options.pack > 1 else None
        return stages[key] if key else None

    while keys := group.share(None):
        with suppress(TimeIsUp):  # as process 0 has found too, which then has no more
            performer.do([stages[key] for key in keys], next_of_pack)


class Worker:
    """One process at work on a grid.

    Attributes:
        done: keys of the stages that are done, by whomever.
        failures: how many stages have failed, by whomever, while it worked.
        deadline: after which nothing is begun, and trainings stop.
    """

    def __init__(
        self, options: Options, grid: Grid, group: distributed.Group, display: progress.Lines, claims: Claims
    ) -> None:
        self.options, self.grid, self.group, self.display, self.claims = options, grid, group, display, claims
        self.store = Store(options.results)
        self.deadline = Deadline(options.until)
        self.machine = Machine(display.note, deadline=self.deadline)
        self.performer = Performer(options, self.store, group, display, claims.say, self.deadline)
        self.failures = 0
        needs = [need for stage in grid.stages for need in stage.needs]  # which may be stored and not of the grid
        known = {stage.key: stage for stage in (*needs, *grid.stages)}
        self.done = {key for key, stage in known.items() if is_stored(self.store, stage)}
        for stage in grid.stages:
            if stage.key in self.done:
                display.skip(stage.name)
        # Those that failed, and those that need one of them.
        self._lost: set[str] = set()
        # Another worker's failure is one that was not there before; one from before is tried again.
        self._failed_before = {stage.key: self.store.failed_at(stage.kind, stage.inputs) for stage in grid.stages}

    def drain(self, timings: bool = True) -> None:
        """Do, or see done by others, all that there is, until the time is up; timings last, since figures compare the
        better the closer in time they are."""
        self._drain(stage for stage in self.grid.stages if stage.kind not in TIMED)
        # The machine's peak is measured for the sake of those beside which it is shown.
        if timings and not all(self._is_settled(stage) for stage in self.grid.stages if stage.kind == "latency"):
            self._drain(stage for stage in self.grid.stages if stage.kind in TIMED)

    def watch(self, any_alive: Callable[[], bool]) -> None:
        """Show what others do, as long as any of them is there."""
        pending = dict.fromkeys(stage for stage in self.grid.stages if stage.kind not in TIMED)
        while any_alive():
            self.look(pending)
            sleep(LOOK)
        self.display.elsewhere({})

    def left(self) -> Iterator[str]:
        """What to say of the stages that are neither done nor have failed."""
        left = for_their_own_sake(stage for stage in self.grid.stages if not self._is_settled(stage))
        if left:
            begun = [
                stage.cell.name
                for stage in left
                if stage.cell
                and stage.kind == "train"
                and any(self.store.checkpoints("train", stage.inputs).glob("*.safetensors"))
            ]
            midst = f", in the midst of which {'is' if len(begun) == 1 else 'are'} {', '.join(begun)}" if begun else ""
            count = "1 stage is" if len(left) == 1 else f"{len(left)} stages are"
            yield f"the time is up: {count} left{midst}; the same command goes on from there"

    def attempt(self, stages: Iterable[Stage]) -> None:
        """Do these stages, or see them done by others, except those that another process holds and is alive."""
        self._drain(stages, patience=PATIENCE + BEAT)

    def _drain(self, stages: Iterable[Stage], patience: float = math.inf) -> None:
        """Do stages, or see them done by others, until for `patience` seconds there was nothing to do, or the time is
        up."""
        pending = dict.fromkeys(stages)
        waited = False
        since = monotonic()
        while pending and monotonic() - since < patience and not self.deadline.passed:
            before = len(pending)
            for stage in list(pending):
                if stage not in pending:
                    continue
                if self._is_settled(stage):
                    del pending[stage]
                elif self.is_ready(stage) and not self.deadline.passed:
                    self._do(self._take(stage, pending), pending)
            self.look(pending)
            if len(pending) < before:
                since = monotonic()
            else:
                if not waited:
                    self.display.note(
                        f"waiting for {len(pending)} stages that others are at, or that need one of those"
                    )
                waited = True
                sleep(LOOK)
        self.display.elsewhere({})

    def look(self, pending: dict[Stage, None]) -> set[str]:
        """Strike out what is settled, and show what others are at; returns the keys of that."""
        for stage in list(pending):
            if self._is_settled(stage):
                del pending[stage]
        names = {stage.key: stage.name for stage in pending}
        under_way = [claim for claim in self.claims.under_way() if claim.key in names]
        self.display.elsewhere({claim.name: (claim.done, claim.total, claim.note) for claim in under_way})
        return {claim.key for claim in under_way}

    def _is_settled(self, stage: Stage) -> bool:
        """Whether nothing is left to do for a stage: it is done, has failed, or needs one that has."""
        if stage.key in self.done or stage.key in self._lost:
            return True
        if any(need.key in self._lost for need in stage.needs):
            self._lost.add(stage.key)
        elif record := self.store.get(stage.kind, stage.inputs):
            self.done.add(stage.key)
            self.display.ended(stage.name, "done by another process", record.timing.seconds)
        elif self.store.failed_at(stage.kind, stage.inputs) != self._failed_before[stage.key]:
            self._lose(stage)
            self.display.ended(stage.name, "failed in another process", 0.0)
        else:
            return False
        return True

    def is_ready(self, stage: Stage) -> bool:
        """Whether all that a stage needs is done."""
        return all(need.key in self.done for need in stage.needs)

    def give_up(self, stage: Stage, reason: str) -> None:
        """Count a stage as failed for this run, since nobody will do it."""
        self._lose(stage)
        self.display.ended(stage.name, "failed", 0.0)
        self.display.note(f"{stage.name}: {reason}")

    def _lose(self, stage: Stage) -> None:
        self._lost.add(stage.key)
        self.failures += 1

    def _take(self, stage: Stage, pending: Iterable[Stage]) -> list[Stage]:
        """Claim a stage, and with it those that are best done at the same time; what others are at is left out."""
        if stage.kind == "train":
            return self._claim(self._trainings(pending), self.options.pack)
        if stage.kind == "latency":
            together = (other for other in pending if other.kind == "latency" and turn_of(other) == turn_of(stage))
            return self._claim([stage, *together], ALIVE)
        return self._claim([stage], 1)

    def _trainings(self, pending: Iterable[Stage]) -> list[Stage]:
        """In the order in which to begin them."""
        trainings = [stage for stage in pending if stage.kind == "train"]
        return longest_first(trainings) if self.options.pack > 1 else trainings

    def _claim(self, candidates: Iterable[Stage], most: int) -> list[Stage]:
        """Claim at most so many of these, which are ready and nobody else is at."""
        taken: list[Stage] = []
        for each in dict.fromkeys(candidates):
            if len(taken) == most:
                break
            settled = each.key in self.done or each.key in self._lost
            if settled or not self.is_ready(each) or not self.claims.take(each):
                continue
            if self._is_settled(each):  # since the last look, by the one who had the claim before
                self.claims.release(each.key)
            else:
                taken.append(each)
        return taken

    def _do(self, stages: Sequence[Stage], pending: Iterable[Stage]) -> None:
        """Do stages that are claimed, and give up the claims; a training that ends makes room for one that is pending,
        where several share a device."""
        if not stages:
            return
        held = list(stages)
        packs = stages[0].kind == "train" and self.options.pack > 1

        def ended(stage: Stage, succeeded: bool) -> Stage | None:
            if succeeded:
                self.done.add(stage.key)
            else:
                self._lose(stage)
            self.claims.release(stage.key)
            if not packs:
                return None
            following = [] if self.deadline.passed else self._claim(self._trainings(pending), 1)
            held.extend(following)
            self.group.share(following[0].key if following else None)
            return following[0] if following else None

        timed = stages[0].kind in TIMED
        try:
            with suppress(TimeIsUp), self.machine.alone() if timed else self.machine.shared():
                if self.deadline.passed:  # while others had the machine
                    return
                if stages[0].kind == "train":
                    self.group.share([stage.key for stage in stages])
                self.performer.do(stages, ended)
        finally:
            for stage in held:
                self.claims.release(stage.key)

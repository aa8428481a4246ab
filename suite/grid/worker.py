"""One process at work on a grid: it does stages that nobody else is at, and sees those
done that others are at."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from time import monotonic, sleep

from suite import distributed, progress
from suite.grid import remaining, rows
from suite.grid.claims import BEAT, PATIENCE, Claims
from suite.grid.effort import longest_first
from suite.grid.machine import MachineLock
from suite.grid.perform import Performer
from suite.grid.plan import TIMED, Cell, Grid, RunOptions, Stage, to_time_with
from suite.grid.reach import without_unused_peaks
from suite.interrupt import Deadline, TimeIsUp
from suite.results.store import Store

# Seconds between two looks at what others have done, and for which an estimate of the time left is taken as it is.
LOOK = 0.5
ESTIMATED = 2.0


def is_stored(store: Store, stage: Stage) -> bool:
    """Whether a stage's result is there, be its files there too or removed on
    purpose."""
    return store.get_even_without_files(stage.kind, stage.inputs) is not None


def has_files(store: Store, stage: Stage) -> bool:
    """Whether a stage's result is there with its files, for others that need them."""
    return store.get(stage.kind, stage.inputs) is not None


def seconds_taken(store: Store, grid: Grid) -> dict[str, float]:
    """Seconds that each stage took that is done, by key: of the grid, and of what it
    needs.

    One whose files were removed is done unless another that is not done needs them.
    """
    known = {stage.key: stage for stage in (*(n for s in grid.stages for n in s.needs), *grid.stages)}
    found: dict[str, float] = {}
    wanted: set[str] = set()
    for stage in reversed(known.values()):
        record = (store.get if stage.key in wanted else store.get_even_without_files)(stage.kind, stage.inputs)
        if record is None:
            wanted |= {need.key for need in stage.needs}
        else:
            found[stage.key] = record.timing.seconds
    return found


class Worker:
    """One process at work on a grid.

    Attributes:
        done: keys of the stages that are done, by whomever.
        failures: how many stages have failed, by whomever, while it worked.
        deadline: after which nothing is begun, and trainings stop.
    """

    def __init__(
        self, options: RunOptions, grid: Grid, group: distributed.Group, display: progress.Lines, claims: Claims
    ) -> None:
        self.options, self.grid, self.group, self.display, self.claims = options, grid, group, display, claims
        self.store = Store(options.results)
        self.deadline = Deadline(options.until)
        self.machine = MachineLock(display.note, deadline=self.deadline)
        self.performer = Performer(options, self.store, group, display, claims.say, self.deadline)
        self.failures = 0
        # Those that failed, and those that need one of them.
        self._lost: set[str] = set()
        self._took = seconds_taken(self.store, grid)
        self.done = set(self._took)
        self._planned = [remaining.Planned(s.kind, s.key, str(s.inputs["model"]), s.name) for s in grid.stages]
        self._estimate = (-math.inf, "")
        self._of_cell: dict[Cell, list[Stage]] = {cell: [] for cell in grid.cells}
        for stage in grid.stages:
            if stage.cell in self._of_cell:
                self._of_cell[stage.cell].append(stage)
        # Cells that were told: checked, so that only timings are left of them, and done.
        self._checked = {cell for cell in grid.cells if self._all_done(cell, timings=False)}
        self._told = {cell for cell in grid.cells if self._all_done(cell)}
        display.expect(self._time_left)
        for stage in grid.stages:
            if stage.key in self.done:
                display.skip(stage.name)
        # Another worker's failure is one that was not there before; one from before is tried again.
        self._failed_before = {stage.key: self.store.failed_at(stage.kind, stage.inputs) for stage in grid.stages}

    def drain(self, timings: bool = True) -> None:
        """Do, or see done by others, all that there is, until the time is up; timings
        last, since figures compare the better the closer in time they are."""
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
        left = without_unused_peaks(stage for stage in self.grid.stages if not self._is_settled(stage))
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
        """Do these stages, or see them done by others, except those that another
        process holds and is alive."""
        self._drain(stages, patience=PATIENCE + BEAT)

    def _drain(self, stages: Iterable[Stage], patience: float = math.inf) -> None:
        """Do stages, or see them done by others, until for `patience` seconds there was
        nothing to do, or the time is up."""
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
            elif not self.deadline.passed:
                if not waited:
                    count = "1 stage" if len(pending) == 1 else f"{len(pending)} stages"
                    self.display.note(f"waiting for {count} that others are at, or whose needs they are at")
                waited = True
                sleep(LOOK)
        self.display.elsewhere({})

    def look(self, pending: dict[Stage, None]) -> set[str]:
        """Strike out what is settled, and show what others are at; returns the keys of
        that."""
        for stage in list(pending):
            if self._is_settled(stage):
                del pending[stage]
        names = {stage.key: stage.name for stage in pending}
        under_way = [claim for claim in self.claims.under_way() if claim.key in names]
        self.display.elsewhere({each.name: (each.done, each.total, each.note, each.left) for each in under_way})
        return {claim.key for claim in under_way}

    def _is_settled(self, stage: Stage) -> bool:
        """Whether nothing is left to do for a stage: it is done, has failed, or needs
        one that has."""
        if stage.key in self.done or stage.key in self._lost:
            return True
        if any(need.key in self._lost for need in stage.needs):
            self._lost.add(stage.key)
        elif record := self.store.get(stage.kind, stage.inputs):
            self._finish(stage)
            self.display.ended(stage.name, "done by another process", record.timing.seconds)
            self._tell(stage)
        elif self.store.failed_at(stage.kind, stage.inputs) != self._failed_before[stage.key]:
            self._lose(stage)
            self.display.ended(stage.name, "failed in another process", 0.0)
            self._tell(stage)
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

    def _finish(self, stage: Stage) -> None:
        record = self.store.get(stage.kind, stage.inputs)
        self._took[stage.key] = record.timing.seconds if record else 0.0
        self.done.add(stage.key)

    def pending_cells(self) -> int:
        """How many cells have something left to do but timings."""
        return sum(not self._all_done(cell, timings=False) for cell in self.grid.cells)

    def _all_done(self, cell: Cell, timings: bool = True) -> bool:
        """Whether nothing is left to do of a cell, or nothing but timings."""
        left = [stage for stage in self._of_cell[cell] if stage.key not in self.done and stage.key not in self._lost]
        return not any(timings or stage.kind not in TIMED for stage in left)

    def _tell(self, stage: Stage) -> None:
        """Say what came of a cell, if this stage was the last of it; and how long the
        rest takes, after the first."""
        cell = stage.cell
        if cell is None or cell in self._told or not self._all_done(cell, timings=False):
            return
        if self._all_done(cell):
            self._told.add(cell)
        elif cell in self._checked:
            return
        first = not self._checked
        self._checked.add(cell)
        stages = [each for each in self._of_cell[cell] if each.kind not in TIMED or cell in self._told]
        self.display.note(rows.format_row(self.grid.table, cell, stages, self.store))
        if first and len(self.grid.cells) > 1 and (left := self._estimate_rest()) and left.seconds:
            self.display.note(f"{left} left for the other rows and for all timings")

    def _time_left(self) -> str:
        """In words for the display, which asks more often than it is worth to look."""
        when, words = self._estimate
        if monotonic() - when > ESTIMATED:
            left = self._estimate_rest()
            words = f"{left} left" if left else ""
            self._estimate = monotonic(), words
        return words

    def _estimate_rest(self) -> remaining.TimeLeft | None:
        settled = self.done | self._lost
        return remaining.time_left(self._planned, settled, self.claims.under_way(), dict(self._took))

    def _lose(self, stage: Stage) -> None:
        self._lost.add(stage.key)
        self.failures += 1

    def _take(self, stage: Stage, pending: Iterable[Stage]) -> list[Stage]:
        """Claim a stage, and with it those that are best done at the same time; what
        others are at is left out."""
        if stage.kind == "train":
            return self._claim(self._trainings(pending), self.options.pack)
        if stage.kind == "latency":
            if not (taken := self._claim([stage], 1)):
                return []
            together = to_time_with(stage, filter(self.is_ready, pending), self.performer.stages.most_in_turns)
            return taken + self._claim(together[1:], len(together) - 1)
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
        """Do stages that are claimed, and give up the claims; a training that ends
        makes room for one that is pending, where several share a device."""
        if not stages:
            return
        held = list(stages)
        packs = stages[0].kind == "train" and self.options.pack > 1

        def ended(stage: Stage, succeeded: bool) -> Stage | None:
            if succeeded:
                self._finish(stage)
            else:
                self._lose(stage)
            self.claims.release(stage.key)
            self._tell(stage)
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

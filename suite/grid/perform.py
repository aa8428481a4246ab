"""Do the stages of a grid, one or several at a time, and keep what came of each.

Each stage is a function of values; `suite.grid.calls` calls it. A stage is imported
when it is done, so that a run of which everything is stored already does not load
torch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from msgspec import Struct, ValidationError, convert, to_builtins

from suite import env, progress
from suite.distributed import Group
from suite.errors import InputError, describe_error
from suite.files import full_disk
from suite.grid.calls import Stages
from suite.grid.effort import steps_of
from suite.grid.plan import RunOptions, Stage
from suite.grid.underway import NOTHING, EndCallback, Outcome, StageUnderWay
from suite.interrupt import NEVER, Deadline
from suite.results.store import Store

Work = Callable[[Stage, Path, progress.Steps], Struct]


class Performer:
    """What does stages, and keeps their results or the reasons why they failed.

    Args:
        options: of the run.
        store: of the results; only process 0 of a group touches it.
        group: the processes that train together.
        display: told of each stage.
        say: told of steps done, by the stage's key: steps done, steps in all, a note.
        deadline: when trainings stop, with a checkpoint.
    """

    def __init__(
        self,
        options: RunOptions,
        store: Store,
        group: Group,
        display: progress.Lines,
        say: Callable[[str, int, int, str], None] = lambda key, done, total, note: None,
        deadline: Deadline = NEVER,
    ) -> None:
        self.options, self.store, self.group, self.display, self.say = options, store, group, display, say
        self.deadline = deadline
        self.stages = Stages(store, display, options.imports)
        self._single: Mapping[str, Work] = {
            "export": self.stages.export,
            "analyze": self.stages.analyze,
            "convert": self.stages.convert,
            "parity": self.stages.parity,
            "peak": self.stages.peak,
        }

    def do(self, stages: Sequence[Stage], ended: Callable[[Stage, bool], Stage | None]) -> None:
        """Do stages of one kind: trainings at the same time, timings in turns, of all
        others one. All that they need must be in the store.

        Args:
            stages: what to do.
            ended: told of each stage, once its result or the reason of its failure is
                kept, whether it is done; returns a training to begin in the place of
                one, or None.

        Raises:
            InputError: what the user gave is not usable, which other stages would meet
                too.
            TimeIsUp: trainings were stopped, of which there are checkpoints.
        """
        with ExitStack() as stack:
            begun = [self._begin(stage, stack, len(stages)) for stage in stages]

            def end(
                each: StageUnderWay, outcome: Outcome, timing: Mapping[str, object] = NOTHING
            ) -> StageUnderWay | None:
                following = ended(each.stage, self._settle(each, outcome, timing))
                return self._begin(following, stack, len(stages)) if following else None

            if stages[0].kind == "train":
                self._train(begun, end)
                return
            outcomes: Sequence[Outcome]
            if stages[0].kind == "latency":
                outcomes = self._in_turns(stages, [each.step for each in begun])
            else:
                outcomes = [self._one(each.stage, each.folder, each.step) for each in begun]
            for each, outcome in zip(begun, outcomes, strict=True):
                end(each, outcome)

    def _begin(self, stage: Stage, stack: ExitStack, together: int) -> StageUnderWay:
        """A folder and a display for a stage, which end with `stack` at the latest."""
        ends = stack.enter_context(ExitStack())
        folder = ends.enter_context(_scratch() if self.group.rank else self.store.workspace())
        step = ends.enter_context(self._display_stage(stage, together))
        return StageUnderWay(stage, folder, step, perf_counter(), ends, together)

    @contextmanager
    def _display_stage(self, stage: Stage, together: int) -> Iterator[progress.Steps]:
        """Show a stage in the display, and to whoever else looks at the folder."""
        with self.display.stage(stage.name, steps_of(stage, together)) as step:

            def both(done: int, total: int, note: str) -> None:
                step(done, total, note)
                self.say(stage.key, done, total, note)

            yield both

    def _settle(self, each: StageUnderWay, outcome: Outcome, timing: Mapping[str, object]) -> bool:
        """Keep what came of a stage, and end its display; returns whether it is
        done."""
        if isinstance(outcome, InputError):
            raise outcome
        stage, outcome = each.stage, _validate(outcome)
        if self.group.rank:  # the first of the group keeps it, and decides alike
            return not isinstance(outcome, Exception)
        if not isinstance(outcome, Exception):
            # The share of each, so that the seconds of several add up to those of a clock.
            took = {"seconds": (perf_counter() - each.start) / each.together, **timing}
            files = each.folder if any(each.folder.iterdir()) else None
            self.store.put(stage.kind, stage.inputs, outcome, env.environment(), took, files)
            each.ends.close()
            return True
        reason = full_disk(outcome, self.store.root) or describe_error(outcome)
        self.store.fail(stage.kind, stage.inputs, reason)
        each.ends.pop_all().__exit__(type(outcome), outcome, None)  # the display then says that it failed
        self.display.note(f"{stage.name}: {reason}")
        return False

    def _one(self, stage: Stage, folder: Path, step: progress.Steps) -> Outcome:
        try:
            return self._single[stage.kind](stage, folder, step)
        except Exception as error:  # whatever goes wrong in one cell must not take the others with it; it is told
            return error

    def _in_turns(self, stages: Sequence[Stage], steps: Sequence[progress.Steps]) -> Sequence[Outcome]:
        try:
            return self.stages.latency(stages, steps)
        except Exception as error:  # before or between bursts, as where a file is gone: nobody has all of its rounds
            return [error] * len(stages)

    def _train(self, begun: Sequence[StageUnderWay], end: EndCallback) -> None:
        """Train networks at the same time; `end` is told of each that ends, and gives
        the next."""
        from suite.grid import trainings

        trainings.train(self.stages, self.options, self.group, begun, end, self.deadline)


def _validate(outcome: Outcome) -> Outcome:
    """A result whose figures are finite and lie in the ranges that its type states,
    which constructors do not ask; else the error, which must not end the stages beside
    this one."""
    if not isinstance(outcome, Struct):
        return outcome
    content = to_builtins(outcome)
    if wrong := next(_not_finite(content), ""):
        return ValueError(f"{wrong}, which no record can hold")
    try:
        return convert(content, type(outcome))
    except ValidationError as error:
        return error


def _not_finite(content: object, place: str = "") -> Iterator[str]:
    """Each infinite figure or NaN within JSON's types, as in "tries[0].last_loss is
    inf"."""
    if isinstance(content, float) and not math.isfinite(content):
        yield f"{place} is {content}"
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _not_finite(value, f"{place}.{name}" if place else str(name))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _not_finite(value, f"{place}[{index}]")


@contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder that is gone afterwards, for a process whose files nobody
    keeps."""
    with TemporaryDirectory() as folder:
        yield Path(folder)

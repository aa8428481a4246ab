"""Types of a stage that was begun, and of the callback that is told of its end."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from msgspec import Struct

from suite import progress
from suite.grid.plan import Stage

# What came of a stage: its result, of the type that `suite.schema.outcomes` has for it, or what ended it.
Outcome = Struct | Exception

# What a stage says of its own speed beside the seconds, for one that says nothing.
NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class StageUnderWay:
    """A stage that was begun.

    Attributes:
        stage: what it is.
        folder: for its files.
        step: told of steps done.
        start: when it was begun, by `perf_counter`.
        ends: what ends its display, and then its folder.
        together: how many were begun with it that take their time from the same
            processors.
    """

    stage: Stage
    folder: Path
    step: progress.Steps
    start: float
    ends: ExitStack
    together: int


class EndCallback(Protocol):
    """Told of a stage that ends, with what it says of its own speed beside the seconds;
    gives a training to begin in its place, or None."""

    def __call__(
        self, each: StageUnderWay, outcome: Outcome, timing: Mapping[str, object] = NOTHING
    ) -> StageUnderWay | None: ...

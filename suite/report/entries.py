"""A row of a table with its runs: their errors, what may be compared, and how they fall
short of the paper's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from suite.files import printable
from suite.registry import what_is_there
from suite.report.runs import Runs
from suite.results.record import TrainRecord
from suite.schema.outcomes import Epoch, Try, none_if_unset
from suite.tables.spec import Row, Table, recipe_for

Metric = Literal["last", "best"]


def figures_by_epoch(record: TrainRecord, of: Callable[[Epoch], float | None]) -> dict[int, float]:
    """A figure `of` each epoch of a training, by its 1-based number, where there is
    one."""
    figures = map(of, record.result.epochs)
    return {number: value for number, value in enumerate(figures, start=1) if value is not None}


def errors(runs: Runs, name: str, metric: Metric = "last") -> list[float]:
    """An error in percent of each run that has it, in the order of the seeds."""
    values = [_error(record, name, metric) for record in runs.train]
    return [value for value in values if value is not None]


def _error(record: TrainRecord, name: str, metric: Metric) -> float | None:
    last = record.result.figure(name)
    if metric == "last" or last is None:
        return last
    return min(figures_by_epoch(record, lambda epoch: epoch.figure(name)).values(), default=last)


def why_untrained(record: TrainRecord) -> str:
    """Why a network has no error: the rates tried, and of each reason the last try."""
    tries = record.result.tries
    first, last = tries[0].learning_rate, tries[-1].learning_rate
    reasons = {each.outcome: each for each in tries}
    return f"did not train at any learning rate from {first:g} down to {last:g}: " + "; ".join(
        f"{printable(outcome)} at {each.learning_rate:g}{_details(each)}" for outcome, each in reasons.items()
    )


def _details(tried: Try) -> str:
    """What is known of a try that ended with a finite loss, in brackets."""
    loss, error, dead = (
        none_if_unset(tried.last_loss),
        none_if_unset(tried.train_error),
        none_if_unset(tried.dead_units),
    )
    if loss is None:
        return ""
    said = [f"loss {loss:.3g}"]
    said += [f"training error {error:.1f} %"] if error is not None else []
    said += [f"dead units {dead:.0%}"] if dead is not None else []
    return f" ({', '.join(said)})"


def untrained_in_words(train: Sequence[TrainRecord]) -> str:
    """How many of some runs did not train and are left out of their median; empty if
    all or none did."""
    failed = sum(not run.result.trained for run in train)
    return (
        f"{failed} of {len(train)} seeds did not train, which the median leaves out" if 0 < failed < len(train) else ""
    )


def comparable(table: Table, row: Row, runs: Runs) -> bool:
    """Whether the runs were made by the paper's recipe, on its data and in full."""
    return bool(runs.train) and not any("not comparable" in note for note in shortfalls(table, row, runs.train))


@dataclass(frozen=True)
class Entry:
    """A row of a table with its runs."""

    table: Table
    row: Row
    runs: Runs

    @property
    def depth(self) -> str:
        """What the nets of one group have in common, as in "resnet20"; empty of a table
        of a user's own, whose rows are all of one group."""
        return "" if self.table.own else self.row.model.partition("_")[0]

    @property
    def recipe(self) -> str:
        """What its recipe has of its own among the paper's, as in "weight decay
        0.0005": nets of two recipes are not compared. Empty of most, and of a table of
        a user's own, where recipes may be what is compared."""
        changes = {} if self.table.own else self.row.recipe
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in changes.items())

    @property
    def name(self) -> str:
        """What plots of several tables' rows call it."""
        return f"{self.row.title} ({self.recipe})" if self.recipe else self.row.title

    @property
    def comparable(self) -> bool:
        """Whether its errors may be compared with the paper's."""
        return comparable(self.table, self.row, self.runs)

    @property
    def counts(self) -> bool:
        """Whether it was run over whole epochs on the row's own images, so that its
        errors mean something."""
        return bool(self.runs.train) and not _is_cut_off_or_on_stand_in(self.table, self.row, self.runs.train[0])

    @property
    def epochs(self) -> int:
        """Of its runs; there must be some."""
        return self.runs.train[0].inputs.schedule.epochs


def are_alike(a: Entry, b: Entry) -> bool:
    """Whether two nets were trained on the same images of the paper's data for as many
    whole epochs by one recipe, so that their errors compare."""

    def how(net: Entry) -> tuple[object, ...]:
        return net.runs.train[0].inputs.data, net.epochs, net.recipe

    return a.counts and b.counts and how(a) == how(b)


def why_none_counts(entries: Iterable[Entry]) -> str:
    """Why no entry's errors mean anything, as in "quick runs only"; empty if one's
    do."""
    run = [entry for entry in entries if entry.runs.train]
    if any(entry.counts for entry in run):
        return ""
    quick = all(entry.runs.train[0].is_quick for entry in run)
    return "quick runs only" if quick else "only runs that are quick, cut off or on other images"


def _is_cut_off_or_on_stand_in(table: Table, row: Row, record: TrainRecord) -> bool:
    """Whether a run was to end after fewer steps than its recipe has, or was on a
    stand-in for the row's images."""
    inputs = record.inputs
    return inputs.schedule.max_steps != recipe_for(table, row).max_steps or inputs.data.name != row.data


def shortfalls(table: Table, row: Row, train: list[TrainRecord]) -> list[str]:
    """How the runs fall short of the paper's, so that nobody compares what cannot be
    compared."""
    data, recipe, result = train[0].inputs.data, train[0].inputs.schedule, train[0].result
    parts = []
    if data.name != row.data:
        parts.append(f"on the embedded {data.name}, not on {row.data}")
    if recipe.max_steps != recipe_for(table, row).max_steps:
        parts.append(f"{result.steps} training step{'s' if result.steps != 1 else ''}")
    elif recipe.epochs < (epochs := recipe_for(table, row).epochs):
        parts.append(f"{recipe.epochs} of {epochs} epochs")
    if result.test_images < data.test:
        parts.append(f"{result.test_images} of {data.test} test images")
    if part := what_is_there(data.name, data.train, data.test):
        parts.append(part)
    trained = [run for run in train if run.result.trained]
    rates = {run.result.tries[-1].learning_rate for run in trained}
    notes = []
    limited = _is_cut_off_or_on_stand_in(table, row, train[0])
    if parts:
        whom = "whole runs" if table.own else "the paper"
        other = "shortened run" if data.name == row.data else "run on other images"
        kind = "quick run" if train[0].is_quick else other
        notes.append(f"{kind}, not comparable with {whom}: {', '.join(parts)}")
    if not limited and len(train) < table.seeds:
        whole = "that the table asks for" if table.own else "whose median the paper gives"
        notes.append(f"{len(train)} of the {table.seeds} runs {whole}")
    if failed := untrained_in_words(train):
        notes.append(failed)
    if trained and rates != {recipe.learning_rate}:
        notes.append(f"trained at a learning rate of {', '.join(f'{r:g}' for r in sorted(rates))} after halving")
    return notes

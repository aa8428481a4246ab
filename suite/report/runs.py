"""What results folders hold, row by row of a table: which runs count, what may be compared, and how they fall short.

Statistics are computed as they are asked for, from the raw values in the records.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import msgspec

from suite.files import printable
from suite.registry import DATA_SETS, ORT, RUNTIMES, STAND_INS
from suite.results.notes import Failure
from suite.results.record import (
    AnalyzeRecord,
    ExportRecord,
    K,
    LatencyRecord,
    ParityRecord,
    PeakRecord,
    Record,
    TimedRecord,
    TrainRecord,
    in_seconds,
)
from suite.results.samples import quantiles
from suite.results.store import Store
from suite.schema.inputs import Inputs
from suite.schema.outcomes import Epoch, Try, known
from suite.tables.spec import Row, Table, outdated, recipe_for, within_an_epoch

# Spread of the samples, (p75 - p25) / p50, from which on a latency is marked as unstable.
UNSTABLE = 0.1

# The precision, in a latency record, of the exporter's own graph: float32 without the rewrites.
PLAIN = "plain"

# Packages that run networks.
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch")

S = TypeVar("S", bound=Record[Inputs, object])

# What is said of a row whose only runs are of an earlier version of its network.
OUTDATED = "run before its initial weights or its BatchNorm were corrected, which does not count; run it anew"

Metric = Literal["last", "best"]

# Setup (machine and versions), runtime, execution provider, batch size and precision of a latency.
Kind = tuple[str, str, str, int, str]

# Execution provider of a parity, behind the runtime if that is not ONNX Runtime, and precision; and those of the one
# that every row has.
Check = tuple[str, str]

CHECK: Check = ("cpu", "fp32")


@dataclass(frozen=True)
class Runs:
    """What there is of one row: training runs of one recipe on one data set, by seed, and what followed.

    `parity` is that of float32 on the CPU, `checks` that on other providers and in fewer bits.
    """

    train: list[TrainRecord]
    export: ExportRecord | None
    parity: list[ParityRecord]
    latency: list[TimedRecord]
    analyze: list[AnalyzeRecord]
    checks: dict[Check, list[ParityRecord]]

    @cached_property
    def timed(self) -> dict[Kind, TimedRecord]:
        """The latest latency record of each kind among those of the most thorough protocol; never the fastest."""

        def merit(record: TimedRecord) -> tuple[int, int, str]:
            return record.inputs.version, record.inputs.protocol.rounds, record.finished

        found: dict[Kind, TimedRecord] = {}
        for record in self.latency:
            best = found.setdefault(kind_of(record), record)
            if merit(record) > merit(best):
                found[kind_of(record)] = record
        return dict(sorted(found.items()))


class Records:
    """What results folders hold, each record read once; to be asked for by what it depends on.

    Args:
        stores: the folders. Of records with the same key, the first folder's counts.
        models: only records of these models; None for all.
        trained: keys of the training records to use; None for all.
        failed: of which kinds of stages failures are told; None for all.

    Raises:
        InputError: a record cannot be read.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        models: Collection[str] | None = None,
        trained: frozenset[str] | None = None,
        failed: Collection[str] | None = None,
    ) -> None:

        def each(kind: type[K], kept: Callable[[K], S]) -> list[S]:
            found: dict[str, S] = {}
            for store in stores:
                for record in store.typed(kind, models):
                    found.setdefault(record.key, kept(record))
            # Where a stage has a newer version, its record stands behind and is the one that a dictionary keeps.
            return sorted(found.values(), key=lambda record: (record.inputs.version, record.finished))

        self.train: dict[str, list[TrainRecord]] = {}
        self._outdated: set[tuple[str, str]] = set()  # model and data
        for train in each(TrainRecord, _same):
            model = train.inputs.model
            if outdated(model, train.inputs.version):
                self._outdated.add((model, train.inputs.data.name))
            elif trained is None or train.key in trained:
                self.train.setdefault(model, []).append(train)
        # Of each network the rewritten graph, for the CPU, and the exporter's own, for GPUs and for comparison.
        self._rewritten: dict[str, ExportRecord] = {}
        self._plain: dict[str, ExportRecord] = {}
        for export in each(ExportRecord, _same):
            graphs = self._plain if export.inputs.plain else self._rewritten
            graphs[export.inputs.train] = export
        self._trained = {e.key: train for graphs in (self._rewritten, self._plain) for train, e in graphs.items()}
        self.parity: dict[str, dict[Check, ParityRecord]] = {}
        for parity in each(ParityRecord, _same):
            runtime, provider = printable(parity.inputs.runtime), parity.inputs.provider
            check = provider if runtime == ORT else f"{runtime} {provider}", parity.inputs.precision
            self.parity.setdefault(parity.inputs.export, {})[check] = parity
        self.analyze = {record.inputs.train: record for record in each(AnalyzeRecord, _same)}
        self.latency: dict[str, list[TimedRecord]] = {}
        for timed in each(LatencyRecord, in_seconds):
            self.latency.setdefault(timed.inputs.export, []).append(timed)
        # Of the machine and not of a model; the fastest counts, since nothing makes a machine faster than it is.
        self.peak: dict[tuple[str, str, int, str], PeakRecord] = {}
        for store in stores:
            for peak in store.typed(PeakRecord):
                place = peak.inputs.machine, peak.inputs.provider, peak.inputs.threads, peak.inputs.precision
                self.peak[place] = max(self.peak.get(place, peak), peak, key=lambda each: each.result.flops)
        self.failures: list[Failure] = [
            failure for store in stores for failure in store.failures() if failed is None or failure.stage in failed
        ]

    def runs(self, table: Table, row: Row) -> Runs:
        """The runs of a row that say most: on the paper's data, of most steps, of most seeds, the latest.

        A run is the row's if its recipe is, over any number of epochs, or the row's quick one; of either with any limit
        of steps. Another table may have the same network by another recipe (Table 3's weight decay).
        """
        legal: dict[int, list[dict[str, object]]] = {}
        groups: dict[bytes, list[TrainRecord]] = {}
        for record in self.train.get(row.model, []):
            inputs = record.inputs
            recipe, epochs = inputs.recipe, inputs.schedule.epochs  # of old records it is not all
            if epochs not in legal:
                legal[epochs] = _recipes(table, row, epochs)
            own = any(all(recipe.get(name, value) == value for name, value in each.items()) for each in legal[epochs])
            if own and inputs.data.name in (row.data, STAND_INS[row.data]):
                # What else decides a result: seeds of one group are repetitions of the same thing.
                how = inputs.version, inputs.precision, inputs.processes
                came_to = record.result.precision  # what "auto" came to
                group = msgspec.json.encode([inputs.data, recipe, how, came_to], order="sorted")
                groups.setdefault(group, []).append(record)
        if not groups:
            return Runs([], None, [], [], [], {})

        def merit(runs: list[TrainRecord]) -> tuple[bool, int, int, int, str]:
            inputs = runs[0].inputs
            real, steps = inputs.data.name == row.data, max(r.result.steps for r in runs)
            return real, steps, len(runs), inputs.version, max(r.finished for r in runs)

        best: list[TrainRecord] = max(groups.values(), key=merit)
        train = sorted(best, key=lambda r: r.inputs.seed)
        exports = [graphs[r.key] for graphs in (self._rewritten, self._plain) for r in train if r.key in graphs]
        parity: dict[Check, list[ParityRecord]] = {}
        for export in exports:
            for check, found in sorted(self.parity.get(export.key, {}).items()):
                parity.setdefault(check, []).append(found)
        latency = [record for e in exports for record in self.latency.get(e.key, [])]
        analyze = [self.analyze[r.key] for r in train if r.key in self.analyze]
        checks = {check: records for check, records in parity.items() if check != CHECK}
        return Runs(train, exports[0] if exports else None, parity.get(CHECK, []), latency, analyze, checks)

    def missing(self, row: Row) -> str:
        """Why there is no run of a row."""
        old = any((row.model, data) in self._outdated for data in (row.data, STAND_INS[row.data]))
        return self.reason(row, "train") or (OUTDATED if old else "not run")

    def reason(self, row: Row, stage: str) -> str | None:
        """Why this stage of the row failed last time, if it did."""
        for failure in self.failures:
            if failure.stage == stage and failure.model == row.model:
                of = self._data_of(failure)
                if of is None or of in (row.data, STAND_INS[row.data]):
                    return f"{stage} failed: {failure.reason}"
        return None

    def _data_of(self, failure: Failure) -> str | None:
        """On which data the network was trained that a stage was about, if that is known."""
        if failure.data is not None:
            return failure.data
        trained = failure.train or self._trained.get(failure.export)
        for record in self.train.get(failure.model, []):
            if record.key == trained:
                return record.inputs.data.name
        return None


def _same(record: K) -> K:
    return record


def _recipes(table: Table, row: Row, epochs: int) -> list[dict[str, object]]:
    """The recipes by which a row may be run over so many epochs, as records hold them; without what limits them."""
    found = []
    whole = [recipe_for(table, row, "paper", epochs)] if epochs >= 1 else []
    short = [recipe_for(replace(table, quick=each), row, "quick") for each in (table.quick, *table.earlier_quick)]
    for recipe in (*whole, *short):
        content = asdict(recipe) | {"milestones": list(recipe.milestones)}
        found.append({name: value for name, value in content.items() if name not in ("max_steps", "max_test_images")})
    return found


def by_epoch(record: TrainRecord, of: Callable[[Epoch], float | None]) -> dict[int, float]:
    """A figure `of` each epoch of a training, by its 1-based number, where there is one."""
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
    return min(by_epoch(record, lambda epoch: epoch.figure(name)).values(), default=last)


def untrained(record: TrainRecord) -> str:
    """Why a network has no error: the rates tried, and of each reason the last try."""
    tries = record.result.tries
    first, last = tries[0].learning_rate, tries[-1].learning_rate
    reasons = {each.outcome: each for each in tries}
    return f"did not train at any learning rate from {first:g} down to {last:g}: " + "; ".join(
        f"{printable(outcome)} at {each.learning_rate:g}{_details(each)}" for outcome, each in reasons.items()
    )


def _details(tried: Try) -> str:
    """What is known of a try that ended with a finite loss, in brackets."""
    loss, error, dead = known(tried.last_loss), known(tried.train_error), known(tried.dead_units)
    if loss is None:
        return ""
    said = [f"loss {loss:.3g}"]
    said += [f"training error {error:.1f} %"] if error is not None else []
    said += [f"dead units {dead:.0%}"] if dead is not None else []
    return f" ({', '.join(said)})"


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
    def comparable(self) -> bool:
        """Whether its errors may be compared with the paper's."""
        return comparable(self.table, self.row, self.runs)

    @property
    def quick(self) -> bool:
        """Whether it was run, but cut off after some steps or on embedded images, so that its errors mean nothing."""
        first = [record.inputs for record in self.runs.train[:1]]
        return any(inputs.schedule.max_steps is not None or inputs.data.name != self.row.data for inputs in first)

    @property
    def counts(self) -> bool:
        """Whether it was run over whole epochs on the paper's data, so that its errors mean something."""
        return bool(self.runs.train) and not self.quick

    @property
    def epochs(self) -> int:
        """Of its runs; there must be some."""
        return self.runs.train[0].inputs.schedule.epochs


def quick(table: Table, train: list[TrainRecord]) -> bool:
    """Whether runs were shorter than an epoch, so that their errors say nothing."""
    record = train[0]
    batch = record.inputs.recipe.get("batch_size", table.recipe.batch_size)
    return isinstance(batch, int) and within_an_epoch(record.result.steps, batch, record.inputs.data.train)


def shortfalls(table: Table, row: Row, train: list[TrainRecord]) -> list[str]:
    """How the runs fall short of the paper's, so that nobody compares what cannot be compared."""
    data, recipe, result = train[0].inputs.data, train[0].inputs.schedule, train[0].result
    parts = []
    if data.name != row.data:
        parts.append(f"on the embedded {data.name}, not on {row.data}")
    if recipe.max_steps is not None:
        parts.append(f"{result.steps} training steps")
    elif recipe.epochs < table.recipe.epochs:
        parts.append(f"{recipe.epochs} of {table.recipe.epochs} epochs")
    if result.test_images < data.test:
        parts.append(f"{result.test_images} of {data.test} test images")
    registered = DATA_SETS.get(data.name)
    if registered and registered.images and (data.train, data.test) != registered.images:
        parts.append(f"{data.name} of {data.train} training and {data.test} test images, not all of it")
    rates = {run.result.tries[-1].learning_rate for run in train}
    notes = []
    limited = recipe.max_steps is not None or data.name != row.data
    if parts:
        notes.append(
            f"{'quick run' if limited else 'shortened run'}, not comparable with the paper: {', '.join(parts)}"
        )
    if not limited and len(train) < table.seeds:
        notes.append(f"{len(train)} of the {table.seeds} runs whose median the paper gives")
    if rates != {recipe.learning_rate} and any(run.result.trained for run in train):
        notes.append(f"trained at a learning rate of {', '.join(f'{r:g}' for r in sorted(rates))} after halving")
    return notes


def unstable(record: TimedRecord) -> list[str]:
    """What is to be said of a latency whose samples are far apart, or that was taken while a quota stopped it."""
    notes = []
    if stops := record.result.throttled:
        notes.append(f"throttled: a container's CPU quota stopped the runs {stops} times")
    p25, p50, p75 = quantiles(record.result.samples, (0.25, 0.5, 0.75))
    if (p75 - p25) / p50 > UNSTABLE:
        notes.append(f"unstable: quartiles more than {UNSTABLE:.0%} of the median apart")
    return notes


def median(record: TimedRecord) -> float:
    """Of the samples of a latency, in seconds."""
    return record.result.median


def kind_of(record: TimedRecord) -> Kind:
    """What a latency record timed: two of the same kind may be compared, others never share a column."""
    inputs = record.inputs
    runtime, provider, precision = map(printable, (inputs.runtime, inputs.provider, inputs.precision))
    # Of a runtime that not all have, the version stands with its name, so that the others' setup is the same without.
    if runtime in RUNTIMES and RUNTIMES[runtime].extra:
        runtime = f"{runtime} {printable(inputs.versions.get(RUNTIMES[runtime].library, ''))}".strip()
    return setup_of(record), runtime, provider, inputs.batch_size, precision or "fp32"


def setup_of(record: TimedRecord) -> str:
    """Machine and versions of the runtimes of a latency, as in "AMD EPYC (2 cores), torch 2.15.0"."""
    versions = record.inputs.versions
    runtimes = [f"{name} {versions[name]}" for name in RUNTIME_PACKAGES if name in versions]
    return printable(", ".join([record.inputs.machine, *runtimes]))


def words_of(kind: Kind) -> str:
    """A kind without its setup, as in "ORT cpu b8"."""
    _, runtime, provider, batch, precision = kind
    return " ".join([runtime_words(runtime), provider, *reduced(precision), f"b{batch}"])


def runtime_words(runtime: str) -> str:
    """A runtime as headings name it, with its version if that stands behind it."""
    name, _, version = runtime.partition(" ")
    return f"{RUNTIMES[name].short if name in RUNTIMES else name} {version}".strip()


def reduced(precision: str) -> list[str]:
    """A precision in words; none for float32, which is what is meant where nothing is said."""
    return {"fp32": [], PLAIN: ["default export"]}.get(precision, [precision])

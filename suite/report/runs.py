"""What results folders hold, row by row of a table: which runs count, and why there are
none.

Statistics are computed as they are asked for, from the raw values in the records.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TypeVar

import msgspec

from suite.files import printable
from suite.registry import ORT, stand_in
from suite.report.kinds import Kind, kind_of
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
from suite.results.store import Store
from suite.schema.inputs import Data, Inputs
from suite.tables import modules
from suite.tables.own import OwnTable
from suite.tables.spec import Row, Table, is_outdated, recipe_for

S = TypeVar("S", bound=Record[Inputs, object])

# What is said of a row whose only runs are of an earlier version of its network.
OUTDATED = "run before its initial weights or its BatchNorm were corrected, which does not count; run it anew"

# And of one that was only run with another text of the module that defines its model.
CHANGED = "run with another text of its module, which does not count; run it anew"

# Execution provider of a parity, behind the runtime if that is not ONNX Runtime, and precision; and those of the one
# that every row has.
Check = tuple[str, str]

CHECK: Check = ("cpu", "fp32")


@dataclass(frozen=True)
class Runs:
    """What there is of one row: training runs of one recipe on one data set, by seed,
    and what followed.

    `analyze` is of those that trained: the weights of others are the initial ones.
    `parity` is that of float32 on the CPU, `checks` that on other providers and in
    reduced precision.
    """

    train: list[TrainRecord]
    export: ExportRecord | None
    parity: list[ParityRecord]
    latency: list[TimedRecord]
    analyze: list[AnalyzeRecord]
    checks: dict[Check, list[ParityRecord]]

    @cached_property
    def timed(self) -> dict[Kind, TimedRecord]:
        """The latest latency record of each kind among those of the most thorough
        protocol; never the fastest."""

        def merit(record: TimedRecord) -> tuple[int, int, str]:
            return record.inputs.version, record.inputs.protocol.rounds, record.finished

        found: dict[Kind, TimedRecord] = {}
        for record in self.latency:
            best = found.setdefault(kind_of(record), record)
            if merit(record) > merit(best):
                found[kind_of(record)] = record
        return dict(sorted(found.items()))


class Records:
    """What results folders hold, each record read once; to be asked for by what it
    depends on.

    Args:
        stores: the folders. Of records with the same key, the first folder's counts.
        models: only records of these models; None for all.
        trained: keys of the training records to use; None for all.
        failed: of which kinds of stages failures are told; None for all.
        imports: the modules that define models of a user's own; what was run with
            another text of them does not count.

    Attributes:
        contradictions: what is to be said of trainings that several folders have, and
            not alike; at most one line.

    Raises:
        InputError: a record cannot be read, or there is no such module.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        models: Collection[str] | None = None,
        trained: frozenset[str] | None = None,
        failed: Collection[str] | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        sources = modules.digests(imports)
        unlike: set[str] = set()

        def each(kind: type[K], kept: Callable[[K], S]) -> list[S]:
            found: dict[str, S] = {}
            for store in stores:
                for record in map(kept, store.typed(kind, models)):
                    first = found.setdefault(record.key, record)
                    if kind is TrainRecord and first is not record and first.result != record.result:
                        unlike.add(record.key)
            # Where a stage has a newer version, its record stands behind and is the one that a dictionary keeps.
            return sorted(found.values(), key=lambda record: (record.inputs.version, record.finished))

        self.train: dict[str, list[TrainRecord]] = {}
        self._outdated: set[tuple[str, str]] = set()  # model and data
        self._changed: set[tuple[str, str]] = set()
        for train in each(TrainRecord, _same):
            model = train.inputs.model
            source = train.inputs.source
            if source is not None and sources and source not in sources:
                self._changed.add((model, train.inputs.data.name))
            elif is_outdated(model, train.inputs.version):
                self._outdated.add((model, train.inputs.data.name))
            elif trained is None or train.key in trained:
                self.train.setdefault(model, []).append(train)
        # Of each network the rewritten graph, for the CPU, and the default export, for GPUs and for comparison.
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
        said = f"trainings that stand in several folders with different figures: {len(unlike)}"
        self.contradictions = [f"{said}; shown are those of the folder that was named first"] if unlike else []
        self.failures: list[Failure] = [
            failure for store in stores for failure in store.failures() if failed is None or failure.stage in failed
        ]

    def runs(self, table: Table, row: Row) -> Runs:
        """The runs of a row that say most: on the paper's data, of most images, of most
        seeds, the latest.

        A run is the row's if its recipe is, over any number of epochs, or the row's
        quick one; of either with any limit of steps. Another table may have the same
        network by another recipe (Table 3's weight decay).
        """
        legal: dict[int, list[dict[str, object]]] = {}
        groups: dict[bytes, list[TrainRecord]] = {}
        for record in self.train.get(row.model, []):
            inputs = record.inputs
            recipe, epochs = inputs.recipe, inputs.schedule.epochs  # of old records it is not all
            if epochs not in legal:
                legal[epochs] = _recipes(table, row, epochs)
            own = any(all(recipe.get(name, value) == value for name, value in each.items()) for each in legal[epochs])
            same = inputs.arguments == row.arguments and _is_normalized_as_stated(table, inputs.data)
            if own and same and inputs.data.name in _names(row):
                # What else decides a result: seeds of one group are repetitions of the same thing.
                how = [inputs.version, inputs.precision, inputs.processes, inputs.source]
                came_to = record.result.precision  # what "auto" came to
                group = msgspec.json.encode([inputs.data, recipe, how, came_to], order="sorted")
                groups.setdefault(group, []).append(record)
        if not groups:
            return Runs([], None, [], [], [], {})

        if any(runs[0].inputs.source for runs in groups.values()):  # of which the latest counts
            latest = max(groups.values(), key=lambda runs: max(r.finished for r in runs))[0].inputs.source
            groups = {group: runs for group, runs in groups.items() if runs[0].inputs.source == latest}

        def merit(runs: list[TrainRecord]) -> tuple[bool, int, int, int, str]:
            inputs = runs[0].inputs
            real, images = inputs.data.name == row.data, inputs.planned_images
            return real, images, len(runs), inputs.version, max(r.finished for r in runs)

        best: list[TrainRecord] = max(groups.values(), key=merit)
        train = sorted(best, key=lambda r: r.inputs.seed)
        exports = [graphs[r.key] for graphs in (self._rewritten, self._plain) for r in train if r.key in graphs]
        parity: dict[Check, list[ParityRecord]] = {}
        for export in exports:
            for check, found in sorted(self.parity.get(export.key, {}).items()):
                parity.setdefault(check, []).append(found)
        latency = [record for e in exports for record in self.latency.get(e.key, [])]
        analyze = [self.analyze[r.key] for r in train if r.key in self.analyze and r.result.trained]
        checks = {check: records for check, records in parity.items() if check != CHECK}
        return Runs(train, exports[0] if exports else None, parity.get(CHECK, []), latency, analyze, checks)

    def missing(self, row: Row) -> str:
        """Why there is no run of a row."""
        places = [(row.model, data) for data in _names(row)]
        why = OUTDATED if any(place in self._outdated for place in places) else "not run"
        why = CHANGED if any(place in self._changed for place in places) else why
        return self.reason(row, "train") or why

    def reason(self, row: Row, stage: str, runs: Runs | None = None) -> str | None:
        """Why this stage of the row failed last time, if it did; of its `runs`, where
        they are given, and not of others by another recipe, say a quick one."""
        for failure in self.failures:
            same = failure.model == row.model and failure.arguments == row.arguments
            if failure.stage == stage and same:
                of = self._data_of(failure)
                if (of is None or of in _names(row)) and (runs is None or self._is_of(failure, runs)):
                    where = f" on {of}" if stage == "train" and of not in (None, row.data) else ""
                    return f"{stage} failed{where}: {failure.reason}"
        return None

    def _is_of(self, failure: Failure, runs: Runs) -> bool:
        """Whether a failure is of these runs and not made good since by a like
        stage."""
        if not runs.train:
            return True
        if failure.stage == "train":
            return failure.recipe in ({}, runs.train[0].inputs.recipe)
        trained = failure.train or self._trained.get(failure.export)
        if (trained or failure.export) and trained not in {record.key for record in runs.train}:
            return False
        done: list[tuple[str | int, ...]]
        done = [("parity", r.inputs.export, *_check(r)) for r in (*runs.parity, *chain(*runs.checks.values()))]
        done += [("latency", r.inputs.export, *_check(r), r.inputs.machine, r.inputs.batch_size) for r in runs.latency]
        return (failure.stage, failure.export, *failure.of) not in done

    def _data_of(self, failure: Failure) -> str | None:
        """On which data the network was trained that a stage was about, if that is
        known."""
        if failure.data is not None:
            return failure.data
        trained = failure.train or self._trained.get(failure.export)
        for record in self.train.get(failure.model, []):
            if record.key == trained:
                return record.inputs.data.name
        return None


def _same(record: K) -> K:
    return record


def _check(record: ParityRecord | TimedRecord) -> tuple[str, str, str]:
    return record.inputs.runtime, record.inputs.provider, record.inputs.precision


def _names(row: Row) -> tuple[str, ...]:
    """The data sets on which a row may be run."""
    embedded = stand_in(row.data)
    return (row.data, embedded) if embedded else (row.data,)


def _is_normalized_as_stated(table: Table, data: Data) -> bool:
    """Whether images of a user's own data set were normalised as the table says now."""
    if not isinstance(table, OwnTable) or data.name not in table.images:
        return True
    images = table.images[data.name]
    return (data.mean, data.std) == ([255 * value for value in images.mean], [255 * value for value in images.std])


def _recipes(table: Table, row: Row, epochs: int) -> list[dict[str, object]]:
    """The recipes by which a row may be run over so many epochs, as records hold them;
    without what limits them."""
    found = []
    whole = [recipe_for(table, row, "paper", epochs)] if epochs >= 1 else []
    short = [recipe_for(replace(table, quick=each), row, "quick") for each in (table.quick, *table.earlier_quick)]
    for recipe in (*whole, *short):
        content = asdict(recipe) | {"milestones": list(recipe.milestones)}
        found.append({name: value for name, value in content.items() if name not in ("max_steps", "max_test_images")})
    return found

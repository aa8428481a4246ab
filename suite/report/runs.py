"""What results folders hold, row by row of a table: which runs count, what may be compared, and how they fall short.

Statistics are computed as they are asked for, from the raw values in the records.
"""

import math
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any, Literal

import orjson

from suite.files import printable
from suite.registry import DATA_SETS, STAND_INS
from suite.results.record import Record
from suite.results.samples import quantiles
from suite.results.shape import checked
from suite.results.store import Store
from suite.tables.spec import Row, Table, outdated, recipe_for, within_an_epoch

# Spread of the samples, (p75 - p25) / p50, from which on a latency is marked as unstable.
UNSTABLE = 0.1

# The precision, in a latency record, of the exporter's own graph: float32 without the rewrites.
PLAIN = "plain"

# Packages that run networks.
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch")

# What is said of a row whose only runs are of an earlier version of its network.
OUTDATED = "run before its initial weights or its BatchNorm were corrected, which does not count; run it anew"

Metric = Literal["last", "best"]

# Setup (machine and versions), runtime, execution provider, batch size and precision of a latency.
Kind = tuple[str, str, str, int, str]

# Execution provider and precision of a parity, and those of the one that every row has.
Check = tuple[str, str]

CHECK: Check = ("cpu", "fp32")


@dataclass(frozen=True)
class Runs:
    """What there is of one row: training runs of one recipe on one data set, by seed, and what followed.

    `parity` is that of float32 on the CPU, `checks` that on other providers and in fewer bits.
    """

    train: list[Record]
    export: Record | None
    parity: list[Record]
    latency: list[Record]
    analyze: list[Record]
    checks: dict[Check, list[Record]]

    @cached_property
    def timed(self) -> dict[Kind, Record]:
        """The latest latency record of each kind among those of the most thorough protocol; never the fastest."""

        def merit(record: Record) -> tuple[int, int, str]:
            rounds = record.inputs.get("protocol", {}).get("rounds", 0)
            return record.inputs.get("version", 0), rounds, record.finished

        found: dict[Kind, Record] = {}
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
        curves: what `by_epoch` will be asked for; None for everything. With nothing, the epochs are not read, which
            are most of a training record.
        failed: of which kinds of stages failures are told; None for all.

    Raises:
        InputError: a record cannot be read.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        models: Collection[str] | None = None,
        trained: frozenset[str] | None = None,
        curves: Collection[str] | None = None,
        failed: Collection[str] | None = None,
    ) -> None:
        without = None if curves is None or curves else "epochs"

        def each(stage: str) -> Iterable[Record]:
            found: dict[str, Record] = {}
            for store in stores:
                for record in store.each(stage, models, without):
                    found.setdefault(record.key, _compact(checked(record, store.root), curves))
            # Where a stage has a newer version, its record stands behind and is the one that a dictionary keeps.
            return sorted(found.values(), key=lambda record: (record.inputs.get("version", 0), record.finished))

        self.train: dict[str, list[Record]] = {}
        self._outdated: set[tuple[str, str]] = set()  # model and data
        for record in each("train"):
            model = record.inputs["model"]
            if outdated(model, record.inputs.get("version", 0)):
                self._outdated.add((model, record.inputs["data"]["name"]))
            elif trained is None or record.key in trained:
                self.train.setdefault(model, []).append(record)
        # Of each network the rewritten graph, for the CPU, and the exporter's own, for GPUs and for comparison.
        self._rewritten: dict[str, Record] = {}
        self._plain: dict[str, Record] = {}
        for record in each("export"):
            graphs = self._plain if record.inputs.get("plain") else self._rewritten
            graphs[record.inputs["train"]] = record
        self._trained = {e.key: train for graphs in (self._rewritten, self._plain) for train, e in graphs.items()}
        self.parity: dict[str, dict[Check, Record]] = {}
        for record in each("parity"):
            check = record.inputs.get("provider", "cpu"), record.inputs.get("precision", "fp32")
            self.parity.setdefault(record.inputs["export"], {})[check] = record
        self.analyze = {r.inputs["train"]: r for r in each("analyze")}
        self.latency: dict[str, list[Record]] = {}
        for record in each("latency"):
            self.latency.setdefault(record.inputs["export"], []).append(record)
        # Of the machine and not of a model; the fastest counts, since nothing makes a machine faster than it is.
        self.peak: dict[tuple[str, str, int, str], Record] = {}
        for store in stores:
            for record in (checked(each, store.root) for each in store.each("peak")):
                inputs = record.inputs
                names = ("machine", "provider", "threads")
                place = *(inputs[name] for name in names), inputs.get("precision", "fp32")
                self.peak[place] = max(self.peak.get(place, record), record, key=lambda each: each.result["flops"])
        self.failures = [
            failure for store in stores for failure in store.failures() if failed is None or failure["stage"] in failed
        ]

    def runs(self, table: Table, row: Row) -> Runs:
        """The runs of a row that say most: on the paper's data, of most steps, of most seeds, the latest.

        A run is the row's if its recipe is, over any number of epochs, or the row's quick one; of either with any limit
        of steps. Another table may have the same network by another recipe (Table 3's weight decay).
        """
        legal: dict[int, list[dict[str, Any]]] = {}
        groups: dict[bytes, list[Record]] = {}
        for record in self.train.get(row.model, []):
            inputs = record.inputs
            recipe = inputs["recipe"]  # of which old records do not hold all
            if recipe["epochs"] not in legal:
                legal[recipe["epochs"]] = _recipes(table, row, recipe["epochs"])
            own = any(
                all(recipe.get(name, value) == value for name, value in each.items())
                for each in legal[recipe["epochs"]]
            )
            if own and inputs["data"]["name"] in (row.data, STAND_INS[row.data]):
                # What else decides a result: seeds of one group are repetitions of the same thing.
                how = [inputs.get(name) for name in ("version", "precision", "processes")]
                how.append(record.result.get("precision"))  # which is what "auto" came to
                group = orjson.dumps([inputs["data"], inputs["recipe"], how], option=orjson.OPT_SORT_KEYS)
                groups.setdefault(group, []).append(record)
        if not groups:
            return Runs([], None, [], [], [], {})

        def merit(runs: list[Record]) -> tuple[bool, int, int, int, str]:
            inputs = runs[0].inputs
            real, steps = inputs["data"]["name"] == row.data, max(r.result["steps"] for r in runs)
            return real, steps, len(runs), inputs.get("version", 0), max(r.finished for r in runs)

        best: list[Record] = max(groups.values(), key=merit)
        train = sorted(best, key=lambda r: int(r.inputs["seed"]))
        exports = [graphs[r.key] for graphs in (self._rewritten, self._plain) for r in train if r.key in graphs]
        parity: dict[Check, list[Record]] = {}
        for export in exports:
            for check, record in sorted(self.parity.get(export.key, {}).items()):
                parity.setdefault(check, []).append(record)
        latency = [record for e in exports for record in self.latency.get(e.key, [])]
        analyze = [self.analyze[r.key] for r in train if r.key in self.analyze]
        checks = {check: found for check, found in parity.items() if check != CHECK}
        return Runs(train, exports[0] if exports else None, parity.get(CHECK, []), latency, analyze, checks)

    def missing(self, row: Row) -> str:
        """Why there is no run of a row."""
        old = any((row.model, data) in self._outdated for data in (row.data, STAND_INS[row.data]))
        return self.reason(row, "train") or (OUTDATED if old else "not run")

    def reason(self, row: Row, stage: str) -> str | None:
        """Why this stage of the row failed last time, if it did."""
        for failure in self.failures:
            if failure["stage"] == stage and failure["inputs"]["model"] == row.model:
                of = self._data_of(failure["inputs"])
                if of is None or of in (row.data, STAND_INS[row.data]):
                    return f"{stage} failed: {failure['reason']}"
        return None

    def _data_of(self, inputs: Mapping[str, Any]) -> str | None:
        """On which data the network was trained that a stage was about, if that is known."""
        if "data" in inputs:
            return str(inputs["data"]["name"])
        trained = inputs.get("train") or self._trained.get(inputs.get("export", ""))
        for record in self.train.get(inputs["model"], []):
            if record.key == trained:
                return str(record.inputs["data"]["name"])
        return None


def _recipes(table: Table, row: Row, epochs: int) -> list[dict[str, Any]]:
    """The recipes by which a row may be run over so many epochs, as records hold them; without what limits them."""
    found = []
    whole = [recipe_for(table, row, "paper", epochs)] if epochs >= 1 else []
    short = [recipe_for(replace(table, quick=each), row, "quick") for each in (table.quick, *table.earlier_quick)]
    for recipe in (*whole, *short):
        content = asdict(recipe) | {"milestones": list(recipe.milestones)}
        found.append({name: value for name, value in content.items() if name not in ("max_steps", "max_test_images")})
    return found


def _compact(record: Record, curves: Collection[str] | None) -> Record:
    """The record with samples, and epochs column by column, as arrays: in a fraction of the memory."""
    result = record.result
    if "samples" in result:
        kept = {
            name: value for name, value in result.items() if name != "rounds"
        }  # which `suite.results.compare` alone reads
        return replace(record, result=kept | {"samples": array("d", result["samples"])})
    if "epochs" in result:
        epochs = result["epochs"]
        names = set().union(*epochs) if curves is None else curves
        columns = {name: _column(epochs, name) for name in names}
        return replace(record, result={**result, "epochs": columns})
    return record


def _column(epochs: Sequence[Mapping[str, float | None]], name: str) -> "array[float]":
    try:
        return array("d", map(itemgetter(name), epochs))  # without a step of Python for each of a million values
    except (KeyError, TypeError):  # some epoch does not say
        values = (epoch.get(name) for epoch in epochs)
        return array("d", [math.nan if value is None else value for value in values])


def by_epoch(record: Record, name: str) -> dict[int, float]:
    """What a training record that was read by `Records` says of each 1-based epoch, where it says something."""
    column = record.result["epochs"].get(name, ())
    return {number: value for number, value in enumerate(column, start=1) if not math.isnan(value)}


def errors(runs: Runs, name: str, metric: Metric = "last") -> list[float]:
    """An error in percent of each run that has it, in the order of the seeds."""
    values = [_error(record, name, metric) for record in runs.train]
    return [value for value in values if value is not None]


def _error(record: Record, name: str, metric: Metric) -> float | None:
    last: float | None = record.result.get(name)
    if metric == "last" or last is None:
        return last
    return min((value for value in record.result["epochs"].get(name, ()) if not math.isnan(value)), default=last)


def untrained(record: Record) -> str:
    """Why a network has no error: the rates tried, and of each reason the last try."""
    tries = record.result["tries"]
    first, last = tries[0]["learning_rate"], tries[-1]["learning_rate"]
    reasons = {each["outcome"]: each for each in tries}
    return f"did not train at any learning rate from {first:g} down to {last:g}: " + "; ".join(
        f"{printable(outcome)} at {each['learning_rate']:g}{_details(each)}" for outcome, each in reasons.items()
    )


def _details(tried: Mapping[str, Any]) -> str:
    """What is known of a try that ended with a finite loss, in brackets."""
    if tried.get("last_loss") is None:
        return ""
    formats = {"last_loss": "loss {:.3g}", "train_error": "training error {:.1f} %", "dead_units": "dead units {:.0%}"}
    return f" ({', '.join(text.format(tried[name]) for name, text in formats.items() if tried.get(name) is not None)})"


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


def quick(table: Table, train: list[Record]) -> bool:
    """Whether runs were shorter than an epoch, so that their errors say nothing."""
    record = train[0]
    batch = record.inputs["recipe"].get("batch_size", table.recipe.batch_size)
    return within_an_epoch(record.result["steps"], batch, record.inputs["data"]["train"])


def shortfalls(table: Table, row: Row, train: list[Record]) -> list[str]:
    """How the runs fall short of the paper's, so that nobody compares what cannot be compared."""
    record = train[0]
    data, recipe, result = record.inputs["data"], record.inputs["recipe"], record.result
    parts = []
    if data["name"] != row.data:
        parts.append(f"on the embedded {data['name']}, not on {row.data}")
    if recipe["max_steps"] is not None:
        parts.append(f"{result['steps']} training steps")
    elif recipe["epochs"] < table.recipe.epochs:
        parts.append(f"{recipe['epochs']} of {table.recipe.epochs} epochs")
    if result["test_images"] < data["test"]:
        parts.append(f"{result['test_images']} of {data['test']} test images")
    known = DATA_SETS.get(data["name"])
    if known and known.images and (data["train"], data["test"]) != known.images:
        parts.append(f"{data['name']} of {data['train']} training and {data['test']} test images, not all of it")
    rates = {run.result["tries"][-1]["learning_rate"] for run in train}
    notes = []
    limited = recipe["max_steps"] is not None or data["name"] != row.data
    if parts:
        notes.append(
            f"{'quick run' if limited else 'shortened run'}, not comparable with the paper: {', '.join(parts)}"
        )
    if not limited and len(train) < table.seeds:
        notes.append(f"{len(train)} of the {table.seeds} runs whose median the paper gives")
    if rates != {recipe["learning_rate"]} and any(run.result["trained"] for run in train):
        notes.append(f"trained at a learning rate of {', '.join(f'{r:g}' for r in sorted(rates))} after halving")
    return notes


def unstable(record: Record) -> list[str]:
    """What is to be said of a latency whose samples are far apart, or that was taken while a quota stopped it."""
    notes = []
    if stops := record.result.get("throttled"):
        notes.append(f"throttled: a container's CPU quota stopped the runs {stops} times")
    p25, p50, p75 = quantiles(record.result["samples"], (0.25, 0.5, 0.75))
    if (p75 - p25) / p50 > UNSTABLE:
        notes.append(f"unstable: quartiles more than {UNSTABLE:.0%} of the median apart")
    return notes


def kind_of(record: Record) -> Kind:
    """What a latency record timed: two of the same kind may be compared, others never share a column."""
    inputs = record.inputs
    runtime, provider, precision = printable(inputs["runtime"]), printable(inputs["provider"]), inputs.get("precision")
    return setup_of(record), runtime, provider, inputs["batch_size"], printable(precision or "fp32")


def setup_of(record: Record) -> str:
    """Machine and versions of the runtimes of a latency, as in "AMD EPYC (2 cores), torch 2.15.0"."""
    versions = record.inputs.get("versions", {})
    runtimes = [f"{name} {versions[name]}" for name in RUNTIME_PACKAGES if name in versions]
    return printable(", ".join([record.inputs["machine"], *runtimes]))


def words_of(kind: Kind) -> str:
    """A kind without its setup, as in "ORT cpu b8"."""
    _, runtime, provider, batch, precision = kind
    return " ".join(["ORT" if runtime == "onnxruntime" else runtime, provider, *reduced(precision), f"b{batch}"])


def reduced(precision: str) -> list[str]:
    """A precision in words; none for float32, which is what is meant where nothing is said."""
    return {"fp32": [], PLAIN: ["default export"]}.get(precision, [precision])

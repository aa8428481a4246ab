"""Records to tables: the paper's figures, ours and the inference speed side by side.

Nothing is measured here and statistics are computed as a table is made, from the raw values in the records. A value
that is missing is an empty cell with a footnote, never 0, and figures of different machines never share a column.
"""

import csv
import io
import json
import math
import statistics
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any, Literal

import orjson

from suite.files import printable
from suite.record import Record
from suite.samples import percentiles, quantiles
from suite.shape import checked
from suite.spec import EMBEDDED, METRICS, Row, Table, recipe_for
from suite.store import Store

FORMATS = ("github", "csv", "latex", "json")
# Spread of the samples, (p75 - p25) / p50, from which on a latency is marked as unstable.
UNSTABLE = 0.1
# Training and test images of the paper's data sets: one that was cut short at the end of an image is read like a whole.
SIZES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "imagenet": (1_281_167, 50_000)}
# The table whose figures are not errors but what `suite.analyze` finds in trained networks.
ANALYSED = 1

# The precision, in a latency record, of the exporter's own graph: float32 without the rewrites.
PLAIN = "plain"

Value = str | float | int | None
Metric = Literal["last", "best"]
# Machine, runtime, execution provider, batch size and precision of a latency.
Kind = tuple[str, str, str, int, str]
# Execution provider and precision of a parity, and those of the one that every row has.
Check = tuple[str, str]
CHECK: Check = ("cpu", "fp32")


@dataclass(frozen=True)
class Column:
    """One column: its key in CSV and JSON, its heading elsewhere, and how a value is printed there."""

    key: str
    heading: str
    show: Callable[[Any], str] = str


@dataclass
class Line:
    """One row of a report: values by column key, and for some of them what is to be said about it."""

    values: dict[str, Value] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def put(self, column: Column, value: Value, *notes: str) -> None:
        self.values[column.key] = value
        if notes:
            self.notes[column.key] = list(map(printable, notes))


@dataclass(frozen=True)
class Report:
    """A table ready to be written: `columns`, `lines`, and general `remarks` beside the lines' own notes."""

    title: str
    columns: list[Column]
    lines: list[Line]
    remarks: list[str]


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
        """The latency record of each kind that rests on the most samples, of equals that of the first seed."""

        def merit(record: Record) -> tuple[int, int, str]:
            return record.inputs.get("version", 0), len(record.result["samples"]), record.finished

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

    Raises:
        InputError: a record cannot be read.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        models: Collection[str] | None = None,
        trained: frozenset[str] | None = None,
        curves: Collection[str] | None = None,
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
        for record in each("train"):
            if trained is None or record.key in trained:
                self.train.setdefault(record.inputs["model"], []).append(record)
        # Beside the file that is deployed, the exporter's own graph is only timed.
        self.export = {r.inputs["train"]: r for r in each("export") if not r.inputs.get("plain")}
        self.parity: dict[str, dict[Check, Record]] = {}
        for record in each("parity"):
            check = record.inputs.get("provider", "cpu"), record.inputs.get("precision", "fp32")
            self.parity.setdefault(record.inputs["export"], {})[check] = record
        self.analyze = {r.inputs["train"]: r for r in each("analyze")}
        self.latency: dict[str, list[Record]] = {}
        for record in each("latency"):
            self.latency.setdefault(record.inputs["export"], []).append(record)
        # Of the machine and not of a model; the fastest counts, since nothing makes a machine faster than it is.
        self.peak: dict[tuple[str, str, int, str], float] = {}
        for store in stores:
            for record in (checked(each, store.root) for each in store.each("peak", None)):
                names = ("machine", "provider", "threads")
                place = *(record.inputs[name] for name in names), record.inputs.get("precision", "fp32")
                self.peak[place] = max(self.peak.get(place, 0.0), float(record.result["flops"]))
        self.failures = [failure for store in stores for failure in store.failures()]

    def runs(self, table: Table, row: Row) -> Runs:
        """The runs of a row that say most: on the paper's data, of most steps, of most seeds, the latest.

        Another table may have the same net by another recipe (Table 3's weight decay): its runs are not this row's.
        """
        recipe = recipe_for(table, row)
        fixed = {name: getattr(recipe, name) for name in ("weight_decay", "momentum")}
        groups: dict[bytes, list[Record]] = {}
        for record in self.train.get(row.model, []):
            inputs = record.inputs
            same = all(inputs["recipe"].get(name, value) == value for name, value in fixed.items())
            if same and inputs["data"]["name"] in (row.data, EMBEDDED[row.data]):
                # What else decides a result: seeds of one group are repetitions of the same thing.
                how = [inputs.get(name) for name in ("version", "precision", "processes")]
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
        exports = [self.export[r.key] for r in train if r.key in self.export]
        parity: dict[Check, list[Record]] = {}
        for export in exports:
            for check, record in sorted(self.parity.get(export.key, {}).items()):
                parity.setdefault(check, []).append(record)
        latency = [record for e in exports for record in self.latency.get(e.key, [])]
        analyze = [self.analyze[r.key] for r in train if r.key in self.analyze]
        checks = {check: found for check, found in parity.items() if check != CHECK}
        return Runs(train, exports[0] if exports else None, parity.get(CHECK, []), latency, analyze, checks)

    def reason(self, row: Row, stage: str) -> str | None:
        """Why this stage of the row failed last time, if it did."""
        for failure in self.failures:
            if failure["stage"] == stage and failure["inputs"]["model"] == row.model:
                of = failure["inputs"].get("data", {}).get("name", row.data)
                if of in (row.data, EMBEDDED[row.data]):
                    return f"{stage} failed: {failure['reason']}"
        return None


def _compact(record: Record, curves: Collection[str] | None) -> Record:
    """The record with samples, and epochs column by column, as arrays: in a fraction of the memory."""
    result = record.result
    if "samples" in result:
        return replace(record, result={**result, "samples": array("d", result["samples"])})
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


def build(
    table: Table,
    source: Store | Records,
    metric: Metric = "last",
    trained: frozenset[str] | None = None,
    detail: bool = False,
) -> Report:
    """Put a table together.

    Args:
        table: the rows wanted.
        source: a results folder, or what was read of one or several.
        metric: print the errors of the last epoch, or the least over all epochs.
        trained: keys of the training records to show, if `source` is a folder; None for the best of each row.
        detail: give differences from the paper, numbers of seeds and spreads columns of their own, and latencies the
            percentiles for which there are samples enough, the time to load and that of the first run.

    Raises:
        InputError: a record cannot be read.
    """
    if isinstance(source, Store):
        index = Records([source], {row.model for row in table.rows}, trained, table.metrics if metric == "best" else ())
    else:
        index = source
    found = [index.runs(table, row) for row in table.rows]
    headings = [Column(f"heading_{i}", name) for i, name in enumerate(table.headings)]
    model = Column("model", "Model")
    lines = [Line() for _ in table.rows]
    for line, row in zip(lines, table.rows, strict=True):
        for column, text in zip([*headings, model], [*row.heading, row.model], strict=True):
            line.put(column, text)
    columns = [*headings, model]
    if table.number == ANALYSED:
        return Report(table.title, columns + _activation(table, found, lines, index), lines, [])
    columns += _errors(table, found, lines, index, metric, detail)
    columns += _parity(table, found, lines, index)
    columns += _cost(found, lines)
    latency, remarks = _latency(table, found, lines, index, detail)
    return Report(table.title, columns + latency, lines, remarks)


def _readable(value: float) -> str:
    """Two decimals, but of what has exploded the size alone."""
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.3g}"


def three_digits(value: float) -> str:
    """At least three significant digits, without an exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _decimals(count: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{count}f}"


def _errors(
    table: Table, found: list[Runs], lines: list[Line], index: Records, metric: Metric, detail: bool
) -> list[Column]:
    columns = []
    seeds = Column("seeds", "seeds")
    for name in table.metrics:
        paper = Column(f"paper_{name}", f"paper {METRICS[name]}", _decimals(2))
        ours = Column(name, f"ours {METRICS[name]}", _decimals(2))
        difference = Column(f"difference_{name}", f"ours - paper {METRICS[name]}", lambda value: f"{value:+.2f}")
        spread = Column(f"spread_{name}", f"max - min {METRICS[name]}", _decimals(2))
        columns += [paper, ours, difference, spread] if detail else [paper, ours]
        for row, runs, line in zip(table.rows, found, lines, strict=True):
            stated = row.paper.get(name)
            line.put(paper, stated, *([] if stated is not None else ["not in the paper"]))
            if detail:
                line.put(seeds, len(runs.train))
            if not runs.train:
                for column in (ours, difference, spread) if detail else (ours,):
                    line.put(column, None, index.reason(row, "train") or "not run")
                continue
            values = errors(runs, name, metric)
            note = shortfalls(table, row, runs.train)
            if values:
                median = statistics.median(values)
                line.put(ours, median, *note)
                if detail:
                    line.put(difference, median - stated if stated is not None else None, *note)
                    line.put(spread, max(values) - min(values) if len(values) > 1 else None)
            elif all(not record.result["trained"] for record in runs.train):
                line.put(ours, None, _untrained(runs.train[0]), *note)
            else:
                line.put(ours, None, "not measured by this recipe")
    return [*columns, seeds] if detail else columns


def _activation(table: Table, found: list[Runs], lines: list[Line], index: Records) -> list[Column]:
    """Table 1. The paper does not say over which entries it averages, so that all three readings stand side by side."""
    readings = {"over_nonzero": "non-zero entries", "over_all": "all entries", "pooled": "pooled"}
    columns = []
    for name in table.metrics:
        paper = Column(f"paper_{name}", f"paper {METRICS[name]}", _decimals(2))
        ours: dict[tuple[str, ...], Column]
        if name == "nonzero":
            ours = {(name,): Column(name, f"ours {METRICS[name]}", _decimals(2))}
        else:
            ours = {
                (reading, name): Column(f"{name}_{reading}", f"ours {METRICS[name]}, {words}", _readable)
                for reading, words in readings.items()
            }
        columns += [paper, *ours.values()]
        for row, runs, line in zip(table.rows, found, lines, strict=True):
            line.put(paper, row.paper.get(name))
            for path, column in ours.items():
                if not runs.analyze:
                    why = index.reason(row, "analyze") or index.reason(row, "train") or "not run"
                    line.put(column, None, why)
                    continue
                if not runs.train[0].result["trained"]:
                    line.put(column, None, _untrained(runs.train[0]), *shortfalls(table, row, runs.train))
                    continue
                values = [_at(record.result["activation"], path) for record in runs.analyze]
                known = [value for value in values if value is not None]
                line.put(column, statistics.median(known) if known else None, *shortfalls(table, row, runs.train))
    return columns


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key]
    return value


def errors(runs: Runs, name: str, metric: Metric = "last") -> list[float]:
    """An error in percent of each run that has it, in the order of the seeds."""
    values = [_error(record, name, metric) for record in runs.train]
    return [value for value in values if value is not None]


def _error(record: Record, name: str, metric: Metric) -> float | None:
    last: float | None = record.result.get(name)
    if metric == "last" or last is None:
        return last
    return min((value for value in record.result["epochs"].get(name, ()) if not math.isnan(value)), default=last)


def _untrained(record: Record) -> str:
    tries = record.result["tries"]
    first, last = tries[0]["learning_rate"], tries[-1]["learning_rate"]
    return f"did not train at any learning rate from {first:g} down to {last:g}: {tries[-1]['outcome']}"


def comparable(table: Table, row: Row, runs: Runs) -> bool:
    """Whether the runs were made by the paper's recipe, on its data and in full."""
    return bool(runs.train) and not any("not comparable" in note for note in shortfalls(table, row, runs.train))


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
    if data["name"] in SIZES and (data["train"], data["test"]) != SIZES[data["name"]]:
        parts.append(f"{data['name']} of {data['train']} training and {data['test']} test images, not all of it")
    rates = {run.result["tries"][-1]["learning_rate"] for run in train}
    notes = []
    quick = recipe["max_steps"] is not None or data["name"] != row.data
    if parts:
        notes.append(f"{'quick run' if quick else 'shortened run'}, not comparable with the paper: {', '.join(parts)}")
    if not quick and len(train) < table.seeds:
        notes.append(f"{len(train)} of the {table.seeds} runs whose median the paper gives")
    if rates != {recipe["learning_rate"]} and any(run.result["trained"] for run in train):
        notes.append(f"trained at a learning rate of {', '.join(f'{r:g}' for r in sorted(rates))} after halving")
    return notes


def _parity(table: Table, found: list[Runs], lines: list[Line], index: Records) -> list[Column]:
    error = Column("parity_top1", "ONNX - torch top-1", lambda value: f"{value:+.2f}")
    logits = Column("parity_logits", "max logit diff / scale", lambda value: f"{value:.1e}")
    agreement = Column("parity_agreement", "top-1 agreement %", lambda value: f"{value:.4g}")
    for row, runs, line in zip(table.rows, found, lines, strict=True):
        if not runs.parity:
            why = index.reason(row, "parity") or index.reason(row, "export") or "not run"
            for column in (error, logits, agreement):
                line.put(column, None, why)
            continue
        results = [record.result for record in runs.parity]
        _put_parity(line, error, agreement, results)
        line.put(logits, max(result["max_logit_difference"] / result["scale"] for result in results))
    columns = [error, logits, agreement]
    for check in sorted({check for runs in found for check in runs.checks}):
        provider, precision = map(printable, check)
        name = " ".join([provider] * (provider != "cpu") + _reduced(precision))
        key = "_".join(name.split())
        error = Column(f"parity_{key}_top1", f"{name} - torch top-1", error.show)
        agreement = Column(f"parity_{key}_agreement", f"{name} top-1 agreement %", agreement.show)
        columns += [error, agreement]
        for runs, line in zip(found, lines, strict=True):
            if check in runs.checks:
                _put_parity(line, error, agreement, [record.result for record in runs.checks[check]])
            else:
                line.put(error, None, "not run")
                line.put(agreement, None, "not run")
    return columns


def _put_parity(line: Line, error: Column, agreement: Column, results: Sequence[Mapping[str, Any]]) -> None:
    """The worst of these, and what is to be said of them."""
    notes = [f"parity on {sum(result['images'] for result in results)} images"]
    if not all(result["passed"] for result in results):
        layers = [result["departure"]["layer"] for result in results if result.get("departure")]
        notes.append("PARITY FAILED" + (f", first at {', '.join(dict.fromkeys(layers))}" if layers else ""))
    # In fewer bits nearly every disagreement is within the logit difference.
    ties = sum(result["ties"] for result in results if result.get("precision", "fp32") == "fp32")
    if ties:
        notes.append(f"{ties} ties within the logit difference")
    line.put(error, max((result["difference"] for result in results), key=abs), *notes)
    line.put(agreement, min(result["agreement"] for result in results))


def _cost(found: list[Runs], lines: list[Line]) -> list[Column]:
    parameters = Column("parameters", "params M", lambda value: f"{value / 1e6:.3f}")
    macs = Column("macs", "MACs G", lambda value: f"{value / 1e9:.3f}")
    for runs, line in zip(found, lines, strict=True):
        for column in (parameters, macs):
            if runs.export:
                line.put(column, runs.export.result[column.key])
            else:
                line.put(column, None, "not exported")
    return [parameters, macs]


def _latency(
    table: Table, found: list[Runs], lines: list[Line], index: Records, detail: bool
) -> tuple[list[Column], list[str]]:
    """Columns (p50, images/s, share of the peak) for each machine, runtime, provider, batch size and precision that was
    measured."""
    timed = [runs.timed for runs in found]
    kinds = sorted({kind for records in timed for kind in records})
    machines = list(dict.fromkeys(kind[0] for kind in kinds))
    remarks = []
    for number, machine in enumerate(machines, start=1):
        place = f"machine {number}" if len(machines) > 1 else "latency"
        remarks.append(f"{place}: {machine}")
    columns = []
    for kind in kinds:
        machine, runtime, provider, batch, precision = kind
        where = f" m{machines.index(machine) + 1}" if len(machines) > 1 else ""
        name = f"{words_of(kind)}{where}"
        reduced = "" if precision == "fp32" else f" {precision}"
        key = "_".join(f"{runtime} {provider}{reduced} b{batch}{where}".split())
        median = Column(f"{key}_p50_ms", f"{name} p50 ms", three_digits)
        speed = Column(f"{key}_images_per_s", f"{name} img/s", three_digits)
        share = Column(f"{key}_peak_percent", f"{name} % of peak", lambda value: f"{value:.0f}")
        columns += [median, speed]
        # The exporter's own graph is in float32 too, and torch uses the same units.
        units = "fp32" if precision == PLAIN else precision
        has_peak = any((*place[:2], place[3]) == (machine, provider, units) for place in index.peak)
        if has_peak:
            columns.append(share)
        for runs, row, records, line in zip(found, table.rows, timed, lines, strict=True):
            if kind not in records:
                why = index.reason(row, "latency") or "not run"
                line.put(median, None, why)
                line.put(speed, None, why)
                continue
            (p50,) = quantiles(records[kind].result["samples"], (0.5,))
            line.put(median, 1e3 * p50, *unstable(records[kind]))
            line.put(speed, batch / p50)
            peak = index.peak.get((machine, provider, records[kind].inputs.get("threads", 0), units))
            if has_peak and peak and runs.export:
                line.put(share, 100 * 2 * runs.export.result["macs"] * batch / p50 / peak)
        columns += _beside_the_median(key, name, [records.get(kind) for records in timed], lines, detail)
    return columns, remarks


def unstable(record: Record) -> list[str]:
    """What is to be said of a latency whose samples are far apart."""
    p25, p50, p75 = quantiles(record.result["samples"], (0.25, 0.5, 0.75))
    if (p75 - p25) / p50 <= UNSTABLE:
        return []
    return [f"unstable: quartiles more than {UNSTABLE:.0%} of the median apart"]


def _beside_the_median(
    key: str, name: str, records: list[Record | None], lines: list[Line], detail: bool
) -> list[Column]:
    """Milliseconds from host memory to host memory where that is another figure, and in detail the higher percentiles,
    the time to load and that of the first run; columns of which there is something to say."""
    columns: dict[str, Column] = {}
    for record, line in zip(records, lines, strict=True):
        if record is None:
            continue
        seconds: dict[str, float] = {}
        if host := record.result.get("host_samples"):
            seconds["host to host p50"] = statistics.median(host)
        if detail:
            seconds |= {name: value for name, value in percentiles(record.result["samples"]).items() if name != "p50"}
            known = {"load": "load_seconds", "first run": "first_run_seconds"}
            seconds |= {what: record.result[field] for what, field in known.items() if field in record.result}
        for what, value in seconds.items():
            column = Column(f"{key}_{what.replace(' ', '_')}_ms", f"{name} {what} ms", three_digits)
            line.put(columns.setdefault(what, column), 1e3 * value)
    for record, line in zip(records, lines, strict=True):
        why = f"{len(record.result['samples'])} runs, too few for this percentile" if record else "not run"
        for column in columns.values():
            if column.key not in line.values:
                line.put(column, None, why)
    return list(columns.values())


def kind_of(record: Record) -> Kind:
    """What a latency record timed: two of the same kind may be compared, others never share a column."""
    inputs = record.inputs
    machine, runtime, provider = (printable(inputs[name]) for name in ("machine", "runtime", "provider"))
    return machine, runtime, provider, inputs["batch_size"], printable(inputs.get("precision", "fp32"))


def words_of(kind: Kind) -> str:
    """A kind without its machine, as in "ORT cpu b8"."""
    _, runtime, provider, batch, precision = kind
    return " ".join(["ORT" if runtime == "onnxruntime" else runtime, provider, *_reduced(precision), f"b{batch}"])


def _reduced(precision: str) -> list[str]:
    """A precision in words; none for float32, which is what is meant where nothing is said."""
    return {"fp32": [], PLAIN: ["default export"]}.get(precision, [precision])


def render(report: Report, form: str) -> str:
    """The report as text, ending in a newline: "github" (Markdown), "csv", "latex" (booktabs) or "json"."""
    return {"github": _github, "csv": _csv, "latex": _latex, "json": _json}[form](report)


def _github(report: Report) -> str:
    rows, notes = printed(report, "[{}]")
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    columns = [replace(column, heading=column.heading.replace("|", "\\|")) for column in report.columns]
    body = _tabulate(rows, replace(report, columns=columns), "github")
    foot = [f"[{mark}] {text}" for mark, text in notes] + report.remarks
    return "\n".join([report.title, "", body, "", *(f"- {text}" for text in foot)]) + "\n"


def _latex(report: Report) -> str:
    rows, notes = printed(report, "[{}]")
    body = _tabulate(rows, report, "latex_booktabs")
    foot = [f"[{mark}] {text}" for mark, text in notes] + report.remarks
    lines = [f"\\par {escape_latex(text)}" for text in [report.title, *foot]]
    return "\n".join(["% needs \\usepackage{booktabs}", lines[0], "", body, "", *lines[1:]]) + "\n"


def _csv(report: Report) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(_no_formula(column.key) for column in report.columns), "notes"])
    for line in report.lines:
        notes = [f"{key}: {'; '.join(texts)}" for key, texts in line.notes.items()]
        values = [line.values.get(column.key) for column in report.columns]
        writer.writerow(
            [*("" if value is None else _no_formula(value) for value in values), _no_formula(" | ".join(notes))]
        )
    return out.getvalue()


def _no_formula(value: str | float) -> str | float:
    """The value as a spreadsheet will show it: text that it would run as a formula has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _json(report: Report) -> str:
    content = {
        "title": report.title,
        "columns": [{"key": column.key, "heading": column.heading} for column in report.columns],
        "rows": [line.values | {"notes": line.notes} for line in report.lines],
        "remarks": report.remarks,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def printed(report: Report, mark: str) -> tuple[list[list[str]], list[tuple[int, str]]]:
    """Every cell as text with the marks of its footnotes, and the numbered footnotes."""
    numbers: dict[str, int] = {}
    rows = []
    for line in report.lines:
        row = []
        for column in report.columns:
            value = line.values.get(column.key)
            marks = [numbers.setdefault(text, len(numbers) + 1) for text in line.notes.get(column.key, [])]
            text = "" if value is None else column.show(value)
            row.append(" ".join([*filter(None, [text]), *(mark.format(number) for number in marks)]))
        rows.append(row)
    return rows, [(number, text) for text, number in numbers.items()]


def _tabulate(rows: Sequence[Sequence[str]], report: Report, form: str) -> str:
    from tabulate import tabulate

    headings = [column.heading for column in report.columns]
    text: str = tabulate(rows, headings, tablefmt=form, disable_numparse=True)
    return text


def escape_latex(text: str) -> str:
    """The text with LaTeX's special characters as themselves."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)

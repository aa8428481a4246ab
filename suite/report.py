"""Records to tables: the paper's figures, ours and the inference speed side by side.

Nothing is measured here and statistics are computed as a table is made, from the raw values in the records. A value
that is missing is an empty cell with a footnote, never 0, and figures of different machines never share a column.
"""

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from suite.spec import EMBEDDED, METRICS, Row, Table
from suite.store import Record, Store

FORMATS = ("github", "csv", "latex", "json")
# Spread of the samples, (p75 - p25) / p50, from which on a latency is marked as unstable.
UNSTABLE = 0.1

Value = str | float | int | None


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
            self.notes[column.key] = list(notes)


@dataclass(frozen=True)
class Report:
    """A table ready to be written: `columns`, `lines`, and general `remarks` beside the lines' own notes."""

    title: str
    columns: list[Column]
    lines: list[Line]
    remarks: list[str]


@dataclass(frozen=True)
class _Runs:
    """What the store has of one row: training runs of one recipe on one data set, by seed, and what followed."""

    train: list[Record]
    export: Record | None
    parity: list[Record]
    latency: list[Record]


class _Index:
    """The records of a results folder, to be asked for by what they depend on."""

    def __init__(self, store: Store, trained: frozenset[str] | None) -> None:
        self.train = [r for r in store.records("train") if trained is None or r.key in trained]
        self.export = {r.inputs["train"]: r for r in store.records("export")}
        self.parity = {
            r.inputs["export"]: r for r in store.records("parity") if r.inputs.get("precision", "fp32") == "fp32"
        }
        self.latency: dict[str, list[Record]] = {}
        for record in store.records("latency"):
            self.latency.setdefault(record.inputs["export"], []).append(record)
        self.failures = store.failures()
        self.analyze = {r.inputs["train"]: r for r in store.records("analyze")}
        self.peak = {
            (r.inputs["machine"], r.inputs["provider"], r.inputs["threads"]): float(r.result["flops"])
            for r in store.records("peak")
        }

    def runs(self, row: Row) -> _Runs:
        """The runs of a row that say most: on the paper's data, of most steps, of most seeds, the latest."""
        groups: dict[str, list[Record]] = {}
        for record in self.train:
            inputs = record.inputs
            if inputs["model"] == row.model and inputs["data"]["name"] in (row.data, EMBEDDED[row.data]):
                group = json.dumps([inputs["data"], inputs["recipe"], inputs.get("processes", 1)], sort_keys=True)
                groups.setdefault(group, []).append(record)
        if not groups:
            return _Runs([], None, [], [])

        def merit(runs: list[Record]) -> tuple[bool, int, int, str]:
            real = runs[0].inputs["data"]["name"] == row.data
            return real, max(r.result["steps"] for r in runs), len(runs), max(r.finished for r in runs)

        best: list[Record] = max(groups.values(), key=merit)
        train = sorted(best, key=lambda r: int(r.inputs["seed"]))
        exports = [self.export[r.key] for r in train if r.key in self.export]
        parity = [self.parity[e.key] for e in exports if e.key in self.parity]
        latency = [record for e in exports for record in self.latency.get(e.key, [])]
        return _Runs(train, exports[0] if exports else None, parity, latency)

    def reason(self, row: Row, stage: str) -> str | None:
        """Why this stage of the row failed last time, if it did."""
        for failure in self.failures:
            if failure["stage"] == stage and failure["inputs"]["model"] == row.model:
                of = failure["inputs"].get("data", {}).get("name", row.data)
                if of in (row.data, EMBEDDED[row.data]):
                    return f"{stage} failed: {failure['reason']}"
        return None


def build(
    table: Table,
    store: Store,
    metric: Literal["last", "best"] = "last",
    trained: frozenset[str] | None = None,
) -> Report:
    """Put a table together.

    Args:
        table: the rows wanted.
        store: where the records are.
        metric: print the errors of the last epoch, or the least over all epochs.
        trained: keys of the training records to show; None for the best that the store has of each row.

    Raises:
        InputError: a record cannot be read.
    """
    index = _Index(store, trained)
    found = [index.runs(row) for row in table.rows]
    headings = [Column(f"heading_{i}", name) for i, name in enumerate(table.headings)]
    model = Column("model", "Model")
    lines = [Line() for _ in table.rows]
    for line, row in zip(lines, table.rows, strict=True):
        for column, text in zip([*headings, model], [*row.heading, row.model], strict=True):
            line.put(column, text)
    columns = [*headings, model]
    if table.number == 1:
        return Report(table.title, columns + _activations(table, found, lines, index), lines, [])
    columns += _errors(table, found, lines, index, metric)
    columns += _parity(table, found, lines, index)
    columns += _cost(found, lines)
    latency, remarks = _latency(table, found, lines, index)
    return Report(table.title, columns + latency, lines, remarks)


def _decimals(count: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{count}f}"


def _errors(
    table: Table, found: list[_Runs], lines: list[Line], index: _Index, metric: Literal["last", "best"]
) -> list[Column]:
    columns = []
    for name in table.metrics:
        paper = Column(f"paper_{name}", f"paper {METRICS[name]}", _decimals(2))
        ours = Column(name, f"ours {METRICS[name]}", _decimals(2))
        columns += [paper, ours]
        for row, runs, line in zip(table.rows, found, lines, strict=True):
            stated = row.paper.get(name)
            line.put(paper, stated, *([] if stated is not None else ["not in the paper"]))
            if not runs.train:
                line.put(ours, None, index.reason(row, "train") or "not run")
                continue
            values = [_error(record, name, metric) for record in runs.train]
            known = [value for value in values if value is not None]
            note = _scale(table, row, runs.train)
            if known:
                line.put(ours, statistics.median(known), *note)
            elif all(not record.result["trained"] for record in runs.train):
                line.put(ours, None, _untrained(runs.train[0]), *note)
            else:
                line.put(ours, None, "not measured by this recipe")
    return columns


# Over what Table 1's mean and deviation may be taken; the paper does not say (see `suite.analyze`).
READINGS = {"over_nonzero": "of non-zero entries", "over_all": "of all entries", "pooled": "after pooling"}


def _activations(table: Table, found: list[_Runs], lines: list[Line], index: _Index) -> list[Column]:
    """Table 1: the paper's figures, and ours in each reading."""
    columns = []
    for name in table.metrics:
        paper = Column(f"paper_{name}", f"paper {METRICS[name]}", _decimals(2))
        if name == "nonzero":
            ours = {"nonzero": Column("nonzero", f"ours {METRICS[name]}", _decimals(2))}
        else:
            ours = {
                reading: Column(f"{name}_{reading}", f"ours {METRICS[name]} {what}", lambda value: f"{value:.4g}")
                for reading, what in READINGS.items()
            }
        columns += [paper, *ours.values()]
        for row, runs, line in zip(table.rows, found, lines, strict=True):
            line.put(paper, row.paper[name])
            record = index.analyze.get(runs.train[0].key) if runs.train else None
            for reading, column in ours.items():
                if record is None:
                    line.put(column, None, index.reason(row, "analyze") or index.reason(row, "train") or "not run")
                    continue
                statistics = record.result["activation"]
                value = statistics["nonzero"] if name == "nonzero" else statistics[reading][name]
                notes = _scale(table, row, runs.train)
                line.put(
                    column, value, *([_untrained(runs.train[0])] if not runs.train[0].result["trained"] else notes)
                )
    return columns


def _error(record: Record, name: str, metric: Literal["last", "best"]) -> float | None:
    last: float | None = record.result.get(name)
    if metric == "last" or last is None:
        return last
    return min([epoch[name] for epoch in record.result["epochs"] if name in epoch], default=last)


def _untrained(record: Record) -> str:
    tries = record.result["tries"]
    first, last = tries[0]["learning_rate"], tries[-1]["learning_rate"]
    return f"did not train at any learning rate from {first:g} down to {last:g}: {tries[-1]['outcome']}"


def _scale(table: Table, row: Row, train: list[Record]) -> list[str]:
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


def _parity(table: Table, found: list[_Runs], lines: list[Line], index: _Index) -> list[Column]:
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
        images = sum(result["images"] for result in results)
        notes = [f"parity on {images} images"]
        if not all(result["passed"] for result in results):
            notes.append("PARITY FAILED")
        ties = sum(result["ties"] for result in results)
        if ties:
            notes.append(f"{ties} ties within the logit difference")
        line.put(error, max((result["difference"] for result in results), key=abs), *notes)
        line.put(logits, max(result["max_logit_difference"] / result["scale"] for result in results))
        line.put(agreement, min(result["agreement"] for result in results))
    return [error, logits, agreement]


def _cost(found: list[_Runs], lines: list[Line]) -> list[Column]:
    parameters = Column("parameters", "params M", lambda value: f"{value / 1e6:.3f}")
    macs = Column("macs", "MACs G", lambda value: f"{value / 1e9:.3f}")
    for runs, line in zip(found, lines, strict=True):
        for column in (parameters, macs):
            if runs.export:
                line.put(column, runs.export.result[column.key])
            else:
                line.put(column, None, "not exported")
    return [parameters, macs]


def _latency(table: Table, found: list[_Runs], lines: list[Line], index: _Index) -> tuple[list[Column], list[str]]:
    """Columns (p50, images/s, share of the peak) for each machine, runtime, provider, batch size and precision that was
    measured."""
    kinds = sorted({_kind(record) for runs in found for record in runs.latency})
    machines = list(dict.fromkeys(kind[0] for kind in kinds))
    remarks = []
    for number, machine in enumerate(machines, start=1):
        place = f"machine {number}" if len(machines) > 1 else "latency"
        remarks.append(f"{place}: {machine}")
    columns = []
    for kind in kinds:
        machine, runtime, provider, batch, precision = kind
        where = f" m{machines.index(machine) + 1}" if len(machines) > 1 else ""
        reduced = "" if precision == "fp32" else f" {precision}"
        name = f"{'ORT' if runtime == 'onnxruntime' else runtime} {provider}{reduced} b{batch}{where}"
        key = "_".join(f"{runtime} {provider}{reduced} b{batch}{where}".split())
        median = Column(
            f"{key}_p50_ms", f"{name} p50 ms", lambda value: f"{value:.3g}" if value < 100 else f"{value:.0f}"
        )
        speed = Column(
            f"{key}_images_per_s",
            f"{name} img/s",
            lambda value: f"{value:.3g}" if value < 100 else f"{value:.0f}",
        )
        share = Column(f"{key}_peak_percent", f"{name} % of peak", lambda value: f"{value:.0f}")
        columns += [median, speed]
        # The peak is that of float32, and torch uses the same units.
        has_peak = precision == "fp32" and any(name[:2] == (machine, provider) for name in index.peak)
        if has_peak:
            columns.append(share)
        for row, runs, line in zip(table.rows, found, lines, strict=True):
            records = [record for record in runs.latency if _kind(record) == kind]
            if not records:
                why = index.reason(row, "latency") or "not run"
                line.put(median, None, why)
                line.put(speed, None, why)
                continue
            record = max(records, key=lambda r: (len(r.result["samples"]), r.finished))
            samples = record.result["samples"]
            p25, p50, p75 = statistics.quantiles(samples, n=4, method="inclusive")
            unstable = (p75 - p25) / p50 > UNSTABLE
            notes = [f"unstable: quartiles more than {UNSTABLE:.0%} of the median apart"] if unstable else []
            line.put(median, 1e3 * p50, *notes)
            line.put(speed, batch / p50)
            peak = index.peak.get((machine, provider, record.inputs.get("threads", 0)))
            if has_peak and peak and runs.export:
                line.put(share, 100 * 2 * runs.export.result["macs"] * batch / p50 / peak)
    return columns, remarks


def _kind(record: Record) -> tuple[str, str, str, int, str]:
    inputs = record.inputs
    return (
        inputs["machine"],
        inputs["runtime"],
        inputs["provider"],
        inputs["batch_size"],
        inputs.get("precision", "fp32"),
    )


def render(report: Report, form: str) -> str:
    """The report as text, ending in a newline: "github" (Markdown), "csv", "latex" (booktabs) or "json"."""
    return {"github": _github, "csv": _csv, "latex": _latex, "json": _json}[form](report)


def _github(report: Report) -> str:
    rows, notes = _printed(report, "[{}]")
    body = _tabulate(rows, report, "github")
    foot = [f"[{mark}] {text}" for mark, text in notes] + report.remarks
    return "\n".join([report.title, "", body, "", *(f"- {text}" for text in foot)]) + "\n"


def _latex(report: Report) -> str:
    rows, notes = _printed(report, "[{}]")
    body = _tabulate(rows, report, "latex_booktabs")
    foot = [f"[{mark}] {text}" for mark, text in notes] + report.remarks
    lines = [f"\\par {_escape_latex(text)}" for text in [report.title, *foot]]
    return "\n".join(["% needs \\usepackage{booktabs}", lines[0], "", body, "", *lines[1:]]) + "\n"


def _csv(report: Report) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(column.key for column in report.columns), "notes"])
    for line in report.lines:
        notes = [f"{key}: {'; '.join(texts)}" for key, texts in line.notes.items()]
        values = [line.values.get(column.key) for column in report.columns]
        writer.writerow([*("" if value is None else value for value in values), " | ".join(notes)])
    return out.getvalue()


def _json(report: Report) -> str:
    content = {
        "title": report.title,
        "columns": [{"key": column.key, "heading": column.heading} for column in report.columns],
        "rows": [line.values | {"notes": line.notes} for line in report.lines],
        "remarks": report.remarks,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _printed(report: Report, mark: str) -> tuple[list[list[str]], list[tuple[int, str]]]:
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


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)

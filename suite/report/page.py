"""All results as one HTML page that opens from disk, with each table and plot as a plain file beside it.

The page needs no network: style, script, the drawing library and the data are in it. What comes from records is
escaped where it stands in HTML and in the data that the script reads.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite.files import write as write_file
from suite.registry import DATA_SETS
from suite.report import choices, findings, plots, svg
from suite.report import tables as report
from suite.report.drawing import Figure
from suite.report.findings import Claim, Finding
from suite.report.provenance import Provenance
from suite.report.render import Column, Line, Report, printed, render
from suite.report.runs import Entry, Metric, Records
from suite.report.template import asset, fill
from suite.results.store import Store
from suite.tables import spec
from suite.tables.spec import CIFAR_DEPTHS, Row, Table

ENDINGS = {"github": "md", "csv": "csv", "latex": "tex"}
# What a footnote that begins so is called in the cell itself.
TAGS = {
    "quick run": "quick",
    "shortened run": "shortened",
    "unstable": "unstable",
    "throttled": "throttled",
    "impossible": "impossible",
    "PARITY FAILED": "failed",
    "train failed": "failed",
    "export failed": "failed",
    "parity failed": "failed",
    "latency failed": "failed",
}


@dataclass(frozen=True)
class _Section:
    """One table at one depth: its entries, the report of it and the stem of its files."""

    name: str
    table: Table
    entries: list[Entry]
    report: Report


def write(stores: Store | Sequence[Store], out: Path, metric: Metric = "last") -> Path:
    """Write `index.html` and the plain files into a folder, which is made if need be.

    Beside the page lie `table2.md`, `.csv` and `.tex` (booktabs) for each table, `table2-resnet20.*` for those run
    with other nets, and one SVG for each plot in `plots/`. A file of the same name is replaced.

    Args:
        stores: one or several results folders, of one or several machines.
        out: the folder.
        metric: errors of the last epoch, or the least over all epochs.

    Returns:
        Where the page is.

    Raises:
        InputError: a record cannot be read.
        OSError: the folder cannot be written.
    """
    folders = [stores] if isinstance(stores, Store) else list(stores)
    records = Records(folders)
    sections = list(_sections(records, metric))
    entries = [entry for section in sections for entry in section.entries]
    judged = findings.judge(entries, metric)
    chosen = choices.tables(entries, metric)
    drawings = {
        "question": plots.error_against_latency(entries),
        "curves": plots.learning_curves(entries),
        "speed": [
            *plots.latency_distributions(entries),
            *plots.batch_scaling(entries),
            *plots.rewrite_gains(entries),
        ],
        "inside": [*plots.inside(entries), *plots.promise()],
    }
    # All of it is made before any of it is written, so that what a record spoils leaves the report from before.
    texts = {
        f"{name}.{ending}": render(shown, form)
        for name, shown in (chosen | {section.name: section.report for section in sections}).items()
        for form, ending in ENDINGS.items()
    }
    texts["findings.md"] = findings.markdown(judged)
    for figure in (figure for group in drawings.values() for figure in group):
        texts |= {f"plots/{plot.name}.svg": svg.render(plot) for plot in figure.plots}
    texts["index.html"] = _page(folders, sections, drawings, chosen, judged)
    for name, text in texts.items():
        write_file(out / name, text.encode())
    return out / "index.html"


def _sections(records: Records, metric: Metric) -> Iterator[_Section]:
    """The paper's tables always, and those of their rows that were run at other depths."""
    for number in spec.NUMBERS:
        table = spec.load_table(number)
        others = [spec.at_depth(table, depth) for depth in CIFAR_DEPTHS if table.depth and depth != table.depth]
        for each in [table, *others]:
            entries = [Entry(each, row, records.runs(each, row)) for row in each.rows]
            if each is not table:
                entries = [e for e in entries if (e.runs.analyze if number == report.ANALYSED else e.runs.train)]
                if not entries:
                    continue
            shown = replace(each, rows=tuple(entry.row for entry in entries))
            name = f"table{number}" + ("" if each is table else f"-resnet{each.depth}")
            yield _Section(name, shown, entries, report.build(shown, records, metric, detail=True))


def _page(
    folders: Sequence[Store],
    sections: Sequence[_Section],
    drawings: Mapping[str, list[Figure]],
    chosen: Mapping[str, Report],
    judged: Sequence[tuple[Claim, Sequence[Finding]]],
) -> str:
    provenance = Provenance()
    for section in sections:
        for entry in section.entries:
            provenance.add(_short(section), entry)
    figures = [figure for group in drawings.values() for figure in group]
    numbers = iter(range(len(figures)))
    return fill(
        "report.html",
        style=asset("report.css"),
        summary=_summary(folders, provenance),
        sections=[{"name": s.name, "short": _short(s), "shown": _shown(s.report)} for s in sections],
        choices={name: _shown(shown) for name, shown in chosen.items()},
        drawings={name: [(next(numbers), figure) for figure in group] for name, group in drawings.items()},
        judged=judged,
        missing=list(_missing(folders, sections)),
        provenance=provenance.shown(),
        library=asset("echarts.min.js"),
        data=_inline({"figures": [asdict(figure) for figure in figures], "palette": svg.PALETTE}),
        script=asset("report.js"),
    )


def _inline(data: Any) -> str:
    """JSON that may stand inside a script element: none of its characters can end it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _short(section: _Section) -> str:
    depth = "" if section.name == f"table{section.table.number}" else f", ResNet-{section.table.depth}"
    return f"Table {section.table.number}{depth}"


def _summary(folders: Sequence[Store], provenance: Provenance) -> str:
    machines = list(provenance.machines)
    where = ", ".join(str(store.root) for store in folders)
    words = f"{len(provenance.records)} records are shown, from {where}."
    if machines:
        words += f" Measured on {' and on '.join(machines)}."
    return f"{words} Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."


def _shown(report: Report) -> dict[str, Any]:
    """A table as the template takes it."""
    cells, notes = printed(report, "\0{}")
    lines = [
        [_cell(column, line, text) for column, text in zip(report.columns, row, strict=True)]
        for line, row in zip(report.lines, cells, strict=True)
    ]
    columns = [{"heading": _heading(column), "kind": _kind(column)} for column in report.columns]
    return {"title": report.title, "columns": columns, "lines": lines, "notes": notes, "remarks": report.remarks}


def _heading(column: Column) -> str:
    return column.heading.replace("top-", "top\u2011")  # no line ends within "top-1"


def _kind(column: Column) -> str:
    if column.key == "model":
        return "model"
    return "" if column.key.startswith("heading_") else "number"


def _cell(column: Column, line: Line, text: str) -> dict[str, Any]:
    """A cell: its text, what its footnotes amount to, their numbers, and their words. Where it is empty the reason is
    on hover and for screen readers; a number at each empty cell would be a thicket."""
    shown, *marks = text.split("\0")
    value, notes = line.values.get(column.key), line.notes.get(column.key, [])
    return {
        "column": {"kind": _kind(column)},
        "order": value,
        "text": shown.strip(),
        "tags": list(dict.fromkeys(TAGS[start] for note in notes for start in TAGS if note.startswith(start))),
        "marks": [mark.strip() for mark in marks],
        "notes": "; ".join(notes),
    }


def _missing(folders: Sequence[Store], sections: Sequence[_Section]) -> Iterator[dict[str, Any]]:
    """What the tables lack, with the commands that measure it."""
    for section in sections:
        for data in dict.fromkeys(row.data for row in section.table.rows):
            for words, rows in _gaps(section, data).items():
                where = f"{_short(section)}, {DATA_SETS[data].label}"
                command = _command(folders, section.table, data, rows)
                yield {"where": where, "rows": len(rows), "words": words, "command": command}


def _gaps(section: _Section, data: str) -> dict[str, list[Row]]:
    """The rows on one data set that are not complete, by what they lack."""
    gaps: dict[str, list[Row]] = {}
    inside = section.table.number == report.ANALYSED
    for entry in section.entries:
        runs = entry.runs
        if entry.row.data != data:
            continue
        if not runs.train:
            gaps.setdefault("not run", []).append(entry.row)
        elif not entry.comparable:
            gaps.setdefault("run, but quick or shortened, so without an error to compare", []).append(entry.row)
        elif len(runs.train) < section.table.seeds:
            gaps.setdefault(f"with fewer than {section.table.seeds} seeds", []).append(entry.row)
        elif inside and not runs.analyze:
            gaps.setdefault("trained, but not looked into", []).append(entry.row)
        elif not inside and not (runs.export and runs.parity and runs.latency):
            gaps.setdefault("without export, parity or latency", []).append(entry.row)
    return gaps


def _command(folders: Sequence[Store], table: Table, data: str, rows: Sequence[Row]) -> str:
    paper = spec.load_table(table.number)
    everything = len(rows) == sum(row.data == data for row in paper.rows)
    names = [f"*@{data}"] if everything else [f"{row.model}@{data}" for row in rows]
    words = ["python", "-m", "suite", "run", "--table", str(table.number), "--rows", ",".join(names)]
    words += ["--depth", str(table.depth)] if table.depth != paper.depth else []
    words += ["--profile", "paper", "--seeds", str(table.seeds), "--data", f"{data}=PATH"]
    return shlex.join([*words, "--results", str(folders[0].root)] if folders else words)

"""A table as text: Markdown, CSV, LaTeX or JSON, with what is to be said of single cells as footnotes."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from suite.files import printable

FORMATS = ("github", "csv", "latex", "json")

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
            self.notes[column.key] = list(map(printable, notes))


@dataclass(frozen=True)
class Report:
    """A table ready to be written: `columns`, `lines`, and general `remarks` beside the lines' own notes."""

    title: str
    columns: list[Column]
    lines: list[Line]
    remarks: list[str]


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

"""A table as text: Markdown, CSV, LaTeX or JSON, with what is to be said of single
cells as footnotes."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from suite.errors import InputError, join_with_or
from suite.files import WIDTH, printable, terminal_width
from suite.report.formats import paragraphs, to_csv, to_grid, to_json

# How the note begins of a parity that did not pass, whose column is never left out.
FAILED = "PARITY FAILED"
# Parts of a table, by which its columns are chosen; there may be none of a part, where nothing was measured.
PARTS = ("model", "paper", "ours", "parity", "size", "latency", "speed", "peak")

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """One column: its key in CSV and JSON, its heading elsewhere, and how a number is
    printed there.

    `part` is what readers who choose columns call it and its like; `brief` is its
    heading for those who do not choose, empty if it is not shown to them.
    """

    key: str
    heading: str
    show: Callable[[Any], str] = str
    part: str = ""
    brief: str = ""


@dataclass
class Line:
    """One row of a report: values by column key, and for some of them what is to be
    said about it."""

    values: dict[str, Value] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def put(self, column: Column, value: Value, *notes: str) -> None:
        self.values[column.key] = value
        if notes:
            self.notes[column.key] = list(map(printable, notes))


@dataclass(frozen=True)
class Report:
    """A table ready to be written: `columns`, `lines`, and general `remarks` beside the
    lines' own notes; `hidden` columns were left out for want of room."""

    title: str
    columns: list[Column]
    lines: list[Line]
    remarks: list[str]
    hidden: int = 0


def render(report: Report, text_format: str) -> str:
    """The report as text, ending in a newline: "github" (Markdown), "csv", "latex"
    (booktabs) or "json"."""
    return {"github": _github, "csv": _csv, "latex": _latex, "json": _json}[text_format](report)


def select_columns(report: Report, names: Sequence[str] = ()) -> Report:
    """The report with the columns of these parts or keys, or with all for "all", after
    those of its rows' headings; without names with as many of its brief columns as fit
    the terminal, or `WIDTH` characters where there is none.

    Raises:
        InputError: a name is neither; it says what to use.
    """
    check_names(report, names)
    if "all" in names:
        return report
    if names:
        headings = [column for column in report.columns if column.brief and not column.part]
        chosen = (c for c in report.columns if c not in headings and (c.part in names or c.key in names))
        return _with(report, [*headings, *chosen])
    columns = [replace(c, heading=c.brief) for c in report.columns if c.brief]
    remarks = []
    while _width(found := _with(report, columns)) > line_width() and columns[-1].part not in ("", "ours"):
        passed = next((c for c in columns if c.part == "parity" and not _failed(report, c)), None)
        columns.remove(passed or columns[-1])
        if passed:
            remarks = [f"{passed.heading} is left out for want of room: no parity failed"]
    return replace(found, remarks=[*found.remarks, *remarks], hidden=len(report.columns) - len(columns))


def line_width() -> int:
    """Characters of a line: those of the terminal that standard output is, at most
    `WIDTH`."""
    return terminal_width() or WIDTH


def _failed(report: Report, column: Column) -> bool:
    return any(note.startswith(FAILED) for line in report.lines for note in line.notes.get(column.key, ()))


def check_names(report: Report, names: Sequence[str], later: Sequence[str] = ()) -> None:
    """Refuse names of columns that a report does not have, and will not have: those of
    its columns that are still to be measured end in one of `later`.

    Raises:
        InputError: a name is no column; it says what to use.
    """
    known = {"all", *PARTS, *(column.key for column in report.columns)}
    for name in names:
        if name not in known and not name.endswith(tuple(later)):
            raise InputError(
                f"--columns: {name!r} is not a column of this table; use {join_with_or(['all', *PARTS])}, or single "
                "columns by their names in CSV, which docs/tables.md lists"
            )


def _with(report: Report, columns: list[Column]) -> Report:
    keys = {column.key for column in columns}
    lines = [
        Line(
            {key: value for key, value in line.values.items() if key in keys},
            {key: value for key, value in line.notes.items() if key in keys},
        )
        for line in report.lines
    ]
    return replace(report, columns=columns, lines=lines)


def _width(report: Report) -> int:
    """Characters of a row in Markdown."""
    return len(_body(report, "github").partition("\n")[0])


def _github(report: Report) -> str:
    _, notes = format_cells(report, "[{}]")
    body = _body(report, "github")
    foot = [f"[{mark}] {text}" for mark, text in notes] + report.remarks
    foot += [f"--columns all shows {report.hidden} more columns"] if report.hidden else []
    return "\n".join([textwrap.fill(report.title, line_width()), "", body, "", *map(_item, foot)]) + "\n"


def _item(text: str) -> str:
    """An item of a list, which a terminal shows as it stands."""
    return textwrap.fill(
        text, line_width(), initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _latex(report: Report) -> str:
    _, notes = format_cells(report, "[{}]")
    body = _body(report, "latex")
    foot = [f"[{mark}] {text}" for mark, text in notes] + report.remarks
    lines = paragraphs([report.title, *foot])
    return "\n".join(["% needs \\usepackage{booktabs}", lines[0], "", body, "", *lines[1:]]) + "\n"


def _csv(report: Report) -> str:
    rows: list[list[str | float]] = [[*(column.key for column in report.columns), "notes"]]
    for line in report.lines:
        notes = [f"{key}: {'; '.join(texts)}" for key, texts in line.notes.items()]
        values = [line.values.get(column.key) for column in report.columns]
        rows.append([*("" if value is None else value for value in values), " | ".join(notes)])
    return to_csv([_written(value) for value in row] for row in rows)


def _written(value: str | float) -> str | float:
    """The value as a spreadsheet will show it: text that it would run as a formula has
    an apostrophe before it, and a number twelve digits at most, so that half a sum is
    not 0.40992350000000005."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _json(report: Report) -> str:
    return to_json(to_dict(report))


def to_dict(report: Report) -> dict[str, Any]:
    """What JSON has of a report: a row has each value under its column's key."""
    return {
        "title": report.title,
        "columns": [{"key": column.key, "heading": column.heading} for column in report.columns],
        "rows": [line.values | {"notes": line.notes} for line in report.lines],
        "remarks": report.remarks,
    }


def format_cells(report: Report, mark: str) -> tuple[list[list[str]], list[tuple[int, str]]]:
    """Every cell as text with the marks of its footnotes, and the numbered
    footnotes."""
    numbers: dict[str, int] = {}
    rows = []
    for line in report.lines:
        row = []
        for column in report.columns:
            value = line.values.get(column.key)
            marks = [numbers.setdefault(text, len(numbers) + 1) for text in line.notes.get(column.key, [])]
            text = "" if value is None else value if isinstance(value, str) else column.show(value)
            row.append(" ".join([*filter(None, [text]), *(mark.format(number) for number in marks)]))
        rows.append(row)
    return rows, [(number, text) for text, number in numbers.items()]


def _body(report: Report, text_format: str) -> str:
    """Headings and rows without what stands above and below them."""
    rows, _ = format_cells(report, "[{}]")
    cells = [[column.heading for column in report.columns], *rows]
    cells = [[text.replace("] [", ",") for text in row] for row in cells]  # several marks
    if text_format == "github":
        cells = [[text.replace("|", "\\|") for text in row] for row in cells]
    return to_grid(cells[0], cells[1:], text_format, disable_numparse=True)

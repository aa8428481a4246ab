"""Lay a table out for the page: grouped headings, columns shown first, and
footnotes."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from suite.report.render import FAILED, Column, Line, Report, format_cells
from suite.tables.spec import METRICS

# What a footnote that begins so is called in the cell itself.
TAGS = {
    "quick run": "quick",
    "shortened run": "shortened",
    "run on other images": "other images",
    "unstable": "unstable",
    "throttled": "throttled",
    "busy": "busy",
    "impossible": "impossible",
    FAILED: "failed",
    "train failed": "failed",
    "export failed": "failed",
    "parity failed": "failed",
    "latency failed": "failed",
}
# Leading columns of the paper's tables that say what the model's name says.
REPEATING = ("Norm", "Activation", "Depth", "Filters")
# Why a cell is empty, where the line below the table says it for all of them.
PLAIN = ("not run", "not exported", "not timed", "too few runs", "not in the paper")


@dataclass(frozen=True)
class Head:
    """A column's heading: `group` stands above it and its neighbours, `kind` is a class
    of the page's style."""

    key: str
    group: str
    text: str
    kind: str
    main: bool


def sheet(
    report: Report, everything: bool = False, unrun: Collection[int] = (), repeating: Collection[str] = ()
) -> dict[str, Any]:
    """A table as the template takes it.

    Args:
        report: the table.
        everything: open with all columns.
        unrun: numbers of rows without any run, which are shown on request.
        repeating: headings of columns that a narrow screen leaves out.
    """
    # The model comes first, where it stays in sight however far a narrow screen is scrolled.
    report = replace(report, columns=sorted(report.columns, key=lambda column: column.key != "model"))
    heads = [_head(column, everything or bool(column.brief), repeating) for column in report.columns]
    said = replace(report, lines=[_without_needless_notes(line) for line in report.lines])
    cells, notes = format_cells(said, "\0{}")
    lines = [
        {
            "unrun": number in unrun,
            "cells": [_cell(head, line, text) for head, text in zip(heads, row, strict=True)],
        }
        for number, (line, row) in enumerate(zip(report.lines, cells, strict=True))
    ]
    return {
        "title": report.title,
        "heads": heads,
        "groups": {"main": _groups([head for head in heads if head.main]), "whole": _groups(heads)},
        "more": sum(not head.main for head in heads),
        "unrun": len(unrun),
        "lines": lines,
        "notes": notes,
        "remarks": report.remarks,
    }


def _head(column: Column, main: bool, repeating: Collection[str]) -> Head:
    key, group, text = column.key, "", column.heading
    leading = key == "model" or key.startswith("heading_")
    kind = "model" if key == "model" else "number"
    if key.startswith("heading_"):
        kind = "repeats" if text in repeating else ""
    if parts := re.fullmatch(r"(.+? b\d+(?: m\d+)?) (.+)", text):
        group, text = parts[1], parts[2]
    elif key.startswith("parity_"):
        group, text = _parity(key, text)
    elif parts := re.fullmatch(r"(paper|ours - paper|ours|max - min) ([^,]+)(?:, (.+))?", text):
        percent = parts[2] in [METRICS[name] for name in METRICS if name.startswith("top")]
        group = f"{parts[2]} %" if percent else parts[2]
        text = f"{parts[1]}, {parts[3]}" if parts[3] else parts[1]
    elif key in ("parameters", "macs"):
        group = "size"
    return Head(key, group.replace("top-", "top\u2011"), text, kind, main or leading)


def _parity(key: str, heading: str) -> tuple[str, str]:
    """Group and text of a column such as `parity_int8_top1`, "int8 - torch top-1"."""
    ends = {"top1": "error, points", "agreement": "agreement %", "logits": "logits apart"}
    *name, end = key.removeprefix("parity_").split("_")
    form = " ".join(name)
    return f"parity{f', {form}' if form else ''}", ends.get(end, heading)


def _groups(heads: Sequence[Head]) -> list[tuple[str, int, str]]:
    """Each group with the number of its columns, from left to right; columns without a
    group are divided by their kind, so that those of one kind can be hidden."""
    found = groupby(heads, key=lambda head: (head.group, "" if head.group else head.kind))
    return [(group, len(list(some)), kind) for (group, kind), some in found]


def _without_needless_notes(line: Line) -> Line:
    """The line without the footnotes that an empty cell need not have."""
    notes = {
        key: kept
        for key, notes in line.notes.items()
        if (kept := [note for note in notes if line.values.get(key) is not None or not note.startswith(PLAIN)])
    }
    return Line(line.values, notes)


def _cell(head: Head, line: Line, text: str) -> dict[str, Any]:
    """A cell: its text, what its footnotes amount to, their numbers, and their words.
    Where it is empty the reason is on hover and for screen readers; a number at each
    empty cell would be a thicket. The error of a quick run means nothing, and is no
    more than mentioned."""
    shown, *marks = (part.strip() for part in text.split("\0"))
    value, notes = line.values.get(head.key), line.notes.get(head.key, [])
    tags = list(dict.fromkeys(TAGS[start] for note in notes for start in TAGS if note.startswith(start)))
    words = "; ".join(notes)
    if "quick" in tags and value is not None:
        value, shown = None, ""
    return {"head": head, "order": value, "text": shown, "tags": tags, "marks": marks, "notes": words}

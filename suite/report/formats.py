"""The four formats in which commands write tables: Markdown as GitHub shows it, CSV,
LaTeX and JSON."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# By the names that `--format` has for them.
FORMATS = ("github", "csv", "latex", "json")
# What tabulate calls those that it writes.
_STYLES = {"github": "github", "latex": "latex_booktabs"}


def to_grid(headings: Sequence[str], rows: Sequence[Sequence[object]], text_format: str, **options: Any) -> str:
    """Headings and rows as "github" or "latex", without what stands above and below
    them."""
    import tabulate

    tabulate.MIN_PADDING = 0  # beside a heading; a terminal has no room for it
    text: str = tabulate.tabulate(rows, headings, tablefmt=_STYLES[text_format], **options)
    return text


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def to_json(content: Mapping[str, Any], numbers_in_one_line: bool = False) -> str:
    """The content as JSON, ending in a newline; a list of numbers has a line each, or
    one line for all."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if numbers_in_one_line:
        text = re.sub(r"(?<=[\[\d,])\n *(?=\d)|(?<=\d)\n *(?=\])", " ", text)
    return text + "\n"


def paragraphs(texts: Iterable[str]) -> list[str]:
    """Texts as paragraphs of LaTeX, with its special characters as themselves."""
    return [f"\\par {_escaped(text)}" for text in texts]


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)

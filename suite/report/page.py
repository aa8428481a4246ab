"""All results as one HTML page that opens from disk, with each table and plot as a plain file beside it.

The page needs no network: style, script, the drawing library and the data are in it. What comes from records is
escaped where it stands in HTML and in the data that the script reads.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from suite.files import write as write_file
from suite.registry import DATA_SETS
from suite.report import choices, findings, plots, svg
from suite.report import tables as report
from suite.report.drawing import Figure
from suite.report.findings import Claim, Finding
from suite.report.provenance import Provenance
from suite.report.render import Column, Line, Report, escape_html, printed, render
from suite.report.runs import Entry, Metric, Records
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
# What every browser that can do what the page needs understands; nothing may be loaded from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


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
    drawn = {f"plots_{name}": "".join(_figure(next(numbers), f) for f in group) for name, group in drawings.items()}
    empty = '<p class="quiet">Nothing to draw yet: there are no records for it.</p>'
    return Template(_asset("report.html")).substitute(
        {name: text or empty for name, text in drawn.items()},
        policy=POLICY,
        style=_asset("report.css"),
        summary=_summary(folders, provenance),
        links="".join(f'<li><a href="#{s.name}">{escape_html(_short(s))}</a></li>' for s in sections),
        choices="".join(_table(name, shown) for name, shown in chosen.items()) or empty,
        findings="".join(_claim(claim, found) for claim, found in judged),
        tables="".join(_table(section.name, section.report) for section in sections),
        missing=_missing(folders, sections),
        provenance=provenance.html(),
        library=_asset("echarts.min.js"),
        data=_inline({"figures": [asdict(figure) for figure in figures], "palette": svg.PALETTE}),
        script=_asset("report.js"),
    )


def _asset(name: str) -> str:
    return (resources.files("suite.report") / "assets" / name).read_text("utf-8")


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
    return escape_html(f"{words} Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.")


def _claim(claim: Claim, found: Sequence[Finding]) -> str:
    """A claim with its findings; where nothing is measured yet makes one line."""
    items = []
    for finding in found:
        if finding.figures:
            figures = "".join(f"<li>{escape_html(text)}</li>" for text in finding.figures)
            caveats = f'<p class="quiet">{escape_html("; ".join(finding.caveats))}</p>' if finding.caveats else ""
            items.append(f"<li>{_verdict(finding)} {escape_html(finding.where)}{caveats}<ul>{figures}</ul></li>")
    if lacking := [finding for finding in found if not finding.figures]:
        where = escape_html("; ".join(finding.where for finding in lacking))
        items.append(f"<li>{_verdict(lacking[0])} {where}</li>")
    return (
        f"<article><h3>{escape_html(claim.title)}</h3>"
        f'<p class="quiet">{escape_html(claim.words)} Here: {escape_html(claim.criterion)}.</p>'
        f"<ul>{''.join(items)}</ul></article>"
    )


def _verdict(finding: Finding) -> str:
    return f'<strong class="verdict" data-verdict="{finding.verdict}">{finding.verdict}</strong>'


def _table(name: str, shown: Report) -> str:
    cells, notes = printed(shown, "\0{}")
    head = "".join(
        f'<th scope="col" aria-sort="none"{_kind(column)}><button type="button">{_heading(column)}</button></th>'
        for column in shown.columns
    )
    body = "".join(
        f"<tr>{''.join(_cell(name, c, line, text) for c, text in zip(shown.columns, row, strict=True))}</tr>"
        for line, row in zip(shown.lines, cells, strict=True)
    )
    foot = "".join(f'<li id="{name}-note-{number}">{escape_html(text)}</li>' for number, text in notes)
    remarks = "".join(f"<li>{escape_html(text)}</li>" for text in shown.remarks)
    files = " ".join(
        f'<a href="{name}.{ending}">{word}</a>'
        for word, ending in (("Markdown", "md"), ("CSV", "csv"), ("LaTeX", "tex"))
    )
    title = escape_html(shown.title)
    opened = " open" if len(notes) <= 12 else ""
    below = f"<summary>Notes</summary><ol>{foot}</ol><ul>{remarks}</ul>" if foot or remarks else ""
    below = below and f'<details class="notes"{opened}>{below}</details>'
    return f"""
<section class="table" id="{name}" aria-labelledby="{name}-title">
<h3 id="{name}-title">{title}</h3>
<div class="tools"><label>Filter rows <input type="search" aria-controls="{name}-body"></label>
<output aria-live="polite"></output><span class="files">{files}</span></div>
<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><thead><tr>{head}</tr></thead>
<tbody id="{name}-body">{body}</tbody></table></div>
{below}
</section>"""


def _heading(column: Column) -> str:
    return escape_html(column.heading.replace("top-", "top\u2011"))  # no line ends within "top-1"


def _kind(column: Column) -> str:
    if column.key == "model":
        return ' class="model"'
    return "" if column.key.startswith("heading_") else ' class="number"'


def _cell(name: str, column: Column, line: Line, text: str) -> str:
    """A cell: its text, what its footnotes amount to, their numbers, and their words on hover."""
    shown, *marks = text.split("\0")
    value, notes = line.values.get(column.key), line.notes.get(column.key, [])
    tags = list(dict.fromkeys(TAGS[start] for note in notes for start in TAGS if note.startswith(start)))
    links = ",".join(f'<a href="#{name}-note-{mark.strip()}">{mark.strip()}</a>' for mark in marks)
    content = "" if value in tags else escape_html(shown.strip())
    if value is None:  # the reason is on hover and for screen readers; a number at each empty cell would be a thicket
        why = escape_html("; ".join(notes) or "none")
        content, links = f'<span class="empty" role="img" aria-label="{why}">&ndash;</span>', ""
    content += "".join(f' <span class="tag {tag}">{tag}</span>' for tag in tags)
    content += f"<sup>{links}</sup>" if links else ""
    title = f' title="{escape_html("; ".join(notes))}"' if notes else ""
    order = "" if value in (None, report.QUICK) else f' data-value="{escape_html(str(value))}"'
    if column.key == "model":
        return f'<th scope="row" class="model"{order}>{content}</th>'
    return f"<td{_kind(column)}{order}{title}>{content}</td>"


def _figure(number: int, figure: Figure) -> str:
    """A figure's frame, which the script draws into; without scripts its plots are pictures."""
    options = "".join(f'<option value="{i}">{escape_html(p.title)}</option>' for i, p in enumerate(figure.plots))
    choice = f"<label>Show <select>{options}</select></label>" if len(figure.plots) > 1 else ""
    paper = "".join(f'<p class="paper">{escape_html(line)}</p>' for line in figure.paper.splitlines())
    first = figure.plots[0]
    pictures = "".join(f'<img src="plots/{p.name}.svg" alt="{escape_html(p.title)}">' for p in figure.plots)
    return f"""
<figure data-figure="{number}">
<figcaption><h3>{escape_html(figure.title)}</h3><p>{escape_html(figure.caption)}</p>{paper}</figcaption>
<div class="tools">{choice}<span class="files"><a href="plots/{first.name}.svg">SVG</a></span></div>
<div class="plot" tabindex="0" role="img" aria-label="{escape_html(f"{figure.title}, {first.title}")}"></div>
<details class="values"><summary>Values</summary><div class="scroll"></div></details>
<noscript>{pictures}</noscript>
</figure>"""


def _missing(folders: Sequence[Store], sections: Sequence[_Section]) -> str:
    """What the tables lack, with the commands that measure it."""
    items = []
    for section in sections:
        for data in dict.fromkeys(row.data for row in section.table.rows):
            for words, rows in _gaps(section, data).items():
                command = escape_html(_command(folders, section.table, data, rows))
                where = f"{escape_html(_short(section))}, {DATA_SETS[data].label}"
                items.append(
                    f"<li><p>{where}: {len(rows)} row{'s' if len(rows) > 1 else ''} {words}</p>"
                    f"<pre><code>{command}</code></pre></li>"
                )
    return f"<ul>{''.join(items)}</ul>" if items else "<p>Nothing: every cell is measured by the paper's recipe.</p>"


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

"""All results as one HTML page that opens from disk, with each table and plot as a
plain file beside it.

The page needs no network: style, script, the drawing library and the data are in it.
What comes from records is escaped where it stands in HTML and in the data that the
script reads.
"""

import contextlib
import errno
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite.files import write as write_file
from suite.registry import DATA_SETS, label_of
from suite.report import batches, choices, findings, look, own_claims, plots, svg
from suite.report import tables as report
from suite.report.answer import answers
from suite.report.drawing import Figure
from suite.report.entries import Entry, Metric, why_none_counts
from suite.report.missing import missing_results
from suite.report.provenance import Provenance
from suite.report.render import Report, render
from suite.report.runs import Records
from suite.report.sheet import REPEATING, sheet
from suite.report.template import asset, fill_template
from suite.results.store import Store
from suite.tables import spec
from suite.tables.own import OwnTable
from suite.tables.spec import CIFAR_DEPTHS, Table

# What the head of each report's page has.
MARK = b": error, parity and latency</title>"
# What one record of a stage is, and several are.
STAGES = {
    "train": ("training", "trainings"),
    "export": ("export", "exports"),
    "convert": ("file in lower precision", "files in lower precision"),
    "parity": ("check of parity", "checks of parity"),
    "latency": ("latency", "latencies"),
    "analyze": ("analysis", "analyses"),
    "peak": ("peak of a machine's speed", "peaks of a machine's speed"),
    "probe": ("probe of a network's speed", "probes of a network's speed"),
}
ENDINGS = {"github": "md", "csv": "csv", "latex": "tex"}


@dataclass(frozen=True)
class _Section:
    """One table at one depth: its entries, the report of it and the stem of its
    files."""

    name: str
    table: Table
    entries: list[Entry]
    report: Report
    elsewhere: bool = False

    @property
    def short(self) -> str:
        """Such as "Table 2, ResNet-20"."""
        if self.table.own:
            return self.table.label
        return f"Table {self.table.number}" + (f", ResNet-{self.table.depth}" if self.elsewhere else "")

    @property
    def judged(self) -> list[Entry]:
        """What claims are judged by: at another depth than the paper's only what was
        run, since nobody need run the rest."""
        return [entry for entry in self.entries if entry.runs.train or not self.elsewhere]

    @property
    def state(self) -> str:
        """Why it is folded, in words; empty if some of its errors mean something."""
        count = sum(bool(entry.runs.train) for entry in self.entries)
        if not count:
            return "not run"
        words = why_none_counts(self.entries)
        return words and f"{words}, {count} of {len(self.entries)} rows: parity, size and latency"

    @property
    def unrun(self) -> list[int]:
        """Numbers of the rows of which there is nothing to be said, unless that is so
        of all."""
        unrun = [number for number, entry in enumerate(self.entries) if self._is_unrun(number, entry)]
        return unrun if len(unrun) < len(self.entries) else []

    def _is_unrun(self, number: int, entry: Entry) -> bool:
        notes = self.report.lines[number].notes.values()
        return not entry.runs.train and not any("failed" in note for some in notes for note in some)


def write(
    stores: Store | Sequence[Store],
    out: Path,
    metric: Metric = "last",
    own: OwnTable | None = None,
    imports: Sequence[str] = (),
) -> Path:
    """Write `index.html` and the plain files into a folder, which is made if need be.

    Beside the page lie `table2.md`, `.csv` and `.tex` (booktabs) for each table,
    `table2-resnet20.*` for those run with other nets, and one SVG for each plot in
    `plots/`. A report that is there is replaced.

    Args:
        stores: one or several results folders, of one or several machines.
        out: the folder.
        metric: errors of the last epoch, or the least over all epochs.
        own: a table of a user's own, for a page of it and its claims alone.
        imports: the modules that define its models.

    Returns:
        Where the page is.

    Raises:
        InputError: a record cannot be read.
        OSError: the folder cannot be written, or holds other things.
    """
    folders = [stores] if isinstance(stores, Store) else list(stores)
    records = Records(folders, imports=imports)
    sections = [_own_section(records, own, metric)] if own else list(_sections(records, metric))
    entries = [entry for section in sections for entry in section.judged]
    judged = own_claims.judge(entries, metric) if own else findings.judge(entries, metric)
    chosen = {} if own else choices.tables(entries, metric)
    larger = batches.table(entries)
    drawings = {
        "question": plots.error_against_latency(entries),
        "curves": plots.learning_curves(entries),
        "speed": [*plots.latency_distributions(entries), *plots.rewrite_gains(entries)],
        "inside": [] if own else [*plots.inside(entries), *plots.promise()],
    }
    shown = chosen | {section.name: section.report for section in sections} | ({"batches": larger} if larger else {})
    # All of it is made before any of it is written, so that what a record spoils leaves the report from before.
    texts = {
        f"{name}.{ending}": render(each, text_format)
        for name, each in shown.items()
        for text_format, ending in ENDINGS.items()
    }
    whose = f"Claims of {own.title}" if own else findings.TITLE
    texts["findings.md"] = findings.markdown(judged, whose)
    for figure in (figure for group in drawings.values() for figure in group):
        texts |= {f"plots/{plot.name}.svg": svg.render(plot, figure.title) for plot in figure.plots}
    texts["index.html"] = fill_template(
        "report.html",
        title=own.title if own else "Normalisation and CReLU in residual networks",
        own=own,
        style=asset("report.css"),
        colors=[look.PALETTE, look.DARK],
        key=list(look.NORMALIZATIONS.values()),
        answers=answers(entries, metric),
        undrawn=_data_without_errors(entries),
        choices=[(name, _fold(name, entries), sheet(each, everything=True)) for name, each in chosen.items()],
        judged=judged,
        assumed=f"{findings.COUNTS} {findings.ASSUMED}",
        measured=any(finding.parts for _, found in judged for finding in found),
        contents=_contents(drawings, bool(chosen), own is not None),
        batches=sheet(larger, everything=True) if larger else None,
        library=asset("echarts.min.js"),
        script=asset("report.js"),
        **_tables(folders, sections, records.contradictions),
        **_drawings(drawings),
    )
    _write_all(out, texts)
    return out / "index.html"


def _write_all(out: Path, texts: Mapping[str, str]) -> None:
    """Write files into a folder that is new, empty or a report's; where one cannot be
    written, those that were not there before are removed.

    Raises:
        OSError: one cannot be written, or the folder is another thing's.
    """
    if foreign := _foreign(out, texts):
        raise FileExistsError(errno.EEXIST, f"{foreign} is of no report; give a new folder or a report's")
    new = [folder for folder in (out / "plots", out, *out.parents) if not folder.exists()]
    files = [path for name in texts if not (path := out / name).exists()]
    try:
        for name, text in texts.items():
            write_file(out / name, text.encode())
    except OSError:
        for path in files:
            with contextlib.suppress(OSError):  # one that was never written
                path.unlink(missing_ok=True)
        for folder in new:
            with contextlib.suppress(OSError):  # one that holds something, or was never made
                folder.rmdir()
        raise


def _foreign(out: Path, texts: Mapping[str, str]) -> str | None:
    """What lies in a folder that no report has, if it holds no report's page either; a
    report that was cut off has none yet."""
    page = out / "index.html"
    if page.is_file():
        with page.open("rb") as file:
            return None if MARK in file.read(4096) else page.name
    ours = {Path(name).parts[0] for name in texts}
    there = sorted(path.name for path in out.iterdir() if path.name[0] != ".") if out.is_dir() else []
    return next((name for name in there if name not in ours), None)


def _contents(drawings: Mapping[str, list[Figure]], has_choices: bool, is_own: bool) -> list[tuple[str, str]]:
    """The page's sections from top to bottom, each with its title; those without a
    figure are not there. Latency comes first where no error can be drawn."""
    question, speed = ("question", "Error against latency"), ("speed", "Latency")
    sections = [
        question if drawings["question"] else speed,
        *([("choices", "Cost and gain")] if has_choices else []),
        ("findings", "Claims" if is_own else "The paper's claims"),
        ("tables", "Tables"),
        ("curves", "Learning curves"),
        *([speed] if drawings["question"] else []),
        ("inside", "Inside the networks"),
        ("provenance", "Provenance"),
    ]
    return [(name, title) for name, title in sections if drawings.get(name, True)]


def _own_section(records: Records, own: OwnTable, metric: Metric) -> _Section:
    entries = [Entry(own, row, records.runs(own, row)) for row in own.rows]
    return _Section(own.name, own, entries, report.build(own, records, metric, detail=True))


def _sections(records: Records, metric: Metric) -> Iterator[_Section]:
    """The paper's tables always, and at other depths those of which rows were run."""
    for number in spec.NUMBERS:
        table = spec.load_table(number)
        others = [spec.with_depth(table, depth) for depth in CIFAR_DEPTHS if table.depth and depth != table.depth]
        for each in [table, *others]:
            entries = [Entry(each, row, records.runs(each, row)) for row in each.rows]
            inside = number == report.ANALYSED
            if each is not table and not any(e.runs.analyze if inside else e.runs.train for e in entries):
                continue
            name = f"table{number}" + ("" if each is table else f"-resnet{each.depth}")
            built = report.build(each, records, metric, detail=True)
            yield _Section(name, each, entries, built, elsewhere=each is not table)


def _tables(folders: Sequence[Store], sections: Sequence[_Section], remarks: Sequence[str]) -> dict[str, Any]:
    """The paper's tables as the template takes them, those whose errors mean something
    first, and their provenance."""
    provenance = Provenance()
    for section in sections:
        for entry in section.entries:
            provenance.add(section.short, entry)
    ordered = sorted(sections, key=lambda section: bool(section.state))
    return {
        "sections": [
            (
                section,
                sheet(section.report, unrun=section.unrun, repeating=() if section.table.own else REPEATING),
                missing_results(folders, section.table, section.entries),
            )
            for section in ordered
        ],
        "summary": _summary(folders, provenance, remarks),
        "provenance": provenance.shown(),
    }


def _drawings(drawings: Mapping[str, list[Figure]]) -> dict[str, Any]:
    """The figures as the template takes them, each with its number, and their data as
    the script takes them."""
    figures = [figure for group in drawings.values() for figure in group]
    numbers = iter(range(len(figures)))
    return {
        "drawings": {name: [(next(numbers), figure) for figure in group] for name, group in drawings.items()},
        "data": _inline({"figures": [asdict(figure) for figure in figures], "palettes": [look.PALETTE, look.DARK]}),
    }


def _inline(data: Any) -> str:
    """JSON that may stand inside a script element: none of its characters can end
    it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _fold(name: str, entries: Sequence[Entry]) -> str:
    """Why a table of choices is folded, in words; empty if some of its errors mean
    something."""
    nets = [net for place, group in choices.groups(entries).items() if choices.stem(place) == name for net in group]
    words = why_none_counts(nets)
    return words and f"{words}: size and latency"


def _data_without_errors(entries: Sequence[Entry]) -> str:
    """The data sets that were run, but of which no run counts."""
    run = {entry.row.data for entry in entries if entry.runs.train}
    counts = {entry.row.data for entry in entries if entry.counts}
    return ", ".join(label_of(data) for data in dict.fromkeys([*DATA_SETS, *sorted(run)]) if data in run - counts)


def _summary(folders: Sequence[Store], provenance: Provenance, remarks: Sequence[str]) -> str:
    machines = list(provenance.machines)
    where = ", ".join(str(store.root) for store in folders)
    found = {(stage, key) for store in folders for stage in store.stages() for key in store.keys(stage)}
    others = Counter(stage for stage, key in sorted(found) if key not in provenance.records)
    count = f"{len(provenance.records)} of {len(found)}" if others else f"All {len(found)}"
    words = f"{count} records are shown, from {where}"
    if others:
        rest = (f"{number} {STAGES.get(stage, (stage, stage))[number > 1]}" for stage, number in others.items())
        words += f"; no row needs the rest: {', '.join(rest)}"
    words = ". ".join([words, *(remark.capitalize() for remark in remarks)]) + "."
    if machines:
        words += f" Measured on {'; on '.join(machines)}."
    return f"{words} Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."

"""What a table lacks, in one line, and the command that measures it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from suite import env
from suite.registry import stand_in
from suite.report.entries import Entry
from suite.report.tables import ANALYSED
from suite.results.store import Store
from suite.tables import spec
from suite.tables.spec import Row, Table

# The folder of a user's own runs, and what the one is called that holds published results.
OWN = Path("results", "local")
PUBLISHED = "published"


def missing_results(folders: Sequence[Store], table: Table, entries: Sequence[Entry]) -> tuple[str, str]:
    """What the rows lack, in words, and the command; both empty if nothing is missing.

    The command measures what the results folder lacks of these rows, and nothing twice;
    where that is a published one, it measures them in the user's own.
    """
    gaps = [(entry.row, gap) for entry in entries if (gap := _gap(table, entry))]
    counts = Counter(gap for _, gap in gaps)
    words = "; ".join(f"{count} row{'s' if count > 1 else ''} {gap}" for gap, count in counts.most_common())
    return words, _command(folders, table, [row for row, _ in gaps]) if gaps else ""


def _gap(table: Table, entry: Entry) -> str:
    """What a row lacks, the first thing only; empty if it is complete."""
    runs = entry.runs
    inside = table.number == ANALYSED
    if not runs.train:
        return "not run"
    if not entry.comparable:
        return "with runs that were quick, shortened or on other images"
    if len(runs.train) < table.seeds:
        return f"with fewer than {table.seeds} seeds"
    if inside:
        looked_into = runs.analyze or not any(run.result.trained for run in runs.train)
        return "" if looked_into else "trained, but not looked into"
    return "" if runs.export and runs.parity and runs.latency else "without export, parity or latency"


def _command(folders: Sequence[Store], table: Table, rows: Sequence[Row]) -> str:
    paper = table if table.own else spec.load_table(table.number)
    words = ["run", "--table", f"{table.label}.toml" if table.own else str(table.number)]
    if len(rows) < len(paper.rows):
        words += ["--rows", ",".join(f"{row.title}@{row.data}" for row in rows)]
    words += ["--depth", str(table.depth)] if table.depth != paper.depth else []
    words += ["--profile", "paper", "--seeds", str(table.seeds)]
    for data in dict.fromkeys(row.data for row in rows if stand_in(row.data) != row.data):
        words += ["--data", f"{data}=PATH"]
    return env.typed([*words, "--results", str(_writable(folders[0].root))] if folders else words)


def _writable(root: Path) -> Path:
    """The folder that a command is to write to: published records are another's, and
    are committed."""
    return OWN if root.resolve().parent.name == PUBLISHED else root

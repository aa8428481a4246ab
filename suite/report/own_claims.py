"""Judge the claims that a user's own table states about its rows."""

from collections.abc import Sequence

from suite.registry import label_of
from suite.report.entries import Entry, Metric
from suite.report.findings import Finding, caveats, compare_errors, trained_unlike, verdict
from suite.report.paper_claims import Claim
from suite.tables import own
from suite.tables.own import OwnTable
from suite.tables.spec import METRICS


def judge(entries: Sequence[Entry], metric: Metric = "last") -> list[tuple[Claim, list[Finding]]]:
    """Each claim of a user's own table whose rows these are, with a finding; none for a
    table of the paper. A claim about a row that was left out is left out too."""
    table = entries[0].table if entries else None
    if not isinstance(table, OwnTable):
        return []
    shown = {name for row in table.rows for name in (row.title, f"{row.title}@{row.data}")}
    claims = [claim for claim in table.claims if {claim.left, claim.right} <= shown]
    return [(_in_words(claim), [_finding(table, claim, entries, metric)]) for claim in claims]


def _in_words(claim: own.Claim) -> Claim:
    title = f"{claim.left} < {claim.right}"
    return Claim(title, claim.text or _usual_words(title), f"the {METRICS[claim.metric]} of {claim.left} is less", ())


def _usual_words(title: str) -> str:
    """Of a claim that has no text of its own."""
    return f"{title.replace(' < ', ' errs less than ')}."


def _finding(table: OwnTable, claim: own.Claim, entries: Sequence[Entry], metric: Metric) -> Finding:
    nets = {(entry.row.title, entry.row.data): entry for entry in entries}
    rows = [table.row(name) for name in (claim.left, claim.right)]
    where = label_of(rows[0].data)
    found = [nets[place] for row in rows if (place := (row.title, row.data)) in nets]
    if len(found) < 2 or not all(net.counts for net in found) or found[0].epochs != found[1].epochs:
        return Finding(where, "not yet measured")
    part = compare_errors(found[0], found[1], metric, claim.metric)
    notes = [*trained_unlike(found), *(note for net in found for note in caveats(net))]
    return Finding(where, verdict([part], 1), (part,), tuple(dict.fromkeys(notes)))


def remarks(entries: Sequence[Entry], metric: Metric = "last") -> list[str]:
    """What was found of each claim, a line each."""
    lines = []
    for claim, (finding,) in judge(entries, metric):
        # The verdict says already what the figures of one comparison end in.
        figures = "".join(f": {part.figures.removesuffix(f', {finding.verdict}')}" for part in finding.parts)
        sure = f" ({finding.how_sure})" if finding.how_sure else ""
        words = "" if claim.words == _usual_words(claim.title) else f' "{claim.words}"'
        lines.append(f"claim {claim.title}{words}: {finding.verdict}{figures}{sure}")
    return lines

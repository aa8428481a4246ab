"""The paper's claims, each held against what was measured: confirmed, confirmed in
part, contradicted, too close to tell, or not measured.

Runs that are quick, cut off or on other images do not count, and only runs of one
length on the paper's own data are held against each other. What rests on shortened
runs, on fewer seeds or on another depth than the paper's says so.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from suite.files import printable
from suite.registry import label_of
from suite.report.entries import Entry, Metric, are_alike, errors, untrained_in_words
from suite.report.paper_claims import CLAIMS, Claim, Nets, Part, pair_in_words, sign
from suite.results.derived import median_over_seeds
from suite.tables import spec

TITLE = "The paper's claims, and what was measured"
Verdict = Literal["confirmed", "confirmed in part", "contradicted", "too close to tell", "not yet measured"]


# Standard errors from which on a difference counts, if they are known: 95 %.
SURE = 1.96
# Standard deviation of a test error over seeds, relative: He et al. 2016 give 6.61 +- 0.16 % over five ResNet-110.
OVER_SEEDS = 0.025
# Seeds from which on what they differ by is taken from themselves.
ENOUGH = 3
COUNTS = "A difference counts where chance makes one so great in fewer than 5 % of cases."
ASSUMED = (
    f"Where there are fewer than three seeds, what they would differ by is assumed: {OVER_SEEDS:.1%} of the error, as "
    "in five runs of ResNet-110 by He et al. (2016), or as much as the other network's seeds do, if that is more."
)
# Standard error of a median over that of a mean, for normal figures: sqrt(pi / 2).
MEDIAN = 1.2533
# What is left of a learning rate after some halvings.
SHARES = {1 / 2: "half", 1 / 4: "a quarter", 1 / 8: "an eighth", 1 / 16: "a sixteenth"}


@dataclass(frozen=True)
class Finding:
    """A claim on one data set at one depth.

    Attributes:
        where: data set and network, such as "CIFAR-10, ResNet-110"; empty where there
            is no record at all.
        parts: each comparison.
        caveats: how the runs fall short of the paper's, and of each other.
    """

    where: str
    verdict: Verdict
    parts: tuple[Part, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def figures(self) -> tuple[str, ...]:
        """Each comparison in words, with what chance makes of it."""
        return tuple(f"{part.figures} ({part.margin})" if part.margin else part.figures for part in self.parts)

    @property
    def how_sure(self) -> str:
        """What chance makes of the difference, if there is but one, and the caveats;
        empty if there is neither."""
        margins = [part.margin for part in self.parts if part.margin]
        return "; ".join([*(margins if len(margins) == 1 else ()), *self.caveats])


def judge(entries: Sequence[Entry], metric: Metric = "last") -> list[tuple[Claim, list[Finding]]]:
    """Each of `CLAIMS` with a finding for every data set and depth that has the nets
    for it, and at least one."""
    found = []
    for claim in CLAIMS:
        wanted = {key for keys in claim.comparisons for key in keys}
        places: dict[tuple[str, str], dict[str, Entry]] = {}
        for entry in entries:
            depth, _, key = entry.row.model.partition("_")
            if entry.table.number in claim.tables and key in wanted:
                places.setdefault((entry.row.data, depth), {}).setdefault(key, entry)
        findings = [_finding(claim, place, nets, metric) for place, nets in places.items()]
        found.append((claim, [finding for finding in findings if finding] or [Finding("", "not yet measured")]))
    return found


def _finding(claim: Claim, place: tuple[str, str], nets: Nets, metric: Metric) -> Finding | None:
    data, depth = place
    where = f"{label_of(data)}, {depth.replace('resnet', 'ResNet-')}"
    pairs = [(nets[a], nets[b]) for a, b in claim.pairs if a in nets and b in nets]
    if claim.pairs and not pairs:
        return None  # the table has but one net of each pair
    parts = [compare_errors(a, b, metric) for a, b in pairs if are_alike(a, b)]
    inside = {key: net for key, net in nets.items() if net.counts and net.runs.analyze}
    parts += claim.look(inside)
    if not parts:
        return Finding(where, "not yet measured")
    notes = [note for part in parts for note in trained_unlike(part.nets)]
    notes += [note for part in parts for net in part.nets for note in caveats(net)]
    planned = _planned(place, nets)
    count = sum(planned.issuperset(keys) for keys in claim.comparisons)
    if len(parts) < count:
        notes.append(f"{len(parts)} of {count} comparisons measured")
    return Finding(where, verdict(parts, count), tuple(parts), tuple(dict.fromkeys(notes)))


def _planned(place: tuple[str, str], nets: Nets) -> set[str]:
    """The nets that the table has at a place, run or not: what a claim must hold of."""
    rows = next(iter(nets.values())).table.rows
    models = (row.model.partition("_") for row in rows if row.data == place[0])
    return {key for depth, _, key in models if depth == place[1]}


def verdict(parts: Sequence[Part], count: int) -> Verdict:
    """What the comparisons measured say of a claim that makes `count` of them: one that
    fails contradicts it, and all of them must hold to confirm it."""
    if any(part.holds is False for part in parts):
        return "contradicted"
    if not all(part.holds for part in parts):
        return "too close to tell"
    return "confirmed" if len(parts) == count else "confirmed in part"


def caveats(net: Entry) -> list[str]:
    """How the runs differ from the paper's, or from what a table of one's own asks
    for."""
    notes = []
    if (epochs := net.epochs) < (whole := spec.recipe_for(net.table, net.row).epochs):
        notes.append(f"shortened runs: {epochs} of {whole} epochs")
    if (seeds := len(net.runs.train)) < net.table.seeds:
        notes.append(f"{seeds} of {net.table.seeds} seeds")
    if failed := untrained_in_words(net.runs.train):
        notes.append(f"{net.row.title}: {failed}")
    if net.table.own:
        return notes
    if (papers := spec.load_table(net.table.number).depth) != net.table.depth:
        notes.append(f"ResNet-{net.table.depth}, the paper has ResNet-{papers}")
    return notes


def trained_unlike(nets: Sequence[Entry], name: Callable[[Entry], str] = lambda net: net.row.title) -> list[str]:
    """How the trainings of two nets differ by more than the nets, in words; nothing of
    other than two."""
    return [words for apart in (_rates_apart, _precisions_apart) if len(nets) == 2 and (words := apart(nets, name))]


def _rates_apart(nets: Sequence[Entry], name: Callable[[Entry], str]) -> str:
    """By how much the learning rates of two nets that trained differ, in words, with
    the lower first; empty where they do not.

    A rate at which training is not feasible is halved, of each net for itself; what is
    then compared is also the rates.
    """
    found = [(sorted(_rates(net)), name(net)) for net in nets]
    if not all(rates for rates, _ in found) or found[0][0] == found[1][0]:
        return ""
    (low, net), (high, other) = sorted(found)
    if len(low) == len(high) == 1 and (share := SHARES.get(low[0] / high[0])):
        return f"{net} at {share} of {other}'s learning rate"
    one, another = (" and ".join(f"{rate:g}" for rate in rates) for rates in (low, high))
    return f"{net} at a learning rate of {one}, {other} at {another}"


def _precisions_apart(nets: Sequence[Entry], name: Callable[[Entry], str]) -> str:
    """In which precision each of two nets was trained, in words; empty where that is
    one and the same, or not known."""
    found = [" and ".join(sorted({printable(run.result.precision) for run in net.runs.train})) for net in nets]
    if not all(found) or found[0] == found[1]:
        return ""
    return ", ".join(f"{name(net)} trained in {precision}" for net, precision in zip(nets, found, strict=True))


def _rates(net: Entry) -> set[float]:
    """Those that the net's runs were trained at in the end; none of a run that did not
    train at any."""
    return {run.result.tries[-1].learning_rate for run in net.runs.train if run.result.trained}


def compare_errors(better: Entry, worse: Entry, metric: Metric, of: str = "top1") -> Part:
    """Whether the first net errs less, in one of the errors that there are. A net that
    did not train errs most."""
    assumed = max(OVER_SEEDS, *(_over_seeds(net, metric, of) for net in (better, worse)))
    (a, a_error, a_freedom), (b, b_error, b_freedom) = (
        median_error(net, metric, of, assumed) for net in (better, worse)
    )
    spread = math.hypot(a_error, b_error)
    share = a_error**4 / a_freedom + b_error**4 / b_freedom
    freedom = spread**4 / share if share else math.inf  # Welch and Satterthwaite
    trained = math.isfinite(a) and math.isfinite(b)
    margin = _sure(freedom) * spread
    clear = math.isinf(a) != math.isinf(b) or abs(a - b) > margin
    figures = f"{_in_words(better, a, of)} {sign(a, b)} {_in_words(worse, b, of)}"
    figures += "" if clear else ", too close to tell"
    stated = [net.row.paper.get(of) for net in (better, worse)]
    paper = "" if None in stated else pair_in_words(*(value or 0.0 for value in stated))
    words = f"{abs(a - b):.2f} points apart, chance makes up to {margin:.2f}" if trained else ""
    return Part(a < b if clear else None, figures, (better, worse), pair_in_words(a, b), paper, words)


def top1_error(net: Entry, metric: Metric) -> tuple[float, float, float]:
    """`median_error` of the first class."""
    return median_error(net, metric, "top1")


def _over_seeds(net: Entry, metric: Metric, of: str) -> float:
    """The standard deviation over a net's seeds, relative to their median; 0 of fewer
    than three."""
    values = errors(net.runs, of, metric)
    median, count = median_over_seeds(values), len(values)
    return statistics.stdev(values) / median if median and count >= ENOUGH else 0.0


def median_error(net: Entry, metric: Metric, of: str, over_seeds: float = OVER_SEEDS) -> tuple[float, float, float]:
    """The median test error in percent, its standard error, and the degrees of freedom
    of that: from the seeds, or where they are fewer than three from what test images
    make of an error, and seeds, by a standard deviation of `over_seeds` of it."""
    values = errors(net.runs, of, metric)
    median, count = median_over_seeds(values), len(values)
    if median is None:
        return math.inf, 0.0, math.inf
    if count >= ENOUGH:
        return median, MEDIAN * statistics.stdev(values) / math.sqrt(count), count - 1
    images = net.runs.train[0].result.test_images
    spread = math.hypot(math.sqrt(median * (100 - median) / images), over_seeds * median)
    return median, spread / math.sqrt(count), math.inf


def _sure(freedom: float) -> float:
    """Student's t, two-sided, for the 95 % of `SURE`; the degrees of freedom need not
    be whole."""
    if math.isinf(freedom):
        return SURE
    from scipy.special import stdtrit  # here, since its import takes longer than a page without seeds

    return float(stdtrit(freedom, 0.975))


def _in_words(net: Entry, error: float, of: str) -> str:
    ours = "did not train" if math.isinf(error) else f"{error:.2f}"
    stated = net.row.paper.get(of)
    return f"{net.row.title} {ours}" + (f" (paper {stated:.2f})" if stated is not None else "")


def markdown(judged: Sequence[tuple[Claim, Sequence[Finding]]], title: str = TITLE) -> str:
    """The findings as Markdown, ending in a newline."""
    lines = [f"# {title}", "", f"{COUNTS} {ASSUMED}"]
    for claim, found in judged:
        lines += ["", f"## {claim.title}", "", f"{claim.words} Here: {claim.criterion}.", ""]
        for finding in found:
            where = f"{finding.where}: " if finding.where else ""
            lines.append(f"- {where}**{finding.verdict}**" + _in_brackets(finding.caveats))
            lines += [f"  - {figures}" for figures in finding.figures]
    return "\n".join(lines) + "\n"


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""

"""The paper's claims, each held against what was measured: confirmed, contradicted, too
close to tell, or not measured.

Runs that are quick, cut off or on other images do not count, and only runs of one
length on the paper's own data are held against each other. What rests on shortened
runs, on fewer seeds or on another depth than the paper's says so.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from suite.registry import label_of
from suite.report.entries import Entry, Metric, errors
from suite.results import samples
from suite.results.derived import median_over_seeds
from suite.tables import spec

TITLE = "The paper's claims, and what was measured"
Verdict = Literal["confirmed", "contradicted", "too close to tell", "not yet measured"]
# Entries of one data set and depth by the rest of the model's name, such as "crelu_bn".
Nets = Mapping[str, Entry]

# "A different order of magnitude" (the paper, of Figure 2).
MAGNITUDE = 10
# Table 1 prints the share of non-zero entries with two decimals.
DECIMALS = 0.005
# Standard errors from which on a difference counts, if they are known: 95 %.
SURE = 1.96
# Standard deviation of a test error over seeds, relative: He et al. 2016 give 6.61 +- 0.16 % over five ResNet-110.
OVER_SEEDS = 0.025
# Standard error of a median over that of a mean, for normal figures: sqrt(pi / 2).
MEDIAN = 1.2533


@dataclass(frozen=True)
class Part:
    """One comparison: whether it holds (None: too close to tell), its figures in words,
    and the nets that it is of.

    Attributes:
        ours, paper: the figures alone, and the paper's where it prints them.
        margin: what the difference is, and what chance makes of it in 95 % of cases.
    """

    holds: bool | None
    figures: str
    nets: tuple[Entry, ...]
    ours: str
    paper: str = ""
    margin: str = ""


@dataclass(frozen=True)
class Claim:
    """What the paper says in `words`, and when it counts as true here.

    Attributes:
        tables: whose rows it is about.
        pairs: nets whose error must be less, each with the one that must have more.
        look: for claims about what is inside: the comparison that the nets' analyses
            allow.
        of: the nets that `look` needs.
    """

    title: str
    words: str
    criterion: str
    tables: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    look: Callable[[Nets], Iterable[Part]] = lambda nets: ()
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A claim on one data set at one depth.

    Attributes:
        where: data set and network, such as "CIFAR-10, ResNet-110"; empty where there
            is no record at all.
        parts: each comparison.
        caveats: how the runs fall short of the paper's.
    """

    where: str
    verdict: Verdict
    parts: tuple[Part, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def figures(self) -> tuple[str, ...]:
        """Each comparison in words."""
        return tuple(part.figures for part in self.parts)

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
        wanted = {key for pair in claim.pairs for key in pair} | set(claim.of)
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
    parts = [compare_errors(a, b, metric) for a, b in pairs if a.counts and b.counts and a.epochs == b.epochs]
    inside = {key: net for key, net in nets.items() if net.counts and net.runs.analyze}
    lacking = len(pairs) - len(parts) + len(set(claim.of) - set(inside))
    parts += claim.look(inside)
    if not parts:
        return Finding(where, "not yet measured")
    notes = [note for part in parts for net in part.nets for note in caveats(net)]
    if lacking:
        notes.append(
            f"{lacking} of {len(pairs) + len(claim.of)} {'nets' if claim.of else 'comparisons'} not yet measured"
        )
    return Finding(where, verdict(parts), tuple(parts), tuple(dict.fromkeys(notes)))


def verdict(parts: Sequence[Part]) -> Verdict:
    if any(part.holds is False for part in parts):
        return "contradicted"
    return "confirmed" if all(part.holds for part in parts) else "too close to tell"


def caveats(net: Entry) -> list[str]:
    """How the runs differ from the paper's, or from what a table of one's own asks
    for."""
    notes = []
    if (epochs := net.epochs) < (whole := spec.recipe_for(net.table, net.row).epochs):
        notes.append(f"shortened runs: {epochs} of {whole} epochs")
    if (seeds := len(net.runs.train)) < net.table.seeds:
        notes.append(f"{seeds} of {net.table.seeds} seeds")
    if net.table.own:
        return notes
    if (papers := spec.load_table(net.table.number).depth) != net.table.depth:
        notes.append(f"ResNet-{net.table.depth}, the paper has ResNet-{papers}")
    return notes


def compare_errors(better: Entry, worse: Entry, metric: Metric, of: str = "top1") -> Part:
    """Whether the first net errs less, in one of the errors that there are. A net that
    did not train errs most."""
    (a, a_error, a_freedom), (b, b_error, b_freedom) = median_error(better, metric, of), median_error(worse, metric, of)
    spread = math.hypot(a_error, b_error)
    share = a_error**4 / a_freedom + b_error**4 / b_freedom
    freedom = spread**4 / share if share else math.inf  # Welch and Satterthwaite
    trained = math.isfinite(a) and math.isfinite(b)
    margin = _sure(freedom) * spread
    clear = math.isinf(a) != math.isinf(b) or abs(a - b) > margin
    figures = f"{_in_words(better, a, of)} {_sign(a, b)} {_in_words(worse, b, of)}"
    figures += "" if clear else ", too close to tell"
    stated = [net.row.paper.get(of) for net in (better, worse)]
    paper = "" if None in stated else _pair(*(value or 0.0 for value in stated))
    words = f"{abs(a - b):.2f} points apart, chance makes up to {margin:.2f}" if trained else ""
    return Part(a < b if clear else None, figures, (better, worse), _pair(a, b), paper, words)


def _sign(a: float, b: float) -> str:
    return "<" if a < b else ">" if a > b else "="


def _pair(a: float, b: float) -> str:
    one, other = ("did not train" if math.isinf(value) else f"{value:.2f}" for value in (a, b))
    return f"{one} {_sign(a, b)} {other}"


def top1_error(net: Entry, metric: Metric) -> tuple[float, float, float]:
    """`median_error` of the first class."""
    return median_error(net, metric, "top1")


def median_error(net: Entry, metric: Metric, of: str) -> tuple[float, float, float]:
    """The median test error in percent, its standard error, and the degrees of freedom
    of that: from the seeds, or where they are fewer than three from what test images
    and seeds usually make of an error."""
    values = errors(net.runs, of, metric)
    median, count = median_over_seeds(values), len(values)
    if median is None:
        return math.inf, 0.0, math.inf
    if count >= 3:
        return median, MEDIAN * statistics.stdev(values) / math.sqrt(count), count - 1
    images = net.runs.train[0].result.test_images
    spread = math.hypot(math.sqrt(median * (100 - median) / images), OVER_SEEDS * median)
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


def _deltas(nets: Nets) -> Iterator[tuple[Entry, list[float]]]:
    """The nets whose analysis has Delta, block by block."""
    for net in nets.values():
        if blocks := net.runs.analyze[0].result.blocks:
            yield net, blocks.delta


def _spread(nets: Nets) -> Iterator[Part]:
    for net, delta in _deltas(nets):
        figures = f"{net.row.model}: Delta from {min(delta):.3g} to {max(delta):.3g} over {len(delta)} blocks"
        ours = f"{min(delta):.3g} to {max(delta):.3g}"
        yield Part(max(delta) < MAGNITUDE * min(delta), figures, (net,), ours, "1 to 5")


def _late(nets: Nets) -> Iterator[Part]:
    for net, delta in _deltas(nets):
        first = 2 * len(delta) // 3
        early, late = samples.median(delta[:first]), samples.median(delta[first:])
        figures = f"{net.row.model}: median Delta {early:.3g} in blocks 1 to {first}, {late:.3g} after them"
        yield Part(late >= MAGNITUDE * early, figures, (net,), f"{early:.3g}, then {late:.3g}", "hardly any, then 10 x")


def _nonzero(net: Entry) -> float:
    return samples.median([record.result.activation.nonzero for record in net.runs.analyze])


def _sparse(nets: Nets) -> Iterator[Part]:
    for fewer, more in (("relu_plain", "relu_bn"), ("relu_np", "relu_bn")):
        if fewer in nets and more in nets and nets[fewer].epochs == nets[more].epochs:
            pair = nets[fewer], nets[more]
            a, b = map(_nonzero, pair)
            figures = f"{_share(pair[0], a)} {'<' if a < b else '>='} {_share(pair[1], b)}"
            stated = _pair(*(net.row.paper["nonzero"] for net in pair))
            yield Part(a < b, figures, pair, _pair(a, b), stated)
    for key in ("crelu_plain", "crelu_np2", "crelu_bn"):
        if key in nets:
            share = _nonzero(nets[key])
            holds, paper = abs(share - 0.5) < DECIMALS, f"{nets[key].row.paper['nonzero']:.2f}"
            yield Part(holds, _share(nets[key], share), (nets[key],), f"{share:.2f}", paper)


def _share(net: Entry, share: float) -> str:
    return f"{net.row.model} {share:.2f} (paper {net.row.paper['nonzero']:.2f})"


CLAIMS = (
    Claim(
        "CReLU helps with BatchNorm",
        "CReLU is an effective add-on to BatchNorm, to improve upon state-of-the-art performance.",
        "the test error with CReLU is less",
        (2, 4),
        (("crelu_bn", "relu_bn"),),
    ),
    Claim(
        "CReLU helps without BatchNorm",
        "CReLU improves the performance of ResNets without normalisation, and with NormProp's variants.",
        "the test error with CReLU is less: plain, without bias, NormProp2, NormProp3",
        (2, 4),
        tuple((f"crelu_{norm}", f"relu_{norm}") for norm in ("plain", "nobias", "np2", "np3")),
    ),
    Claim(
        "CReLU helps at equal size",
        "Models of similar size, made so by fewer filters, are better with CReLU.",
        "the test error with CReLU is less",
        (3,),
        (("w12_crelu_bn", "relu_bn"), ("w24_crelu_bn", "w32_relu_bn")),
    ),
    Claim(
        "NormProp < NormProp2 < BatchNorm",
        "The modified NormProp performs better than the original, but is still not comparable to BatchNorm.",
        "the test error of NormProp2 is less than that of NormProp, and that of BatchNorm less than both",
        (2, 4),
        (("relu_np2", "relu_np"), ("relu_bn", "relu_np"))
        + tuple((f"{act}_bn", f"{act}_{norm}") for act in ("relu", "crelu") for norm in ("np2", "np3")),
    ),
    Claim(
        "BatchNorm spreads Delta over all blocks",
        "With BatchNorm, Delta settles at around 1 to 5 for all residual blocks.",
        f"the greatest Delta of a block is less than {MAGNITUDE} times the least",
        (1,),
        look=_spread,
        of=("relu_bn", "crelu_bn"),
    ),
    Claim(
        "Plain nets learn in the last third",
        "Without BatchNorm there is hardly any Delta in the first 36 of 54 blocks, then another order of magnitude.",
        f"the median Delta of the last third of the blocks is at least {MAGNITUDE} times that of the others",
        (1,),
        look=_late,
        of=("relu_plain", "crelu_plain"),
    ),
    Claim(
        "Non-zero ratio: low without BatchNorm, one half with CReLU",
        "With BatchNorm about half of the last activations are not zero, with plain ReLU 14 %, with CReLU always half.",
        "with ReLU the ratio is less without BatchNorm than with it; with CReLU it is 0.50",
        (1,),
        look=_sparse,
        of=("relu_plain", "relu_np", "relu_bn", "crelu_plain", "crelu_np2", "crelu_bn"),
    ),
)


def markdown(judged: Sequence[tuple[Claim, Sequence[Finding]]], title: str = TITLE) -> str:
    """The findings as Markdown, ending in a newline."""
    lines = [f"# {title}"]
    for claim, found in judged:
        lines += ["", f"## {claim.title}", "", f"{claim.words} Here: {claim.criterion}.", ""]
        for finding in found:
            where = f"{finding.where}: " if finding.where else ""
            lines.append(f"- {where}**{finding.verdict}**" + _in_brackets(finding.caveats))
            lines += [f"  - {figures}" for figures in finding.figures]
    return "\n".join(lines) + "\n"


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""

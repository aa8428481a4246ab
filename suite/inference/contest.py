"""Networks timed against each other: any files and models, in several sittings of fresh
processes that take turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from msgspec import convert

from suite.inference import latency
from suite.inference.latency import Protocol, Request
from suite.results import bootstrap, samples
from suite.results.derived import percent_of_peak
from suite.results.samples import to_seconds
from suite.schema.outcomes import LatencyResult, none_if_unset

# Of each network so many processes are started, one after the other: where its pages lie can make a process faster than
# its twin for all its life. Together 600 runs or more of a network that takes 6 ms. Bursts are short, since a machine
# may have two speeds that last for seconds: the two bursts of a pair are then mostly of one speed.
# The machine decides how many, from the fewest to the most: until the intervals of all ratios are at most `TIGHT` wide.
SITTINGS, USUAL = (3, 10), Protocol(rounds=6, min_seconds=0.2, min_runs=3, max_runs=300, warmup=3)
QUICK_SITTINGS, QUICK = (1, 1), Protocol(rounds=3, min_seconds=0.15, min_runs=3, max_runs=100, warmup=1)
TIGHT = 0.06


@dataclass(frozen=True)
class Entrant:
    """One line of a contest.

    Attributes:
        name: what the user calls it.
        request: how it is run.
        precision: of its file.
        macs: multiply-accumulates of one run; None if that is not known.
        images: whether it takes images, of which `request.batch_size` are in a run.
        notes: what is to be said of it.
    """

    name: str
    request: Request
    precision: str = "fp32"
    macs: int | None = None
    images: bool = True
    notes: tuple[str, ...] = ()


@dataclass
class Measurement:
    """What was measured of an entrant, or the `error` that it ended with.

    Attributes:
        entrant: whose.
        rounds: seconds of its runs, round by round, of all sittings.
        load, first: seconds to load it and of the first run, medians of the sittings.
        provider: as the runtime names it.
        nodes: of its graph by provider, as given out; empty where the runtime does not
            say.
        settings: of the runtime, by their names there.
        notes: what is to be said of its figures.
        median: with its interval, in seconds.
        ratio: of its median to the first entrant's of this batch size, with its
            interval; None for that one.
        share: of the machine's peak; None where MACs or peak are not known.
        others: share of the cores' time that other processes took meanwhile, 0 to 1, in
            the sitting in which it was greatest.
        error: in one line.
    """

    entrant: Entrant
    rounds: list[list[float]] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    provider: str = ""
    nodes: dict[str, int] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    median: tuple[float, float, float] | None = None
    ratio: tuple[float, float, float] | None = None
    share: float | None = None
    others: float = 0.0
    error: str | None = None

    @property
    def samples(self) -> list[float]:
        """Seconds of all runs."""
        return [seconds for each in self.rounds for seconds in each]


def time_in_turns(
    entrants: Sequence[Entrant],
    quick: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> list[Measurement]:
    """Time entrants against each other, and those of one batch size against the first
    of that size.

    One that fails does not take the others with it.

    Args:
        entrants: what to time, in the order in which the outcomes are returned.
        quick: fewer and shorter rounds, for a first look.
        progress: called with bursts done, bursts in all, and a note.
    """
    outcomes = [Measurement(entrant, notes=list(entrant.notes)) for entrant in entrants]
    (fewest, most), protocol = (QUICK_SITTINGS, QUICK) if quick else (SITTINGS, USUAL)
    groups: list[list[int]] = []
    for batch_size in dict.fromkeys(entrant.request.batch_size for entrant in entrants):
        same = [index for index, each in enumerate(entrants) if each.request.batch_size == batch_size]
        # The first takes part in every group, so that each has met it at the same time.
        step = latency.most_alive([entrants[index].request for index in same]) - 1
        groups += [same[:1] + same[start : start + step] for start in range(1, max(len(same), 2), step)]
    total = protocol.rounds * fewest * sum(map(len, groups))
    done = 0
    for group in groups:
        paired: dict[int, list[list[list[float]]]] = {index: [] for index in group}
        for sitting in range(most):
            bursts = protocol.rounds * len(group)
            if sitting >= fewest:
                if _are_ratios_certain([outcomes[index] for index in group]):
                    break
                total += bursts
            order = group[::-1] if sitting % 2 else group

            def say(count: int, of: int, note: str, before: int = done, total: int = total) -> None:
                progress(before + count, total, note)

            requests = [replace(entrants[index].request, protocol=protocol) for index in order]
            for index, answer in zip(order, latency.measure(requests, say, len(group)), strict=True):
                paired[index].append(_take(outcomes[index], answer))
            done += bursts
            for index in group[1:]:
                _compare(outcomes[index], paired[group[0]], paired[index])
    for outcome in outcomes:
        if outcome.others >= samples.BUSY:
            outcome.notes.append(f"busy: other processes took {outcome.others:.0%} of the cores meanwhile")
        outcome.notes = list(dict.fromkeys(outcome.notes))
        if outcome.error is None:
            outcome.median = _interval(outcome)
    return outcomes


def _are_ratios_certain(outcomes: Sequence[Measurement]) -> bool:
    """Whether the interval of each ratio is narrow enough; one whose entrant has failed
    is not waited for."""
    ratios = [outcome.ratio for outcome in outcomes if outcome.error is None and outcome.ratio is not None]
    return all(high - low <= TIGHT * ratio for ratio, low, high in ratios)


def _take(outcome: Measurement, answer: LatencyResult | RuntimeError) -> list[list[float]]:
    """Add one sitting to an outcome; returns its rounds."""
    if isinstance(answer, latency.NotFiniteError):
        outcome.notes.append("gave values that are not finite on these inputs")
        answer = answer.answer
    if isinstance(answer, RuntimeError):
        outcome.error = str(answer)
        return []
    found = to_seconds(answer)
    rounds = [list(each) for each in found.by_round()]
    outcome.rounds += rounds
    outcome.load.append(found.load_seconds or 0.0)
    outcome.first.append(found.first_run_seconds or 0.0)
    outcome.provider, outcome.nodes = str(answer.provider), convert(none_if_unset(answer.nodes) or {}, dict[str, int])
    outcome.settings = convert(none_if_unset(answer.settings) or {}, dict[str, object])
    outcome.others = max(outcome.others, found.others)
    if found.throttled:
        outcome.notes.append("the container's CPU quota stopped the machine meanwhile")
    return rounds


def _compare(outcome: Measurement, first: Sequence[list[list[float]]], second: Sequence[list[list[float]]]) -> None:
    """The ratio of two entrants: the median over pairs of rounds that were close in
    time. The interval is a percentile bootstrap over these pairs, and draws what
    processes of one file differ by."""
    pairs = [
        samples.median(b) / samples.median(a)
        for before, after in zip(first, second, strict=True)
        for a, b in zip(before, after, strict=False)
    ]
    if not pairs or outcome.error is not None:
        return
    random = np.random.default_rng(0)
    drawn = bootstrap.resample_values(np.array(pairs), random)
    low, high = bootstrap.interval(drawn * bootstrap.resample_process_factors(random, 2 / len(second)))
    outcome.ratio = (samples.median(pairs), low, high)


def _interval(outcome: Measurement) -> tuple[float, float, float]:
    """The median of all runs with its interval."""
    random = np.random.default_rng(0)
    drawn = bootstrap.resample_rounds([np.array(each) for each in outcome.rounds], random)
    low, high = bootstrap.interval(drawn * bootstrap.resample_process_factors(random, 1 / len(outcome.load)))
    return samples.median(outcome.samples), low, high


def add_peak_shares(outcomes: Sequence[Measurement], report: Callable[[str], None] = lambda text: None) -> None:
    """Give each outcome its share of what the machine can do on its provider, in its
    precision and with its threads; none where that cannot be measured."""
    peaks: dict[tuple[str, int, str], float | None] = {}
    for outcome in outcomes:
        entrant = outcome.entrant
        if outcome.median is None or entrant.macs is None or entrant.precision not in ("fp32", "fp16", "int8"):
            continue
        key = entrant.request.provider, entrant.request.threads, entrant.precision
        if key not in peaks:
            report(f"what {key[0]} can do in {key[2]}")
            try:
                peaks[key] = latency.measure_peak(*key).flops
            except RuntimeError:
                peaks[key] = None
        if peak := peaks[key]:
            outcome.share = percent_of_peak(entrant.macs, outcome.median[0], peak) / 100


def find_slower(outcomes: Sequence[Measurement], allowed: float) -> list[Measurement]:
    """Those that are slower than the first by more than this share, beyond the interval
    of the ratio."""
    return [each for each in outcomes if each.ratio is not None and each.ratio[1] > 1 + allowed]

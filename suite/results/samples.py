"""Raw samples as records keep them, and their statistics, which are computed where they
are shown and never kept."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from math import floor, sqrt
from typing import Any

from msgspec import UNSET, Struct

from suite.schema.outcomes import LatencyResult, none_if_unset

# Fewest samples for a percentile, by MLPerf's rule of 99 % confidence.
SAMPLES_FOR = {50: 1, 90: 64, 95: 130, 99: 662}

# Share of the cores' time, taken by other processes meanwhile, from which on a timing is said to be of a busy machine.
BUSY = 0.1


def quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The values below which these shares of all lie, interpolated between
    neighbours."""
    ordered = sorted(values)
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    return found


def median(values: Sequence[float]) -> float:
    """The value below which half of all lie."""
    return quantiles(values, (0.5,))[0]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Those of "p50", "p90", "p95" and "p99" for which there are enough samples."""
    known = [percent for percent, fewest in SAMPLES_FOR.items() if len(values) >= fewest]
    shares = [percent / 100 for percent in known]
    return {f"p{percent}": value for percent, value in zip(known, quantiles(values, shares), strict=True)}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the two values between which the true one lies in 19 of 20 cases,
    whatever the distribution: those which are as far from the middle as the number of
    heads can be in so many flips of a coin. That needs six values; the least and the
    greatest of fewer are returned, and hold less often."""
    ordered = sorted(values)
    rank = max(0, floor((len(ordered) - 1) / 2 - 0.98 * sqrt(len(ordered))))
    return median(ordered), ordered[rank], ordered[-1 - rank]


class LatencySamples(Struct, frozen=True, kw_only=True, gc=False):
    """A timing as readers are given it, whatever layout its record has.

    Attributes:
        samples: the seconds of all runs.
        rounds: how many of them are of each round, in order; none where rounds are not
            known.
        host_samples: seconds of runs from host memory to host memory, if there are any.
        throttled: how often a container's CPU quota stopped the machine.
        others: share of the cores' time that other processes took meanwhile, 0 to 1; 0
            if not known.
        load_seconds, first_run_seconds: of loading, and of the first run; None if not
            known.
    """

    samples: "array[float]"
    rounds: tuple[int, ...]
    host_samples: "array[float]"
    throttled: int
    others: float
    load_seconds: float | None
    first_run_seconds: float | None

    @property
    def median(self) -> float:
        """Of the seconds of all runs."""
        return median(self.samples)

    def by_round(self) -> "list[array[float]]":
        """The seconds of each round."""
        ends = [0, *accumulate(self.rounds)]
        return [self.samples[start:end] for start, end in pairwise(ends)]


def to_seconds(result: LatencyResult) -> LatencySamples:
    """A latency in seconds, to the nanosecond where it was kept in them."""
    rounds: Sequence[Sequence[float]] = none_if_unset(result.rounds) or ()
    samples: Sequence[float] = none_if_unset(result.samples) or ()
    if result.rounds_ns is not UNSET:
        rounds = [_seconds(each) for each in none_if_unset(result.rounds_ns) or ()]
        samples = list(chain(*rounds))
    elif result.samples_ns is not UNSET:
        samples = _seconds(none_if_unset(result.samples_ns) or ())
    host = _seconds(none_if_unset(result.host_samples_ns) or ()) or none_if_unset(result.host_samples) or ()
    return LatencySamples(
        samples=array("d", samples),
        rounds=tuple(map(len, rounds)),
        host_samples=array("d", host),
        throttled=none_if_unset(result.throttled) or 0,
        others=none_if_unset(result.others) or 0.0,
        load_seconds=none_if_unset(result.load_seconds),
        first_run_seconds=none_if_unset(result.first_run_seconds),
    )


def to_record(timed: Mapping[str, Any]) -> dict[str, Any]:
    """A timing as its record keeps it: each run once, in whole nanoseconds, which is
    what clocks count in.

    Args:
        timed: `samples`, the seconds of all runs; `rounds`, the same round by round, if
            that is known; `host_samples`, if there are any; and whatever else was
            found, which stays as it is.

    Returns:
        `rounds_ns`, or `samples_ns` where no rounds are known, and `host_samples_ns` in
        the place of these.
    """
    kept = {name: value for name, value in timed.items() if name not in ("samples", "rounds", "host_samples")}
    if "rounds" in timed:
        kept["rounds_ns"] = [to_nanoseconds(each) for each in timed["rounds"]]
    elif "samples" in timed:
        kept["samples_ns"] = to_nanoseconds(timed["samples"])
    if "host_samples" in timed:
        kept["host_samples_ns"] = to_nanoseconds(timed["host_samples"])
    return kept


def to_nanoseconds(seconds: Iterable[float]) -> list[int]:
    """Seconds as records keep them: in whole nanoseconds, which is what clocks count
    in."""
    return [round(1e9 * each) for each in seconds]


def _seconds(nanoseconds: Iterable[int]) -> list[float]:
    return [each / 1e9 for each in nanoseconds]

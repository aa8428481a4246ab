"""Raw samples as records keep them, and their statistics, which are computed where they are shown and never kept."""

import statistics
from collections.abc import Mapping, Sequence
from math import floor, sqrt
from typing import Any

# Fewest samples for a percentile, by MLPerf's rule of 99 % confidence.
SAMPLES_FOR = {50: 1, 90: 64, 95: 130, 99: 662}


def quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The values below which these shares of all lie, interpolated between neighbours."""
    ordered = sorted(values)
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Those of "p50", "p90", "p95" and "p99" for which there are enough samples."""
    known = [percent for percent, fewest in SAMPLES_FOR.items() if len(values) >= fewest]
    shares = [percent / 100 for percent in known]
    return {f"p{percent}": value for percent, value in zip(known, quantiles(values, shares), strict=True)}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the two values between which the true one lies in 19 of 20 cases, whatever the distribution:
    those which are as far from the middle as the number of heads can be in so many flips of a coin. That needs six
    values; the least and the greatest of fewer are returned, and hold less often."""
    ordered = sorted(values)
    rank = max(0, floor((len(ordered) - 1) / 2 - 0.98 * sqrt(len(ordered))))
    return statistics.median(ordered), ordered[rank], ordered[-1 - rank]


def packed(timed: Mapping[str, Any]) -> dict[str, Any]:
    """A timing as its record keeps it: each run once, in whole nanoseconds, which is what clocks count in.

    Args:
        timed: `samples`, the seconds of all runs; `rounds`, the same round by round, if that is known; `host_samples`,
            if there are any; and whatever else was found, which stays as it is.

    Returns:
        `rounds_ns`, or `samples_ns` where no rounds are known, and `host_samples_ns` in the place of these.
    """
    kept = {name: value for name, value in timed.items() if name not in ("samples", "rounds", "host_samples")}
    if "rounds" in timed:
        kept["rounds_ns"] = [_nanoseconds(each) for each in timed["rounds"]]
    elif "samples" in timed:
        kept["samples_ns"] = _nanoseconds(timed["samples"])
    if "host_samples" in timed:
        kept["host_samples_ns"] = _nanoseconds(timed["host_samples"])
    return kept


def unpacked(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What `packed` was given, to the nanosecond. Results of before it, which hold seconds, stay as they are."""
    timed = {name: value for name, value in kept.items() if name not in ("samples_ns", "rounds_ns", "host_samples_ns")}
    if "rounds_ns" in kept:
        timed["rounds"] = [_seconds(each) for each in kept["rounds_ns"]]
        timed["samples"] = [seconds for each in timed["rounds"] for seconds in each]
    elif "samples_ns" in kept:
        timed["samples"] = _seconds(kept["samples_ns"])
    if "host_samples_ns" in kept:
        timed["host_samples"] = _seconds(kept["host_samples_ns"])
    return timed


def _nanoseconds(seconds: Sequence[float]) -> list[int]:
    return [round(1e9 * each) for each in seconds]


def _seconds(nanoseconds: Sequence[int]) -> list[float]:
    return [each / 1e9 for each in nanoseconds]

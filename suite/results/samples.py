"""Statistics of raw samples, computed where they are shown and never kept."""

import statistics
from collections.abc import Sequence
from math import floor, sqrt

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

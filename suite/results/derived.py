"""Figures computed from those of records: medians over seeds, ratios of latencies,
shares of a peak, limits."""

from collections.abc import Iterable
from math import sqrt

from suite.results.samples import LatencySamples, median
from suite.tables.spec import LOSS


def median_over_seeds(values: Iterable[float]) -> float | None:
    """The median of what was found with each seed, which is what the paper reports;
    None if there is nothing."""
    found = list(values)
    return median(found) if found else None


def latency_ratio(timed: LatencySamples, base: LatencySamples) -> float:
    """The median latency of `timed` over that of `base`: 2.0 if it takes twice as
    long."""
    return timed.median / base.median


def throughput_ratio(timed: LatencySamples, images: int, base: LatencySamples, base_images: int) -> float:
    """Images a second of `timed` over those of `base`, by their median latencies.

    Args:
        timed, base: two timings.
        images, base_images: how many images a run of each takes.
    """
    return (images / timed.median) / (base_images / base.median)


def percent_of_peak(macs: int, seconds: float, flops: float) -> float:
    """What a run reaches of the most that its machine can do, in percent.

    Args:
        macs: multiply-accumulates of the whole run, each a multiplication and an
            addition.
        seconds: that the run takes.
        flops: multiplications and additions a second, at most.
    """
    return 100 * 2 * macs / seconds / flops


def allowed_loss(right: int, lost: int, won: int) -> float:
    """How many right answers a file in reduced precision may lose on balance: 1 % of
    torch's, or as many as chance explains, which is two standard deviations of as many
    coins as answers changed.

    Args:
        right: answers of torch.
        lost, won: answers that only torch, or only the file has right.
    """
    return max(LOSS * right, 2 * sqrt(abs(lost + won)))

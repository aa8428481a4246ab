"""How sure a median of timings is: intervals of 95 % by resampling whole rounds, and by
what processes differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
CONFIDENCE = 0.95
# Standard deviation of a process from its twins, relative: where its pages lie can make it slower for all its life. Of
# 24 processes of one file that took turns it was 0.003 for ResNet-20, 0.009 for ResNet-50 and 0.005 for its int8 file.
TWINS = 0.009

Values = NDArray[np.float64]


def resample_rounds(rounds: Sequence[NDArray[Any]], random: np.random.Generator) -> Values:
    """Medians of all runs (RESAMPLES,), of which whole rounds are drawn: runs of one
    share the machine's mood."""
    draws = random.integers(0, len(rounds), (RESAMPLES, len(rounds)))
    values = np.concatenate([np.asarray(each, np.float64) for each in rounds])
    order = np.argsort(values)
    values, round_of = values[order], np.repeat(np.arange(len(rounds)), [len(each) for each in rounds])[order]
    # A value counts as often as its round was drawn, so that sorting once serves all draws.
    return np.array([_weighted_median(values, np.bincount(draw, minlength=len(rounds))[round_of]) for draw in draws])


def _weighted_median(values: Values, counts: NDArray[np.intp]) -> np.float64:
    """The median of ascending values, each so often."""
    up_to = np.cumsum(counts)
    low, high = values[np.searchsorted(up_to, [(up_to[-1] - 1) // 2, up_to[-1] // 2], side="right")]
    return np.float64((low + high) / 2)


def resample_values(values: Values, random: np.random.Generator) -> Values:
    """Medians (RESAMPLES,) of single values that are drawn."""
    found: Values = np.median(values[random.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
    return found


def resample_process_factors(random: np.random.Generator, share: float) -> Values:
    """Factors (RESAMPLES,) by which processes of one file differ: the variance is this
    `share` of one process's."""
    factors: Values = np.exp(TWINS * np.sqrt(share) * random.standard_normal(RESAMPLES))
    return factors


def interval(drawn: Values) -> tuple[float, float]:
    """The interval of 95 % of what was drawn."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)

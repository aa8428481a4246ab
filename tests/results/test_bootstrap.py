"""Medians of rounds that are drawn."""

import numpy as np
import pytest

from suite.results import bootstrap


@pytest.mark.parametrize("lengths", [[1], [2], [3, 3], [4, 1, 2], [5] * 24, [1, 2, 3, 4, 5, 6, 7]])
def test_medians_are_those_of_the_runs_of_the_rounds_drawn(lengths: list[int]) -> None:
    random = np.random.default_rng(0)
    # Few distinct values, so that many are equal.
    rounds = [random.integers(0, 9, length) / 7 for length in lengths]
    drawn = np.random.default_rng(1).integers(0, len(rounds), (bootstrap.RESAMPLES, len(rounds)))
    expected = [np.median(np.concatenate([rounds[index] for index in draw])) for draw in drawn]
    assert bootstrap.resample_rounds(rounds, np.random.default_rng(1)).tolist() == expected

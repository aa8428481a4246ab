"""Figures that are computed from those of records, each stated by hand."""

from array import array

import pytest

from suite.results.derived import allowed_loss, latency_ratio, median_over_seeds, percent_of_peak, throughput_ratio
from suite.results.samples import LatencySamples


def timed(*seconds: float) -> LatencySamples:
    samples = array("d", seconds)
    return LatencySamples(
        samples=samples,
        rounds=(),
        host_samples=array("d"),
        throttled=0,
        others=0.0,
        load_seconds=None,
        first_run_seconds=None,
    )


def test_the_figure_of_several_seeds_is_their_median() -> None:
    assert median_over_seeds([6.0, 5.0, 9.0]) == 6.0
    assert median_over_seeds([6.0, 5.0]) == 5.5
    assert median_over_seeds([]) is None


def test_a_ratio_of_latencies_is_that_of_the_medians() -> None:
    assert timed(3.0, 1.0, 50.0).median == 3.0
    assert latency_ratio(timed(3.0, 1.0, 50.0), timed(2.0, 1.0)) == 2.0


def test_a_ratio_of_throughputs_counts_the_images_of_each_run() -> None:
    # 8 images in 4 s are 2 images a second, 1 image in 2 s is half of one.
    assert throughput_ratio(timed(4.0), 8, timed(2.0), 1) == 4.0


def test_a_multiply_accumulate_is_two_operations_of_the_peak() -> None:
    # 1e9 multiply-accumulates in 10 ms are 2e11 operations a second.
    assert percent_of_peak(10**9, 0.010, 4e11) == pytest.approx(50)


def test_reduced_precision_may_lose_one_percent_or_what_chance_explains() -> None:
    assert allowed_loss(10_000, 0, 0) == 100
    assert allowed_loss(100, 9, 7) == 8  # two standard deviations of 16 coins

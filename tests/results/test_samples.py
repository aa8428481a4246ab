import msgspec
import numpy as np
import pytest

from suite.results.samples import interval, percentiles, quantiles, to_record, to_seconds
from suite.schema.outcomes import LatencyResult


def test_quantiles_are_interpolated_between_samples() -> None:
    assert quantiles([0.4, 0.1, 0.2, 0.3], (0, 0.25, 0.5, 1)) == pytest.approx([0.1, 0.175, 0.25, 0.4])


def test_the_interval_of_a_median_holds_it_in_19_of_20_cases() -> None:
    random = np.random.default_rng(0)
    for count in (9, 24, 100):
        intervals = [interval(list(random.exponential(1.0, count))) for _ in range(1000)]
        held = sum(low <= np.log(2) <= high for _, low, high in intervals)
        assert 930 <= held <= 985
    assert interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert interval([1.5]) == (1.5, 1.5, 1.5)


def test_percentiles_are_told_where_there_are_samples_enough() -> None:
    values = [float(value) for value in range(662)]
    assert percentiles(values[:63]) == {"p50": 31.0}
    assert list(percentiles(values[:64])) == list(percentiles(values[:129])) == ["p50", "p90"]
    assert list(percentiles(values[:130])) == list(percentiles(values[:661])) == ["p50", "p90", "p95"]
    found = percentiles(values[::-1])
    assert found == {f"p{p}": pytest.approx(np.percentile(values, p)) for p in (50, 90, 95, 99)}


def test_a_timing_is_kept_run_by_run_in_whole_nanoseconds() -> None:
    measured = {"rounds": [[0.0121], [0.5, 1e-9]], "samples": [0.0121, 0.5, 1e-9], "host_samples": [2.0]}
    kept = {"rounds_ns": [[12100000], [500000000, 1]], "host_samples_ns": [2000000000]}
    assert to_record(measured | {"provider": "x"}) == kept | {"provider": "x"}
    for form in (kept, measured):  # that of the first format too
        read = to_seconds(msgspec.convert(form, LatencyResult))
        assert list(read.samples) == measured["samples"]
        assert read.rounds == (1, 2)
        assert list(map(list, read.by_round())) == measured["rounds"]
        assert list(read.host_samples) == measured["host_samples"]
    alone = to_seconds(msgspec.convert(to_record({"samples": [0.0121]}), LatencyResult))
    assert (list(alone.samples), alone.rounds, alone.by_round()) == ([0.0121], (), [])

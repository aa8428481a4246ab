"""Axes and curves of a plot."""

import pytest

from suite.report.drawing import POINTS, number_axis, thin_out


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-9])
def test_an_axis_of_one_value_has_room_on_both_sides_or_begins_at_zero(value: float) -> None:
    found = number_axis("error", [value])
    assert found.low <= value < found.high
    assert found.ticks
    assert all(found.low <= tick <= found.high for tick in found.ticks)


@pytest.mark.parametrize(("low", "high"), [(1e-30, 1e30), (0.5, 2e14), (3.0, 4.0), (1.0, 1.0 + 1e-3)])
def test_a_logarithmic_axis_has_a_few_round_marks_however_far_it_goes(low: float, high: float) -> None:
    found = number_axis("Delta", [low, high], log=True)
    assert found.log
    assert 1 <= len(found.ticks) <= 10
    assert found.low <= low < high <= found.high


def test_an_axis_with_a_value_that_has_no_logarithm_is_linear() -> None:
    assert not number_axis("Delta", [0.0, 1.0], log=True).log


def test_a_long_curve_is_thinned_to_its_last_point() -> None:
    curve = [[float(n), float(n)] for n in range(10_001)]
    thinned = thin_out(curve)
    assert len(thinned) <= POINTS + 1
    assert (thinned[0], thinned[-1]) == (curve[0], curve[-1])
    assert thin_out(curve[:50]) == curve[:50]

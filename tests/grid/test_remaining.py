"""How long the work that is left will take."""

import pytest

from suite.grid.claims import Claim
from suite.grid.remaining import GUESS, Planned, TimeLeft, time_left
from suite.results.holder import Holder


def planned(kind: str, *models: str) -> list[Planned]:
    return [Planned(kind, f"{kind} {model}", model, f"{model} on digits10: {kind}") for model in models]


def claimed(stage: Planned, done: int, left: float, process: int = 1) -> Claim:
    """A stage under way, of ten steps."""
    return Claim(stage.key, stage.kind, stage.name, 1, Holder("h", "", process, ""), done=done, total=10, left=left)


SMALL, LARGE, LARGER = planned("train", "resnet20_relu_bn", "resnet20_crelu_bn", "resnet20_w32_relu_bn")


def test_the_time_left_grows_with_the_networks_that_are_left() -> None:
    alike = time_left([SMALL, LARGE], {SMALL.key}, [], {SMALL.key: 10.0})
    assert alike == TimeLeft(pytest.approx(15.0)), "half of it grows with the network, until two sizes have been seen"
    took = {SMALL.key: 10.0, LARGE.key: 18.0}
    assert time_left([SMALL, LARGE, LARGER], set(took), [], took) == TimeLeft(pytest.approx(34.0))


def test_of_a_stage_under_way_the_time_left_is_that_beside_its_bar() -> None:
    first = claimed(SMALL, done=1, left=600.0)
    assert time_left([SMALL, LARGE], {LARGE.key}, [first], {LARGE.key: 10.0}) == TimeLeft(600.0)


def test_before_any_training_has_ended_those_under_way_tell_of_the_others() -> None:
    assert time_left([SMALL, LARGE], set(), [], {}) is None
    assert time_left([SMALL, LARGE], set(), [claimed(SMALL, done=0, left=0.0)], {}) is None, "no step was timed yet"
    under_way = claimed(SMALL, done=4, left=60.0)  # 100 s in all, and 150 s for the larger network
    assert time_left([SMALL, LARGE], set(), [under_way], {}) == TimeLeft(pytest.approx(210.0))


@pytest.mark.parametrize("kind", ["latency", "train"])
def test_what_a_process_does_at_the_same_time_counts_once(kind: str) -> None:
    """Timings in turns, and a pack of trainings: beside each stands the time of all."""
    stages = planned(kind, *(f"resnet20_{norm}" for norm in "abcdefgh"))
    under_way = [claimed(stage, done=5, left=20.0) for stage in stages[:4]]
    assert time_left(stages, set(), under_way, {}) == TimeLeft(pytest.approx(20.0 + 4 * 40.0 / 4))
    apart = [claimed(stage, 5, 20.0, process) for process, stage in enumerate(stages[:4])]
    workers = 4 if kind == "train" else 1  # timings take turns, whoever else is at work
    assert time_left(stages, set(), apart, {}) == TimeLeft(pytest.approx((4 * 20.0 + 4 * 40.0) / workers))


def test_the_time_left_names_what_it_leaves_out() -> None:
    exports, timings = planned("export", "resnet20_relu_bn"), planned("latency", "resnet20_relu_bn")
    left = time_left([SMALL, LARGE, *exports, *timings], {SMALL.key}, [], {SMALL.key: 10.0})
    assert left == TimeLeft(pytest.approx(15.0 + GUESS), ("export",)), "of a timing a guess will do"
    assert str(left) == "at least 20 s"
    assert time_left([SMALL, *exports], {SMALL.key}, [], {SMALL.key: 10.0}) is None, "nothing is known of what is left"
    took = {SMALL.key: 10.0, LARGE.key: 10.0}
    assert str(time_left([SMALL, LARGE, *timings], set(took), [], took)) == "about 5 s"

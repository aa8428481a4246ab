"""What comes of stages that fail: a failure of each is kept, and those after them are done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from suite import distributed, progress
from suite.errors import InputError
from suite.grid.perform import Performer
from suite.grid.plan import RunOptions, Stage
from suite.results.store import Store
from suite.schema.outcomes import ConvertResult, Disagreement, ParityResult

EXPORT = Stage("export", None, {"model": "m", "version": 4, "train": "t"})
PROTOCOL = {"rounds": 1, "min_seconds": 0, "min_runs": 1, "max_runs": 1, "warmup": 0}
TIMED = {"runtime": "onnxruntime", "provider": "cpu", "batch_size": 1, "size": 32, "threads": 1, "protocol": PROTOCOL}
TIMINGS = [Stage("latency", None, {"model": name, "version": 3, **TIMED}, (EXPORT,)) for name in ("first", "second")]
PARITY = Stage("parity", None, {"model": "m", "version": 1}, (EXPORT, EXPORT))
FIGURES: dict[str, Any] = {"passed": False, "images": 1, "difference": 0.0, "scale": 1.0, "agreement": 0.0, "ties": 0}


@pytest.fixture
def performer(tmp_path: Path) -> Performer:
    return Performer(RunOptions(2, tmp_path), Store(tmp_path), distributed.ALONE, progress.Silent(1))


def settle(performer: Performer, *stages: Stage) -> list[tuple[str, bool]]:
    """Do stages; returns of each the model and whether it is done."""
    told: list[tuple[str, bool]] = []
    performer.do(stages, lambda stage, succeeded: told.append((stage.inputs["model"], succeeded)))
    return told


def reasons(performer: Performer) -> dict[str, str]:
    return {failure.model: failure.reason for failure in performer.store.failures()}


def ending_in(found: Struct) -> Callable[..., Struct]:
    return lambda stage, folder, step: found


def test_timings_that_cannot_begin_fail_each_and_leave_those_after_them(performer: Performer) -> None:
    assert settle(performer, *TIMINGS) == [("first", False), ("second", False)]
    gone = reasons(performer)
    assert sorted(gone) == ["first", "second"]
    assert all("its record or files are gone" in reason for reason in gone.values())
    assert settle(performer, PARITY) == [("m", False)]  # which fails in the same way
    assert "its record or files are gone" in reasons(performer)["m"]


def test_a_process_that_cannot_start_fails_the_timings_that_it_was_for(
    performer: Performer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*arguments: object) -> list[Struct]:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(performer.stages, "latency", no_process)
    assert settle(performer, *TIMINGS) == [("first", False), ("second", False)]
    assert set(reasons(performer).values()) == {"BlockingIOError: [Errno 11] Resource temporarily unavailable"}


def test_what_the_user_gave_amiss_ends_timings_too(performer: Performer, monkeypatch: pytest.MonkeyPatch) -> None:
    def amiss(*arguments: object) -> list[Struct]:
        raise InputError("--import: no such module")

    monkeypatch.setattr(performer.stages, "latency", amiss)
    with pytest.raises(InputError, match="no such module"):
        settle(performer, *TIMINGS)
    assert reasons(performer) == {}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            ParityResult(**FIGURES, max_logit_difference=float("inf")),
            "ValueError: max_logit_difference is inf, which no record can hold",
        ),
        (
            ParityResult(**FIGURES | {"difference": float("nan")}, max_logit_difference=0.0),
            "ValueError: difference is nan, which no record can hold",
        ),
        (
            ConvertResult(greatest_activation=float("-inf")),
            "ValueError: greatest_activation is -inf, which no record can hold",
        ),
    ],
)
def test_a_figure_that_is_not_finite_fails_its_stage_and_is_named(
    found: Struct, reason: str, performer: Performer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performer, "_single", {"parity": ending_in(found)})
    assert settle(performer, PARITY) == [("m", False)]
    assert reasons(performer) == {"m": reason}


def test_a_process_that_only_helps_decides_like_the_first_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = Performer(RunOptions(2, tmp_path), Store(tmp_path), distributed.Group(rank=1, size=2), progress.Silent(1))
    found = ParityResult(**FIGURES, max_logit_difference=float("inf"))
    monkeypatch.setattr(helper, "_single", {"parity": ending_in(found)})
    assert settle(helper, PARITY) == [("m", False)]
    assert reasons(helper) == {}, "which the first keeps"


def test_a_figure_deep_within_a_result_is_named_by_its_place(
    performer: Performer, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = [Disagreement(image=3, margin=0.5), Disagreement(image=5, margin=float("inf"))]
    found = ParityResult(**FIGURES, max_logit_difference=0.0, disagreements=apart)
    monkeypatch.setattr(performer, "_single", {"parity": ending_in(found)})
    assert settle(performer, PARITY) == [("m", False)]
    assert reasons(performer) == {"m": "ValueError: disagreements[1].margin is inf, which no record can hold"}

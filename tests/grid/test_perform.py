"""What comes of stages that fail: a failure of each is kept, and those after them are done."""

from pathlib import Path

import pytest
from msgspec import Struct

from suite import distributed, progress
from suite.errors import InputError
from suite.grid.perform import Performer
from suite.grid.plan import RunOptions, Stage
from suite.results.store import Store

EXPORT = Stage("export", None, {"model": "m", "version": 4, "train": "t"})
PROTOCOL = {"rounds": 1, "min_seconds": 0, "min_runs": 1, "max_runs": 1, "warmup": 0}
TIMED = {"runtime": "onnxruntime", "provider": "cpu", "batch_size": 1, "size": 32, "threads": 1, "protocol": PROTOCOL}
TIMINGS = [Stage("latency", None, {"model": name, "version": 3, **TIMED}, (EXPORT,)) for name in ("first", "second")]
PARITY = Stage("parity", None, {"model": "m", "version": 1}, (EXPORT, EXPORT))


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

"""What `suite status` says of a folder."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from suite import env
from suite.errors import InputError
from suite.grid import claims as claims_module
from suite.grid import remaining, status
from suite.grid.claims import Claims, Presence
from suite.grid.plan import Grid, RunOptions, Stage, plan
from suite.progress import lines
from suite.results.store import Store


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return plan(RunOptions(2, tmp_path, rows=("resnet110_relu_bn@cifar10",), batch_sizes=(1,), seeds=3))


@pytest.fixture
def store(tmp_path: Path, grid: Grid) -> Store:
    """A folder on which that was begun: one cell trained, one failed, one under way elsewhere."""
    store = Store(tmp_path)
    store.save_plan(status.plan_of(grid, ["python", "-m", "suite", "run", "--table", "2"]))
    return store


def trainings(grid: Grid) -> list[Stage]:
    return [stage for stage in grid.stages if stage.kind == "train"]


def test_status_tells_done_under_way_failed_and_the_time_left(grid: Grid, store: Store, tmp_path: Path) -> None:
    done, fails, goes_on = trainings(grid)
    (before,) = status.read(store)
    assert before.time_left is None
    for stage in grid.stages:
        if stage.cell is grid.cells[0] or stage.kind == "peak":
            store.put(stage.kind, stage.inputs, {}, {}, {"seconds": 10.0})
    store.fail("train", fails.inputs, "MemoryError: no room")
    with Claims(tmp_path) as claims:
        assert claims.take(goes_on)
        (found,) = status.read(store)
        text = status.render([found])
    assert found.done == {s.key for s in grid.stages if s.cell is grid.cells[0] or s.kind == "peak"}
    assert [claim.key for claim in found.under_way] == [goes_on.key]
    assert found.failed == {fails.key: "MemoryError: no room"}
    left = len(grid.stages) - len(found.done) - 1
    assert found.time_left == remaining.TimeLeft(pytest.approx(10.0 * left))
    assert "-m suite run --table 2" in text
    assert "train 1/3" in text
    assert "failed:\n    resnet110_relu_bn on digits10 seed 1: train: MemoryError: no room" in text
    assert "resnet110_relu_bn on digits10 seed 2: train" in text
    assert "nobody is at it" in status.render(status.read(store))  # the claim was given up
    assert done.key in found.done


def test_a_table_says_how_many_stages_are_under_way(
    grid: Grid, store: Store, tmp_path: Path, suite: Callable[..., tuple[int, str, str]]
) -> None:
    first, second, _ = trainings(grid)
    command = ["show", "--table", "2", "--results", str(tmp_path)]
    with Claims(tmp_path) as claims:
        assert claims.take(first)
        assert f"1 stage is under way in {tmp_path}, and stored when done; how far: " in suite(*command)[2]
        assert claims.take(second)
        assert f"2 stages are under way in {tmp_path}, and stored when done; how far: " in suite(*command)[2]
        (path, _) = (tmp_path / "claims").glob("*.json")
        claim = json.loads(path.read_text())
        claim["holder"] |= {"host": "lent", "boot": "another"}
        path.write_text(json.dumps(claim))
        said = "2 stages are under way in {}, and stored when done, unless the work on lent has been killed; how far: "
        assert said.format(tmp_path) in suite(*command)[2]
        path.unlink()
    code, _, err = suite(*command)
    assert (code, err) == (0, "")


def test_a_table_is_printed_where_claims_may_not_be_read(
    store: Store, tmp_path: Path, suite: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(claims: Claims) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Claims, "under_way", refuse)
    code, out, err = suite("show", "--table", "2", "--results", str(tmp_path))
    assert (code, err) == (0, "")
    assert out.startswith("Table 2")


def test_a_run_is_known_to_be_there_between_its_stages(grid: Grid, store: Store, tmp_path: Path) -> None:
    (plan_of_run,) = store.plans()
    with Claims(tmp_path, "runs") as runs:
        assert runs.take(Presence(plan_of_run.command))
        assert "nobody" not in status.render(status.read(store))
        with Claims(tmp_path, "runs") as others:  # of the same command
            assert others.take(Presence(plan_of_run.command))
        assert "nobody" not in status.render(status.read(store))
    assert "nobody is at it: unless it began just now, give the command again" in status.render(status.read(store))
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "runs" / "0.1.json").write_text("{")  # by a machine that lost power
    runs.clear()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["0.1.json"]  # until it is known to be dead


def test_of_the_first_training_under_way_the_time_left_is_that_of_its_own_steps(
    grid: Grid, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(lines, "monotonic", lambda: now[0])
    monkeypatch.setattr(claims_module, "BEAT", 0.05)
    training = trainings(grid)[0]
    with Claims(tmp_path) as claims:
        claims.take(training)
        claims.say(training.key, 1, 11, "epoch 1/2")
        now[0] += 300.0
        claims.say(training.key, 6, 11, "epoch 1/2")
        text = ""
        while "6/11" not in text:
            time.sleep(0.05)
            text = status.render(status.read(store))
    assert "time left: at least 27 min, since of export and parity none has ended yet\n" in text
    assert "6/11  about 5 min left  epoch 1/2" in text


def test_a_finished_plan_has_no_time_left(grid: Grid, store: Store) -> None:
    for stage in grid.stages:
        store.put(stage.kind, stage.inputs, {}, {}, {"seconds": 1.0})
    (found,) = status.read(store)
    assert found.time_left == remaining.TimeLeft(0.0)
    assert "time left" not in status.render([found])


def test_an_empty_folder_and_a_damaged_plan_are_told(tmp_path: Path) -> None:
    assert status.render(status.read(Store(tmp_path))) == "nothing was begun here\n"
    assert status.render([], records=3).startswith("3 records, of commands that were given elsewhere")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json: not a plan"):
        status.read(Store(tmp_path))


@pytest.mark.parametrize(
    ("started_as", "by_uv", "typed"),
    [
        ("/there/suite/__main__.py", True, "uv run -m suite"),
        ("/there/suite/__main__.py", False, "python -m suite"),
        ("/there/bin/suite", True, "suite"),
    ],
)
def test_a_command_is_told_as_it_is_typed_in_the_shell_at_hand(
    started_as: str, by_uv: bool, typed: str, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*env.AS_MODULE, "run", "--table", "4", "--rows", "resnet50_*_bn"]
    Store(tmp_path).save_plan(status.plan_of(grid, command))
    monkeypatch.setattr("sys.argv", [started_as, "status"])
    if by_uv:
        monkeypatch.setenv("UV", "uv")
    else:
        monkeypatch.delenv("UV", raising=False)
    (found,) = status.read(Store(tmp_path))
    assert status.render([found]).splitlines()[0] == f"{typed} run --table 4 --rows 'resnet50_*_bn'"

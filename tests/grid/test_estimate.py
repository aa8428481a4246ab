"""What a grid will take, and which of its cells are worth the time."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suite.errors import InputError
from suite.grid import estimate, probe
from suite.grid.estimate import Cost
from suite.grid.plan import Cell, Grid, RunOptions, plan
from suite.grid.probe import Probe, Prober, ProbeRequest
from suite.inference import processes
from suite.progress import duration
from suite.results.store import Store
from suite.tables.spec import load_table

ROWS = ("resnet110_relu_plain@cifar10", "resnet110_relu_bn@cifar10", "resnet110_crelu_*@cifar10")


def costs(cells: tuple[Cell, ...], seconds: float = 60.0) -> dict[Cell, Cost]:
    return {cell: Cost(seconds, 1e9, 6, 0) for cell in cells}


def test_a_budget_goes_to_the_cells_that_make_most_comparisons_possible(tmp_path: Path) -> None:
    grid = plan(RunOptions(2, tmp_path, rows=ROWS, seeds=2))
    names = [cell.row.model for cell in estimate.choose_cells(grid, costs(grid.cells), 240)]
    # Rows that differ in one column from those before; no second seed before each row has a first.
    assert len(set(names)) == 4
    assert names[0] == "resnet110_relu_plain"
    pair = {names[0].replace("relu", "crelu"), "resnet110_relu_bn"}
    assert names[1] in pair


def test_a_budget_is_never_exceeded_and_what_is_stored_costs_nothing(tmp_path: Path) -> None:
    grid = plan(RunOptions(2, tmp_path, rows=ROWS))
    found = costs(grid.cells)
    dear, stored = grid.cells[1], grid.cells[0]
    found[dear] = Cost(1000, 1e9, 6, 0)
    found[stored] = Cost(0, 0, 6, 6)
    chosen = estimate.choose_cells(grid, found, 150)
    assert sum(found[cell].seconds or 0 for cell in chosen) <= 150
    assert stored in chosen
    assert dear not in chosen
    assert len(chosen) == 3
    assert estimate.choose_cells(grid, found, 0) == [stored]


def test_seconds_follow_the_recipe(tmp_path: Path) -> None:
    grid = plan(RunOptions(2, tmp_path, rows=("resnet110_relu_bn@cifar10",), epochs=2, batch_sizes=(8,)))
    found = Probe(0.5, 0.01, 1e9, 1e7, 0.002, 0.001, 7.0, 11.0, 2.0)
    by_kind = {s.kind + s.detail: estimate._seconds(s, grid.cells[0], found) for s in grid.stages if s.cell}
    steps = 2 * 40  # 5,000 images in batches of 128
    assert by_kind["train"] == pytest.approx(steps * 0.5 + 10_000 * 0.01 + 2 * 1000 * 0.002)
    assert by_kind["export"] == 7.0
    assert by_kind["parity"] == pytest.approx(1000 * 0.003)
    assert by_kind["latency onnxruntime cpu batch 8"] == pytest.approx(2.0 + 0.008 + 5 * 0.25)


@pytest.mark.full
def test_a_probe_is_measured_once_and_kept(tmp_path: Path) -> None:
    options = RunOptions(2, tmp_path, depth=20, rows=("resnet20_relu_bn@cifar10",))
    said: list[str] = []
    first = estimate.estimate_run(options, None, said.append)
    again = estimate.estimate_run(options, None, said.append)
    assert len(list((tmp_path / "records" / "probe").iterdir())) == 1
    assert list(first.costs.values()) == list(again.costs.values())
    (cost,) = first.costs.values()
    assert (cost.stages, cost.stored) == (6, 0)
    (record,) = Store(tmp_path).records("probe")
    assert all(value >= 0 for value in record.result.values())
    # Beside other work the two batches may take equally long, but never no time.
    assert record.result["step_fixed"] + record.result["step_per_image"] > 0
    assert 2e8 < cost.memory < 8e9  # torch alone takes some hundred megabytes
    text = first.render()
    assert "resnet20_relu_bn on digits10" in text
    assert "total on " in text
    assert first.options().only == frozenset({"resnet20_relu_bn on digits10"})


def test_a_network_that_cannot_be_probed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.env.device_of", lambda device: "cuda:7")
    options = RunOptions(2, tmp_path, depth=20, rows=("resnet20_relu_bn@cifar10",))
    with pytest.raises(InputError, match=r"^resnet20_relu_bn: the probe failed: \w+: .+$"):
        estimate.estimate_run(options, None, lambda text: None)
    assert not list(tmp_path.rglob("*.json"))


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)


@pytest.mark.full
def test_a_probe_that_dies_is_one_line_and_the_start_is_measured_once() -> None:
    prober = Prober()
    with pytest.raises(RuntimeError, match=r"^its process ended with code 3$"):
        prober.probe(Fatal())  # type: ignore[arg-type]
    request = ProbeRequest("resnet20_relu_bn", 10, load_table(2).recipe, "cpu", "float32", 32)
    first, second = prober.probe(request), prober.probe(request)
    assert first.start == second.start > 0


def answer_and_tidy_up(pipe: Any, request: Any, scratch: Path, begun: float, start: float | None) -> None:
    """A process that, once it has answered, removes what it has made."""
    pipe.send(Probe(0.5, 0.01, 1e9, 1e7, 0.002, 0.001, 7.0, 11.0, 2.0))
    time.sleep(0.3)
    Path(request).write_text("tidy")


def test_a_process_that_has_answered_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_answer", answer_and_tidy_up)
    monkeypatch.setattr(processes, "fork_context", lambda preload: multiprocessing.get_context("spawn"))
    request: Any = str(tmp_path / "end")
    assert Prober().probe(request).start == 11.0
    assert (tmp_path / "end").read_text() == "tidy"


def write_and_die(pipe: Any, request: Any, scratch: Path, begun: float, start: float | None) -> None:
    """A process that is killed, as by Ctrl-C, while its network lies in its folder."""
    (scratch / "model.onnx").write_text("x")
    os._exit(9)


def test_a_process_that_is_killed_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(probe, "_answer", write_and_die)
    monkeypatch.setattr(processes, "fork_context", lambda preload: multiprocessing.get_context("spawn"))
    request: Any = "network"
    with pytest.raises(RuntimeError, match="ended with code 9"):
        Prober().probe(request)
    assert list(tmp_path.iterdir()) == []


def test_the_start_of_a_run_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RunOptions(2, tmp_path, rows=ROWS)

    def measured(grid: Grid, *others: object) -> dict[Cell, Cost]:
        return {cell: Cost(10.0, 1e9, 6, 0, start=15.0) for cell in grid.cells}

    monkeypatch.setattr(estimate, "costs", measured)
    every = estimate.estimate_run(options, None, lambda text: None)
    assert f"about {duration.format_duration(10.0 * len(every.grid.cells) + 15.0)}" in every.render()
    assert len(estimate.estimate_run(options, 36.0, lambda text: None).chosen) == 2


def test_a_dry_run_of_several_seeds_fits_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RunOptions(3, tmp_path, seeds=12)

    def measured(grid: Grid, *others: object) -> dict[Cell, Cost]:
        return {cell: Cost(500_000.0, 64e9, 18, 0, measured=False) for cell in grid.cells}

    monkeypatch.setattr(estimate, "costs", measured)
    found = estimate.estimate_run(options, None, lambda text: None)
    piped = found.render()
    assert piped.startswith("network")
    assert "resnet110_w32_relu_bn on digits100 seed 11" in piped
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = found.render().splitlines()
    assert max(map(len, lines)) <= 80


def test_a_dry_run_writes_nothing(
    suite: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Probe(0.5, 0.01, 1e9, 1e7, 0.002, 0.001, 7.0, 11.0, 2.0)
    monkeypatch.setattr(Prober, "probe", lambda self, request: found)
    monkeypatch.chdir(tmp_path)
    row = ("--table", "2", "--depth", "20", "--rows", "resnet20_relu_bn@cifar10")
    code, out, err = suite("run", *row, "--dry-run")
    assert (code, err) == (0, "measuring a few steps of resnet20_relu_bn on digits10\n")
    assert "to do" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_that_is_stopped_keeps_nothing_and_says_nothing_else(
    suite: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(estimate, "estimate_run", stop)
    row = ("--table", "2", "--depth", "20", "--results", str(tmp_path), "--budget", "1h")
    assert suite("run", *row, "--dry-run") == (130, "", "\ninterrupted\n")
    kept = "\ninterrupted; what is finished is kept, and the same `run` goes on from there\n"
    assert suite("run", *row) == (130, "", kept)


@pytest.mark.parametrize(("stopped_at", "measured"), [(None, 1), (1, 1), (0, 0)])
def test_a_dry_run_answers_in_time_with_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int | None, measured: int
) -> None:
    asked: list[Cell] = []

    def probe(cell: Cell, *others: object) -> Probe:
        asked.append(cell)
        if len(asked) - 1 == stopped_at:
            raise KeyboardInterrupt
        return Probe(0.5, 0.01, 1e9, 1e7, 0.002, 0.001, 7.0, 11.0, 2.0)

    monkeypatch.setattr(estimate, "probe", probe)
    within = 0.0 if stopped_at is None else 1000.0
    found = estimate.estimate_run(RunOptions(2, tmp_path, rows=ROWS), None, lambda text: None, within)
    assert found.stopped == (stopped_at is not None)
    assert sum(cost.measured and cost.seconds is not None for cost in found.costs.values()) == measured
    text = found.render()
    assert len(found.costs) == 6
    assert text.count("~ ") == (2 * 5 + 1 if measured else 0), "time and memory of each, and what the sign means"
    assert text.count("not measured") == (0 if measured else 6)
    assert (": not known, since no network was measured" in text) == (not measured)
    relu, crelu = (found.costs[cell].seconds for cell in found.grid.cells[1:3])
    assert (relu is None) == (not measured)
    assert not measured or (relu or 0) < (crelu or 0)

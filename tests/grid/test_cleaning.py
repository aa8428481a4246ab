"""What a results folder need not keep, and what stands without it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from suite import distributed, progress
from suite.grid import cleaning, plan, reach, status
from suite.grid.claims import Claims
from suite.grid.plan import Grid, RunOptions
from suite.grid.runner import Worker
from suite.results.store import Store

ROWS = ("resnet20_*relu_bn@cifar10",)
RESULTS: dict[str, dict[str, object]] = {
    "train": {
        "trained": True,
        "tries": [{"learning_rate": 0.1, "outcome": "trained"}],
        "epochs": [],
        "steps": 4,
        "test_images": 10,
    },
    "export": {"parameters": 1, "macs": 1},
}
Run = Callable[..., tuple[int, str, str]]


def options(folder: Path, **more: object) -> RunOptions:
    return RunOptions(2, folder, depth=20, rows=ROWS, batch_sizes=(1,), **more)  # type: ignore[arg-type]


def done(folder: Path, grid: Grid, but: str = "") -> Store:
    """A folder in which all stages are done that are not of the kind `but`."""
    store = Store(folder)
    store.save_plan(status.plan_of(grid, ["python", "-m", "suite", "run"]))
    for stage in grid.stages:
        if stage.kind == but:
            continue
        with store.workspace() as work:
            name = {"train": "model.safetensors", "export": "model.onnx"}.get(stage.kind)
            if name:
                (work / name).write_bytes(b"x" * 1000)
            store.put(
                stage.kind, stage.inputs, RESULTS.get(stage.kind, {}), {}, {"seconds": 1.0}, work if name else None
            )
    return store


def left_to_do(asked: RunOptions, grid: Grid) -> list[str]:
    with Claims(asked.results) as claims:
        worker = Worker(asked, grid, distributed.ALONE, progress.Silent(0), claims)
        return sorted({stage.kind for stage in grid.stages if stage.key not in worker.done})


def test_after_a_quick_run_figures_stand_without_files_and_nothing_is_done_twice(tmp_path: Path) -> None:
    asked = options(tmp_path)
    grid = plan.plan(asked)
    store = done(tmp_path, grid)
    cleaning.clean_after_quick_run(store, grid)
    assert list((tmp_path / "artifacts").iterdir()) == []
    assert left_to_do(asked, grid) == []
    # What is shown needs no files, and what needs them has them made again.
    more = plan.plan(options(tmp_path, forms=("fp32", "int8")))
    assert left_to_do(options(tmp_path), more) == ["convert", "export", "latency", "parity", "peak", "train"]
    parts = plan.plan(options(tmp_path, forms=("fp32", "int8"), stages=("export", "latency")))
    reached, said = reach.within_reach(
        parts,
        lambda stage: store.get_even_without_files(stage.kind, stage.inputs) is not None,
        lambda stage: store.get(stage.kind, stage.inputs) is not None,
    )
    assert said == [
        "left out: 3 convert, 3 latency; what they need (train) is neither among --stages nor stored",
    ]
    assert {stage.key for stage in reached.stages if stage.kind == "latency"} < {stage.key for stage in grid.stages}


@pytest.mark.parametrize(("epochs", "but"), [(1, ""), (None, "latency")], ids=["whole epochs", "not timed yet"])
def test_what_is_still_needed_stays(tmp_path: Path, epochs: int | None, but: str) -> None:
    grid = plan.plan(options(tmp_path, epochs=epochs))
    store = done(tmp_path, grid, but)
    cleaning.clean_after_quick_run(store, grid)
    assert len(list((tmp_path / "artifacts").iterdir())) == 6


def test_clean_says_what_it_would_remove_and_removes_what_was_named(tmp_path: Path, suite: Run) -> None:
    grid = plan.plan(options(tmp_path, epochs=1))
    done(tmp_path, grid)
    stopped = tmp_path / "checkpoints" / "0123"
    stopped.mkdir(parents=True)
    (stopped / "1.safetensors").write_bytes(b"x" * 5_000_000)
    code, out, _ = suite("clean", "--results", str(tmp_path), "--dry-run", "onnx", "checkpoints")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["quick", "onnx", "checkpoints"]
    assert out.count("to be removed") == 2
    assert stopped.is_dir()
    assert suite("clean", "--results", str(tmp_path))[0] == 0
    assert len(list((tmp_path / "artifacts").iterdir())) == 6, "runs of whole epochs keep theirs"
    _, out, _ = suite("clean", "--results", str(tmp_path), "onnx", "checkpoints")
    assert " 5.0 MB  removed" in out
    assert not stopped.exists()
    assert {path.name for path in (tmp_path / "artifacts").glob("*/*")} == {"model.safetensors"}


def test_clean_says_how_much_an_unfinished_command_still_needs(tmp_path: Path, suite: Run) -> None:
    grid = plan.plan(options(tmp_path))
    store = done(tmp_path, grid, but="latency")
    for folder in (tmp_path / "artifacts").iterdir():
        (folder / "more").write_bytes(b"x" * 999_000)
    code, out, _ = suite("clean", "--results", str(tmp_path))
    quick, *others = out.splitlines()
    assert code == 0
    assert quick.split()[:5] == ["quick", "0", "folders", "0.0", "MB"]
    assert quick.endswith("; 6.0 MB more are needed by a command that is not finished: status names it")
    assert not any("needed by" in line for line in others)
    for stage in grid.stages:
        if stage.kind == "latency":
            store.put(stage.kind, stage.inputs, {}, {}, {"seconds": 1.0})
    _, out, _ = suite("clean", "--results", str(tmp_path))
    assert out.splitlines()[0].split()[:6] == ["quick", "6", "folders", "6.0", "MB", "removed"]
    assert "needed by" not in out

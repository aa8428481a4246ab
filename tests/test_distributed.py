"""Several processes, as `torchrun` starts them, against one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from suite import distributed
from suite.distributed import Group
from suite.errors import InputError
from suite.grid import runner
from suite.grid.plan import RunOptions

ROW = ("--table", "2", "--depth", "20", "--steps", "3", "--batch-sizes", "1", "--precision", "float32")


def run(folder: Path, row: str, processes: int, *more: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """A quick row by so many processes: its training record, and how the command ended."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
    command = [*launcher, "suite", "run", *ROW, "--rows", row, "--results", str(folder), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "records" / "train").iterdir()
    return json.loads(path.read_text()), done


@pytest.mark.full
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", "resnet20_crelu_np2@cifar10", 1, "--stages", "train")
    two, done = run(tmp_path / "two", "resnet20_crelu_np2@cifar10", 2)
    assert (two["result"]["processes"], two["result"]["batch_per_process"]) == (2, 16)
    # The shortcuts that shrink have BatchNorm, but its statistics of half a batch change little in three steps.
    losses = [record["result"]["epochs"][-1]["train_loss"] for record in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert one["key"] != two["key"]
    assert done.stdout.count("Table 2: ") == 1  # one process prints
    stages = {path.name: len(list(path.iterdir())) for path in (tmp_path / "two" / "records").iterdir()}
    assert stages == {"train": 1, "export": 1, "parity": 1, "latency": 1, "peak": 1}


SPREAD = """
import torch
from suite import distributed
from suite.grid import runner
from suite.distributed import Group
from suite.errors import InputError
from suite.grid.plan import RunOptions
group = distributed.join()
tensors = [torch.full((3,), float(group.rank)), torch.tensor(group.rank)]
group.spread(tensors)
assert not any(tensor.any() for tensor in tensors), tensors
group.leave()
"""


@pytest.mark.full
def test_tensors_of_the_first_process_are_spread_in_place(tmp_path: Path) -> None:
    script = tmp_path / "spread.py"
    script.write_text(SPREAD)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_without_batch_norm_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    train = ("--stages", "train")
    records = [run(tmp_path / str(n), "resnet20_relu_plain@cifar10", n, *train)[0]["result"] for n in (1, 2)]
    assert records[1]["epochs"][-1]["train_loss"] == pytest.approx(records[0]["epochs"][-1]["train_loss"], rel=1e-6)
    assert records[1]["epochs"][-1]["train_error"] == records[0]["epochs"][-1]["train_error"]
    assert records[1]["top1"] == pytest.approx(records[0]["top1"], abs=1.0)


def test_workers_of_a_process_that_torchrun_started_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "join", lambda: Group(rank=0, size=2))
    monkeypatch.setattr(Group, "leave", lambda group: None)
    with pytest.raises(InputError, match=r"--workers: torchrun has started the processes of this run; use 1$"):
        runner.run(RunOptions(2, tmp_path, workers=2))
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_no_launcher_started_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = distributed.join()
    assert group == distributed.ALONE
    assert group.sums(1.5, 2.0) == [1.5, 2.0]
    assert group.share("x") == "x"
    assert group.any(True)
    assert not group.any(False)

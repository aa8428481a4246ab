"""A grid by jobs that submitit starts, here as processes of this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from suite.errors import InputError
from suite.grid.plan import RunOptions

pytest.importorskip("submitit", reason="needs the extra [slurm]")

from suite.grid import slurm

MY_TABLE = Path(__file__).parents[2] / "examples" / "my_table.toml"

# Stages that take no time. What is defined here goes to the jobs by value.
DRIVER = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path

import suite.grid.slurm
import suite.tables.own
from suite.errors import InputError
from suite.grid.plan import TIMED, RunOptions, plan

how = sys.argv[2]

def without_timings(options):
    found = plan(options)
    return replace(found, stages=tuple(stage for stage in found.stages if stage.kind not in TIMED))

class Job(suite.grid.slurm._Job):
    def __call__(self, options, argv):
        import suite.grid.perform

        def one(self, stage, folder, step):
            if how == "refused":
                raise InputError("cannot")
            if how == "killed" and stage.kind == "export":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)
            return {"job": os.getpid()}

        P = suite.grid.perform.Performer
        P._one = one
        P._train = lambda self, begun, end: [end(w, one(self, w.stage, w.folder, w.step)) for w in begun]
        return super().__call__(options, argv)

suite.grid.slurm.CLUSTER, suite.grid.slurm._Job, suite.grid.slurm.plan = "local", Job, without_timings
table = suite.tables.own.load(Path(sys.argv[3])) if how == "own" else 2
row, imports = ("resnet110_relu_bn@cifar10", ()) if table == 2 else ("resnet20_sqrelu_bn", table.imports)
options = RunOptions(table, Path(sys.argv[1]), rows=(row,), seeds=8, workers=2, imports=imports)
try:
    print(suite.grid.slurm.run(options).failed)
except InputError as error:
    print(error)
"""


def run(folder: Path, how: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder), how, str(MY_TABLE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_jobs_divide_the_grid_of_a_table_and_models_of_one_s_own(tmp_path: Path) -> None:
    assert run(tmp_path, "own") == "0\n"
    done = [json.loads(path.read_text("utf-8")) for path in tmp_path.glob("records/*/*.json")]
    assert [each["inputs"]["model"] for each in done] == ["resnet20_sqrelu_bn"] * 24
    assert list((tmp_path / "claims").iterdir()) == []


@pytest.mark.full
def test_what_jobs_leave_undone_has_failed_for_this_run(tmp_path: Path) -> None:
    failed = int(run(tmp_path, "killed"))
    assert failed == 24 - len(list(tmp_path.glob("records/*/*.json"))) > 0
    assert list(tmp_path.glob("failures/*")) == []  # another machine may go on with it


@pytest.mark.full
def test_what_a_job_refuses_is_one_line(tmp_path: Path) -> None:
    assert run(tmp_path, "refused").endswith(": cannot\n")


def test_a_job_whose_time_is_up_is_begun_again() -> None:
    job = slurm._Job()
    again = job.checkpoint(RunOptions(2, Path("results")), ["suite"])
    assert again.function is job
    assert again.args == (RunOptions(2, Path("results")), ["suite"])


def test_a_machine_without_slurm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^--executor slurm: there is no sbatch here; use a machine that submits"):
        slurm.run(RunOptions(2, tmp_path))


def test_a_job_that_slurm_does_not_take_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    options = RunOptions(2, tmp_path / "results", rows=("resnet110_relu_bn@cifar10",))
    with pytest.raises(InputError, match=r"^--executor slurm: sbatch: error: invalid partition$"):
        slurm.run(options)

"""Processes that work on one grid, and the one that has started them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep

import psutil
import pytest

PARENT = """
import os, pathlib, sys, time
from suite.grid import workers

def work(path):
    written = pathlib.Path(path).with_suffix(".part")
    written.write_text(str(os.getpid()))
    written.rename(path)
    time.sleep(600)

if __name__ == "__main__":
    with workers.start_workers(1, work, sys.argv[1]) as any_is_left:
        while any_is_left():
            time.sleep(0.1)
"""


def test_a_worker_ends_when_the_process_that_started_it_was_killed(tmp_path: Path) -> None:
    script, pid = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(pid)])
    while not pid.exists():
        assert parent.poll() is None
        sleep(0.1)
    worker = psutil.Process(int(pid.read_text()))
    parent.kill()
    parent.wait()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


# Importing this takes long, as importing torch does.
SLOW = """
import pathlib, time
pathlib.Path("importing").touch()
time.sleep(3)
"""
IMPORTING = """
import multiprocessing, sys, time
from suite.grid import workers
from suite.inference import processes

if __name__ == "__mp_main__":
    import slow

def work(*arguments):
    pass

if __name__ == "__main__":
    try:
        if sys.argv[1] == "workers":
            with workers.start_workers(2, work, None):
                time.sleep(60)
        preload = processes.fork_context(["slow"])
        context = preload if sys.argv[1] == "forkserver" else multiprocessing.get_context("spawn")
        processes.PipedProcess(context, work).wait()
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", ["workers", "forkserver", "spawn"])
def test_ctrl_c_while_a_process_imports_is_answered_by_the_one_that_started_it_alone(tmp_path: Path, how: str) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "parent.py").write_text(IMPORTING)
    here = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, str(tmp_path)])}
    command = [sys.executable, "parent.py", how]
    parent = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "importing").exists():
        assert parent.poll() is None
        sleep(0.1)
    os.killpg(parent.pid, signal.SIGINT)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "Traceback" not in err, err

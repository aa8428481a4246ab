"""Processes that work on one grid, and the one that has started them."""

import subprocess
import sys
from pathlib import Path
from time import sleep

import psutil

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

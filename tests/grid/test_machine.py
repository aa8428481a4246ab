"""The lock by which timings have the machine to themselves."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from suite.grid.machine import LOCK, MachineLock
from suite.interrupt import Deadline, TimeIsUp
from suite.results.holder import Holder

ALONE = """
import os, pathlib, sys
from suite.grid.machine import MachineLock
sys.argv = ["suite", "run", "--table", "4"]
os.umask(0o077)
with MachineLock(print, pathlib.Path(os.environ["LOCK"])).alone():
    print("alone", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "machine.lock"


@pytest.fixture
def timing(lock: Path, tmp_path: Path) -> Any:
    """Have another process, of another TMPDIR, without a home and of a user without a name, time alone; returns it."""
    nobody = "import pwd\ndef no(uid): raise KeyError('getpwuid(): uid not found')\npwd.getpwuid = no\n"
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "USER", "LOGNAME")}
    environment |= {"TMPDIR": str(tmp_path), "LOCK": str(lock)}
    started = []

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", nobody + ALONE]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "alone\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Waits(Exception):  # noqa: N818 - no error, but what ends a wait
    """Raised in the place of waiting."""


def say(text: str) -> None:
    raise Waits(text)


def test_a_timing_has_the_machine_to_itself_and_everything_else_shares_it(
    lock: Path, timing: Callable[[], Any]
) -> None:
    machine = MachineLock(say, lock)
    with machine.shared(), machine.shared(), pytest.raises(Waits), machine.alone():
        pass
    process = timing()
    for use in (machine.alone, machine.shared):
        with pytest.raises(Waits), use():
            pass
    process.kill()  # and a lock does not outlive its holder
    process.communicate()
    with machine.alone():
        pass


def test_who_has_no_time_left_does_not_wait_for_the_machine(lock: Path) -> None:
    said: list[str] = []
    soon = Deadline(datetime.now(UTC) + timedelta(seconds=1))
    begun = []
    with MachineLock(said.append, lock).shared(), pytest.raises(TimeIsUp), MachineLock(said.append, lock, soon).alone():
        begun.append(True)
    assert soon.passed
    assert begun == []
    (text,) = said
    assert text.startswith("waiting for other work on this machine to end, to time without it; ")


def test_the_lock_of_the_machine_is_one_file_whatever_tmpdir_user_and_umask_are(
    lock: Path, timing: Callable[[], Any], tmp_path: Path
) -> None:
    assert str(LOCK) == "/tmp/crelu-norm-suite.lock"
    code = "from suite.grid.machine import LOCK, MachineLock; print(MachineLock(print)._path == LOCK, LOCK)"
    environment = os.environ | {"TMPDIR": str(tmp_path), "USER": "another", "LOGNAME": "another"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"True {LOCK}\n"
    timing()
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666


def test_who_waits_for_the_machine_is_told_for_whom(lock: Path, timing: Callable[[], Any]) -> None:
    process = timing()
    with pytest.raises(Waits) as caught, MachineLock(say, lock).shared():
        pass
    assert re.fullmatch(
        rf"waiting for a timing on this machine to end; suite run --table 4, process {process.pid} of user "
        rf"{os.getuid()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \w+",
        str(caught.value),
    )
    process.kill()
    process.communicate()
    machine = MachineLock(say, lock)
    with machine.shared(), machine.shared(), pytest.raises(Waits) as caught, machine.alone():
        pass
    assert str(caught.value).count(f"process {os.getpid()} of user") == 2
    assert str(process.pid) not in str(caught.value)  # it has ended
    assert str(os.getpid()) not in lock.read_text()  # nor are these any longer


def test_who_has_the_machine_is_named_though_it_says_so_only_after_it_has_it(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = MachineLock._note_in_file
    begun = threading.Event()

    def late(self: MachineLock, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            time.sleep(0.3)
        return said(self, *arguments, **options)

    monkeypatch.setattr(MachineLock, "_note_in_file", late)
    ended = threading.Event()

    def hold() -> None:
        with MachineLock(lambda text: None, lock).alone():
            ended.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert begun.wait(10)
        with pytest.raises(Waits, match=rf"; .*, process {os.getpid()} of user .*, since "):
            MachineLock(say, lock).shared().__enter__()
    finally:
        ended.set()
        holder.join()


def test_a_lock_of_another_owner_is_used_without_writing_to_it(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.write_text("")
    really = os.open

    def may_only_read(path: Any, flags: int, mode: int = 0o777) -> int:
        if str(path) == str(lock) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, flags, mode)

    monkeypatch.setattr(os, "open", may_only_read)
    machine = MachineLock(say, lock)
    with machine.alone(), pytest.raises(Waits, match=r"^waiting for a timing on this machine to end; who has it does"):
        machine.shared().__enter__()
    assert lock.read_text() == ""


def test_a_lock_that_is_none_is_told_and_does_not_end_the_run(lock: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "theirs").write_text("theirs")
    for make in (
        lambda: os.mkfifo(lock),
        lambda: lock.symlink_to(tmp_path / "theirs"),
        lambda: lock.hardlink_to(tmp_path / "theirs"),
    ):
        make()
        with MachineLock(said.append, lock).alone():
            pass
        lock.unlink()
    assert len(said) == 3
    assert all(f"{lock}: " in text and "are not kept apart" in text for text in said)
    assert (tmp_path / "theirs").read_text() == "theirs"


@pytest.mark.parametrize("written", ["[]", '{"holder": 1}', "\x1b[2J", "[" * 60_000])
def test_what_others_write_into_the_lock_neither_ends_a_run_nor_steers_a_terminal(lock: Path, written: str) -> None:
    here = vars(Holder.this())
    odd = json.dumps({"holder": here, "user": "u", "since": "s", "command": "\x1b[2J"})
    machine = MachineLock(say, lock)
    with machine.shared():
        lock.write_text(f"{written}\n{odd}\n")
        with pytest.raises(Waits) as caught, machine.alone():
            pass
    assert str(caught.value).endswith(f"; \\x1b[2J, process {os.getpid()} of user u, since s")

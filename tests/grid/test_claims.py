"""Claims: one holder at a time, taken over from the dead and from no one else."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from suite.errors import InputError
from suite.grid import claims
from suite.grid.claims import Claims, Holder
from suite.grid.plan import Stage

STAGE = Stage("train", None, {"model": "resnet20_relu_bn", "seed": 0})
HOLD = """
import sys, time, pathlib
from suite.grid.claims import Claims
from suite.grid.plan import Stage
with Claims(pathlib.Path(sys.argv[1])) as mine:
    print(mine.take(Stage("train", None, {"model": "resnet20_relu_bn", "seed": 0})), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Any:
    """Have another process take the claim on STAGE; returns the process."""
    started = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def rewrite(path: Path, **holder: Any) -> None:
    content = json.loads(path.read_text())
    content["holder"] |= holder
    path.write_text(json.dumps(content))


def test_a_claim_has_one_holder_and_is_free_again_when_given_up(tmp_path: Path) -> None:
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take(STAGE)
        assert not second.take(STAGE)
        first.release(STAGE.key)
        assert second.take(STAGE)
        assert not first.take(STAGE)
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path, hold: Callable[[], Any]) -> None:
    process = hold()
    with Claims(tmp_path) as mine:
        assert not mine.take(STAGE)
        process.kill()
        process.wait()
        assert mine.take(STAGE)
        (claim,) = mine.under_way()
        assert (claim.number, claim.holder) == (2, Holder.this())
        mine.release(STAGE.key)
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_later_process_with_the_pid_of_the_dead_one_does_not_keep_its_claim(tmp_path: Path) -> None:
    with Claims(tmp_path) as dead, Claims(tmp_path) as mine:
        dead.take(STAGE)
        (path,) = (tmp_path / "claims").iterdir()
        rewrite(path, born="1")  # this process lives, but was not born then
        assert mine.take(STAGE)


def test_a_stopped_process_keeps_its_claim(tmp_path: Path, hold: Callable[[], Any]) -> None:
    process = hold()
    process.send_signal(signal.SIGSTOP)
    with Claims(tmp_path) as mine:
        assert not mine.take(STAGE)


def test_another_machine_counts_as_dead_after_its_claim_stayed_the_same_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(claims, "monotonic", lambda: now)
    with Claims(tmp_path) as theirs:
        theirs.take(STAGE)
    theirs._create(claims.Claim(STAGE.key, "train", STAGE.name, 1, Holder("elsewhere", "another boot", 1, "1")))
    (path,) = (tmp_path / "claims").iterdir()
    os.utime(path, (0, 0))  # a clock set back to 1970 is no reason
    mine = Claims(tmp_path)
    assert not mine.take(STAGE)
    now += 59.9  # of the minute that docs/reliability.md promises
    assert not mine.take(STAGE)
    path.write_text(path.read_text().replace('"beat": 0', '"beat": 1'))
    now += 59.9
    assert not mine.take(STAGE)  # there was a sign of life since
    now += 60.1
    assert mine.take(STAGE)
    assert [claim.number for claim in mine.under_way()] == [2]


def test_a_holder_gives_signs_of_life_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with Claims(tmp_path) as mine:
        mine.take(STAGE)
        mine.say(STAGE.key, 3, 10, "300 images/s")
        (path,) = (tmp_path / "claims").glob("*.json")
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["done"] != 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        (claim,) = Claims(tmp_path).under_way()
    assert (claim.done, claim.total, claim.note) == (3, 10, "300 images/s")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "null", '{"key":"k","holder":{}}'])
def test_a_claim_that_power_loss_left_damaged_is_taken_over_in_time(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(claims, "monotonic", lambda: now)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / f"{STAGE.key}.1.json").write_text(content)
    mine = Claims(tmp_path)
    assert not mine.take(STAGE)
    assert mine.under_way() == []
    now += claims.PATIENCE
    assert mine.take(STAGE)


def test_where_links_are_not_to_be_had_a_claim_has_one_holder_from_its_empty_file_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = Claims(tmp_path)
    meanwhile: list[tuple[bytes, bool]] = []

    def no_link(written: Path, path: Path) -> None:
        raise OSError("Operation not permitted")

    def open_and_look(path: Path, mode: str) -> IO[Any]:
        file = open(path, mode)  # noqa: SIM115 - who asked for it closes it
        if mode == "xb" and not meanwhile:
            meanwhile.append((b"", True))  # what the other one opens is not looked at
            meanwhile[0] = path.read_bytes(), others.take(STAGE)
        return file

    monkeypatch.setattr(claims.os, "link", no_link)
    monkeypatch.setattr(claims, "open", open_and_look, raising=False)
    mine = Claims(tmp_path)
    assert mine.take(STAGE)
    assert meanwhile == [(b"", False)]
    assert [(claim.number, claim.holder) for claim in mine.under_way()] == [(1, Holder.this())]


def test_a_claim_of_other_types_and_a_pipe_count_as_damaged(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine:
        mine.take(STAGE)
        (path,) = (tmp_path / "claims").glob("*.json")
        sound = json.loads(path.read_text())
        assert claims._parse(json.dumps(sound).encode()) is not None
    assert claims._parse(json.dumps({name: sound[name] for name in sound if name != "left"}).encode()) is not None
    for name, value in (("done", "a"), ("total", None), ("name", 1), ("number", True), ("left", math.inf)):
        assert claims._parse(json.dumps(sound | {name: value}).encode()) is None
    odd = sound["holder"] | {"host": ["h"]}
    assert claims._parse(json.dumps(sound | {"holder": odd}).encode()) is None
    os.mkfifo(tmp_path / "claims" / f"{STAGE.key}.2.json")  # whoever read it would wait for ever
    assert Claims(tmp_path).under_way() == []


def test_many_processes_that_claim_at_once_get_one_claim_each(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from suite.grid.claims import Claims\n"
        "from suite.grid.plan import Stage\n"
        "mine = Claims(pathlib.Path(sys.argv[1]))\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "for i in range(50):\n"
        "    if mine.take(Stage('train', None, {'model': 'm', 'seed': i})): print(i)\n"
        "sys.stdout.flush(); sys.stdin.read()\n"  # stay alive, so that nobody takes over
    )
    start = str(time.time() + 3)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "claims").glob("*.json"))) < 50 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    taken = Counter(line for process in processes for line in process.communicate("")[0].split())
    assert taken == Counter(str(i) for i in range(50))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file in the way")
    with pytest.raises(InputError, match=r"--results .*: cannot write there"):
        Claims(tmp_path).take(STAGE)


def test_what_the_dead_left_of_work_that_is_done_is_cleared(tmp_path: Path, hold: Callable[[], Any]) -> None:
    process = hold()
    mine = Claims(tmp_path)
    mine.clear({STAGE.key})
    assert len(list((tmp_path / "claims").iterdir())) == 1
    process.kill()
    process.wait()
    mine.clear(set())
    assert len(list((tmp_path / "claims").glob("*.json"))) == 1
    mine.clear({STAGE.key})
    assert list((tmp_path / "claims").glob("*.json")) == []

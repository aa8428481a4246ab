import codecs
import io
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from rich.console import Console, ConsoleRenderable

from suite import progress
from suite.interrupt import TimeIsUp
from suite.progress import bars, lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Screen:
    """What a terminal of 80 columns shows, as far as bars and lines use one; all that ever was above stays on it."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.unfinished = ""

    def feed(self, text: str) -> None:
        text, self.unfinished = self.unfinished + text, ""
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\x1b\[?[?0-9;]*$|[^\x1b]", text):
            if part.startswith("\x1b"):
                self._obey(part)
            elif part == "\r":
                self.column = 0
            elif part == "\n":
                self._down()
            else:
                if self.column == 80:  # only now: a line of 80 characters leaves the cursor on it
                    self.column = 0
                    self._down()
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1

    def _obey(self, sequence: str) -> None:
        number = int(sequence[2:-1] or 1) if sequence[2:-1].isdigit() or not sequence[2:-1] else 0
        if not sequence[-1].isalpha():
            self.unfinished = sequence
        elif sequence[-1] == "A":
            self.row = max(0, self.row - number)
        elif sequence == "\x1b[2K":
            self.lines[self.row] = ""
        else:
            assert sequence[-1] in "mhl", f"{sequence!r} is not emulated"

    def _down(self) -> None:
        self.row += 1
        self.lines += [""] * (self.row + 1 - len(self.lines))


# The main thread is in a library's call of some seconds, at whose end a step is done.
LONG_STEPS = """
import hashlib, time
from suite import progress
from suite.interrupt import Interruption

begin = time.perf_counter()
hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000)
rounds = int(300_000 * 4 / (time.perf_counter() - begin))
display = progress.display(9, goes_on=True)
display.expect(lambda: "about 15 s left")
try:
    with display.stage("a network: train", 40) as step:
        step(1, 40, "an image a second")
        with Interruption(say=display.note) as interruption:
            hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
            interruption.deliver()
except KeyboardInterrupt:
    pass
finally:
    display.close()
print("the end")
"""


# What a bar is of does not fit on a line, and has a character that not every encoding has.
LONG_NAMES = """
import time
from suite import progress

display = progress.display(9)
with display.stage("r\u03b5snet " * 20, 40) as step:
    for done in range(10):
        step(done, 40, "images")
        time.sleep(0.15)
display.close()
print("the end")
"""


@pytest.fixture
def terminal() -> Iterator[Callable[..., Callable[..., list[str]]]]:
    """Run Python code in a terminal of 80 columns; returns what types keys there, reads until a text is to be seen, and
    returns the screen's lines."""
    pty = pytest.importorskip("pty", reason="this system has no terminals of this kind")
    import fcntl
    import struct
    import termios

    begun = []

    def run(code: str, **environment: str) -> Callable[[str], list[str]]:
        child, master = pty.fork()
        if child == 0:
            names = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
            os.execve(sys.executable, [sys.executable, "-c", code], names | {"TERM": "xterm"} | environment)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        begun.append((child, master))
        screen = Screen()
        decoder = codecs.getincrementaldecoder(environment.get("PYTHONIOENCODING", "utf-8"))()

        def see(text: str, keys: bytes = b"") -> list[str]:
            os.write(master, keys)
            end = time.monotonic() + 60
            while not any(text in line for line in screen.lines):
                assert time.monotonic() < end, screen.lines
                if select.select([master], [], [], 0.1)[0]:
                    try:
                        screen.feed(decoder.decode(os.read(master, 65536)))
                    except OSError:  # the process has ended
                        pytest.fail(f"{text!r} was never shown: {screen.lines}")
            return [line.rstrip() for line in screen.lines]

        return see

    yield run
    for child, master in begun:
        os.close(master)
        os.waitpid(child, 0)


def work(shown: progress.Lines) -> None:
    with shown.stage("first") as step:
        step(1, 4, "images")
    with pytest.raises(ZeroDivisionError), shown.stage("second"):
        raise ZeroDivisionError
    shown.skip("third")
    shown.close()


def test_piped_progress_is_a_line_a_stage_and_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress.display(3)
    work(shown)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[1/3] first: done", "[2/3] second: failed"]
    assert shown.done == 3


def test_a_terminal_gets_bars_and_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.display(3)
    assert isinstance(shown, bars.Bars)
    work(shown)
    text = terminal.getvalue()
    assert "[2/3] second: failed" in text
    assert "stages" in text
    assert "3/3" in text


def test_what_others_say_of_their_work_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = progress.display(3)
    assert isinstance(shown, bars.Bars)
    shown.elsewhere({"a \x1b[2J": (1, 2, "\x1b]0;title\x07", 0.0)})
    task = shown._progress.tasks[-1]
    shown.close()
    said = task.description + task.fields["note"]
    assert "title" in said
    assert not {"\x1b", "\x07"} & set(said)


def test_a_line_stays_though_bars_end_while_another_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich has looked where the bars are that it is to print over, and another thread refreshes them."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    shown = progress.display(3)
    assert isinstance(shown, bars.Bars)
    lines = [f"line {number}" for number in range(6)]
    with ExitStack() as stages:
        for name in "abc":
            stages.enter_context(shown.stage(name))
        for line in lines[:-1]:
            shown.note(line)
        looked = shown._progress.live.process_renderables

        def look_and_be_overtaken(renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            found = looked(renderables)
            shown._progress.live.process_renderables = looked  # type: ignore[method-assign]
            for task in shown._progress.task_ids[1:]:
                shown._progress.remove_task(task)
            other = threading.Thread(target=shown._progress.refresh)
            other.start()
            other.join(0.5)
            return found

        shown._progress.live.process_renderables = look_and_be_overtaken  # type: ignore[method-assign]
        shown._ended.set()  # of refreshes that nobody asks for here
        shown.note(lines[-1])
        monkeypatch.setattr(shown._progress, "remove_task", lambda task: None)
    shown.close()
    screen = Screen()
    screen.feed(stream.getvalue().replace("\n", "\r\n"))  # as a terminal has it
    assert [line for line in screen.lines if line.startswith("line")] == lines


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (61, "resnet20_relu_bn on cifar10: train, epoch 1/2, 1,234 images/s"),
        (51, "resnet20_relu_bn on cif…, epoch 1/2, 1,234 images/s"),
        (37, "resnet20_…, epoch 1/2, 1,234 images/s"),
        (36, "resnet20_relu_bn on cifa…, epoch 1/2"),
        (20, "resnet20_relu_bn on…"),
        (1, "…"),
    ],
)
def test_a_name_is_shortened_before_a_rate_is_left_out(width: int, shown: str) -> None:
    assert bars.shorten("resnet20_relu_bn on cifar10: train", "epoch 1/2, 1,234 images/s", width, "…") == shown


def test_the_time_left_of_a_stage_is_that_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(lines, "monotonic", lambda: now[0])
    pace = progress.Pace()
    assert pace.left(0, 0) == 0
    assert pace.left(40, 100) == 0  # those before it went on
    now[0] += 30
    assert pace.left(50, 100) == 150
    assert pace.left(2, 100) == 0  # begun anew
    now[0] += 3
    assert pace.left(5, 100) == 95
    assert pace.left(100, 100) == 0


@pytest.mark.parametrize(("error", "outcome"), [(KeyboardInterrupt, "interrupted"), (TimeIsUp, "stopped")])
def test_a_stage_that_was_interrupted_neither_failed_nor_is_done(
    error: type[BaseException], outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = progress.display(1, goes_on=True)
    with pytest.raises(error), shown.stage("first"):
        raise error
    assert shown.done == 0
    assert capsys.readouterr().err.startswith(f"[0/1] first: {outcome}, ")


def test_a_command_that_begins_anew_says_only_that_it_was_interrupted(
    suite: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("suite.inference.entrants.prepare_entrants", interrupt)
    assert suite("time", "resnet18") == (130, "", "\ninterrupted\n")


def test_bars_know_their_steps_from_the_first_and_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    now = [0.0]
    monkeypatch.setattr(lines, "monotonic", lambda: now[0])
    shown = progress.display(3)
    assert isinstance(shown, bars.Bars)
    shown.expect(lambda: "about 3 h 05 min left")
    with shown.stage("resnet110_w32_relu_nobias on digits100 seed 4: train", 123456) as step:
        assert shown._progress.tasks[-1].total == 123456
        step(1, 123456, "1,234 images/s, 10 % data wait")
        now[0] += 2
        step(2, 123456, "epoch 1/9, 1,234 images/s, 10 % data wait")
        console = Console(width=80)
        with console.capture() as captured:
            console.print(shown._progress.get_renderable())
    shown.close()
    every, one = captured.get().splitlines()
    assert every.split()[0] == "stages"
    assert every.split()[-7:] == ["0/3", "about", "3", "h", "05", "min", "left"]
    assert one.startswith("resnet110_w32_relu_nob…, epoch 1/9 ")
    assert one.rstrip().endswith("2/123456 about 68 h 35 min left")
    assert max(map(len, (every, one))) <= 80


def test_ctrl_c_is_answered_above_the_bars_while_a_step_takes_long_and_leaves_a_clean_screen(
    terminal: Callable[..., Callable[..., list[str]]],
) -> None:
    see = terminal(LONG_STEPS)
    see("1/40")
    begin = time.monotonic()
    answer = "interrupted: finishing the step, for a checkpoint; again to stop now"
    seen = see(answer, keys=b"\x03")
    took = time.monotonic() - begin
    assert took < 2, f"answered after {took:.1f} s, in the midst of a call of four"
    assert not any("train: interrupted" in line for line in seen)
    seen = see("the end")
    assert re.sub(r"\d\.\d s", "4.0 s", "\n".join(seen)).splitlines() == [
        answer,
        "[0/9] a network: train: interrupted, 4.0 s",
        "the end",
    ]


@pytest.mark.parametrize(("encoding", "shortened"), [("utf-8", True), ("latin1", False), ("ascii", False)])
def test_a_bar_is_one_line_also_where_the_terminal_lacks_its_characters(
    encoding: str, shortened: bool, terminal: Callable[..., Callable[..., list[str]]]
) -> None:
    see = terminal(LONG_NAMES, PYTHONIOENCODING=encoding)
    see("5/40")
    lines = see("9/40")
    assert len(lines) == 2
    assert max(map(len, lines)) <= 75
    assert ("…" in lines[1]) == shortened
    assert "\\u2026" not in lines[1]
    assert not any("stages" in line or "/40" in line for line in see("the end"))

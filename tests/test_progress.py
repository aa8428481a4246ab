import io
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from suite import progress
from suite.interrupt import TimeIsUp


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
    assert isinstance(shown, progress.Bars)
    work(shown)
    text = terminal.getvalue()
    assert "[2/3] second: failed" in text
    assert "stages" in text
    assert "3/3" in text


def test_what_others_say_of_their_work_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = progress.display(3)
    assert isinstance(shown, progress.Bars)
    shown.elsewhere({"a \x1b[2J": (1, 2, "\x1b]0;title\x07")})
    description = shown._progress.tasks[-1].description
    shown.close()
    assert "title" in description
    assert not {"\x1b", "\x07"} & set(description)


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
    shown = progress.display(3)
    assert isinstance(shown, progress.Bars)
    shown.expect(lambda: "about 3 h 05 min left")
    with shown.stage("resnet110_w32_relu_nobias on digits100 seed 4: train", 123456) as step:
        assert shown._progress.tasks[-1].total == 123456
        step(1, 123456, "1,234 images/s, 10 % data wait")
        console = Console(width=80)
        with console.capture() as captured:
            console.print(shown._progress.get_renderable())
    shown.close()
    every, one = captured.get().splitlines()
    assert every.split()[0] == "stages"
    assert every.split()[-7:] == ["0/3", "about", "3", "h", "05", "min", "left"]
    assert one.startswith("resnet110_w32_relu")
    assert "1/123456" in one
    assert max(map(len, (every, one))) <= 80

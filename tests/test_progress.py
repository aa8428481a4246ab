import io
import sys

import pytest

from suite import progress


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

"""What is written down beside a figure."""

import sys

import pytest

from suite import env


def test_a_command_is_kept_without_the_place_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/suite/__main__.py", "run", "--table", "2"])
    assert env.environment()["command"] == ["python", "-m", "suite", "run", "--table", "2"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/suite", "show"])
    assert env.environment()["command"] == ["suite", "show"]

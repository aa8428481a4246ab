"""What is written down beside a figure."""

import os
import pwd
import sys

import pytest

from suite import env


def test_a_command_is_kept_without_the_place_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/suite/__main__.py", "run", "--table", "2"])
    assert env.environment()["command"] == ["python", "-m", "suite", "run", "--table", "2"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/suite", "show"])
    assert env.environment()["command"] == ["suite", "show"]


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.user() == pwd.getpwuid(os.getuid()).pw_name

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert env.user() == "12345"

import os
from pathlib import Path

import pytest

from suite.files import printable, write


def test_a_file_is_replaced_and_readable_for_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"one", b"two"):
        write(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_what_was_there_stays_if_the_disk_fails_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    write(path, b"before")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write(path, b"after")
    assert caught.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert printable("ResNet-20, 5 %, naïve") == "ResNet-20, 5 %, naïve"
    assert printable("\x1b[2J\x07a\x9b1m\u202e\x00\r") == r"\x1b[2J\x07a\x9b1m\u202e\x00\r"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"

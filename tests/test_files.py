import os
import shutil
import tempfile
from pathlib import Path

import pytest

from suite.errors import InputError
from suite.files import full_disk, name_full_disk, printable, write


@pytest.mark.parametrize(
    ("around", "folder", "file"),
    [(0o755, 0o755, 0o644), (0o2775, 0o2775, 0o664), (0o700, 0o700, 0o600), (0o1777, 0o755, 0o644)],
)
@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_a_file_is_replaced_and_has_the_mode_of_the_folder_that_was_there(
    tmp_path: Path, umask: int, around: int, folder: int, file: int
) -> None:
    path = tmp_path / "new" / "deep" / "file"
    tmp_path.chmod(around)
    before = os.umask(umask)
    try:
        for content in (b"one", b"two"):
            write(path, content)
            assert path.read_bytes() == content
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == file
    assert {each.stat().st_mode & 0o7777 for each in (path.parent, path.parent.parent)} == {folder}
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


def test_a_full_disk_is_named_by_its_folder_and_other_errors_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {str(tmp_path): 10, tempfile.gettempdir(): 20}
    usage = type("Usage", (), {})

    def disk_usage(place: Path) -> object:
        found = usage()
        found.free = free[str(place)]
        return found

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    of_rust = ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (OSError(28, "No space left on device"), of_rust):
        assert full_disk(error, tmp_path) == f"no space left in the folder {tmp_path}: free some, or choose another"
    free[str(tmp_path)] = 30
    assert f"{tempfile.gettempdir()}: free some, or set TMPDIR" in str(full_disk(of_rust, tmp_path))
    assert full_disk(RuntimeError("unable to write to file </torch_7>: No space left on device (28)"), tmp_path) is None
    with pytest.raises(InputError, match="no space left in the folder"), name_full_disk(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="denied"), name_full_disk(tmp_path):
        raise OSError(13, "Permission denied")


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert printable("ResNet-20, 5 %, naïve") == "ResNet-20, 5 %, naïve"
    assert printable("\x1b[2J\x07a\x9b1m\u202e\x00\r") == r"\x1b[2J\x07a\x9b1m\u202e\x00\r"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"

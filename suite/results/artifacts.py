"""The files that stages make: moved to where they belong, and listed with their hashes
in the record."""

import hashlib
import os
import shutil
from pathlib import Path

from suite.files import inherit_permissions, make_folder
from suite.results.record import Artifact


def describe_files(key: str, folder: Path | None) -> dict[str, Artifact]:
    """What a record says of the files in a folder, which are on the disk then."""
    found: dict[str, Artifact] = {}
    for file in sorted(folder.iterdir()) if folder else ():
        inherit_permissions(file)  # safetensors makes what only its owner may read
        _sync(file)
        place = f"artifacts/{key}/{file.name}"
        found[file.name] = Artifact(path=place, sha256=sha256(file), bytes=file.stat().st_size)
    return found


def move(folder: Path, target: Path) -> None:
    """Move a folder to where it belongs, in the place of what a run that was killed
    before its record has left."""
    make_folder(target.parent)
    if target.is_symlink():
        target.unlink()
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:  # Windows asks for the right to write
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Is a results folder as the suite left it? Every record, file and checkpoint is read
and hashed anew."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import env
from suite.errors import InputError, describe_error
from suite.files import printable
from suite.results.artifacts import sha256
from suite.results.notes import read_failure, read_plan
from suite.results.record import TYPES, AnyRecord, TrainRecord, key_of, read_record
from suite.results.weights import describe
from suite.results.wording import INDEX, remedy

# Inputs that hold the key of another record, and the stages of which it may be.
UPSTREAM = {"train": ("train",), "export": ("export",), "file": ("export", "convert")}


# Records without their files up to which each is named.
FEW = 3


@dataclass(frozen=True)
class Verification:
    """What was looked at, in numbers, how many files are `left_out`, and a line for
    each thing that is wrong: file, what it is, and the remedy."""

    records: int
    files: int
    bytes: int
    problems: list[str]
    left_out: int = 0

    @property
    def summary(self) -> str:
        """What was read, what may be missing, and how much is wrong."""
        read = f"read {_count(self.records, 'record')}"
        read += f" and {_count(self.files, 'file')}" + (f" ({self.bytes:,} bytes)" if self.files else "")
        if self.left_out:
            read += f"; {_count(self.left_out, 'file')} {'was' if self.left_out == 1 else 'were'} left out"
        return f"{read}: {_count(len(self.problems), 'problem')}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' if number != 1 else ''}"


def verify(
    root: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    without_files: bool = False,
) -> Verification:
    """Check a results folder against itself.

    Of a record: that it is one, holds what was written, stands under its own name, is
    the hash of its inputs, and that the records that it was made from are there. Of its
    files: that they are there, with their sizes and hashes. What lies in the folders of
    records, artifacts, failures, plans and checkpoints and belongs to nothing is named
    too, artifacts once all records are sound; a stage under way leaves nothing there
    but its checkpoints.

    Published results have the index of weights beside their folder, which is to say of
    them what their records say: of them every file but those weights may be left out.

    Args:
        root: a results folder that is there. Nothing in it is changed.
        progress: called with bytes read, bytes in all, and a note.
        without_files: a file that is not there is left out, and no problem, as one is
            that was removed on purpose.

    Raises:
        InputError: a folder in it, or the index beside it, cannot be read.
    """
    records, problems = _records(root)
    all_sound = not problems
    problems += _without_upstream(root, records)
    total = sum(artifact.bytes for record in records for artifact in record.artifacts.values())
    files = done = left_out = 0
    weights = _published_weights(root)
    missing: list[tuple[Path, Path]] = []
    for record in records:
        for artifact in record.artifacts.values():
            progress(done, total, "bytes")
            path = root / artifact.path
            if not os.path.lexists(path):
                total -= artifact.bytes
                removed = (root / "removed" / record.key).is_file()
                if without_files or removed or (weights is not None and path.resolve() not in weights):
                    left_out += 1
                else:
                    missing.append((path, _place(root, record)))
                continue
            if problem := _artifact(path, artifact.bytes, artifact.sha256):
                problems.append(f"{path}: {problem}; {remedy(root, f'delete {_place(root, record)} to make it again')}")
            files += 1
            done += artifact.bytes
    progress(done, total, "bytes")
    problems += _missing(missing)
    problems += _indexed_otherwise(root, records, weights or {})
    if all_sound:  # else a file may be of a damaged record, and be what hours of training left
        problems += _unlisted(root, records)
    problems += _notes(root / "failures", read_failure)
    problems += _notes(root / "plans", read_plan)
    problems += _checkpoints(root, {record.key for record in records})
    return Verification(len(records), files, done, [printable(problem) for problem in problems], left_out)


def _published_weights(root: Path) -> dict[Path, dict[str, Any]] | None:
    """What the index of weights beside a folder says of each file; None if there is no
    index."""
    index = root.resolve().parent / INDEX
    if not index.is_file():
        return None
    try:
        return {index.parent / each["file"]: each for each in json.loads(index.read_text("utf-8"))["weights"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: is no index of weights ({describe_error(error)}); {_anew(index)}") from None


def _anew(index: Path) -> str:
    return f"`{env.typed()} list weights --results {index.parent} --format json > {index}` writes it anew"


def _indexed_otherwise(root: Path, records: list[AnyRecord], weights: dict[Path, dict[str, Any]]) -> Iterator[str]:
    """A line for each training of which the index says anything else than its record
    and the configuration beside its weights."""
    index = root.resolve().parent / INDEX
    for record in records:
        stated = [weights.get((root / artifact.path).resolve()) for artifact in record.artifacts.values()]
        if record.stage != "train" or not any(stated):
            continue
        try:
            described = describe(read_record(_place(root, record), TrainRecord), root.resolve())
        except InputError as error:
            yield str(error)
            continue
        if json.loads(json.dumps(described)) not in stated:
            yield f"{index}: says other things of {described['name']} than its record; {_anew(index)}"


def _place(root: Path, record: AnyRecord) -> Path:
    return root / "records" / record.stage / f"{record.model}-{record.key}.json"


def _records(root: Path) -> tuple[list[AnyRecord], list[str]]:
    """The sound records, and a line for each other."""
    sound, problems = [], []
    for path in record_paths(root):
        try:
            sound.append(read_verified(root, path))
        except InputError as error:
            problems.append(str(error))
    return sound, problems


def record_paths(root: Path) -> list[Path]:
    """All that lies where records belong, whether it is one or not, in order.

    Raises:
        InputError: a folder cannot be read.
    """
    return [*_files(root / "records"), *(root / "records").glob("*/*/")]


def read_verified(root: Path, path: Path) -> AnyRecord:
    """Read a record that stands where it belongs and holds what its stage says.

    Raises:
        InputError: it does not, or is none; one line with the remedy.
    """
    if path.suffix != ".json" or path.parent.parent != root / "records":
        raise InputError(f"{path}: unexpected; delete it")
    try:
        record = read_record(path, AnyRecord)
        if record.key != key_of(record.stage, record.inputs):
            raise ValueError("its key is not the hash of its inputs")
        if path != _place(root, record):
            raise ValueError(f"it belongs at {_place(root, record)}")
        if kind := TYPES.get(record.stage):
            read_record(path, kind)
        return record
    except InputError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not a record ({error}); {remedy(path)}") from None


def _without_upstream(root: Path, records: list[AnyRecord]) -> Iterator[str]:
    there = {(record.stage, record.key) for record in records}
    for record in records:
        for name, stages in UPSTREAM.items():
            key = record.inputs.get(name)
            if isinstance(key, str) and not any((stage, key) in there for stage in stages):
                what = f"made from {' or '.join(stages)} {key}, of which there is no sound record"
                yield f"{_place(root, record)}: {what}; {remedy(root)}"


def _missing(files: list[tuple[Path, Path]]) -> Iterator[str]:
    """What to say of files that are not there, by their records; many at once were more
    likely left out."""
    records = list(dict.fromkeys(record for _, record in files))
    if len(records) > FEW:
        yield (
            f"{files[0][0]}: missing, like {len(files) - 1} others; where weights and ONNX files were left out on "
            "purpose, verify --without-files; else delete the records of those to make again"
        )
        return
    for path, record in files:
        what = remedy(record, f"delete {record} to make it again")
        yield f"{path}: missing; left out on purpose, verify --without-files; else {what}"


def _artifact(path: Path, size: int, sha: str) -> str | None:
    """What is wrong with a record's file, if anything."""
    if path.is_symlink() or path.parent.is_symlink():
        return "a link, not a file"
    try:
        if path.stat().st_size != size:
            return f"{path.stat().st_size} bytes instead of {size}"
        return None if sha256(path) == sha else "its content is not what was written"
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def _unlisted(root: Path, records: list[AnyRecord]) -> Iterator[str]:
    listed = {root / artifact.path for record in records for artifact in record.artifacts.values()}
    listed |= {root / "removed" / record.key for record in records}
    for path in [*_files(root / "artifacts"), *_files(root / "removed")]:
        if path not in listed:
            yield f"{path}: unexpected, of no record; delete it"


def _notes(folder: Path, read: Callable[[Path], object]) -> Iterator[str]:
    for path in _files(folder):
        try:
            if path.suffix != ".json":
                raise InputError(f"{path}: unexpected; delete it")
            read(path)
        except InputError as error:
            yield str(error)


def _checkpoints(root: Path, done: set[str]) -> Iterator[str]:
    for path in _files(root / "checkpoints"):
        if path.suffix != ".safetensors" or path.parent.name in done:
            yield f"{path}: unexpected, of no training under way; delete it"
            continue
        from suite.training import checkpoint

        try:
            checkpoint.read_one(path)
        except checkpoint.DAMAGED as error:
            yield f"{path}: damaged checkpoint ({error}); delete it, and training goes on from the one before it"


def _files(folder: Path) -> Iterator[Path]:
    """All that is no folder below a folder, in order; links are not followed."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}")

    if folder.is_symlink():
        yield folder
        return
    for where, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        folders.sort()
        yield from (Path(where, name) for name in sorted(names + links))

"""Results on disk: one immutable JSON record for each finished stage, and the files
that the stage made.

    records/STAGE/MODEL-KEY.json   what went in, what came out, with which hardware and versions
    artifacts/KEY/                 the stage's files (weights, ONNX), listed with their hashes in the record
    failures/STAGE/MODEL-KEY.json  why a stage failed last time; gone once it succeeds
    checkpoints/KEY/               state of a training that was stopped; gone once it succeeds
    claims/                        who is at which stage (see `suite.grid.claims`)
    runs/                          which runs are there
    plans/KEY.json                 what each command is to do, for those who ask how far it is
    removed/KEY                    why a record's files were removed on purpose; gone once they are made again
    work                           stages under way, each folder locked by its process; the next run removes the others

KEY is the hash of the stage's inputs, its upstream's key among them, so nothing is done
twice and a run that was killed goes on where it was. A record appears by a single
rename after its files have: it is there whole or not at all, and several processes may
share the folder. It holds a hash of itself, so that no changed figure is ever shown.

What is read may come from strangers: nothing outside the folder is read, replaced or
deleted on a record's word.
"""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from suite.errors import InputError
from suite.files import write
from suite.results import artifacts
from suite.results.folder import Folder
from suite.results.notes import Failure, Plan, read_failure, read_plan
from suite.results.record import FORMAT, AnyRecord, K, Record, key_of, read_record, to_json


class Store(Folder):
    """A results folder. The only writer of results."""

    def get(self, stage: str, inputs: Mapping[str, object]) -> AnyRecord | None:
        """The record of these inputs, if it is there and its files are, by their sizes
        whole.

        Raises:
            InputError: it is damaged, or not a record.
        """
        path = self._path("records", stage, inputs)
        if not os.path.lexists(path):
            return None
        record = read_record(path, AnyRecord)
        return record if all(self._is_whole(record, name) for name in record.artifacts) else None

    def get_even_without_files(self, stage: str, inputs: Mapping[str, object]) -> AnyRecord | None:
        """The same as `get`, or a record whose files were removed on purpose: its
        figures stand without them.

        Raises:
            InputError: it is damaged, or not a record.
        """
        path = self._path("records", stage, inputs)
        if self.was_removed(key_of(stage, inputs)) and os.path.lexists(path):
            return read_record(path, AnyRecord)
        return self.get(stage, inputs)

    def was_removed(self, key: str) -> bool:
        """Whether the files of a record were removed on purpose."""
        return (self.inside("removed") / key).is_file()

    def remove_files(self, record: Record[object, object], why: str) -> None:
        """Remove a record's files for good; the record stays and stands.

        Raises:
            InputError: the folder cannot be written to.
        """
        folder = self.inside("artifacts", record.key)
        try:
            with self.alone():
                # The mark comes first: files that are partly gone without it would be made again.
                write(self.inside("removed") / record.key, f"{why}\n".encode())
                if folder.is_dir():
                    shutil.rmtree(folder)
        except OSError as error:
            raise self.cannot_write(error) from None

    def artifact(self, record: Record[object, object], name: str) -> Path:
        """Where a record's file lies.

        Raises:
            InputError: a link leads out of the results folder.
        """
        return self.inside(record.artifacts[name].path)

    def _is_whole(self, record: AnyRecord, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self.artifact(record, name).stat().st_size == record.artifacts[name].bytes
        return False

    def records(self, stage: str, models: Collection[str] | None = None) -> list[AnyRecord]:
        """The records of a stage, in the order of their file names; see `each`."""
        return list(self.each(stage, models))

    def each(self, stage: str, models: Collection[str] | None = None) -> Iterator[AnyRecord]:
        """The records of a stage one at a time, with all that they hold and what it is
        unknown, in the order of their file names.

        Args:
            stage: see `Record`.
            models: only records of these models; None for all.

        Raises:
            InputError: a file is not a record, or of another version.
        """
        return (read_record(path, AnyRecord) for path in self._places(stage, models))

    def typed(self, kind: type[K], models: Collection[str] | None = None) -> Iterator[K]:
        """The records of the stage that this kind is of, one at a time, as `each` but
        for their type.

        Raises:
            InputError: a file is no record of this kind, or of another version.
        """
        return (read_record(path, kind) for path in self._places(kind.of, models))

    def _places(self, stage: str, models: Collection[str] | None) -> Iterator[Path]:
        folder = self.inside("records", stage)
        for name in sorted(_listed(folder)):
            # A name tells the model, so that what nobody asked for is not even opened.
            if name.endswith(".json") and (models is None or name.rpartition("-")[0] in models):
                yield folder / name

    def stages(self) -> list[str]:
        """The stages of which there are records."""
        return sorted(_listed(self.root / "records"))

    def names(self, stage: str) -> list[str]:
        """Of each record of a stage its file's name without the ending, MODEL-KEY."""
        names = _listed(self.root / "records" / stage)
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def keys(self, stage: str) -> set[str]:
        """The keys of a stage's records."""
        return {name.rpartition("-")[2] for name in self.names(stage)}

    def failures(self) -> list[Failure]:
        """What failed and has not succeeded since.

        Raises:
            InputError: a file is no such note.
        """
        return [read_failure(path) for path in sorted(self.inside("failures").glob("*/*.json"))]

    def save_plan(self, content: Mapping[str, object]) -> None:
        """Keep what a command is to do; the same plan again changes nothing.

        Raises:
            InputError: the folder cannot be written to.
        """
        path = self.inside("plans") / f"{key_of('plan', content)}.json"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write(path, to_json({**content, "begun": _now()}))
        except OSError as error:
            raise self.cannot_write(error) from None

    def plans(self) -> list[Plan]:
        """What the commands on this folder are to do, in the order in which they were
        first given.

        Raises:
            InputError: a file is no plan.
        """
        plans = [read_plan(path) for path in sorted(self.inside("plans").glob("*.json"))]
        return sorted(plans, key=lambda plan: plan.begun)

    def checkpoints(self, stage: str, inputs: Mapping[str, object]) -> Path:
        """Where a stage may keep what it needs to go on after it was stopped."""
        return self.inside("checkpoints", key_of(stage, inputs))

    def put(
        self,
        stage: str,
        inputs: Mapping[str, object],
        result: Mapping[str, object] | msgspec.Struct,
        environment: Mapping[str, object],
        timing: Mapping[str, object],
        files: Path | None = None,
    ) -> AnyRecord:
        """Keep a result, and the folder `files` with what the stage made; returns the
        record.

        A record that is there already with its files stays as it is and is returned:
        the first result of given inputs counts. Who writes the same at the same time
        waits, so that a record and its files are always of one piece.

        Raises:
            InputError: the folder cannot be written to; what was there before still
                is.
        """
        path, key = self._path("records", stage, inputs), key_of(stage, inputs)
        try:
            content: dict[str, object] = {"stage": stage, "key": key, "inputs": inputs, "environment": environment}
            content |= {"result": msgspec.to_builtins(result), "timing": timing, "finished": _now(), "format": FORMAT}
            content |= {"artifacts": msgspec.to_builtins(artifacts.describe_files(key, files)), "digest": ""}
            with self.alone():
                if self.get(stage, inputs) is None:
                    if files is not None:
                        artifacts.move(files, self.inside("artifacts") / key)
                    write(path, to_json(content))
                    (self.inside("removed") / key).unlink(missing_ok=True)
            self._path("failures", stage, inputs).unlink(missing_ok=True)
        except OSError as error:
            raise self.cannot_write(error) from None
        shutil.rmtree(self.checkpoints(stage, inputs), ignore_errors=True)
        return read_record(path, AnyRecord)

    def replace(self, path: Path, before: bytes, after: bytes) -> bool:
        """Replace the text of a record by another of equal content (see `compact`);
        returns whether it was still that from `before`, and was replaced.

        Raises:
            InputError: the folder cannot be written to; the record is what it was.
        """
        try:
            with self.alone():
                if path.is_symlink() or path.read_bytes() != before:
                    return False
                write(self.inside(*path.relative_to(self.root).parts), after)
        except OSError as error:
            raise self.cannot_write(error) from None
        return True

    def failed_at(self, stage: str, inputs: Mapping[str, object]) -> int | None:
        """What tells the latest failure of a stage from any other: the time of its
        note; None if there is none."""
        try:
            return self._path("failures", stage, inputs).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def fail(self, stage: str, inputs: Mapping[str, object], reason: str) -> None:
        """Note why a stage failed, for the table's footnotes; the next run tries it
        again.

        Raises:
            InputError: the folder cannot be written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            note = {"stage": stage, "inputs": inputs, "reason": reason}
            write(self._path("failures", stage, inputs), to_json(note))
        except OSError as error:
            raise self.cannot_write(error) from None

    def _path(self, kind: str, stage: str, inputs: Mapping[str, object]) -> Path:
        return self.inside(kind, stage) / f"{inputs['model']}-{key_of(stage, inputs)}.json"


def _listed(folder: Path) -> list[str]:
    """What is in a folder, which need not be there.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

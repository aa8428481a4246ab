"""Results on disk: one immutable JSON record for each finished stage, and the files that the stage made.

    records/STAGE/MODEL-KEY.json   what went in, what came out, with which hardware and versions
    artifacts/KEY/                 the stage's files (weights, ONNX), listed with their hashes in the record
    failures/STAGE/MODEL-KEY.json  why a stage failed last time; gone once it succeeds
    checkpoints/KEY/               state of a training that was stopped; gone once it succeeds
    claims/                        who is at which stage (see `suite.grid.claims`)
    plans/KEY.json                 what each command is to do, for those who ask how far it is
    removed/KEY                    why a record's files were removed on purpose; gone once they are made again
    work                           stages under way, each folder locked by its process; the next run removes the others

KEY is the hash of the stage's inputs, its upstream's key among them, so nothing is done twice and a run that was
killed goes on where it was. A record appears by a single rename after its files have: it is there whole or not at
all, and several processes may share the folder. It holds a hash of itself, so that no changed figure is ever shown.

What is read may come from strangers: nothing outside the folder is read, replaced or deleted on a record's word.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from suite.errors import InputError
from suite.files import make_folder, share, write
from suite.results import locks
from suite.results.notes import Failure, Plan, read_failure, read_plan
from suite.results.record import FORMAT, AnyRecord, Artifact, K, Record, key_of, read_record, text_of

# Seconds after which what nobody has changed counts as left behind where locks cannot tell: on file systems without
# them, and of other machines, whose locks may not reach this one.
LONG = 7 * 24 * 3600.0


class Store:
    """A results folder. The only writer of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, stage: str, inputs: Mapping[str, object]) -> AnyRecord | None:
        """The record of these inputs, if it is there and its files are, by their sizes whole.

        Raises:
            InputError: it is damaged, or not a record.
        """
        path = self._path("records", stage, inputs)
        if not os.path.lexists(path):
            return None
        record = read_record(path, AnyRecord)
        return record if all(self._is_whole(record, name) for name in record.artifacts) else None

    def standing(self, stage: str, inputs: Mapping[str, object]) -> AnyRecord | None:
        """The same as `get`, or a record whose files were removed on purpose: its figures stand without them.

        Raises:
            InputError: it is damaged, or not a record.
        """
        path = self._path("records", stage, inputs)
        if self.was_removed(key_of(stage, inputs)) and os.path.lexists(path):
            return read_record(path, AnyRecord)
        return self.get(stage, inputs)

    def was_removed(self, key: str) -> bool:
        """Whether the files of a record were removed on purpose."""
        return (self._inside("removed") / key).is_file()

    def remove_files(self, record: Record[object, object], why: str) -> None:
        """Remove a record's files for good; the record stays and stands.

        Raises:
            InputError: the folder cannot be written to.
        """
        folder = self._inside("artifacts", record.key)
        try:
            with self._alone():
                # The mark comes first: files that are partly gone without it would be made again.
                write(self._inside("removed") / record.key, f"{why}\n".encode())
                if folder.is_dir():
                    shutil.rmtree(folder)
        except OSError as error:
            raise self._cannot_write(error) from None

    def artifact(self, record: Record[object, object], name: str) -> Path:
        """Where a record's file lies.

        Raises:
            InputError: a link leads out of the results folder.
        """
        return self._inside(record.artifacts[name].path)

    def _is_whole(self, record: AnyRecord, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self.artifact(record, name).stat().st_size == record.artifacts[name].bytes
        return False

    def records(self, stage: str, models: Collection[str] | None = None) -> list[AnyRecord]:
        """The records of a stage, in the order of their file names; see `each`."""
        return list(self.each(stage, models))

    def each(self, stage: str, models: Collection[str] | None = None) -> Iterator[AnyRecord]:
        """The records of a stage one at a time, with all that they hold and what it is unknown, in the order of their
        file names.

        Args:
            stage: see `Record`.
            models: only records of these models; None for all.

        Raises:
            InputError: a file is not a record, or of another version.
        """
        return (read_record(path, AnyRecord) for path in self._places(stage, models))

    def typed(self, kind: type[K], models: Collection[str] | None = None) -> Iterator[K]:
        """The records of the stage that this kind is of, one at a time, as `each` but for their type.

        Raises:
            InputError: a file is no record of this kind, or of another version.
        """
        return (read_record(path, kind) for path in self._places(kind.of, models))

    def _places(self, stage: str, models: Collection[str] | None) -> Iterator[Path]:
        folder = self._inside("records", stage)
        if not folder.is_dir():
            return
        for name in sorted(os.listdir(folder)):
            # A name tells the model, so that what nobody asked for is not even opened.
            if name.endswith(".json") and (models is None or name.rpartition("-")[0] in models):
                yield folder / name

    def stages(self) -> list[str]:
        """The stages of which there are records."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.root / "records"))
        return []

    def names(self, stage: str) -> list[str]:
        """Of each record of a stage its file's name without the ending, MODEL-KEY."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.root / "records" / stage)
            return [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return []

    def keys(self, stage: str) -> set[str]:
        """The keys of a stage's records."""
        return {name.rpartition("-")[2] for name in self.names(stage)}

    def failures(self) -> list[Failure]:
        """What failed and has not succeeded since.

        Raises:
            InputError: a file is no such note.
        """
        return [read_failure(path) for path in sorted(self._inside("failures").glob("*/*.json"))]

    def keep_plan(self, content: Mapping[str, object]) -> None:
        """Keep what a command is to do; the same plan again changes nothing.

        Raises:
            InputError: the folder cannot be written to.
        """
        path = self._inside("plans") / f"{key_of('plan', content)}.json"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write(path, text_of({**content, "begun": _now()}))
        except OSError as error:
            raise self._cannot_write(error) from None

    def plans(self) -> list[Plan]:
        """What the commands on this folder are to do, in the order in which they were first given.

        Raises:
            InputError: a file is no plan.
        """
        plans = [read_plan(path) for path in sorted(self._inside("plans").glob("*.json"))]
        return sorted(plans, key=lambda plan: plan.begun)

    def checkpoints(self, stage: str, inputs: Mapping[str, object]) -> Path:
        """Where a stage may keep what it needs to go on after it was stopped."""
        return self._inside("checkpoints", key_of(stage, inputs))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder for a stage's files, gone afterwards unless `put` has taken it over."""
        work = self._inside("work")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            make_folder(work)
            with self._alone():  # of those who sweep, which would find it without a lock
                folder = Path(tempfile.mkdtemp(dir=work, prefix=f"{_kernel()}-"))
                share(folder)  # tempfile makes what only its owner may read
                held = locks.open_folder(folder, _beside(folder))
                with contextlib.suppress(OSError):  # some network file systems have no locks; see `_is_left`
                    locks.lock(held)
        except OSError as error:
            raise self._cannot_write(error) from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
            _beside(folder).unlink(missing_ok=True)

    def check(self) -> None:
        """See to it that results can be written, before there are any.

        Raises:
            InputError: a folder cannot be written to by this user; it is named.
        """
        if not self.root.is_dir():
            return  # it is made, or cannot be, by the first who writes
        kinds = [self._inside(name) for name in ("records", "failures")]
        inside = [folder for kind in kinds if kind.is_dir() for folder in kind.iterdir()]
        others = [self._inside(name) for name in ("artifacts", "checkpoints", "plans", "claims", "removed", "work")]
        for folder in (self.root, *kinds, *inside, *others):
            if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
                found = folder.stat()
                raise InputError(
                    f"--results {self.root}: cannot write to {folder}, which has the owner {found.st_uid}, the group "
                    f"{found.st_gid} and the mode {found.st_mode & 0o7777:04o}; have its owner give you the right, or "
                    "use another folder"
                )

    def sweep(self) -> None:
        """Remove what processes that were killed have left: folders of stages that nobody is at, and files that were
        to be renamed."""
        work = self._inside("work")
        with contextlib.suppress(OSError), self._alone():  # a folder that cannot be written to is left as it is
            for folder in list(work.iterdir()):
                if folder.is_dir() and _is_left(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            for file in work.glob(f"*{_LOCK}"):  # of folders that are not there any more
                if not file.with_suffix("").is_dir():
                    with contextlib.suppress(OSError):  # one of a process that is about to remove it
                        file.unlink()
        for kind in ("records", "failures", "checkpoints", "plans", "claims"):
            for path in self._inside(kind).glob("**/*.tmp"):
                with contextlib.suppress(OSError):
                    if _age(path) > LONG:
                        path.unlink()

    def put(
        self,
        stage: str,
        inputs: Mapping[str, object],
        result: Mapping[str, object] | msgspec.Struct,
        environment: Mapping[str, object],
        timing: Mapping[str, object],
        files: Path | None = None,
    ) -> AnyRecord:
        """Keep a result, and the folder `files` with what the stage made; returns the record.

        A record that is there already with its files stays as it is and is returned: the first result of given inputs
        counts. Who writes the same at the same time waits, so that a record and its files are always of one piece.

        Raises:
            InputError: the folder cannot be written to; what was there before still is.
        """
        path, key = self._path("records", stage, inputs), key_of(stage, inputs)
        try:
            content: dict[str, object] = {"stage": stage, "key": key, "inputs": inputs, "environment": environment}
            content |= {"result": msgspec.to_builtins(result), "timing": timing, "finished": _now(), "format": FORMAT}
            content |= {"artifacts": msgspec.to_builtins(_artifacts(key, files)), "digest": ""}
            with self._alone():
                if self.get(stage, inputs) is None:
                    if files is not None:
                        _move(files, self._inside("artifacts") / key)
                    write(path, text_of(content))
                    (self._inside("removed") / key).unlink(missing_ok=True)
            self._path("failures", stage, inputs).unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from None
        shutil.rmtree(self.checkpoints(stage, inputs), ignore_errors=True)
        return read_record(path, AnyRecord)

    def replace(self, path: Path, before: bytes, after: bytes) -> bool:
        """Replace the text of a record by another of equal content (see `compact`); returns whether it was still
        that from `before`, and was replaced.

        Raises:
            InputError: the folder cannot be written to; the record is what it was.
        """
        try:
            with self._alone():
                if path.is_symlink() or path.read_bytes() != before:
                    return False
                write(self._inside(*path.relative_to(self.root).parts), after)
        except OSError as error:
            raise self._cannot_write(error) from None
        return True

    def failed_at(self, stage: str, inputs: Mapping[str, object]) -> int | None:
        """What tells the latest failure of a stage from any other: the time of its note; None if there is none."""
        try:
            return self._path("failures", stage, inputs).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def fail(self, stage: str, inputs: Mapping[str, object], reason: str) -> None:
        """Note why a stage failed, for the table's footnotes; the next run tries it again.

        Raises:
            InputError: the folder cannot be written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            note = {"stage": stage, "inputs": inputs, "reason": reason}
            write(self._path("failures", stage, inputs), text_of(note))
        except OSError as error:
            raise self._cannot_write(error) from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from writing who use this too."""
        self.root.mkdir(parents=True, exist_ok=True)
        root = self.root.resolve()
        folder = locks.open_folder(root, root / _LOCK)
        try:
            # Some network file systems have no locks; there only claims keep workers apart.
            with contextlib.suppress(OSError):
                locks.lock(folder)
            yield
        finally:
            os.close(folder)

    def _inside(self, *parts: str) -> Path:
        """A path in the folder, and not one that a link leads out of it."""
        path = self.root.joinpath(*parts)
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError):  # links in a circle
            inside = False
        if not inside:
            raise InputError(f"{path}: a link leads out of the results folder; delete the link")
        return path

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"--results {self.root}: cannot write there: {error.strerror or error}")

    def _path(self, kind: str, stage: str, inputs: Mapping[str, object]) -> Path:
        return self._inside(kind, stage) / f"{inputs['model']}-{key_of(stage, inputs)}.json"


def _kernel() -> str:
    """What tells whose locks this process sees: this machine since its start, in all its containers."""
    import socket  # here, as what follows it: who reads only need not wait for them

    from suite.results.holder import since_start

    return hashlib.sha256((since_start() or socket.gethostname()).encode()).hexdigest()[:8]


# Name of the file, or its end, that is locked for a folder where the system opens no folders.
_LOCK = ".lock"


def _beside(folder: Path) -> Path:
    return folder.with_suffix(_LOCK)


def _is_left(folder: Path) -> bool:
    """Whether a folder in work/ belongs to no process that lives."""
    try:
        descriptor = locks.open_folder(folder, _beside(folder))
    except OSError:
        return False
    try:
        locks.lock(descriptor, wait=False)
        seen = folder.name.startswith(f"{_kernel()}-")
    except BlockingIOError:
        return False
    except OSError:
        seen = False
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):  # what it held is just being moved
        return seen or min(map(_age, (folder, *folder.rglob("*")))) > LONG
    return False


def _age(path: Path) -> float:
    """Seconds since a file or folder was last changed, by the clock that file systems use too."""
    return datetime.now(UTC).timestamp() - path.lstat().st_mtime


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _artifacts(key: str, folder: Path | None) -> dict[str, Artifact]:
    """What a record says of the files in a folder, which are on the disk then."""
    found: dict[str, Artifact] = {}
    for file in sorted(folder.iterdir()) if folder else ():
        share(file)  # safetensors makes what only its owner may read
        _sync(file)
        place = f"artifacts/{key}/{file.name}"
        found[file.name] = Artifact(path=place, sha256=sha256(file), bytes=file.stat().st_size)
    return found


def _move(folder: Path, target: Path) -> None:
    """Move a folder to where it belongs, in the place of what a run that was killed before its record has left."""
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

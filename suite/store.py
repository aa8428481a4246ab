"""Results on disk: one immutable JSON record for each finished stage, and the files that the stage made.

    DIR/records/STAGE/MODEL-KEY.json   what went in, what came out, with which hardware and versions
    DIR/artifacts/KEY/                 the stage's files (weights, ONNX), listed with their hashes in the record
    DIR/failures/STAGE/MODEL-KEY.json  why a stage failed last time; gone once it succeeds
    DIR/checkpoints/KEY/               state of a training that was stopped; gone once it succeeds
    DIR/claims/                        who is at which stage (see `suite.claims`)
    DIR/plans/KEY.json                 what each command is to do, for those who ask how far it is
    DIR/work/                          stages under way; safe to delete when nothing runs

KEY is the hash of the stage's inputs, its upstream's key among them, so nothing is done twice and a run that was
killed goes on where it was. A record appears by a single rename after its files have: it is there whole or not at
all, and several processes may share the folder. It holds a hash of itself, so that no changed figure is ever shown.

What is read may come from strangers: nothing outside the folder is read, replaced or deleted on a record's word, and
what it says is printable.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from suite.errors import InputError
from suite.files import printable, write

# Version of the record's layout. 1: first; records without a digest are of it too.
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One finished stage.

    Attributes:
        stage: "train", "export", "parity" or "latency".
        key: hash of the stage and its inputs.
        inputs: everything that the result depends on.
        result: what the stage found, in the units that the stage's docstring gives. For training on the CPU it is
            the same, bit for bit, whenever the inputs are.
        timing: `seconds` of the stage, and what else a stage says of its own speed.
        artifacts: the stage's files by name: path below the results folder, SHA-256 and bytes.
        environment: hardware, versions, commit and command (see `suite.env`).
        finished: when, in UTC.
        format: version of this layout.
        digest: SHA-256 of the record's text, itself left out; empty in records from before it was kept.
    """

    stage: str
    key: str
    inputs: Mapping[str, Any]
    result: Mapping[str, Any]
    timing: Mapping[str, float]
    artifacts: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]
    finished: str
    format: int = FORMAT
    digest: str = ""


def key_of(stage: str, inputs: Mapping[str, Any]) -> str:
    """The key under which the result of these inputs is kept: 20 hexadecimal digits."""
    text = json.dumps([FORMAT, stage, inputs], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Store:
    """A results folder. The only writer of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, stage: str, inputs: Mapping[str, Any]) -> Record | None:
        """The record of these inputs, if it is there and its files are, by their sizes whole.

        Raises:
            InputError: it is damaged, or not a record.
        """
        path = self._path("records", stage, inputs)
        if not os.path.lexists(path):
            return None
        record = read_record(path)
        return record if all(self._is_whole(record, name) for name in record.artifacts) else None

    def artifact(self, record: Record, name: str) -> Path:
        """Where a record's file lies.

        Raises:
            InputError: a link leads out of the results folder.
        """
        return self._inside(str(record.artifacts[name]["path"]))

    def _is_whole(self, record: Record, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return bool(self.artifact(record, name).stat().st_size == record.artifacts[name]["bytes"])
        return False

    def records(self, stage: str, models: Collection[str] | None = None) -> list[Record]:
        """The records of a stage, in the order of their file names.

        Args:
            stage: see `Record`.
            models: only records of these models; None for all.

        Raises:
            InputError: a file is not a record, or of another version.
        """
        return list(self.each(stage, models))

    def each(self, stage: str, models: Collection[str] | None = None, without: str | None = None) -> Iterator[Record]:
        """The same as `records`, one at a time, for a reader that keeps a part of each.

        `without` names a list in the result that nobody will look at: it comes empty, and the records sooner.
        """
        folder = self._inside("records", stage)
        if not folder.is_dir():
            return
        for name in sorted(os.listdir(folder)):
            # A name tells the model, so that what nobody asked for is not even opened.
            if name.endswith(".json") and (models is None or name.rpartition("-")[0] in models):
                yield read_record(folder / name, without)

    def stages(self) -> list[str]:
        """The stages of which there are records."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.root / "records"))
        return []

    def keys(self, stage: str) -> set[str]:
        """The keys of a stage's records."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.root / "records" / stage)
            return {name.removesuffix(".json").rpartition("-")[2] for name in names if name.endswith(".json")}
        return set()

    def failures(self) -> list[dict[str, Any]]:
        """What failed and has not succeeded since: `stage`, `key`, `inputs` and `reason`.

        Raises:
            InputError: a file is no such note.
        """
        notes = [read_failure(path) for path in sorted(self._inside("failures").glob("*/*.json"))]
        return [note | {"key": key_of(note["stage"], note["inputs"])} for note in notes]

    def keep_plan(self, content: Mapping[str, Any]) -> None:
        """Keep what a command is to do; the same plan again changes nothing.

        Raises:
            InputError: the folder cannot be written to.
        """
        path = self._inside("plans") / f"{key_of('plan', content)}.json"
        try:
            if not path.exists():
                _write(path, {**content, "begun": _now()})
        except OSError as error:
            raise self._cannot_write(error) from None

    def plans(self) -> list[dict[str, Any]]:
        """What the commands on this folder are to do, in the order in which they were first given.

        Raises:
            InputError: a file is no plan.
        """
        plans = [read_plan(path) for path in sorted(self._inside("plans").glob("*.json"))]
        return sorted(plans, key=lambda plan: str(plan["begun"]))

    def checkpoints(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """Where a stage may keep what it needs to go on after it was stopped."""
        return self._inside("checkpoints", key_of(stage, inputs))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder for a stage's files, gone afterwards unless `put` has taken it over."""
        work = self._inside("work")
        try:
            work.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=work))
            folder.chmod(0o755)  # tempfile makes what only its owner may read, but results are there to be shared
        except OSError as error:
            raise self._cannot_write(error) from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        result: Mapping[str, Any],
        environment: Mapping[str, Any],
        timing: Mapping[str, float],
        files: Path | None = None,
    ) -> Record:
        """Keep a result, and the folder `files` with what the stage made; returns the record.

        A record that is there already with its files stays as it is and is returned: the first result of given inputs
        counts. Who writes the same at the same time waits, so that a record and its files are always of one piece.

        Raises:
            InputError: the folder cannot be written to; what was there before still is.
        """
        path, key = self._path("records", stage, inputs), key_of(stage, inputs)
        try:
            artifacts = _artifacts(key, files)
            record = Record(stage, key, inputs, result, timing, artifacts, environment, _now())
            with self._alone():
                if self.get(stage, inputs) is None:
                    if files is not None:
                        _move(files, self._inside("artifacts") / key)
                    _write(path, asdict(record))
            self._path("failures", stage, inputs).unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from None
        shutil.rmtree(self.checkpoints(stage, inputs), ignore_errors=True)
        return read_record(path)

    def failed_at(self, stage: str, inputs: Mapping[str, Any]) -> int | None:
        """What tells the latest failure of a stage from any other: the time of its note; None if there is none."""
        try:
            return self._path("failures", stage, inputs).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def fail(self, stage: str, inputs: Mapping[str, Any], reason: str) -> None:
        """Note why a stage failed, for the table's footnotes; the next run tries it again.

        Raises:
            InputError: the folder cannot be written to.
        """
        try:
            _write(self._path("failures", stage, inputs), {"stage": stage, "inputs": inputs, "reason": reason})
        except OSError as error:
            raise self._cannot_write(error) from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from writing who use this too."""
        self.root.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.root, os.O_RDONLY)
        try:
            # Some network file systems have no locks; there only claims keep workers apart.
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _inside(self, *parts: str) -> Path:
        """A path in the folder, and not one that a link leads out of it."""
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"{path}: a link leads out of the results folder; delete the link")
        return path

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"--results {self.root}: cannot write there: {error.strerror or error}")

    def _path(self, kind: str, stage: str, inputs: Mapping[str, Any]) -> Path:
        return self._inside(kind, stage) / f"{inputs['model']}-{key_of(stage, inputs)}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(path: Path, without: str | None = None) -> Record:
    """Read one record; a list of its result that `without` names comes empty.

    Raises:
        InputError: it is damaged or was changed since it was written, is of another version, or is none.
    """
    try:
        content, plain, unchanged = parse(path, without=without)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        if content.get("format") != FORMAT:
            raise InputError(f"{path}: record format {content.get('format')!r}; this suite reads format {FORMAT}")
        if not unchanged:
            raise ValueError("changed since it was written")
        record = Record(**(content if plain else _printable(content)))
        _check(record)
        return record
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a record ({_reason(error)}); delete it to measure again") from None


def read_failure(path: Path) -> dict[str, Any]:
    """Read the note of one failure.

    Raises:
        InputError: it is damaged, or none.
    """
    try:
        content, plain, _ = parse(path)
        if not isinstance(content, dict) or not isinstance(content.get("inputs"), dict):
            raise ValueError("not an object with inputs")
        if not all(isinstance(text, str) for text in (content.get("stage"), content.get("reason"), _model(content))):
            raise ValueError("stage, reason or inputs' model is not text")
        return content if plain else dict(_printable(content))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the note of a failure ({_reason(error)}); delete it") from None


def read_plan(path: Path) -> dict[str, Any]:
    """Read what one command is to do: `command`, `begun`, and of each of its `stages` four texts.

    Raises:
        InputError: it is damaged, or none.
    """
    try:
        content, plain, _ = parse(path)
        if not isinstance(content, dict) or not isinstance(content.get("stages"), list):
            raise ValueError("not an object with stages")
        texts = [content.get("command"), content.get("begun")]
        for stage in content["stages"]:
            if not isinstance(stage, list) or len(stage) != 4:
                raise ValueError("a stage is not a list of four")
            texts += stage
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("command, begun or a part of a stage is not text")
        return content if plain else dict(_printable(content))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a plan ({_reason(error)}); delete it, the next run writes it anew") from None


class Parsed(NamedTuple):
    """The content of a JSON file; whether it is plain, of printable ASCII without escapes; and whether it is unchanged,
    its text being that of its digest if it has one."""

    content: Any
    plain: bool
    unchanged: bool


def parse(path: Path, without: str | None = None) -> Parsed:
    """Read a JSON file.

    Args:
        path: the file.
        without: a list in the result that is left empty, which saves most of the work for a long training's epochs.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file or not JSON, or a name is given twice.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("not a regular file")  # a link may lead anywhere, and a pipe never ends
    raw = path.read_bytes()
    # Of ten thousand records json alone would take more than a second.
    content = _parse_without(without, raw) if without else orjson.loads(raw)
    digest = content.get("digest") if isinstance(content, dict) else None
    if not digest:
        json.loads(raw, object_pairs_hook=_without_doubles)  # of two values orjson takes the last and says nothing
    plain = raw.isascii() and b"\\" not in raw and b"\x7f" not in raw
    return Parsed(content, plain, not digest or digest == _digest(raw, str(digest)))


def _parse_without(name: str, raw: bytes) -> Any:
    head, found, rest = raw.partition(f'"{name}": ['.encode())
    _, _, tail = rest.partition(b"]")
    try:
        content = orjson.loads(head + found + b"]" + tail)
    except ValueError:  # a bracket within the list, which leaves one too many, or no record at all
        content = orjson.loads(raw)
    if isinstance(content, dict) and isinstance(content.get("result"), dict) and name in content["result"]:
        content["result"][name] = []
    return content


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return {}  # what is read is orjson's


def _check(record: Record) -> None:
    """Check that a record's values are of the types that `Record` says, and that its files are its own."""
    for name in ("inputs", "result", "timing", "artifacts", "environment"):
        if not isinstance(getattr(record, name), dict):
            raise ValueError(f"{name} is not an object")
    texts = (record.stage, record.key, record.finished, record.digest, _model(vars(record)))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("stage, key, finished, digest or inputs' model is not text")
    for name, artifact in record.artifacts.items():
        if not isinstance(artifact, dict) or {key: type(value) for key, value in artifact.items()} != _ARTIFACT:
            raise ValueError(f"artifact {name}: not an object of path, sha256 and bytes")
        if "/" in name or name in ("", ".", "..") or artifact["path"] != f"artifacts/{record.key}/{name}":
            raise ValueError(f"artifact {name}: its path is {artifact['path']!r}, not artifacts/{record.key}/{name}")


_ARTIFACT = {"path": str, "sha256": str, "bytes": int}


def _model(content: Mapping[str, Any]) -> Any:
    return content["inputs"].get("model")


def _reason(error: Exception) -> str:
    return printable((error.strerror if isinstance(error, OSError) else None) or str(error))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(name): _printable(item) for name, item in value.items()}
    return value


# Stands for the digest in the text that is hashed.
_NO_DIGEST = 64 * "0"


def _digest(raw: bytes, digest: str) -> str:
    """The hash of a record's text, its own digest left out."""
    return hashlib.sha256(raw.replace(digest.encode(), _NO_DIGEST.encode(), 1)).hexdigest()


def _artifacts(key: str, folder: Path | None) -> dict[str, dict[str, Any]]:
    """What a record says of the files in a folder, which are on the disk then."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.iterdir()) if folder else ():
        _sync(file)
        found[file.name] = {
            "path": f"artifacts/{key}/{file.name}",
            "sha256": sha256(file),
            "bytes": file.stat().st_size,
        }
    return found


def _move(folder: Path, target: Path) -> None:
    """Move a folder to where it belongs, in the place of what a run that was killed before its record has left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a note, or a record with its digest."""
    digest = {"digest": _NO_DIGEST} if "digest" in content else {}
    raw = json.dumps({**content, **digest}, indent=1, sort_keys=True, allow_nan=False).encode()
    if digest:
        raw = raw.replace(_NO_DIGEST.encode(), _digest(raw, _NO_DIGEST).encode(), 1)
    write(path, raw)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

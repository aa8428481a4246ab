"""Results on disk: one immutable JSON record for each finished stage, and the files that the stage made.

    DIR/records/STAGE/MODEL-KEY.json   what went in, what came out, with which hardware and versions
    DIR/artifacts/KEY/                 the stage's files (weights, ONNX), listed with their hashes in the record
    DIR/failures/STAGE/MODEL-KEY.json  why a stage failed last time; gone once it succeeds
    DIR/checkpoints/KEY/               state of a training that was stopped; gone once it succeeds
    DIR/work/                          stages under way; safe to delete when nothing runs

KEY is the hash of the stage's inputs, its upstream's key among them, so nothing is done twice and a run that was
killed goes on where it was. A record appears by a single rename after its files have: it is there whole or not at
all, and several processes may share the folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from suite.errors import InputError

# Version of the record's layout. 1: first.
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


def key_of(stage: str, inputs: Mapping[str, Any]) -> str:
    """The key under which the result of these inputs is kept: 20 hexadecimal digits."""
    text = json.dumps([FORMAT, stage, inputs], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Store:
    """A results folder. The only writer of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, stage: str, inputs: Mapping[str, Any]) -> Record | None:
        """The record of these inputs, if it is there and its files are."""
        path = self._path("records", stage, inputs)
        if not path.exists():
            return None
        record = _read(path)
        return record if all(self.artifact(record, name).is_file() for name in record.artifacts) else None

    def artifact(self, record: Record, name: str) -> Path:
        """Where a record's file lies."""
        return self.root / str(record.artifacts[name]["path"])

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

        `without` names a list in the result that nobody will look at: the records come without it, and sooner.
        """
        folder = self.root / "records" / stage
        if not folder.is_dir():
            return
        for name in sorted(os.listdir(folder)):
            # A name tells the model, so that what nobody asked for is not even opened.
            if name.endswith(".json") and (models is None or name.rpartition("-")[0] in models):
                yield _read(folder / name, without)

    def failures(self) -> list[dict[str, Any]]:
        """What failed and has not succeeded since: `stage`, `inputs` and `reason`."""
        paths = sorted((self.root / "failures").glob("*/*.json"))
        return [json.loads(path.read_text("utf-8")) for path in paths]

    def checkpoints(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """Where a stage may keep what it needs to go on after it was stopped."""
        return self.root / "checkpoints" / key_of(stage, inputs)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder for a stage's files, gone afterwards unless `put` has taken it over."""
        work = self.root / "work"
        try:
            work.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=work))
            folder.chmod(0o755)  # tempfile makes what only its owner may read, but results are there to be shared
        except OSError as error:
            raise InputError(f"--results {self.root}: cannot write there: {error.strerror}") from None
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

        A record that is there already stays as it is and is returned: the first result of given inputs counts.
        """
        key = key_of(stage, inputs)
        artifacts: dict[str, dict[str, Any]] = {}
        if files is not None:
            target = self.root / "artifacts" / key
            for file in sorted(files.iterdir()):
                _sync(file)
                relative = str((target / file.name).relative_to(self.root))
                artifacts[file.name] = {
                    "path": relative,
                    "sha256": _sha256(file),
                    "bytes": file.stat().st_size,
                }
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.get(stage, inputs) is None:
                shutil.rmtree(target, ignore_errors=True)  # left by a run that was killed before its record
                files.rename(target)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(stage, key, inputs, result, timing, artifacts, environment, finished)
        _write(self._path("records", stage, inputs), asdict(record), replace=False)
        self._path("failures", stage, inputs).unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints(stage, inputs), ignore_errors=True)
        return _read(self._path("records", stage, inputs))

    def fail(self, stage: str, inputs: Mapping[str, Any], reason: str) -> None:
        """Note why a stage failed, for the table's footnotes; the next run tries it again."""
        _write(self._path("failures", stage, inputs), {"stage": stage, "inputs": inputs, "reason": reason})

    def _path(self, kind: str, stage: str, inputs: Mapping[str, Any]) -> Path:
        return self.root / kind / stage / f"{inputs['model']}-{key_of(stage, inputs)}.json"


def _read(path: Path, without: str | None = None) -> Record:
    try:
        text = path.read_bytes()
        raw = _parse_without(without, text) if without else orjson.loads(text)
        version = raw["format"]
        if version != FORMAT:
            raise InputError(f"{path}: record format {version!r}; this suite reads format {FORMAT}")
        return Record(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a record ({error}); delete it to measure again") from None


def _parse_without(name: str, text: bytes) -> Any:
    """A record's JSON without one list of its result: of a long training the epochs are nine tenths of the text."""
    head, found, rest = text.partition(f'"{name}": ['.encode())
    _, _, tail = rest.partition(b"]")
    try:
        raw = orjson.loads(head + found + b"]" + tail)
    except ValueError:  # a bracket within the list, which leaves one too many, or no record at all
        raw = orjson.loads(text)
    raw["result"].pop(name, None)
    return raw


def _write(path: Path, content: Mapping[str, Any], replace: bool = True) -> None:
    """Write JSON so that the file is there whole or not at all; without `replace` an existing file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        if replace:
            os.replace(temporary, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

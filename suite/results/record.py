"""What lies in a results folder as text: records, notes of failures and plans, and how they are read.

What is read may come from strangers: it is checked, and what it says is printable.
"""

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from suite.errors import InputError
from suite.files import printable

# Version of the record's layout. 1: first; records without a digest are of it too. 2: latencies hold each run once, as
# whole nanoseconds, and a list of numbers stands in one line.
FORMAT = 2
# Versions that are read.
READ = (1, 2)
# Version of the way in which keys are made, which is as old as the first layout.
_KEYS = 1


@dataclass(frozen=True)
class Record:
    """One finished stage.

    Attributes:
        stage: what was done, such as "train"; `suite.tables.spec.VERSIONS` has them all.
        key: hash of the stage and its inputs.
        inputs: everything that was asked for.
        result: what the stage found, in the units that the stage's docstring gives. For training on CPUs of one kind
            it is the same, bit for bit, whenever the inputs are.
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
    text = json.dumps([_KEYS, stage, inputs], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def read_record(path: Path, without: str | None = None) -> Record:
    """Read one record; a list of its result that `without` names comes empty.

    Raises:
        InputError: it is damaged or was changed since it was written, is of another version, or is none.
    """
    try:
        content, plain, unchanged = parse(path, without=without)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        if content.get("format") not in READ:
            legal = " and ".join(map(str, READ))
            raise InputError(f"{path}: record format {content.get('format')!r:.40}; this suite reads formats {legal}")
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
        inputs = content["inputs"]
        texts = [content.get("stage"), content.get("reason"), _model(content)]
        texts += [inputs[name] for name in ("train", "export") if name in inputs]
        if "data" in inputs:
            texts.append(inputs["data"].get("name") if isinstance(inputs["data"], dict) else None)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("stage, reason or inputs' model, train, export or data's name is not text")
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
    return parse_text(path.read_bytes(), without)


def parse_text(raw: bytes, without: str | None = None) -> Parsed:
    """Read JSON text; see `parse`."""
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
    seconds = record.timing.get("seconds", 0.0)
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ValueError(f"timing: seconds: {seconds!r:.40} is no time")
    environment = record.environment
    for name, kind in (("machine", dict), ("versions", dict), ("source", dict), ("command", list)):
        if not isinstance(environment.get(name, kind()), kind):
            raise ValueError(f"environment: {name}: {environment[name]!r:.40} is not of the right type")
    machine = environment.get("machine", {}).get("id", "")
    texts = (machine, record.stage, record.key, record.finished, record.digest, _model(vars(record)))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("stage, key, finished, digest, inputs' model or environment's machine's id is not text")
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


# A list of numbers as `json` indents it.
_NUMBERS = re.compile(r"\[\n *[-+.\deE]+(?:,\n *[-+.\deE]+)*\n *\]")
# Stands for the digest in the text that is hashed.
_NO_DIGEST = 64 * "0"


def _digest(raw: bytes, digest: str) -> str:
    """The hash of a record's text, its own digest left out."""
    return hashlib.sha256(raw.replace(digest.encode(), _NO_DIGEST.encode(), 1)).hexdigest()


def text_of(content: Mapping[str, Any]) -> bytes:
    """The JSON text of a note, or of a record with its digest."""
    digest = {"digest": _NO_DIGEST} if "digest" in content else {}
    text = json.dumps({**content, **digest}, indent=1, sort_keys=True, allow_nan=False)
    # A line for each of thousands of samples would be half of the text. Strings hold no line ends.
    raw = _NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text).encode()
    return raw.replace(_NO_DIGEST.encode(), _digest(raw, _NO_DIGEST).encode(), 1) if digest else raw

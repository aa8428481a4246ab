"""Records of finished stages, as types and as text; what is read is checked, since it
may be a stranger's."""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from suite.errors import InputError
from suite.files import printable
from suite.results.samples import LatencySamples, to_seconds
from suite.results.wording import describe_json_error, remedy, why_unreadable
from suite.schema.inputs import (
    AnalyzeInputs,
    ConvertInputs,
    ExportInputs,
    Int,
    LatencyInputs,
    ParityInputs,
    PeakInputs,
    TrainInputs,
)
from suite.schema.insides import AnalyzeResult
from suite.schema.outcomes import (
    ConvertResult,
    ExportResult,
    LatencyResult,
    ParityResult,
    PeakResult,
    TrainResult,
)

# Version of the record's layout. 1: first; records without a digest are of it too. 2: latencies hold each run once, as
# whole nanoseconds, and a list of numbers stands in one line.
FORMAT = 2
# Versions that are read.
READ = (1, 2)
# Version of the way in which keys are made, which is as old as the first layout.
_KEYS = 1

T = TypeVar("T")
I = TypeVar("I", covariant=True)  # noqa: E741 - of "inputs"
R = TypeVar("R", covariant=True)


class Artifact(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One of a stage's files: its `path` below the results folder, its SHA-256, and how
    many `bytes` it has."""

    path: str
    sha256: str
    bytes: Int


class Timing(Struct, frozen=True, kw_only=True, gc=False):
    """How many `seconds` a stage took; records also hold what else it says of its own
    speed."""

    seconds: Annotated[float, Meta(ge=0)] = 0.0


class Machine(Struct, frozen=True, kw_only=True, gc=False):
    """The hardware: the `id` that names it in tables, empty if it is not known."""

    id: str = ""


class Checkout(Struct, frozen=True, kw_only=True, gc=False):
    """The `commit` of the checkout, empty if there was none, and whether files differed
    from it."""

    commit: str = ""
    dirty: bool = False


class Environment(Struct, frozen=True, kw_only=True, gc=False):
    """With what a stage was done (see `suite.env`): hardware, versions of packages,
    commit, and the command."""

    machine: Machine = msgspec.field(default_factory=Machine)
    versions: dict[str, object] = msgspec.field(default_factory=dict)
    source: Checkout = msgspec.field(default_factory=Checkout)
    command: list[str] = msgspec.field(default_factory=list)


class Record(Struct, Generic[I, R], frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One finished stage.

    Attributes:
        of: the stage whose records alone are of this type; empty if all may be.
        stage: what was done, a name of `suite.tables.spec.VERSIONS`, such as "train".
        key: hash of the stage and its inputs.
        inputs: everything that was asked for (see `suite.schema.inputs`).
        result: what the stage found (see `suite.schema.outcomes`). For training on CPUs
            of one kind it is the same, bit for bit, whenever the inputs are.
        timing: how long it took.
        artifacts: the stage's files by name.
        environment: with what.
        finished: when, in UTC.
        format: version of this layout.
        digest: SHA-256 of the record's text without it; empty in the oldest records.
    """

    of: ClassVar[str] = ""

    stage: str
    key: str
    inputs: I
    result: R
    timing: Timing
    artifacts: dict[str, Artifact]
    environment: Environment
    finished: str
    format: Int
    digest: str = ""

    def __post_init__(self) -> None:
        if self.of and self.stage != self.of:
            raise ValueError(f"stage: {self.stage!r:.40} is not {self.of!r}")
        for name, artifact in self.artifacts.items():
            place = f"artifacts/{self.key}/{name}"
            if "/" in name or name in ("", ".", "..") or artifact.path != place:
                raise ValueError(f"artifact {name}: its path is {artifact.path!r}, not {place}")


class AnyRecord(Record[dict[str, object], dict[str, object]], frozen=True, gc=False):
    """A record of any stage, of which all is kept and nothing known but the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.inputs.get("model"), str):
            raise ValueError("inputs: no model, or one that is not text")

    @property
    def model(self) -> str:
        """The network that the stage is about."""
        return str(self.inputs["model"])


class TrainRecord(Record[TrainInputs, TrainResult], frozen=True, gc=False):
    """A training."""

    of = "train"

    @property
    def is_quick(self) -> bool:
        """Whether it was a quick run: it was to end before it had seen each of its
        images once, so that its error is about that of chance and is nowhere given as a
        figure. A whole run that diverged early is none."""
        return self.inputs.planned_images < self.inputs.data.train


class ExportRecord(Record[ExportInputs, ExportResult], frozen=True, gc=False):
    """An export to ONNX."""

    of = "export"


class ConvertRecord(Record[ConvertInputs, ConvertResult], frozen=True, gc=False):
    """A conversion of an exported file to reduced precision."""

    of = "convert"


class ParityRecord(Record[ParityInputs, ParityResult], frozen=True, gc=False):
    """A check of a file against its network."""

    of = "parity"


class LatencyRecord(Record[LatencyInputs, LatencyResult], frozen=True, gc=False):
    """A timing."""

    of = "latency"


class PeakRecord(Record[PeakInputs, PeakResult], frozen=True, gc=False):
    """What a machine can do at most."""

    of = "peak"


class TimedRecord(Record[LatencyInputs, LatencySamples], frozen=True, gc=False):
    """A timing as readers are given it, in seconds."""

    of = "latency"


def in_seconds(record: LatencyRecord) -> TimedRecord:
    """The record with its runs in seconds, in whatever layout it has kept them."""
    return TimedRecord(
        stage=record.stage,
        key=record.key,
        inputs=record.inputs,
        result=to_seconds(record.result),
        timing=record.timing,
        artifacts=record.artifacts,
        environment=record.environment,
        finished=record.finished,
        format=record.format,
        digest=record.digest,
    )


class AnalyzeRecord(Record[AnalyzeInputs, AnalyzeResult], frozen=True, gc=False):
    """A look inside a trained network."""

    of = "analyze"


# By stage, for those who ask for the records of all; of other stages nothing is known.
TYPES: dict[str, type[Record[object, object]]] = {
    kind.of: kind
    for kind in (TrainRecord, ExportRecord, ConvertRecord, ParityRecord, LatencyRecord, PeakRecord, AnalyzeRecord)
}

K = TypeVar("K", bound=Record[object, object])


def key_of(stage: str, inputs: Mapping[str, object]) -> str:
    """The key under which the result of these inputs is kept: 20 hexadecimal digits."""
    text = json.dumps([_KEYS, stage, inputs], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def read_record(path: Path, kind: type[K]) -> K:
    """Read one record as one of a kind.

    Raises:
        InputError: it is damaged or was changed since it was written, is of another
            version, or is none of this kind.
    """
    try:
        return decode(read_text(path), kind)
    except VersionError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {why_unreadable(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a record ({why_unreadable(error)}); {remedy(path)}") from None


class VersionError(ValueError):
    """A record's format is not among those that are read."""


class _Head(Struct):
    """What is to be known of a record before the rest is looked at."""

    format: object = None
    digest: object = ""


def decode(text: bytes, kind: type[K]) -> K:
    """The record in a text.

    Raises:
        VersionError: it is of another version.
        ValueError: it is damaged or was changed since it was written, or is none of
            this kind; says what and where.
        RecursionError: it is nested too deeply.
    """
    try:
        head = msgspec.json.decode(text, type=_Head)
        if head.format not in READ:
            legal = " and ".join(map(str, READ))
            raise VersionError(f"record format {head.format!r:.40}; this suite reads formats {legal}")
        if not head.digest:
            refuse_duplicate_names(text)
        elif head.digest != _digest(text, str(head.digest)):
            raise ValueError("changed since it was written")
        return parse(text, kind)
    except msgspec.ValidationError as error:
        raise ValueError(describe_json_error(error, text)) from None


def parse(text: bytes, kind: type[T]) -> T:
    """A value of a type from its JSON text, with all of what it says printable.

    Raises:
        ValueError: it is no JSON, or not of this type.
        RecursionError: it is nested too deeply.
    """
    if text.isascii() and b"\\" not in text and b"\x7f" not in text:
        return msgspec.json.decode(text, type=kind)
    return msgspec.convert(_printable(msgspec.json.decode(text)), kind)


def read_text(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("not a regular file")  # a link may lead anywhere, and a pipe never ends
    return path.read_bytes()


def refuse_duplicate_names(text: bytes) -> None:
    """Raise ValueError where JSON has a name twice, of whose two values another reader
    may take the other."""
    json.loads(text, object_pairs_hook=_refuse_duplicates, parse_int=len, parse_float=len)  # which no length stops


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")


def _printable(value: object) -> object:
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


def to_json(content: Mapping[str, object]) -> bytes:
    """The JSON text of a note, or of a record with its digest."""
    digest = {"digest": _NO_DIGEST} if "digest" in content else {}
    text = json.dumps({**content, **digest}, indent=1, sort_keys=True, allow_nan=False)
    # A line for each of thousands of samples would be half of the text. Strings hold no line ends.
    raw = _NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text).encode()
    return raw.replace(_NO_DIGEST.encode(), _digest(raw, _NO_DIGEST).encode(), 1) if digest else raw

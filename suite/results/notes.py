"""What lies in a results folder besides records: notes of failures, and plans, as types
and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from suite.errors import InputError
from suite.results.record import key_of, parse, read_text, refuse_duplicate_names
from suite.results.wording import describe_json_error, why_unreadable

T = TypeVar("T")


class _Named(Struct, frozen=True, gc=False):
    """A data set by its name."""

    name: str


class _FailedInputs(Struct, frozen=True, kw_only=True, gc=False):
    """What of a stage's inputs tells about which network and data it was."""

    model: str
    train: str = ""
    export: str = ""
    data: _Named | UnsetType = UNSET
    recipe: dict[str, object] = msgspec.field(default_factory=dict)
    runtime: str = "onnxruntime"
    provider: str = "cpu"
    precision: str = "fp32"
    machine: str = ""
    batch_size: int = 0
    arguments: dict[str, object] = msgspec.field(default_factory=dict)


class _Note(Struct, frozen=True, kw_only=True, gc=False):
    stage: str
    reason: str
    inputs: _FailedInputs


class _AllInputs(Struct, frozen=True, gc=False):
    inputs: dict[str, object]


@dataclass(frozen=True)
class Failure:
    """Why a stage failed last time.

    Attributes:
        stage, key: which.
        reason: in words.
        model: the network.
        data: name of the data set, if the stage's inputs have it.
        train, export: keys of the records that it was made from; empty for none.
        recipe: of a training; empty if not known.
        of: a parity's or a latency's runtime, provider and precision, and a latency's
            machine and batch size.
        arguments: further ones of the model.
    """

    stage: str
    key: str
    reason: str
    model: str
    data: str | None = None
    train: str = ""
    export: str = ""
    recipe: Mapping[str, object] = field(default_factory=dict)
    of: tuple[str | int, ...] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)


def read_failure(path: Path) -> Failure:
    """Read the note of one failure.

    Raises:
        InputError: it is damaged, or none.
    """
    try:
        text = read_text(path)
        note = _read(text, _Note)
        inputs = note.inputs
        data = inputs.data.name if isinstance(inputs.data, _Named) else None
        key = key_of(note.stage, parse(text, _AllInputs).inputs)
        of: tuple[str | int, ...] = (inputs.runtime, inputs.provider, inputs.precision)
        of += (inputs.machine, inputs.batch_size) if note.stage == "latency" else ()
        return Failure(
            stage=note.stage,
            key=key,
            reason=note.reason,
            model=inputs.model,
            data=data,
            train=inputs.train,
            export=inputs.export,
            recipe=inputs.recipe,
            of=of,
            arguments=inputs.arguments,
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {why_unreadable(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the note of a failure ({why_unreadable(error)}); delete it") from None


class Plan(Struct, frozen=True, kw_only=True, gc=False):
    """What one command is to do: the `command`, when it was `begun`, and of each of its
    `stages` the kind, the key, the model, and the name for people."""

    command: str
    begun: str
    stages: list[tuple[str, str, str, str]]


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        InputError: it is damaged, or none.
    """
    try:
        return _read(read_text(path), Plan)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {why_unreadable(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not a plan ({why_unreadable(error)}); delete it, the next run writes it anew"
        ) from None


def _read(text: bytes, kind: type[T]) -> T:
    refuse_duplicate_names(text)
    try:
        return parse(text, kind)
    except msgspec.ValidationError as error:
        raise ValueError(describe_json_error(error, text)) from None

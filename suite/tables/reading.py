"""TOML to frozen dataclasses, without tolerance for typing errors: each is named with
its place and what to do."""

import dataclasses
import math
import tomllib
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from suite.errors import InputError, join_with_or

T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raise InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def read(cls: type[T], text: str, source: str) -> T:
    """Make a dataclass of TOML text; `source` names the file in errors.

    Raises:
        InputError: not TOML, an unknown or missing key, a wrong type or an illegal
            value.
    """
    try:
        return build(cls, tomllib.loads(text), source)
    except InputError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:  # of numbers and nesting that Python cannot hold, too
        raise InputError(f"{source}: not valid TOML: {error}") from None


def build(cls: type[T], raw: object, where: str) -> T:
    """Make a dataclass of a mapping, refusing unknown keys, missing keys and wrong
    types."""
    if not isinstance(raw, dict):
        raise InputError(f"{where}: must be a table of keys, not {raw!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type] # T cannot be said to be a dataclass
    for key in raw:
        if key not in fields:
            raise InputError(f"{where}: unknown key {key!r}; use {join_with_or(fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise InputError(f"{where}: key {name!r} is missing")
    hints = get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in raw.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _convert(hint: Any, value: object, where: str) -> Any:
    """Check a TOML value against a type hint; lists become tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type] # an instance, to mypy, may be one too
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: must be a list, not {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: {value!r} is not valid; use {join_with_or(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise InputError(f"{where}: must be a table of keys, not {value!r}")
        return {key: _convert(arguments[1], item, f"{where}: {key!r}") for key, item in value.items()}
    if hint is Any:
        return value
    return _scalar(hint, value, where)


def _scalar(hint: type, value: object, where: str) -> object:
    wanted: Collection[type] = (int, float) if hint is float else (hint,)
    # bool is an int to Python, but not to the reader of a table.
    if isinstance(value, float) and hint is float and not math.isfinite(value):
        raise InputError(f"{where}: must be finite, not {value!r}")
    if type(value) not in wanted:
        raise InputError(f"{where}: must be of type {hint.__name__}, not {value!r}")
    return float(value) if hint is float else value  # type: ignore[arg-type] # a number, as was asked above

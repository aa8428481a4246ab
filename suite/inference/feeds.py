"""Inputs to run a network on: random values, or arrays from an .npz file."""

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError, first_line, join_with_or

Values = dict[str, NDArray[Any]]
Arrays = list[NDArray[Any]]

# Types of a graph's inputs for which there are values, as numpy names them.
TYPES = ("float32", "float16", "float64", "bool") + tuple(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)
# More than this of one input is a slip of the hand: a batch of 10,000 images of 512 x 512 has less.
LARGEST = 2**33


@dataclass(frozen=True)
class Input:
    """One input with all dimensions known.

    Attributes:
        name: of the graph's input.
        type: numpy's name of its type.
        shape: of its values.
        below: if it picks rows of a table, as token ids do, how many rows that has;
            else 0.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    below: int = 0


@dataclass(frozen=True)
class GivenInputs:
    """What a user says of inputs: `shapes` by name, and `values` from the .npz file
    `path`."""

    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, NDArray[Any]]
    path: str | None = None


NOTHING_GIVEN = GivenInputs({}, {})


def random_values(inputs: Sequence[Input], seed: int) -> Values:
    """Values that a network can be expected to take, the same for the same seed.

    Floating point is drawn from the standard normal distribution, as normalised images
    are. Integers that pick rows of a table are drawn from its rows. 8-bit integers are
    drawn from all that there are, as pixels. All others are 1, and truth values are
    true: as a mask, a length or a type that is legal, and hides nothing.
    """
    random = np.random.default_rng(seed)
    return {each.name: _random_array(each, random) for each in inputs}


def _random_array(of: Input, random: np.random.Generator) -> NDArray[Any]:
    kind = np.dtype(of.type)
    if kind.kind == "f":
        return random.standard_normal(of.shape, np.float32).astype(kind)
    if of.below:
        return random.integers(0, min(of.below, np.iinfo(kind).max), of.shape).astype(kind)
    if kind.itemsize == 1 and kind.kind in "iu":
        limits = np.iinfo(kind)
        return random.integers(limits.min, limits.max, of.shape, endpoint=True).astype(kind)
    return np.ones(of.shape, kind)


def parse_inputs(texts: Sequence[str]) -> GivenInputs:
    """Read what `--input` says: NAME=SHAPE as in ids=1x128, repeated, or the name of
    one .npz file.

    Raises:
        InputError: it is neither, or the file cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    path = None
    for text in texts:
        if text.endswith(".npz") and "=" not in text:
            if path is not None:
                raise InputError(f"--input {text}: a second .npz file; give one that has all inputs")
            path = text
            continue
        name, separator, shape = text.rpartition("=")
        sides = shape.split("x") if shape else []
        if not (name and separator) or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise InputError(
                f"--input {text}: is not valid; use NAME=SHAPE, as in ids=1x128, or an .npz file with an array for "
                "each input"
            )
        if name in shapes:
            raise InputError(f"--input {name} is given twice")
        shapes[name] = tuple(map(int, sides))
        if math.prod(shapes[name]) > LARGEST:
            raise InputError(f"--input {text}: more than {LARGEST} values")
    return GivenInputs(shapes, read_npz(Path(path)) if path else {}, path)


def read_npz(path: Path) -> Values:
    """The arrays of an .npz file by name; nothing in it is run.

    Raises:
        InputError: there is no such file, or it holds something else than arrays of
            numbers, or nothing.
    """
    wanted = f"{path}: is to be an .npz file with arrays of numbers"
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{wanted}; it is of another format, or damaged")
            file.seek(0)
            with np.load(file, allow_pickle=False) as content:
                values = dict(content)
    except InputError:
        raise
    except Exception as why:  # of a damaged archive: zip's, zlib's, Python's own for a header, and numpy's
        if "pickle" in str(why):  # numpy advises to trust the file
            raise InputError(f"{wanted}; it holds Python objects") from None
        raise InputError(f"{path}: cannot be read as an .npz file of arrays: {first_line(why)}") from None
    if not values:
        raise InputError(f"{path}: holds no array; give one for each input, by its name")
    for name, array in values.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"{wanted}; {name!r} in it is no array")
        if array.dtype.name not in TYPES:
            raise InputError(f"{path}: {name!r} is of type {array.dtype.name}; use {join_with_or(TYPES)}")
        if array.size == 0:
            raise InputError(f"{path}: {name!r} is empty")
    return values


def require_known(given: GivenInputs, names: Iterable[str]) -> None:
    """See whether everything that is given is an input of something.

    Args:
        given: what the user says of inputs.
        names: of all inputs that there are.

    Raises:
        InputError: something is not.
    """
    legal = sorted(set(names))
    for name in (*given.shapes, *given.values):
        if name not in legal:
            where = given.path if name in given.values else "--input"
            remedy = f"use {join_with_or(legal)}" if legal else "there are no inputs"
            raise InputError(f"{where}: nothing here has an input {name!r}; {remedy}")


def format_shape(shape: Iterable[int]) -> str:
    """As in 8x3x32x32."""
    return "x".join(map(str, shape)) or "one number"


def values_for(inputs: Sequence[Input], path: str | None, seed: int) -> Values:
    """What to run a network on: of an .npz file what it has, whose names and types
    `resolve` has checked; the rest is drawn."""
    found = random_values(inputs, seed)
    if path:
        found |= {name: array for name, array in read_npz(Path(path)).items() if name in found}
    return found

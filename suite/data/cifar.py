"""Readers of the two official layouts of CIFAR-10 and CIFAR-100: raw records and
pickled batches.

Source of both formats: https://www.cs.toronto.edu/~kriz/cifar.html. Neither the number
of images nor a checksum is insisted on, so that subsets and reordered copies can be
read; everything else is checked.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError
from suite.registry import DATA_SETS

PIXELS = 3 * 32 * 32

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, 32, 32, 3) RGB, labels (N,)
Contents = tuple[tuple[str, ...], Arrays, Arrays]  # class names, train, test


@dataclass(frozen=True)
class _Layout:
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    binary: bool
    key: str = ""  # of the labels in a pickled batch

    def find(self, path: Path) -> Path | None:
        """Return `path` or the folder in it that holds any file of this layout."""
        files = (*self.train, self.test, self.names)
        homes = (path, path / self.folder)
        return next((home for home in homes if any((home / file).is_file() for file in files)), None)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_LAYOUTS = {
    "cifar10": (
        _Layout(
            "cifar-10-batches-bin",
            tuple(f"{b}.bin" for b in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            True,
        ),
        _Layout("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", False, "labels"),
    ),
    "cifar100": (
        _Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", True),
        _Layout("cifar-100-python", ("train",), "test", "meta", False, "fine_labels"),
    ),
}


def holds(name: str, path: Path) -> bool:
    """Tell whether `path` is or holds an official layout of data set `name`."""
    return any(layout.find(path) for layout in _LAYOUTS[name])


def read(name: str, path: Path) -> Contents | None:
    """Read the first official layout (binary, then python) that `path` is or holds;
    None without one.

    Raises InputError, naming the file, for one that is missing, empty, truncated or
    malformed.
    """
    for layout in _LAYOUTS[name]:
        if folder := layout.find(path):
            return _read(layout, folder, DATA_SETS[name].classes)
    return None


def _read(layout: _Layout, folder: Path, classes: int) -> Contents:
    missing = [file for file in (*layout.train, layout.test, layout.names) if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{folder}: {', '.join(missing)} missing")
    read_names = _names_from_text if layout.binary else _names_from_pickle
    names = read_names(folder / layout.names)
    if len(names) != classes:
        raise InputError(f"{folder / layout.names}: {len(names)} class names, must be {classes}")

    def batch(file: str) -> Arrays:
        path = folder / file
        rows, labels = _records(path, classes) if layout.binary else _records_from_pickle(path, layout.key)
        if not len(rows):
            raise InputError(f"{path}: holds no images")
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(wrong):
            raise InputError(f"{path}: label {labels[wrong[0]]} of image {wrong[0]} is not in 0..{classes - 1}")
        return rows, labels.astype(np.int64)

    train = [batch(file) for file in layout.train]
    rows, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    test_rows, test_labels = batch(layout.test)
    return names, (_images(rows), labels), (_images(test_rows), test_labels)


def _images(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn the channel-major rows of both layouts, (N, 3072), into writable images (N,
    32, 32, 3)."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()


def _records(path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read records of one label byte (CIFAR-100: coarse, then fine label) and 3,072
    pixel bytes."""
    head = 1 if classes == 10 else 2
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if len(data) % (head + PIXELS):
        raise InputError(f"{path}: {len(data)} bytes is no whole number of records of {head + PIXELS} bytes")
    records = data.reshape(-1, head + PIXELS)
    return records[:, head:], records[:, head - 1]


def _names_from_text(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text of class names") from error


def _names_from_pickle(path: Path) -> tuple[str, ...]:
    meta = _unpickle(path)
    names = meta.get("label_names", meta.get("fine_label_names"))
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"{path}: needs a list of strings label_names or fine_label_names")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)


def _records_from_pickle(path: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Read the data, (N, 3072) uint8, and the labels of one batch, a list or an integer
    array."""
    batch = _unpickle(path)
    rows, labels = batch.get("data"), batch.get(key)
    rows = rows.value if isinstance(rows, _Array) else None
    if rows is None or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != PIXELS:
        raise InputError(f"{path}: data must be a uint8 array of shape (N, {PIXELS})")
    if isinstance(labels, _Array):
        labels = labels.value
    elif isinstance(labels, list) and all(type(label) is int and abs(label) < 2**31 for label in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray) or labels.shape != (len(rows),):
        raise InputError(f"{path}: {key} must be a list of {len(rows)} integers")
    return rows, labels


class _Dtype:
    """Stands in for `numpy.dtype` while unpickling: a plain integer type and its byte
    order."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if code not in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
            raise pickle.UnpicklingError(f"refused dtype {code!r}, only integers are read")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[2:5] != (None, None, None) or state[1] not in ("<", ">", "|"):
            raise pickle.UnpicklingError("refused a structured dtype, only integers are read")
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """Stands in for an ndarray while unpickling, so that numpy never meets a state it
    might trust."""

    value: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: str | bytes, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> None:
        data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as str
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _Array or shape != (0,) or code not in ("b", b"b"):
        raise pickle.UnpicklingError("refused an array that is no plain ndarray")
    return _Array()


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.fill(raw, dtype, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused _codecs.encode to {encoding!r}")
    return text.encode("latin1")


_GLOBALS: dict[str, Callable[..., object]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Admits what an array of integers needs and nothing else: a pickle can otherwise
    run any code."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if f"{module}.{name}" not in _GLOBALS:
            raise pickle.UnpicklingError(f"refused {module}.{name}, only dicts of integer arrays are read")
        return _GLOBALS[f"{module}.{name}"]


# What the unpickler and the stand-ins raise on malformed input.
_MALFORMED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


# A file of two arrays has 16 tuples at most. To hash a tuple of tuples, each of them twice, takes 2 ** depth steps.
_MOST_TUPLES = 24


def _check_sizes(data: bytes) -> None:
    """Refuse lengths and memo indices beyond the file, for which the unpickler would
    allocate gigabytes, and so many tuples that it would hash one of them for ever."""
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        tuples += opcode.name.startswith("TUPLE")
        if tuples > _MOST_TUPLES or opcode.name == "FROZENSET":
            raise pickle.UnpicklingError("more tuples than any batch has")
        if opcode.name.endswith("PUT") and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"memo index {argument} in a file of {len(data)} bytes")


def _unpickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict, of Python 2 or 3, with its keys as strings."""
    data = path.read_bytes()
    try:
        _check_sizes(data)
        # Python 2's strings are bytes; latin1 is the one encoding that keeps every byte.
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except _MALFORMED as error:
        raise InputError(f"{path}: is no CIFAR pickle: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no CIFAR pickle: holds no dict")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value
        for key, value in content.items()
        if isinstance(key, str | bytes)
    }

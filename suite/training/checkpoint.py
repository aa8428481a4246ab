"""Training state on disk: one safetensors file for each checkpoint, without pickle,
whole or not at all.

The tensors are the file's; everything else about the state is JSON in its header, with
a hash of both. The newest two are kept, so that a damaged one costs the work since the
one before it and no more.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from suite import files

KEPT = 2
# What reading a damaged file raises; torch has no kinds of its own.
DAMAGED = (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError)


def write(folder: Path, number: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write checkpoint `number` of `folder`: tensors of any device, and a state of JSON
    values.

    A kill, a full disk or a power loss leaves the ones before it.

    Raises:
        OSError: it cannot be written.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, sort_keys=True)
    raw = save(content, metadata={"state": text, "hash": _hash(content, text)})
    files.write(folder / f"{number:08d}.safetensors", raw)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def read(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that is sound, or None; `warn` is told
    of each that is not."""
    for path in _newest_first(folder):
        try:
            return read_one(path)
        except DAMAGED as error:
            warn(f"{path}: damaged checkpoint ({files.printable(str(error))}); going on from the one before it")
    return None


def read_one(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of one file; raises one of `DAMAGED` if it is not sound."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    if header["hash"] != _hash(tensors, header["state"]):
        raise ValueError("its content does not match its hash")
    state = json.loads(header["state"])
    if not isinstance(state, dict):
        raise ValueError("its state is no object")
    return tensors, state


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints by their numbers, which may have more digits than names are
    filled up to; files of other names are not ours."""
    with contextlib.suppress(FileNotFoundError):
        ours = [path for path in folder.glob("*.safetensors") if path.stem.isdecimal()]
        return sorted(ours, key=lambda path: int(path.stem), reverse=True)
    return []

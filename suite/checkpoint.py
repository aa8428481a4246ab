"""Training state on disk: one safetensors file for each checkpoint, without pickle, whole or not at all.

The tensors are the file's; everything else about the state is JSON in its header, with a hash of both. The newest
two are kept, so that a damaged one costs the work since the one before it and no more.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

KEPT = 2


def write(folder: Path, number: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write checkpoint `number` of `folder`: tensors of any device, and a state of JSON values.

    The file is written aside, synced and renamed, so that a kill or a power loss leaves the ones before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, sort_keys=True)
    raw = save(content, metadata={"state": text, "hash": _hash(content, text)})
    temporary = folder / f"{number:08d}.tmp"
    with open(temporary, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / f"{number:08d}.safetensors")
    for old in _newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def read(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that is sound, or None; `warn` is told of each that is not."""
    for path in _newest_first(folder):
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            warn(f"{path}: damaged checkpoint ({error}); going on from the one before it")
    return None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    if header["hash"] != _hash(tensors, header["state"]):
        raise ValueError("its content does not match its hash")
    return tensors, json.loads(header["state"])


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(folder.glob("*.safetensors"), reverse=True)
    return []

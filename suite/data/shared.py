"""Pass tensors from worker processes, in shared memory or through a pipe."""

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from suite.errors import MORE_SHARED_MEMORY, InputError

# Where Linux keeps the memory that processes share. A container has 64 MB of it by default.
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class PipedTensor:
    """A tensor on its way through a pipe: its values as they lie in memory, without
    gaps, its shape and its strides."""

    values: NDArray[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Sent = Tensor | PipedTensor


def reraise_worker_errors(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a loader loads; an error of a worker process as it was raised there, without
    torch's traceback.

    Raises:
        InputError: worker processes cannot be started for want of shared memory.
    """
    try:
        batches = iter(loader)
    except OSError as error:  # the queues' locks lie there too
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT):
            raise
        reason = f"{SHARED_MEMORY}: {error.strerror}, and processes that read images need a page of it"
        raise InputError(f"{reason}; {MORE_SHARED_MEMORY}") from None
    try:
        yield from batches
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        clear_frames(error.__traceback__)
        if not str(error).startswith("Caught "):
            raise
        name = type(error).__name__
        raise type(error)(str(error).rstrip().rpartition(f"{name}: ")[2]) from None
    finally:
        # Workers live as long as this does, which the frames of an error would keep.
        del batches


def send_tensor(tensor: Tensor) -> Sent:
    """A tensor without gaps as a worker process hands it on: in shared memory, or by a
    pipe where that is too small.

    torch itself would move it to shared memory in a thread whose failure reaches
    nobody, and the batch would be waited for for ever.
    """
    if get_worker_info() is None:
        return tensor
    # Asked for first, since torch leaves an empty file behind when it fails.
    if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free > tensor.nbytes:
        try:
            shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call] # torch has no types here
            return shared
        except RuntimeError:  # another process was faster
            pass
    values = tensor.as_strided((tensor.numel(),), (1,)).numpy()
    return PipedTensor(values, tuple(tensor.shape), tensor.stride())


def receive_tensor(carried: Sent) -> Tensor:
    """The tensor that a worker process has sent."""
    if isinstance(carried, Tensor):
        return carried
    return torch.from_numpy(carried.values).as_strided(carried.shape, carried.strides)

"""Locks on files and folders, shared or exclusive, of which the system frees those
whose holders have ended.

POSIX locks by `flock`, which asks for no right to write. Windows has no such locks, but
locks of single bytes, which may lie behind the end of a file: who shares a lock has one
byte of a row, who has it alone has all of them.
"""

import errno
import os
from importlib import import_module
from pathlib import Path
from time import sleep
from types import ModuleType

fcntl: ModuleType | None
try:
    fcntl = import_module("fcntl")
except ImportError:
    fcntl = None

# The row of bytes on Windows: behind all content, which others could not read or write there. Whoever comes when all
# of them are taken waits.
_FIRST, _SHARES = 1 << 30, 256
_taken: dict[int, tuple[int, int]] = {}
# Seconds between two tries on Windows, where to wait is to ask again.
_TRY = 0.1


def lock(descriptor: int, shared: bool = False, wait: bool = True) -> None:
    """Lock an open file against all other descriptors of it, in this process too, until
    `unlock` or the last of its holders closes it. It may be open for reading alone.

    Raises:
        BlockingIOError: another has it, and `wait` is off.
        OSError: the file system has no locks.
    """
    if fcntl:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return
    while not _take_bytes(descriptor, shared):
        if not wait:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        sleep(_TRY)


def unlock(descriptor: int) -> None:
    """Free what `lock` has locked, if it has."""
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return
    if descriptor in _taken:
        msvcrt = import_module("msvcrt")
        first, count = _taken.pop(descriptor)
        os.lseek(descriptor, first, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, count)


def _take_bytes(descriptor: int, shared: bool) -> bool:
    msvcrt = import_module("msvcrt")
    _taken.pop(descriptor, None)  # of a file that was closed since
    for first, count in [(_FIRST + share, 1) for share in range(_SHARES)] if shared else [(_FIRST, _SHARES)]:
        os.lseek(descriptor, first, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, count)
        except PermissionError:  # taken
            continue
        _taken[descriptor] = first, count
        return True
    return False


def open_folder(folder: Path, beside: Path) -> int:
    """A descriptor to lock a folder by: its own, or that of the file `beside` where the
    system, as Windows, opens no folders.

    Raises:
        OSError: it is no folder, or a link to one.
    """
    if hasattr(os, "O_DIRECTORY"):
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    return os.open(beside, os.O_RDWR | os.O_CREAT)

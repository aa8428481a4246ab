"""Files that are there whole or not at all, and text that does to a terminal nothing
but appear on it."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file so that a kill, a full disk or a power loss leaves what was there
    before, or all of the content.

    Folders are made if need be. They and the file take the mode of the folder that
    is there (see `inherit_permissions`).

    Raises:
        OSError: it cannot be written; `filename` is the path, not that of the file
            aside.
    """
    temporary: str | None = None
    try:
        make_folder(path.parent)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        inherit_permissions(Path(temporary))
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def make_folder(path: Path) -> None:
    """Make a folder, and those around it, each with the mode of the one around it; one
    that is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if path.is_dir():  # another process was faster
            return
        raise
    inherit_permissions(path)


def inherit_permissions(path: Path) -> None:
    """Give a new file or folder the mode and the group of the folder around it, so that
    whoever shares that folder can use it too. In a folder like /tmp, where everybody's
    files are safe from others, it is readable for everybody."""
    if not hasattr(os, "chown"):
        return  # Windows: what is new has the rights of its folder
    around = path.parent.stat()
    mode = 0o755 if around.st_mode & stat.S_ISVTX else stat.S_IMODE(around.st_mode)
    if not path.is_dir():
        mode &= 0o666
    with contextlib.suppress(OSError):  # of groups one can give only one's own
        os.chown(path, -1, around.st_gid)
    os.chmod(path, mode)


def printable(text: str, keep: str = "") -> str:
    """The text with what is not printable, but for the characters in `keep`, as Python
    writes it: a terminal would obey it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def read_if_file(path: Path) -> bytes | None:
    """The content of a file, nothing of what is no file; None if there is none, or it
    was removed just now."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
    except FileNotFoundError:
        return None

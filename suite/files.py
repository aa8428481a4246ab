"""Files that are there whole or not at all; text that does to a terminal nothing but
appear on it, and as wide as it."""

import contextlib
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from suite.errors import InputError

# A full disk or quota in the words of Python, and of safetensors, which is written in Rust.
_FULL = re.compile(r"No space left on device|Disk quota exceeded|not enough space on the disk|os error (28|122|112)\b")
# Most characters of a line, however wide a terminal is: longer ones are hard to read.
WIDTH = 100
# Of a terminal that does not say.
USUAL = 80
# Fewest characters of a column that gives way to the others.
LEAST = 16


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


def full_disk(error: BaseException, folder: Path) -> str | None:
    """Where there is no room left, and what to do, if that is what an error comes of;
    else None. It is in `folder`, or where temporary files are if that has less."""
    said = ""
    cause: BaseException | None = error
    while cause is not None:
        said, cause = f"{said} {cause}", cause.__cause__ or cause.__context__
    if not _FULL.search(said) or "/torch_" in said:  # torch's names in shared memory, which is no disk
        return None
    temporary = Path(tempfile.gettempdir())
    least = min(folder, temporary, key=lambda place: shutil.disk_usage(place).free)
    remedy = "set TMPDIR to a folder with room" if least is temporary else "choose another"
    return f"no space left in the folder {least.absolute()}: free some, or {remedy}"


@contextlib.contextmanager
def name_full_disk(folder: Path) -> Iterator[None]:
    """Have work that writes to a folder say so where there is no room left.

    Raises:
        InputError: instead of the error that this ended in.
    """
    try:
        yield
    except Exception as error:  # a library that writes has errors of its own
        if said := full_disk(error, folder):
            raise InputError(said) from error
        raise


def printable(text: str, keep: str = "") -> str:
    """The text with what is not printable, but for the characters in `keep`, as Python
    writes it: a terminal would obey it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; Python has None for one that was closed
    before it began, as by `>&-` in a shell."""
    return stream is not None and not stream.closed and stream.isatty()


def secure_standard_streams() -> None:
    """See to it that all that is printed can be written: nowhere, where a stream was
    closed beforehand, and with escapes for letters that its encoding lacks.

    Closed descriptors are taken, so that no file of ours gets the number of a standard
    stream, to which libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - open until the end
            os.set_inheritable(nowhere.fileno(), True)  # for processes that are started
            setattr(sys, name, nowhere)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def read_if_file(path: Path) -> bytes | None:
    """The content of a file, nothing of what is no file; None if there is none, or it
    was removed just now."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
    except FileNotFoundError:
        return None


def terminal_width(errors: bool = False) -> int | None:
    """Characters of a line of the terminal that standard output is, at most `WIDTH`, or
    that standard error is; None where it is none, and text stays as it is."""
    stream = sys.stderr if errors else sys.stdout
    if not is_terminal(stream):
        return None
    named = os.environ.get("COLUMNS", "")
    try:
        columns = int(named) if named.isdecimal() else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = USUAL
    return min(WIDTH, columns or USUAL)


def wrap(text: str, width: int | None, indent: str = "  ") -> str:
    """Text whose lines are no longer than a width, broken between words; what a line
    has too much stands below it, behind the indent. None leaves it as it is."""
    if width is None:
        return text
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else line
        for line in text.split("\n")
    )


def fit(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[list[str]]:
    """Rows of a table whose columns stand two apart, as wide as a terminal: the first
    column gives way, and its text is broken between words. None leaves them as they
    are."""
    if width is None:
        return [list(row) for row in rows]
    # tabulate puts two blanks between columns, and makes each two wider than its heading.
    columns = [[f"{heading}  ", *cells] for heading, *cells in zip(headings, *rows, strict=True)][1:]
    others = [max(len(line) for cell in column for line in cell.split("\n")) + 2 for column in columns]
    room = max(LEAST, width - sum(others))
    return [[wrap(first, room), *rest] for first, *rest in rows]


def choose_that_fits(tables: Iterable[str]) -> str:
    """The first of some tables whose rows the terminal has room for, else the last;
    the first where there is none."""
    width, found = terminal_width(), ""
    for found in tables:
        if width is None or len(found.partition("\n")[0]) <= width:
            break
    return found

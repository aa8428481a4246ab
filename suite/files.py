"""Files that are there whole or not at all, and text that does to a terminal nothing but appear on it."""

import contextlib
import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file so that a kill, a full disk or a power loss leaves what was there before, or all of the content.

    Folders are made if need be. Readable for everybody, as results are there to be shared.

    Raises:
        OSError: it cannot be written; `filename` is the path, not that of the file aside.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def printable(text: str, keep: str = "") -> str:
    """The text with what is not printable, but for the characters in `keep`, as Python writes it: a terminal would
    obey it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)

"""The one error that the command line turns into a message instead of a traceback,
other errors in one line, and how such lines name what to use."""

import re
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user: one line, exit code 2."""


def join_with_or(names: Iterable[str]) -> str:
    """As in "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


# What to do about too little of /dev/shm.
MORE_SHARED_MEMORY = "give the container more, as by docker run --shm-size=8g or --ipc=host"

# What torch says of a process that reads images and has died, wherever the main process is at that moment.
_DEAD_READER = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (?:is killed by signal: ([^.]+)|exited unexpectedly)")

# What ONNX Runtime puts before each of its errors, as in "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : ".
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")

# The most characters of what a library says: some print whole files.
LONGEST = 400


def first_line(error: BaseException) -> str:
    """The first sentence of what an error says, in one line; its name if it says
    nothing.

    A sentence goes on over line breaks until a line ends it, or an empty one stands
    after it.
    """
    if died := _DEAD_READER.match(str(error)):
        how = f" ({died[1]})" if died[1] else ""
        return f"a process that reads images died{how}, as where memory or /dev/shm is full; {MORE_SHARED_MEMORY}"
    words: list[str] = []
    for line in _CODE.sub("", str(error).strip()).splitlines():
        words += line.split()
        if not line.strip() or line.rstrip().endswith((".", "!", "?")):
            break
    text = " ".join(words) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def describe_error(error: BaseException) -> str:
    """Name and first sentence of an error, as in "MemoryError: no room"."""
    name, said = type(error).__name__, first_line(error)
    return name if said == name else f"{name}: {said}"

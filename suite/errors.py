"""The one error that the command line turns into a message instead of a traceback, and other errors in one line."""


class InputError(ValueError):
    """Bad input from the user: one line, exit code 2."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its name if it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def in_words(error: BaseException) -> str:
    """Name and first line of an error, as in "MemoryError: no room"."""
    return f"{type(error).__name__}: {error}".splitlines()[0]

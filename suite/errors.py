"""The one error that the command line turns into a message instead of a traceback."""


class InputError(ValueError):
    """Bad input from the user: one line, exit code 2."""

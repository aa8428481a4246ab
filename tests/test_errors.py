"""Errors in one line, whatever they say."""

from suite.errors import first_line, in_words


def test_an_error_is_one_line_whatever_it_says() -> None:
    assert first_line(RuntimeError("no room\nfor this")) == "no room"
    assert first_line(RuntimeError("\nlater")) == "RuntimeError"
    assert first_line(MemoryError()) == "MemoryError"
    assert in_words(RuntimeError("no room\nfor this")) == "RuntimeError: no room"
    assert in_words(MemoryError()) == "MemoryError: "

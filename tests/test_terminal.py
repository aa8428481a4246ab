"""Text and tables as wide as the terminal, and unchanged where there is none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from suite import files

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
MACHINE = str(PUBLISHED / "amd-epyc-2-cores")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))


@pytest.fixture(params=[80, 60])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    on_a_terminal(monkeypatch, request.param)
    return int(request.param)


def test_a_terminal_has_its_own_width_up_to_what_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert files.terminal_width() is None
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert files.terminal_width() == 70
    assert files.terminal_width(errors=True) is None
    monkeypatch.setenv("COLUMNS", "300")
    assert files.terminal_width() == files.WIDTH
    monkeypatch.delenv("COLUMNS")
    assert files.terminal_width() == files.USUAL  # of a stream that cannot be asked


def test_text_is_broken_between_words_and_no_word_is(width: int) -> None:
    text = "error: " + "a/path/" * 20 + ": is no folder; " + "give one that is there " * 5
    lines = files.wrap(text, files.terminal_width()).splitlines()
    assert [len(line) > width for line in lines].count(True) == 1
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == text.strip()
    assert files.wrap(text, None) == text


def test_the_first_column_of_a_table_gives_way(width: int) -> None:
    headings, rows = ("network", "time"), [("resnet110_w12_crelu_bn on cifar100 seed 12 and more words", "12 minutes")]
    ((name, time),) = files.fit(headings, rows, 40)
    assert max(map(len, name.splitlines())) + 2 + len(time) <= 40
    assert files.fit(headings, rows, None) == [list(rows[0])]
    assert files.fit(headings, rows, width)[0][1] == "12 minutes"
    assert files.fit(headings, [], width) == []


def test_of_several_tables_the_first_that_fits_is_taken(width: int) -> None:
    wide, narrow = "x" * 90 + "\n", "y" * 50 + "\n"
    assert files.choose_that_fits([wide, narrow]) == narrow
    assert files.choose_that_fits([narrow, wide]) == narrow


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "weights", "--results", str(PUBLISHED)),
        ("clean", "--dry-run", "--results", MACHINE),
        ("status", "--results", MACHINE),
        ("compare", MACHINE, MACHINE),
        ("compare", "before", "after"),
        ("export", "resnet50", "net.onnx", "--data", "cifar10=x"),
        ("list", "colours-of-the-rainbow", "--a-long-option-that-there-is-not-in-this-suite-of-commands"),
    ],
    ids=" ".join,
)
def test_what_commands_say_fits_a_terminal(
    arguments: tuple[str, ...], suite: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch, 80)
    _, out, err = suite(*arguments)
    assert out or err
    assert [line for line in (out + err).splitlines() if len(line) > 80] == []
    assert "\n  --\n" not in out, "the rule below headings is broken"


@pytest.mark.parametrize("table", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [(), ("--depth", "20")])
def test_a_table_is_no_wider_than_can_be_read(
    table: int, depth: tuple[str, ...], suite: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor than a terminal of 80 columns, whatever the table, in its published form."""
    if depth and table == 4:
        pytest.skip("Table 4 has one depth")
    shown = ("show", "--table", str(table), *depth, "--results", MACHINE)
    assert max(map(len, suite(*shown)[1].splitlines())) <= files.WIDTH
    on_a_terminal(monkeypatch, 80)
    assert max(map(len, suite(*shown)[1].splitlines())) <= 80

"""What is wrong with a command is one line in words, which begins with what is wrong and ends with what to do."""

import ast
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Suite = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("runn", "runn: no such command; did you mean run?"),
        ("nosuch", "nosuch: no such command; suite --help lists them"),
        ("run", "--table is missing: 1, 2, 3 or 4, as in the paper, or the TOML file of a table of your own (`init` "
         "writes one)"),
        ("run --table 2 --profil paper", "--profil: no such option; did you mean --profile or --providers?"),
        ("status --nosuch", "--nosuch: no such option; suite status --help lists them"),
        ("run --table 2 --profile fast", "--profile: 'fast' is not valid; use quick or paper"),
        ("run --table 2 --seeds two", "--seeds: 'two' is not a whole number from 1 to 10000"),
        ("run --table 2 --epochs", "--epochs: needs a value"),
        ("run --table 2 --keep=yes", "--keep: takes no value"),
        ("run --table 2 --providers gpu", "--providers: 'gpu' is not valid; use cpu, cuda or tensorrt"),
        ("run --table 2 --batch-sizes 1,x", "--batch-sizes: 'x' is not a batch size; use whole numbers from 1 to "
         "10000, as in 1,8"),
        ("run --table 2 --time-limit soon", "--time-limit: 'soon' is not a time; write it as 90s, 30m, 1h30m or 2d"),
        ("run --table 2 --data x", "--data x: must be NAME=PATH, where NAME is cifar10, cifar100, imagenet or svhn"),
        ("run --table 2 --results ''", "--results: the path is empty; give one"),
        ("run --table 2 extra", "got unexpected extra argument (extra); usage: suite run [OPTIONS]"),
        ("run --table missing.toml", "missing.toml: No such file or directory"),
        ("compare a b --fail-above x", "--fail-above: 'x' is not a percentage; use 0% or more, as in 5%"),
        ("parity a.onnx --against b.onnx --tolerance x", "--tolerance: 'x' is not valid; use 0 or more, as in 1e-4"),
        ("parity a.onnx --against b.onnx --tolerance -1", "--tolerance: '-1' is not valid; use 0 or more, as in 1e-4"),
        ("clean everything", "'everything' is not valid; use quick, onnx or checkpoints"),
        ("export", "MODEL|RUN is missing; usage: suite export [OPTIONS] MODEL|RUN OUT.onnx"),
        ("show --table 2 --results nowhere", "--results nowhere: no such folder"),
        ("init nowhere/x.toml", "nowhere: no such folder"),
        ("export resnet20_relu_bn /proc/x.onnx", "/proc/x.onnx: cannot write there: No such file or directory"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_in_words(
    command: str, line: str, suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert suite(*shlex.split(command)) == (2, "", f"error: {line}\n")


def test_no_command_refuses_a_missing_value_in_the_words_of_click(suite: Suite) -> None:
    """Each option of each command that takes a value is given none."""
    import click

    from suite.__main__ import suite as commands

    tried = 0
    for name, command in commands.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag:
                code, _, err = suite(name, max(option.opts, key=len))
                assert (code, err) == (2, f"error: {max(option.opts, key=len)}: needs a value\n")
                tried += 1
    assert tried > 50


@pytest.mark.parametrize("folder", ["suite", "models"])
def test_no_message_lists_what_is_legal_in_place_of_a_sentence(folder: str) -> None:
    for path in (Path(__file__).parents[2] / folder).rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        texts = [node.value for call in calls for node in ast.walk(call) if isinstance(node, ast.Constant)]
        assert not [text for text in texts if "legal" in str(text)], path

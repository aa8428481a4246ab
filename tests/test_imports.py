"""The arrows between rooms: a room imports from the rooms below it, and from none beside or above it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUITE = ROOT / "suite"
# From the top down. What lies directly in suite/, but for `__main__` and `api`, is a leaf.
LEVELS = (
    {"__main__"},
    {"cli", "api"},
    {"report", "grid"},
    {"inference"},
    {"results"},
    {"training", "analysis"},
    {"data", "export"},
    {"tables", "schema"},
    {"progress"},
    {"leaves"},
)
STAGES = {"training.train", "export.exporter", "inference.parity", "inference.latency", "analysis.analyze"}
MODULES = sorted(SUITE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Names of this project's modules that a file imports, at any depth and for types too, as in "models" or
    "suite.grid.plan"; what is imported from a module is taken for one of its own."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] in ("models", "suite")}


def room(name: str) -> str:
    """The room of a module, as in "suite.grid.plan"."""
    first = name.split(".")[1]
    return first if (SUITE / first).is_dir() or first in ("__main__", "api") else "leaves"


def level(of: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if of in rooms)


def test_every_room_has_its_level_and_says_what_it_is_for() -> None:
    folders = {path.parent.name for path in SUITE.glob("*/__init__.py")}
    assert folders | {"__main__", "api", "leaves"} == set().union(*LEVELS)
    for folder in folders:
        documentation = ast.get_docstring(ast.parse((SUITE / folder / "__init__.py").read_text("utf-8")))
        purpose, _, users = (documentation or "").partition("\n\n")
        assert purpose, folder
        assert users, folder


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_its_room_and_from_those_below(path: Path) -> None:
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports(path):
        if name.startswith("suite.") and room(name) != own:
            assert level(own) < level(room(name)), name


def test_stages_know_neither_each_other_nor_the_store() -> None:
    for stage in STAGES:
        known = {name.removeprefix("suite.") for name in imports(SUITE / f"{stage.replace('.', '/')}.py")}
        for other in STAGES - {stage} | {"results.store"}:
            assert not any(name == other or name.startswith(f"{other}.") for name in known), (stage, other)


def test_models_know_nothing_of_the_suite() -> None:
    for path in (ROOT / "models").glob("*.py"):
        assert not any(name.startswith("suite") for name in imports(path)), path


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--table", "4"], ["run", "--help"]])
def test_answers_that_need_no_torch_do_not_load_it(arguments: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['suite', *{arguments!r}]; import suite.__main__ as m\ntry: m.main()\n"
    code += (
        "except SystemExit as e: assert not e.code, e.code\nassert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    )
    before = os.times()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    after = os.times()
    # 0.3 s of a core's time; the bound leaves room for a slow core and none for an import of torch.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


# Of functions too long: a GPU kernel is one function to Triton.
LONG_FUNCTIONS = {"convolve"}


@pytest.mark.parametrize(
    "path", [*MODULES, *(ROOT / "models").glob("*.py")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_module_is_longer_than_350_lines_and_no_function_than_60(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 350, "divide it by topic"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LONG_FUNCTIONS:
            first = node.body[1:2] if ast.get_docstring(node) else node.body[:1]
            lines = node.body[-1].end_lineno - first[0].lineno + 1 if first else 0
            assert lines <= 60, f"{node.name} has {lines} lines beside its documentation"


@pytest.mark.parametrize(
    "path",
    [*MODULES, *(ROOT / "models").glob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_docstrings_wrap_at_88_columns(path: Path) -> None:
    text = path.read_text("utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            for number in range(node.body[0].lineno, node.body[0].end_lineno + 1):
                table = re.search(r"\S {2,}\S", lines[number - 1])
                assert table or len(lines[number - 1]) <= 88, number


def test_at_most_12_modules_lie_outside_of_rooms() -> None:
    assert len(list(SUITE.glob("*.py"))) <= 12

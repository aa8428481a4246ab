"""Look up model names fast, from source text, without importing torch."""

import ast
import difflib
import importlib.util
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from suite.errors import InputError

_ENTRYPOINT = re.compile(r"^@register_model[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)
_MODELS = Path(__file__).parent.parent.parent / "models"
# The same folder as in `models.published`, whose import would load torch; tests/test_published.py compares the two.
_PUBLISHED = _MODELS.parent / "results" / "published"


# How many names are offered in the place of one that there is not.
OFFERED = 4


@cache
def our_models() -> frozenset[str]:
    """This project's networks: the keys of `_VARIANTS` in `models/crelu_resnet.py`,
    from its text."""
    known: dict[str, object] = {}
    for file in ("layers.py", "crelu_resnet.py"):
        for node in ast.parse((_MODELS / file).read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if len(targets) == 1 and isinstance(targets[0], ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                known[targets[0].id] = node.value
    variants = known["_VARIANTS"]
    assert isinstance(variants, ast.expr)
    named = {name: _keys(value) for name, value in known.items() if isinstance(value, ast.expr) and value != variants}
    names = {"__builtins__": {"dict": dict}} | {name: keys for name, keys in named.items() if keys is not None}
    return frozenset(eval(compile(ast.Expression(variants), "_VARIANTS", "eval"), names))


def _keys(value: ast.expr) -> Any:
    """The keys of a dict, whatever its values are; another literal as it is; None for
    what is no literal."""
    if isinstance(value, ast.Dict):
        return {key.value: None for key in value.keys if isinstance(key, ast.Constant)}
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


@cache
def timm_models() -> frozenset[str]:
    """The models that timm itself has, without their tags, from the text of its
    modules."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    found: set[str] = set()
    for path in (Path(spec.origin).parent / "models").glob("*.py"):
        found.update(_ENTRYPOINT.findall(path.read_text("utf-8", "replace")))
    return frozenset(found)


@cache
def published() -> dict[str, Path]:
    """The folders with the published weights of this project's networks, by the names
    that timm has for them."""
    index = _PUBLISHED / "weights.json"
    weights = json.loads(index.read_text("utf-8"))["weights"] if index.is_file() else []
    files = {each["name"]: _PUBLISHED / each["file"] for each in weights}
    return {name: file.parent for name, file in files.items() if file.is_file()}


def require_model(name: str, what: str = "a model of this project or of timm") -> None:
    """See to it that there is a model of this name, whatever tag it has.

    Raises:
        InputError: there is none; it offers the nearest names.
    """
    if not is_known(name):
        hint = suggest_names(name, our_models() | timm_models() | set(published()))
        raise InputError(f"{name}: neither a file or folder that is there nor {what}{hint}")


def is_known(name: str) -> bool:
    """Whether this project or timm itself has a model of this name, whatever tag it
    has."""
    return name in our_models() or name in published() or name.partition(".")[0] in timm_models()


def suggest_names(name: str, legal: Iterable[str]) -> str:
    """The names that are nearest to one, to be put behind a sentence that it is none;
    empty if there are none."""
    bare, legal = name.partition(".")[0], sorted(set(legal))
    near = difflib.get_close_matches(bare, legal, OFFERED, 0.6)
    if not near and bare:
        near = [each for each in legal if bare.lower() in each][:OFFERED]
    return f"; the nearest names: {', '.join(near)}" if near else ""

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

from suite.errors import InputError, describe_error, join_with_or
from suite.results.artifacts import sha256

_ENTRYPOINT = re.compile(r"^@register_model[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)
_MODELS = Path(__file__).parent.parent.parent / "models"
# The same folder as in `models.published`, whose import would load torch; test_published.py compares the two.
PUBLISHED = _MODELS.parent / "results" / "published"
_REMEDY = "git checkout results/published restores it"


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
def published() -> dict[str, tuple[Path, str]]:
    """Of the published weights of this project's networks the file and its SHA-256, by
    the names that timm has for them.

    Raises:
        InputError: the index is damaged.
    """
    index = PUBLISHED / "weights.json"
    try:
        found = {each["name"]: (Path(each["file"]), str(each["sha256"])) for each in _listed(index)}
        if any(path.is_absolute() or ".." in path.parts for path, _ in found.values()):
            raise ValueError("a file is outside of its folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: is no index of weights ({describe_error(error)}); {_REMEDY}") from None
    return {name: (PUBLISHED / path, digest) for name, (path, digest) in found.items()}


def _listed(index: Path) -> list[dict[str, Any]]:
    if not index.is_file():  # an installation without a checkout
        return []
    found: list[dict[str, Any]] = json.loads(index.read_text("utf-8"))["weights"]
    return found


def published_folder(name: str) -> Path | None:
    """The folder with the published weights of this name; None if it is no name of such
    weights.

    Raises:
        InputError: the weights are missing, or not as they were published.
    """
    if name.partition(".")[0] not in our_models() or name not in published():
        return None
    file, digest = published()[name]
    if not file.is_file():
        raise InputError(f"{name}: its weights are missing from {file.parent}; {_REMEDY}")
    if sha256(file) != digest:
        raise InputError(f"{name}: {file} is not as it was published; {_REMEDY}")
    return file.parent


def published_with(digest: str) -> str | None:
    """The name of the published weights with this SHA-256, if there are such.

    Raises:
        InputError: the index is damaged.
    """
    return next((name for name, (_, known) in published().items() if known == digest), None)


def require_model(name: str, what: str = "a model of this project or of timm") -> None:
    """See to it that there is a model of this name, whatever tag it has.

    Raises:
        InputError: there is none; it offers the nearest names.
    """
    if not is_known(name):
        bare, dot, _ = name.partition(".")
        if dot and bare in our_models():
            tagged = sorted(each for each in published() if each.startswith(f"{bare}."))
            hint = f"; {bare} alone has initial weights, "
            hint += f"published are {', '.join(tagged)}" if tagged else f"and {PUBLISHED} has none"
        else:
            hint = suggest_names(name, our_models() | timm_models())
        raise InputError(f"{name}: neither a file or folder that is there nor {what}{hint}")


def is_known(name: str) -> bool:
    """Whether this project or timm itself has a model of this name, whatever tag it
    has."""
    bare = name.partition(".")[0]
    return name in our_models() or bare in timm_models() or (bare in our_models() and name in published())


def suggest_names(name: str, legal: Iterable[str]) -> str:
    """The names that are nearest to one, to be put behind a sentence that it is none;
    empty if there are none."""
    bare, legal = name.partition(".")[0], sorted(set(legal))
    near = difflib.get_close_matches(bare, legal, OFFERED, 0.6)
    if not near and bare:
        near = [each for each in legal if bare.lower() in each][:OFFERED]
    return f"; did you mean {join_with_or(near)}?" if near else ""

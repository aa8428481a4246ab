"""Put what is wrong with files of a results folder into plain words: where, what, what
it should be, and what to do."""

import re
from pathlib import Path

import msgspec

from suite.files import printable

# The list of the weights that results folders hold, beside these.
INDEX = "weights.json"
# As msgspec ends its messages: the inner place first, if one check called another.
_PLACE = re.compile(r" - at `([^`]*)`")
_STEP = re.compile(r"[^.\[\]]+|\[\d+\]|\[\.\.\.\]")
_EXPECTED = re.compile(r"Expected `([^`]*)`(?: (of length )?(>=|>|<=|<) ([-\d.]+))?(?:, got `[^`]*`)?")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}
_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "object": (dict,), "array": (list,)}
_SIGNS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}


def why_unreadable(error: Exception) -> str:
    """Why a file cannot be read, in printable words."""
    return printable((error.strerror if isinstance(error, OSError) else None) or str(error))


def remedy(path: Path, usual: str = "delete it to measure again") -> str:
    """What to do about what is wrong in a results folder; published ones, which lie
    beside an index of weights, are kept by git."""
    published = any((parent / INDEX).is_file() for parent in path.resolve().parents)
    return "git checkout restores it" if published else usual


def describe_json_error(error: msgspec.ValidationError, text: bytes) -> str:
    """An error about JSON `text` in words, such as "result: steps: 'many' is not a
    whole number"."""
    message = str(error)
    steps = [step for place in reversed(_PLACE.findall(message)) for step in _STEP.findall(place) if step != "$"]
    said = _PLACE.sub("", message)
    if expected := _EXPECTED.fullmatch(said):
        kinds, length, sign, bound = expected.groups()
        steps, value = _look_up(msgspec.json.decode(text), steps, kinds)
        what = _wanted(kinds, bool(length), sign, bound)
        said = f"not {what}" if kinds in ("object", "array") else f"{value!r:.40} is not {what}"
    elif missing := re.fullmatch(r"Object (missing required|contains unknown) field `(.*)`", said):
        said = f"{'no' if missing[1] == 'missing required' else 'unknown'} {missing[2]}"
    else:
        said = f"{said[:1].lower()}{said[1:]}"
    where = "".join(step if step.startswith("[") else f": {step}" for step in steps)[2:]
    return f"{where}: {said}" if where else said


def _wanted(kinds: str, length: bool, sign: str | None, bound: str | None) -> str:
    what = " or ".join(_WORDS.get(kind, kind) for kind in kinds.split(" | "))
    if not sign or not bound:
        return what
    if length:
        return f"{what} with entries"
    if sign == ">" and float(bound) == 0:
        return what.replace("a ", "a positive ", 1)
    return f"{what} of {_SIGNS[sign]} {bound.removesuffix('.0')}"


def _look_up(value: object, steps: list[str], kinds: str) -> tuple[list[str], object]:
    """What stands at a place, and the place with the names of entries of which msgspec
    says only that they are some."""
    types = tuple(each for kind in kinds.split(" | ") for each in _TYPES.get(kind, ()))
    named: list[str] = []
    for step in steps:
        if isinstance(value, dict):
            # The first that cannot be meant is meant.
            other = (name for name, each in value.items() if type(each) not in types)
            name = next(other, step) if step == "[...]" else step
            value = value.get(name)
            named.append(name)
        else:
            value = value[int(step[1:-1])] if isinstance(value, list) and step[1:-1].isdecimal() else value
            named.append(step)
    return named, value

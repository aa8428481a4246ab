"""Records as types: what they hold, and what is said of one that is not what its stage's type says."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suite.errors import InputError
from suite.results.record import FORMAT, TYPES, decode, key_of, read_record, to_json

PUBLISHED = sorted(path for path in (Path(__file__).parents[2] / "results" / "published").glob("*/records/*/*.json"))


def lacking(said: Any, known: Any, where: str) -> set[str]:
    """What of JSON is not in another, or is otherwise there."""
    if isinstance(said, dict) and isinstance(known, dict):
        parts = [(f"{where}.{name}", value, known.get(name)) for name, value in said.items()]
    elif isinstance(said, list) and isinstance(known, list) and len(said) == len(known):
        parts = [(f"{where}[]", *pair) for pair in zip(said, known, strict=True)]
    else:
        return set() if json.dumps(said) == json.dumps(known) else {where}
    return {place for name, value, other in parts for place in lacking(value, other, name)}


def test_types_hold_all_that_published_results_say() -> None:
    """What a type lacks would be lost when a stage's result is written."""
    found: set[str] = set()
    for path in PUBLISHED:
        record = read_record(path, TYPES[path.parent.name])
        found |= lacking(json.loads(path.read_bytes())["result"], msgspec.to_builtins(record.result), record.stage)
    assert found == {"peak.samples", "peak.side"}, "of the one product that was the peak in version 1"


def test_a_published_record_written_anew_has_the_same_bytes_and_key() -> None:
    for path in PUBLISHED:
        content = json.loads(path.read_bytes())
        if content["format"] == FORMAT:
            assert to_json(content) == path.read_bytes()
        assert key_of(content["stage"], content["inputs"]) == content["key"]


CONTENT: dict[str, dict[str, Any]] = {
    "train": {
        "inputs": {
            "data": {"name": "cifar10", "train": 50000, "test": 10000},
            "recipe": {"epochs": 164, "max_steps": None, "learning_rate": 0.1},
            "seed": 0,
        },
        "result": {
            "trained": True,
            "tries": [{"learning_rate": 0.1, "outcome": "trained"}],
            "epochs": [{"top1": 6.5}],
            "steps": 9,
            "test_images": 10,
        },
    },
    "latency": {
        "inputs": {"export": "e", "machine": "m", "runtime": "torch", "provider": "cpu", "batch_size": 8},
        "result": {"rounds_ns": [[100]]},
    },
    "parity": {
        "inputs": {"export": "e"},
        "result": {
            **{"passed": True, "images": 9, "difference": 0.0, "scale": 2.0},
            **{"max_logit_difference": 1e-6, "agreement": 100.0, "ties": 0},
        },
    },
}


def text(stage: str, part: str, changes: dict[str, Any]) -> bytes:
    """A record without digest of which some values are changed."""
    content: dict[str, Any] = {"stage": stage, "key": "k", "timing": {}, "artifacts": {}, "environment": {}}
    content |= {"finished": "", "format": FORMAT, **CONTENT[stage]}
    content["inputs"] = {"model": "m"} | content["inputs"]
    return json.dumps(content | {part: content[part] | changes}).encode()


@pytest.mark.parametrize(
    ("stage", "part", "changes", "said"),
    [
        ("train", "result", {"steps": "many"}, "result: steps: 'many' is not a whole number"),
        ("train", "result", {"steps": True}, "result: steps: True is not a whole number"),
        ("train", "result", {"steps": 2**63}, f"result: steps: {2**63} is not a whole number of at most {2**63 - 1}"),
        ("train", "result", {"top1": 101}, "result: top1: 101 is not a number of at most 100"),
        ("train", "result", {"top1": 10**400}, "result: top1: number out of range"),
        ("train", "result", {"tries": []}, "result: tries: not a list with entries"),
        (
            "train",
            "result",
            {"epochs": [{}, {"top1": -1}]},
            "result: epochs[1]: top1: -1 is not a number of at least 0",
        ),
        ("train", "result", {"epochs": [{}, 1]}, "result: epochs[1]: not an object"),
        ("train", "inputs", {"recipe": {"epochs": "x"}}, "inputs: recipe: epochs: 'x' is not a whole number"),
        ("train", "inputs", {"recipe": {}}, "inputs: recipe: no epochs"),
        ("train", "inputs", {"model": None}, "inputs: model: None is not text"),
        ("train", "environment", {"machine": {"id": 5}}, "environment: machine: id: 5 is not text"),
        ("train", "timing", {"seconds": -1}, "timing: seconds: -1 is not a number of at least 0"),
        ("train", "artifacts", {"a": 1}, "artifacts: a: not an object"),
        ("latency", "result", {"rounds_ns": [[0]]}, "result: rounds_ns[0][0]: 0 is not a whole number of at least 1"),
        ("latency", "result", {"rounds_ns": [[]]}, "result: no samples"),
        ("latency", "result", {"samples": [0.1]}, "result: both rounds_ns and samples"),
        ("latency", "inputs", {"versions": {"torch": "2", "x": 1}}, "inputs: versions: x: 1 is not text"),
        ("parity", "result", {"scale": 0}, "result: scale: 0 is not a positive number"),
        ("parity", "result", {"departure": {}}, "result: departure: no layer"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(stage: str, part: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        decode(text(stage, part, changes), TYPES[stage])


def test_a_record_of_one_stage_is_none_of_another(tmp_path: Path) -> None:
    path = tmp_path / "m-k.json"
    path.write_bytes(text("parity", "inputs", {}).replace(b'"stage": "parity"', b'"stage": "weather"'))
    with pytest.raises(InputError, match=r"not a record .stage: 'weather' is not 'parity'.; delete it"):
        read_record(path, TYPES["parity"])


def test_what_a_later_version_has_added_is_passed_over() -> None:
    record = decode(text("train", "result", {"colour": "red", "epochs": [{"mood": "good"}]}), TYPES["train"])
    assert "colour" not in msgspec.to_builtins(record.result)

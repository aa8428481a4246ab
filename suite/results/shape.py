"""What readers rely on in the records of each stage. A record may come from strangers, or from another version."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from suite.errors import InputError
from suite.results import samples
from suite.results.record import Record
from suite.tables.spec import METRICS

NUMBER = (int, float)
POSITIVE = "a positive number"
COUNT = "a positive whole number"
PERCENT = "a percentage"
_MOMENTS = {name: (*NUMBER, type(None)) for name in ("mean", "std")}
_ACTIVATION = {"nonzero": NUMBER, **dict.fromkeys(("over_nonzero", "over_all", "pooled"), _MOMENTS)}
_RANGES: dict[str, tuple[tuple[type, ...], Callable[[float], bool]]] = {
    POSITIVE: (NUMBER, lambda value: 0 < value < math.inf),
    COUNT: ((int,), lambda value: 0 < value < 2**63),
    PERCENT: (NUMBER, lambda value: 0 <= value <= 100),
}
_MAYBE = (*NUMBER, type(None))
_NUMBERS = [NUMBER, ...]
# By stage, what must be there, of which type: a dictionary's named entries, of which those with a question mark may be
# absent, {str: X} for entries X of any name, [X] for a list of X, [X, ...] for one that is not empty, and (X, None) for
# what may be null.
SHAPES: dict[str, Any] = {
    "train": {
        "inputs": {
            "data": {"name": str, "train": int, "test": int},
            "recipe": {"epochs": int, "learning_rate": NUMBER, "max_steps": (int, type(None))},
            "seed": int,
            "version?": int,
        },
        "result": {
            "trained": bool,
            "precision?": str,
            **{f"{metric}?": (PERCENT, None) for metric in (*METRICS, "best_top1")},
            "epochs": [{str: _MAYBE, **{f"{metric}?": (PERCENT, None) for metric in METRICS}}],
            "tries": [
                {
                    "learning_rate": NUMBER,
                    "outcome": str,
                    "steps?": int,
                    **dict.fromkeys(("last_loss?", "train_error?", "dead_units?"), _MAYBE),
                },
                ...,
            ],
            "steps": int,
            "test_images": int,
        },
    },
    "export": {"inputs": {"train": str, "version?": int}, "result": {"parameters": int, "macs": int}},
    "parity": {
        "inputs": {"export": str, "provider?": str, "precision?": str, "version?": int},
        "result": {
            "passed": bool,
            "departure?": ({"layer": str}, None),
            "torch_top1?": PERCENT,
            **dict.fromkeys(("lost?", "won?"), int),
            **{"precision?": str, "tf32?": bool},
            **dict.fromkeys(("images", "ties"), int),
            **dict.fromkeys(("difference", "max_logit_difference", "agreement"), NUMBER),
            "scale": POSITIVE,
        },
    },
    "latency": {
        "inputs": {
            "batch_size": int,
            **dict.fromkeys(("export", "machine", "runtime", "provider", "precision?"), str),
            **dict.fromkeys(("threads?", "version?"), int),
            "protocol?": {"rounds?": int},
            "versions?": {str: str},
        },
        "result": {
            # In one of three forms: whole nanoseconds by rounds; the same without rounds; seconds, as until format 1.
            "rounds_ns?": [[COUNT]],
            "samples_ns?": [COUNT, ...],
            "samples?": [POSITIVE, ...],
            "rounds?": [[POSITIVE]],
            "host_samples_ns?": [COUNT, ...],
            "host_samples?": [POSITIVE, ...],
            "throttled?": int,
            **dict.fromkeys(("load_seconds?", "first_run_seconds?"), NUMBER),
        },
    },
    "analyze": {
        "inputs": {"train": str, "version?": int},
        "result": {
            "activation": _ACTIVATION,
            "blocks?": {"delta": _NUMBERS, "delta_after_relu?": _NUMBERS},
            "coherence?": {"mu": _NUMBERS},
        },
    },
    "peak": {
        "inputs": {
            **dict.fromkeys(("machine", "provider", "precision?"), str),
            **dict.fromkeys(("threads", "version?"), int),
            "versions?": {str: str},
        },
        "result": {"flops": POSITIVE, "of?": str},
    },
}


def checked(record: Record, root: Path) -> Record:
    """The record, found to hold what its stage says; a latency's has `samples` in seconds, and `rounds` if these are
    known, in whatever form it was kept.

    Raises:
        InputError: it does not; `root` is the results folder that it is from.
    """
    try:
        for part, shape in SHAPES.get(record.stage, {}).items():
            _check(getattr(record, part), shape, part)
        return _in_seconds(record) if record.stage == "latency" else record
    except ValueError as error:
        path = root / "records" / record.stage / f"{record.inputs['model']}-{record.key}.json"
        raise InputError(f"{path}: not a record ({error}); delete it to measure again") from None


def _in_seconds(record: Record) -> Record:
    forms = [name for name in ("rounds_ns", "samples_ns", "samples") if name in record.result]
    if len(forms) > 1:
        raise ValueError(f"result: both {' and '.join(forms)}")
    result = samples.unpacked(record.result)
    if not result.get("samples"):
        raise ValueError("result: no samples")
    return replace(record, result=result)


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, tuple) and None in shape:
        if value is None:
            return
        shape = shape[0]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: not an object")
        for name, of in shape.items():
            for each in value if name is str else [name.removesuffix("?")]:
                if each in value:
                    _check(value[each], of, f"{where}: {each}")
                elif name == each:
                    raise ValueError(f"{where}: no {each}")
    elif isinstance(shape, list):
        if not isinstance(value, list) or len(value) < len(shape) - 1:
            raise ValueError(f"{where}: not a list{' with entries' if len(shape) > 1 else ''}")
        if isinstance(shape[0], str) and _all_within(value, shape[0]):
            return
        for index, each in enumerate(value):
            _check(each, shape[0], f"{where}[{index}]")
    elif shape in _RANGES:
        kinds, sound = _RANGES[shape]
        if type(value) not in kinds or not sound(value):
            raise ValueError(f"{where}: {value!r:.40} is not {shape}")
    elif type(value) not in (shape if isinstance(shape, tuple) else (shape,)):
        raise ValueError(f"{where}: {value!r:.40} is not of the right type")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: not finite")


def _all_within(values: list[Any], shape: str) -> bool:
    """Whether all values are in a range, which the least and the greatest of finite ones tell: many are asked without a
    step of Python for each. Where it cannot be told so, no."""
    kinds, sound = _RANGES[shape]
    if not values or not {type(value) for value in values}.issubset(kinds):
        return not values
    try:
        return all(map(math.isfinite, values)) and sound(min(values)) and sound(max(values))
    except OverflowError:  # a whole number beyond any float
        return False

"""Checks of what a network is made with: each raises ValueError with the valid
values."""

from collections.abc import Sequence
from numbers import Integral


def check_counts(width: int | None, in_chans: int, num_classes: int) -> None:
    """Of channels and classes; a width may also be None."""
    if width is not None and not _is_count(width, 1):
        raise ValueError(f"width={width!r} is not valid; use None or a positive integer")
    if not _is_count(in_chans, 1):
        raise ValueError(f"in_chans={in_chans!r} is not valid; use a positive integer")
    check_classes(num_classes)


def check_value(name: str, value: object, legal: Sequence[object]) -> None:
    """That an argument has one of its legal values."""
    if value not in legal:
        raise ValueError(f"{name}={value!r} is not valid; use {_one_of(legal)}")


def check_effect(name: str, value: object, norm: str, norms: Sequence[str]) -> None:
    """That a network's normalisation is one of those on which an argument has an
    effect."""
    if norm not in norms:
        raise ValueError(f"{name}={value!r} has no effect with norm={norm!r}; for norm use {_one_of(norms)}")


def _one_of(values: Sequence[object]) -> str:
    return ("one of " if len(values) > 1 else "") + ", ".join(map(repr, values))


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_classes(num_classes: object) -> None:
    """That there are so many classes, or none for a network without a classifier."""
    if not _is_count(num_classes, 0):
        raise ValueError(f"num_classes={num_classes!r} is not valid; use a positive integer, or 0 for no classifier")

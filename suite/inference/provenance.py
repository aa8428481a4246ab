"""Where weights come from: the run that trained them, by its record in the results
folder in which they lie."""

from pathlib import Path

from suite.errors import InputError
from suite.results.artifacts import sha256
from suite.results.record import TrainRecord
from suite.results.store import Store
from suite.results.wording import remedy

WEIGHTS = "model.safetensors"


def digest(folder: Path) -> str:
    """SHA-256 of the weights in a folder in timm's local layout."""
    return sha256(folder / WEIGHTS)


def training(folder: Path, model: str) -> TrainRecord | None:
    """The record of the training of a model that wrote its weights to a folder; None
    where that does not lie in a results folder with such a record."""
    folder = folder.resolve()
    records = Store(folder.parent.parent).typed(TrainRecord, [model])
    return next((record for record in records if record.key == folder.name), None)


def require_as_recorded(folder: Path, model: str) -> None:
    """See to it that weights in a results folder are those of their training.

    Raises:
        InputError: they were changed since.
    """
    record = training(folder, model)
    stated = record.artifacts.get(WEIGHTS) if record else None
    if stated and (folder / WEIGHTS).is_file() and stated.sha256 != digest(folder):
        raise InputError(f"{folder / WEIGHTS}: changed since it was trained; {remedy(folder, 'train it again')}")

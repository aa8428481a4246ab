"""Published weights: those that results folders hold of networks that were trained over
whole epochs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from suite.errors import InputError
from suite.results.record import TrainRecord
from suite.results.store import Store
from suite.schema.outcomes import none_if_unset

# The paper's, which names leave out; its Table 3 has another on CIFAR-100.
WEIGHT_DECAY = 1e-4


class _Configuration(msgspec.Struct):
    """What a network's configuration says beside its weights, and timm asks for."""

    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def find_weights(root: Path) -> list[dict[str, Any]]:
    """The weights in the results folders inside `root`, by timm's names, as in
    `resnet20_crelu_bn.cifar10_10ep`.

    A name has the data set and the epochs, the weight decay where it is not the usual
    one, and the seed where it is not 0. Of one name the last training counts.

    Returns:
        For each the `name`, the `machine`'s folder, `data`, `epochs`, `seed`, the test
        `error` in percent after the last epoch, the `file` relative to `root`, its
        `sha256`, `num_classes`, and `mean` and `std` of the channels on [0, 1]; in the
        order of names.

    Raises:
        InputError: there is no results folder, or no such weights, or a record or
            configuration cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; published weights come with a checkout of the repository")
    if (root / "records").is_dir():
        raise InputError(f"{root}: is a results folder; give the folder that holds it")
    folders = sorted(path.parent for path in root.glob("*/records") if path.is_dir())
    if not folders:
        raise InputError(f"{root}: holds no results folders")
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for folder in folders:
        store = Store(folder)
        for record in store.typed(TrainRecord):
            weights = record.artifacts.get("model.safetensors")
            if weights is None or not _is_publishable(record) or not (folder / weights.path).is_file():
                continue
            entry = describe(record, folder)
            if entry["name"] not in found or found[entry["name"]][0] < record.finished:
                found[entry["name"]] = record.finished, entry
    if not found:
        raise InputError(f"{root}: its results folders hold no weights of networks trained for an epoch or more")
    return [found[name][1] for name in sorted(found)]


def _is_publishable(record: TrainRecord) -> bool:
    """Whether it learned, over the epochs that its name will say, an epoch or more, and
    the model's name alone says how it is made."""
    inputs = record.inputs
    whole = not record.is_quick and inputs.planned_images == inputs.schedule.epochs * inputs.data.train
    return record.result.trained and whole and not inputs.arguments and not inputs.source


def describe(record: TrainRecord, folder: Path) -> dict[str, Any]:
    """The entry of a training in a results folder, as `find_weights` returns it.

    Raises:
        InputError: the configuration beside its weights cannot be read.
    """
    inputs, weights = record.inputs, record.artifacts["model.safetensors"]
    decay = inputs.recipe.get("weight_decay", WEIGHT_DECAY)
    how = f"_wd{decay:g}" if decay != WEIGHT_DECAY else ""
    how += f"_seed{inputs.seed}" if inputs.seed else ""
    path = folder / "artifacts" / record.key / "config.json"
    try:
        stated: dict[str, Any] = json.loads(path.read_text("utf-8"))["pretrained_cfg"]
        own = msgspec.to_builtins(msgspec.convert(stated, _Configuration))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is no configuration of a model; `verify` says what is damaged") from None
    return {
        "name": f"{inputs.model}.{inputs.data.name}_{inputs.schedule.epochs}ep{how}",
        "machine": folder.name,
        "data": inputs.data.name,
        "epochs": inputs.schedule.epochs,
        "seed": inputs.seed,
        "error": none_if_unset(record.result.top1),
        "file": f"{folder.name}/{weights.path}",
        "sha256": weights.sha256,
        **own,
    }


def to_rows(weights: Iterable[Mapping[str, Any]], brief: bool = False) -> tuple[Sequence[str], list[list[object]]]:
    """Headings and rows of a table of what `find_weights` found; in brief without what
    names say."""
    names = ("name", "error", "machine") if brief else ("name", "error", "data", "epochs", "seed", "machine")
    rows = [[each[name] for name in names] for each in weights]
    return ("name for timm.create_model", "test error %", *names[2:]), rows

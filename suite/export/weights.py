"""A network's weights: a folder in timm's local layout, of which JSON and safetensors
are read and nothing is run.

timm itself would follow `config.json` to any of its models, to files elsewhere, to
pickled weights and to the network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from suite.errors import InputError, first_line, join_with_or

if TYPE_CHECKING:
    from torch import nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What a run may have told its model, and of which type; the rest is in the model's name.
ARGUMENTS: dict[str, tuple[type, ...]] = {
    "num_classes": (int,),
    "in_chans": (int,),
    "global_pool": (str,),
    "drop_rate": (int, float),
    "crelu_placement": (str,),
    "np_constants": (str,),
    "np_batchnorm": (str,),
    "init": (str,),
}


@dataclass(frozen=True)
class Config:
    """What the folder says of its network.

    Attributes:
        model: its timm name.
        classes: how many it tells apart.
        channels: of its input.
        arguments: of the model.
        statistics: as far as stated `mean` and `std` of each channel on [0, 1], and
            `label_names`.
    """

    model: str
    classes: int
    channels: int
    arguments: dict[str, Any]
    statistics: dict[str, list[Any]]


def read_config(folder: Path) -> Config:
    """Read what a folder says of its network; the network is one of this project's.

    Raises:
        InputError: there is no such description, or it is not legal.
    """
    import timm

    import models  # noqa: F401 - registers the networks with timm

    path = folder / CONFIG
    try:
        content = msgspec.json.decode(path.read_bytes())
        model, classes = content["architecture"], content["num_classes"]
        arguments, described = content.get("model_args", {}), content.get("pretrained_cfg", {})
        statistics = {name: described[name] for name in ("mean", "std", "label_names") if described.get(name)}
        arguments = dict(arguments)
        # As timm does, where nothing is said in the arguments.
        channels = arguments.get("in_chans", described.get("input_size", (3,))[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{folder}: no folder of a run's weights with a {CONFIG} ({error})") from None
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: holds no {WEIGHTS}")
    if model not in timm.list_models(module="crelu_resnet"):
        raise InputError(f"{path}: its model {model!r} is not one of this project's")
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            raise InputError(f"{path}: model_args: unknown key {name!r}; use {join_with_or(ARGUMENTS)}")
        if type(value) not in ARGUMENTS[name]:
            raise InputError(f"{path}: model_args: {name} must be of type {ARGUMENTS[name][-1].__name__}")
    if type(classes) is not int or classes < 1 or arguments.get("num_classes", classes) != classes:
        raise InputError(f"{path}: num_classes must be a whole number from 1, the same in model_args")
    if type(channels) is not int or channels < 1:
        raise InputError(f"{path}: in_chans must be a whole number from 1")
    for name, values in statistics.items():
        legal, what = (_is_text, "texts") if name == "label_names" else (_is_finite, "finite numbers")
        if not isinstance(values, list) or not all(map(legal, values)):
            raise InputError(f"{path}: {name} must be a list of {what}")
    if not all(0 <= value <= 1 for value in statistics.get("mean", ())):
        raise InputError(f"{path}: mean must be of pixels on [0, 1]")
    if not all(0 < value <= 1 for value in statistics.get("std", ())):
        raise InputError(f"{path}: std must be of pixels on [0, 1], and above 0")
    arguments |= {"num_classes": classes, "in_chans": channels}
    return Config(model, classes, channels, arguments, statistics)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def load_weights(folder: Path) -> "nn.Module":
    """The network in a folder of weights, in evaluation mode on the CPU.

    Raises:
        InputError: the folder is not legal, or its weights are damaged or another
            network's.
    """
    import timm
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = read_config(folder), folder / WEIGHTS
    try:
        # Without memory until it is known that the file fills it.
        model: nn.Module = timm.create_model(config.model, device="meta", **config.arguments)
        tensors = load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(f"{path}: cannot be read as weights of {config.model}: {first_line(error)}") from None
    expected = model.state_dict()
    for name in sorted(set(expected) | set(tensors)):
        wanted, found = (each[name].shape if name in each else None for each in (expected, tensors))
        if wanted != found:
            raise InputError(f"{path}: not weights of {config.model}: {describe_mismatch(name, found, wanted)}")
        if tensors[name].dtype != expected[name].dtype:
            raise InputError(f"{path}: {name} is of {tensors[name].dtype}, not {expected[name].dtype}")
    with torch.no_grad():
        model.to_empty(device="cpu").load_state_dict(tensors)
    return model.eval()


def describe_mismatch(name: str, found: Sequence[int] | None, wanted: Sequence[int] | None) -> str:
    """What is wrong with a tensor of a file, by its shape there and in the network;
    None where it is not there."""
    here, there = ("x".join(map(str, shape or ())) or "one number" for shape in (found, wanted))
    if found is None:
        return f"{name} ({there}) is missing"
    return f"the network has no {name}" if wanted is None else f"{name} is {here}, not {there}"

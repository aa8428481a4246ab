"""Any network that timm knows: by name, or from a folder in timm's local layout, of
which nothing is run.

This project's own networks have a stricter reader, `suite.export.weights`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.errors import InputError, describe_error, first_line
from suite.export.weights import CONFIG, WEIGHTS, describe_mismatch, load_weights
from suite.tables import modules

if TYPE_CHECKING:
    from torch import Tensor, nn

# The file's own prefix of a folder's name, where timm would take it.
LOCAL = "local-dir:"
# Arguments that would have timm read other files, or fetch them.
_REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
# What this project's networks are registered under.
OURS = "crelu_resnet"


@dataclass(frozen=True)
class Network:
    """A network that timm makes.

    Attributes:
        model: its timm name, with the tag of its pretrained weights, if any.
        folder: in timm's local layout, from which its weights are; None for initial
            ones.
        ours: whether it is one of this project's.
        arguments: of the model.
        described: its `pretrained_cfg`: `input_size`, `mean`, `std` and the like.
    """

    model: str
    folder: Path | None
    ours: bool
    arguments: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.described.get("input_size") or (3, 224, 224)
        return int(self.arguments.get("in_chans", channels)), int(height), int(width)


def import_modules(names: Sequence[str]) -> None:
    """Import modules that register networks with timm.

    Raises:
        InputError: one cannot be imported.
    """
    for name in names:
        modules.load(name)


def is_known(name: str) -> bool:
    """Whether timm, with what is imported by now, makes a model of this name, whatever
    tag it has."""
    import timm

    return ":" not in name and timm.is_model(name.partition(".")[0])


def is_ours(name: str) -> bool:
    """Whether a model is one of this project's, and not of a module that is imported
    and calls its own so."""
    import timm

    return name in timm.list_models(module=OURS)


def from_name(name: str) -> Network:
    """A network with initial weights.

    Raises:
        InputError: timm has no model of this name, or its tag.
    """
    import timm

    import models  # noqa: F401 - registers the networks with timm

    if not is_known(name):
        raise InputError(f"{name}: timm has no such model")
    try:
        described = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of a tag that it has not
        raise InputError(f"{name}: {first_line(error)}") from None
    ours = is_ours(name)
    found: dict[str, Any] = dataclasses.asdict(described) if described else {}
    return Network(name, None, ours, {}, found)


def from_folder(folder: Path) -> Network:
    """A network whose weights a folder in timm's local layout holds.

    Raises:
        InputError: the folder has no such layout, or its network is not timm's.
    """

    import models  # noqa: F401 - registers the networks with timm

    path = folder / CONFIG
    try:
        content = json.loads(path.read_bytes())
        model, arguments = content["architecture"], dict(content.get("model_args") or {})
        described = dict(content.get("pretrained_cfg") or {})
        classes = content.get("num_classes", described.get("num_classes"))
        sizes = described.get("input_size") or (3, 224, 224)
        if len(sizes) != 3 or not all(type(side) is int and 0 < side <= 8192 for side in sizes):
            raise ValueError(f"its input_size is {sizes}")
    except OSError as error:
        what = f"holds no {CONFIG} that can be read" if folder.is_dir() else "is not a folder"
        raise InputError(f"{folder}: {what} ({error.strerror}); give a folder of weights") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is no description of a network ({describe_error(error)})") from None
    if not isinstance(model, str) or not is_known(model):
        raise InputError(f"{path}: timm has no model {model!r}; --import MODULE imports what registers it")
    check_arguments(arguments, f"{path}: model_args")
    if type(classes) is int and classes >= 0:
        arguments.setdefault("num_classes", classes)
    return Network(model, folder, is_ours(model), arguments, described)


def check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """See whether what a file says a model was made with may be handed to timm.

    Raises:
        InputError: timm might read other files for it, or fetch them.
    """
    for name, value in arguments.items():
        if name in _REFUSED or not _is_plain(value):
            raise InputError(f"{where}: {name!r} is not allowed; use the model's own arguments, as numbers or texts")


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | None)


def build(of: Network, weights: Path | None = None) -> "nn.Module":
    """The network in evaluation mode on the CPU: with the weights of its folder or of a
    file of safetensors, else with the initial ones of seed 0.

    Raises:
        InputError: timm cannot make it, or the weights are another network's.
    """
    import timm
    import torch

    if of.folder is not None and of.ours and weights is None:
        return load_weights(of.folder)
    path = weights if of.folder is None or weights else of.folder / WEIGHTS
    tensors = _read(path) if path else {}
    arguments = dict(of.arguments)
    if tensors and (classes := _classes(of, tensors)) is not None:
        arguments.setdefault("num_classes", classes)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = timm.create_model(of.model, pretrained=False, **arguments)
    except Exception as error:  # a user's or timm's constructor may raise anything
        raise InputError(f"{of.model}: timm cannot make it: {describe_error(error)}") from None
    if path:
        wanted = model.state_dict()
        for name in sorted(wanted.keys() | tensors.keys()):
            expected, found = (tuple(each[name].shape) if name in each else None for each in (wanted, tensors))
            if expected != found:
                raise InputError(f"{path}: not weights of {of.model}: {describe_mismatch(name, found, expected)}")
        model.load_state_dict(tensors)
    return model.eval()


def load(folder: Path) -> "nn.Module":
    """The network in a folder in timm's local layout, in evaluation mode on the CPU;
    its model is registered.

    Raises:
        InputError: see `from_folder` and `build`.
    """
    return build(from_folder(folder))


def _read(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as weights in safetensors: {first_line(error)}") from None


def require_weights(path: Path) -> None:
    """See, without torch, whether a file can be read as weights in safetensors; of the
    tensors only the list is read.

    Raises:
        InputError: it cannot.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError) as error:
        reason = "no such file" if not path.exists() else "is a folder" if path.is_dir() else first_line(error)
        raise InputError(f"{path}: cannot be read as weights in safetensors: {reason}") from None


def _classes(of: Network, tensors: "Mapping[str, Tensor]") -> int | None:
    """How many classes weights tell apart, by their classifier's."""
    names = of.described.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        weight = tensors.get(f"{name}.weight")
        if weight is not None:
            return int(weight.shape[0])
    return None


def save(of: Network, model: "nn.Module", folder: Path) -> None:
    """Write a network with its weights in timm's local layout, as `load` reads it."""
    from safetensors.torch import save_file

    arguments = dict(of.arguments)
    classes = getattr(model, "num_classes", None)
    content: dict[str, Any] = {"architecture": of.model, "model_args": arguments, "pretrained_cfg": of.described}
    if type(classes) is int:
        content["num_classes"] = classes
    save_file({name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_bytes(json.dumps(content, default=str).encode())

"""What a user names to time or compare: an ONNX file, a model of timm, or a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.errors import InputError, join_with_or
from suite.export import graphs, zoo
from suite.inference import names, provenance
from suite.inference.feeds import NOTHING_GIVEN, TYPES, GivenInputs, Input


@dataclass(frozen=True)
class Subject:
    """One of the three is set: the `graph` of a file, the `network` that timm makes, or
    a `module` of torch, which takes what the file takes that it is compared with; of a
    network `weights` are a file of safetensors, if its weights lie in one."""

    name: str
    graph: graphs.Graph | None = None
    network: zoo.Network | None = None
    module: Any = None
    weights: Path | None = None


def find(name: str, modules: Sequence[str] = ()) -> Subject:
    """What has this name; a name that nothing has is answered before torch is loaded.

    Args:
        name: an ONNX file, a folder of weights in timm's local layout, a run's among
            them, with or without timm's prefix `local-dir:`, or a model of timm or of
            one of `modules`; this project's have a tag where weights of theirs are
            published, as in `resnet20_crelu_bn.cifar10_10ep`.
        modules: to import beforehand, which register their models with timm.

    Raises:
        InputError: there is no such thing, it cannot be read, or weights in a results
            folder were changed since they were trained.
    """
    if not name.removeprefix(zoo.LOCAL):
        raise InputError("the name of a network is empty; give a model, a folder of weights or an ONNX file")
    path = Path(name.removeprefix(zoo.LOCAL))
    is_model = not name.startswith(zoo.LOCAL) and not path.exists() and path.suffix != ".onnx"
    if is_model and (folder := names.published_folder(name)):
        return Subject(name, network=zoo.from_folder(folder))
    if is_model and not modules:
        names.require_model(name)
    if path.is_dir():
        zoo.import_modules(modules)
        network = zoo.from_folder(path)
        provenance.require_as_recorded(path, network.model)
        return Subject(name, network=network)
    if not is_model:
        if name.startswith(zoo.LOCAL):
            raise InputError(f"{name}: no such folder")
        if path.suffix == ".safetensors" and path.is_file():
            raise InputError(
                f"{name}: holds weights alone; export MODEL OUT.onnx --weights {name} makes a file of them, and "
                f"parity OUT.onnx --weights {name} checks that"
            )
        return Subject(name, graph=graphs.read(path))
    zoo.import_modules(modules)
    if modules and not zoo.is_known(name):
        names.require_model(name, f"a model of this project, of timm or of {', '.join(modules)}")
    return Subject(name, network=zoo.from_name(name))


def image_input(network: zoo.Network, batch_size: int, size: int | None = None) -> tuple[Input, ...]:
    """What a network of timm takes."""
    channels, height, width = network.input_size
    return (Input("input", "float32", (batch_size, channels, size or height, size or width)),)


def resolve_inputs(
    graph: graphs.Graph, given: GivenInputs = NOTHING_GIVEN, batch_size: int | None = None
) -> tuple[Input, ...]:
    """The inputs of a file with all dimensions known.

    The first dimension of an input is its batch where it is free. Another free one has
    the size that `given` says of it, there or at another place where the file gives it
    the same name.

    Args:
        graph: of the file.
        given: what the user says of inputs; of names that the file has not nothing is
            taken.
        batch_size: of all inputs whose first dimension is free; None for what is
            `given`, or 1.

    Raises:
        InputError: a dimension is not known (they count from 0), or `given` or
            `batch_size` contradict the file.
    """
    path = graph.path
    shapes = dict(given.shapes) | {name: array.shape for name, array in given.values.items()}
    slots = {slot.name: slot for slot in graph.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        slot = slots.get(name)
        if slot is None:
            continue
        fits = len(shape) == len(slot.dimensions) and all(
            not isinstance(legal, int) or side == legal for side, legal in zip(shape, slot.dimensions, strict=True)
        )
        if not fits:
            raise InputError(f"{path}: input {name!r} is {_shape_text(slot.dimensions)}, not {_shape_text(shape)}")
        if name in given.values and given.values[name].dtype.name != slot.type:
            theirs = given.values[name].dtype.name
            raise InputError(f"{path}: input {name!r} is of {slot.type}, and in {given.path} of {theirs}")
        for side, legal in zip(shape, slot.dimensions, strict=True):
            if isinstance(legal, str) and sizes.setdefault(legal, side) != side:
                raise InputError(f"{path}: {legal!r} is {sizes[legal]} of one input, and {side} of {name!r}")
    firsts = [slot for slot in graph.inputs if slot.dimensions and not isinstance(slot.dimensions[0], int)]
    if batch_size is None:
        batch_size = next((shapes[slot.name][0] for slot in firsts if slot.name in shapes), 1)
    elif graph.inputs and not firsts:
        fixed = graph.inputs[0].dimensions[0] if graph.inputs[0].dimensions else 1
        if fixed != batch_size:
            raise InputError(f"{path}: is for batches of {fixed}; use that batch size, or give none")
    elif any(name in given.values and given.values[name].shape[0] != batch_size for name in slots):
        raise InputError(f"{given.path}: its batches are not of size {batch_size}; give no batch size with it")
    return tuple(_resolve_input(path, slot, shapes, sizes, batch_size) for slot in graph.inputs)


def _resolve_input(
    path: Path, slot: graphs.Slot, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int], batch: int
) -> Input:
    if slot.type not in TYPES:
        raise InputError(
            f"{path}: input {slot.name!r} is of type {slot.type}; give a file that takes {join_with_or(TYPES)}"
        )
    shape: list[int] = []
    for place, side in enumerate(slot.dimensions):
        if isinstance(side, int):
            shape.append(side)
        elif place == 0:
            shape.append(batch)
        elif slot.name in shapes:
            shape.append(shapes[slot.name][place])
        elif isinstance(side, str) and side in sizes:
            shape.append(sizes[side])
        else:
            called = f" {side!r}" if side else ""
            example = "x".join(
                str(each) if isinstance(each, int) else "1" if number == 0 else "128"
                for number, each in enumerate(slot.dimensions)
            )
            raise InputError(
                f"{path}: dimension {place}{called} of input {slot.name!r} is free; say its shape, as in "
                f"--input {slot.name}={example}"
            )
    return Input(slot.name, slot.type, tuple(shape), slot.below)


def _shape_text(shape: Sequence[graphs.Dimension]) -> str:
    return "x".join("?" if side is None else str(side) for side in shape) or "one number"

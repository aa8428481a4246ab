"""Networks that a user names, and what they are tested on: their weights, images and
what a file says of them."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import to_builtins

from suite import env
from suite.errors import InputError, first_line
from suite.export.weights import CONFIG, read_config
from suite.files import printable
from suite.inference import names, provenance
from suite.registry import DATA_SETS, STAND_INS, what_is_there
from suite.tables import spec

if TYPE_CHECKING:
    from suite.data.batches import Batches
    from suite.data.sets import Dataset


@dataclass(frozen=True)
class NamedNetwork:
    """A trained network, or one with the initial weights of seed 0.

    Attributes:
        weights: folder in timm's local layout.
        model: its timm name.
        classes: how many it tells apart.
        size: side of the square that it sees, in pixels.
        trained: whether the weights are a run's.
        channels: of its input.
    """

    weights: Path
    model: str
    classes: int
    size: int
    trained: bool
    channels: int = 3


@contextlib.contextmanager
def errors_in_one_line(name: str) -> Iterator[None]:
    """Say in one line of what a user has named why it cannot be exported, run or
    compared.

    Raises:
        InputError: instead of the exceptions that the stages, ONNX Runtime and
            safetensors raise.
    """
    try:
        yield
    except Exception as error:
        # ONNX Runtime's, protobuf's and safetensors' own have no base but this.
        foreign = type(error).__module__.partition(".")[0] in ("onnxruntime", "onnx", "google", "safetensors_rust")
        if isinstance(error, InputError) or not (foreign or isinstance(error, _EXPECTED)):
            raise
        if isinstance(error, OSError) and error.strerror and error.filename:
            where = f"{error.filename}: " if str(error.filename) != name else ""
            raise InputError(f"{name}: {where}{error.strerror}") from error
        raise InputError(f"{name}: {first_line(error)}") from error


# What a file of another kind, one that is damaged, or a machine too small for it ends in.
_EXPECTED = (RuntimeError, ValueError, OSError, MemoryError)


@contextlib.contextmanager
def find_network(name: str, size: int | None = None) -> Iterator[NamedNetwork]:
    """The network that a user names: a timm model of this project, with published
    weights if its name has their tag, else with initial ones; or a run's folder with
    its weights.

    Raises:
        InputError: it is neither.
    """
    import timm
    from timm.models import save_for_hf

    import models  # noqa: F401 - registers the networks with timm

    name = str(names.published_folder(name) or name)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(name)
        trained = folder.is_dir()
        if not trained:
            legal = timm.list_models(module="crelu_resnet")
            if name not in legal:
                raise InputError(
                    f"{name}: neither a folder with a run's weights nor a model; use a model that "
                    f"{env.typed()} list models prints"
                )
            import torch

            folder = Path(scratch)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                save_for_hf(timm.create_model(name), str(folder), safe_serialization=True)
        config = read_config(folder)
        usual = timm.get_pretrained_cfg(config.model)
        assert usual is not None  # every network of this project has one
        size = size or usual.input_size[-1]
        found = NamedNetwork(folder, config.model, config.classes, size, trained, config.channels)
        if trained:
            provenance.require_as_recorded(folder, found.model)
        yield found


def test_batches(of: NamedNetwork, data: Mapping[str, Path], images: int | None) -> "Batches":
    """The test images for a network: of the data given, else of the embedded set with
    as many classes, normalised as the network's folder states if its weights are a
    run's. What is to be said of them stands in the data set's notes. For a network that
    does not take three channels they are converted (see `suite.data.channels`).

    Raises:
        InputError: the data has another number of classes, or there is no embedded set
            to match.
    """
    import numpy as np
    import timm
    import torch

    from suite.data.batches import Batches
    from suite.data.channels import ChannelBatches
    from suite.data.sets import load

    if len(data) > 1:
        raise InputError("--data is given more than once; a network is checked on one data set")
    for name, path in data.items():
        dataset = load(name, path)
        if len(dataset.classes) != of.classes:
            raise InputError(f"--data {name}: has {len(dataset.classes)} classes, the network {of.classes}")
        break
    else:
        embedded = {DATA_SETS[name].classes: name for name in STAND_INS.values()}
        if of.classes not in embedded:
            raise InputError(f"the network has {of.classes} classes; give its images by --data NAME=PATH")
        dataset = load(embedded[of.classes])
    usual = timm.get_pretrained_cfg(of.model)
    assert usual is not None  # every network of this project has one
    recipe = spec.load_table(4 if usual.input_size[-1] > 100 else 2).recipe
    recipe = replace(recipe, test_size=of.size, max_test_images=images)
    if recipe.augment == "cifar":
        held = dataset.test.images
        side = f"{held.shape[1]}x{held.shape[2]} pixels" if isinstance(held, np.ndarray) else "many sizes"
        if side != f"{of.size}x{of.size} pixels":
            raise InputError(
                f"{of.model} is to see {of.size}x{of.size} pixels, which CIFAR's recipe takes as they are, and the "
                f"images of {dataset.name} have {side}"
            )
    if of.trained:
        dataset = normalize_as_trained(dataset, of.weights)
    workers = 0 if dataset.train.in_memory else env.available_cores()
    if of.channels != 3:
        stated = read_config(of.weights).statistics
        stated = {name: stated[name] for name in ("mean", "std") if name in stated}
        return ChannelBatches(dataset, recipe, torch.device("cpu"), workers, of.channels, stated)
    return Batches(dataset, recipe, torch.device("cpu"), workers)


def normalize_as_trained(dataset: "Dataset", weights: Path) -> "Dataset":
    """A data set with the mean and std that a run's folder states.

    Those of a network that is not this project's were trained with the mean and std of
    the data set's fingerprint.

    Raises:
        InputError: they are not of three channels.
    """
    from suite.export import zoo

    if not zoo.from_folder(weights).ours:
        return dataset
    config = read_config(weights)
    if config.channels != 3:  # for which `suite.data.channels` does it
        return dataset
    return dataset.with_normalization(config.statistics, str(weights / CONFIG))


def training_data_note(of: NamedNetwork, dataset: "Dataset", given: bool) -> str:
    """What to say of a network on images of another data set than it was trained on, as
    in "trained on cifar10"; empty for its own and for initial weights.

    The run's record knows it; away from its results folder the class names do, and
    where the weights have none the user is believed, if the data set was `given`.
    """
    if not of.trained:
        return ""
    if known := training_metadata(of):
        name = json.loads(known["data"])["name"]
        remedy = f"; --data {name}=PATH gives that" if name in STAND_INS else ""
        return "" if name == dataset.fingerprint["name"] else printable(f"trained on {name}{remedy}")
    classes = read_config(of.weights).statistics.get("label_names")
    if classes is None:
        return "" if given else "trained on what its folder does not say; --data NAME=PATH gives its own"
    if tuple(classes) == dataset.classes:
        return ""
    return printable(f"trained on other classes ({', '.join(classes[:3])}, ...); --data NAME=PATH gives its own")


def size_notes(dataset: "Dataset", images: int | None) -> list[str]:
    """What to say of a data set that is not whole, or has fewer test images than were
    asked for."""
    test = len(dataset.test)
    part = what_is_there(dataset.name, len(dataset.train), test)
    fewer = f"{test} test images are all that there are, of {images} asked for"
    return [*([part] if part else []), *([fewer] if images and images > test else [])]


def metadata(of: NamedNetwork, more: dict[str, str]) -> dict[str, str]:
    """What an exported file says of itself, as text: model, weights' hash, mean and std
    on [0, 1], class names, versions, and `more`."""
    from suite.data.channels import statistics_of
    from suite.export import zoo

    network = zoo.from_folder(of.weights)
    if network.ours:
        known = statistics_of(read_config(of.weights).statistics, of.channels)
    else:
        known = {name: network.described[name] for name in ("mean", "std", "label_names") if name in network.described}
    stated = {"model": of.model, "weights_sha256": provenance.digest(of.weights), "trained": str(of.trained).lower()}
    for name, value in (known | {"versions": env.versions()}).items():
        stated[name] = json.dumps(value)
    return stated | more


def require_weights_of(of: NamedNetwork, name: str, stated: Mapping[str, str]) -> None:
    """See to it that a network is the one of which a file says that it was made.

    Initial weights are not held against each other: those of another machine or version
    of torch may differ.

    Args:
        of: the network.
        name: of the file.
        stated: its metadata, of which all may be missing.

    Raises:
        InputError: it is another network, or has other weights.
    """
    if (model := stated.get("model", of.model)) != of.model:
        raise InputError(f"{name}: was made from {printable(model)}, not from {of.model}; give its own by --weights")
    trained = of.trained or stated.get("trained") == "true"
    if trained and stated.get("weights_sha256") not in (None, provenance.digest(of.weights)):
        raise InputError(f"{name}: was made from other weights of {of.model} than these; give its own by --weights")


def training_metadata(of: NamedNetwork) -> dict[str, str]:
    """What a run was trained on, for `metadata`: its `recipe`, the `data`'s fingerprint
    and the `run`'s key, from the record in its results folder; nothing for initial
    weights and for a folder of weights that lies elsewhere."""
    record = provenance.training(of.weights, of.model) if of.trained else None
    if record is None:
        return {}
    asked = {"recipe": record.inputs.recipe, "data": to_builtins(record.inputs.data)}
    return {name: json.dumps(value, sort_keys=True) for name, value in asked.items()} | {"run": record.key}

"""One network or file at a time: export it, check it, explain it, outside the grid of a table."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite import env
from suite.errors import InputError, first_line
from suite.export import onnxfile
from suite.export.weights import CONFIG, read_config
from suite.files import printable
from suite.registry import DATA_SETS, PROVIDERS, STAND_INS, lacks
from suite.results.shape import checked
from suite.results.store import Store
from suite.tables import spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from suite.data.batches import Batches
    from suite.data.sets import Dataset
    from suite.export.precision import Activations

# Training images that fix the ranges of int8 activations, and show whether float16 holds them.
CALIBRATION_IMAGES = 200


@dataclass(frozen=True)
class Source:
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
def in_one_line(name: str) -> Iterator[None]:
    """Say in one line of what a user has named why it cannot be exported, run or compared.

    Raises:
        InputError: instead of the exceptions that the stages, ONNX Runtime and safetensors raise.
    """
    try:
        yield
    except Exception as error:
        # ONNX Runtime's, protobuf's and safetensors' own have no base but this.
        foreign = type(error).__module__.partition(".")[0] in ("onnxruntime", "onnx", "google", "safetensors_rust")
        if isinstance(error, InputError) or not (foreign or isinstance(error, _EXPECTED)):
            raise
        raise InputError(f"{name}: {first_line(error)}") from None


# What a file of another kind, one that is damaged, or a machine too small for it ends in.
_EXPECTED = (RuntimeError, ValueError, OSError, MemoryError)


@contextlib.contextmanager
def source(name: str, size: int | None = None) -> Iterator[Source]:
    """The network that a user names: a timm model of this project, or a run's folder with its weights.

    Raises:
        InputError: it is neither.
    """
    import timm
    from timm.models import save_for_hf

    import models  # noqa: F401 - registers the networks with timm

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(name)
        trained = folder.is_dir()
        if not trained:
            legal = timm.list_models(module="crelu_resnet")
            if name not in legal:
                raise InputError(
                    f"{name}: neither a folder with a run's weights nor a model; legal models are those of "
                    "python -m suite list models"
                )
            import torch

            torch.manual_seed(0)
            folder = Path(scratch)
            save_for_hf(timm.create_model(name), str(folder), safe_serialization=True)
        config = read_config(folder)
        usual = timm.get_pretrained_cfg(config.model)
        assert usual is not None  # every network of this project has one
        yield Source(folder, config.model, config.classes, size or usual.input_size[-1], trained, config.channels)


def test_batches(of: Source, data: Mapping[str, Path], images: int | None) -> "Batches":
    """The test images for a network: of the data given, else of the embedded set with as many classes, normalised as
    the network's folder states if its weights are a run's. What is to be said of them stands in the data set's notes.
    For a network that does not take three channels they are converted (see `suite.data.channels`).

    Raises:
        InputError: the data has another number of classes, or there is no embedded set to match.
    """
    import numpy as np
    import timm
    import torch

    from suite.data.batches import Batches
    from suite.data.channels import InChannels
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
        dataset = as_trained(dataset, of.weights)
    workers = 0 if dataset.train.in_memory else env.available_cores()
    if of.channels != 3:
        stated = read_config(of.weights).statistics
        stated = {name: stated[name] for name in ("mean", "std") if name in stated}
        return InChannels(dataset, recipe, torch.device("cpu"), workers, of.channels, stated)
    return Batches(dataset, recipe, torch.device("cpu"), workers)


def as_trained(dataset: "Dataset", weights: Path) -> "Dataset":
    """A data set with the mean and std that a run's folder states.

    Raises:
        InputError: they are not of three channels.
    """
    config = read_config(weights)
    if config.channels != 3:  # for which `suite.data.channels` does it
        return dataset
    return dataset.normalised_by(config.statistics, str(weights / CONFIG))


def trained_elsewhere(of: Source, dataset: "Dataset", given: bool) -> str:
    """What to say of a network on images of another data set than it was trained on, as in "trained on cifar10";
    empty for its own and for initial weights.

    The run's record knows it; away from its results folder the class names do, and where the weights have none the
    user is believed, if the data set was `given`.
    """
    if not of.trained:
        return ""
    if known := training(of):
        name = json.loads(known["data"])["name"]
        remedy = f"; --data {name}=PATH gives that" if name in STAND_INS else ""
        return "" if name == dataset.fingerprint["name"] else printable(f"trained on {name}{remedy}")
    classes = read_config(of.weights).statistics.get("label_names")
    if classes is None:
        return "" if given else "trained on what its folder does not say; --data NAME=PATH gives its own"
    if tuple(classes) == dataset.classes:
        return ""
    return printable(f"trained on other classes ({', '.join(classes[:3])}, ...); --data NAME=PATH gives its own")


def metadata(of: Source, more: dict[str, str]) -> dict[str, str]:
    """What an exported file says of itself, as text: model, weights' hash, mean and std on [0, 1], class names,
    versions, and `more`."""
    from suite.data.channels import statistics_of

    known = statistics_of(read_config(of.weights).statistics, of.channels)
    with open(of.weights / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stated = {"model": of.model, "weights_sha256": digest, "trained": str(of.trained).lower()}
    for name, value in (known | {"versions": env.versions()}).items():
        stated[name] = json.dumps(value)
    return stated | more


def training(of: Source) -> dict[str, str]:
    """What a run was trained on, for `metadata`: its `recipe`, the `data`'s fingerprint and the `run`'s key, from the
    record in its results folder; nothing for initial weights and for a folder of weights that lies elsewhere."""
    folder = of.weights.resolve()
    store = Store(folder.parent.parent)
    for record in store.each("train", [of.model]) if of.trained else ():
        if record.key == folder.name:
            checked(record, store.root)
            return {name: json.dumps(record.inputs[name]) for name in ("recipe", "data")} | {"run": record.key}
    return {}


def export(
    of: Source, out: Path, precision: str, provider: str, plain: bool, data: Mapping[str, Path]
) -> dict[str, Any]:
    """Write a network as an ONNX file in the form that is fastest on a provider, whole or not at all.

    On the CPU provider that is the rewritten graph, on the CUDA provider the exporter's own. In int8, and for TensorRT,
    candidates are timed against each other here: the rewritten and the exporter's own graph, and in int8 on the CPU
    provider also signed activations instead of unsigned ones. For a GPU the file is timed in any case, which shows that
    it runs there.

    Returns:
        What `exporter.export` does, with `precision` and `form` ("rewritten" or "plain"); of a file in fewer bits
        what `convert` adds, and for int8 `activations` ("unsigned", "signed", or for GPUs "symmetric") and
        `difference_from_fp32` (of its logits on the calibration images, root mean square over root mean square); of a
        timed one the `milliseconds` of one image, the median; and `warnings`, sentences.

    Raises:
        InputError: the provider is not here or cannot run this precision, or `out` cannot be written.
        RuntimeError: no file can be made, or none of those that were made runs.
    """
    from suite.export import exporter as exporting

    if not out.parent.is_dir():
        raise InputError(f"{out}: its folder does not exist")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; legal: the name of a file, as in net.onnx")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"{out}: cannot write there")
    if reason := lacks(provider, precision):
        raise InputError(f"--precision {precision} --provider {provider}: {reason}; legal on this provider: fp32, fp16")
    _require(provider)
    forms = ["plain"] if plain else [PROVIDERS[provider].graph]
    if not plain and (provider == "tensorrt" or precision == "int8"):
        forms = ["rewritten", "plain"]  # to be measured

    @cache
    def images() -> "Calibration":
        batches = test_batches(of, data, None)
        elsewhere = trained_elsewhere(of, batches.dataset, bool(data))
        return calibration(batches, elsewhere)

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch:
        found: dict[Path, dict[str, Any]] = {}
        for form in forms:
            path = Path(scratch) / f"{form}.onnx"
            stated = metadata(of, training(of) | {"form": form})
            result = exporting.export(of.weights, of.size, path, stated, form == "rewritten")
            result |= {"form": form, "precision": precision}
            if precision == "fp32":
                found[path] = result
                continue
            kinds = _activations(provider, form == forms[0]) if precision == "int8" else ("unsigned",)
            for kind in kinds:
                fewer = path.with_suffix(f".{kind}")
                found[fewer] = result | convert(path, fewer, precision, images(), kind, of.trained)
                found[fewer]["warnings"] = [*found[fewer].get("warnings", ()), *images().notes]
                if precision == "int8":
                    found[fewer]["activations"] = kind
        if provider == "cpu" and len(found) == 1:
            (chosen,) = found
            answer = found[chosen]
        else:
            chosen, seconds, warnings = _fastest(of, list(found), provider)
            answer = found[chosen] | {"milliseconds": 1e3 * seconds}
            answer["warnings"] = [*found[chosen].get("warnings", ()), *warnings]
        if precision == "int8":
            whole = Path(scratch) / f"{answer['form']}.onnx"
            from suite.export.precision import difference

            apart = difference(chosen, whole, images().batches, env.available_cores())
            answer["difference_from_fp32"] = apart
        os.replace(chosen, out)
    return answer


def _activations(provider: str, first: bool) -> tuple["Activations", ...]:
    """Kinds of int8 activations to try on a provider; signed ones in the first form alone."""
    if provider != "cpu":
        return ("symmetric",)
    return ("unsigned", "signed") if first else ("unsigned",)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Training images as in test, float32 (B, 3, size, size) each batch, in words what they are, and what else is to be
    said of them."""

    batches: Sequence["NDArray[np.float32]"]
    words: str
    notes: tuple[str, ...] = ()


def calibration(batches: "Batches", elsewhere: str = "") -> Calibration:
    """`CALIBRATION_IMAGES` training images, evenly spaced, for a network that was trained `elsewhere` (see
    `trained_elsewhere`)."""
    held = [batch.contiguous().numpy() for batch in batches.calibration(CALIBRATION_IMAGES)]
    words = f"{sum(map(len, held))} training images of {batches.dataset.name}"
    foreign = (f"calibrated on {words}, but {elsewhere}",) if elsewhere else ()
    return Calibration(held, words, (*batches.dataset.notes, *foreign))


def convert(
    path: Path,
    out: Path,
    form: str,
    images: Calibration,
    activations: "Activations" = "unsigned",
    trained: bool = True,
) -> dict[str, Any]:
    """Write an exported file in fewer bits: "fp16", or "int8" calibrated on images, with `activations` of a kind.

    Returns:
        What `exporter.check` says of the file, and `calibration` in words; for float16 `greatest_activation` (in
        float32, on these images), and if float16 does not hold it, and the network is not `trained`, `warnings`.

    Raises:
        RuntimeError: float16 does not hold a weight, or an activation of a trained network on these images; or the file
            is not what it is meant to be.
    """
    from suite.export.exporter import check
    from suite.export.precision import FLOAT16, magnitudes, to_float16, to_int8

    if form == "int8":
        to_int8(path, out, images.batches, activations=activations)
        return check(out) | {"calibration": images.words}
    to_float16(path, out)
    found = magnitudes(path, images.batches, env.available_cores())
    said = {"calibration": images.words, "greatest_activation": max(found.values())}
    most = float(FLOAT16.max)
    for node, value in found.items():
        if not value <= most:  # nor if it is not a number
            said["greatest_activation"] = value
            overflow = f"{node} gives values to {value:.3g} on {images.words}, and float16 holds {most:.0f} at most"
            if trained:
                raise RuntimeError(f"{overflow}; legal: fp32, int8")
            said["warnings"] = [f"{overflow}: with these initial weights the file gives no numbers on a GPU"]
            break
    return check(out) | said


def _require(provider: str) -> None:
    """Try a provider in another process, since ONNX Runtime prints a page about libraries that it misses."""
    from suite.inference import latency

    if reason := latency.unavailable(provider):
        raise InputError(f"--provider {provider}: not available here: {reason}")


def _fastest(of: Source, files: list[Path], provider: str) -> tuple[Path, float, list[str]]:
    """The file with the least median time for one image on this provider, of those that run there; this time in
    seconds; and what is to be said of it. Files without finite logits count only if there is no other, and only with
    initial weights, on which the time does not depend.

    Raises:
        RuntimeError: none of them runs.
    """
    import statistics

    from suite.inference.latency import THOROUGH, NotFiniteError, Request, measure

    threads = env.available_cores()
    requests = [Request("onnxruntime", str(file), provider, 1, of.size, threads, THOROUGH) for file in files]
    times: dict[Path, float] = {}
    not_finite: dict[Path, float] = {}
    errors = []
    for file, answer in zip(files, measure(requests), strict=True):
        if isinstance(answer, NotFiniteError) and not of.trained:
            not_finite[file] = statistics.median(answer.answer["samples"])
        elif isinstance(answer, RuntimeError):
            errors.append(answer)
        else:
            times[file] = statistics.median(answer["samples"])
    if not (times or not_finite):
        raise errors[0]
    warnings = [] if times else ["the timed network gave logits that are not finite, as initial weights may"]
    times = times or not_finite
    fastest = min(times, key=lambda file: times[file])
    return fastest, times[fastest], warnings


@contextlib.contextmanager
def onnx_file(name: str, provider: str, size: int | None) -> Iterator[Path]:
    """An ONNX file that a user names, or the export of the run or model that is named.

    Raises:
        InputError: there is no such thing, or the provider is not here.
    """
    _require(provider)
    if name.endswith(".onnx"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{name}: no such file")
        side = onnxfile.image_size(onnxfile.read(path))
        if size not in (None, side):
            raise InputError(f"--size {size}: {name} is for images of {side}x{side}; legal: {side}, or none")
        yield path
        return
    with source(name, size) as of, tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{of.model}.onnx"
        export(of, path, "fp32", provider, False, {})
        yield path


def explain(path: Path, provider: str, batch_size: int, size: int | None) -> dict[str, Any]:
    """What `suite.inference.explain` says of a file with as many threads as there are cores."""
    from suite.inference import explain

    return explain.explain(path, provider, env.available_cores(), batch_size, size)


def parity(
    name: str, weights: str | None, data: Mapping[str, Path], images: int | None, provider: str
) -> dict[str, Any]:
    """Check an ONNX file, or the export of a run or model, against torch on test images.

    Args:
        name: an ONNX file, a run's folder of weights, or a model.
        weights: for a file, the run's folder or the model that it was exported from; None for what the file names.
        data: the data set to test on; empty for the embedded one.
        images: how many of it, evenly spaced; None for all.
        provider: of ONNX Runtime.

    Returns:
        What `check` does, `model`, `trained`, `data`, `elsewhere` (see `trained_elsewhere`), and `notes` on the data.

    Raises:
        InputError: there is no such file, or it does not say what it was made from.
    """
    path = Path(name)
    is_file = path.suffix == ".onnx"
    if is_file and not path.is_file():
        raise InputError(f"{name}: no such file")
    if weights and not is_file:
        raise InputError(f"--weights {weights}: legal only with a FILE.onnx, and {name} is none")
    _require(provider)
    file = onnxfile.read(path) if is_file else None
    made_from = weights or (onnxfile.stated_model(path, file) if file else name)
    size = onnxfile.image_size(file) if file else None
    with source(made_from, size) as of, tempfile.TemporaryDirectory() as scratch:
        if file is None:
            path = Path(scratch) / "model.onnx"
            export(of, path, "fp32", provider, False, data)
        elif (classes := onnxfile.classes(file)) != of.classes:
            raise InputError(f"{name}: tells {classes} classes apart, {of.model} {of.classes}: another network's file")
        elif (channels := onnxfile.channels(file)) != of.channels:
            raise InputError(f"{name}: takes {channels} channels, {of.model} {of.channels}: another network's file")
        batches = test_batches(of, data, images)
        found = check(of.weights, path, batches, onnxfile.precision(path), provider)
        dataset = batches.dataset
        said = {"elsewhere": trained_elsewhere(of, dataset, bool(data)), "notes": dataset.notes}
        return {"model": of.model, "trained": of.trained, "data": dataset.name, **said, **found}


def check(
    weights: Path,
    path: Path,
    batches: "Batches",
    precision: str,
    provider: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """What `parity.compare` says of a file and the weights that it was made from; and if a float32 file fails,
    `departure`: the first node that departs, as `departure` finds it.

    Raises:
        RuntimeError: nothing can be compared; where that is a float32 file's fault, with the first node that departs.
    """
    from suite.export.exporter import load_weights
    from suite.inference.departure import first_departure
    from suite.inference.parity import LogitsError, compare

    model = load_weights(weights)

    def departure() -> dict[str, Any] | None:
        images, _ = next(iter(batches.test()))
        return first_departure(model, path, images[:4].contiguous(), provider)

    try:
        found = compare(model, path, batches, env.available_cores(), progress, provider=provider, precision=precision)
    except LogitsError as error:
        if precision == "fp32" and error.of == "ONNX Runtime" and (first := departure()):
            raise RuntimeError(f"{error}; it departs first at {first['node']}") from None
        raise
    return found if found["passed"] or precision != "fp32" else found | {"departure": departure()}

"""One network or file at a time, outside the grid of a table: export it, check it,
explain it."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from suite import env
from suite.data import sets
from suite.errors import InputError, join_with_or
from suite.export import onnxfile, zoo
from suite.files import name_full_disk
from suite.inference import model_files, names, networks, reduced, subjects
from suite.registry import ORT, PROVIDERS, REDUCED, why_unsupported
from suite.results.folder import EXPORT, folder_beside

if TYPE_CHECKING:
    from suite.export.precision import Activations


def export(
    of: networks.NamedNetwork,
    out: Path,
    precision: str,
    provider: str,
    plain: bool,
    data: Mapping[str, Path],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write a network as the ONNX file that is fastest on a provider, whole or not at
    all.

    On the CPU provider that is the rewritten graph, on the CUDA provider the default
    export. In int8, and for TensorRT, candidates are timed against each other here: the
    rewritten graph and the default export, and in int8 on the CPU provider also signed
    activations instead of unsigned ones. For a GPU the file is timed in any case, which
    shows that it runs there. `say` is told what is being done.

    Returns:
        What `exporter.export` does, with `precision` and `form` ("rewritten" or
        "plain"); of a file in reduced precision what `convert` says in the place of the
        float32 file's, `difference_from_fp32` (of its logits on the calibration images,
        root mean square over root mean square), and for int8 `activations` ("unsigned",
        "signed", or for GPUs "symmetric"); of a timed one the `milliseconds` of one
        image, the median; and `warnings`, sentences.

    Raises:
        InputError: the provider is not here or cannot run this precision, or `out`
            cannot be written.
        RuntimeError: no file can be made, or none of those that were made runs.
    """
    from suite.export import exporter as exporting

    check(out, precision, provider)
    graphs = ["plain"] if plain else [PROVIDERS[provider].graph]
    if not plain and (provider == "tensorrt" or precision == "int8"):
        graphs = ["rewritten", "plain"]  # to be measured

    @cache
    def images() -> reduced.Calibration:
        batches = networks.test_batches(of, data, None)
        elsewhere = networks.training_data_note(of, batches.dataset, bool(data))
        return reduced.calibration(batches, elsewhere)

    with folder_beside(out) as scratch, name_full_disk(out.parent):
        found: dict[Path, dict[str, Any]] = {}
        for graph in graphs:
            path = scratch / f"{graph}.onnx"
            stated = networks.metadata(of, networks.training_metadata(of) | {"form": graph})
            say(f"export {of.model}" + (f", the {graph} graph" if graphs[1:] else ""))
            exported = exporting.export(of.weights, of.size, path, stated, graph == "rewritten")
            result = to_builtins(exported) | {"form": graph, "precision": precision}
            if precision == "fp32":
                found[path] = result
                continue
            kinds = _activations(provider, graph == graphs[0]) if precision == "int8" else ("unsigned",)
            for kind in kinds:
                fewer = path.with_suffix(f".{kind}")
                say(_describe_conversion(of, precision, kind, graph))
                converted = reduced.convert(path, fewer, precision, images(), kind, of.trained)
                found[fewer] = reduced.of_fp32(result) | to_builtins(converted)
                found[fewer]["warnings"] = [*found[fewer].get("warnings", ()), *images().notes]
                if precision == "int8":
                    found[fewer]["activations"] = kind
        if provider == "cpu" and len(found) == 1:
            (chosen,) = found
            answer = found[chosen]
        else:
            say("time the file" if len(found) == 1 else f"time the {len(found)} files")
            chosen, seconds, warnings = _fastest(of, list(found), provider)
            answer = found[chosen] | {"milliseconds": 1e3 * seconds}
            answer["warnings"] = [*found[chosen].get("warnings", ()), *warnings]
        if precision != "fp32":
            whole = scratch / f"{answer['form']}.onnx"
            from suite.export.precision import difference

            say("compare with float32")
            apart = difference(chosen, whole, images().batches, env.available_cores())
            answer["difference_from_fp32"] = apart
        os.replace(chosen, out)
    return answer


def check(out: Path, precision: str, provider: str) -> None:
    """See, before anything is made, whether a file in a precision can be written, and
    be run on a provider.

    Raises:
        InputError: it cannot.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out}: its folder does not exist")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a file, as in net.onnx")
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=EXPORT):
            pass
    except OSError as error:
        raise InputError(f"{out}: cannot write there: {error.strerror}") from None
    if reason := why_unsupported(provider, precision):
        legal = join_with_or(each for each in ("fp32", *REDUCED) if not why_unsupported(provider, each))
        raise InputError(f"--precision {precision} --provider {provider}: {reason}; use {legal}")
    require_provider(provider)


def _describe_conversion(of: networks.NamedNetwork, precision: str, kind: str, graph: str) -> str:
    """What is about to be made, which takes minutes for a large network."""
    images = f"{reduced.CALIBRATION_IMAGES} images"
    if precision == "int8":
        return f"int8 of {of.model}, the {graph} graph with {kind} activations: calibrate on {images}"
    return f"{precision} of {of.model}: check on {images}"


def _activations(provider: str, first: bool) -> tuple["Activations", ...]:
    """Kinds of int8 activations to try on a provider; signed ones in the first graph
    alone."""
    if provider != "cpu":
        return ("symmetric",)
    return ("unsigned", "signed") if first else ("unsigned",)


def require_provider(provider: str) -> None:
    """Try a provider in another process, since ONNX Runtime prints a page about
    libraries that it misses.

    Raises:
        InputError: it is not here.
    """
    from suite.inference import latency

    if reason := latency.why_unavailable(provider):
        raise InputError(f"--provider {provider}: not available here: {reason}")


def _fastest(of: networks.NamedNetwork, files: list[Path], provider: str) -> tuple[Path, float, list[str]]:
    """The file with the least median time for one image on this provider, of those that
    run there; this time in seconds; and what is to be said of it. Files without finite
    logits count only if there is no other, and only with initial weights, on which the
    time does not depend.

    Raises:
        RuntimeError: none of them runs.
    """
    from suite.inference.latency import THOROUGH, NotFiniteError, Request, measure
    from suite.results.samples import to_seconds

    threads = env.available_cores()
    requests = [Request("onnxruntime", str(file), provider, 1, of.size, threads, THOROUGH) for file in files]
    times: dict[Path, float] = {}
    not_finite: dict[Path, float] = {}
    errors = []
    for file, answer in zip(files, measure(requests), strict=True):
        if isinstance(answer, NotFiniteError) and not of.trained:
            not_finite[file] = to_seconds(answer.answer).median
        elif isinstance(answer, RuntimeError):
            errors.append(answer)
        else:
            times[file] = to_seconds(answer).median
    if not (times or not_finite):
        raise errors[0]
    warnings = [] if times else ["the timed network gave logits that are not finite, as initial weights may"]
    times = times or not_finite
    fastest = min(times, key=lambda file: times[file])
    return fastest, times[fastest], warnings


@contextlib.contextmanager
def onnx_file(
    name: str,
    provider: str,
    size: int | None,
    modules: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Path]:
    """An ONNX file that a user names, or the export of the run or model that is named,
    of which `say` is told.

    Raises:
        InputError: there is no such thing, or the provider is not here.
    """
    subject = subjects.find(name, modules)
    require_provider(provider)
    if subject.graph is not None:
        sides = {slot.dimensions[-1] for slot in subject.graph.inputs if len(slot.dimensions) == 4}
        if size is not None and sides != {size}:
            raise InputError(f"--size {size}: {name} is a file; use --input NAME=SHAPE where its size is free")
        yield subject.graph.path
        return
    assert subject.network is not None  # for the type checker
    with tempfile.TemporaryDirectory() as scratch:
        if subject.network.ours:
            with networks.find_network(name.removeprefix(zoo.LOCAL), size) as of:
                path = Path(scratch) / f"{of.model}.onnx"
                export(of, path, "fp32", provider, False, {}, say)
        else:
            path = model_files.Maker(name, subject.network, Path(scratch), say, size=size).file("fp32", provider)
        yield path


def parity(
    name: str,
    weights: str | None,
    data: Mapping[str, Path],
    images: int | None,
    provider: str,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    runtime: str = ORT,
) -> dict[str, Any]:
    """Check an ONNX file, or the export of a run or model, against torch on test
    images.

    Args:
        name: an ONNX file, a run's folder of weights, or a model.
        weights: for a file, the run's folder or the model that it was exported from;
            None for what the file names, and for published weights.
        data: the data set to test on; empty for the embedded one.
        images: how many of it, evenly spaced; None for as many as take a minute.
        provider: that the file is run on.
        progress: told what is done, and of how many images.
        runtime: that runs the file, a key of `suite.registry.RUNTIMES`.

    Returns:
        What `check` does, `runtime`, `model`, `trained`, `data`, `elsewhere` (see
        `trained_elsewhere`), and `notes` on the data.

    Raises:
        InputError: there is no such file, or it does not say what it was made from.
    """
    path = Path(name)
    is_file = path.suffix == ".onnx"
    if is_file and not path.is_file():
        raise InputError(f"{name}: no such file")
    if weights and not is_file:
        raise InputError(f"--weights {weights} is only for ONNX files; {name} is not one")
    require_provider(provider)
    for data_set, folder in data.items():
        sets.must_be_folder(data_set, folder)
    file = onnxfile.read(path) if is_file else None
    stated = onnxfile.metadata(file) if file else {}
    made_from = weights or name
    if file and not weights:
        digest = stated.get("weights_sha256") if stated.get("trained") == "true" else None
        made_from = (digest and names.published_with(digest)) or onnxfile.model_in_metadata(path, file)
    size = onnxfile.image_size(file) if file else None
    from suite.inference import departure

    progress(0, 0, f"load {made_from}")
    with networks.find_network(made_from, size) as of, tempfile.TemporaryDirectory() as scratch:
        if file is None:
            progress(0, 0, "export")
            path = Path(scratch) / "model.onnx"
            export(of, path, "fp32", provider, False, data)
        elif (classes := onnxfile.classes(file)) != of.classes:
            raise InputError(f"{name}: tells {classes} classes apart, {of.model} {of.classes}: another network's file")
        elif (channels := onnxfile.channels(file)) != of.channels:
            raise InputError(f"{name}: takes {channels} channels, {of.model} {of.channels}: another network's file")
        networks.require_weights_of(of, name, stated)
        batches = networks.test_batches(of, data, images)
        precision = onnxfile.precision(path)
        notes = (*batches.dataset.notes, *networks.size_notes(batches.dataset, images))
        fewer = None
        if images is None:
            fewer = _in_a_minute(of, data, path, precision, provider, runtime, batches.test_images)
        if fewer:
            notes = (*notes, f"{fewer} of {batches.test_images} images, as many as take a minute; --images N takes N")
            batches = networks.test_batches(of, data, fewer)
        found = departure.check(of.weights, path, batches, precision, provider, progress, runtime)
        dataset = batches.dataset
        said = {"elsewhere": networks.training_data_note(of, dataset, bool(data)), "notes": notes}
        made = {"runtime": runtime, "model": of.model, "trained": of.trained, "data": dataset.name}
        return {**made, **said, **to_builtins(found)}


# How long images are compared where nobody says how many. How long one takes is found out on so many, and on more, if
# that takes no longer than so many seconds: the difference has no part of what is the same for any number of images,
# such as the start of processes that read them.
MINUTE, PROBED, MORE, BRIEFLY = 60.0, 16, 64, 6.0


def _in_a_minute(
    of: networks.NamedNetwork,
    data: Mapping[str, Path],
    path: Path,
    precision: str,
    provider: str,
    runtime: str,
    images: int,
) -> int | None:
    """How many images can be compared in a minute; None if that is all of them."""
    from suite.export.weights import load_weights
    from suite.inference.loaded import load
    from suite.inference.parity import LogitsError, compare

    if images <= PROBED:
        return None
    model, threads, once = load_weights(of.weights), env.available_cores(), cache(load)

    def seconds(count: int) -> float:
        batches = networks.test_batches(of, data, count)
        start = perf_counter()
        compare(model, path, batches, threads, provider=provider, precision=precision, runtime=runtime, load=once)
        return perf_counter() - start

    try:
        seconds(PROBED)  # loads and warms up
        first = seconds(PROBED)
        fixed, each = 0.0, first / PROBED
        more = min(MORE, images, int(BRIEFLY / each))
        if first + (images - PROBED) * each > MINUTE and more > 2 * PROBED:
            longer = seconds(more)
            each = max(longer - first, 0.1 * longer) / (more - PROBED)
            fixed = max(0.0, longer - more * each)
    except LogitsError:
        return PROBED  # on which the file's fault is found as well
    possible = int((MINUTE - fixed) / each)
    return max(PROBED, possible) if possible < images else None

"""Prepare what `suite time` compares: files as given, models exported in each
precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from suite import env
from suite.errors import InputError, first_line, join_with_or
from suite.export import graphs, zoo
from suite.inference import feeds, latency, loaded, subjects
from suite.inference.contest import QUICK, Entrant
from suite.inference.feeds import NOTHING_GIVEN, GivenInputs, Input
from suite.inference.latency import Request
from suite.inference.subjects import Subject
from suite.registry import ORT, REDUCED, RUNTIMES, why_unsupported


@dataclass(frozen=True)
class ContestOptions:
    """What is to be timed of each subject.

    Attributes:
        runtimes: keys of `suite.registry.RUNTIMES`; empty for ONNX Runtime. A file is
            run in those that read files.
        providers: keys of `suite.registry.PROVIDERS`.
        precisions: "fp32", "fp16" or "int8", of models; a file is timed as it is.
        batch_sizes: empty for what a file has, or 1.
        threads: of a runtime; None for as many as there are cores.
        given: what the user says of inputs.
        modules: that register models with timm.
    """

    runtimes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ("cpu",)
    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    threads: int | None = None
    given: GivenInputs = NOTHING_GIVEN
    modules: tuple[str, ...] = ()


def find_subjects(names: Sequence[str], wanted: ContestOptions) -> list[Subject]:
    """The subjects of these names, each fit for what is wanted of it.

    Raises:
        InputError: there is no such thing, it cannot be run as wanted, or a provider or
            runtime is not here.
    """
    loaded.require(wanted.runtimes)
    found = [subjects.find(name, wanted.modules) for name in names]
    slots = {slot.name for subject in found if subject.graph for slot in subject.graph.inputs}
    if any(subject.network for subject in found):
        slots.add("input")
    feeds.require_known(wanted.given, slots)
    for subject in found:
        if subject.graph is None:
            assert subject.network is not None  # for the type checker
            for batch_size in wanted.batch_sizes or (None,):
                _inputs_of_model(subject.network, wanted.given, batch_size)
            continue
        if not any(RUNTIMES[name].reads_files for name in wanted.runtimes or (ORT,)):
            legal = join_with_or(name for name, runtime in RUNTIMES.items() if runtime.reads_files)
            raise InputError(f"--runtimes {','.join(wanted.runtimes)}: {subject.name} is a file; use {legal}")
        for batch_size in wanted.batch_sizes or (None,):
            subjects.resolve_inputs(subject.graph, wanted.given, batch_size)
    if wanted.precisions and all(subject.graph for subject in found):
        raise InputError("--precisions is only for models, which are exported; a file is timed as it is")
    for provider in wanted.providers:
        if reason := latency.why_unavailable(provider):
            raise InputError(f"--providers {provider}: not available here: {reason}")
    return found


def prepare_entrants(
    found: Sequence[Subject], wanted: ContestOptions, scratch: Path, say: Callable[[str], None] = lambda text: None
) -> tuple[list[Entrant], list[str]]:
    """Everything that is to be timed, and what is to be said of what cannot be.

    Args:
        found: by `find_subjects`.
        wanted: of each.
        scratch: a folder for the files of models.
        say: told what is being done.

    Raises:
        InputError: a model cannot be exported, or its weights not be read.
    """
    entrants: list[Entrant] = []
    remarks: list[str] = []
    for number, subject in enumerate(found):
        if subject.graph is not None:
            entrants += _of_file(subject.name, subject.graph, wanted, remarks)
        else:
            folder = scratch / str(number)
            folder.mkdir()
            entrants += _of_model(subject, wanted, folder, say, remarks)
    if "cuda" in wanted.providers and any(entrant.request.runtime == ORT for entrant in entrants):
        remarks.append("on cuda without CUDA graphs, which the suite's own tables use")
    return entrants, list(dict.fromkeys(remarks))


def _of_file(name: str, graph: graphs.Graph, wanted: ContestOptions, remarks: list[str]) -> list[Entrant]:
    entrants = []
    for batch_size in wanted.batch_sizes or (None,):
        inputs = subjects.resolve_inputs(graph, wanted.given, batch_size)
        macs = graphs.macs(graph, {each.name: each.shape for each in inputs})
        for runtime in wanted.runtimes or (ORT,):
            if not RUNTIMES[runtime].reads_files:
                remarks.append(f"files are not timed in {RUNTIMES[runtime].label}")
                continue
            for provider in wanted.providers:
                if reason := _why_refused(runtime, provider, graph.precision):
                    remarks.append(reason)
                    continue
                request = _request(runtime, graph.path, provider, inputs, wanted)
                entrants.append(Entrant(name, request, graph.precision, macs, _are_images(inputs)))
    return entrants


def _why_refused(runtime: str, provider: str, precision: str) -> str | None:
    """Why a runtime does not run what has this precision on a provider, or None if it
    does."""
    kind = RUNTIMES[runtime]
    whole = not kind.reads_files and precision != "fp32"
    if provider not in kind.providers or whole or (precision in REDUCED and precision not in kind.forms):
        forms = [form for form in ("fp32", *REDUCED) if form in kind.forms]
        words = "float32" if not forms else " and ".join(forms)
        return f"{kind.label} is timed in {words} alone, on {' and '.join(kind.providers)}"
    return None


def _of_model(
    subject: Subject, wanted: ContestOptions, folder: Path, say: Callable[[str], None], remarks: list[str]
) -> list[Entrant]:
    from suite.inference import model_files

    assert subject.network is not None  # for the type checker
    made = model_files.Maker(subject.name, subject.network, folder, say)
    entrants = []
    for batch_size in wanted.batch_sizes or (None,):
        inputs = _inputs_of_model(subject.network, wanted.given, batch_size)
        for runtime in wanted.runtimes or (ORT,):
            for precision in wanted.precisions or ("fp32",):
                for provider in wanted.providers:
                    if runtime == ORT and (reason := why_unsupported(provider, precision)):
                        remarks.append(f"{precision} on {provider}: {reason}")
                        continue
                    if reason := _why_refused(runtime, provider, precision):
                        remarks.append(reason)
                        continue
                    reads_files = RUNTIMES[runtime].reads_files
                    try:
                        path = made.file(precision, provider) if reads_files else made.weights()
                    except RuntimeError as error:
                        remarks.append(f"{subject.name} in {precision}: {first_line(error)}")
                        continue
                    request = _request(runtime, path, provider, inputs, wanted)
                    macs = made.macs and made.macs * inputs[0].shape[0]
                    notes = made.said[path].get("warnings", ()) if reads_files else ()
                    entrants.append(Entrant(subject.name, request, precision, macs, True, tuple(notes)))
    return entrants


def _inputs_of_model(network: zoo.Network, given: GivenInputs, batch_size: int | None) -> tuple[Input, ...]:
    if "input" in given.shapes or "input" in given.values:
        shape = given.values["input"].shape if "input" in given.values else given.shapes["input"]
        wanted = subjects.image_input(network, shape[0] if shape else 1)
        if shape != wanted[0].shape:
            legal = "x".join(map(str, wanted[0].shape))
            raise InputError(f"--input: {network.model} takes images as in --input input={legal}, in any number")
        if batch_size is None:
            return wanted
        if "input" in given.values and shape[0] != batch_size:
            raise InputError(f"{given.path}: its batches are not of size {batch_size}; give no batch size with it")
    batch_size = batch_size or 1
    return subjects.image_input(network, batch_size)


def _request(runtime: str, path: Path, provider: str, inputs: tuple[Input, ...], wanted: ContestOptions) -> Request:
    first = inputs[0].shape if inputs else ()
    threads = wanted.threads or env.available_cores()
    size = first[-1] if len(first) == 4 else 0
    return Request(
        runtime,
        str(path),
        provider,
        first[0] if first else 1,
        size,
        threads,
        QUICK,
        inputs,
        wanted.given.path,
        wanted.modules,
    )


def _are_images(inputs: Sequence[Input]) -> bool:
    return len(inputs) == 1 and len(inputs[0].shape) == 4

"""The stages of a cell, which is a row with a seed: each with the inputs of its record,
and so with its key."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from suite import env
from suite.grid.run_options import RunOptions
from suite.registry import ORT, PROVIDERS, REDUCED, RUNTIMES, why_unsupported
from suite.results.record import key_of
from suite.tables import spec
from suite.tables.spec import Recipe, Row

if TYPE_CHECKING:
    from suite.data.sets import Dataset

# Stages that have the machine to themselves.
TIMED = ("peak", "latency")


@dataclass(frozen=True, eq=False)
class Cell:
    """One row with one seed: a network to train by `recipe`, and to export, check and
    time for images of the paper's size, which a quick run does not train at. `source`
    is the digest of the module that defines a user's own model."""

    row: Row
    recipe: Recipe
    dataset: "Dataset"
    seed: int
    size: int
    source: str | None = None

    @property
    def deployed(self) -> Recipe:
        """The recipe by which images are prepared for the exported network."""
        return dataclasses.replace(self.recipe, test_size=self.size)

    @property
    def name(self) -> str:
        """For people: the network, its data, and its seed unless that is the first."""
        return f"{self.row.title} on {self.dataset.name}" + (f" seed {self.seed}" if self.seed else "")


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a cell, which leaves one record.

    Attributes:
        kind: "train", "export", "convert", "parity", "analyze", "latency" or "peak" (of
            the machine, for all cells).
        cell: what it belongs to; None for "peak".
        inputs: of its record.
        needs: the stages whose files or records it reads.
        detail: what tells it from others of its kind in the cell, for people.
    """

    kind: str
    cell: Cell | None
    inputs: Mapping[str, Any]
    needs: tuple["Stage", ...] = ()
    detail: str = ""

    @cached_property
    def key(self) -> str:
        """Of its record."""
        return key_of(self.kind, self.inputs)

    @property
    def name(self) -> str:
        """For people."""
        owner = f"{self.cell.name}: " if self.cell else ""
        return f"{owner}{self.kind}{self.detail}"


def stage_option_of(kind: str) -> str:
    """The one of `spec.STAGES` with which stages of this kind are asked for."""
    return {"convert": "export", "peak": "latency"}.get(kind, kind)


def timing_group(stage: Stage) -> tuple[Any, ...]:
    """What the timings that are measured in turns have in common: all forms of a
    network and all runtimes are compared, but on one provider."""
    return stage.inputs["provider"], stage.inputs["batch_size"]


def comparison_group(stage: Stage) -> str:
    """What brings the timings together that a reader compares, of networks that differ
    in activation or width alone."""
    depth, *parts = str(stage.inputs["model"]).split("_")
    return f"{depth}_{parts[-1]}" if parts else depth


def to_time_with(stage: Stage, pending: Iterable[Stage], most: Callable[[Sequence[Stage]], int]) -> list[Stage]:
    """A timing, and those of `pending` to be measured in turns with it: at most as many
    in all as `most` says of them, and all of a further network that are to be compared,
    or none."""
    group = timing_group(stage)
    others = [other for other in pending if other.kind == "latency" and timing_group(other) == group]
    candidates = list(dict.fromkeys([stage, *others]))
    room = most(candidates)
    taken: list[Stage] = []
    for _, of_network in groupby(candidates, key=lambda each: each.cell):
        following = list(of_network)
        if taken and len(taken) + len(following) > room:
            break
        taken += following
    return taken[:room]


def _inputs(kind: str, cell: Cell, **inputs: Any) -> dict[str, Any]:
    # Neither is among the inputs of the paper's rows, whose keys they would change.
    arguments = {"arguments": dict(cell.row.arguments)} if cell.row.arguments else {}
    version = spec.version_of(kind, cell.row.model, inputs.get("form"))
    return {"model": cell.row.model, "version": version, **arguments, **inputs}


def training(cell: Cell, options: RunOptions, processes: int) -> Stage:
    """The training of a cell by so many processes."""
    # BatchNorm's statistics are a process's own, so that the result depends on how many share a batch.
    shared: dict[str, Any] = {"processes": processes} if processes > 1 else {}
    shared |= {"source": cell.source} if cell.source else {}
    inputs = _inputs(
        "train",
        cell,
        data=cell.dataset.fingerprint,
        recipe=dataclasses.asdict(cell.recipe),
        seed=cell.seed,
        precision=options.precision,
        **shared,
    )
    return Stage("train", cell, inputs)


def analysis(cell: Cell, train: Stage) -> Stage:
    """The look inside the network of a training."""
    recipe = dataclasses.asdict(cell.recipe)
    inputs = _inputs("analyze", cell, train=train.key, data=cell.dataset.fingerprint, recipe=recipe)
    return Stage("analyze", cell, inputs, (train,))


def files(cell: Cell, train: Stage, forms: tuple[str, ...], provider: str) -> dict[str, Stage]:
    """The stages that write the ONNX files of a cell for a provider, by form; that in
    float32 is always among them.

    GPUs have the default export, which is the CPU's form "plain", and in int8 a form of
    their own. What a provider cannot run is left out.
    """
    from suite.inference.reduced import CALIBRATION_IMAGES

    inputs = _inputs("export", cell, train=train.key, size=cell.size)
    plain = Stage("export", cell, inputs | {"plain": True}, (train,), " without rewrites")
    rewritten = PROVIDERS[provider].graph == "rewritten"
    export = Stage("export", cell, inputs, (train,)) if rewritten else plain
    found = {"fp32": export}
    for form in forms:
        if form == "plain" and rewritten:
            found[form] = plain
        elif form in REDUCED and not why_unsupported(provider, form):
            converted = _inputs("convert", cell, export=export.key, form=form)
            converted |= {"images": CALIBRATION_IMAGES, "data": cell.dataset.fingerprint}
            detail = f" to {form}" + ("" if rewritten else " for GPUs")
            if form == "int8" and not rewritten:
                converted["activations"] = "symmetric"
            found[form] = Stage("convert", cell, converted, (export,), detail)
    return found


def runtimes_to_check(options: RunOptions, provider: str, form: str) -> list[str]:
    """The runtimes in which a form of a file is checked: ONNX Runtime in any case, and
    others that time it."""
    timed = [name for name in options.runtimes if provider in RUNTIMES[name].providers and form in RUNTIMES[name].forms]
    return list(dict.fromkeys((ORT, *timed)))


def parity(cell: Cell, train: Stage, files: Mapping[str, Stage], form: str, provider: str, runtime: str = ORT) -> Stage:
    """The check of a file of a form on a provider; `files` are the provider's, by
    form."""
    # Where nothing is said of it, as in records of before, it is ONNX Runtime.
    other = {} if runtime == ORT else {"runtime": runtime}
    inputs = _inputs(
        "parity",
        cell,
        export=files["fp32"].key,
        data=cell.dataset.fingerprint,
        recipe=dataclasses.asdict(cell.deployed),
        provider=provider,
        precision=form,
        file=files[form].key,
        **other,
    )
    usual = {ORT, "cpu", "fp32"}
    detail = "".join(f" {name}" for name in (runtime, provider, form) if name not in usual)
    return Stage("parity", cell, inputs, (train, files[form]), detail)


def timings(cell: Cell, train: Stage, files: Mapping[str, Mapping[str, Stage]], options: RunOptions) -> Iterator[Stage]:
    """What is to be timed of one network; `files` by provider and form."""
    from suite.inference import latency

    thorough = options.timings == "thorough" or (options.timings == "auto" and options.profile == "paper")
    protocol = latency.THOROUGH if thorough else latency.QUICK
    for runtime in options.runtimes:
        kind = RUNTIMES[runtime]
        packages = ("onnxruntime", "torch", *([kind.library] if kind.extra else []))
        versions = {name: version for name, version in env.versions().items() if name.startswith(packages)}
        for provider in options.providers:
            if provider not in kind.providers:
                continue
            if kind.reads_files:
                wanted = [(form, batch) for form in files[provider] for batch in options.batch_sizes]
                wanted = [pair for pair in wanted if pair[0] in kind.forms]
            else:
                wanted = [("fp32", min(options.batch_sizes))]
            for form, batch in wanted:
                inputs = _inputs(
                    "latency",
                    cell,
                    export=files[provider]["fp32"].key,
                    file=files[provider][form].key,
                    precision=form,
                    machine=env.machine()["id"],
                    versions=versions,
                    runtime=runtime,
                    provider=provider,
                    batch_size=batch,
                    size=cell.size,
                    threads=env.available_cores(),
                    protocol=dataclasses.asdict(protocol),
                )
                needs = files[provider][form] if kind.reads_files else train
                reduced = "" if form == "fp32" else f" {form}"
                yield Stage("latency", cell, inputs, (needs,), f" {runtime} {provider}{reduced} batch {batch}")


def peak(provider: str, form: str) -> Stage:
    """What the machine can do in float32 or reduced precision, beside which latencies
    are shown."""
    versions = {k: v for k, v in env.versions().items() if k.startswith("onnxruntime")}
    inputs = {"model": "peak", "version": spec.VERSIONS["peak"], "machine": env.machine()["id"], "versions": versions}
    inputs |= {"provider": provider, "threads": env.available_cores()}
    if form != "fp32":
        inputs["precision"] = form
    return Stage("peak", None, inputs, detail=f" of {provider}" + ("" if form == "fp32" else f" {form}"))

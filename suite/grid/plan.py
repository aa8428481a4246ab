"""What a run consists of: the cells of a table and the stages of each cell, all keys known before anything runs.

A cell is a row with a seed. Its stages are train, export, convert, parity and latency, or train and analyze; a stage's
inputs hold the keys of those before it, so that a key stands for all that was asked for. What "auto" came to, and on
which device, is in the result: whoever does a stage first does it for all.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from suite import env
from suite.errors import InputError
from suite.registry import ORT, PROVIDERS, REDUCED, RUNTIMES, STAND_INS, lacks
from suite.results.record import key_of
from suite.tables import spec
from suite.tables.spec import Recipe, Row, Table

if TYPE_CHECKING:
    from suite.data.sets import Dataset

# Stages that have the machine to themselves.
TIMED = ("peak", "latency")


@dataclass(frozen=True)
class Options:
    """What to run, as the command line takes it; `suite run --help` explains each. Of the cells `only` those of these
    names are run, or all, and nothing is begun after the moment `until`. With 0 `workers` there are as many as suit the
    work, and unless `keep` is set a finished quick run removes its weights and ONNX files."""

    table: int
    results: Path
    profile: Literal["quick", "paper"] = "quick"
    rows: tuple[str, ...] = ()
    data: Mapping[str, Path] = field(default_factory=dict)
    seeds: int = 1
    epochs: int | None = None
    steps: int | None = None
    depth: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    providers: tuple[str, ...] = ("cpu",)
    batch_sizes: tuple[int, ...] = (1, 8)
    runtimes: tuple[str, ...] = (ORT, "torch")
    forms: tuple[Literal["fp32", "plain", "fp16", "int8"], ...] = ("fp32",)
    timings: Literal["auto", "quick", "thorough"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"
    kernels: Literal["auto", "library"] = "auto"
    pack: int = 1
    workers: int = 1
    executor: Literal["local", "ray", "slurm"] = "local"
    address: str | None = None
    processes: int = 1
    latency_resource: str | None = None
    only: frozenset[str] | None = None
    stages: tuple[str, ...] = spec.STAGES
    until: datetime | None = None
    tensorboard: Path | None = None
    keep: bool = True

    @property
    def is_quick(self) -> bool:
        """Whether networks are trained for a few steps, to try all else."""
        return self.profile == "quick" and self.epochs is None


@dataclass(frozen=True, eq=False)
class Cell:
    """One row with one seed: a network to train by `recipe`, and to export, check and time for images of the paper's
    size, which a quick run does not train at."""

    row: Row
    recipe: Recipe
    dataset: "Dataset"
    seed: int
    size: int

    @property
    def deployed(self) -> Recipe:
        """The recipe by which images are prepared for the exported network."""
        return dataclasses.replace(self.recipe, test_size=self.size)

    @property
    def name(self) -> str:
        """For people: the network, its data, and its seed unless that is the first."""
        return f"{self.row.model} on {self.dataset.name}" + (f" seed {self.seed}" if self.seed else "")


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a cell, which leaves one record.

    Attributes:
        kind: "train", "export", "convert", "parity", "analyze", "latency" or "peak" (of the machine, for all cells).
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


@dataclass(frozen=True)
class Grid:
    """Everything that a run is to do, each stage after those that it needs, as far as these are to be done too.

    `trainings` are those of all cells, whether they are among the stages or not.
    """

    table: Table
    cells: tuple[Cell, ...]
    stages: tuple[Stage, ...]
    trainings: tuple[Stage, ...]


def plan(options: Options, processes: int = 1) -> Grid:
    """The grid that these options ask for, with its data loaded.

    Without `--data` every row runs on the embedded stand-in of its data set; with it, only rows whose data set is
    given do.

    Args:
        options: what to run.
        processes: that share each training batch.

    Raises:
        InputError: the paper profile without data, data that no row uses, data that cannot be read, or a table without
            the stages asked for.
    """
    table = spec.selected(options.table, options.rows, options.depth)
    datasets = _datasets(table, options)
    cells = tuple(
        Cell(
            row,
            spec.recipe_for(table, row, options.profile, options.epochs, options.steps),
            datasets[row.data],
            seed,
            spec.recipe_for(table, row).test_size,
        )
        for row in table.rows
        if row.data in datasets
        for seed in range(options.seeds)
    )
    if options.only is not None:
        cells = tuple(cell for cell in cells if cell.name in options.only)
    stages: list[Stage] = []
    timed: list[Stage] = []
    for cell in cells:
        train = Stage("train", cell, _training_inputs(cell, options, processes))
        if table.number == 1:
            stages += [train, _analysis(cell, train)]
            continue
        forms = options.forms if cell.seed == 0 else ("fp32",)
        files = {provider: _files(cell, train, forms, provider) for provider in options.providers}
        written = {file.key: file for each in files.values() for file in each.values()}
        checks = (
            _parity(cell, train, files[provider], form, provider, runtime)
            for provider in files
            for form in files[provider]
            for runtime in _checked_in(options, provider, form)
        )
        stages += [train, *written.values(), *checks]
        if cell.seed == 0:
            timed += _timings(cell, train, files, options)
    # Figures that are measured in turns stand together.
    timed.sort(key=lambda stage: (turn_of(stage), _beside(stage)))
    if timed:
        whole = [form for form in ("fp32", *REDUCED) if form == "fp32" or form in options.forms]
        pairs = [(provider, form) for provider in options.providers for form in whole]
        timed = [_peak(*pair) for pair in pairs if not lacks(*pair)] + timed
    stages += timed
    asked = tuple(stage for stage in stages if asked_as(stage.kind) in options.stages)
    if stages and not asked:
        legal = ", ".join(name for name in spec.STAGES if name in {asked_as(stage.kind) for stage in stages})
        raise InputError(f"--stages {','.join(options.stages)}: table {table.number} has none, but {legal}")
    return Grid(table, cells, asked, tuple(stage for stage in stages if stage.kind == "train"))


def asked_as(kind: str) -> str:
    """The one of `spec.STAGES` with which stages of this kind are asked for."""
    return {"convert": "export", "peak": "latency"}.get(kind, kind)


def within_reach(
    grid: Grid, is_stored: Callable[[Stage], bool], has_files: Callable[[Stage], bool] | None = None
) -> tuple[Grid, list[str]]:
    """The grid without the stages that need what is neither in it nor stored, and what to say of these.

    `has_files` tells whether a stage is stored with its files, which others need; one whose files were removed can give
    them only if it can be done again.
    """
    has_files = has_files or is_stored
    reached: set[str] = set()
    beyond: dict[str, Stage] = {}
    lacking: set[str] = set()
    # Of each stage what is lacking to have its files.
    roots: dict[str, set[str]] = {}
    for stage in grid.stages:
        missing: set[str] = set()
        for need in stage.needs:
            missing |= roots.get(need.key, set() if has_files(need) else {asked_as(need.kind)})
        roots[stage.key] = set() if has_files(stage) else missing
        if not missing or is_stored(stage):
            reached.add(stage.key)
        else:
            beyond[stage.key] = stage
            lacking |= missing
    if not beyond:
        return grid, []
    kept = for_their_own_sake(stage for stage in grid.stages if stage.key in reached)
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(stage.kind for stage in beyond.values()).items())
    line = f"left out: {counts}; what they need ({', '.join(sorted(lacking))}) is neither among --stages nor stored"
    return dataclasses.replace(grid, stages=tuple(kept)), [line]


def for_their_own_sake(stages: Iterable[Stage]) -> list[Stage]:
    """The stages without those of the machine's peak, if no latency is among them to be shown beside it."""
    found = list(stages)
    timed = any(stage.kind == "latency" for stage in found)
    return [stage for stage in found if timed or stage.kind != "peak"]


def left_out(table: Table, cells: tuple[Cell, ...]) -> Iterator[str]:
    """What to say of the rows whose data was not given, and of files of a data set that are not read."""
    for dataset in {id(cell.dataset): cell.dataset for cell in cells}.values():
        yield from dataset.notes
    running = {cell.row.data for cell in cells}
    for name in sorted({row.data for row in table.rows} - running):
        count = sum(row.data == name for row in table.rows)
        yield f"left out: {count} rows on {name}; add --data {name}=PATH to run them"


def lacking(options: Options) -> Iterator[str]:
    """What to say of the forms that a provider cannot run."""
    for provider in options.providers:
        for form in options.forms:
            if (why := lacks(provider, form)) and options.table in spec.DEPLOYED:
                yield f"left out: {form} on {provider}: {why}"


def turn_of(stage: Stage) -> tuple[Any, ...]:
    """What the timings that are measured in turns have in common."""
    return tuple(stage.inputs[name] for name in ("runtime", "provider", "batch_size", "precision"))


def _beside(stage: Stage) -> str:
    """What brings the timings together that a reader compares, of networks that differ in activation or width alone."""
    depth, *parts = str(stage.inputs["model"]).split("_")
    return f"{depth}_{parts[-1]}"


def with_downloads(options: Options, folder: Path) -> Options:
    """The options with the CIFAR data of their rows, as far as not given, fetched into `folder`.

    Raises:
        InputError: a data set cannot be fetched.
    """
    from suite.data import sets as data

    table = spec.selected(options.table, options.rows, options.depth)
    lacking = sorted({row.data for row in table.rows} - set(options.data))
    return dataclasses.replace(
        options, data={**options.data, **{name: data.download(name, folder) for name in lacking}}
    )


def _datasets(table: Table, options: Options) -> dict[str, "Dataset"]:
    from suite.data import sets as data

    wanted = {row.data for row in table.rows}
    for name in options.data:
        if name not in wanted:
            raise InputError(f"--data {name}=...: no row to run uses {name}, but {', '.join(sorted(wanted))}")
    if options.profile == "paper" and not options.data:
        names = " ".join(f"--data {name}=PATH" for name in sorted(wanted))
        raise InputError(f"--profile paper trains on the paper's data: give {names} (one of them runs its rows)")
    if options.data:
        return {name: data.load(name, path) for name, path in options.data.items()}
    return {name: data.load(STAND_INS[name]) for name in sorted(wanted)}


def _inputs(kind: str, cell: Cell, **inputs: Any) -> dict[str, Any]:
    return {"model": cell.row.model, "version": spec.version_of(kind, cell.row.model, inputs.get("form")), **inputs}


def _training_inputs(cell: Cell, options: Options, processes: int) -> dict[str, Any]:
    # BatchNorm's statistics are a process's own, so that the result depends on how many share a batch.
    shared = {"processes": processes} if processes > 1 else {}
    return _inputs(
        "train",
        cell,
        data=cell.dataset.fingerprint,
        recipe=dataclasses.asdict(cell.recipe),
        seed=cell.seed,
        precision=options.precision,
        **shared,
    )


def _analysis(cell: Cell, train: Stage) -> Stage:
    recipe = dataclasses.asdict(cell.recipe)
    inputs = _inputs("analyze", cell, train=train.key, data=cell.dataset.fingerprint, recipe=recipe)
    return Stage("analyze", cell, inputs, (train,))


def _files(cell: Cell, train: Stage, forms: tuple[str, ...], provider: str) -> dict[str, Stage]:
    """The stages that write the ONNX files of a cell for a provider, by form; that in float32 is always among them.

    GPUs have the exporter's own graph, which is the CPU's form "plain", and in int8 a form of their own. What a
    provider cannot run is left out.
    """
    from suite.inference.reduced import CALIBRATION_IMAGES

    inputs = _inputs("export", cell, train=train.key, size=cell.size)
    plain = Stage("export", cell, inputs | {"plain": True}, (train,), " without rewrites")
    rewritten = PROVIDERS[provider].graph == "rewritten"
    export = Stage("export", cell, inputs, (train,)) if rewritten else plain
    files = {"fp32": export}
    for form in forms:
        if form == "plain" and rewritten:
            files[form] = plain
        elif form in REDUCED and not lacks(provider, form):
            converted = _inputs("convert", cell, export=export.key, form=form)
            converted |= {"images": CALIBRATION_IMAGES, "data": cell.dataset.fingerprint}
            detail = f" to {form}" + ("" if rewritten else " for GPUs")
            if form == "int8" and not rewritten:
                converted["activations"] = "symmetric"
            files[form] = Stage("convert", cell, converted, (export,), detail)
    return files


def _checked_in(options: Options, provider: str, form: str) -> list[str]:
    """The runtimes in which a form of a file is checked: ONNX Runtime in any case, and others that time it."""
    timed = [name for name in options.runtimes if provider in RUNTIMES[name].providers and form in RUNTIMES[name].forms]
    return list(dict.fromkeys((ORT, *timed)))


def _parity(
    cell: Cell, train: Stage, files: Mapping[str, Stage], form: str, provider: str, runtime: str = ORT
) -> Stage:
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


def _timings(cell: Cell, train: Stage, files: Mapping[str, Mapping[str, Stage]], options: Options) -> Iterator[Stage]:
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


def _peak(provider: str, form: str) -> Stage:
    """What the machine can do in float32 or fewer bits, beside which latencies are shown."""
    versions = {k: v for k, v in env.versions().items() if k.startswith("onnxruntime")}
    inputs = {"model": "peak", "version": spec.VERSIONS["peak"], "machine": env.machine()["id"], "versions": versions}
    inputs |= {"provider": provider, "threads": env.available_cores()}
    if form != "fp32":
        inputs["precision"] = form
    return Stage("peak", None, inputs, detail=f" of {provider}" + ("" if form == "fp32" else f" {form}"))

"""Run the stages of a table's cells that the results folder lacks.

A cell is a row with a seed. Its stages are train, export, parity and latency; each is a function of values, and this
module alone knows how they hang together and what is stored. A stage is imported when it runs, so that a run of which
everything is stored already does not load torch.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from suite import deploy, distributed, env, progress, spec
from suite.distributed import Group
from suite.errors import InputError
from suite.interrupt import Interruption
from suite.spec import Recipe, Row, Table
from suite.store import Record, Store, key_of

if TYPE_CHECKING:
    from suite import latency
    from suite.batches import Batches
    from suite.data import Dataset


@dataclass(frozen=True)
class Options:
    """What to run, as the command line takes it; `suite run --help` explains each."""

    table: int
    results: Path
    profile: Literal["quick", "paper"] = "quick"
    rows: tuple[str, ...] = ()
    data: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    seeds: int = 1
    epochs: int | None = None
    steps: int | None = None
    depth: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    providers: tuple[str, ...] = ("cpu",)
    batch_sizes: tuple[int, ...] = (1, 8)
    runtimes: tuple[Literal["onnxruntime", "torch", "torch.compile"], ...] = ("onnxruntime", "torch")
    forms: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32",)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "always", "never"] = "auto"
    pack: int = 1
    tensorboard: Path | None = None


@dataclass(frozen=True)
class Cell:
    """One row with one seed: a network to train, export, check and time."""

    row: Row
    recipe: Recipe
    dataset: "Dataset"
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the table it ran, the keys of its training records, and how many stages failed.

    Of several processes that `torchrun` has started, the one that `speaks` is to print it.
    """

    table: Table
    trained: frozenset[str]
    failed: int
    speaks: bool = True


def run(options: Options) -> Outcome:
    """Run a table; what is stored already is not done again, and a stage that fails does not stop the others.

    Raises:
        InputError: the options or the data are not usable.
    """
    table = spec.selected(options.table, options.rows, options.depth)
    cells = plan(table, options)
    group = distributed.join()
    try:
        return _Run(options, len(cells), group).all(table, cells)
    finally:
        group.leave()


def plan(table: Table, options: Options) -> list[Cell]:
    """The cells to run, with their data loaded.

    Without `--data` every row runs on the embedded stand-in of its data set; with it, only rows whose data set is
    given do.

    Raises:
        InputError: the paper profile without data, data that no row uses, or data that cannot be read.
    """
    from suite import data

    wanted = {row.data for row in table.rows}
    for name in options.data:
        if name not in wanted:
            raise InputError(f"--data {name}=...: no row to run uses {name}; legal here: {', '.join(sorted(wanted))}")
    if options.profile == "paper" and not options.data:
        names = " ".join(f"--data {name}=PATH" for name in sorted(wanted))
        raise InputError(f"--profile paper trains on the paper's data: give {names} (one of them runs its rows)")
    datasets = {name: data.load(name, path) for name, path in options.data.items()}
    if not options.data:
        datasets = {name: data.load(spec.EMBEDDED[name]) for name in sorted(wanted)}
    return [
        Cell(
            row,
            spec.recipe_for(table, row, options.profile, options.epochs, options.steps),
            datasets[row.data],
            seed,
        )
        for row in table.rows
        if row.data in datasets
        for seed in range(options.seeds)
    ]


def with_downloads(options: Options, folder: Path) -> Options:
    """The options with the CIFAR data of their rows, as far as not given, fetched into `folder`.

    Raises:
        InputError: a data set cannot be fetched.
    """
    from suite import data

    table = spec.selected(options.table, options.rows, options.depth)
    lacking = sorted({row.data for row in table.rows} - set(options.data))
    return dataclasses.replace(
        options, data={**options.data, **{name: data.download(name, folder) for name in lacking}}
    )


@dataclass(frozen=True)
class _Timing:
    """A latency to measure: its name in the display, the inputs of its record, and the request."""

    name: str
    inputs: dict[str, Any]
    request: "latency.Request"


class _Run:
    """One call of `run`: its options, store and display, and what the cells share.

    Several processes train together; the first does all the rest, and alone touches the store.
    """

    def __init__(self, options: Options, cells: int, group: Group) -> None:
        self.options = options
        self.group = group
        self.store = Store(options.results)
        self.threads = env.available_cores()
        self.device = _device(options.device)
        if options.tensorboard:
            _require_tensorboard()
        for provider in options.providers:
            _require_provider(provider)
        reduced = len(set(options.forms) - {"fp32"})
        graphs = len(options.batch_sizes) * (1 + reduced) if "onnxruntime" in options.runtimes else 0
        networks = len(set(options.runtimes) - {"onnxruntime"})
        if options.table == 1:
            stages = cells * 2
        else:
            stages = cells * 3 + (cells // options.seeds) * (2 * reduced + (graphs + networks) * len(options.providers))
        self.display = progress.display(stages, speaks=group.rank == 0)
        self.failed = 0

    def all(self, table: Table, cells: list[Cell]) -> Outcome:
        self._say_what_is_left_out(table, cells)
        trained: set[str] = set()
        exported: list[tuple[Cell, Record, dict[str, Record]]] = []
        try:
            for start in range(0, len(cells), self.options.pack):
                pack = cells[start : start + self.options.pack]
                for cell, train in zip(pack, self._train(pack), strict=True):
                    if train:
                        trained.add(train.key)
                    if table.number == 1:
                        if train:
                            self._analyze(cell, train)
                        continue
                    export = train and self._export(cell, train)
                    if not (train and export):
                        continue
                    files: dict[str, Record] = {"fp32": export}
                    for reduced in set(self.options.forms) - {"fp32"} if cell.seed == 0 else ():
                        if converted := self._convert(cell, export, reduced):
                            files[reduced] = converted
                    for form, file in files.items():
                        self._parity(cell, train, export, form, file)
                    exported.append((cell, train, files))
            self._latency([each for each in exported if each[0].seed == 0])
        finally:
            self.display.close()
        return Outcome(table, frozenset(trained), self.failed, speaks=self.group.rank == 0)

    def _say_what_is_left_out(self, table: Table, cells: list[Cell]) -> None:
        running = {cell.row.data for cell in cells}
        for name in sorted({row.data for row in table.rows} - running):
            count = sum(row.data == name for row in table.rows)
            self.display.note(f"left out: {count} rows on {name}; add --data {name}=PATH to run them")

    def _name(self, stage: str, cell: Cell, detail: str = "") -> str:
        seed = f" seed {cell.seed}" if self.options.seeds > 1 else ""
        return f"{cell.row.model} on {cell.dataset.name}{seed}: {stage}{detail}"

    def _stage(
        self,
        stage: str,
        cell: Cell,
        inputs: dict[str, Any],
        work: Callable[[Path, progress.Steps], dict[str, Any]],
        detail: str = "",
    ) -> Record | None:
        """The record of a stage, from the store or by doing it; None if it failed."""
        name = self._name(stage, cell, detail)
        found = self.store.get(stage, inputs)
        if found:
            self.display.skip(name)
            return found
        start = perf_counter()
        with self.store.workspace() as folder:
            try:
                with self.display.stage(name) as step:
                    return self._keep(stage, inputs, work(folder, step), folder, start)
            except InputError:
                raise
            except Exception as error:
                # Whatever goes wrong in one cell must not take the others with it; the reason is kept and shown.
                self._fail(name, stage, inputs, error)
                return None

    def _settle(
        self,
        stage: str,
        name: str,
        inputs: dict[str, Any],
        outcome: dict[str, Any] | Exception,
        folder: Path | None,
        start: float,
        shown: ExitStack,
    ) -> Record | None:
        """Keep what came of one of several stages that were under way together, and end its display."""
        if isinstance(outcome, Exception):
            with suppress(Exception), shown:
                raise outcome  # through the display, which then says so
            self._fail(name, stage, inputs, outcome)
            return None
        shown.close()
        return self._keep(stage, inputs, outcome, folder, start)

    def _keep(
        self, stage: str, inputs: dict[str, Any], result: dict[str, Any], folder: Path | None, start: float
    ) -> Record:
        timing = {"seconds": perf_counter() - start} | result.pop("timing", {})
        files = folder if folder and any(folder.iterdir()) else None
        return self.store.put(stage, inputs, result, env.environment(), timing, files)

    def _fail(self, name: str, stage: str, inputs: dict[str, Any], error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self.store.fail(stage, inputs, reason)
        self.display.note(f"{name}: {reason}")
        self.failed += 1

    def _inputs(self, stage: str, cell: Cell, **inputs: Any) -> dict[str, Any]:
        return {"model": cell.row.model, "version": spec.VERSIONS[stage], **inputs}

    def _train(self, cells: Sequence[Cell]) -> list[Record | None]:
        """The training records of these cells; those that the store lacks are trained at the same time."""
        inputs = [self._training_inputs(cell) for cell in cells]
        names = [self._name("train", cell) for cell in cells]
        writes = self.group.rank == 0
        found = [self.store.get("train", each) if writes else None for each in inputs]
        wanted = self.group.share([index for index, record in enumerate(found) if record is None])
        for index in set(range(len(cells))) - set(wanted):
            self.display.skip(names[index])
        if not wanted:
            return found
        from suite.step import Engine
        from suite.train import Job, train_packed

        start = perf_counter()
        with ExitStack() as stack:
            folders = [stack.enter_context(self.store.workspace() if writes else _scratch()) for _ in wanted]
            stages = [stack.enter_context(ExitStack()) for _ in wanted]
            shown = [
                stage.enter_context(self.display.stage(names[index]))
                for index, stage in zip(wanted, stages, strict=True)
            ]
            jobs = [
                Job(
                    cells[index].row.model,
                    self._batches(cells[index], self.device, self.group),
                    cells[index].seed,
                    folder,
                    checkpoints=self.store.checkpoints("train", inputs[index]),
                    on_step=on_step,
                    on_epoch=self._epoch_log(cells[index], inputs[index]),
                )
                for index, folder, on_step in zip(wanted, folders, shown, strict=True)
            ]
            interruption = stack.enter_context(Interruption())
            engine = Engine(self.options.precision, self.options.compile)
            outcomes = train_packed(jobs, engine, interruption, self.display.note)
            for index, folder, stage, outcome in zip(wanted, folders, stages, outcomes, strict=True):
                if isinstance(outcome, InputError):
                    raise outcome
                if writes or isinstance(outcome, Exception):
                    found[index] = self._settle("train", names[index], inputs[index], outcome, folder, start, stage)
        return found

    def _training_inputs(self, cell: Cell) -> dict[str, Any]:
        # BatchNorm's statistics are a process's own, so that the result depends on how many share a batch.
        processes = {"processes": self.group.size} if self.group.size > 1 else {}
        return self._inputs(
            "train",
            cell,
            data=cell.dataset.fingerprint,
            recipe=dataclasses.asdict(cell.recipe),
            seed=cell.seed,
            precision=self.options.precision,
            **processes,
        )

    def _epoch_log(self, cell: Cell, inputs: dict[str, Any]) -> Callable[[dict[str, Any], float], None]:
        """What is said of each epoch: a line where there is no bar, and the curves of TensorBoard."""
        name, writer = self._name("train", cell), None
        if self.options.tensorboard and self.group.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            run = f"{cell.row.model}-{cell.dataset.name}-seed{cell.seed}-{key_of('train', inputs)}"
            writer = SummaryWriter(str(self.options.tensorboard / run))

        def log(epoch: dict[str, Any], images_per_second: float) -> None:
            number = epoch["epoch"]
            shown = {
                "train loss": epoch["train_loss"],
                "train error": epoch["train_error"],
                "test error": epoch.get("top1"),
                "learning rate": epoch["learning_rate"],
                "images per second": images_per_second,
            }
            figures = ", ".join(f"{what} {value:.4g}" for what, value in shown.items() if value is not None)
            self.display.log(f"{name}: epoch {number}/{cell.recipe.epochs}, {figures}")
            if writer:
                for what, value in shown.items():
                    if value is not None:
                        writer.add_scalar(what.replace(" ", "_"), value, number)
                writer.flush()

        return log

    def _export(self, cell: Cell, train: Record) -> Record | None:
        inputs = self._inputs("export", cell, train=train.key, size=cell.recipe.test_size)

        def work(folder: Path, step: progress.Steps) -> dict[str, Any]:
            from suite.export import export

            weights, size = self.store.artifact(train, "model.safetensors").parent, cell.recipe.test_size
            of = deploy.Source(weights, cell.row.model, len(cell.dataset.classes), size, trained=True)
            stated = deploy.metadata(of, deploy.training(of) | {"form": "rewritten"})
            return export(weights, size, folder / "model.onnx", stated)

        return self._stage("export", cell, inputs, work)

    def _analyze(self, cell: Cell, train: Record) -> None:
        """What the paper looks inside for: Table 1 and the curves of Figures 2 and 3."""
        recipe = dataclasses.asdict(cell.recipe)
        inputs = self._inputs("analyze", cell, train=train.key, data=cell.dataset.fingerprint, recipe=recipe)

        def work(folder: Path, step: progress.Steps) -> dict[str, Any]:
            from suite.analyze import analyze, coherence
            from suite.export import load_weights

            model = load_weights(self.store.artifact(train, "model.safetensors").parent)
            found = analyze(model, self._batches(cell, "cpu"), step).to_dict()
            return found | {"coherence": coherence(model).to_dict()}

        self._stage("analyze", cell, inputs, work)

    def _convert(self, cell: Cell, export: Record, form: str) -> Record | None:
        """The exported file in fewer bits; int8 needs images to calibrate on."""
        images = {} if form == "fp16" else {"images": deploy.CALIBRATION_IMAGES, "data": cell.dataset.fingerprint}
        inputs = self._inputs("convert", cell, export=export.key, form=form, **images)

        def work(folder: Path, step: progress.Steps) -> dict[str, Any]:
            path = self.store.artifact(export, "model.onnx")
            return deploy.convert(path, folder / "model.onnx", form, lambda: self._batches(cell, "cpu"))

        return self._stage("convert", cell, inputs, work, f" to {form}")

    def _parity(self, cell: Cell, train: Record, export: Record, form: str, file: Record) -> Record | None:
        inputs = self._inputs(
            "parity",
            cell,
            export=export.key,
            data=cell.dataset.fingerprint,
            recipe=dataclasses.asdict(cell.recipe),
            provider="cpu",
            precision=form,
            file=file.key,
        )

        def work(folder: Path, step: progress.Steps) -> dict[str, Any]:
            weights = self.store.artifact(train, "model.safetensors").parent
            path = self.store.artifact(file, "model.onnx")
            return deploy.check(weights, path, self._batches(cell, "cpu"), form, progress=step)

        return self._stage("parity", cell, inputs, work, "" if form == "fp32" else f" {form}")

    def _latency(self, cells: Sequence[tuple[Cell, Record, dict[str, Record]]]) -> None:
        """Time everything that is not timed yet, at the end: the closer in time, the better figures compare."""
        from suite import latency

        protocol = latency.QUICK if self.options.profile == "quick" else latency.THOROUGH
        groups: dict[tuple[Any, ...], list[_Timing]] = {}
        for cell, train, files in cells:
            for timing in self._timings(cell, train, files, protocol):
                if self.store.get("latency", timing.inputs):
                    self.display.skip(timing.name)
                else:
                    request = timing.request
                    kind = (request.runtime, request.provider, request.batch_size, timing.inputs["precision"])
                    groups.setdefault(kind, []).append(timing)
        if groups:
            for provider in self.options.providers:
                self._peak(provider)
        for group in groups.values():
            for start in range(0, len(group), latency.ALIVE):
                self._take_turns(group[start : start + latency.ALIVE])

    def _timings(
        self, cell: Cell, train: Record, files: Mapping[str, Record], protocol: "latency.Protocol"
    ) -> "Iterator[_Timing]":
        """What is to be timed of one network."""
        from suite.latency import Request

        size, threads = cell.recipe.test_size, self.threads
        weights = str(self.store.artifact(train, "model.safetensors").parent)
        versions = {k: v for k, v in env.versions().items() if k.startswith(("onnxruntime", "torch"))}
        for runtime in self.options.runtimes:
            for provider in self.options.providers:
                if runtime == "onnxruntime":
                    wanted = [(form, batch) for form in files for batch in self.options.batch_sizes]
                else:
                    wanted = [("fp32", self.options.batch_sizes[0])]
                for form, batch in wanted:
                    file = files[form]
                    path = str(self.store.artifact(file, "model.onnx")) if runtime == "onnxruntime" else weights
                    request = Request(runtime, path, provider, batch, size, threads, protocol)
                    settings = dataclasses.asdict(request)
                    del settings["path"]  # the file's key stands for it
                    inputs = self._inputs(
                        "latency",
                        cell,
                        export=files["fp32"].key,
                        file=file.key,
                        precision=form,
                        machine=env.machine()["id"],
                        versions=versions,
                        **settings,
                    )
                    reduced = "" if form == "fp32" else f" {form}"
                    name = self._name("latency", cell, f" {runtime} {provider}{reduced} batch {batch}")
                    yield _Timing(name, inputs, request)

    def _take_turns(self, timings: "Sequence[_Timing]") -> None:
        """Measure these against each other, and keep what comes of each."""
        from suite import latency

        start = perf_counter()
        with ExitStack() as stack:
            stages = [stack.enter_context(ExitStack()) for _ in timings]
            shown = [
                stage.enter_context(self.display.stage(timing.name))
                for timing, stage in zip(timings, stages, strict=True)
            ]

            def step(done: int, total: int, note: str) -> None:
                for each in shown:
                    each(done, total, note)

            answers = latency.measure([timing.request for timing in timings], step)
            for timing, stage, answer in zip(timings, stages, answers, strict=True):
                self._settle("latency", timing.name, timing.inputs, answer, None, start, stage)

    def _peak(self, provider: str) -> None:
        """What the machine can do, beside which latencies are shown."""
        machine = env.machine()["id"]
        versions = {k: v for k, v in env.versions().items() if k.startswith("onnxruntime")}
        inputs = {"model": "matmul", "version": spec.VERSIONS["peak"], "machine": machine, "versions": versions}
        inputs |= {"provider": provider, "threads": self.threads}
        if self.store.get("peak", inputs):
            return
        from suite import latency

        start = perf_counter()
        try:
            result = latency.peak(provider, self.threads)
        except RuntimeError as error:
            self._fail(f"peak of {provider}", "peak", inputs, error)
            return
        self.store.put("peak", inputs, result, env.environment(), {"seconds": perf_counter() - start})

    def _batches(self, cell: Cell, device: str, group: Group = distributed.ALONE) -> "Batches":
        import torch

        from suite.batches import Batches

        workers = 0 if cell.dataset.train.in_memory else self.threads
        place = torch.device(device, group.local_rank) if device == "cuda" else torch.device(device)
        return Batches(cell.dataset, cell.recipe, place, workers, group)


@contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder that is gone afterwards, for a process whose files nobody keeps."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def _device(wanted: str) -> str:
    """The device to train on; "auto" is a GPU where there is one.

    Raises:
        InputError: "cuda" where there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and env.machine()["gpu"] is None):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise InputError("--device cuda: torch finds no CUDA GPU here; legal: auto, cpu")
    return "cpu"


def _require_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard: needs the package tensorboard, which is not installed here: pip install tensorboard"
        )


def _require_provider(provider: str) -> None:
    from suite.latency import unavailable

    reason = unavailable(provider)
    if reason:
        raise InputError(f"--providers {provider}: not available here: {reason}")

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

from suite import distributed, env, progress, spec
from suite.distributed import Group
from suite.errors import InputError
from suite.interrupt import Interruption
from suite.spec import Recipe, Row, Table
from suite.store import Record, Store, key_of

if TYPE_CHECKING:
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
        stages = cells * 3 + (cells // options.seeds) * (len(options.batch_sizes) + 1) * len(options.providers)
        self.display = progress.display(stages, speaks=group.rank == 0)
        self.failed = 0

    def all(self, table: Table, cells: list[Cell]) -> Outcome:
        self._say_what_is_left_out(table, cells)
        trained: set[str] = set()
        exported: list[tuple[Cell, Record, Record]] = []
        try:
            for start in range(0, len(cells), self.options.pack):
                pack = cells[start : start + self.options.pack]
                for cell, train in zip(pack, self._train(pack), strict=True):
                    export = train and self._export(cell, train)
                    if train:
                        trained.add(train.key)
                    if train and export:
                        self._parity(cell, train, export)
                        exported.append((cell, train, export))
            # Timed one after the other at the end: the closer in time, the better two figures compare.
            for cell, train, export in exported:
                if cell.seed == 0:
                    self._latency(cell, train, export)
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

    def _keep(self, stage: str, inputs: dict[str, Any], result: dict[str, Any], folder: Path, start: float) -> Record:
        timing = {"seconds": perf_counter() - start} | result.pop("timing", {})
        files = folder if any(folder.iterdir()) else None
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
                if isinstance(outcome, Exception):
                    with suppress(Exception), stage:
                        raise outcome  # through the display, which then says so
                    self._fail(names[index], "train", inputs[index], outcome)
                    continue
                stage.close()
                if writes:
                    found[index] = self._keep("train", inputs[index], outcome, folder, start)
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

            weights = self.store.artifact(train, "model.safetensors").parent
            metadata = {
                "model": cell.row.model,
                "weights_sha256": train.artifacts["model.safetensors"]["sha256"],
            }
            return export(weights, cell.recipe.test_size, folder / "model.onnx", metadata)

        return self._stage("export", cell, inputs, work)

    def _parity(self, cell: Cell, train: Record, export: Record) -> Record | None:
        inputs = self._inputs(
            "parity",
            cell,
            export=export.key,
            data=cell.dataset.fingerprint,
            recipe=dataclasses.asdict(cell.recipe),
            provider="cpu",
        )

        def work(folder: Path, step: progress.Steps) -> dict[str, Any]:
            from suite.export import load_weights
            from suite.parity import compare

            model = load_weights(self.store.artifact(train, "model.safetensors").parent)
            batches = self._batches(cell, "cpu")
            return compare(model, self.store.artifact(export, "model.onnx"), batches, self.threads, step)

        return self._stage("parity", cell, inputs, work)

    def _latency(self, cell: Cell, train: Record, export: Record) -> None:
        from suite import latency

        protocol = latency.QUICK if self.options.profile == "quick" else latency.THOROUGH
        onnx = str(self.store.artifact(export, "model.onnx"))
        weights = str(self.store.artifact(train, "model.safetensors").parent)
        size, threads = cell.recipe.test_size, self.threads
        requests = []
        for provider in self.options.providers:
            for batch in self.options.batch_sizes:
                requests.append(latency.Request("onnxruntime", onnx, provider, batch, size, threads, protocol))
            batch = self.options.batch_sizes[0]
            requests.append(latency.Request("torch", weights, provider, batch, size, threads, protocol))
        for request in requests:
            settings = dataclasses.asdict(request)
            del settings["path"]  # the export's key stands for the file
            versions = {k: v for k, v in env.versions().items() if k.startswith(("onnxruntime", "torch"))}
            machine = env.machine()["id"]
            inputs = self._inputs("latency", cell, export=export.key, machine=machine, versions=versions, **settings)

            def work(folder: Path, step: progress.Steps, request: latency.Request = request) -> dict[str, Any]:
                return latency.measure(request)

            detail = f" {request.runtime} {request.provider} batch {request.batch_size}"
            self._stage("latency", cell, inputs, work, detail)

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
        raise InputError("--tensorboard: needs the package tensorboard, which is not installed here: pip install tensorboard")


def _require_provider(provider: str) -> None:
    from suite.latency import unavailable

    reason = unavailable(provider)
    if reason:
        raise InputError(f"--providers {provider}: not available here: {reason}")

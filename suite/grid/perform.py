"""Do the stages of a grid, one or several at a time: what each reads from the store, and what is kept of it.

Each stage is a function of values, and this module alone knows how they hang together. A stage is imported when it is
done, so that a run of which everything is stored already does not load torch.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, ValidationError, convert

from suite import distributed, env, progress
from suite.distributed import Group
from suite.errors import InputError, in_words
from suite.grid.plan import Cell, Options, Stage
from suite.interrupt import NEVER, Deadline, Interruption
from suite.registry import ORT
from suite.results import samples
from suite.results.record import key_of
from suite.results.store import Store
from suite.schema.outcomes import (
    AnalyzeResult,
    ConvertResult,
    ExportResult,
    LatencyResult,
    ParityResult,
    PeakResult,
    TrainResult,
)
from suite.tables.spec import Recipe

if TYPE_CHECKING:
    from suite.data.batches import Batches
    from suite.inference.latency import Request

# What came of a stage: its result, of the type that `suite.schema.outcomes` has for it, or what ended it.
Outcome = Struct | Exception
Work = Callable[[Stage, Path, progress.Steps], Struct]


@dataclass(frozen=True)
class UnderWay:
    """A stage that was begun.

    Attributes:
        stage: what it is.
        folder: for its files.
        step: told of steps done.
        start: when it was begun, by `perf_counter`.
        ends: what ends its display, and then its folder.
        together: how many were begun with it that take their time from the same processors.
    """

    stage: Stage
    folder: Path
    step: progress.Steps
    start: float
    ends: ExitStack
    together: int


class End(Protocol):
    """Told of a stage that ends, with what it says of its own speed beside the seconds; gives a training to begin in
    its place, or None."""

    def __call__(
        self, each: UnderWay, outcome: Outcome, timing: Mapping[str, object] = MappingProxyType({})
    ) -> UnderWay | None: ...


class Performer:
    """What does stages, and keeps their results or the reasons why they failed.

    Args:
        options: of the run.
        store: of the results; only process 0 of a group touches it.
        group: the processes that train together.
        display: told of each stage.
        say: told of steps done, by the stage's key: steps done, steps in all, a note.
        deadline: when trainings stop, with a checkpoint.
    """

    def __init__(
        self,
        options: Options,
        store: Store,
        group: Group,
        display: progress.Lines,
        say: Callable[[str, int, int, str], None] = lambda key, done, total, note: None,
        deadline: Deadline = NEVER,
    ) -> None:
        self.options, self.store, self.group, self.display, self.say = options, store, group, display, say
        self.deadline = deadline
        self.threads = env.available_cores()
        self._single: Mapping[str, Work] = {
            "export": self._export,
            "analyze": self._analyze,
            "convert": self._convert,
            "parity": self._parity,
            "peak": self._peak,
        }

    def do(self, stages: Sequence[Stage], ended: Callable[[Stage, bool], Stage | None]) -> None:
        """Do stages of one kind: trainings at the same time, timings in turns, of all others one. All that they need
        must be in the store.

        Args:
            stages: what to do.
            ended: told of each stage, once its result or the reason of its failure is kept, whether it is done;
                returns a training to begin in the place of one, or None.

        Raises:
            InputError: what the user gave is not usable, which other stages would meet too.
            TimeIsUp: trainings were stopped, of which there are checkpoints.
        """
        with ExitStack() as stack:
            begun = [self._begin(stage, stack, len(stages)) for stage in stages]

            def end(
                each: UnderWay, outcome: Outcome, timing: Mapping[str, object] = MappingProxyType({})
            ) -> UnderWay | None:
                following = ended(each.stage, self._settle(each, outcome, timing))
                return self._begin(following, stack, len(stages)) if following else None

            if stages[0].kind == "train":
                self._train(begun, end)
                return
            outcomes: Sequence[Outcome]
            if stages[0].kind == "latency":
                outcomes = self._latency(stages, [each.step for each in begun])
            else:
                outcomes = [self._one(each.stage, each.folder, each.step) for each in begun]
            for each, outcome in zip(begun, outcomes, strict=True):
                end(each, outcome)

    def _begin(self, stage: Stage, stack: ExitStack, together: int) -> UnderWay:
        """A folder and a display for a stage, which end with `stack` at the latest."""
        ends = stack.enter_context(ExitStack())
        folder = ends.enter_context(_scratch() if self.group.rank else self.store.workspace())
        step = ends.enter_context(self._shown(stage, together))
        return UnderWay(stage, folder, step, perf_counter(), ends, together)

    @contextmanager
    def _shown(self, stage: Stage, together: int) -> Iterator[progress.Steps]:
        """Show a stage in the display, and to whoever else looks at the folder."""
        with self.display.stage(stage.name, steps_of(stage, together)) as step:

            def both(done: int, total: int, note: str) -> None:
                step(done, total, note)
                self.say(stage.key, done, total, note)

            yield both

    def _settle(self, each: UnderWay, outcome: Outcome, timing: Mapping[str, object]) -> bool:
        """Keep what came of a stage, and end its display; returns whether it is done."""
        if isinstance(outcome, InputError):
            raise outcome
        if self.group.rank:
            return not isinstance(outcome, Exception)
        stage = each.stage
        if not isinstance(outcome, Exception):
            # The share of each, so that the seconds of several add up to those of a clock.
            took = {"seconds": (perf_counter() - each.start) / each.together, **timing}
            files = each.folder if any(each.folder.iterdir()) else None
            self.store.put(stage.kind, stage.inputs, outcome, env.environment(), took, files)
            each.ends.close()
            return True
        reason = in_words(outcome)
        self.store.fail(stage.kind, stage.inputs, reason)
        each.ends.pop_all().__exit__(type(outcome), outcome, None)  # the display then says that it failed
        self.display.note(f"{stage.name}: {reason}")
        return False

    def _one(self, stage: Stage, folder: Path, step: progress.Steps) -> Outcome:
        try:
            return self._single[stage.kind](stage, folder, step)
        except Exception as error:
            # Whatever goes wrong in one cell must not take the others with it; the reason is kept and shown.
            return error

    def _file(self, stage: Stage, name: str) -> Path:
        """A file that a stage has left."""
        record = self.store.get(stage.kind, stage.inputs)
        if record is None:
            raise RuntimeError(f"{stage.name}: its record or files are gone from {self.store.root}")
        return self.store.artifact(record, name)

    def _weights(self, train: Stage) -> Path:
        return self._file(train, "model.safetensors").parent

    def _train(self, begun: Sequence[UnderWay], end: End) -> None:
        """Train networks at the same time; `end` is told of each that ends, and gives the next."""
        import torch

        from suite.training.step import Engine
        from suite.training.train import Job, train_packed

        # torch knows of cores, not of a container's share of them.
        if env.cpu_quota() is not None and torch.get_num_threads() > self.threads:
            torch.set_num_threads(self.threads)
        device = device_of(self.options.device)

        def job(each: UnderWay) -> Job:
            def on_end(outcome: dict[str, Any] | Exception) -> Job | None:
                if isinstance(outcome, Exception):
                    following = end(each, outcome)
                else:
                    following = end(each, _trained(outcome), outcome["timing"])
                return job(following) if following else None

            cell = _cell(each.stage)
            return Job(
                cell.row.model,
                self._batches(cell, cell.recipe, device, self.group),
                cell.seed,
                each.folder,
                dict(cell.row.arguments),
                checkpoints=self.store.checkpoints("train", each.stage.inputs),
                on_step=each.step,
                on_epoch=self._epoch_log(each.stage),
                on_end=on_end,
            )

        jobs = [job(each) for each in begun]
        with Interruption(self.deadline) as interruption:
            engine = Engine(self.options.precision, self.options.compile, self.options.kernels)
            train_packed(jobs, engine, interruption, self.display.note)

    def _epoch_log(self, stage: Stage) -> Callable[[dict[str, Any], float], None]:
        """What is said of each epoch: a line where there is no bar, and the curves of TensorBoard."""
        cell, writer = _cell(stage), None
        images = len(cell.dataset.train)
        epochs = -(-cell.recipe.steps(images) // cell.recipe.steps_an_epoch(images))
        if self.options.tensorboard and self.group.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            run = f"{cell.row.model}-{cell.dataset.name}-seed{cell.seed}-{key_of('train', stage.inputs)}"
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
            self.display.log(f"{stage.name}: epoch {number}/{epochs}, {figures}")
            if writer:
                for what, value in shown.items():
                    if value is not None:
                        writer.add_scalar(what.replace(" ", "_"), value, number)
                writer.flush()

        return log

    def _export(self, stage: Stage, folder: Path, step: progress.Steps) -> ExportResult:
        from suite.export.trained import export
        from suite.inference import networks

        (train,), cell, size = stage.needs, _cell(stage), stage.inputs["size"]
        weights = self._weights(train)
        of = networks.Source(weights, cell.row.model, len(cell.dataset.classes), size, trained=True)
        rewrite = not stage.inputs.get("plain", False)
        more = {
            "recipe": json.dumps(dataclasses.asdict(cell.recipe)),
            "data": json.dumps(cell.dataset.fingerprint),
            "run": train.key,
            "form": "rewritten" if rewrite else "plain",
        }
        return convert(export(weights, size, folder / "model.onnx", networks.metadata(of, more), rewrite), ExportResult)

    def _analyze(self, stage: Stage, folder: Path, step: progress.Steps) -> AnalyzeResult:
        """What the paper looks inside for: Table 1 and the curves of Figures 2 and 3."""
        from suite.analysis.analyze import analyze, coherence
        from suite.export.exporter import load_weights

        weights = self._weights(stage.needs[0])
        model = load_weights(weights)
        cell = _cell(stage)
        found = analyze(model, self._batches(cell, cell.recipe, "cpu", weights=weights), step).to_dict()
        return convert(found | {"coherence": coherence(model).to_dict()}, AnalyzeResult)

    def _convert(self, stage: Stage, folder: Path, step: progress.Steps) -> ConvertResult:
        """The exported file in fewer bits, with images to calibrate int8 on and to see whether float16 holds them."""
        from suite.export import zoo
        from suite.inference import reduced

        (export,) = stage.needs
        path, train = self._file(export, "model.onnx"), export.needs[0]
        # The file alone would do, were it not for the mean and std that the weights state.
        weights = self._weights(train) if self.store.get("train", train.inputs) else None
        cell = _cell(stage)
        batches = self._batches(cell, cell.deployed, "cpu", weights=weights)
        activations = stage.inputs.get("activations", "unsigned")
        images = reduced.calibration(batches)
        ours = zoo.is_ours(cell.row.model)
        found = reduced.convert(path, folder / "model.onnx", stage.inputs["form"], images, activations, ours=ours)
        return convert(found, ConvertResult)

    def _parity(self, stage: Stage, folder: Path, step: progress.Steps) -> ParityResult:
        from suite.inference import departure

        train, file = stage.needs
        weights, path = self._weights(train), self._file(file, "model.onnx")
        # The exporter's own graph is in float32 as well.
        form = "fp32" if stage.inputs["precision"] == "plain" else stage.inputs["precision"]
        cell = _cell(stage)
        batches = self._batches(cell, cell.deployed, "cpu", weights=weights)
        runtime = stage.inputs.get("runtime", ORT)
        found = departure.check(weights, path, batches, form, stage.inputs["provider"], step, runtime)
        return convert(found, ParityResult)

    def _peak(self, stage: Stage, folder: Path, step: progress.Steps) -> PeakResult:
        from suite.inference import latency

        inputs = stage.inputs
        found = latency.peak(inputs["provider"], inputs["threads"], inputs.get("precision", "fp32"))
        return convert(found, PeakResult)

    def _latency(self, stages: Sequence[Stage], steps: Sequence[progress.Steps]) -> Sequence[LatencyResult | Exception]:
        """Measure these against each other."""
        from suite.inference import latency

        def step(done: int, total: int, note: str) -> None:
            for each in steps:
                each(done, total, note)

        answers = latency.measure([self._request(stage) for stage in stages], step)
        return [
            each if isinstance(each, RuntimeError) else convert(samples.packed(each), LatencyResult) for each in answers
        ]

    def _request(self, stage: Stage) -> "Request":
        from suite.inference import latency

        (source,) = stage.needs
        path = self._weights(source) if source.kind == "train" else self._file(source, "model.onnx")
        modules = self.options.imports
        fields = dataclasses.fields(latency.Request)
        names = {field.name for field in fields if field.default is dataclasses.MISSING} - {"path", "protocol"}
        settings = {name: stage.inputs[name] for name in names}
        protocol = latency.Protocol(**stage.inputs["protocol"])
        return latency.Request(path=str(path), protocol=protocol, modules=modules, **settings)

    def _batches(
        self,
        cell: Cell,
        recipe: Recipe,
        device: str,
        group: Group = distributed.ALONE,
        weights: Path | None = None,
    ) -> "Batches":
        """A cell's images by a recipe; for trained `weights` normalised as these were, of which an earlier version may
        have had another mean and std."""
        import torch

        from suite.data.batches import Batches
        from suite.inference import networks

        workers = 0 if cell.dataset.train.in_memory else self.threads
        place = torch.device(device, group.local_rank) if device == "cuda" else torch.device(device)
        dataset = cell.dataset if weights is None else networks.as_trained(cell.dataset, weights)
        for note in dataset.notes[len(cell.dataset.notes) :]:
            self.display.note(f"{cell.name}: {note}")
        return Batches(dataset, recipe, place, workers, group)


def steps_of(stage: Stage, together: int = 1) -> int | None:
    """How many steps a stage will tell of, if `together` are done at the same time; None of one that tells of none."""
    if stage.kind == "latency":
        return int(stage.inputs["protocol"]["rounds"]) * together
    if stage.cell is None or stage.kind not in ("train", "parity"):
        return None
    recipe, dataset = stage.cell.recipe, stage.cell.dataset
    if stage.kind == "train":
        return recipe.steps(len(dataset.train))
    return min(len(dataset.test), recipe.max_test_images or len(dataset.test))


def longest_first(stages: Iterable[Stage]) -> list[Stage]:
    """Trainings in the order in which to begin them where several share a device: one that is begun last and takes
    longest would have it to itself in the end."""
    return sorted(stages, key=_length, reverse=True)


def _length(stage: Stage) -> float:
    """About how long a training takes compared with others: multiply-accumulates for all images that it sees."""
    cell = _cell(stage)
    images = cell.recipe.epochs * len(cell.dataset.train)
    if cell.recipe.max_steps is not None:
        images = min(images, cell.recipe.max_steps * cell.recipe.batch_size)
    arguments = json.dumps({"num_classes": len(cell.dataset.classes), **cell.row.arguments})
    return images * _macs(cell.row.model, arguments, cell.recipe.train_size)


@cache
def _macs(model: str, arguments: str, size: int) -> int:
    """Multiply-accumulates of a network for one image; 0 of one that cannot be made, as its training will say, or in
    which they cannot be counted."""
    import timm
    import torch

    from suite.export.generic import cost_of

    try:
        with torch.device("meta"):
            return cost_of(timm.create_model(model, **json.loads(arguments)), (3, size, size))["macs"] or 0
    except Exception:  # what a stranger's network does there cannot be foreseen
        return 0


def device_of(wanted: str) -> str:
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


def _trained(outcome: Mapping[str, Any]) -> Outcome:
    """What a training found, without what it says of its speed."""
    try:
        return convert(outcome, TrainResult)
    except ValidationError as error:  # which must not end the trainings beside this one
        return error


def _cell(stage: Stage) -> Cell:
    assert stage.cell is not None
    return stage.cell


@contextmanager
def _scratch() -> Iterator[Path]:
    """An empty folder that is gone afterwards, for a process whose files nobody keeps."""
    with TemporaryDirectory() as folder:
        yield Path(folder)

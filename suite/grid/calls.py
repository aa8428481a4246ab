"""Call the function of each stage with what the store has, and return its typed
result."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suite import distributed, env, progress
from suite.distributed import Group
from suite.grid.plan import Cell, Stage
from suite.registry import FORMS, ORT
from suite.results.store import Store
from suite.schema.insides import AnalyzeResult
from suite.schema.outcomes import (
    ConvertResult,
    ExportResult,
    LatencyResult,
    ParityResult,
    PeakResult,
)
from suite.tables.spec import Recipe

if TYPE_CHECKING:
    from suite.data.batches import Batches
    from suite.inference.latency import Request


class Stages:
    """What does one stage of a kind at a time, and timings in turns. A stage is
    imported when it is done.

    Args:
        store: where the files and records are that stages need.
        display: told what there is to say of a data set.
        imports: the modules that define models of a user's own.
    """

    def __init__(self, store: Store, display: progress.Lines, imports: tuple[str, ...] = ()) -> None:
        self.store, self.display, self.imports = store, display, imports
        self.threads = env.available_cores()

    def _file(self, stage: Stage, name: str) -> Path:
        """A file that a stage has left."""
        record = self.store.get(stage.kind, stage.inputs)
        if record is None:
            raise RuntimeError(f"{stage.name}: its record or files are gone from {self.store.root}")
        return self.store.artifact(record, name)

    def _weights(self, train: Stage) -> Path:
        return self._file(train, "model.safetensors").parent

    def export(self, stage: Stage, folder: Path, step: progress.Steps) -> ExportResult:
        from suite.export.trained import export
        from suite.inference import networks

        (train,), cell, size = stage.needs, cell_of(stage), stage.inputs["size"]
        weights = self._weights(train)
        of = networks.NamedNetwork(weights, cell.row.model, len(cell.dataset.classes), size, trained=True)
        rewrite = not stage.inputs.get("plain", False)
        more = {
            "recipe": json.dumps(dataclasses.asdict(cell.recipe)),
            "data": json.dumps(cell.dataset.fingerprint),
            "run": train.key,
            "form": "rewritten" if rewrite else "plain",
        }
        return export(weights, size, folder / "model.onnx", networks.metadata(of, more), rewrite)

    def analyze(self, stage: Stage, folder: Path, step: progress.Steps) -> AnalyzeResult:
        """What the paper looks inside for: Table 1 and the curves of Figures 2 and
        3."""
        from suite.analysis.analyze import analyze
        from suite.export.exporter import load_weights

        weights = self._weights(stage.needs[0])
        model = load_weights(weights)
        cell = cell_of(stage)
        return analyze(model, self.batches(cell, cell.recipe, "cpu", weights=weights), step)

    def convert(self, stage: Stage, folder: Path, step: progress.Steps) -> ConvertResult:
        """The exported file in reduced precision; int8 is calibrated on images, and
        float16 checked on them."""
        from suite.export import zoo
        from suite.inference import reduced

        (export,) = stage.needs
        path, train = self._file(export, "model.onnx"), export.needs[0]
        # The file alone would do, were it not for the mean and std that the weights state.
        weights = self._weights(train) if self.store.get("train", train.inputs) else None
        cell = cell_of(stage)
        batches = self.batches(cell, cell.deployed, "cpu", weights=weights)
        activations = stage.inputs.get("activations", "unsigned")
        images = reduced.calibration(batches)
        ours = zoo.is_ours(cell.row.model)
        return reduced.convert(path, folder / "model.onnx", stage.inputs["form"], images, activations, ours=ours)

    def parity(self, stage: Stage, folder: Path, step: progress.Steps) -> ParityResult:
        from suite.inference import departure

        train, file = stage.needs
        weights, path = self._weights(train), self._file(file, "model.onnx")
        precision = FORMS[stage.inputs["precision"]].precision
        cell = cell_of(stage)
        batches = self.batches(cell, cell.deployed, "cpu", weights=weights)
        runtime = stage.inputs.get("runtime", ORT)
        return departure.check(weights, path, batches, precision, stage.inputs["provider"], step, runtime)

    def peak(self, stage: Stage, folder: Path, step: progress.Steps) -> PeakResult:
        from suite.inference import latency

        inputs = stage.inputs
        return latency.measure_peak(inputs["provider"], inputs["threads"], inputs.get("precision", "fp32"))

    def latency(self, stages: Sequence[Stage], steps: Sequence[progress.Steps]) -> Sequence[LatencyResult | Exception]:
        """Measure these against each other."""
        from suite.inference import latency

        def step(done: int, total: int, note: str) -> None:
            for each in steps:
                each(done, total, note)

        return latency.measure([self._request(stage) for stage in stages], step, len(stages))

    def most_in_turns(self, stages: Sequence[Stage]) -> int:
        """How many of these timings may be measured in turns."""
        from suite.inference import latency

        requests = []
        for stage in stages:
            with contextlib.suppress(RuntimeError):  # a file is gone, which is told when it is to be timed
                requests.append(self._request(stage))
        return latency.most_alive(requests)

    def _request(self, stage: Stage) -> "Request":
        from suite.inference import latency

        (source,) = stage.needs
        path = self._weights(source) if source.kind == "train" else self._file(source, "model.onnx")
        fields = dataclasses.fields(latency.Request)
        names = {field.name for field in fields if field.default is dataclasses.MISSING} - {"path", "protocol"}
        settings = {name: stage.inputs[name] for name in names}
        protocol = latency.Protocol(**stage.inputs["protocol"])
        return latency.Request(path=str(path), protocol=protocol, modules=self.imports, **settings)

    def batches(
        self,
        cell: Cell,
        recipe: Recipe,
        device: str,
        group: Group = distributed.ALONE,
        weights: Path | None = None,
    ) -> "Batches":
        """A cell's images by a recipe; for trained `weights` normalised as these were,
        of which an earlier version may have had another mean and std."""
        import torch

        from suite.data.batches import Batches
        from suite.inference import networks

        workers = 0 if cell.dataset.train.in_memory else self.threads
        place = torch.device(device, group.local_rank) if device == "cuda" else torch.device(device)
        dataset = cell.dataset if weights is None else networks.normalize_as_trained(cell.dataset, weights)
        for note in dataset.notes[len(cell.dataset.notes) :]:
            self.display.note(f"{cell.name}: {note}")
        return Batches(dataset, recipe, place, workers, group)


def cell_of(stage: Stage) -> Cell:
    """The cell of a stage that has one."""
    assert stage.cell is not None
    return stage.cell

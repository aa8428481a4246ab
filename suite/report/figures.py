"""Figures 2 and 3 of the paper as numbers, and NormProp's promise: a column for each
curve, a line for each layer."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from suite import env
from suite.errors import InputError
from suite.files import choose_that_fits, printable, terminal_width, wrap
from suite.inference import networks
from suite.progress import Lines, Silent
from suite.report.formats import paragraphs, to_csv, to_grid, to_json
from suite.report.plots import ZOOM
from suite.results.record import TrainRecord
from suite.results.store import Store
from suite.schema.outcomes import none_if_unset
from suite.tables import spec

PROMISE = "normprop"
TITLES = {
    2: "Figure 2: Delta of each residual block, mean L2 norm over channels of what the block adds",
    3: "Figure 3: coherence mu of the filters of each convolution off the shortcuts",
    PROMISE: "NormProp's promise, mean 0 and variance 1 of what each convolution sees, at initial weights",
}


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    Attributes:
        model: the network.
        names: of its blocks or convolutions, in order of depth.
        values: one for each.
        origin: what the weights are, and on which images they were run, in words.
        label: if those are of another data set than the weights were trained on, that
            one and theirs.
    """

    model: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    origin: str
    label: str = ""

    @property
    def heading(self) -> str:
        """The network, and what keeps its figures from being its own."""
        return f"{self.model} ({self.label})" if self.label else self.model


def models_of_figure(figure: int, depth: int | None) -> list[str]:
    """The networks of a figure; `depth` stands for 110 in Figure 2.

    Raises:
        InputError: a depth for Figure 3, which is of 34-layer networks.
    """
    if figure == 3:
        if depth is not None:
            raise InputError("--depth is only for figure 2; figure 3 is of 34-layer networks")
        return ["resnet34_relu_np2", "resnet34_crelu_np2"]
    return [f"resnet{depth or 110}_{act}_{norm}" for act in ("relu", "crelu") for norm in ("plain", "bn")]


def curves(
    figure: int,
    results: Path,
    depth: int | None = None,
    data: Mapping[str, Path] | None = None,
    images: int = 1000,
    shown: Lines | None = None,
) -> list[Curve]:
    """The curves of Figure 2 or 3: of the longest training run of each network in the
    results folder, else of its initial weights.

    Args:
        figure: 2 or 3.
        results: folder of records.
        depth: of the networks of Figure 2, 110 by default.
        data: test images for Figure 2; by default the embedded ones with as many
            classes as the network.
        images: how many of them, evenly spaced.
        shown: where each network is a stage, and its images are steps.

    Raises:
        InputError: the data does not suit the networks.
    """
    from suite.analysis import analyze
    from suite.export.exporter import load_weights

    store, shown = Store(results), shown or Silent(0)
    longest = {name: _longest(store, name) for name in models_of_figure(figure, depth)}
    if untrained := [name for name, record in longest.items() if record is None]:
        which = "these networks" if len(untrained) == len(longest) else ", ".join(untrained)
        shown.note(f"no trained weights of {which} in {results}; initial weights are taken. {_made_by(figure, depth)}")
    found = []
    for name, record in longest.items():
        weights = str(store.artifact(record, "model.safetensors").parent) if record else name
        shown.log(f"{name}: {_origin(figure, record) if record else 'initial weights'} ...")
        with shown.stage(name) as step, networks.find_network(weights) as of:
            model = load_weights(of.weights)
            if figure == 3:
                result = analyze.coherence(model)
                names, values, measured, label = none_if_unset(result.layers) or [], result.mu, "", ""
            else:
                batches = networks.test_batches(of, data or {}, images)
                differences = analyze.block_differences(model, batches, step)
                names, values = none_if_unset(differences.blocks) or [], differences.delta
                dataset = batches.dataset
                measured = f"; measured on {batches.test_images} test images of {dataset.name}"
                elsewhere = networks.training_data_note(of, dataset, bool(data))
                measured += f", but {elsewhere}" if elsewhere else ""
                measured = "; ".join([measured, *map(printable, dataset.notes)])
                label = f"on {dataset.name}, {elsewhere.partition(';')[0]}" if elsewhere else ""
        found.append(Curve(name, tuple(names), tuple(values), _origin(figure, record) + measured, label))
    return found


def _longest(store: Store, model: str) -> TrainRecord | None:
    """The run of a network with most training steps whose weights are there; of two
    alike the latest."""
    name = "model.safetensors"
    read = store.typed(TrainRecord, {model})
    runs = [record for record in read if record.result.trained and name in record.artifacts]
    runs = [record for record in runs if not spec.is_outdated(model, record.inputs.version)]
    runs = [record for record in runs if store.artifact(record, name).is_file()]
    return max(runs, key=lambda record: (record.result.steps, record.finished), default=None)


def _origin(figure: int, record: TrainRecord | None) -> str:
    table = 4 if figure == 3 else 1
    if record is None:
        return "initial weights, NOT TRAINED: no run in the results folder"
    data, steps = record.inputs.data.name, record.result.steps
    asked = record.inputs.schedule
    whole = asked.max_steps is None and asked.epochs == spec.load_table(table).recipe.epochs
    return f"{'run' if whole else 'shortened run'} of {steps} steps on {printable(data)}, seed {record.inputs.seed}"


def _made_by(figure: int, depth: int | None) -> str:
    """How to have trained weights of a figure's networks, as a sentence."""
    table = spec.load_table(4 if figure == 3 else 1)
    words = ["run", "--table", str(table.number), "--profile", "paper"]
    words += ["--depth", str(depth)] if depth and depth != table.depth else []
    for data in dict.fromkeys(row.data for row in table.rows):
        words += ["--data", f"{data}=PATH"]
    return f"`{env.typed(words)}` trains them"


def promise() -> tuple[list[Curve], list[str]]:
    """Mean and variance by layer with NormProp, in a plain CNN and in a ResNet, and the
    propositions in words.

    The report's page shows the same from `suite/report/assets/normprop.json`, so that
    it need not load torch.
    """
    from suite.analysis import theory

    origin = "initial weights with gain 1, on standard normal images"
    found = [
        Curve(f"{words}, {what}", result.layers, tuple(map(float, getattr(result, what))), origin)
        for words, result in zip(("plain CNN", "ResNet-20"), theory.normprop_promise().values(), strict=True)
        for what in ("mean", "variance")
    ]
    return found, theory.describe_propositions()


def _as_json(curve: Curve) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(curve).items() if name != "label" or value}


def render(figure: int | str, found: list[Curve], text_format: str, remarks: Sequence[str] = ()) -> str:
    """The curves as text, ending in a newline: "github", "latex", "csv" or "json"."""
    names = max((curve.names for curve in found), key=len)
    headings = ["number", "block" if figure == 2 else "convolution", *(curve.heading for curve in found)]
    values = zip_longest(*(curve.values for curve in found))
    rows = [[number, name, *line] for number, (name, line) in enumerate(zip(names, values, strict=True), start=1)]
    if text_format == "json":
        content: dict[str, Any] = {"title": TITLES[figure], "curves": [_as_json(curve) for curve in found]}
        return to_json(content | {"remarks": list(remarks)})
    if text_format == "csv":
        return to_csv([headings, *rows])
    if text_format == "github":
        body = choose_that_fits(
            to_grid(each, rows, text_format, floatfmt=".4g") for each in (headings, [*headings[:2], *_in_brief(found)])
        )
    else:
        body = to_grid(headings, rows, text_format, floatfmt=".4g")
    foot = [*_origins(found), *remarks]
    if figure == 2 and len(names) > ZOOM:
        foot.append(f"the paper zooms on the first {ZOOM} blocks")
    if text_format == "latex":
        title, *foot = paragraphs([TITLES[figure], *foot])
    else:
        title, foot = TITLES[figure], [f"- {text}" for text in foot]
    width = terminal_width() if text_format == "github" else None
    return "\n".join([wrap(title, width, ""), "", body, "", *(wrap(text, width) for text in foot)]) + "\n"


def _in_brief(found: Sequence[Curve]) -> list[str]:
    """The curves' names without the beginning that all have, where a terminal has no
    room for more: what is below the table has them in full."""
    names = [curve.model.split("_") for curve in found]
    differing = (number for number, parts in enumerate(zip(*names, strict=False)) if len(set(parts)) > 1)
    shared = next(differing, 0)
    return ["_".join(parts[shared:]) for parts in names]


def _origins(found: Sequence[Curve]) -> Iterator[str]:
    """What the curves are of, once for those of which it is the same."""
    models: dict[str, list[str]] = {}
    for curve in found:
        models.setdefault(curve.origin, []).append(curve.model)
    for origin, names in models.items():
        every = len(names) == len(found) > 1
        yield f"{'each network' if every else ', '.join(names)}: {origin}"

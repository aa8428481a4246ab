"""Plots of the records: errors, learning curves, latencies and the paper's Figures 2
and 3.

Curves are thinned and samples reduced to quantiles here, so that a report stays small
whatever the records hold. Errors of runs that do not count mean nothing and are never
drawn.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import Literal

from suite.registry import DATA_SETS, ORT, RUNTIMES, label_of
from suite.report import look
from suite.report.drawing import SHARES, Figure, Plot, Points, Series, category_axis, number_axis, thin_out
from suite.report.entries import Entry, errors, figures_by_epoch
from suite.report.kinds import PLAIN, Kind, precision_in_words, runtime_words
from suite.report.runs import Runs
from suite.results.derived import latency_ratio, median_over_seeds
from suite.results.samples import quantiles
from suite.schema.outcomes import Epoch, none_if_unset

# Latencies whose ratio is less are the same: so near the same file comes to itself when it is timed twice.
SAME = 1.01
# Room for the names of points behind the slowest net, as a share of what the latencies span.
NAMED = 0.3
# The same above the net with the greatest error, for names of several that are near each other there.
ABOVE = 0.2
# Blocks in the zoomed panel of the paper's Figure 2.
ZOOM = 36


def error_against_latency(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set, a plot for each kind of latency: which nets no other
    beats in both."""
    figures = []
    for data, group in _by_data(entry for entry in entries if entry.counts and "top1" in entry.table.metrics):
        plots = []
        for number, kind in enumerate(_kinds(group), start=1):
            found = [
                (1e3 * timed[kind].result.median, error, entry)
                for entry in group
                if kind in (timed := entry.runs.timed)
                and (error := median_over_seeds(errors(entry.runs, "top1"))) is not None
            ]
            if found:
                plots.append(_pareto(f"{data}-error-latency-{number}", kind, found))
        if plots:
            figures.append(Figure(f"Test error against latency, {label_of(data)}", PARETO, tuple(plots)))
    return figures


PARETO = "Lower left is better. No net beats those on the grey line, the Pareto front, in both."


def _pareto(name: str, kind: Kind, found: Sequence[tuple[float, float, Entry]]) -> Plot:
    looks = {entry.row.title: look.net(entry.row.title) for _, _, entry in found}
    series = []
    for words, full in dict.fromkeys((looks[entry.row.title].kind, entry.comparable) for _, _, entry in found):
        some = [each for each in found if (looks[each[2].row.title].kind, each[2].comparable) == (words, full)]
        like = looks[some[0][2].row.title]
        labels = tuple(entry.name for _, _, entry in some)
        title = words if full else f"{words}, shortened"
        points = [[x, y] for x, y, _ in some]
        series.append(Series(title, "points", points, like.color, not full, labels, like.shape))
    # Runs of different lengths share no front: the full ones have it where there are any, else the longest.
    longest = max(_length(entry) for _, _, entry in found)
    alike = [each for each in found if _length(each[2]) == longest]
    recipe = min(entry.recipe for _, _, entry in alike)  # nor do runs of different recipes
    ranked = [each for each in alike if each[2].recipe == recipe]
    front = pareto_front([(x, y) for x, y, _ in ranked])
    series.append(Series("Pareto front", "steps", [list(point) for point in front], look.REFERENCE))
    x = number_axis("latency, median (ms)", [x for x, _, _ in found], log=True, beyond=NAMED)
    y = number_axis("test error (%)", [y for _, y, _ in found], most=100, beyond=ABOVE)
    sure = runs_in_words([entry for _, _, entry in found])
    return Plot(name, _title(kind), x, y, tuple(series), f"Errors: {sure}" if sure else "", _brief(kind), kind[0])


def runs_in_words(nets: Sequence[Entry]) -> str:
    """How many epochs and seeds the errors of some nets rest on, where they are fewer
    than the paper's."""
    epochs = {(net.epochs, net.table.recipe.epochs) for net in nets if net.epochs < net.table.recipe.epochs}
    seeds = {(len(net.runs.train), net.table.seeds) for net in nets if len(net.runs.train) < net.table.seeds}
    return ", ".join(f"{_span(shares)} {what}" for shares, what in ((epochs, "epochs"), (seeds, "seeds")) if shares)


def _span(shares: Collection[tuple[int, int]]) -> str:
    """Such as "10 of 164" or "10 to 20 of 150 or 164"."""
    low, high = min(done for done, _ in shares), max(done for done, _ in shares)
    return f"{low if low == high else f'{low} to {high}'} of {' or '.join(map(str, sorted({of for _, of in shares})))}"


def _length(entry: Entry) -> tuple[bool, int]:
    """How much the runs of an entry say: in full, and of how many steps if not in
    full."""
    full = entry.comparable
    return full, 0 if full else entry.runs.train[0].result.steps


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (latency, error) that no other beats in both, from left to right;
    `SAME` latencies count as one."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if front and point[1] >= front[-1][1]:
            continue
        if front and point[0] <= SAME * front[-1][0]:
            front.pop()
        front.append(point)
    return front


LEARNED: tuple[tuple[str, str, Callable[[Epoch], float | None]], ...] = (
    ("test-error", "test error (%)", lambda epoch: none_if_unset(epoch.top1)),
    ("train-error", "training error (%)", lambda epoch: none_if_unset(epoch.train_error)),
    ("train-loss", "training loss", lambda epoch: none_if_unset(epoch.train_loss)),
)


def learning_curves(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set and depth: test error, training error and training
    loss by epoch, medians over seeds."""
    figures = []
    for data, depth, group in _by_depth(entries):
        plots = []
        for key, label, of in LEARNED:
            curves = [(entry.name, _curve(entry.runs, of)) for entry in group]
            plots += _lines(f"{data}-{depth}-{key}", label, "epoch", label, curves)
        if plots:
            title = f"Learning curves, {_place(data, depth)}"
            figures.append(Figure(title, "Medians over seeds.", tuple(plots)))
    return figures


def _curve(runs: Runs, of: Callable[[Epoch], float | None]) -> Points:
    found: dict[int, list[float]] = {}
    for record in runs.train:
        for epoch, value in figures_by_epoch(record, of).items():
            found.setdefault(epoch, []).append(value)
    medians = ((epoch, median_over_seeds(values)) for epoch, values in sorted(found.items()))
    return thin_out([[epoch, median] for epoch, median in medians if median is not None])


def latency_distributions(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set, a plot for each kind: one box for each net."""
    figures = []
    for data, group in _by_data(entries):
        plots = []
        for number, kind in enumerate(_kinds(group), start=1):
            found = [(entry.name, timed[kind]) for entry in group if kind in (timed := entry.runs.timed)]
            boxes = [
                [i, *(1e3 * value for value in quantiles(r.result.samples, SHARES))] for i, (_, r) in enumerate(found)
            ]
            models = tuple(model for model, _ in found)
            x = number_axis("latency (ms)", [value for box in boxes for value in box[1:]], log=True, marked=True)
            series = tuple(_by_look(models, boxes, "boxes"))
            name, y = f"{data}-latency-{number}", category_axis(models)
            plots.append(Plot(name, _title(kind), x, y, series, "", _brief(kind), kind[0]))
        if plots:
            caption = "Boxes are quartiles and median of all samples, whiskers 5 % and 95 %."
            figures.append(Figure(f"Latency, {label_of(data)}", caption, tuple(plots)))
    return figures


def rewrite_gains(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set, a plot for each kind that was timed with the default
    export's graph beside it."""
    figures = []
    for data, group in _by_data(entries):
        plots = []
        for number, kind in enumerate([kind for kind in _kinds(group) if kind[4] == PLAIN], start=1):
            rewritten = (*kind[:4], "fp32")
            ratios = {
                entry.name: latency_ratio(timed[rewritten].result, timed[kind].result)
                for entry in group
                if kind in (timed := entry.runs.timed) and rewritten in timed
            }
            if ratios:
                models = tuple(ratios)
                points = [[ratio, float(index)] for index, ratio in enumerate(ratios.values())]
                x = number_axis("latency, rewritten over default export (p50)", [*ratios.values(), 1.0])
                series = tuple(_by_look(models, points, "points"))
                name, y = f"{data}-rewrite-{number}", category_axis(models)
                plots.append(Plot(name, _title(rewritten), x, y, series, "", _brief(rewritten), kind[0]))
        if plots:
            caption = "Left of 1 the rewritten graph is faster than the graph that PyTorch's exporter writes."
            figures.append(Figure(f"Gains of the rewrites, {label_of(data)}", caption, tuple(plots)))
    return figures


def _by_look(models: Sequence[str], points: Points, mark: Literal["points", "boxes"]) -> Iterator[Series]:
    """A point or box for each of some models, as one series for all that look the same;
    boxes have no shape."""
    looks = list(map(look.net, models))
    kinds = [each.normalization if mark == "boxes" else each.kind for each in looks]
    for kind in dict.fromkeys(kinds):
        some = [number for number, each in enumerate(kinds) if each == kind]
        like = looks[some[0]]
        labels = tuple(models[number] for number in some)
        yield Series(kind, mark, [points[number] for number in some], like.color, labels=labels, shape=like.shape)


def promise() -> list[Figure]:
    """What NormProp promises to every layer, in a plain CNN and in a ResNet: of initial
    weights, so always there."""
    stored = json.loads((resources.files("suite.report") / "assets" / "normprop.json").read_text("utf-8"))
    plots: list[Plot] = []
    # The ResNet is one of the paper's, which the plain CNN is held against.
    looks = {"ResNet-20": look.net("resnet20_relu_np"), "plain CNN": look.net("plain CNN")}
    for what in ("variance", "mean"):
        curves = [(each["model"].partition(",")[0], each) for each in stored["curves"] if each["model"].endswith(what)]
        points = [(name, _numbered(each["values"])) for name, each in curves]
        plots += _lines(f"normprop-{what}", what, "convolution", what, points, what == "variance", looks)
    caption = (
        "Mean 0 and variance 1 of what each convolution sees, as NormProp promises, with initial weights on standard "
        "normal images: kept in a plain CNN, and broken by the additions of a ResNet."
    )
    return [Figure("NormProp's promise", caption, tuple(plots), "\n".join(stored["remarks"]))]


def inside(entries: Sequence[Entry]) -> list[Figure]:
    """The paper's Figures 2 and 3, where there are records of them."""
    figures = []
    for data, depth, group in _by_depth(entries):
        stem = f"{data}-{depth}"
        analysed = [(entry.row.title, entry.runs.analyze[0].result) for entry in group if entry.runs.analyze]
        plots: list[Plot] = []
        blocks = [(model, result.blocks) for model, result in analysed if result.blocks]
        before = [(model, _numbered(each.delta)) for model, each in blocks]
        after = [(model, _numbered(none_if_unset(each.delta_after_relu) or ())) for model, each in blocks]
        for key, words, curves in (
            ("delta", "before the activation", before),
            ("delta-after-relu", "after the activation", after),
        ):
            name = f"{stem}-{key}"
            plots += _lines(name, words, "block", "Delta", curves, log_y=True)
            if any(len(points) > ZOOM for _, points in curves):
                zoomed = [(model, points[:ZOOM]) for model, points in curves]
                plots += _lines(f"{name}-zoom", f"{words}, the first {ZOOM} blocks", "block", "Delta", zoomed)
        if plots:
            title = f"Figure 2, change by block, {_place(data, depth)}"
            figures.append(Figure(title, "Mean length of what each residual block adds.", tuple(plots), FIGURE_2))
        mu = [(model, _numbered(result.coherence.mu)) for model, result in analysed if result.coherence]
        plots = _lines(f"{stem}-coherence", "coherence", "convolution", "coherence", mu)
        if plots:
            caption = "Greatest cosine between two filters of a convolution."
            title = f"Figure 3, coherence, {_place(data, depth)}"
            figures.append(Figure(title, caption, tuple(plots), FIGURE_3))
    return figures


FIGURE_2 = (
    "The paper, of ResNet-110 on CIFAR-100: in plain nets hardly any change in the first 36 blocks, but for a spike "
    "where the size is reduced, then a jump by orders of magnitude, almost exponential with ReLU. With BatchNorm "
    "Delta stays at around 1 to 5 in all blocks."
)
FIGURE_3 = (
    "The paper, of the 34-layer NormProp2 nets on ImageNet: neither with CReLU nor with ReLU are the filters of low "
    "coherence, so that the assumption on which NormProp rests does not hold in a ResNet."
)


def _numbered(values: Sequence[float]) -> Points:
    return thin_out([[number, value] for number, value in enumerate(values, start=1)])


def _by_data(entries: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    """The entries with runs by data set, by depth; a net that several tables show
    counts once."""
    groups: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry.runs.train:
            groups.setdefault(entry.row.data, {}).setdefault(entry.name, entry)
    return [
        (data, sorted(groups[data].values(), key=_depth))
        for data in dict.fromkeys([*DATA_SETS, *groups])
        if data in groups
    ]


def _depth(entry: Entry) -> int:
    return 0 if entry.table.own else int(re.findall(r"\d+", entry.row.title)[0])


def _by_depth(entries: Sequence[Entry]) -> Iterator[tuple[str, str, list[Entry]]]:
    """Data set and depth ("resnet20") with the nets of which there are runs that
    count."""
    for data, group in _by_data(entry for entry in entries if entry.counts):
        for depth in dict.fromkeys(entry.depth for entry in group):
            yield data, depth, [entry for entry in group if entry.depth == depth]


def _place(data: str, depth: str) -> str:
    return label_of(data) + (f", {depth.replace('resnet', 'ResNet-')}" if depth else "")


def _kinds(group: Sequence[Entry]) -> list[Kind]:
    """Kinds of latencies: those of nets whose errors mean something come first, and
    among them those of most nets."""
    counts: dict[Kind, list[bool]] = {}
    for entry in group:
        for kind in entry.runs.timed:
            counts.setdefault(kind, []).append(entry.counts)
    return sorted(counts, key=lambda kind: (not any(counts[kind]), -len(counts[kind]), kind))


def _title(kind: Kind) -> str:
    """Such as "ONNX Runtime, cpu, int8, batch 8; AMD EPYC (2 cores), torch 2.15.0"."""
    return f"{_brief(kind)}; {kind[0]}"


def _brief(kind: Kind) -> str:
    """The same without the setup."""
    _, runtime, provider, batch, precision = kind
    name = RUNTIMES[ORT].label if runtime == ORT else runtime_words(runtime)
    return ", ".join([name, provider, *precision_in_words(precision), f"batch {batch}"])


def _lines(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    curves: Sequence[tuple[str, Points]],
    log_y: bool = False,
    looks: Mapping[str, look.Net] = MappingProxyType({}),
) -> list[Plot]:
    """A plot of one line for each net that has points; `looks` are of those whose name
    does not say."""
    drawn = [(model, points) for model, points in curves if points]
    if not drawn:
        return []
    series = []
    for model, points in drawn:
        like = looks.get(model) or look.net(model)
        series.append(Series(model, "line", points, like.color, like.shape == "circle", weight=like.weight))
    xs = [point[0] for _, points in drawn for point in points]
    ys = [point[1] for _, points in drawn for point in points]
    return [Plot(name, title, number_axis(x_label, xs), number_axis(y_label, ys, log_y), tuple(series))]

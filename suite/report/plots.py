"""What a report draws of the records.

Curves are thinned and samples reduced to quantiles here, so that a report stays small whatever the records hold.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib import resources

from suite.outcomes import Epoch, known
from suite.registry import DATA_SETS, STAND_INS
from suite.report.drawing import SHARES, Axis, Figure, Plot, Points, Series, axis, named, thin
from suite.report.runs import PLAIN, Entry, Kind, Runs, by_epoch, errors, words_of
from suite.results.record import TimedRecord
from suite.results.samples import quantiles

# Latencies whose ratio is less are the same: so near the same file comes to itself when it is timed twice.
SAME = 1.01
# Blocks in the zoomed panel of the paper's Figure 2.
ZOOM = 36


def error_against_latency(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set, a plot for each kind of latency: which nets no other beats in both."""
    figures = []
    for data, group in _by_data(entries):
        plots = []
        for number, kind in enumerate(_kinds(group), start=1):
            found = [
                (1e3 * _median(timed[kind]), statistics.median(values), entry)
                for entry in group
                if kind in (timed := entry.runs.timed) and (values := errors(entry.runs, "top1"))
            ]
            # Beside networks trained on the data in question, those of a few steps on embedded images say nothing.
            real = [each for each in found if each[2].runs.train[0].inputs.data.name == data]
            if found:
                plots.append(_pareto(f"{data}-error-latency-{number}", kind, real or found))
        if plots:
            title = f"Error against latency: {DATA_SETS[data].label}"
            figures.append(Figure(title, f"{PARETO}{_stand_in(data, group)}", tuple(plots)))
    return figures


PARETO = (
    "Lower left is better. The line is the Pareto front: no other net is both faster and more accurate. "
    "Hollow points are quick or shortened runs, whose errors compare with nothing in the paper; those on embedded "
    "images are left out beside others."
)


def _pareto(name: str, kind: Kind, found: Sequence[tuple[float, float, Entry]]) -> Plot:
    series = []
    for color, (activation, sign) in enumerate((("ReLU", "_relu_"), ("CReLU", "_crelu_"))):
        for full in (True, False):
            some = [each for each in found if sign in each[2].row.model and each[2].comparable == full]
            if some:
                words = activation if full else f"{activation}, quick or shortened"
                labels = tuple(entry.row.model for _, _, entry in some)
                series.append(Series(words, "points", [[x, y] for x, y, _ in some], color, not full, labels))
    # Runs of different lengths share no front: the full ones have it where there are any, else the longest.
    longest = max(_length(entry) for _, _, entry in found)
    ranked = [each for each in found if _length(each[2]) == longest]
    front = pareto_front([(x, y) for x, y, _ in ranked])
    series.append(Series("Pareto front", "steps", [list(point) for point in front], 2))
    x = axis("latency, p50 (ms)", [x for x, _, _ in found], log=True)
    y = axis("test error, top-1 (%)", [y for _, y, _ in found])
    return Plot(name, _title(kind), x, y, tuple(series))


def _length(entry: Entry) -> tuple[bool, bool, int]:
    """How much the runs of an entry say: in full, on the paper's data, and of how many steps if not in full."""
    train, full = entry.runs.train[0], entry.comparable
    return full, train.inputs.data.name == entry.row.data, 0 if full else train.result.steps


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (latency, error) that no other beats in both, from left to right; `SAME` latencies count as one."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if front and point[1] >= front[-1][1]:
            continue
        if front and point[0] <= SAME * front[-1][0]:
            front.pop()
        front.append(point)
    return front


LEARNED: tuple[tuple[str, str, Callable[[Epoch], float | None]], ...] = (
    ("test-error", "test error, top-1 (%)", lambda epoch: known(epoch.top1)),
    ("train-error", "training error (%)", lambda epoch: known(epoch.train_error)),
    ("train-loss", "training loss", lambda epoch: known(epoch.train_loss)),
)


def learning_curves(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set: test error, training error and training loss by epoch, medians over seeds."""
    figures = []
    for data, group in _by_data(entries):
        plots = []
        for key, label, of in LEARNED:
            curves = [(entry.row.model, _curve(entry.runs, of)) for entry in group]
            stem = f"{data}-{key}"
            plots += _lines(stem, label, "epoch", label, curves)
        if plots:
            caption = f"Medians over seeds. Lines of nets with ReLU are broken.{_stand_in(data, group)}"
            figures.append(Figure(f"Learning curves: {DATA_SETS[data].label}", caption, tuple(plots)))
    return figures


def _curve(runs: Runs, of: Callable[[Epoch], float | None]) -> Points:
    found: dict[int, list[float]] = {}
    for record in runs.train:
        for epoch, value in by_epoch(record, of).items():
            found.setdefault(epoch, []).append(value)
    return thin([[epoch, statistics.median(values)] for epoch, values in sorted(found.items())])


def latency_distributions(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set, a plot for each kind: one box for each net."""
    figures = []
    for data, group in _by_data(entries):
        plots = []
        for number, kind in enumerate(_kinds(group), start=1):
            found = [(entry.row.model, timed[kind]) for entry in group if kind in (timed := entry.runs.timed)]
            boxes = [
                [i, *(1e3 * value for value in quantiles(r.result.samples, SHARES))] for i, (_, r) in enumerate(found)
            ]
            models = tuple(model for model, _ in found)
            x = axis("latency (ms)", [value for box in boxes for value in box[1:]], log=True)
            series = Series("latency", "boxes", boxes)
            plots.append(Plot(f"{data}-latency-{number}", _title(kind), x, named(models), (series,)))
        if plots:
            caption = "Box: quartiles and median of all samples; whiskers: 5 % and 95 %."
            figures.append(Figure(f"Latency: {DATA_SETS[data].label}", caption, tuple(plots)))
    return figures


def batch_scaling(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set, a plot for each machine, runtime and provider that was timed at several batches."""
    figures = []
    for data, group in _by_data(entries):
        plots: list[Plot] = []
        places = dict.fromkeys((*kind[:3], 0, kind[4]) for kind in _kinds(group))  # 0: at any batch size
        for number, place in enumerate(places, start=1):
            curves = []
            for entry in group:
                timed = [
                    (kind[3], record) for kind, record in entry.runs.timed.items() if (*kind[:3], 0, kind[4]) == place
                ]
                if len(timed) > 1:
                    curves.append((entry.row.model, [[b, 1e3 * _median(r)] for b, r in timed]))
            title = _title(place).replace(" b0", "")
            plots += _lines(
                f"{data}-batches-{number}", title, "batch size (images)", "latency, p50 (ms)", curves, log=True
            )
        if plots:
            caption = "Time of a whole batch. A line that rises more slowly than the batch gains images/s."
            figures.append(Figure(f"Latency by batch size: {DATA_SETS[data].label}", caption, tuple(plots)))
    return figures


def rewrite_gains(entries: Sequence[Entry]) -> list[Figure]:
    """A figure for each data set, a plot for each kind that was timed with the default export's graph beside it."""
    figures = []
    for data, group in _by_data(entries):
        plots = []
        for number, kind in enumerate([kind for kind in _kinds(group) if kind[4] == PLAIN], start=1):
            rewritten = (*kind[:4], "fp32")
            ratios = {
                entry.row.model: _median(timed[rewritten]) / _median(timed[kind])
                for entry in group
                if kind in (timed := entry.runs.timed) and rewritten in timed
            }
            if ratios:
                models = tuple(ratios)
                points = [[ratio, float(index)] for index, ratio in enumerate(ratios.values())]
                x = axis("latency, rewritten over default export (p50)", [*ratios.values(), 1.0])
                series = Series("ratio", "points", points, labels=models)
                title = _title(rewritten)
                plots.append(Plot(f"{data}-rewrite-{number}", title, x, named(models), (series,)))
        if plots:
            caption = "Left of 1 the rewritten graph is faster than the graph that PyTorch's exporter writes."
            figures.append(Figure(f"Gains of the rewrites: {DATA_SETS[data].label}", caption, tuple(plots)))
    return figures


def _median(record: TimedRecord) -> float:
    return quantiles(record.result.samples, (0.5,))[0]


def promise() -> list[Figure]:
    """What NormProp promises to every layer, in a plain CNN and in a ResNet: of initial weights, so always there."""
    stored = json.loads((resources.files("suite.report") / "assets" / "normprop.json").read_text("utf-8"))
    plots: list[Plot] = []
    for what in ("variance", "mean"):
        curves = [(each["model"].partition(",")[0], each) for each in stored["curves"] if each["model"].endswith(what)]
        points = [(name, _numbered(each["values"])) for name, each in curves]
        plots += _lines(f"normprop-{what}", what, "convolution", what, points, log_y=what == "variance")
    caption = (
        "Mean 0 and variance 1 of what each convolution sees, as NormProp promises, with initial weights on standard "
        "normal images: kept in a plain CNN, and broken by the additions of a ResNet."
    )
    return [Figure("NormProp's promise", caption, tuple(plots), "\n".join(stored["remarks"]))]


def inside(entries: Sequence[Entry]) -> list[Figure]:
    """The paper's Figures 2 and 3, where there are records of them."""
    figures = []
    for data, group in _by_data(entries):
        analysed = [(entry.row.model, entry.runs.analyze[0].result) for entry in group if entry.runs.analyze]
        plots: list[Plot] = []
        blocks = [(model, result.blocks) for model, result in analysed if result.blocks]
        before = [(model, _numbered(each.delta)) for model, each in blocks]
        after = [(model, _numbered(known(each.delta_after_relu) or ())) for model, each in blocks]
        for key, words, curves in (
            ("delta", "before the activation", before),
            ("delta-after-relu", "after the activation", after),
        ):
            name = f"{data}-{key}"
            plots += _lines(name, words, "block", "Delta", curves, log_y=True)
            if any(len(points) > ZOOM for _, points in curves):
                zoomed = [(model, points[:ZOOM]) for model, points in curves]
                plots += _lines(f"{name}-zoom", f"{words}, the first {ZOOM} blocks", "block", "Delta", zoomed)
        if plots:
            caption = f"Mean length of what each residual block adds.{_stand_in(data, group)}"
            figures.append(
                Figure(f"Figure 2, change by block: {DATA_SETS[data].label}", caption, tuple(plots), FIGURE_2)
            )
        mu = [(model, _numbered(result.coherence.mu)) for model, result in analysed if result.coherence]
        plots = _lines(f"{data}-coherence", "coherence", "convolution", "coherence", mu)
        if plots:
            caption = f"Greatest cosine between two filters of a convolution.{_stand_in(data, group)}"
            title = f"Figure 3, coherence: {DATA_SETS[data].label}"
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
    return thin([[number, value] for number, value in enumerate(values, start=1)])


def _by_data(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """The entries with runs by data set; a net that several tables show counts once."""
    groups: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry.runs.train:
            groups.setdefault(entry.row.data, {}).setdefault(entry.row.model, entry)
    return [(data, list(group.values())) for data, group in groups.items()]


def _kinds(group: Sequence[Entry]) -> list[Kind]:
    return sorted({kind for entry in group for kind in entry.runs.timed})


def _title(kind: Kind) -> str:
    return f"{words_of(kind)}, {kind[0]}"


def _stand_in(data: str, group: Sequence[Entry]) -> str:
    """A sentence for figures of which a part comes from the embedded images."""
    count = sum(entry.runs.train[0].inputs.data.name != data for entry in group)
    if not count:
        return ""
    return f" {count} of {len(group)} nets ran on the embedded {STAND_INS[data]}, not on {DATA_SETS[data].label}."


def _lines(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    curves: Sequence[tuple[str, Points]],
    log: bool = False,
    log_y: bool = False,
) -> list[Plot]:
    """A plot of one line for each net: a colour for each but its activation, which breaks the line or does not."""
    drawn = [(model, points) for model, points in curves if points]
    if not drawn:
        return []
    colors: dict[str, int] = {}
    series = []
    for model, points in drawn:
        color = colors.setdefault(model.replace("_crelu_", "_relu_"), len(colors))
        series.append(Series(model, "line", points, color, hollow="_relu_" in model))
    xs = [point[0] for _, points in drawn for point in points]
    ys = [point[1] for _, points in drawn for point in points]
    x = axis(x_label, xs, log)
    if log:  # batch sizes: those that there are, rather than round numbers
        x = Axis(x_label, x.low, x.high, tuple(sorted(set(xs))), log)
    return [Plot(name, title, x, axis(y_label, ys, log or log_y), tuple(series))]

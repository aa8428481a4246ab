"""What a choice of normalisation and activation costs and brings: every net beside
BatchNorm and ReLU."""

import re
from collections.abc import Sequence

from suite.registry import label_of
from suite.report.entries import Entry, Metric, are_alike, errors, shortfalls
from suite.report.kinds import Kind, instability_notes, words_of
from suite.report.latency import three_digits
from suite.report.render import FAILED, Column, Line, Report
from suite.report.tables import QUICK
from suite.results.derived import latency_ratio, median_over_seeds

# The choice beside which the others stand.
USUAL = "relu_bn"

# What nets that are compared have in common: data set, depth ("resnet20"), and what is special in their recipe, if
# anything is.
Place = tuple[str, str, str]


def groups(entries: Sequence[Entry]) -> dict[Place, list[Entry]]:
    """The nets of which there are runs, by place; one of several tables counts once."""
    found: dict[Place, dict[str, Entry]] = {}
    for entry in entries:
        if entry.runs.train and "top1" in entry.table.metrics:
            place = entry.row.data, entry.depth, entry.recipe
            found.setdefault(place, {}).setdefault(entry.row.title, entry)
    return {place: list(nets.values()) for place, nets in found.items()}


def tables(entries: Sequence[Entry], metric: Metric = "last") -> dict[str, Report]:
    """A table for each data set and depth with runs of several nets, by the stem of its
    files. Those with errors that mean something come first, and in each table the least
    error."""
    several = [(place, nets) for place, nets in groups(entries).items() if len(nets) > 1]
    several.sort(key=lambda each: not any(net.counts for net in each[1]))
    return {stem(place): _table(place, nets, metric) for place, nets in several}


def stem(place: Place) -> str:
    """Of the files of a place's table."""
    return "-".join(["choices", *(re.sub(r"[ .]", "-", part) for part in place if part)])


def _table(place: Place, nets: Sequence[Entry], metric: Metric) -> Report:
    data, depth, recipe = place
    usual = next((net for net in nets if net.row.model == f"{depth}_{USUAL}"), None)
    model = Column("model", "Model")
    lines = [Line() for _ in nets]
    for net, line in zip(nets, lines, strict=True):
        line.put(model, net.row.model)
    columns = [model, *_errors(nets, usual, lines, metric), *_sizes(nets, usual, lines)]
    latency, remarks = _latencies(nets, usual, lines)
    remarks.insert(0, f"points and ratios are beside {depth}_{USUAL}; less is better in every column")

    ignored = {net.row.model for net in nets if not net.counts}

    def merit(line: Line) -> tuple[bool, bool, float]:
        error = line.values["top1"]
        return (
            line.values["model"] in ignored,
            not isinstance(error, float),
            error if isinstance(error, float) else 0.0,
        )

    title = ", ".join([label_of(data), depth.replace("resnet", "ResNet-"), *([recipe] if recipe else [])])
    return Report(title, columns + latency, sorted(lines, key=merit), remarks)


def _errors(nets: Sequence[Entry], usual: Entry | None, lines: Sequence[Line], metric: Metric) -> list[Column]:
    error = Column("top1", "test error %", lambda value: f"{value:.2f}")
    points = Column("points", "points beside BN ReLU", lambda value: f"{value:+.2f}")
    base = _error(usual, metric) if usual else None
    without = f"no runs of it and of {USUAL} by one recipe over as many whole epochs on the paper's data"
    for net, line in zip(nets, lines, strict=True):
        value, notes = _error(net, metric), shortfalls(net.table, net.row, net.runs.train)
        if net.runs.train[0].is_quick:
            line.put(error, QUICK, *notes)
        else:
            line.put(error, value, *notes, *(["did not train, or not measured"] if value is None else []))
        if usual and value is not None and base is not None and are_alike(net, usual):
            line.put(points, value - base)
        else:
            line.put(points, None, without)
    return [error, points]


def _sizes(nets: Sequence[Entry], usual: Entry | None, lines: Sequence[Line]) -> list[Column]:
    parameters, macs = Column("parameters", "params ratio", _times), Column("macs", "MACs ratio", _times)
    base = usual.runs.export if usual else None
    for net, line in zip(nets, lines, strict=True):
        if net.runs.export and base:
            cost, usually = net.runs.export.result, base.result
            line.put(parameters, cost.parameters / usually.parameters)
            line.put(macs, cost.macs / usually.macs if cost.macs and usually.macs else None)
        else:
            line.put(parameters, None, "not exported")
            line.put(macs, None, "not exported")
    return [parameters, macs]


def _latencies(nets: Sequence[Entry], usual: Entry | None, lines: Sequence[Line]) -> tuple[list[Column], list[str]]:
    columns: list[Column] = []
    kinds = _kinds(nets)
    setups = list(dict.fromkeys(kind[0] for kind in kinds))
    several = len(setups) > 1
    for kind in kinds:
        name = words_of(kind) + (f" m{setups.index(kind[0]) + 1}" if several else "")
        key = "_".join(name.split())
        median = Column(f"{key}_ms", f"{name} p50 ms", three_digits)
        ratio = Column(f"{key}_ratio", f"{name} ratio", _times)
        columns += [median, ratio]
        base = usual.runs.timed.get(kind) if usual else None
        for net, line in zip(nets, lines, strict=True):
            record = net.runs.timed.get(kind)
            line.put(median, 1e3 * record.result.median if record else None, *_doubts(net, kind))
            both = latency_ratio(record.result, base.result) if record and base else None
            line.put(ratio, both, *([] if both else ["not timed"]))
    return columns, [f"{f'm{n}' if several else 'latency'}: {name}" for n, name in enumerate(setups, start=1)]


def _times(value: float) -> str:
    return f"{value:.2f}"


def _error(net: Entry, metric: Metric) -> float | None:
    return median_over_seeds(errors(net.runs, "top1", metric))


def _kinds(nets: Sequence[Entry]) -> list[Kind]:
    """The smallest batch of each setup and provider in ONNX Runtime, in float32."""
    found: dict[tuple[str, str], Kind] = {}
    for kind in sorted({kind for net in nets for kind in net.runs.timed}):
        setup, runtime, provider, _, precision = kind
        if runtime == "onnxruntime" and precision == "fp32":
            found.setdefault((setup, provider), kind)
    return list(found.values())


def _doubts(net: Entry, kind: Kind) -> list[str]:
    """Why a latency is not there, or is to be taken with care."""
    if kind not in net.runs.timed:
        return ["not timed"]
    failed = not all(record.result.passed for record in net.runs.parity)
    return instability_notes(net.runs.timed[kind]) + [f"{FAILED}: the file is not the network"] * failed

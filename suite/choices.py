"""What a choice of normalisation and activation costs and brings: every net beside BatchNorm and ReLU."""

import statistics
from collections.abc import Sequence

from suite import report
from suite.plots import DATA, Entry
from suite.report import Column, Kind, Line, Metric, Report

# The choice beside which the others stand.
USUAL = "relu_bn"


def tables(entries: Sequence[Entry], metric: Metric = "last") -> dict[str, Report]:
    """A table for each data set and depth with runs of several nets, by the stem of its files; least error first."""
    groups: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in entries:
        if entry.runs.train and "top1" in entry.table.metrics:
            depth, _, _ = entry.row.model.partition("_")
            groups.setdefault((entry.row.data, depth), {}).setdefault(entry.row.model, entry)
    return {
        f"choices-{data}-{depth}": _table(data, depth, list(nets.values()), metric)
        for (data, depth), nets in groups.items()
        if len(nets) > 1
    }


def _table(data: str, depth: str, nets: Sequence[Entry], metric: Metric) -> Report:
    usual = next((net for net in nets if net.row.model == f"{depth}_{USUAL}"), None)
    lines = {net.row.model: Line() for net in nets}
    model = Column("model", "Model")
    error = Column("top1", "test error %", lambda value: f"{value:.2f}")
    gain = Column("points", "points beside BN ReLU", lambda value: f"{value:+.2f}")
    parameters = Column("parameters", "params ratio", _times)
    macs = Column("macs", "MACs ratio", _times)
    columns = [model, error, gain, parameters, macs]
    for net in nets:
        line = lines[net.row.model]
        line.put(model, net.row.model)
        value, notes = _error(net, metric), report.shortfalls(net.table, net.row, net.runs.train)
        line.put(error, value, *(notes if value is not None else [*notes, "did not train, or not measured"]))
        base = _error(usual, metric) if usual else None
        if usual and value is not None and base is not None and _same(net, usual):
            line.put(gain, value - base)
        else:
            line.put(gain, None, f"no run of {depth}_{USUAL} of the same length on the same data")
        for column in (parameters, macs):
            export, other = net.runs.export, usual.runs.export if usual else None
            if export and other:
                line.put(column, export.result[column.key] / other.result[column.key])
            else:
                line.put(column, None, "not exported")
    remarks = [f"points and ratios are beside {depth}_{USUAL}; less is better in every column"]
    kinds = _kinds(nets)
    machines = list(dict.fromkeys(kind[0] for kind in kinds))
    for kind in kinds:
        where = f" m{machines.index(kind[0]) + 1}" if len(machines) > 1 else ""
        name = f"{report.words_of(kind)}{where}"
        key = "_".join(name.split())
        median, ratio = (
            Column(f"{key}_ms", f"{name} p50 ms", report.three_digits),
            Column(f"{key}_ratio", f"{name} ratio", _times),
        )
        columns += [median, ratio]
        base = _median(usual, kind) if usual else None
        for net in nets:
            line, value = lines[net.row.model], _median(net, kind)
            line.put(median, None if value is None else 1e3 * value, *(["not timed"] if value is None else []))
            beside = value / base if value and base else None
            line.put(ratio, beside, *(["not timed"] if beside is None else []))
    remarks += [f"{f'm{i}' if len(machines) > 1 else 'latency'}: {name}" for i, name in enumerate(machines, start=1)]

    def merit(line: Line) -> tuple[bool, float]:
        value = line.values["top1"]
        return not isinstance(value, float), value if isinstance(value, float) else 0.0

    title = f"{DATA[data]}, {depth.replace('resnet', 'ResNet-')}"
    return Report(title, columns, sorted(lines.values(), key=merit), remarks)


def _times(value: float) -> str:
    return f"{value:.2f}"


def _error(net: Entry, metric: Metric) -> float | None:
    values = report.errors(net.runs, "top1", metric)
    return statistics.median(values) if values else None


def _same(a: Entry, b: Entry) -> bool:
    """Whether two nets were trained so long and on such data that their errors may be compared."""

    def how(net: Entry) -> tuple[object, ...]:
        inputs = net.runs.train[0].inputs
        return inputs["data"], inputs["recipe"]["epochs"], inputs["recipe"]["max_steps"]

    return how(a) == how(b)


def _kinds(nets: Sequence[Entry]) -> list[Kind]:
    """The smallest batch of each machine and provider in ONNX Runtime, in float32."""
    found: dict[tuple[str, str], Kind] = {}
    for kind in sorted({kind for net in nets for kind in net.runs.timed}):
        machine, runtime, provider, _, precision = kind
        if runtime == "onnxruntime" and precision == "fp32":
            found.setdefault((machine, provider), kind)
    return list(found.values())


def _median(net: Entry, kind: Kind) -> float | None:
    record = net.runs.timed.get(kind)
    return report.quantiles(record, (0.5,))[0] if record else None

"""A contest as a table: what each network takes, and how that compares with the
first."""

from collections.abc import Sequence
from dataclasses import replace

from suite import env
from suite.inference.contest import Measurement
from suite.registry import PROVIDERS, RUNTIMES
from suite.report import render as rendering
from suite.report.formats import to_json
from suite.report.latency import BEYOND, three_digits
from suite.report.render import Column, Line, Report
from suite.results.samples import median as median_of
from suite.results.samples import percentiles, to_nanoseconds


def table(outcomes: Sequence[Measurement], title: str, remarks: Sequence[str]) -> Report:
    """One line for each outcome. A column of which there is nothing to say is left out;
    a value that is missing is an empty cell with its reason, never 0."""
    by_images = all(outcome.entrant.images for outcome in outcomes)
    kinds = {name: Column(name, name, part="model") for name in ("runtime", "provider", "precision")}
    kinds["batch_size"] = Column("batch_size", "batch", part="model")
    network = Column("network", "network", brief="network")
    median = Column("median_ms", "median ms", three_digits, "latency", "median ms")
    interval = Column("interval_ms", "95 %", part="latency", brief="95 %")
    higher = {name: Column(f"{name}_ms", f"{name} ms", three_digits, "latency") for name in ("p90", "p99")}
    things = "images" if by_images else "runs"
    speed = Column(f"{things}_per_s", f"{things}/s", three_digits, "speed")
    ratio = Column("ratio", "ratio to first", lambda value: f"{value:.3f}", "latency", "ratio to first")
    within = Column("ratio_interval", "95 % of it", part="latency", brief="95 % of it")
    share = Column("peak_percent", "% of peak", lambda value: f"{value:.0f}", "peak", "% of peak")
    load = Column("load_ms", "load ms", three_digits, "latency")
    first = Column("first_run_ms", "first run ms", three_digits, "latency")
    nodes, threads = Column("nodes", "nodes there", part="model"), Column("threads", "threads", part="model")
    columns = [network, *kinds.values(), median, interval, *higher.values(), speed, ratio, within]
    columns += [share, load, first, nodes, threads]
    lines = []
    for outcome in outcomes:
        line, request = Line(), outcome.entrant.request
        line.put(network, outcome.entrant.name, *outcome.notes)
        line.put(kinds["runtime"], request.runtime)
        line.put(kinds["provider"], outcome.provider or PROVIDERS[request.provider].name)
        line.put(kinds["precision"], outcome.entrant.precision)
        line.put(kinds["batch_size"], request.batch_size)
        line.put(threads, request.threads)
        lines.append(line)
        if outcome.error is not None or outcome.median is None:
            line.put(median, None, outcome.error or "not measured")
            continue
        middle, low, high = (1e3 * seconds for seconds in outcome.median)
        line.put(median, middle)
        line.put(interval, f"{three_digits(low)} to {three_digits(high)}")
        for name, seconds in percentiles(outcome.samples).items():
            if name in higher:
                line.put(higher[name], 1e3 * seconds)
        line.put(speed, 1e3 / middle * (request.batch_size if by_images else 1))
        if outcome.ratio is not None:
            line.put(ratio, outcome.ratio[0])
            line.put(within, f"{outcome.ratio[1]:.3f} to {outcome.ratio[2]:.3f}")
        if outcome.share is not None:
            percent = 100 * outcome.share
            line.put(share, percent, *([BEYOND] if percent > 100 else []))
        line.put(load, 1e3 * median_of(outcome.load))
        line.put(first, 1e3 * median_of(outcome.first))
        if outcome.nodes:
            there = outcome.nodes.get(outcome.provider, 0)
            line.put(nodes, f"{there} of {sum(outcome.nodes.values())}")
    filled = {key for line in lines for key, value in line.values.items() if value is not None}
    kept = [column for column in columns if column.key in filled or column is median]
    # Of what is the same for all a reader of few columns is told once, below.
    alike = [key for key in kinds if len({line.values[key] for line in lines}) == 1]
    differ = kinds.keys() - alike
    kept = [replace(column, brief=column.heading) if column.key in differ else column for column in kept]
    each_row = ", ".join(f"{kinds[key].heading} {lines[0].values[key]}" for key in alike)
    told = [f"each row: {each_row}"] if alike else []
    return Report(title, kept, lines, [*remarks, *told, f"versions: {_versions(outcomes)}"])


def render(report: Report, outcomes: Sequence[Measurement], text_format: str) -> str:
    """The table of these outcomes as text. JSON has of each row also `rounds_ns`, every
    run once in whole nanoseconds, round by round, and the `settings` of its runtime."""
    if text_format != "json":
        return rendering.render(report, text_format)
    content = rendering.to_dict(report)
    for row, outcome in zip(content["rows"], outcomes, strict=True):
        row["settings"] = outcome.settings
        row["rounds_ns"] = [to_nanoseconds(each) for each in outcome.rounds]
    return to_json(content, numbers_in_one_line=True)


def _versions(outcomes: Sequence[Measurement]) -> str:
    """Of the packages that ran them."""
    libraries = {RUNTIMES[outcome.entrant.request.runtime].library for outcome in outcomes}
    known = {name: version for name, version in env.versions().items() if name.removesuffix("-gpu") in libraries}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def title(outcomes: Sequence[Measurement], quick: bool) -> str:
    """What was measured, and on what."""
    runs = sorted(len(outcome.samples) for outcome in outcomes if outcome.samples) or [0]
    counted = f"{runs[0]} runs each" if runs[0] == runs[-1] else f"{runs[0]} to {runs[-1]} runs each"
    quickly = ", quick" if quick else ""
    return f"Timed in turns on {env.machine()['id']}: {counted}{quickly}; a run ends when its output is there"

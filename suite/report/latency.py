"""The columns of latency: of each machine, runtime, provider, batch size and form.

A kind that was timed of one row has columns in which the other rows say why they have
none.
"""

from collections.abc import Collection

from suite.registry import FORMS, ORT, RUNTIMES, why_unsupported
from suite.report.kinds import brief_words, instability_notes, runtime_words, words_of
from suite.report.render import Column, Line
from suite.report.runs import Records, Runs
from suite.results.derived import percent_of_peak
from suite.results.record import TimedRecord
from suite.results.samples import median as median_of
from suite.results.samples import percentiles
from suite.tables.spec import Table

# Of more than the machine's peak, which is no share of it. Until version 2 a peak was of one product.
BEYOND = "impossible: more than the peak, which was measured too low"
BEYOND_ONE = "impossible: more than the peak, which is of one matrix product and was measured too low"
# Runtimes whose figures are of the exported file.
FILES = [name for name, runtime in RUNTIMES.items() if runtime.reads_files]


def three_digits(value: float) -> str:
    """At least three significant digits, without an exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def latency_columns(
    table: Table, found: list[Runs], lines: list[Line], index: Records, detail: bool, forms: Collection[str]
) -> tuple[list[Column], list[str]]:
    """p50 in ms, images/s and share of the peak of each kind, measured or lacking; and
    remarks that say on which machines. Fills `lines`, of which there is one a row."""
    timed = [runs.timed for runs in found]
    measured = {kind for records in timed for kind in records}
    asked = {*forms, *(kind[4] for kind in measured)}
    lacking = {
        (*kind[:4], form) for kind in measured for form in asked if kind[1] == ORT and why_unsupported(kind[2], form)
    }
    kinds = sorted(measured | lacking)
    setups = list(dict.fromkeys(kind[0] for kind in kinds))
    remarks = [f"{f'm{n}' if len(setups) > 1 else 'latency'}: {setup}" for n, setup in enumerate(setups, start=1)]
    # Of each provider in float32 the smallest batch, which its kinds begin with, in each runtime that reads files.
    main = [kind for kind in kinds if kind[1].partition(" ")[0] in FILES and kind[4] == "fp32"]
    smallest = {kind[:3]: kind for kind in reversed(main)}
    columns = []
    for kind in kinds:
        setup, runtime, provider, batch, precision = kind
        where = f" m{setups.index(setup) + 1}" if len(setups) > 1 else ""
        name = f"{words_of(kind)}{where}"
        reduced = "" if precision == "fp32" else f" {precision}"
        key = "_".join(f"{runtime} {provider}{reduced} b{batch}{where}".split())
        # A terminal has no room for more beside that of ONNX Runtime, of the same batch size.
        short = f"{provider} b{batch}" if runtime == ORT else brief_words(runtime)
        brief = f"{short} ms{where}" if kind in smallest.values() else ""
        if brief and runtime != ORT:
            remarks.append(f"{brief_words(runtime)}: {runtime_words(runtime)}")  # of each machine anew
        median = Column(f"{key}_p50_ms", f"{name} p50 ms", three_digits, "latency", brief)
        speed = Column(f"{key}_images_per_s", f"{name} img/s", three_digits, "speed")
        share = Column(f"{key}_peak_percent", f"{name} % of peak", lambda value: f"{value:.0f}", "peak")
        columns += [median, speed]
        units = FORMS[precision].precision if precision in FORMS else precision
        machine = next((records[kind].inputs.machine for records in timed if kind in records), "")
        has_peak = any((*place[:2], place[3]) == (machine, provider, units) for place in index.peak)
        if has_peak:
            columns.append(share)
        for runs, row, records, line in zip(found, table.rows, timed, lines, strict=True):
            if kind not in records:
                why = why_unsupported(provider, precision) or index.reason(row, "latency", runs) or "not run"
                line.put(median, None, why)
                line.put(speed, None, why)
                continue
            p50 = records[kind].result.median
            line.put(median, 1e3 * p50, *instability_notes(records[kind]))
            line.put(speed, batch / p50)
            peak = index.peak.get((machine, provider, records[kind].inputs.threads or 0, units))
            if has_peak and peak and runs.export and (macs := runs.export.result.macs):
                percent = percent_of_peak(macs * batch, p50, peak.result.flops)
                beyond = BEYOND if peak.result.of else BEYOND_ONE
                line.put(share, percent, *([beyond] if percent > 100 else []))
        columns += _beside_the_median(key, name, [records.get(kind) for records in timed], lines, detail)
    return columns, list(dict.fromkeys(remarks))


def _beside_the_median(
    key: str, name: str, records: list[TimedRecord | None], lines: list[Line], detail: bool
) -> list[Column]:
    """Milliseconds from host memory to host memory where that is another figure, and in
    detail the higher percentiles, the time to load and that of the first run; columns
    of which there is something to say."""
    columns: dict[str, Column] = {}
    for record, line in zip(records, lines, strict=True):
        if record is None:
            continue
        seconds: dict[str, float] = {}
        if host := record.result.host_samples:
            seconds["host to host p50"] = median_of(host)
        if detail:
            seconds |= {name: value for name, value in percentiles(record.result.samples).items() if name != "p50"}
            others = {"load": record.result.load_seconds, "first run": record.result.first_run_seconds}
            seconds |= {what: value for what, value in others.items() if value is not None}
        for what, value in seconds.items():
            column = Column(f"{key}_{what.replace(' ', '_')}_ms", f"{name} {what} ms", three_digits, "latency")
            line.put(columns.setdefault(what, column), 1e3 * value)
    for record, line in zip(records, lines, strict=True):
        why = "too few runs for this percentile" if record else "not run"
        for column in (each for each in columns.values() if each.key not in line.values):
            line.put(column, None, why)
    return list(columns.values())

"""Two measurements of the same cells, before and after a change: the ratio of their
medians, and what got slower.

A measurement is a results folder with records of the stage "latency", or a JSON file of
pytest-benchmark. A figure of another machine is never compared, and one that is missing
is said to be: both are failures, as a regression is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError
from suite.files import fit, wrap
from suite.results import bootstrap, samples
from suite.results.record import ExportRecord, LatencyRecord, TrainRecord
from suite.results.store import Store
from suite.schema.outcomes import none_if_unset

# Fewest rounds whose spread says how certain a median is: six are the fewest whose least and greatest have the true one
# between them in 19 of 20 cases.
ROUNDS = 6
# How the line of a cell begins that got slower than is allowed.
SLOWER = "slower: "
# Cells that were not compared for one reason, up to which each is named.
FEW = 3
# Characters of the column that says why not to trust a ratio, on a terminal.
DOUBTS = 20
# What names a case: of a latency's inputs, and the data set that the network was trained on.
Case = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True)
class Ratio:
    """One cell in both: medians in seconds, their ratio b / a, and its interval of 95
    %; `doubts` say why not to trust them."""

    cell: Case
    machine: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What two measurements have to say of each other.

    Attributes:
        ratios: the cells that both have from one machine.
        regressions: of these, those whose whole interval lies above `1 + fail_above`.
        missing: cells that a has and b has not.
        elsewhere: cells that b has, but from other machines than a: the cell, a's
            machine, and b's.
        new: cells that b has and a has not; no failure.
        fail_above: slow-down that is allowed, as 0.05; None if none fails.
    """

    ratios: list[Ratio]
    regressions: list[Ratio]
    missing: list[Case]
    elsewhere: list[tuple[Case, str, str]]
    new: list[Case]
    fail_above: float | None

    @property
    def failures(self) -> list[str]:
        """Every reason for an exit code other than 0, a line each."""
        return [
            *(
                f"{SLOWER}{format_cell(found.cell)}: {found.ratio:.3f} ({found.low:.3f} to {found.high:.3f}), "
                f"allowed {1 + (self.fail_above or 0):.3f}"
                for found in self.regressions
            ),
            *(f"missing: {format_cell(cell)}" for cell in self.missing),
            *(
                f"another machine: {format_cell(cell)}: {theirs} instead of {ours}"
                for cell, ours, theirs in self.elsewhere
            ),
        ]


@dataclass(frozen=True)
class _Measurement:
    """Seconds of one cell on one machine, in the rounds that they were taken in if
    that is known; `way` is the version of the suite's way to measure, where records
    say it."""

    cell: Case
    machine: str
    samples: NDArray[np.float64]
    rounds: list[NDArray[np.float64]]
    way: int | None = None


def compare(a: Path, b: Path, fail_above: float | None = None) -> Comparison:
    """Compare two measurements cell by cell.

    The interval is a percentile bootstrap, with the same random numbers each time:
    whole rounds are drawn, since runs of one round share the machine's mood, and single
    runs only where there are no rounds. Each side is one process, so that what
    processes of one file differ by (`TWINS`) is drawn too.

    Args:
        a: a results folder, or a JSON file of pytest-benchmark: before.
        b: the same kind: after.
        fail_above: the slow-down that is allowed, as 0.05 for 5 %; None for any.

    Raises:
        InputError: no such file or folder, nothing was measured in it, it is of the
            wrong kind, or a negative `fail_above`.
    """
    if fail_above is not None and not fail_above >= 0:
        raise InputError(f"a slow-down of {fail_above} cannot be allowed; use 0 or more, as 0.05 for 5 %")
    if a.is_dir() != b.is_dir() and a.exists() and b.exists():
        raise InputError(f"{a} and {b}: one is a folder and one a file; give two results folders or two files")
    before, after = _read(a), _read(b)
    ratios, missing, elsewhere = [], [], []
    for cell, machines in before.items():
        found = after.get(cell, {})
        for machine, first in machines.items():
            if machine in found:
                ratios.append(_ratio(first, found[machine]))
            elif found:
                elsewhere.append((cell, machine, ", ".join(found)))
            else:
                missing.append(cell)
    slow = [each for each in ratios if fail_above is not None and each.low > 1 + fail_above]
    return Comparison(ratios, slow, missing, elsewhere, [cell for cell in after if cell not in before], fail_above)


def format_cell(cell: Case) -> str:
    """A cell as text: its values, and the names of those that are numbers."""
    return " ".join(f"{key.removesuffix('_size')} {value}" if isinstance(value, int) else value for key, value in cell)


def render(comparison: Comparison, width: int | None = None, everything: bool = False) -> str:
    """The comparison as text, ending in a newline: why cells were not compared, the
    table of those that were, what got slower, and in the last line what it came to.

    Args:
        comparison: of two measurements.
        width: of a terminal, which lines are to fit; what all cells have in common is
            then said once. None for lines as they are.
        everything: name each cell that was not compared, also where they are many.
    """
    lines = _not_compared(comparison, None if everything else FEW)
    if comparison.ratios:
        lines += [*([""] if lines else []), *_table(comparison, width), ""]
    lines += [line for line in comparison.failures if line.startswith(SLOWER)]
    return "\n".join(wrap(line, width) for line in [*lines, _in_all(comparison)]) + "\n"


def _not_compared(comparison: Comparison, few: int | None) -> list[str]:
    """The cells that only one has from a machine, with the reason, in a line each; more
    than `few` of one reason in one line."""
    machines: dict[str, list[Case]] = {}
    for cell, ours, theirs in comparison.elsewhere:
        machines.setdefault(f": {theirs} instead of {ours}", []).append(cell)
    # Of each reason what stands before a cell or their number, and what behind one or many.
    reasons = [
        *(("another machine: ", words, words, cells) for words, cells in machines.items()),
        ("missing: ", "", " of A are not in B", comparison.missing),
        ("new: ", "", " are only in B", comparison.new),
    ]
    lines = []
    for before, behind_one, behind_many, cells in reasons:
        if few is not None and len(cells) > few:
            lines.append(f"{before}{len(cells)} cells{behind_many}")
        else:
            lines += [f"{before}{format_cell(cell)}{behind_one}" for cell in cells]
    return lines


def _table(comparison: Comparison, width: int | None) -> list[str]:
    """The cells that both have, and the machines that they are from."""
    from tabulate import tabulate

    cells = {found.cell for found in comparison.ratios}
    alike: set[tuple[str, str | int]] = set.intersection(*map(set, cells)) if width and len(cells) > 1 else set()
    rows = [
        [
            format_cell(tuple(each for each in found.cell if each not in alike)),
            f"{1e3 * found.a:.3f}",
            f"{1e3 * found.b:.3f}",
            f"{found.ratio:.3f}",
            f"{found.low:.3f} to {found.high:.3f}",
            wrap(", ".join((*_verdict(found), *found.doubts)), DOUBTS if width else None, ""),
        ]
        for found in comparison.ratios
    ]
    headings = ["cell", "a ms", "b ms", "b / a", "95 %", ""]
    aligned = ("left", "right", "right", "right", "right", "left")
    text = tabulate(fit(headings, rows, width), headings, disable_numparse=True, colalign=aligned)
    machines = dict.fromkeys(found.machine for found in comparison.ratios)
    shared = tuple(each for each in comparison.ratios[0].cell if each in alike)
    each_row = [f"each cell: {format_cell(shared)}"] if shared else []
    return [*text.splitlines(), *each_row, *(f"measured on {machine}" for machine in machines)]


def _in_all(comparison: Comparison) -> str:
    """What the comparison came to."""
    count = len(comparison.ratios)
    if not count:
        why = "no cell was measured on one machine in both" if comparison.elsewhere else "no cell is in both"
        return f"nothing could be compared: {why}"
    said = [f"{count} cell{'s' if count > 1 else ''} compared"]
    if comparison.fail_above is not None:
        slower = len(comparison.regressions) or "none"
        said.append(f"{slower} slower by more than {100 * comparison.fail_above:.3g} %")
    if without := len(comparison.missing) + len(comparison.elsewhere):
        said.append(f"{without} of A could not be")
    return ", ".join(said)


def _verdict(found: Ratio) -> tuple[str, ...]:
    return ("slower",) if found.low > 1 else ("faster",) if found.high < 1 else ()


def _ratio(a: _Measurement, b: _Measurement) -> Ratio:
    before, after = (samples.median(each.samples.tolist()) for each in (a, b))
    random = np.random.default_rng(0)
    twins = bootstrap.resample_process_factors(random, 2)
    low, high = bootstrap.interval(twins * _medians(b, random) / _medians(a, random))
    few = min((len(each.rounds) for each in (a, b) if each.rounds), default=ROUNDS)
    doubts = [f"quick, {few} rounds"] if few < ROUNDS else []
    doubts += ["measured in two ways"] if a.way != b.way else []
    return Ratio(a.cell, a.machine, before, after, after / before, low, high, tuple(doubts))


def _medians(measured: _Measurement, random: np.random.Generator) -> NDArray[np.float64]:
    """Medians of resamples: of rounds, or of runs where there are not two rounds."""
    if len(measured.rounds) > 1:
        return bootstrap.resample_rounds(measured.rounds, random)
    return bootstrap.resample_values(measured.samples, random)


def _read(path: Path) -> dict[Case, dict[str, _Measurement]]:
    """What was measured of each cell on each machine."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a results folder or a JSON file of pytest-benchmark")
    return _from_records(path) if path.is_dir() else _from_benchmark(path)


def _from_records(folder: Path) -> dict[Case, dict[str, _Measurement]]:
    store = Store(folder)
    records = list(store.typed(LatencyRecord))
    if not records:
        raise InputError(
            f"{folder}: no latency records in it; give the --results folder of a run that has timed networks"
        )
    data = {record.key: record.inputs.data.name for record in store.typed(TrainRecord)}
    trained = {record.key: data.get(record.inputs.train) for record in store.typed(ExportRecord)}
    found: dict[Case, dict[str, _Measurement]] = {}
    # The most thorough of a cell counts, and of these the latest, as in tables.
    for record in sorted(records, key=_thoroughness):
        measured = _measurement(record, trained.get(record.inputs.export))
        found.setdefault(measured.cell, {})[measured.machine] = measured
    return found


def _thoroughness(record: LatencyRecord) -> tuple[int, int, str]:
    rounds = none_if_unset(record.result.rounds_ns) or none_if_unset(record.result.rounds) or ()
    return record.inputs.version, len(rounds), record.finished


def _measurement(record: LatencyRecord, data: str | None) -> _Measurement:
    """What a record says, of a network that was trained on this data if that is
    known."""
    inputs, timed = record.inputs, samples.to_seconds(record.result)
    named: dict[str, str | int | None] = {
        "model": " ".join([inputs.model, *(f"{key}={value}" for key, value in inputs.arguments.items())]),
        "data": data,
        "size": inputs.size,
        "runtime": inputs.runtime,
        "provider": inputs.provider,
        "precision": inputs.precision,
        "batch_size": inputs.batch_size,
        "threads": inputs.threads,
    }
    cell = tuple((name, value) for name, value in named.items() if value is not None)
    machine = record.environment.machine.id or inputs.machine or "unknown machine"
    rounds = [np.array(each, np.float64) for each in timed.by_round() if each]
    return _Measurement(cell, machine, np.array(timed.samples, np.float64), rounds, inputs.version)


def _check_samples(samples: Any, where: str) -> NDArray[np.float64]:
    try:
        seconds = np.array(samples, np.float64)
    except (TypeError, ValueError, OverflowError):
        seconds = np.array([])
    if seconds.ndim != 1 or not len(seconds) or not (np.isfinite(seconds) & (seconds > 0)).all():
        raise InputError(f"{where} has no samples, or some that are not positive seconds; measure it again")
    return seconds


def _from_benchmark(path: Path) -> dict[Case, dict[str, _Measurement]]:
    try:
        content = json.loads(path.read_text("utf-8"))
        machine = _benchmark_machine(content["machine_info"])
        entries = [(str(each["fullname"]), each["stats"], each.get("extra_info", {})) for each in content["benchmarks"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path}: not a JSON file of pytest-benchmark; give one that --benchmark-json wrote") from None
    if not entries:
        raise InputError(f"{path}: no benchmarks in it; give the file of a run in which some were not skipped")
    found: dict[Case, dict[str, _Measurement]] = {}
    for fullname, stats, more in entries:
        if not isinstance(stats, Mapping) or "data" not in stats:
            raise InputError(f"{path}: {fullname} has no raw samples; give a file that --benchmark-json wrote")
        cell, samples = (("benchmark", fullname),), _check_samples(stats["data"], f"{path}: {fullname}")
        # As this suite's own benchmarks note; those of others may mean anything by it.
        noted = more.get("rounds") if isinstance(more, Mapping) else None
        lengths = noted if isinstance(noted, list) and all(type(n) is int and n > 0 for n in noted) else []
        rounds = np.split(samples, np.cumsum(lengths)[:-1]) if lengths and sum(lengths) == len(samples) else []
        found[cell] = {machine: _Measurement(cell, machine, samples, rounds)}
    return found


def _benchmark_machine(info: Mapping[str, Any]) -> str:
    """The suite's own name of the machine where its benchmarks have left it, else what
    pytest-benchmark knows."""
    named = info.get("suite", {}).get("machine", {}).get("id")
    cpu = info.get("cpu", {})
    return str(named or f"{info.get('node')}: {cpu.get('brand_raw')} ({cpu.get('count')} cores)")

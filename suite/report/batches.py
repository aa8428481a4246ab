"""What a larger batch brings: images a second beside those at the smallest batch that
was timed."""

from collections.abc import Sequence

from suite.registry import DATA_SETS, label_of
from suite.report.entries import Entry
from suite.report.kinds import Kind, words_of
from suite.report.render import Column, Line, Report
from suite.results.derived import throughput_ratio


def table(entries: Sequence[Entry]) -> Report | None:
    """A line for each net that was timed at several batch sizes, a column for each
    kind; None if there is no such net. Lines stand by data set and depth, and those of
    one place in the order of the paper's tables.

    Figures of two machines have columns of their own.
    """
    nets: dict[tuple[str, str], Entry] = {}
    ratios: dict[tuple[str, str], dict[tuple[Kind, int], float]] = {}
    for entry in entries:
        place = entry.row.title, entry.row.data
        if place not in ratios and (found := _ratios(entry)):
            nets[place], ratios[place] = entry, found
    if not ratios:
        return None
    kinds = sorted({pair for found in ratios.values() for pair in found})
    setups = list(dict.fromkeys(kind[0] for kind, _ in kinds))
    model, data = Column("model", "Model"), Column("heading_data", "Data")
    columns = {pair: _column(pair, setups) for pair in kinds}
    lines = []
    for name, of in sorted(ratios, key=lambda place: _place(nets[place])):
        found = ratios[name, of]
        line = Line()
        line.put(model, name)
        line.put(data, label_of(of))
        for pair, column in columns.items():
            line.put(column, found.get(pair), *([] if pair in found else ["not run"]))
        lines.append(line)
    remarks = [f"{f'm{n}' if len(setups) > 1 else 'latency'}: {setup}" for n, setup in enumerate(setups, start=1)]
    title = "Images a second at a larger batch, as a multiple of those at the smallest"
    return Report(title, [model, data, *columns.values()], lines, remarks)


def _place(net: Entry) -> tuple[int, str, int]:
    """Where a net stands: its data set among those registered, a user's own behind
    them, and its depth."""
    data = net.row.data
    number = list(DATA_SETS).index(data) if data in DATA_SETS else len(DATA_SETS)
    return number, data, int(net.depth.removeprefix("resnet") or 0)


def _ratios(net: Entry) -> dict[tuple[Kind, int], float]:
    """The multiple of each kind, and the smallest batch that it is of."""
    least: dict[tuple[str, ...], Kind] = {}
    found = {}
    for kind in net.runs.timed:  # sorted, so that the smallest batch of a place comes first
        first = least.setdefault((*kind[:3], kind[4]), kind)
        if kind != first:
            larger, smallest = (net.runs.timed[each].result for each in (kind, first))
            found[kind, first[3]] = throughput_ratio(larger, kind[3], smallest, first[3])
    return found


def _column(pair: tuple[Kind, int], setups: Sequence[str]) -> Column:
    kind, least = pair
    where = f" m{setups.index(kind[0]) + 1}" if len(setups) > 1 else ""
    name = f"{words_of(kind)}{where}"
    return Column(f"{'_'.join(name.split())}_over_b{least}", f"{name} over b{least}", lambda value: f"{value:.2f}")

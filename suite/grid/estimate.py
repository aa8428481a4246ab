"""What a grid will take, from a short probe of each network, and which of its cells say
most for a given time."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from time import perf_counter
from typing import Any

import msgspec

from suite import env
from suite.errors import InputError
from suite.files import fit, terminal_width, wrap
from suite.grid import own, remaining
from suite.grid.plan import Cell, Grid, RunOptions, Stage, plan
from suite.grid.probe import Probe, Prober, ProbeRequest
from suite.grid.reach import within_reach
from suite.progress import duration
from suite.results.store import Store
from suite.tables import spec
from suite.tables.spec import Row


@dataclass(frozen=True)
class Cost:
    """Of one cell: `seconds` of the stages that are not stored, `memory` in bytes while
    it trains, how many stages there are, how many of them are stored, and `start`:
    seconds until the process that does them can begin, once for all cells that it does.
    `measured` is off where it is continued from another network's, by their sizes, and
    `seconds` None where nothing was measured."""

    seconds: float | None
    memory: float
    stages: int
    stored: int
    start: float = 0.0
    measured: bool = True


def probe(cell: Cell, options: RunOptions, store: Store, prober: Prober, keep: bool = True) -> Probe:
    """Measure a cell's network, or read what was measured before on this machine; what
    is measured is stored where it is to be kept.

    Raises:
        InputError: its process failed.
    """
    request, inputs = _probe_request(cell, options)
    if (found := store.get("probe", inputs)) is None:
        start = perf_counter()
        try:
            measured = prober.probe(request)
        except RuntimeError as error:
            raise InputError(f"{cell.row.model}: the probe failed: {error}") from None
        if not keep:
            return measured
        found = store.put("probe", inputs, asdict(measured), env.environment(), {"seconds": perf_counter() - start})
    return msgspec.convert(found.result, Probe)


def _probe_request(cell: Cell, options: RunOptions) -> tuple[ProbeRequest, dict[str, Any]]:
    """What is to be measured of a cell's network, and the inputs of its record."""
    classes = len(cell.dataset.classes)
    how = env.device_of(options.device), options.precision, cell.size
    request = ProbeRequest(cell.row.model, classes, cell.recipe, *how, dict(cell.row.arguments), options.imports)
    more = {"version": spec.VERSIONS["probe"], "machine": env.machine()["id"], "versions": env.versions()}
    more |= {"source": cell.source} if cell.source else {}
    # The modules are known by their text, and arguments no part of what was measured before there were any.
    left_out = ("modules",) if request.arguments else ("modules", "arguments")
    return request, {name: value for name, value in asdict(request).items() if name not in left_out} | more


class Probes:
    """What is known of the networks of a grid: measured, or continued from another by
    their sizes.

    Args:
        options: of the run.
        store: where measurements are kept.
        say: told what is being measured.
        within: seconds after which nothing more is measured; None for no such limit.
            With one, Ctrl-C ends measuring too, and `stopped` tells so.
        keep: whether measurements are stored.
    """

    def __init__(
        self,
        options: RunOptions,
        store: Store,
        say: Callable[[str], None] = lambda text: None,
        within: float | None = None,
        keep: bool = True,
    ) -> None:
        self._options, self._store, self._say, self._within = options, store, say, within
        self._keep = keep
        self._begun = perf_counter()
        self._prober = Prober()
        self._found: dict[str, tuple[float, Probe]] = {}
        self.stopped = False

    def measure(self, cells: Iterable[Cell]) -> None:
        """Measure the networks of these cells: networks of different sizes first, from
        which others are continued."""
        by_size: dict[tuple[int, float], list[Cell]] = {}
        for cell in {_name(cell): cell for cell in cells}.values():
            size = remaining.relative_size(cell.row.model)
            group = by_size.setdefault((cell.size, size), [])
            group.append(cell)
        longest = 0.0
        for cell in [cell for turn in zip_longest(*by_size.values()) for cell in turn if cell]:
            stored = self._store.get("probe", _probe_request(cell, self._options)[1]) is not None
            spent = perf_counter() - self._begun
            late = self._within is not None and bool(self._found) and spent + longest > self._within
            if not stored and (self.stopped or late):
                continue
            if not stored:
                self._say(f"measuring a few steps of {cell.row.model} on {cell.dataset.name}")
            begin = perf_counter()
            try:
                found = probe(cell, self._options, self._store, self._prober, self._keep)
            except KeyboardInterrupt:
                if self._within is None:
                    raise
                self.stopped = True
                continue
            longest = max(longest, perf_counter() - begin) if not stored else longest
            self._found[_name(cell)] = remaining.relative_size(cell.row.model), found

    def of(self, cell: Cell) -> tuple[Probe, bool] | None:
        """What is known of a cell's network, and whether it was measured; None if
        nothing is."""
        if _name(cell) in self._found:
            return self._found[_name(cell)][1], True
        if not self._found:
            return None
        wanted = remaining.relative_size(cell.row.model)
        size, nearest = min(self._found.values(), key=lambda each: abs(math.log(each[0] / wanted)))
        grows = ("step_fixed", "step_per_image", "memory_per_image", "test_per_image", "run_per_image", "export")
        return replace(nearest, **{name: getattr(nearest, name) * wanted / size for name in grows}), False


def _name(cell: Cell) -> str:
    """What cells have in common whose measurement is the same."""
    return json.dumps([cell.row.model, cell.row.arguments, asdict(cell.recipe), len(cell.dataset.classes)])


def costs(grid: Grid, store: Store, probes: Probes) -> dict[Cell, Cost]:
    """The cost of each cell of a grid on this machine."""
    stages = {cell: [stage for stage in grid.stages if stage.cell is cell] for cell in grid.cells}
    missing = {
        cell: [stage for stage in each if store.get_even_without_files(stage.kind, stage.inputs) is None]
        for cell, each in stages.items()
    }
    probes.measure(cell for cell in grid.cells if missing[cell])
    found = {}
    for cell in grid.cells:
        left, count = missing[cell], len(stages[cell])
        known = probes.of(cell) if left else None
        if known is None:
            found[cell] = Cost(None if left else 0.0, 0.0, count, count - len(left))
            continue
        probed, measured = known
        trains = any(stage.kind == "train" for stage in left)
        batch = min(cell.recipe.batch_size, len(cell.dataset.train))
        memory = probed.memory_fixed + (probed.memory_per_image * batch if trains else 0.0)
        seconds = sum(_seconds(stage, cell, probed) for stage in left)
        found[cell] = Cost(seconds, memory, count, count - len(left), probed.start, measured)
    return found


def _seconds(stage: Stage, cell: Cell, found: Probe) -> float:
    """What one stage takes."""
    recipe, images = cell.recipe, len(cell.dataset.train)
    tests = min(len(cell.dataset.test), recipe.max_test_images or len(cell.dataset.test))
    if stage.kind == "train":
        steps = recipe.steps(images)
        epochs = -(-steps // recipe.steps_per_epoch(images))
        seen = min(steps * recipe.batch_size, epochs * images)
        crops = tests * (epochs + (10 if recipe.ten_crop else 0)) * (recipe.test_size / cell.size) ** 2
        return steps * found.step_fixed + seen * found.step_per_image + crops * found.test_per_image
    if stage.kind == "export":
        return found.export
    if stage.kind == "convert":  # images to calibrate on pass through the file with all its intermediate results
        return found.export + 2 * int(stage.inputs.get("images", 0)) * found.run_per_image
    if stage.kind == "parity":
        return tests * (found.test_per_image + found.run_per_image)
    if stage.kind == "analyze":
        return tests * found.test_per_image
    protocol, run = stage.inputs["protocol"], stage.inputs["batch_size"] * found.run_per_image
    burst = max(protocol["min_seconds"], protocol["min_runs"] * run)
    timing: float = (
        found.timing_start + protocol["warmup"] * run + protocol["rounds"] * min(burst, protocol["max_runs"] * run)
    )
    return timing


def choose_cells(grid: Grid, found: Mapping[Cell, Cost], seconds: float) -> list[Cell]:
    """The cells that say most within so many seconds, in the order in which they were
    chosen.

    A cell says as much as the comparisons that it makes possible: one for its own
    figure, and one for each row chosen before it, or stored, that differs from it in
    one column of the paper. Another seed of a row says half, a third and so on. Chosen
    is always the cell that says most for its time among those that still fit.
    """
    cells = [cell for cell in grid.cells if found[cell].stages]
    chosen = [cell for cell in cells if found[cell].stored == found[cell].stages]
    left = [cell for cell in cells if cell not in chosen]
    takes = {cell: math.inf if (known := found[cell].seconds) is None else known for cell in left}
    while fitting := [cell for cell in left if takes[cell] <= seconds]:
        best = max(fitting, key=lambda cell: _worth(cell, chosen) / max(takes[cell], 1e-9))
        chosen.append(best)
        left.remove(best)
        seconds -= takes[best]
    return chosen


def _worth(cell: Cell, chosen: Collection[Cell]) -> float:
    rows = {(other.row.title, other.row.data): other.row for other in chosen}
    repeated = sum(other.row == cell.row for other in chosen)
    return (1 + sum(_compares(cell.row, row) for row in rows.values())) / (1 + repeated)


def _compares(one: Row, other: Row) -> bool:
    """Whether two rows differ in one column of the paper, on the same data."""
    differing = sum(a != b for a, b in zip(one.heading, other.heading, strict=True))
    return one.data == other.data and differing == 1


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take, and which of its cells are to be run."""

    asked: RunOptions
    grid: Grid
    costs: Mapping[Cell, Cost]
    chosen: Sequence[Cell]
    stopped: bool = False

    @property
    def start(self) -> float:
        """Seconds until a run can begin."""
        return max((cost.start for cost in self.costs.values()), default=0.0)

    def options(self) -> RunOptions:
        """Those of a run of the chosen cells."""
        return replace(self.asked, only=frozenset(cell.name for cell in self.chosen))

    def render(self) -> str:
        """As text: each cell with what it will take, those that are left out, and the
        total; as wide as the terminal."""
        from tabulate import tabulate

        rows = []
        for cell in [*self.chosen, *(cell for cell in self.grid.cells if cell not in self.chosen)]:
            cost = self.costs[cell]
            state = "left out"
            if cell in self.chosen:
                state = "stored" if cost.stored == cost.stages else "to do"
            about = "" if cost.measured else "~ "
            time = f"{about}{duration.format_duration(cost.seconds)}" if cost.seconds else ""
            memory = f"{about}{cost.memory / 1e9:.1f}" if cost.seconds else ""
            time = "not measured" if cost.seconds is None else time
            rows.append((cell.name, state, f"{cost.stored}/{cost.stages}", time, memory))
        headings, width = ("network", "", "stages stored", "time", "memory GB"), terminal_width()
        text = tabulate(fit(headings, rows, width), headings, disable_numparse=True)
        known = [self.costs[cell].seconds for cell in self.chosen]
        lines = [f"total on {env.machine()['id']}: {self._total(known)}"]
        if not all(self.costs[cell].measured for cell in self.chosen):
            lines.append("~ by the size of the network, from others that were measured; --budget measures each")
        return "\n".join([text, *(wrap(line, width) for line in lines)]) + "\n"

    def _total(self, known: Sequence[float | None]) -> str:
        """In words what cells take, of which those that were not measured have None."""
        if known and all(seconds is None for seconds in known):
            return "not known, since no network was measured"
        total = self.start + sum(seconds for seconds in known if seconds is not None)
        count = self.asked.workers or 1
        shared = f" of work, shared by {count} workers" if count > 1 else ""
        missing = known.count(None)
        cells = "1 cell that was" if missing == 1 else f"{missing} cells that were"
        without = f", without {cells} not measured" if missing else ""
        return f"about {duration.format_duration(total)}{shared}{without}"


def estimate_run(
    options: RunOptions,
    budget: float | None,
    say: Callable[[str], None],
    within: float | None = None,
    keep: bool = True,
) -> RunEstimate:
    """What these options will take on this machine, and what to run of it within
    `budget` seconds (None: all of it).

    The probes themselves count; after `within` seconds (None: never) no more of them
    are begun. With `keep` they are stored, and not done again.

    Raises:
        InputError: the options are not usable, or a network cannot be probed.
    """
    start = perf_counter()
    grid, store = plan(options), Store(options.results)
    if grid.table.own:
        own.check_networks(grid.cells)
    grid, beyond = within_reach(
        grid,
        lambda stage: store.get_even_without_files(stage.kind, stage.inputs) is not None,
        lambda stage: store.get(stage.kind, stage.inputs) is not None,
    )
    for line in beyond:
        say(line)
    probes = Probes(options, store, say, within, keep)
    found = costs(grid, store, probes)
    all_of_it = RunEstimate(options, grid, found, [cell for cell in grid.cells if found[cell].stages], probes.stopped)
    if budget is None:
        return all_of_it
    left = budget - (perf_counter() - start) - all_of_it.start
    return replace(all_of_it, chosen=choose_cells(grid, found, left))

"""What a grid will take, from a short probe of each network, and which of its cells say most for a given time."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

from suite import env
from suite.errors import InputError
from suite.grid import duration
from suite.grid.plan import Cell, Grid, Options, Stage, plan, within_reach
from suite.grid.probe import Probe, Prober, Request
from suite.results.store import Store
from suite.tables import spec
from suite.tables.spec import Row


@dataclass(frozen=True)
class Cost:
    """Of one cell: `seconds` of the stages that are not stored, `memory` in bytes while it trains, how many stages
    there are, how many of them are stored, and `start`: seconds until the process that does them can begin, once for
    all cells that it does."""

    seconds: float
    memory: float
    stages: int
    stored: int
    start: float = 0.0


def probe(cell: Cell, options: Options, store: Store, prober: Prober) -> Probe:
    """Measure a cell's network, or read what was measured before on this machine.

    Raises:
        InputError: its process failed.
    """
    from suite.grid.perform import device_of

    classes = len(cell.dataset.classes)
    request = Request(cell.row.model, classes, cell.recipe, device_of(options.device), options.precision)
    inputs = asdict(request) | {
        "version": spec.VERSIONS["probe"],
        "machine": env.machine()["id"],
        "versions": env.versions(),
    }
    found = store.get("probe", inputs)
    if found is None:
        start = perf_counter()
        try:
            result = asdict(prober.probe(request))
        except RuntimeError as error:
            raise InputError(f"{cell.row.model}: the probe failed: {error}") from None
        found = store.put("probe", inputs, result, env.environment(), {"seconds": perf_counter() - start})
    return Probe(**found.result)


def costs(
    grid: Grid, options: Options, store: Store, say: Callable[[str], None] = lambda text: None
) -> dict[Cell, Cost]:
    """The cost of each cell of a grid on this machine; `say` is told what is being measured."""
    prober, probes = Prober(), dict[str, Probe]()
    found = {}
    for cell in grid.cells:
        stages = [stage for stage in grid.stages if stage.cell is cell]
        missing = [stage for stage in stages if store.get(stage.kind, stage.inputs) is None]
        seconds = memory = begin = 0.0
        if missing:
            name = json.dumps([cell.row.model, asdict(cell.recipe), len(cell.dataset.classes)])
            if name not in probes:
                say(f"measuring a few steps of {cell.row.model} on {cell.dataset.name}")
                probes[name] = probe(cell, options, store, prober)
            seconds = sum(_seconds(stage, cell, probes[name]) for stage in missing)
            begin = probes[name].start
            trains = any(stage.kind == "train" for stage in missing)
            batch = min(cell.recipe.batch_size, len(cell.dataset.train))
            memory = probes[name].memory_fixed + (probes[name].memory_per_image * batch if trains else 0.0)
        found[cell] = Cost(seconds, memory, len(stages), len(stages) - len(missing), begin)
    return found


def _seconds(stage: Stage, cell: Cell, found: Probe) -> float:
    """What one stage takes."""
    recipe, images = cell.recipe, len(cell.dataset.train)
    tests = min(len(cell.dataset.test), recipe.max_test_images or len(cell.dataset.test))
    if stage.kind == "train":
        steps = recipe.steps(images)
        epochs = -(-steps // recipe.steps_an_epoch(images))
        seen = min(steps * recipe.batch_size, epochs * images)
        crops = tests * (epochs + (10 if recipe.ten_crop else 0))
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


def choose(grid: Grid, found: Mapping[Cell, Cost], seconds: float) -> list[Cell]:
    """The cells that say most within so many seconds, in the order in which they were chosen.

    A cell says as much as the comparisons that it makes possible: one for its own figure, and one for each row chosen
    before it, or stored, that differs from it in one column of the paper. Another seed of a row says half, a third and
    so on. Chosen is always the cell that says most for its time among those that still fit.
    """
    cells = [cell for cell in grid.cells if found[cell].stages]
    chosen = [cell for cell in cells if found[cell].stored == found[cell].stages]
    left = [cell for cell in cells if cell not in chosen]
    while fitting := [cell for cell in left if found[cell].seconds <= seconds]:
        best = max(fitting, key=lambda cell: _worth(cell, chosen) / max(found[cell].seconds, 1e-9))
        chosen.append(best)
        left.remove(best)
        seconds -= found[best].seconds
    return chosen


def _worth(cell: Cell, chosen: Collection[Cell]) -> float:
    rows = {other.row.model + other.row.data: other.row for other in chosen}
    repeated = sum(other.row == cell.row for other in chosen)
    return (1 + sum(_compares(cell.row, row) for row in rows.values())) / (1 + repeated)


def _compares(one: Row, other: Row) -> bool:
    """Whether two rows differ in one column of the paper, on the same data."""
    differing = sum(a != b for a, b in zip(one.heading, other.heading, strict=True))
    return one.data == other.data and differing == 1


@dataclass(frozen=True)
class Expected:
    """What a run will take, and which of its cells are to be run."""

    asked: Options
    grid: Grid
    costs: Mapping[Cell, Cost]
    chosen: Sequence[Cell]

    @property
    def start(self) -> float:
        """Seconds until a run can begin."""
        return max((cost.start for cost in self.costs.values()), default=0.0)

    def options(self) -> Options:
        """Those of a run of the chosen cells."""
        return replace(self.asked, only=frozenset(cell.name for cell in self.chosen))

    def render(self) -> str:
        """As text: each cell with what it will take, those that are left out, and the total."""
        from tabulate import tabulate

        rows = []
        for cell in [*self.chosen, *(cell for cell in self.grid.cells if cell not in self.chosen)]:
            cost = self.costs[cell]
            state = "left out"
            if cell in self.chosen:
                state = "stored" if cost.stored == cost.stages else "to do"
            time = duration.written(cost.seconds) if cost.seconds else ""
            memory = f"{cost.memory / 1e9:.1f}" if cost.seconds else ""
            rows.append((cell.name, state, f"{cost.stored}/{cost.stages}", time, memory))
        text = tabulate(rows, ("cell", "", "stages stored", "time", "memory GB"), disable_numparse=True)
        total = self.start + sum(self.costs[cell].seconds for cell in self.chosen)
        count = self.asked.workers
        shared = f" of work, shared by {count} workers" if count > 1 else ""
        return f"{text}\ntotal on {env.machine()['id']}: about {duration.written(total)}{shared}\n"


def expect(options: Options, budget: float | None, say: Callable[[str], None]) -> Expected:
    """What these options will take on this machine, and what to run of it within `budget` seconds (None: all of it).

    The probes themselves count.

    Raises:
        InputError: the options are not usable, or a network cannot be probed.
    """
    start = perf_counter()
    grid, store = plan(options), Store(options.results)
    grid, beyond = within_reach(grid, lambda stage: store.get(stage.kind, stage.inputs) is not None)
    for line in beyond:
        say(line)
    found = costs(grid, options, store, say)
    all_of_it = Expected(options, grid, found, [cell for cell in grid.cells if found[cell].stages])
    if budget is None:
        return all_of_it
    left = budget - (perf_counter() - start) - all_of_it.start
    return replace(all_of_it, chosen=choose(grid, found, left))

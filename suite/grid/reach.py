"""Leave out the stages of a grid that cannot be done here, and say why."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from suite.grid.plan import Grid
from suite.grid.run_options import RunOptions
from suite.grid.stages import Cell, Stage, stage_option_of
from suite.registry import why_unsupported
from suite.tables import spec
from suite.tables.spec import Table


def within_reach(
    grid: Grid, is_stored: Callable[[Stage], bool], has_files: Callable[[Stage], bool] | None = None
) -> tuple[Grid, list[str]]:
    """The grid without the stages that need what is neither in it nor stored, and what
    to say of these.

    `has_files` tells whether a stage is stored with its files, which others need; one
    whose files were removed can give them only if it can be done again.
    """
    has_files = has_files or is_stored
    reached: set[str] = set()
    beyond: dict[str, Stage] = {}
    lacking: set[str] = set()
    # Of each stage what is lacking to have its files.
    roots: dict[str, set[str]] = {}
    for stage in grid.stages:
        missing: set[str] = set()
        for need in stage.needs:
            missing |= roots.get(need.key, set() if has_files(need) else {stage_option_of(need.kind)})
        roots[stage.key] = set() if has_files(stage) else missing
        if not missing or is_stored(stage):
            reached.add(stage.key)
        else:
            beyond[stage.key] = stage
            lacking |= missing
    if not beyond:
        return grid, []
    kept = without_unused_peaks(stage for stage in grid.stages if stage.key in reached)
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(stage.kind for stage in beyond.values()).items())
    line = f"left out: {counts}; what they need ({', '.join(sorted(lacking))}) is neither among --stages nor stored"
    return dataclasses.replace(grid, stages=tuple(kept)), [line]


def without_unused_peaks(stages: Iterable[Stage]) -> list[Stage]:
    """The stages without those of the machine's peak, if no latency is among them to be
    shown beside it."""
    found = list(stages)
    timed = any(stage.kind == "latency" for stage in found)
    return [stage for stage in found if timed or stage.kind != "peak"]


def describe_left_out(table: Table, cells: tuple[Cell, ...]) -> Iterator[str]:
    """What to say of the rows whose data was not given, and of files of a data set that
    are not read."""
    for dataset in {id(cell.dataset): cell.dataset for cell in cells}.values():
        yield from dataset.notes
    running = {cell.row.data for cell in cells}
    for name in sorted({row.data for row in table.rows} - running):
        count = sum(row.data == name for row in table.rows)
        rows, them = ("row", "it") if count == 1 else ("rows", "them")
        yield f"left out: {count} {rows} on {name}; add --data {name}=PATH to run {them}"


def describe_unsupported_forms(options: RunOptions) -> Iterator[str]:
    """What to say of the forms that a provider cannot run."""
    for provider in options.providers:
        for form in options.forms:
            if (why := why_unsupported(provider, form)) and spec.is_deployed(options.table):
                yield f"left out: {form} on {provider}: {why}"

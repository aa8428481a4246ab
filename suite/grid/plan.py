"""What a run consists of: the cells of a table and the stages of each cell, all keys
known before anything runs.

A cell is a row with a seed. Its stages are train, export, convert, parity and latency,
or train and analyze; a stage's inputs hold the keys of those before it, so that a key
stands for all that was asked for. What "auto" came to, and on which device, is in the
result: whoever does a stage first does it for all.
"""

from dataclasses import dataclass

from suite.errors import InputError, join_with_or
from suite.grid import datasets, own
from suite.grid import stages as stages_of
from suite.grid.run_options import RunOptions as RunOptions
from suite.grid.stages import TIMED as TIMED
from suite.grid.stages import Cell as Cell
from suite.grid.stages import Stage as Stage
from suite.grid.stages import stage_option_of as stage_option_of
from suite.grid.stages import timing_group as timing_group
from suite.grid.stages import to_time_with as to_time_with
from suite.registry import REDUCED, why_unsupported
from suite.tables import spec
from suite.tables.spec import Table


@dataclass(frozen=True)
class Grid:
    """Everything that a run is to do, each stage after those that it needs, as far as
    these are to be done too.

    `trainings` are those of all cells, whether they are among the stages or not.
    """

    table: Table
    cells: tuple[Cell, ...]
    stages: tuple[Stage, ...]
    trainings: tuple[Stage, ...]


def plan(options: RunOptions, processes: int = 1) -> Grid:
    """The grid that these options ask for, with its data loaded.

    Without `--data` every row runs on the embedded stand-in of its data set; with it,
    only rows whose data set is given do.

    Args:
        options: what to run.
        processes: that share each training batch.

    Raises:
        InputError: the paper profile without data, data that no row uses, data that
            cannot be read, a model that there is not, or a table without the stages
            asked for.
    """
    table = spec.select_table(options.table, options.rows, options.depth)
    sources = own.sources(table, options.imports)
    cells = tuple(
        Cell(
            row,
            spec.recipe_for(table, row, options.profile, options.epochs, options.steps),
            dataset,
            seed,
            spec.recipe_for(table, row).test_size,
            sources.get(row.model),
        )
        for row, dataset in datasets.load_for_rows(table, options)
        for seed in range(options.seeds)
    )
    if options.only is not None:
        cells = tuple(cell for cell in cells if cell.name in options.only)
    stages: list[Stage] = []
    timed: list[Stage] = []
    for cell in cells:
        train = stages_of.training(cell, options, processes)
        if table.number == 1:
            stages += [train, stages_of.analysis(cell, train)]
            continue
        forms = options.forms if cell.seed == 0 else ("fp32",)
        files = {provider: stages_of.files(cell, train, forms, provider) for provider in options.providers}
        written = {file.key: file for each in files.values() for file in each.values()}
        checks = (
            stages_of.parity(cell, train, files[provider], form, provider, runtime)
            for provider in files
            for form in files[provider]
            for runtime in stages_of.runtimes_to_check(options, provider, form)
        )
        stages += [train, *written.values(), *checks]
        if cell.seed == 0:
            timed += stages_of.timings(cell, train, files, options)
    # Figures that are measured in turns stand together, and those of one network beside each other.
    timed.sort(key=lambda stage: (timing_group(stage), stages_of.comparison_group(stage)))
    if timed:
        whole = [form for form in ("fp32", *REDUCED) if form == "fp32" or form in options.forms]
        pairs = [(provider, form) for provider in options.providers for form in whole]
        timed = [stages_of.peak(*pair) for pair in pairs if not why_unsupported(*pair)] + timed
    stages += timed
    asked = tuple(stage for stage in stages if stage_option_of(stage.kind) in options.stages)
    if stages and not asked:
        legal = join_with_or(name for name in spec.STAGES if name in {stage_option_of(stage.kind) for stage in stages})
        raise InputError(f"--stages {','.join(options.stages)}: {table.label} has no such stage; use {legal}")
    return Grid(table, cells, asked, tuple(stage for stage in stages if stage.kind == "train"))

"""The data sets of a table's rows: those given by a path, and the embedded ones in the
place of others."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from suite.errors import InputError
from suite.grid.run_options import RunOptions
from suite.registry import STAND_INS, Triple, stand_in
from suite.tables import spec
from suite.tables.own import Images, OwnTable
from suite.tables.spec import Row, Table

if TYPE_CHECKING:
    from suite.data.sets import Dataset


def load_for_rows(table: Table, options: RunOptions) -> Iterator[tuple[Row, "Dataset"]]:
    """Each row that can be run, with its data.

    Without `--data` every row of the suite's data sets runs on the embedded stand-in;
    with it, only rows whose data set is given or embedded do. A data set of a user's
    own has its path in the table or by `--data`.

    Raises:
        InputError: data that no row uses or that cannot be read, the paper profile
            without data, or no row is left.
    """
    from suite.data import sets

    wanted = {row.data for row in table.rows}
    for name in options.data:
        if name not in wanted:
            raise InputError(
                f"--data {name}=...: no row to run uses {name}; the rows use {' and '.join(sorted(wanted))}"
            )
    if isinstance(table, OwnTable):
        yield from _of_own(table, options)
        return
    if options.profile == "paper" and not options.data:
        raise InputError(f"--profile paper trains on the paper's data: give {_options_for(wanted)}")
    given = options.data or dict.fromkeys(sorted(wanted))
    loaded = {name: sets.load(name, path) if path else sets.load(STAND_INS[name]) for name, path in given.items()}
    yield from ((row, loaded[row.data]) for row in table.rows if row.data in loaded)


def _of_own(table: OwnTable, options: RunOptions) -> Iterator[tuple[Row, "Dataset"]]:
    from suite.data import sets

    given = {name: Path(images.path) for name, images in table.images.items() if images.path} | dict(options.data)
    on_stand_ins = not options.data and options.profile == "quick"
    found: list[tuple[Row, Dataset]] = []
    for row in table.rows:
        embedded = stand_in(row.data)
        if row.data in given and row.data in table.images:
            dataset = _own(table, row, given[row.data])
        elif row.data in given:
            dataset = sets.load(row.data, given[row.data])
        elif embedded and (embedded == row.data or on_stand_ins):
            dataset = sets.load(embedded)
        else:
            continue
        _check_size(table, row, dataset, options)
        found.append((row, dataset))
    if not found:
        raise InputError(f"{table.place}: no row has its images: give {_options_for(row.data for row in table.rows)}")
    yield from found


def _options_for(names: Iterable[str]) -> str:
    """What to give for data sets, of which one is enough."""
    options = [f"--data {name}=PATH" for name in sorted(set(names))]
    return " ".join(options) + (", or one of them" if len(options) > 1 else "")


def _own(table: OwnTable, row: Row, path: Path) -> "Dataset":
    from suite.data import sets

    images, recipe = table.images[row.data], spec.recipe_for(table, row)
    side = recipe.test_size if recipe.augment == "cifar" else None
    return sets.load_own(row.data, path, *channel_statistics(images), side)


def channel_statistics(images: Images) -> tuple[Triple, Triple]:
    """Mean and std of a data set of a user's own, on the 0-255 scale."""
    mean, std = ((255 * a, 255 * b, 255 * c) for a, b, c in (images.mean, images.std))
    return mean, std


def _check_size(table: Table, row: Row, dataset: "Dataset", options: RunOptions) -> None:
    """CIFAR's transforms take images as they are, which must then be of the size that
    the recipe says."""
    recipe = spec.recipe_for(table, row, options.profile, options.epochs, options.steps)
    held = dataset.test.images
    if recipe.augment != "cifar" or isinstance(held, tuple):
        return
    sides = {recipe.train_size, recipe.test_size, spec.recipe_for(table, row).test_size}
    if sides != {held.shape[1]}:
        raise InputError(
            f"{table.place}: row {row.title!r}: {dataset.name} has {held.shape[1]}x{held.shape[1]} pixels, which "
            f'augment = "cifar" takes as they are; set train_size and test_size to {held.shape[1]}'
        )


def with_downloads(options: RunOptions, folder: Path) -> RunOptions:
    """The options with the data of their rows, as far as not given, fetched into
    `folder`.

    Raises:
        InputError: a data set cannot be fetched.
    """
    from suite.data import sets

    table = spec.select_table(options.table, options.rows, options.depth)
    lacking = sorted({row.data for row in table.rows if row.data in STAND_INS} - set(options.data))
    return dataclasses.replace(
        options, data={**options.data, **{name: sets.download(name, folder) for name in lacking}}
    )

"""The paper's tables as data: frozen records of what is run, read from TOML without
tolerance for typing errors."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any, Literal

from suite.errors import InputError, join_with_or
from suite.registry import STAND_INS
from suite.tables.reading import read
from suite.tables.recipes import Recipe as Recipe
from suite.tables.recipes import change_recipe
from suite.tables.versions import VERSIONS as VERSIONS
from suite.tables.versions import is_outdated as is_outdated
from suite.tables.versions import version_of as version_of

NUMBERS = (1, 2, 3, 4)
# Those with latency beside the errors.
DEPLOYED = (2, 3, 4)

# What a record may hold under `result` and a table may show; errors are in percent.
METRICS = {
    "top1": "error",
    "top5": "top-5 error",
    "top1_10crop": "10-crop error",
    "top5_10crop": "10-crop top-5 error",
    "mean": "mean",
    "std": "deviation",
    "nonzero": "non-zero ratio",
}

# ResNet depths of the CIFAR layout (6 n + 2).
CIFAR_DEPTHS = (20, 32, 44, 56, 110)

# Largest side in pixels of an image that a network is asked to see.
LARGEST_SIDE = 4096

# Parts of a run that may be asked for by themselves, in the order in which they are done; all of them by default.
STAGES = ("train", "export", "parity", "latency", "analyze")

# Greatest logit difference at which an ONNX file in float32 passes for its network, as a share of the greatest logit:
# float32 noise is far below it.
TOLERANCE = 1e-4
# Share of torch's right answers that reduced precision may lose: MLPerf Inference asks for 99 % of the accuracy.
LOSS = 0.01


@dataclass(frozen=True)
class Row:
    """One line of a table: a network, its data set, and what the paper measured.

    Attributes:
        heading: the paper's own words for the row, one for each of the table's
            `headings`.
        model: name of the timm model.
        data: name of a data set.
        paper: the paper's figures by metric (errors in percent); a metric that the
            paper lacks is absent.
        recipe: what this row changes in the table's recipe.
        arguments: further ones of the model, as timm makes it.
        name: what claims and plots call it; empty for the model's.
    """

    heading: tuple[str, ...]
    model: str
    data: str
    paper: Mapping[str, float]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def title(self) -> str:
        """What it is called among the rows of its table."""
        return self.name or self.model

    @property
    def aliases(self) -> tuple[str, ...]:
        """What chooses it: its name, its model, and either with its data."""
        return tuple(dict.fromkeys(each for name in (self.title, self.model) for each in (name, f"{name}@{self.data}")))


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        number: as in the paper.
        title: what the table shows.
        headings: names of the leading columns.
        metrics: the measured columns, keys of `METRICS`.
        seeds: training runs of which the paper reports the median.
        depth: the one depth that all rows share and `--depth` may replace; None where
            rows differ in it.
        recipe: the paper's recipe.
        earlier_quick: what the quick profile has changed in earlier versions, whose
            records still count.
        quick: what the quick profile changes in it, for training and its tests; a
            network is exported, checked and timed for images of the paper's size all
            the same.
        rows: the lines, in the paper's order.
    """

    number: int
    title: str
    headings: tuple[str, ...]
    metrics: tuple[str, ...]
    seeds: int
    recipe: Recipe
    quick: Mapping[str, Any]
    rows: tuple[Row, ...]
    depth: int | None = None
    earlier_quick: tuple[Mapping[str, Any], ...] = ()

    @property
    def own(self) -> bool:
        """Whether it is a user's own (`suite.tables.own`), and not one of the
        paper's."""
        return False

    @property
    def label(self) -> str:
        """What it is called in sentences, as in "table 2"."""
        return f"table {self.number}"

    @property
    def place(self) -> str:
        """Where it is to be mended, at the head of an error: the path of a user's own
        file."""
        return self.label


def load_table(number: int) -> Table:
    """The table of this number, from `suite/tables/`.

    Raises:
        InputError: no such table, or its file is not legal.
    """
    if number not in NUMBERS:
        raise InputError(f"--table {number}: no such table; use {join_with_or(map(str, NUMBERS))}")
    file = resources.files("suite") / "tables" / f"table{number}.toml"
    return parse_table(file.read_text("utf-8"), f"suite/tables/table{number}.toml")


def parse_table(text: str, source: str) -> Table:
    """Read a table from TOML text; `source` names the file in errors.

    Raises:
        InputError: not TOML, an unknown or missing key, a wrong type or an illegal
            value. The message names the file, the place in it and what is legal.
    """
    table = read(Table, text, source)
    for metric in table.metrics:
        if metric not in METRICS:
            raise InputError(f"{source}: metrics: unknown metric {metric!r}; use {join_with_or(METRICS)}")
    for quick in (table.quick, *table.earlier_quick):
        change_recipe(table.recipe, quick, f"{source}: quick")
    for index, row in enumerate(table.rows):
        where = f"{source}: rows[{index}]"
        if row.data not in STAND_INS:
            raise InputError(f"{where}: data: {row.data!r} is not a data set; use {join_with_or(STAND_INS)}")
        check_row(row, table.headings, table.metrics, where)
        if table.depth and not row.model.startswith(f"resnet{table.depth}_"):
            raise InputError(f"{where}: model {row.model!r} is not of the table's depth {table.depth}")
        change_recipe(table.recipe, row.recipe, f"{where}: recipe")
    return table


def check_row(row: Row, headings: Sequence[str], metrics: Sequence[str], where: str) -> None:
    """Hold a row against the columns of its table.

    Raises:
        InputError: it has more or fewer headings than the table, or a figure that is
            none of the table's metrics.
    """
    if len(row.heading) != len(headings):
        raise InputError(f"{where}: heading has {len(row.heading)} entries, headings {len(headings)}")
    if unknown := set(row.paper) - set(metrics):
        raise InputError(f"{where}: paper: unknown key {min(unknown)!r}; use {join_with_or(metrics)}")


def select_table(which: int | Table, globs: Sequence[str] = (), depth: int | None = None) -> Table:
    """A table, of the paper's by its number, with other nets (`with_depth`) and with
    some of its rows (`with_rows`), where asked for."""
    table = load_table(which) if isinstance(which, int) else which
    if depth is not None:
        table = with_depth(table, depth)
    return with_rows(table, globs) if globs else table


def with_depth(table: Table, depth: int) -> Table:
    """The table with smaller or larger nets: every row's depth replaced, the title
    saying so.

    Raises:
        InputError: the rows of this table have no common depth.
    """
    if table.depth is None:
        why = "a table of your own has the models that it names"
        if not table.own:
            why = f"the rows of {table.label} differ in depth"
        raise InputError(f"--depth is only for tables 1, 2 and 3; {why}")
    if depth == table.depth:
        return table
    rows = tuple(
        dataclasses.replace(row, model=row.model.replace(f"resnet{table.depth}_", f"resnet{depth}_"))
        for row in table.rows
    )
    title = f"{table.title} - run with ResNet-{depth}, the paper's figures are of ResNet-{table.depth}"
    return dataclasses.replace(table, rows=rows, title=title, depth=depth)


def with_rows(table: Table, globs: Sequence[str]) -> Table:
    """The table with only those rows whose name or model, alone or with `@data`,
    matches one of the globs.

    Raises:
        InputError: a glob matches no row.
    """
    names = [(row, row.aliases) for row in table.rows]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for _, aliases in names for name in aliases):
            models = ", ".join(dict.fromkeys(row.title for row in table.rows))
            where = f"{table.label}{_at_another_depth(table, glob)}"
            raise InputError(
                f"--rows: {glob!r} matches no row of {where}; its {'rows' if table.own else 'models'} are {models}"
            )
    rows = tuple(row for row, aliases in names if any(fnmatchcase(name, glob) for name in aliases for glob in globs))
    return dataclasses.replace(table, rows=rows)


def is_deployed(which: int | Table) -> bool:
    """Whether a table has latency beside its errors, as all but the paper's first
    have."""
    return not isinstance(which, int) or which in DEPLOYED


def _at_another_depth(table: Table, glob: str) -> str:
    """What to say of a glob that matches rows of the table with other nets."""
    for depth in CIFAR_DEPTHS if table.depth else ():
        rows = with_depth(table, depth).rows
        if any(fnmatchcase(name, glob) for row in rows for name in row.aliases):
            return f" with ResNet-{table.depth}, but some with ResNet-{depth}: add --depth {depth}"
    return ""


def recipe_for(
    table: Table,
    row: Row,
    profile: Literal["quick", "paper"] = "paper",
    epochs: int | None = None,
    steps: int | None = None,
) -> Recipe:
    """The recipe of one row.

    `epochs` asks for whole epochs: the paper's recipe over that many, whatever the
    profile, so that the quick profile's shortcuts do not apply. `steps` limits the
    steps of either.
    """
    changes = dict(row.recipe)
    if profile == "quick" and epochs is None:
        changes |= table.quick
    recipe = dataclasses.replace(table.recipe, **changes)
    if epochs is not None:
        recipe = recipe.for_epochs(epochs)
    return recipe if steps is None else dataclasses.replace(recipe, max_steps=steps)

"""The paper's tables as data: frozen records of what is run, read from TOML without tolerance for typing errors."""

import dataclasses
import math
import tomllib
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from suite.errors import InputError
from suite.registry import STAND_INS
from suite.tables.versions import VERSIONS as VERSIONS
from suite.tables.versions import outdated as outdated
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

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """How one network is trained and tested. The optimiser is SGD with Nesterov momentum, without dampening.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step; the last, smaller batch of an epoch is kept.
        learning_rate: its initial value.
        milestones: 1-based epochs from which on the learning rate is a tenth of what it was before.
        momentum, weight_decay: of SGD; the decay applies to every parameter.
        augment: the transforms, "cifar" or "imagenet" (see `suite.data.augment`).
        train_size, test_size: side of the square that the network sees, in pixels.
        resize: "exact" (the paper's interpolation) or "fast" (a library's); only for "imagenet".
        ten_crop: also test on ten crops an image, summing logits.
        max_steps: end training after so many steps; None for no such limit.
        max_test_images: test on so many images, evenly spaced over the set; None for all.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...]
    momentum: float
    weight_decay: float
    augment: Literal["cifar", "imagenet"]
    train_size: int
    test_size: int
    resize: Literal["exact", "fast"] = "exact"
    ten_crop: bool = False
    max_steps: int | None = None
    max_test_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "train_size", "test_size"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_steps", "max_test_images"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        rate = self.learning_rate
        _require(0 < rate < math.inf, f"learning_rate must be positive and finite, not {rate}")
        _require(0 <= self.momentum < 1, f"momentum must be in [0, 1), not {self.momentum}")
        _require(0 <= self.weight_decay < math.inf, f"weight_decay must be 0 or more, not {self.weight_decay}")
        ordered = list(self.milestones) == sorted(set(self.milestones))
        _require(ordered and all(m >= 1 for m in self.milestones), "milestones must rise from 1 or more")

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of a 1-based epoch."""
        return self.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)

    def steps(self, images: int) -> int:
        """Training steps on a set of so many images."""
        steps = self.epochs * self.steps_an_epoch(images)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def steps_an_epoch(self, images: int) -> int:
        """Training steps for each of so many images once, the last and smaller batch among them."""
        return -(-images // self.batch_size)

    def for_epochs(self, epochs: int) -> "Recipe":
        """This recipe over another number of epochs, the milestones moved in proportion.

        A milestone keeps its share of epochs before it, to the nearest whole epoch.
        """
        scaled = {1 + round((milestone - 1) * epochs / self.epochs) for milestone in self.milestones}
        return dataclasses.replace(self, epochs=epochs, milestones=tuple(sorted(scaled)))


@dataclass(frozen=True)
class Row:
    """One line of a table: a network, its data set, and what the paper measured.

    Attributes:
        heading: the paper's own words for the row, one for each of the table's `headings`.
        model: name of the timm model.
        data: name of a data set that has an embedded stand-in.
        paper: the paper's figures by metric (errors in percent); a metric that the paper lacks is absent.
        recipe: what this row changes in the table's recipe.
    """

    heading: tuple[str, ...]
    model: str
    data: str
    paper: Mapping[str, float]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.data in STAND_INS, f"data: {self.data!r} is not legal; legal: {', '.join(map(repr, STAND_INS))}")


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        number: as in the paper.
        title: what the table shows.
        headings: names of the leading columns.
        metrics: the measured columns, keys of `METRICS`.
        seeds: training runs of which the paper reports the median.
        depth: the one depth that all rows share and `--depth` may replace; None where rows differ in it.
        recipe: the paper's recipe.
        earlier_quick: what the quick profile has changed in earlier versions, whose records still count.
        quick: what the quick profile changes in it, for training and its tests; a network is exported, checked and
            timed for images of the paper's size all the same.
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


def load_table(number: int) -> Table:
    """The table of this number, from `suite/tables/`.

    Raises:
        InputError: no such table, or its file is not legal.
    """
    if number not in NUMBERS:
        raise InputError(f"--table {number}: legal tables are {', '.join(map(str, NUMBERS))}")
    file = resources.files("suite") / "tables" / f"table{number}.toml"
    return parse_table(file.read_text("utf-8"), f"suite/tables/table{number}.toml")


def parse_table(text: str, source: str) -> Table:
    """Read a table from TOML text; `source` names the file in errors.

    Raises:
        InputError: not TOML, an unknown or missing key, a wrong type or an illegal value. The message names
            the file, the place in it and what is legal.
    """
    try:
        table = _build(Table, tomllib.loads(text), source)
    except InputError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:  # of numbers and nesting that Python cannot hold, too
        raise InputError(f"{source}: not valid TOML: {error}") from None
    for metric in table.metrics:
        if metric not in METRICS:
            raise InputError(f"{source}: metrics: unknown metric {metric!r}; legal: {', '.join(METRICS)}")
    for quick in (table.quick, *table.earlier_quick):
        _changed(table.recipe, quick, f"{source}: quick")
    for index, row in enumerate(table.rows):
        where = f"{source}: rows[{index}]"
        if len(row.heading) != len(table.headings):
            raise InputError(f"{where}: heading has {len(row.heading)} entries, headings {len(table.headings)}")
        unknown = set(row.paper) - set(table.metrics)
        if unknown:
            raise InputError(f"{where}: paper: unknown key {min(unknown)!r}; legal: {', '.join(table.metrics)}")
        if table.depth and not row.model.startswith(f"resnet{table.depth}_"):
            raise InputError(f"{where}: model {row.model!r} is not of the table's depth {table.depth}")
        _changed(table.recipe, row.recipe, f"{where}: recipe")
    return table


def selected(number: int, globs: Sequence[str] = (), depth: int | None = None) -> Table:
    """A table by its number, with other nets (`at_depth`) and with some of its rows (`matching`), where asked for."""
    table = load_table(number)
    if depth is not None:
        table = at_depth(table, depth)
    return matching(table, globs) if globs else table


def at_depth(table: Table, depth: int) -> Table:
    """The table with smaller or larger nets: every row's depth replaced, the title saying so.

    Raises:
        InputError: the rows of this table have no common depth.
    """
    if table.depth is None:
        raise InputError(f"--depth: the rows of table {table.number} differ in depth; legal for tables 1, 2 and 3")
    rows = tuple(
        dataclasses.replace(row, model=row.model.replace(f"resnet{table.depth}_", f"resnet{depth}_"))
        for row in table.rows
    )
    title = f"{table.title} - run with ResNet-{depth}, the paper's figures are of ResNet-{table.depth}"
    return dataclasses.replace(table, rows=rows, title=title, depth=depth)


def matching(table: Table, globs: Sequence[str]) -> Table:
    """The table with only those rows whose model, or `model@data`, matches one of the globs.

    Raises:
        InputError: a glob matches no row.
    """
    names = [(row, (row.model, f"{row.model}@{row.data}")) for row in table.rows]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for _, aliases in names for name in aliases):
            models = ", ".join(dict.fromkeys(row.model for row in table.rows))
            where = f"table {table.number}{_at_another_depth(table, glob)}"
            raise InputError(f"--rows: {glob!r} matches no row of {where}; its models are {models}")
    rows = tuple(row for row, aliases in names if any(fnmatchcase(name, glob) for name in aliases for glob in globs))
    return dataclasses.replace(table, rows=rows)


def _at_another_depth(table: Table, glob: str) -> str:
    """What to say of a glob that matches rows of the table with other nets."""
    for depth in CIFAR_DEPTHS if table.depth else ():
        rows = at_depth(table, depth).rows
        if any(fnmatchcase(name, glob) for row in rows for name in (row.model, f"{row.model}@{row.data}")):
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

    `epochs` asks for whole epochs: the paper's recipe over that many, whatever the profile, so that the quick
    profile's shortcuts do not apply. `steps` limits the steps of either.
    """
    changes = dict(row.recipe)
    if profile == "quick" and epochs is None:
        changes |= table.quick
    recipe = dataclasses.replace(table.recipe, **changes)
    if epochs is not None:
        recipe = recipe.for_epochs(epochs)
    return recipe if steps is None else dataclasses.replace(recipe, max_steps=steps)


def within_an_epoch(steps: int, batch_size: int, images: int) -> bool:
    """Whether a training ended before it had seen each of its images once, so that its error says nothing."""
    return steps * batch_size < images


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _changed(recipe: Recipe, changes: Mapping[str, Any], where: str) -> None:
    """Check that `changes` make a legal recipe."""
    _build(Recipe, dataclasses.asdict(recipe) | dict(changes), where)


def _build(cls: type[T], raw: object, where: str) -> T:
    """Make a dataclass of a mapping, refusing unknown keys, missing keys and wrong types."""
    if not isinstance(raw, dict):
        raise InputError(f"{where}: must be a table of keys, not {raw!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise InputError(f"{where}: unknown key {key!r}; legal: {', '.join(fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise InputError(f"{where}: key {name!r} is missing")
    hints = get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in raw.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _convert(hint: Any, value: object, where: str) -> Any:
    """Check a TOML value against a type hint; lists become tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: must be a list, not {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: {value!r} is not legal; legal: {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise InputError(f"{where}: must be a table of keys, not {value!r}")
        return {key: _convert(arguments[1], item, f"{where}: {key!r}") for key, item in value.items()}
    if hint is Any:
        return value
    return _scalar(hint, value, where)


def _scalar(hint: type, value: object, where: str) -> object:
    wanted: Collection[type] = (int, float) if hint is float else (hint,)
    # bool is an int to Python, but not to the reader of a table.
    if type(value) not in wanted or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{where}: must be of type {hint.__name__}, not {value!r}")
    return float(value) if hint is float else value  # type: ignore[arg-type]

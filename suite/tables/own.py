"""A user's own table: rows of any model on any data set, and claims about them, read
from one TOML file.

Nothing is imported here: whether there are the models that it names, `suite.grid.own`
knows.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from suite.errors import InputError, join_with_or
from suite.registry import DATA_SETS
from suite.tables.reading import build, read, require
from suite.tables.recipes import Recipe, change_recipe
from suite.tables.spec import Row, Table, check_row

# Errors, which a table of one's own may show; what is inside networks only the paper's first table does.
ERRORS = ("top1", "top5", "top1_10crop", "top5_10crop")
# Arguments of timm's factory that would read weights from elsewhere, or are the suite's to give.
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "device", "dtype")
# Of ImageNet, which timm takes where nothing is said.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """A data set of one's own: a folder of `train/` and `val/` with a folder of images
    for each class.

    Attributes:
        path: the folder, if `--data` does not give it; relative to the table's file.
        mean, std: of each channel on [0, 1], by which images are normalised; ImageNet's
            by default.
        label: its name in plots; by default that in the table.
    """

    path: str = ""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    label: str = ""

    def __post_init__(self) -> None:
        for name, least in (("mean", "0 to 1"), ("std", "above 0 to 1")):
            values = getattr(self, name)
            legal = all(0 <= value <= 1 and (name == "mean" or value > 0) for value in values)
            require(len(values) == 3 and legal, f"{name}: must be three numbers from {least}, not {list(values)}")


@dataclass(frozen=True)
class Claim:
    """That the figure of one row is less than that of another.

    Attributes:
        left, right: names of rows.
        metric: the error that is compared, one of the table's `metrics`; the first by
            default.
        text: the claim in words.
    """

    left: str
    right: str
    metric: str = ""
    text: str = ""


@dataclass(frozen=True)
class OwnTable(Table):
    """A table of a user's own; of `Table`, `number` is 0.

    Attributes:
        name: the stem of its file.
        path: its file.
        imports: modules that register its models with timm: importable names, or paths
            of .py files.
        images: data sets of its own by name.
        claims: about its rows.
    """

    name: str = ""
    path: Path = Path()
    imports: tuple[str, ...] = ()
    images: Mapping[str, Images] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    @property
    def own(self) -> bool:
        return True

    @property
    def label(self) -> str:
        return self.name

    @property
    def place(self) -> str:
        return str(self.path)

    def row(self, name: str) -> Row:
        """The row that a claim calls so, by its name or `name@data`.

        Raises:
            InputError: there is none, or there are several.
        """
        found = [row for row in self.rows if name in (row.title, f"{row.title}@{row.data}")]
        if not found:
            legal = join_with_or(dict.fromkeys(row.title for row in self.rows))
            raise InputError(
                f"no row is called {name!r}; use {legal}; if the claim is right, correct the row's model or name"
            )
        if len(found) > 1:
            several = join_with_or(f"{row.title}@{row.data}" for row in found)
            raise InputError(f"several rows are called {name!r}; use {several}")
        return found[0]


@dataclass(frozen=True)
class _Line:
    """A row as the file has it."""

    model: str
    data: str
    heading: tuple[str, ...] = ()
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """A table as its file has it."""

    title: str
    recipe: Recipe
    rows: tuple[_Line, ...]
    headings: tuple[str, ...] = ("Network",)
    metrics: tuple[str, ...] = ("top1",)
    seeds: int = 1
    quick: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Images] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    claims: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        require(self.seeds >= 1, f"seeds must be at least 1, not {self.seeds}")
        require(bool(self.rows), "rows: there are none; write one [[rows]] for each network")
        require(bool(self.metrics), f"metrics: there are none; use {join_with_or(ERRORS)}")
        for metric in self.metrics:
            require(metric in ERRORS, f"metrics: unknown metric {metric!r}; use {join_with_or(ERRORS)}")


def load(path: Path) -> OwnTable:
    """Read a table of a user's own.

    Raises:
        InputError: there is no such file, or `parse` refuses it.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text in UTF-8"
        raise InputError(f"{path}: {reason}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> OwnTable:
    """Read a table from the text of its file; what it says of other files is relative
    to the file's folder.

    Raises:
        InputError: not TOML, an unknown or missing key, a wrong type, an illegal value,
            or a claim about no row. The message names the file, the place in it and
            what to do.
    """
    source = str(path)
    file = read(_File, text, source)
    change_recipe(file.recipe, file.quick, f"{source}: quick")
    for name in file.data:
        if name in DATA_SETS:
            raise InputError(f"{source}: data.{name}: is a data set of the suite; give your own another name")
    rows = tuple(_row(file, line, f"{source}: rows[{index}]") for index, line in enumerate(file.rows))
    for (title, data), count in Counter((row.title, row.data) for row in rows).items():
        if count > 1:
            raise InputError(f"{source}: rows: {count} are called {title!r} on {data}; give each a `name` of its own")
    images = {
        name: replace(each, path=_beside(path, each.path) if each.path else "") for name, each in file.data.items()
    }
    imports = tuple(_beside(path, name) if name.endswith(".py") else name for name in file.imports)
    for name, module in zip(file.imports, imports, strict=True):
        if module.endswith(".py") and not Path(module).is_file():
            raise InputError(f"{source}: imports: {name}: no such file beside the table")
    table = OwnTable(
        number=0,
        title=file.title,
        headings=file.headings,
        metrics=file.metrics,
        seeds=file.seeds,
        recipe=file.recipe,
        quick=file.quick,
        rows=rows,
        name=path.stem,
        path=path,
        imports=imports,
        images=images,
        claims=tuple(_claim(file, raw, f"{source}: claims[{index}]") for index, raw in enumerate(file.claims)),
    )
    for index, claim in enumerate(table.claims):
        _check(table, claim, f"{source}: claims[{index}]")
    return table


def _beside(table: Path, name: str) -> str:
    """The absolute path of a file or folder that a table names."""
    return str((table.parent / Path(name).expanduser()).absolute())


def _row(file: _File, line: _Line, where: str) -> Row:
    legal = (*DATA_SETS, *file.data)
    if line.data not in legal:
        raise InputError(
            f"{where}: data: {line.data!r} is not a data set; use {join_with_or(legal)}, or add your own as [data.NAME]"
        )
    row = Row(
        line.heading or (line.name or line.model,),
        line.model,
        line.data,
        line.paper,
        line.recipe,
        line.arguments,
        line.name,
    )
    check_row(row, file.headings, file.metrics, where)
    recipe = change_recipe(file.recipe, line.recipe, f"{where}: recipe")
    change_recipe(recipe, file.quick, f"{where}: recipe")
    crops = [metric for metric in file.metrics if "10crop" in metric]
    if recipe.ten_crop and recipe.augment == "cifar":
        raise InputError(f'{where}: recipe: ten_crop is only for augment = "imagenet"')
    if crops and not recipe.ten_crop:
        raise InputError(f"{where}: recipe: the metric {crops[0]} needs ten_crop = true")
    for name, value in line.arguments.items():
        if name in REFUSED:
            raise InputError(f"{where}: arguments: {name!r} is not allowed; use the model's own arguments")
        if not _is_plain(value):
            raise InputError(f"{where}: arguments: {name!r} must be a number, a text, true, false or a list of these")
    return row


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _claim(file: _File, raw: Any, where: str) -> Claim:
    if isinstance(raw, dict):
        claim = build(Claim, raw, where)
    else:
        names = [name.strip() for name in raw.split("<")] if isinstance(raw, str) else []
        if len(names) != 2 or not all(names):
            raise InputError(f"{where}: {raw!r} is not a claim; write 'LEFT < RIGHT' with the names of two rows")
        claim = Claim(*names)
    metric = claim.metric or file.metrics[0]
    if metric not in file.metrics:
        raise InputError(f"{where}: metric: {metric!r} is not a metric of this table; use {join_with_or(file.metrics)}")
    return Claim(claim.left, claim.right, metric, claim.text)


def _check(table: OwnTable, claim: Claim, where: str) -> None:
    """See to it that a claim is about two rows whose figures may be compared."""
    try:
        left, right = table.row(claim.left), table.row(claim.right)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if left == right:
        raise InputError(f"{where}: both sides are the row {left.title!r}")
    if left.data != right.data:
        raise InputError(
            f"{where}: {claim.left!r} is on {left.data} and {claim.right!r} on {right.data}; use rows on one data set"
        )

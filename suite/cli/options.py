"""What several commands take: types of values that are not click's own, and options."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from suite.errors import InputError, join_with_or
from suite.progress import duration
from suite.registry import PROVIDERS, STAND_INS
from suite.report.formats import FORMATS
from suite.tables import own, spec
from suite.tables.own import OwnTable

RESULTS = Path("results/local")


class Count(click.IntRange):
    """A whole number from 1."""

    name = "N"

    def __init__(self, most: int) -> None:
        super().__init__(1, most)
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number: int = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r:.40} is not a whole number from 1 to {self._most}", param, ctx)
        return number


class Word(click.Choice[str]):
    """One of several words."""

    def __init__(self, legal: Iterable[str]) -> None:
        super().__init__(list(legal))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is not valid; use {join_with_or(self.choices)}", param, ctx)


class Share(click.ParamType[float]):
    """A number from 0."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            self.fail(f"{value!r} is not valid; use 0 or more, as in 1e-4", param, ctx)
        return number


# Of what is planned, started or asked for one by one; and of what is merely counted.
FEW, MANY = Count(10_000), Count(10**9)
LARGEST_BATCH = 10_000


class Choices(click.ParamType[tuple[Any, ...]]):
    """A comma-separated list; each entry is converted by `convert_one` and must be
    legal."""

    def __init__(self, name: str, convert_one: Callable[[str], Any]) -> None:
        self.name = name
        self.convert_one = convert_one

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name  # as it is to be typed; click would write it in capitals

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        entries = [entry.strip() for entry in value.split(",")]
        try:
            return tuple(dict.fromkeys(self.convert_one(entry) for entry in entries))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Location(click.Path):
    """A path, and not an empty text, which would mean the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; give one", param, ctx)
        return super().convert(value, param, ctx)


class Duration(click.ParamType[float]):
    """A time as in 30m, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return duration.parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def list_of(legal: Iterable[str]) -> Choices:
    """A comma-separated list of these names."""
    names = tuple(legal)
    return Choices(",".join(names), lambda text: one_of(text, names))


def one_of(text: str, legal: tuple[str, ...]) -> str:
    """The text if it is legal; else a `ValueError` that says what is."""
    if text not in legal:
        raise ValueError(f"{text!r} is not valid; use {join_with_or(legal)}")
    return text


def batch_size(text: str) -> int:
    """Images a run, from 1."""
    if not text.isdecimal() or not 1 <= float(text) <= LARGEST_BATCH:
        raise ValueError(f"{text!r} is not a batch size; use whole numbers from 1 to {LARGEST_BATCH}, as in 1,8")
    return int(text)


def glob(text: str) -> str:
    """A pattern of `fnmatch`; an empty one would match nothing."""
    if not text:
        raise ValueError("an empty pattern matches no row")
    return text


def data_sets(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """NAME=PATH, repeated; a table of the user's own may have more data sets."""
    table = ctx.params.get("table")
    return data_sets_of(values, table.images if isinstance(table, OwnTable) else ())


def data_sets_of(values: Iterable[str], more: Iterable[str] = ()) -> dict[str, Path]:
    """The paths of data sets by name, those of the suite and `more`, from texts
    NAME=PATH."""
    found: dict[str, Path] = {}
    legal = (*STAND_INS, *more)
    for value in values:
        name, separator, path = value.partition("=")
        if name not in legal or not separator or not path:
            raise InputError(f"--data {value}: must be NAME=PATH, where NAME is {join_with_or(legal)}")
        if name in found:
            raise InputError(f"--data {name} is given twice")
        found[name] = Path(path)
    return found


def folder_of(values: Sequence[str]) -> Path | None:
    """The one folder of images, or file of arrays, of a network that is not this
    project's; None if none is given."""
    if len(values) > 1 or any("=" in value for value in values):
        raise InputError("--data: for a network that is not this project's, give one folder of images or one .npz file")
    return Path(values[0]) if values else None


class AnyTable(click.ParamType[int | OwnTable]):
    """One of the paper's tables by its number, or a user's own by its file."""

    name = "N|FILE.toml"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | OwnTable:
        if isinstance(value, int | OwnTable):  # click may convert a value twice
            return value
        number = int(value) if value.removeprefix("-").isdecimal() else None
        if number in spec.NUMBERS:
            return int(value)
        if number is not None or (not value.endswith(".toml") and not Path(value).is_file()):
            legal = join_with_or([*map(str, spec.NUMBERS), "a TOML file"])
            raise InputError(f"--table {value}: no such table; use {legal}, which `init FILE.toml` writes")
        return own.load(Path(value))


def imports_of(table: int | OwnTable | None, modules: Sequence[str]) -> tuple[str, ...]:
    """The modules that register a table's models: those that it names and others.

    Raises:
        InputError: modules for a table that is not the user's own.
    """
    if isinstance(table, OwnTable):
        return tuple(dict.fromkeys([*table.imports, *modules]))
    if modules:
        raise InputError(f"--import {modules[0]}: is for a table of your own, as in --table my_table.toml")
    return ()


class Percent(click.ParamType[float]):
    """A percentage as in 5%, as a share."""

    name = "N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(str(value).removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share < 100:
            self.fail(f"{value!r} is not a percentage; use 0% or more, as in 5%", param, ctx)
        return share


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The models of the tables at every depth, for the shell, and files."""
    names = [*dict.fromkeys(row.model for table in _tables() for row in table.rows)]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def complete_rows(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The rows of the table and depth that the command line has so far, for the
    shell."""
    before, comma, last = incomplete.rpartition(",")
    asked = ctx.params.get("table"), ctx.params.get("depth")
    tables = [table for table in _tables() if asked[0] in (None, table.number)]
    if isinstance(asked[0], OwnTable):
        tables = [asked[0]]
    elif asked[1]:
        tables = [table for table in tables if table.depth == int(asked[1])]
    elif asked[0]:
        tables = [spec.load_table(int(asked[0]))]
    names = [name for table in tables for row in table.rows for name in row.aliases]
    return [CompletionItem(before + comma + name) for name in dict.fromkeys(names) if name.startswith(last)]


def _tables() -> list[spec.Table]:
    """The paper's tables, those of one depth at each."""
    tables = [spec.load_table(number) for number in spec.NUMBERS]
    return [
        each
        for table in tables
        for each in ([spec.with_depth(table, depth) for depth in spec.CIFAR_DEPTHS] if table.depth else [table])
    ]


table = click.option(
    "--table",
    type=AnyTable(),
    required=True,
    is_eager=True,  # since it says which data sets there are
    help="1, 2, 3 or 4, as in the paper, or the TOML file of a table of your own (`init` writes one).",
)


def one_folder(ctx: click.Context, param: click.Parameter, values: tuple[Path, ...]) -> Path:
    """The value of an option that may be given once.

    Raises:
        InputError: it is given more than once.
    """
    if len(values) > 1:
        raise InputError("--results is given twice, and this command takes one folder; show and report take several")
    return values[0]


results = click.option(
    "--results",
    type=Location(),
    multiple=True,
    default=(RESULTS,),
    show_default=True,
    callback=one_folder,
    help="Folder of the records.",
)
several_results = click.option(
    "--results",
    type=Location(),
    multiple=True,
    default=(RESULTS,),
    show_default=True,
    help="Folder of the records; repeat.",
)
metric = click.option(
    "--metric",
    type=Word(["last", "best"]),
    default="last",
    help="Errors of the last epoch, or the least.",
)
text_format = click.option(
    "--format", "text_format", type=Word(FORMATS), default="github", show_default=True, help="Of the table."
)
depth = click.option(
    "--depth",
    type=Word(map(str, spec.CIFAR_DEPTHS)),
    help="Another depth than 110 for Tables 1, 2 and 3, and for Figure 2.",
)
columns = click.option(
    "--columns",
    type=Choices("NAME,...", str),
    default=(),
    metavar="NAME,...|all",
    help="Columns to show: model, paper, ours, parity, size, latency, speed, peak, single ones as CSV names them, or "
    "all; by default the main ones, which fit a terminal.",
)
rows = click.option(
    "--rows",
    type=Choices("GLOB,...", glob),
    default=(),
    shell_complete=complete_rows,
    help="Only rows whose model or name, alone or with @data, matches, as in 'resnet50_*_bn'.",
)
test_data = click.option(
    "--data",
    multiple=True,
    metavar="NAME=PATH",
    callback=data_sets,
    help=f"{join_with_or(STAND_INS)} instead of the embedded images.",
)
any_data = click.option(
    "--data",
    "texts",
    multiple=True,
    metavar="NAME=PATH|FOLDER|FILE.npz",
    help=f"Images of {join_with_or(STAND_INS)}, of a folder for other networks, or arrays; "
    "else embedded or random ones.",
)
inputs = click.option(
    "--input",
    "given",
    multiple=True,
    metavar="NAME=SHAPE|FILE.npz",
    help="Shape of an input with free dimensions, as ids=1x128, or a file with an array a name; repeat.",
)
modules = click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Module that registers models with timm, by its name or the path of a .py file; repeat.",
)
one_provider = click.option("--provider", type=Word(PROVIDERS), default="cpu", show_default=True)
size = click.option(
    "--size", type=Count(spec.LARGEST_SIDE), help="Side of an image in pixels; by default the model's own."
)

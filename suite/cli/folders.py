"""Results folders that a user names, and the page that is written of them."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from suite import env
from suite.cli.options import imports_of
from suite.errors import InputError, join_with_or
from suite.tables import spec
from suite.tables.own import OwnTable
from suite.tables.spec import Table

if TYPE_CHECKING:
    from suite.results.store import Store


def require_no_file(results: Path) -> None:
    """Refuse a folder to write results in that is a file, or would be in one.

    Raises:
        InputError: it is one of these.
    """
    there = next((path for path in (results, *results.parents) if path.exists()), None)
    if there and not there.is_dir():
        raise InputError(f"--results {results}: {'is no folder' if there == results else f'{there} is no folder'}")


def require_results(results: Path) -> None:
    """Refuse what is no results folder, and a folder of such folders, in which nothing
    would be found. An empty one is one in which nothing was measured yet.

    Raises:
        InputError: it is one of these.
    """
    from suite.results.folder import INSIDE

    if not results.is_dir():
        raise InputError(f"--results {results}: {'is no folder' if results.exists() else 'no such folder'}")
    records = results / "records"
    if records.is_dir():
        return
    if records.exists():
        raise InputError(f"--results {results}: {records} is to be a folder, and is a file; is it a results folder?")
    inside = sorted(str(path.parent) for path in results.glob("*/records"))
    if inside:
        raise InputError(f"--results {results}: holds no records, but folders that do; give {join_with_or(inside)}")
    names = {path.name for path in results.iterdir() if not path.name.startswith(".")}
    if names and names.isdisjoint(INSIDE) and not any(re.fullmatch("report(-.+)?", name) for name in names):
        raise InputError(f"--results {results}: holds no records; is it a results folder?")


def require_results_if_given(results: Path) -> None:
    """Without records everything is missing, which is news of the usual folder
    alone."""
    source = click.get_current_context().get_parameter_source("results")
    if results.exists() or source is not click.core.ParameterSource.DEFAULT:
        require_results(results)


def runs_at_other_depths(table: Table, store: "Store") -> Iterator[str]:
    """What to say where a table has rows without a run, but the folder has runs of it
    with nets of another depth."""
    if table.depth is None or not store.root.is_dir():
        return
    there = {name.rpartition("-")[0] for name in store.names("train")}
    if there.issuperset(row.model for row in table.rows):
        return
    for other in spec.CIFAR_DEPTHS:
        if other != table.depth and there & {row.model for row in spec.with_depth(table, other).rows}:
            how = f"--depth {other}" if other != spec.load_table(table.number).depth else "no --depth"
            yield f"{store.root} has runs of ResNet-{other} that this table leaves out: give {how} to see them"


def under_way(store: "Store") -> Iterator[str]:
    """What to say where a table is printed of a folder that somebody is at work on."""
    from suite.grid.claims import Claims

    claims = []
    with contextlib.suppress(OSError):  # what one may not read is no reason to print no table
        claims = Claims(store.root).under_way()
    if claims:
        stages = f"{len(claims)} stage{'s are' if len(claims) > 1 else ' is'}"
        # Whether a process of another machine is alive shows only to who looks for a minute.
        others = dict.fromkeys(claim.holder.host for claim in claims if not claim.holder.is_here)
        unless = f", unless the work on {', '.join(others)} has been killed" if others else ""
        how = env.typed(["status", "--results", str(store.root)])
        yield f"{stages} under way in {store.root}, and stored when done{unless}; how far: {how}"


def check_modules(table: int | OwnTable | None, modules: Sequence[str]) -> tuple[str, ...]:
    """The modules of a table that is to be shown, of which none is imported.

    Raises:
        InputError: modules for a table that is not the user's own, or a model that
            there is not.
    """
    imports = imports_of(table, modules)
    if isinstance(table, OwnTable) and not imports:
        from suite.grid import own

        own.check_names(table)
    return imports


class CannotWriteError(InputError):
    """The page cannot be written where it was to be."""


def write_page(
    results: Sequence[Path],
    out: Path | None,
    metric: Any,
    table: int | OwnTable | None = None,
    imports: Sequence[str] = (),
) -> Path:
    """Write the page of the paper's tables, or of a user's own, and tell where it is.

    Raises:
        CannotWriteError: it cannot be written there; one line, with the remedy.
    """
    from suite.report import page
    from suite.results.store import Store

    of = table if isinstance(table, OwnTable) else None
    elsewhere = "" if out else "; to have it elsewhere: report --out FOLDER"
    out = out or results[0] / (f"report-{of.name}" if of else "report")
    try:
        return page.write([Store(folder) for folder in results], out, metric, of, imports)
    except OSError as error:
        raise CannotWriteError(f"{out}: cannot write the report there: {error.strerror}{elsewhere}") from None

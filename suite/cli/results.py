"""Commands for results: tables, the page, status, verification and comparison; and
lists of what may be named."""

from importlib import resources
from pathlib import Path
from typing import Any

import click

from suite import env
from suite.cli import folders, options
from suite.errors import InputError
from suite.files import choose_that_fits, printable, terminal_width, wrap, write
from suite.registry import DATA_SETS, STAND_INS
from suite.report.render import render, select_columns
from suite.tables import spec
from suite.tables.own import OwnTable

PUBLISHED = Path("results", "published")


@click.command(short_help="Print a table from what is stored.")
@options.table
@options.modules
@options.rows
@options.several_results
@options.depth
@options.metric
@options.columns
@options.text_format
def show(
    table: int | OwnTable,
    modules: tuple[str, ...],
    rows: tuple[str, ...],
    results: tuple[Path, ...],
    depth: str | None,
    metric: Any,
    columns: tuple[str, ...],
    text_format: str,
) -> int:
    """Print a table from the most complete records of each row."""
    from suite.report import tables as report
    from suite.report.runs import Records
    from suite.results.store import Store

    for folder in results:
        folders.require_results_if_given(folder)
    imports = folders.check_modules(table, modules)
    wanted, stores = spec.select_table(table, rows, int(depth) if depth else None), [Store(each) for each in results]
    records = Records(stores, {row.model for row in wanted.rows}, imports=imports)
    click.echo(render(select_columns(report.build(wanted, records, metric), columns), text_format), nl=False)
    for line in records.contradictions:
        click.echo(line, err=True)
    for store in stores:
        for line in [*folders.runs_at_other_depths(wanted, store), *folders.under_way(store)]:
            click.echo(line, err=True)
    return 0


@click.command(short_help="Write the example of a table of your own.")
@click.argument("file", type=options.Location(), metavar="FILE.toml")
def init(file: Path) -> int:
    """Write a commented example of a table of one's own, which runs on embedded images
    within three minutes."""
    if file.suffix != ".toml":
        raise InputError(
            f"{file}: is to be a TOML file, whose name ends in .toml, as in {file.stem or 'my_table'}.toml"
        )
    if file.exists():
        raise InputError(f"{file}: is there already; give another name")
    if not file.parent.is_dir():
        raise InputError(f"{file.parent}: no such folder")
    try:
        write(file, (resources.files("suite") / "tables" / "example.toml").read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot write there: {error.strerror}") from None
    click.echo(f"{file}: written; next: {env.typed(['run', '--table', str(file)])}")
    return 0


@click.command("status", short_help="Say how far the runs on a folder are.")
@options.results
def status_(results: Path) -> int:
    """Say how far the runs on a folder are: done, under way and by whom, failed and
    why, and about how long is left."""
    from suite.grid import status
    from suite.results.store import Store

    folders.require_results_if_given(results)
    store = Store(results)
    records = sum(len(store.names(stage)) for stage in store.stages())
    said = status.render(status.read(store), records, f"in {results}", terminal_width())
    click.echo(printable(said, keep="\n"), nl=False)
    return 0


@click.command("report", short_help="Write a page of all tables, plots and provenance.")
@options.several_results
@click.option(
    "--out", type=options.Location(), help="Folder to write; by default report/ in the first folder of records."
)
@click.option(
    "--table",
    type=options.AnyTable(),
    help="The TOML file of a table of your own, for a page of it alone, by default in report-NAME/.",
)
@options.modules
@options.metric
@click.option("--open", "opened", is_flag=True, help="Show it in the browser.")
def report_(
    results: tuple[Path, ...],
    out: Path | None,
    table: int | OwnTable | None,
    modules: tuple[str, ...],
    metric: Any,
    opened: bool,
) -> int:
    """Write a page with the tables, plots and provenance of all records, and the same
    as plain files beside it."""
    if isinstance(table, int):
        raise InputError(
            f"--table {table}: the page has all of the paper's tables; give the TOML file of a table of your own"
        )
    for folder in results:
        folders.require_results(folder)
    imports = folders.check_modules(table, modules)
    path = folders.write_page(results, out, metric, table, imports)
    click.echo(path)
    if opened:
        click.launch(str(path))
    return 0


@click.command("list", short_help="Print the models, tables, data sets or published weights.")
@click.argument("what", type=options.Word(["models", "tables", "data", "weights"]))
@click.option(
    "--results",
    type=options.Location(),
    multiple=True,
    default=(PUBLISHED,),
    show_default=True,
    callback=options.one_folder,
    help="Of weights: what holds the results folders.",
)
@click.option("--format", "text_format", type=options.Word(["github", "json"]), default="github", help="Of weights.")
def list_(what: str, results: Path, text_format: str) -> int:
    """Print the models, the tables, the data sets, or the weights that are published,
    as timm loads them."""
    if what != "weights":
        for name, option in (("results", "--results"), ("text_format", "--format")):
            if click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
                raise InputError(f"{option} is only for list weights")
    if what == "weights":
        from suite.inference import names
        from suite.report import formats
        from suite.results import weights

        # Beside the package is where timm finds them, whatever folder one works in.
        found = weights.find_weights(names.PUBLISHED if results == PUBLISHED and not results.is_dir() else results)
        if text_format == "json":
            click.echo(formats.to_json({"weights": found}), nl=False)
        else:
            both = (weights.to_rows(found, brief) for brief in (False, True))
            click.echo(choose_that_fits(formats.to_grid(*each, text_format, floatfmt=".2f") for each in both))
        return 0
    if what == "models":
        import timm

        import models  # noqa: F401 - registers the networks with timm

        lines = timm.list_models(module="crelu_resnet")
    elif what == "tables":
        tables = map(spec.load_table, spec.NUMBERS)
        lines = [f"{table.number}  {len(table.rows):2} rows  {table.title}" for table in tables]
    else:
        width = max(map(len, DATA_SETS))
        lines = [
            f"{name:{width}} given by --data {name}=PATH; stand-in: {stand_in}" for name, stand_in in STAND_INS.items()
        ]
        lines += [f"{name:{width}} embedded" for name in DATA_SETS if name not in STAND_INS]
    click.echo("\n".join(lines))
    return 0


@click.command(short_help="Hash every record and file anew.")
@options.results
@click.option("--without-files", is_flag=True, help="Weights and ONNX files may be missing.")
@click.option(
    "--rewrite", is_flag=True, help="First write records of earlier layouts anew in today's, each proved to be equal."
)
def verify(results: Path, without_files: bool, rewrite: bool) -> int:
    """Read and hash all records and files of a results folder anew; exit code 1 if one
    is damaged, missing or odd."""
    from suite import progress
    from suite.results import verify as verifying

    folders.require_results_if_given(results)
    display = progress.display(1 + rewrite)
    try:
        if rewrite:
            from suite.results import compact
            from suite.results.store import Store

            with display.stage(f"rewrite {results}") as step:
                click.echo(compact.rewrite(Store(results), step))
        with display.stage(f"verify {results}") as step:
            found = verifying.verify(results, step, without_files)
    finally:
        display.close()
    for problem in found.problems:
        click.echo(problem)
    click.echo(found.summary)
    return 1 if found.problems else 0


@click.command(short_help="Remove what a results folder need not keep.")
@click.argument("what", nargs=-1, type=options.Word(["quick", "onnx", "checkpoints"]))
@options.results
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def clean(what: tuple[str, ...], results: Path, dry_run: bool) -> int:
    """Remove files by what they are for; records stay, and with them every figure.

    \b
    quick        weights and ONNX files of runs shorter than an epoch; this is what is meant where nothing is named
    onnx         ONNX files of other runs, which are exported again from their weights when something needs them
    checkpoints  of trainings that were stopped, which then begin anew

    What a stage under way or an unfinished command has still to do with is left.
    """
    from suite.grid import cleaning
    from suite.results.store import Store

    folders.require_results_if_given(results)
    store = Store(results)
    if not dry_run:
        store.check()
    everything = cleaning.find(store)
    found = [each for each in everything if not each.needed]
    these = [each for each in found if each.kind in (what or cleaning.USUAL)]
    if not dry_run and results.is_dir():
        store.sweep()
        cleaning.remove(store, these)
    for kind, words in cleaning.KINDS.items():
        of_kind = [each for each in found if each.kind == kind]
        done = "kept" if kind not in (what or cleaning.USUAL) else "to be removed" if dry_run else "removed"
        size = sum(each.bytes for each in of_kind)
        needed = sum(each.bytes for each in everything if each.kind == kind and each.needed)
        if needed:
            words += f"; {needed / 1e6:,.1f} MB more are needed by a command that is not finished: status names it"
        noun = "folder " if len(of_kind) == 1 else "folders"
        line = f"{kind:11}  {len(of_kind):5} {noun}  {size / 1e6:9,.1f} MB  {done:13}  {words}"
        click.echo(wrap(line, terminal_width(), indent=13 * " "))
    return 0


@click.command(short_help="Ratios of latencies, before and after.")
@click.argument("a", type=options.Location())
@click.argument("b", type=options.Location())
@click.option(
    "--fail-above", type=options.Percent(), help="Exit with 1 if a cell of B is slower than in A by more than this."
)
@click.option("--all", "everything", is_flag=True, help="Name each cell that could not be compared.")
def compare(a: Path, b: Path, fail_above: float | None, everything: bool) -> int:
    """Compare the latencies of two results folders, or of two files by
    pytest-benchmark: B over A, cell by cell.

    Exit code 1 also where a cell of A is missing in B, or was measured on another
    machine, with or without --fail-above; cells that only B has are no failure.
    """
    from suite.results import compare as comparing

    comparison = comparing.compare(a, b, fail_above)
    click.echo(printable(comparing.render(comparison, terminal_width(), everything), keep="\n"), nl=False)
    return 1 if comparison.failures else 0

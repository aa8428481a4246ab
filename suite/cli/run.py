"""`suite run`: do what a table lacks, and print it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from suite import env
from suite.cli import folders, options
from suite.cli import options as opts  # which a function's argument of that name hides
from suite.errors import InputError, join_with_or
from suite.files import printable
from suite.registry import FORMS, PROVIDERS, RUNTIMES, STAND_INS
from suite.report.render import check_names, render, select_columns
from suite.tables import spec
from suite.tables.own import OwnTable

if TYPE_CHECKING:
    from suite.grid.plan import RunOptions
    from suite.grid.runner import RunSummary

# Seconds after which a dry run begins to measure no other network.
DRY_RUN = 20.0

# How the names of columns end that a table gets from timings.
MEASURED = ("_ms", "_images_per_s", "_peak_percent")

# What a quick run times unless it is told otherwise: what its table shows.
QUICK = {"runtimes": ("onnxruntime",), "batch_sizes": (1,)}


@click.command(short_help="Do what a table lacks, and print it.")
@options.table
@options.modules
@click.option(
    "--profile",
    type=options.Word(["quick", "paper"]),
    default="quick",
    show_default=True,
    help="A few steps with everything else complete, or the paper's recipe.",
)
@options.rows
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=PATH",
    callback=options.data_sets,
    help=f"{join_with_or(STAND_INS)}, or one of your own table; repeat.",
)
@click.option(
    "--data-download",
    type=options.Location(),
    metavar="DIR",
    help="Fetch the CIFAR sets and SVHN, as far as rows use them, into DIR and use them.",
)
@options.results
@click.option(
    "--seeds", type=options.FEW, default=1, show_default=True, help="Training runs a row; errors are medians."
)
@click.option("--epochs", type=options.FEW, help="Whole epochs: the recipe over so many, its milestones in proportion.")
@click.option("--steps", type=options.MANY, help="At most so many training steps.")
@options.depth
@click.option(
    "--device",
    type=options.Word(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto is a GPU where there is one.",
)
@click.option(
    "--precision",
    type=options.Word(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of activations in training; auto is what the device multiplies faster.",
)
@click.option(
    "--compile",
    type=options.Word(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether to train with torch.compile; auto decides from measured steps.",
)
@click.option(
    "--kernels",
    type=options.Word(["auto", "library"]),
    default="auto",
    show_default=True,
    help="Of convolutions, CReLU and BatchNorm in training; auto is our own where they fit: CIFAR's networks in "
    "bfloat16 on a GPU.",
)
@click.option("--pack", type=options.FEW, default=1, show_default=True, help="Train so many cells at the same time.")
@click.option(
    "--workers",
    type=options.FEW,
    help="Processes that share the work, each on its cores or GPU; timings are left to one, alone on the machine. "
    "By default 1, and in a quick run of several rows one for each core. "
    "With ray so many share the cores of each node; with slurm it is the number of jobs.",
)
@click.option(
    "--executor",
    type=options.Word(["local", "ray", "slurm"]),
    default="local",
    show_default=True,
    help="Who does the work: this machine, a Ray cluster or jobs of Slurm, over the same results folder. Timings are "
    "taken on this machine, unless --latency-resource names others.",
)
@click.option("--address", metavar="HOST:PORT", help="Of the Ray cluster; by default one of this machine.")
@click.option(
    "--processes",
    type=options.FEW,
    default=1,
    show_default=True,
    help="With ray: so many train each network together, each on a GPU or a part of the cores of one node.",
)
@click.option(
    "--latency-resource",
    metavar="NAME",
    help="With ray: time on the nodes that have this custom resource, which are to be of one kind; one timing a node.",
)
@click.option("--tensorboard", type=options.Location(), metavar="DIR", help="Write learning curves for TensorBoard.")
@click.option(
    "--providers",
    type=options.list_of(PROVIDERS),
    default="cpu",
    show_default=True,
    help="Of ONNX Runtime, to check and time on.",
)
@click.option(
    "--runtimes",
    type=options.list_of(RUNTIMES),
    help="What to time, and to check files in: openvino computes in float32, openvino.default in what it chooses. By "
    "default onnxruntime, and torch too where a run is not a quick one.",
)
@click.option(
    "--forms",
    type=options.list_of(FORMS),
    default="fp32",
    show_default=True,
    help="Forms of the exported file; fp32 is always among them. plain is without rewrites, to show what they gain.",
)
@click.option(
    "--batch-sizes",
    type=options.Choices("N,...", options.batch_size),
    help="To time at; torch at the smallest alone. By default 1 in a quick run, else 1,8.",
)
@click.option(
    "--timings",
    type=options.Word(["auto", "quick", "thorough"]),
    default="auto",
    show_default=True,
    help="24 bursts of runs for each latency, or 5 short ones; auto follows the profile.",
)
@click.option(
    "--stages",
    type=options.list_of(spec.STAGES),
    default=",".join(spec.STAGES),
    help="Do only these; without this option the same command does the rest, here or elsewhere.",
)
@click.option(
    "--time-limit",
    type=options.Duration(),
    help="End in good order after so much time, as in 8m or 2h; the same command goes on.",
)
@click.option(
    "--keep",
    is_flag=True,
    help="Keep weights and ONNX files of a quick run, which it else removes when all is done; other runs keep theirs.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print cells, what is stored, and time and memory by a short probe; nothing is written.",
)
@click.option(
    "--budget", type=options.Duration(), help="Run only the cells that say most for so much time, as in 30m or 8h."
)
@options.metric
@options.columns
@options.text_format
def run(
    table: int | OwnTable,
    modules: tuple[str, ...],
    data_download: Path | None,
    depth: str | None,
    dry_run: bool,
    budget: float | None,
    time_limit: float | None,
    metric: Any,
    columns: tuple[str, ...],
    text_format: str,
    workers: int | None,
    **options: Any,
) -> int:
    """Train, export, check and time the rows of a table, as far as that is not stored
    yet, and print the table.

    A first try, of two rows: --table 4 --rows 'resnet50_*_bn'
    """
    folders.require_no_file(options["results"])
    from suite.grid import datasets
    from suite.grid import plan as grid

    imports = opts.imports_of(table, modules)
    until = datetime.now(UTC) + timedelta(seconds=time_limit) if time_limit else None
    workers = workers or (0 if options["executor"] == "local" else 1)
    asked = {name: value for name, value in options.items() if value is not None}
    asked |= {"until": until, "workers": workers, "imports": imports}
    chosen = grid.RunOptions(table=table, depth=int(depth) if depth else None, **asked)
    if chosen.is_quick:
        usual: dict[str, Any] = {name: value for name, value in QUICK.items() if name not in asked}
        chosen = replace(chosen, **usual)
    if data_download:
        chosen = datasets.with_downloads(chosen, data_download)
    _check_columns(chosen, columns, metric)
    execute = _executor(chosen)
    if dry_run or budget:
        from suite.grid import estimate, runner

        if chosen.latency_resource is None:
            runner.check_timing(chosen)
        within = DRY_RUN if dry_run and not budget else None
        expected = estimate.estimate_run(
            chosen, budget, lambda text: click.echo(text, err=True), within, keep=not dry_run
        )
        click.echo(expected.render(), err=not dry_run, nl=False)
        if dry_run:
            return 130 if expected.stopped else 0
        chosen = expected.options()
    outcome = execute(chosen)
    if not outcome.speaks:
        return 0
    from suite.report import tables as report
    from suite.results.store import Store

    failed = {kind for kind in spec.VERSIONS if grid.stage_option_of(kind) in chosen.stages}
    store = Store(chosen.results)
    built = report.build(
        outcome.table, store, metric, outcome.trained, failed=failed, forms=chosen.forms, imports=imports
    )
    click.echo(render(select_columns(built, columns), text_format), nl=False)
    try:
        said = f"report: {folders.write_page([chosen.results], None, metric, table, imports)}"
    except folders.CannotWriteError as error:  # all that was asked for is there without it
        said = printable(f"no report: {error}")
    click.echo(said, err=True)
    if outcome.failed:
        count = "1 stage" if outcome.failed == 1 else f"{outcome.failed} stages"
        click.echo(f"{count} failed; the footnotes say why", err=True)
    return 1 if outcome.failed else 0


def _check_columns(options: "RunOptions", names: tuple[str, ...], metric: Any) -> None:
    """Refuse what is no column before hours are spent on its table.

    Raises:
        InputError: a name is no column, and none of a latency that is still to be
            measured either.
    """
    from suite.report import tables as report
    from suite.results.store import Store

    if names:
        table = spec.select_table(options.table, options.rows, options.depth)
        check_names(report.build(table, Store(options.results), metric), names, later=MEASURED)


def _executor(options: "RunOptions") -> Callable[["RunOptions"], "RunSummary"]:
    """What does the work that the options ask for.

    Raises:
        InputError: its package, or a runtime's, is not installed, or the options are
            those of another executor.
    """
    from suite.inference import loaded

    loaded.require(options.runtimes)
    of_ray = {
        "--address": options.address,
        "--processes": options.processes > 1,
        "--latency-resource": options.latency_resource,
    }
    for name, given in of_ray.items():
        if given and options.executor != "ray":
            torchrun = "; here start torchrun --nproc-per-node=N -m suite run" if name == "--processes" else ""
            raise InputError(f"{name}: belongs to --executor ray{torchrun}")
    package = {"ray": "ray", "slurm": "submitit"}.get(options.executor)
    if package:
        env.require_package(package, f"--executor {options.executor}")
    if options.executor == "ray":
        from suite.grid import cluster

        return cluster.run
    if options.executor == "slurm":
        from suite.grid import slurm

        return slurm.run
    from suite.grid import runner

    return runner.run

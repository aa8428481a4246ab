"""The command line: load a table, run what it lacks, render it."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from suite import options, report, spec
from suite.errors import InputError
from suite.files import printable
from suite.render import render
from suite.store import Store

if TYPE_CHECKING:
    from suite.grid import Options
    from suite.runner import Outcome


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def suite() -> None:
    """Residual networks with ReLU or CReLU under six normalisations: train, export to ONNX, check, time, tabulate."""


@suite.command(short_help="Do what a table lacks, and print it.")
@click.option("--table", type=int, required=True, callback=options.table_number, help="1, 2, 3 or 4, as in the paper.")
@click.option(
    "--profile",
    type=click.Choice(["quick", "paper"]),
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
    help="cifar10, cifar100 or imagenet; repeat.",
)
@click.option(
    "--data-download",
    type=options.Location(),
    metavar="DIR",
    help="Fetch the CIFAR sets of the rows into DIR and use them.",
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
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto is a GPU where there is one.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of activations in training; auto is what the device multiplies faster.",
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether to train with torch.compile; auto decides from measured steps.",
)
@click.option(
    "--kernels",
    type=click.Choice(["auto", "library"]),
    default="auto",
    show_default=True,
    help="Of convolutions in training; auto is our own where they fit: CIFAR's networks in bfloat16 on a GPU.",
)
@click.option("--pack", type=options.FEW, default=1, show_default=True, help="Train so many cells at the same time.")
@click.option(
    "--workers",
    type=options.FEW,
    default=1,
    show_default=True,
    help="Processes that share the work, each on its cores or GPU; timings are left to one, alone on the machine. "
    "With ray so many share the cores of each node; with slurm it is the number of jobs.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray", "slurm"]),
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
    type=options.Choices("cpu,cuda,tensorrt", options.provider),
    default="cpu",
    show_default=True,
    help="Of ONNX Runtime, to check and time on.",
)
@click.option(
    "--runtimes",
    type=options.Choices(
        "onnxruntime,torch,torch.compile", lambda text: options.one_of(text, ("onnxruntime", "torch", "torch.compile"))
    ),
    default="onnxruntime,torch",
    show_default=True,
    help="What to time.",
)
@click.option(
    "--forms",
    type=options.Choices("fp32,plain,fp16,int8", lambda text: options.one_of(text, ("fp32", "plain", "fp16", "int8"))),
    default="fp32",
    show_default=True,
    help="Forms of the exported file; fp32 is always among them. plain is without rewrites, to show what they gain.",
)
@click.option(
    "--batch-sizes",
    type=options.Choices("N,...", options.batch_size),
    default="1,8",
    show_default=True,
    help="To time at; torch at the smallest alone.",
)
@click.option(
    "--timings",
    type=click.Choice(["auto", "quick", "thorough"]),
    default="auto",
    show_default=True,
    help="24 bursts of runs for each latency, or 3; auto follows the profile.",
)
@click.option(
    "--stages",
    type=options.Choices("train,export,parity,latency,analyze", options.stage),
    default="train,export,parity,latency,analyze",
    help="Do only these; without this option the same command does the rest, here or elsewhere.",
)
@click.option(
    "--time-limit",
    type=options.Duration(),
    help="End in good order after so much time, as in 8m or 2h; the same command goes on.",
)
@click.option("--dry-run", is_flag=True, help="Print cells, what is stored, and time and memory by a short probe.")
@click.option(
    "--budget", type=options.Duration(), help="Run only the cells that say most for so much time, as in 30m or 8h."
)
@options.metric
@options.form
def run(
    table: int,
    data_download: Path | None,
    depth: str | None,
    dry_run: bool,
    budget: float | None,
    time_limit: float | None,
    metric: Any,
    form: str,
    **options: Any,
) -> int:
    """Train, export, check and time the rows of a table, as far as that is not stored yet, and print the table."""
    from suite import grid

    until = datetime.now(UTC) + timedelta(seconds=time_limit) if time_limit else None
    chosen = grid.Options(table=table, depth=int(depth) if depth else None, until=until, **options)
    if data_download:
        chosen = grid.with_downloads(chosen, data_download)
    execute = _executor(chosen)
    if dry_run or budget:
        from suite import estimate, runner

        if chosen.latency_resource is None:
            runner.check_timing(chosen)
        expected = estimate.expect(chosen, budget, lambda text: click.echo(text, err=True))
        click.echo(expected.render(), err=not dry_run, nl=False)
        if dry_run:
            return 0
        chosen = expected.options()
    outcome = execute(chosen)
    if not outcome.speaks:
        return 0
    asked = {kind for kind in spec.VERSIONS if grid.asked_as(kind) in chosen.stages}
    click.echo(
        render(
            report.build(
                outcome.table, Store(chosen.results), metric, outcome.trained, failed=asked, forms=chosen.forms
            ),
            form,
        ),
        nl=False,
    )
    page = _write_page([chosen.results], chosen.results / "report", metric)
    click.echo(f"report: {page}", err=True)
    if outcome.failed:
        click.echo(f"{outcome.failed} stages failed; the footnotes say why", err=True)
    return 1 if outcome.failed else 0


def _executor(options: "Options") -> Callable[["Options"], "Outcome"]:
    """What does the work that the options ask for.

    Raises:
        InputError: its package is not installed, or the options are those of another executor.
    """
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
    if package and importlib.util.find_spec(package) is None:
        raise InputError(
            f"--executor {options.executor}: needs the package {package}, which is not installed here: "
            f"pip install 'crelu-norm-suite[{options.executor}]'"
        )
    if options.executor == "ray":
        from suite import cluster

        return cluster.run
    if options.executor == "slurm":
        from suite import slurm

        return slurm.run
    from suite import runner

    return runner.run


@suite.command(short_help="Print a table from what is stored.")
@click.option("--table", type=int, required=True, callback=options.table_number, help="1, 2, 3 or 4, as in the paper.")
@options.rows
@options.results
@options.depth
@options.metric
@options.form
def show(table: int, rows: tuple[str, ...], results: Path, depth: str | None, metric: Any, form: str) -> int:
    """Print a table from the records that there are, of each row those that say most."""
    _must_be_there_if_given(results)
    chosen = spec.selected(table, rows, int(depth) if depth else None)
    click.echo(render(report.build(chosen, Store(results), metric), form), nl=False)
    return 0


@suite.command("status", short_help="Say how far the runs on a folder are.")
@options.results
def status_(results: Path) -> int:
    """Say how far the runs on a folder are: done, under way and by whom, failed and why, and about how long is left."""
    from suite import status

    _must_be_there(results)
    click.echo(printable(status.render(status.read(Store(results))), keep="\n"), nl=False)
    return 0


def _must_be_there(results: Path) -> None:
    if not results.is_dir():
        raise InputError(f"--results {results}: {'is no folder' if results.exists() else 'no such folder'}")


def _must_be_there_if_given(results: Path) -> None:
    """Without records everything is missing, which is news of the usual folder alone."""
    source = click.get_current_context().get_parameter_source("results")
    if results.exists() or source is not click.core.ParameterSource.DEFAULT:
        _must_be_there(results)


def _write_page(results: Sequence[Path], out: Path, metric: Any) -> Path:
    from suite import page

    try:
        return page.write([Store(folder) for folder in results], out, metric)
    except OSError as error:
        raise InputError(f"{out}: cannot write the report there: {error.strerror}") from None


@suite.command("report", short_help="Write a page of all tables, plots and provenance.")
@click.option(
    "--results",
    type=options.Location(),
    multiple=True,
    default=(options.RESULTS,),
    show_default=True,
    help="Folders of records; repeat.",
)
@click.option(
    "--out", type=options.Location(), help="Folder to write; by default report/ in the first folder of records."
)
@options.metric
@click.option("--open", "opened", is_flag=True, help="Show it in the browser.")
def report_(results: tuple[Path, ...], out: Path | None, metric: Any, opened: bool) -> int:
    """Write a page with the tables, plots and provenance of all records, and the same as plain files beside it."""
    for folder in results:
        _must_be_there(folder)
    path = _write_page(results, out or results[0] / "report", metric)
    click.echo(path)
    if opened:
        click.launch(str(path))
    return 0


@suite.command("list", short_help="Print the models, tables or data sets.")
@click.argument("what", type=click.Choice(["models", "tables", "data"]))
def list_(what: str) -> int:
    """Print the models, the tables or the data sets that there are."""
    if what == "models":
        import timm

        import models  # noqa: F401 - registers the networks with timm

        lines = timm.list_models(module="crelu_resnet")
    elif what == "tables":
        tables = map(spec.load_table, spec.NUMBERS)
        lines = [f"{table.number}  {len(table.rows):2} rows  {table.title}" for table in tables]
    else:
        lines = [f"{name:9} given by --data {name}=PATH; stand-in: {spec.EMBEDDED[name]}" for name in spec.EMBEDDED]
        lines += [f"{name:9} embedded" for name in spec.EMBEDDED.values()]
    click.echo("\n".join(lines))
    return 0


@suite.command(short_help="Write a network as an ONNX file.")
@click.argument("source", metavar="MODEL|RUN")
@click.argument("out", type=options.Location(), metavar="OUT.onnx")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True)
@options.one_provider
@click.option("--plain", is_flag=True, help="The exporter's own graph, without rewrites.")
@options.size
@options.test_data
def export(
    source: str, out: Path, precision: str, provider: str, plain: bool, size: int | None, data: dict[str, Path]
) -> int:
    """Write a model, or the weights in a run's folder, as the ONNX file that a provider runs fastest.

    A model's name means its initial weights. int8 is calibrated on training images of --data, and fp16 is checked to
    hold the activations that they give.
    """
    from suite import deploy

    if data and precision == "fp32":
        raise InputError("--data: legal only with --precision int8, which is calibrated on it, and fp16, checked on it")
    with deploy.in_one_line(source), deploy.source(source, size) as of:
        result = deploy.export(of, out, precision, provider, plain, data)
    for warning in result.pop("warnings", ()):
        click.echo(printable(f"warning: {source}: {warning}"), err=True)
    click.echo(_listed({"file": out, "weights": "of a run" if of.trained else "initial weights", **result}))
    return 0


@suite.command(short_help="Compare ONNX Runtime with torch on images.")
@click.argument("source", metavar="RUN|MODEL|FILE.onnx")
@click.option("--weights", metavar="RUN|MODEL", help="What FILE was exported from, where it does not say so itself.")
@options.one_provider
@click.option("--images", type=options.MANY, help="So many test images, evenly spaced; by default all.")
@options.test_data
def parity(source: str, weights: str | None, provider: str, images: int | None, data: dict[str, Path]) -> int:
    """Compare ONNX Runtime with torch on test images; exit code 1 if they differ by more than they may."""
    from suite import deploy, parity

    with deploy.in_one_line(source):
        result = deploy.parity(source, weights, data, images, provider)
    for note in result["notes"]:
        click.echo(printable(f"note: {note}"), err=True)
    whose = "a run's weights" if result["trained"] else "initial weights"
    click.echo(f"{result['model']} with {whose}, on {result['data']}\n{parity.render(result)}", nl=False)
    return 0 if result["passed"] else 1


@suite.command(short_help="Print the curves of Figure 2 or 3.")
@click.argument("number", metavar="2|3|normprop", type=click.Choice(["2", "3", "normprop"]))
@options.results
@options.depth
@click.option(
    "--images", type=options.MANY, default=1000, show_default=True, help="Test images for Figure 2, evenly spaced."
)
@options.test_data
@options.form
def figure(number: str, results: Path, depth: str | None, images: int, data: dict[str, Path], form: str) -> int:
    """Print the curves of Figure 2 or 3: of the longest runs in the results folder, else of initial weights.

    normprop is NormProp's promise layer by layer, kept in a plain CNN and broken in a ResNet, with Propositions 1 to 3.
    """
    from suite import deploy, figures

    if number == figures.PROMISE:
        if depth or data:
            raise InputError(
                "--depth, --data: legal only for figure 2; normprop is of initial weights and random images"
            )
        promised, remarks = figures.promise()
        click.echo(figures.render(number, promised, form, remarks), nl=False)
        return 0

    if number == "3" and data:
        raise InputError("--data: legal only for figure 2; figure 3 is of weights alone")
    _must_be_there_if_given(results)

    def say(text: str) -> None:
        click.echo(text, err=True)

    with deploy.in_one_line(f"figure {number}"):
        found = figures.curves(int(number), results, int(depth) if depth else None, data, images, say)
    click.echo(figures.render(int(number), found, form), nl=False)
    return 0


@suite.command(short_help="Say where a file's time goes, and why.")
@click.argument("source", metavar="FILE.onnx|RUN|MODEL")
@options.one_provider
@click.option("--batch-size", type=options.Count(options.LARGEST_BATCH), default=1, show_default=True)
@options.size
def explain(source: str, provider: str, batch_size: int, size: int | None) -> int:
    """Say what ONNX Runtime makes of a file, or of the export of a run or model, and where its time goes."""
    from suite import deploy, explain

    with deploy.in_one_line(source), deploy.onnx_file(source, provider, size) as path:
        found = explain.render(deploy.explain(path, provider, batch_size, size))
    click.echo(printable(found, keep="\n"), nl=False)  # a file's nodes have the names that its maker gave them
    return 0


@suite.command(short_help="Hash every record and file anew.")
@options.results
@click.option("--without-files", is_flag=True, help="Weights and ONNX files may be left out, as of published records.")
@click.option(
    "--rewrite", is_flag=True, help="First write records of earlier forms anew in today's, each proved to be equal."
)
def verify(results: Path, without_files: bool, rewrite: bool) -> int:
    """Read and hash all records and files of a results folder anew; exit code 1 if one is damaged, missing or odd."""
    from suite import progress
    from suite import verify as verifying

    _must_be_there(results)
    display = progress.display(1 + rewrite)
    try:
        if rewrite:
            from suite import compact

            with display.stage(f"rewrite {results}") as step:
                click.echo(compact.rewrite(Store(results), step))
        with display.stage(f"verify {results}") as step:
            found = verifying.verify(results, step, without_files)
    finally:
        display.close()
    for problem in found.problems:
        click.echo(problem)
    looked_at = f"{found.records} records and {found.files} files of {found.bytes:,} bytes"
    if found.left_out:
        looked_at += f", {found.left_out} files left out"
    click.echo(f"{looked_at}: {len(found.problems) or 'no'} problem{'s' if len(found.problems) != 1 else ''}")
    return 1 if found.problems else 0


@suite.command(short_help="Ratios of latencies, before and after.")
@click.argument("a", type=options.Location())
@click.argument("b", type=options.Location())
@click.option(
    "--fail-above", type=options.Percent(), help="Exit with 1 if a cell of B is slower than in A by more than this."
)
def compare(a: Path, b: Path, fail_above: float | None) -> int:
    """Compare the latencies of two results folders, or of two files by pytest-benchmark: B over A, cell by cell.

    Exit code 1 also where a cell of A is missing in B, or was measured on another machine.
    """
    from suite import compare as comparing

    comparison = comparing.compare(a, b, fail_above)
    click.echo(printable(comparing.render(comparison), keep="\n"), nl=False)
    return 1 if comparison.failures else 0


def _listed(content: dict[str, Any]) -> str:
    """One line for each entry, in columns."""
    from tabulate import tabulate

    lines = []
    for name, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{what} {count}" for what, count in value.items() if count)
        elif isinstance(value, list):
            value = len(value)
        elif isinstance(value, float):
            value = f"{value:.6g}"
        lines.append((name.replace("_", " "), value))
    text: str = tabulate(lines, tablefmt="plain", disable_numparse=True)
    return printable(text, keep="\n")


def main() -> NoReturn:
    """Run the command line; exit code 0, 1 (a stage failed), 2 (bad input), 130 (interrupted) or 143 (terminated)."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(suite.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(printable(f"error: {' '.join(error.format_message().split())}"), err=True)
        sys.exit(2)
    except InputError as error:
        click.echo(printable(f"error: {error}"), err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what is finished is kept, and the same command goes on from there", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # A disk that is full or a folder that is gone, where nobody had more to say.
        click.echo(printable(f"error: {error.filename or 'input or output'}: {error.strerror or error}"), err=True)
        sys.exit(2)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()

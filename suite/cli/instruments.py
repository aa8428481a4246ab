"""Commands for any network, whoever made it: time several against each other."""

from pathlib import Path

import click

from suite.cli import options
from suite.errors import InputError
from suite.files import printable
from suite.registry import PROVIDERS, REDUCED, RUNTIMES

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
    help="Import it first: it registers models with timm; repeat.",
)


@click.command("time", short_help="Time any networks against each other.")
@click.argument("names", nargs=-1, required=True, metavar="FILE.onnx|MODEL|RUN ...")
@click.option(
    "--batch-sizes",
    type=options.Choices("N,...", options.batch_size),
    default=(),
    help="Inputs a run; by default 1, or what a file has.",
)
@click.option("--providers", type=options.some_of(PROVIDERS), default="cpu", show_default=True)
@click.option(
    "--runtimes", type=options.some_of(RUNTIMES), default=(), help="By default onnxruntime; of a file no other."
)
@click.option(
    "--precisions",
    type=options.some_of(("fp32", *REDUCED)),
    default=(),
    help="Of models, by default fp32; a file is timed as it is.",
)
@click.option("--threads", type=options.FEW, help="Of a runtime; by default as many as there are cores.")
@inputs
@modules
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds, for a first look.")
@options.form
@click.option(
    "--compare-fail",
    type=options.Percent(),
    help="Exit with 1 if one is slower than the first by more than this, beyond its interval.",
)
def time(
    names: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    providers: tuple[str, ...],
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    threads: int | None,
    given: tuple[str, ...],
    modules: tuple[str, ...],
    quick: bool,
    form: str,
    compare_fail: float | None,
) -> int:
    """Time ONNX files of any maker, models of timm and folders of weights against each other, in turns.

    Each runs in processes of its own. Inputs are drawn, or read from a file; see the documentation of
    `suite.inference.inputs`. Ratios are to the first of the same batch size. Exit code 1 if one could not be timed.
    """
    import tempfile

    from suite import progress
    from suite.grid.machine import Machine
    from suite.inference import contest, entrants, networks
    from suite.inference import inputs as taking
    from suite.report import timings
    from suite.report.render import render

    wanted = entrants.Wanted(runtimes, providers, precisions, batch_sizes, threads, taking.given(given), modules)
    if compare_fail is not None and len(names) < 2 and not (runtimes[1:] or precisions[1:] or providers[1:]):
        raise InputError("--compare-fail: there is nothing to compare; name a second network")
    found = entrants.find(names, wanted)
    display = progress.display(3)
    try:
        with tempfile.TemporaryDirectory() as scratch, networks.in_one_line(", ".join(names)):
            with display.stage("prepare") as step:
                made, remarks = entrants.prepare(found, wanted, Path(scratch), lambda text: step(0, 0, text))
            if not made:
                raise InputError("; ".join(remarks) or "there is nothing to time")
            with Machine(display.note).alone():
                with display.stage("time") as step:
                    outcomes = contest.hold(made, quick, step)
                with display.stage("peak of the machine") as step:
                    contest.against_peak(outcomes, lambda text: step(0, 0, text))
    finally:
        display.close()
    report = timings.table(outcomes, timings.title(outcomes, quick), remarks)
    click.echo(printable(render(report, form), keep="\n"), nl=False)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    slow = contest.slower(outcomes, compare_fail) if compare_fail is not None else []
    for outcome in slow:
        assert outcome.ratio is not None  # what is slow was compared
        ratio, low, high = outcome.ratio
        said = f"{outcome.entrant.name}: {ratio:.3f} ({low:.3f} to {high:.3f}), allowed {1 + (compare_fail or 0):.3f}"
        click.echo(printable(f"slower: {said}"), err=True)
    return 1 if failed or slow else 0

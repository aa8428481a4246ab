"""Commands for any network, whoever made it: time several against each other."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from suite.cli import options
from suite.errors import InputError, join_with_or
from suite.files import printable
from suite.registry import ORT, PROVIDERS, REDUCED, RUNTIMES

if TYPE_CHECKING:
    from suite.inference.contest import Measurement
    from suite.progress import Lines, Steps


@click.command("time", short_help="Time any networks against each other.")
@click.argument("names", nargs=-1, required=True, metavar="FILE.onnx|MODEL|RUN ...")
@click.option(
    "--batch-sizes",
    type=options.Choices("N,...", options.batch_size),
    default=(),
    help="Inputs a run; by default 1, or what a file has.",
)
@click.option("--providers", type=options.list_of(PROVIDERS), default="cpu", show_default=True)
@click.option(
    "--runtimes", type=options.list_of(RUNTIMES), default=(), help="By default onnxruntime; torch is of models alone."
)
@click.option(
    "--precisions",
    type=options.list_of(("fp32", *REDUCED)),
    default=(),
    help="Of models, by default fp32; a file is timed as it is.",
)
@click.option("--threads", type=options.FEW, help="Of a runtime; by default as many as there are cores.")
@options.inputs
@options.modules
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds, for a first look.")
@options.text_format
@click.option(
    "--columns",
    type=options.list_of(("all", "model", "latency", "speed", "peak")),
    default=(),
    help="Of the table, beside the network; by default the main ones, which fit a terminal, and all in other formats.",
)
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
    text_format: str,
    columns: tuple[str, ...],
    compare_fail: float | None,
) -> int:
    """Time ONNX files of any maker, models of timm and folders of weights against each
    other, in turns.

    Each runs in processes of its own. Inputs are drawn, or read from a file; see the
    documentation of `suite.inference.feeds`. Ratios are to the first of the same
    batch size. JSON has each run in nanoseconds too. Exit code 1 if one could not be
    timed, 2 if none could.
    """
    import tempfile

    from suite import progress
    from suite.grid.machine import MachineLock
    from suite.inference import contest, entrants, feeds, networks
    from suite.report import timings
    from suite.report.render import select_columns

    wanted = entrants.ContestOptions(
        runtimes, providers, precisions, batch_sizes, threads, feeds.parse_inputs(given), modules
    )
    if compare_fail is not None and len(names) < 2 and not (runtimes[1:] or precisions[1:] or providers[1:]):
        raise InputError("--compare-fail: there is nothing to compare; name a second network")
    found = entrants.find_subjects(names, wanted)
    display = progress.display(3)
    try:
        with tempfile.TemporaryDirectory() as scratch, networks.errors_in_one_line(", ".join(names)):
            with display.stage("prepare") as bar:
                step = _log_steps(display, bar)
                made, remarks = entrants.prepare_entrants(found, wanted, Path(scratch), lambda text: step(0, 0, text))
            if not made:
                raise InputError("; ".join(remarks) or "there is nothing to time")
            with MachineLock(display.note).alone():
                with display.stage("time") as bar:
                    outcomes = contest.time_in_turns(made, quick, _log_steps(display, bar))
                    _require_figures(outcomes)
                with display.stage("peak of the machine") as bar:
                    step = _log_steps(display, bar)
                    contest.add_peak_shares(outcomes, lambda text: step(0, 0, text))
    finally:
        display.close()
    report = timings.table(outcomes, timings.title(outcomes, quick), remarks)
    if columns or text_format == "github":
        report = select_columns(report, columns)
    click.echo(printable(timings.render(report, outcomes, text_format), keep="\n"), nl=False)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    slow = contest.find_slower(outcomes, compare_fail) if compare_fail is not None else []
    for outcome in slow:
        assert outcome.ratio is not None  # what is slow was compared
        ratio, low, high = outcome.ratio
        said = f"{outcome.entrant.name}: {ratio:.3f} ({low:.3f} to {high:.3f}), allowed {1 + (compare_fail or 0):.3f}"
        click.echo(printable(f"slower: {said}"), err=True)
    return 1 if failed or slow else 0


def _require_figures(outcomes: "list[Measurement]") -> None:
    """Refuse a table without a figure.

    Raises:
        InputError: nothing could be timed; one line.
    """
    if all(outcome.error is not None for outcome in outcomes):
        said = (f"{outcome.entrant.name}: {outcome.error}" for outcome in outcomes)
        raise InputError("; ".join(dict.fromkeys(said)))


@click.command(short_help="Compare any two networks on the same inputs.")
@click.argument("source", metavar="FILE.onnx|MODEL|RUN")
@click.option("--against", metavar="FILE.onnx|MODEL|RUN", help="The other one; by default what SOURCE was made from.")
@click.option(
    "--weights",
    metavar="RUN|MODEL|FILE.safetensors",
    help="What FILE was exported from, where it does not say so itself, or the weights that export was given.",
)
@click.option("--model", metavar="MODEL", help="Whose FILE.safetensors is, where FILE.onnx does not say so itself.")
@options.one_provider
@click.option(
    "--runtime",
    type=options.Word([name for name, runtime in RUNTIMES.items() if runtime.reads_files]),
    default=ORT,
    show_default=True,
    help="That runs SOURCE; a file to compare with is run in onnxruntime.",
)
@click.option("--images", type=options.MANY, help="So many inputs; by default as many as take a minute.")
@options.any_data
@options.inputs
@options.modules
@click.option(
    "--tolerance",
    type=options.Share(),
    help="Difference allowed, as a share of an output's greatest value, by default 1e-4; with --against.",
)
def parity(
    source: str,
    against: str | None,
    weights: str | None,
    model: str | None,
    provider: str,
    runtime: str,
    images: int | None,
    texts: tuple[str, ...],
    given: tuple[str, ...],
    modules: tuple[str, ...],
    tolerance: float | None,
) -> int:
    """Compare two files or models on the same inputs, or a file of this project with
    its network on test images.

    Exit code 1 if they differ by more than they may.
    """
    import contextlib
    import tempfile

    from suite import progress
    from suite.inference import deploy, feeds, loaded, networks, versus
    from suite.inference.agreement import TOLERANCE, render

    loaded.require([runtime])
    if provider not in RUNTIMES[runtime].providers:
        raise InputError(
            f"--provider {provider}: {runtime} does not run on it; use {join_with_or(RUNTIMES[runtime].providers)}"
        )
    pair = versus.find_pair(source, against, weights, model, modules)
    if pair is None:
        if given or tolerance is not None:
            raise InputError("--input and --tolerance are only for --against and models that are not this project's")
        return _parity_of_own(source, weights, provider, runtime, images, options.data_sets_of(texts))
    data = options.folder_of(texts)
    said = feeds.parse_inputs(given)
    deploy.require_provider(provider)
    most = TOLERANCE if tolerance is None else tolerance
    first, second = pair
    if second is not None:
        versus.check(first, second, said, data)
    display = progress.display(1)
    with (
        contextlib.closing(display),
        tempfile.TemporaryDirectory() as scratch,
        networks.errors_in_one_line(source),
        display.stage("parity") as bar,
    ):
        step = _log_steps(display, bar)
        if second is None:
            folder = Path(scratch) / "export"
            folder.mkdir()
            second = versus.export_subject(first, folder, provider, lambda text: step(0, 0, text))
        found = versus.compare_subjects(first, second, said, data, images, provider, most, Path(scratch), step, runtime)
    for note in found.notes:
        click.echo(printable(f"note: {note}"), err=True)
    click.echo(printable(render(found, first.name, second.name, most), keep="\n"), nl=False)
    return 0 if found.passed(most) else 1


def _log_steps(display: "Lines", step: "Steps") -> "Steps":
    """Steps that say what is being done where there is no bar to show it, once each."""
    told: set[str] = set()

    def tell(done: int, total: int, note: str) -> None:
        if note not in told:
            told.add(note)
            display.log(f"{note} ..." if total == 0 else f"{total} {note} ...")
        step(done, total, note)

    return tell


def _parity_of_own(
    source: str, weights: str | None, provider: str, runtime: str, images: int | None, data: dict[str, Path]
) -> int:
    """Compare a runtime with torch on test images, for this project's networks."""
    import contextlib

    from suite import progress
    from suite.inference import deploy, networks, parity

    deploy.require_provider(provider)
    display = progress.display(1)
    with contextlib.closing(display), networks.errors_in_one_line(source), display.stage("parity") as step:
        result = deploy.parity(source, weights, data, images, provider, _log_steps(display, step), runtime)
    for note in result["notes"]:
        click.echo(printable(f"note: {note}"), err=True)
    whose = "a run's weights" if result["trained"] else "initial weights"
    click.echo(f"{result['model']} with {whose}, on {result['data']}\n{parity.render(result)}", nl=False)
    return 0 if result["passed"] else 1

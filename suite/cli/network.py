"""Commands for one network or file: export it, check it, explain it, and print the
curves of Figures 2 and 3."""

from pathlib import Path
from typing import Any

import click

from suite.cli import folders, options
from suite.errors import InputError
from suite.files import printable
from suite.registry import REDUCED

# What a difference is a share of.
SHARES = {
    "difference_from_torch": " of the greatest output",
    "difference_from_fp32": " of the outputs, root mean square over root mean square",
}


@click.command(short_help="Write a network as an ONNX file.")
@click.argument("source", metavar="MODEL|RUN", shell_complete=options.complete_models)
@click.argument("out", type=options.Location(), metavar="OUT.onnx")
@click.option("--precision", type=options.Word(["fp32", *REDUCED]), default="fp32", show_default=True)
@options.one_provider
@click.option("--plain", is_flag=True, help="The default export: the graph as PyTorch's exporter writes it.")
@options.size
@click.option("--weights", type=options.Location(), metavar="FILE.safetensors", help="Of the model.")
@options.modules
@options.any_data
def export(
    source: str,
    out: Path,
    precision: str,
    provider: str,
    plain: bool,
    size: int | None,
    weights: Path | None,
    modules: tuple[str, ...],
    texts: tuple[str, ...],
) -> int:
    """Write a model, this project's or timm's, or the weights in a folder, as the ONNX
    file that a provider runs fastest.

    A model's name means its initial weights, or published ones if it has their tag.
    int8 is calibrated on training images of --data, and fp16 is checked to hold the
    activations that they give.
    """
    from suite.export import zoo
    from suite.inference import deploy, model_files, networks, subjects

    if out.suffix != ".onnx" and not out.is_dir():
        raise InputError(f"{out}: is to be an ONNX file, whose name ends in .onnx, as in {out.stem}.onnx")
    if texts and precision == "fp32":
        raise InputError(
            "--data is only for --precision int8, which is calibrated on it, and fp16, which is checked on it"
        )
    if weights is not None:
        zoo.require_weights(weights)
    network = subjects.find(source, modules).network
    if network is None:
        raise InputError(f"{source}: is no model and no folder with its weights; an ONNX file is exported already")
    ours = network.ours and weights is None
    data = options.data_sets_of(texts) if ours else {}
    with networks.errors_in_one_line(source):
        if ours:
            with networks.find_network(source.removeprefix("local-dir:"), size) as of:
                result = deploy.export(of, out, precision, provider, plain, data, _say)
            result = {"weights": "of a run" if of.trained else "initial weights", **result}
        else:
            folder = options.folder_of(texts)
            result = model_files.export(source, network, out, precision, provider, plain, size, weights, folder, _say)
    for warning in result.pop("warnings", ()):
        click.echo(printable(f"warning: {source}: {warning}"), err=True)
    click.echo(_format_entries({"file": out, **result}))
    return 0


def _say(text: str) -> None:
    click.echo(printable(f"{text} ..."), err=True)


@click.command(short_help="Say where a file's time goes, and why.")
@click.argument("source", metavar="FILE.onnx|RUN|MODEL", shell_complete=options.complete_models)
@options.one_provider
@click.option("--batch-size", type=options.Count(options.LARGEST_BATCH), help="By default 1, or what a file has.")
@options.size
@options.inputs
@options.modules
def explain(
    source: str,
    provider: str,
    batch_size: int | None,
    size: int | None,
    given: tuple[str, ...],
    modules: tuple[str, ...],
) -> int:
    """Say what ONNX Runtime makes of any file, or of the export of a run or model, and
    where its time goes."""
    from suite import env
    from suite.inference import deploy, explain, feeds, networks

    said = feeds.parse_inputs(given)
    with networks.errors_in_one_line(source), deploy.onnx_file(source, provider, size, modules, _say) as path:
        found = explain.render(explain.explain(path, provider, env.available_cores(), batch_size, said))
    click.echo(printable(found, keep="\n"), nl=False)  # a file's nodes have the names that its maker gave them
    return 0


@click.command(short_help="Print the curves of Figure 2 or 3.")
@click.argument("number", metavar="2|3|normprop", type=options.Word(["2", "3", "normprop"]))
@options.results
@options.depth
@click.option(
    "--images", type=options.MANY, default=1000, show_default=True, help="Test images for Figure 2, evenly spaced."
)
@options.test_data
@options.text_format
def figure(number: str, results: Path, depth: str | None, images: int, data: dict[str, Path], text_format: str) -> int:
    """Print the curves of Figure 2 or 3: of the longest runs in the results folder,
    else of initial weights.

    normprop is NormProp's promise layer by layer, kept in a plain CNN and broken in a
    ResNet, with Propositions 1 to 3.
    """
    import contextlib

    from suite import progress
    from suite.inference import networks
    from suite.report import figures

    if number == figures.PROMISE:
        if depth or data:
            raise InputError(
                "--depth and --data are only for figure 2; normprop is of initial weights and random images"
            )
        promised, remarks = figures.promise()
        click.echo(figures.render(number, promised, text_format, remarks), nl=False)
        return 0

    if number == "3" and data:
        raise InputError("--data is only for figure 2; figure 3 is of weights alone")
    folders.require_results_if_given(results)

    asked = int(depth) if depth else None
    display = progress.display(len(figures.models_of_figure(int(number), asked)))
    with contextlib.closing(display), networks.errors_in_one_line(f"figure {number}"):
        found = figures.curves(int(number), results, asked, data, images, display)
    click.echo(figures.render(int(number), found, text_format), nl=False)
    return 0


def _format_entries(content: dict[str, Any]) -> str:
    """One line for each entry, in columns."""
    from tabulate import tabulate

    lines = []
    for name, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{what} {count}" for what, count in value.items() if count)
        elif isinstance(value, list):
            value = len(value)
        elif isinstance(value, float):
            value = f"{value:.6g}{SHARES.get(name, '')}"
        lines.append((name.replace("_", " "), value))
    text: str = tabulate(lines, tablefmt="plain", disable_numparse=True)
    return printable(text, keep="\n")

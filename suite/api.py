"""The instruments from Python, for a file, a name or a torch module of your own:

    from suite import api

    api.export_onnx(net, "net.onnx", shape=(3, 224, 224))
    api.check_parity("net.onnx", net).passed(1e-4)
    first, second = api.time_models(["net.onnx", net], shape=(3, 224, 224))
    print(second.ratio)
    api.explain_model("net.onnx")["expensive"]
    [row.model for row in api.load_table("my_table.toml").rows]

Each does what the command of its name does, and says nothing while it works. The import
raises `InputError` where another package called `models` hides this project's.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite import env
from suite.errors import InputError
from suite.files import name_full_disk
from suite.grid.machine import MachineLock
from suite.grid.own import sources
from suite.inference import contest, entrants, subjects
from suite.inference.agreement import TOLERANCE, Comparison
from suite.inference.contest import Measurement
from suite.inference.feeds import GivenInputs
from suite.tables import own, spec
from suite.tables.spec import Table

if TYPE_CHECKING:
    from torch import nn

    from suite.inference.subjects import Subject

env.require_own_models()


def load_table(source: int | str | Path, *, imports: Sequence[str] = ()) -> Table:
    """Read one of the paper's tables, or a table of one's own, which is checked as
    `python -m suite run` checks it.

    Args:
        source: 1, 2, 3 or 4, or a TOML file.
        imports: modules that register models of the table with timm, beside those that
            it names: importable names, or paths of .py files. They are imported.

    Returns:
        The table, of a file a `suite.tables.own.OwnTable`: its `rows`, its `recipe` and
        the rest.

    Raises:
        InputError: there is no such table, its file is not legal, or there is no model
            of a row's name.
    """
    if isinstance(source, int):
        return spec.load_table(source)
    table = own.load(Path(source))
    sources(table, (*table.imports, *imports))
    return table


def export_onnx(
    model: "str | Path | nn.Module",
    out: str | Path,
    *,
    shape: Sequence[int] = (),
    precision: str = "fp32",
    provider: str = "cpu",
    plain: bool = False,
    weights: str | Path | None = None,
) -> dict[str, Any]:
    """Write a model as an ONNX file, whole or not at all.

    Args:
        model: of timm by name, a folder of its weights, or a module of one input, which
            is exported as in evaluation mode and left as it is.
        out: the file.
        shape: of one input of a module, without the batch, as (3, 224, 224).
        precision: "fp32"; of a name or folder also "fp16" and "int8", for which
            embedded images are used.
        provider: which it is for: "cpu", "cuda" or "tensorrt".
        plain: the default export, without rewrites.
        weights: a file of safetensors for a name.

    Returns:
        What `suite.export.generic.export` says of the file, and `precision`.

    Raises:
        InputError: it cannot be made as asked for, or not be written.
    """
    from suite.inference import model_files, networks

    if isinstance(model, str | Path):
        network = subjects.find(str(model)).network
        if network is None:
            raise InputError(f"{model}: is no model and no folder with its weights; an ONNX file is exported already")
        file = Path(weights) if weights else None
        with networks.errors_in_one_line(str(model)):
            return model_files.export(str(model), network, Path(out), precision, provider, plain, weights=file)
    if precision != "fp32":
        raise InputError(f"precision={precision!r} is not valid for a module; use fp32")
    return _export(model, shape, Path(out), provider, plain) | {"precision": precision}


def check_parity(
    model: "str | Path | nn.Module",
    against: "str | Path | nn.Module",
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    data: str | Path | None = None,
    count: int | None = None,
    provider: str = "cpu",
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Compare two files or models on the same inputs.

    Args:
        model: an ONNX file, a model of timm, a folder of its weights, or a module, to
            compare with a file.
        against: the one that differences are measured against.
        inputs: shapes of inputs with free dimensions, by name.
        data: a folder of images, or an .npz file of arrays; None for random values.
        count: how many inputs; None for as many as take a minute.
        provider: of ONNX Runtime, for files.
        tolerance: greatest difference as a share of scale, beyond which the first node
            that departs is looked for.

    Returns:
        What `suite.inference.agreement.Comparison` holds; `passed(tolerance)` says
        whether they agree.

    Raises:
        InputError: they cannot be compared, or the inputs not be read.
        RuntimeError: one of them cannot be run.
    """
    from suite.inference import versus

    given = GivenInputs({name: tuple(shape) for name, shape in (inputs or {}).items()}, {})
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(_subject(each)) for each in (against, model))
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        where = Path(data) if data is not None else None
        return versus.compare_subjects(first, second, given, where, count, provider, tolerance, Path(scratch))


def time_models(
    models: "Sequence[str | Path | nn.Module]",
    *,
    shape: Sequence[int] = (),
    batch_sizes: Sequence[int] = (),
    providers: Sequence[str] = ("cpu",),
    runtimes: Sequence[str] = (),
    precisions: Sequence[str] = (),
    threads: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
    quick: bool = False,
) -> list[Measurement]:
    """Time files and models against each other, in turns and in processes of their own,
    with the machine to themselves.

    Args:
        models: ONNX files, models of timm, folders of weights, or modules, which are
            exported first.
        shape: of one input of a module, without the batch.
        batch_sizes: empty for what a file has, or 1.
        providers, runtimes, precisions, threads: as those of `python -m suite time`.
        inputs: shapes of inputs with free dimensions, by name.
        quick: fewer and shorter rounds.

    Returns:
        One outcome a line of the command's table: `median` in seconds with its
        interval, `ratio` to the first of the same batch size with its interval,
        `samples`, `error` and the rest of `suite.inference.contest.Measurement`.

    Raises:
        InputError: one of them cannot be run as asked for.
    """
    given = GivenInputs({name: tuple(each) for name, each in (inputs or {}).items()}, {})
    wanted = entrants.ContestOptions(
        tuple(runtimes), tuple(providers), tuple(precisions), tuple(batch_sizes), threads, given
    )
    with tempfile.TemporaryDirectory() as scratch:
        names = []
        for number, model in enumerate(models):
            if isinstance(model, str | Path):
                names.append(str(model))
                continue
            _check_module(model, shape)
            file = Path(scratch) / f"{type(model).__name__}-{number + 1}.onnx"
            _export(model, shape, file, wanted.providers[0], plain=False)
            names.append(str(file))
        made, _ = entrants.prepare_entrants(entrants.find_subjects(names, wanted), wanted, Path(scratch))
        with MachineLock(lambda text: None).alone():
            outcomes = contest.time_in_turns(made, quick)
            contest.add_peak_shares(outcomes)
    return outcomes


def explain_model(
    model: str | Path,
    *,
    provider: str = "cpu",
    batch_size: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """What ONNX Runtime makes of a file, or of the export of a model or folder, and
    where its time goes.

    Returns:
        What `suite.inference.explain.explain` does.

    Raises:
        InputError: there is no such thing, or a dimension of its inputs is not known.
        RuntimeError: the provider cannot run it.
    """
    from suite.inference import deploy, explain

    if not isinstance(model, str | Path):
        raise InputError(
            f"{type(model).__name__}: is neither the name of a file nor of a model; export_onnx makes a file"
        )
    given = GivenInputs({name: tuple(shape) for name, shape in (inputs or {}).items()}, {})
    with deploy.onnx_file(str(model), provider, None) as path:
        return explain.explain(path, provider, env.available_cores(), batch_size, given)


def _export(model: "nn.Module", shape: Sequence[int], out: Path, provider: str, plain: bool) -> dict[str, Any]:
    from suite.export import generic
    from suite.inference import deploy, networks
    from suite.registry import PROVIDERS

    _check_module(model, shape)
    deploy.check(out, "fp32", provider)
    with (
        networks.errors_in_one_line(type(model).__name__),
        _in_evaluation(model),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch,
        name_full_disk(out.parent),
    ):
        path = Path(scratch) / "net.onnx"
        rewrite = not plain and PROVIDERS[provider].graph == "rewritten"
        result = generic.export(model, shape, path, {}, rewrite)
        os.replace(path, out)
    return result


def _check_module(model: Any, shape: Sequence[int] | None = None) -> None:
    """Refuse what is no module, and a shape that is none."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise InputError(f"{model!r}: is neither the name of a file or model nor a module of torch")
    if shape is None:
        return
    sides = tuple(shape) if isinstance(shape, Iterable) else ()
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        raise InputError("shape: say that of one input of the module, without the batch, as (3, 224, 224)")


@contextlib.contextmanager
def _subject(model: "str | Path | nn.Module") -> "Iterator[Subject]":
    if isinstance(model, str | Path):
        yield subjects.find(str(model))
        return
    _check_module(model)
    with _in_evaluation(model):
        yield subjects.Subject(type(model).__name__, module=model)


@contextlib.contextmanager
def _in_evaluation(model: "nn.Module") -> Iterator[None]:
    """Have a module in evaluation mode for a while, and each part of it as it was
    afterwards."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training

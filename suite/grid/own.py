"""Check the models of a user's own table: that they exist, and that they suit the
data."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suite.errors import InputError, describe_error
from suite.grid.stages import Cell
from suite.inference import names
from suite.tables import modules
from suite.tables.spec import Row, Table

if TYPE_CHECKING:
    from torch import nn


def sources(table: Table, imports: Sequence[str]) -> Mapping[str, str]:
    """Of each model of a table that a module of the user's own defines the digest of
    that module's text; the modules are imported, and register their models with timm.

    Raises:
        InputError: a module cannot be imported, or there is no model of a row's
            name.
    """
    if not table.own:
        return {}
    if not imports:
        check_names(table)
        return {}
    import timm

    import models  # noqa: F401 - registers the networks with timm
    from suite.export import zoo

    zoo.import_modules(imports)
    found = {}
    for number, row in enumerate(table.rows):
        if not zoo.is_known(row.model):
            raise _unknown(table, number, row, timm.list_models(), f", of timm or of {', '.join(imports)}")
        entry = timm.model_entrypoint(row.model.partition(".")[0])
        if entry.__module__.partition(".")[0] not in ("timm", "models"):
            found[row.model] = modules.source_of(inspect.getsourcefile(inspect.unwrap(entry)), imports)
    return found


def check_names(table: Table) -> None:
    """See to it that timm or this project has the model of each row, without importing
    anything.

    Raises:
        InputError: there is none; it offers the nearest names.
    """
    for number, row in enumerate(table.rows):
        if not names.is_known(row.model):
            more = " or of timm; --import MODULE imports what registers others"
            raise _unknown(table, number, row, names.our_models() | names.timm_models(), more)


def _unknown(table: Table, number: int, row: Row, legal: Iterable[str], of: str) -> InputError:
    return InputError(
        f"{table.place}: rows[{number}]: model: {row.model!r} is not a model of this project{of}"
        f"{names.suggest_names(row.model, legal)}"
    )


def check_networks(cells: Iterable[Cell]) -> None:
    """See to it that each network can be made, takes images of its sizes and tells the
    classes of its data apart.

    Raises:
        InputError: one cannot, or does not.
    """
    seen = set()
    for cell in cells:
        sizes = tuple(sorted({cell.recipe.train_size, cell.recipe.test_size, cell.size}))
        asked = cell.row.title, cell.row.data, sizes
        if asked not in seen:
            seen.add(asked)
            _check_network(cell, sizes)


def _check_network(cell: Cell, sizes: Sequence[int]) -> None:
    classes, row = len(cell.dataset.classes), cell.row
    where = f"row {row.title!r}"
    stated = row.arguments.get("num_classes", classes)
    if stated != classes:
        raise InputError(f"{where}: num_classes is {stated}, and {cell.dataset.name} has {classes} classes")
    for size in sizes:
        given = _output(row, {"num_classes": classes, **row.arguments}, size, where)
        if given != (2, classes):
            shape = "x".join(map(str, given)) if given else "no tensor"
            raise InputError(
                f"{where}: {row.model} gives {shape} for two images of {cell.dataset.name}, which has {classes} "
                f"classes; it must give 2x{classes}, by its argument num_classes"
            )


def _output(row: Row, arguments: Mapping[str, Any], size: int, where: str) -> tuple[int, ...] | None:
    """The shape of what a network gives for two images, computed without memory where
    it can be."""
    try:
        try:
            return _shape(_create_model(row.model, arguments, "meta"), size, "meta")
        except Exception:  # some networks compute with numbers as they are made
            return _shape(_create_model(row.model, arguments, "cpu"), size, "cpu")
    except Exception as error:  # of a model that is not this project's it may be any
        what = f"{row.model} with {', '.join(f'{k}={v!r}' for k, v in arguments.items())}"
        raise InputError(f"{where}: {what} cannot be run on images of {size}x{size}: {describe_error(error)}") from None


def _create_model(model: str, arguments: Mapping[str, Any], device: str) -> "nn.Module":
    import timm
    import torch

    import models  # noqa: F401 - registers the networks with timm

    with torch.device(device):
        made: nn.Module = timm.create_model(model, pretrained=False, **arguments)
    return made.eval()


def _shape(model: "nn.Module", size: int, device: str) -> tuple[int, ...] | None:
    import torch

    with torch.no_grad():
        output = model(torch.zeros(2, 3, size, size, device=device))
    return tuple(output.shape) if isinstance(output, torch.Tensor) else None

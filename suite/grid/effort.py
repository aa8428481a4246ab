"""How much work a stage is, compared with others: its steps, and the order in which to
begin trainings."""

import json
from collections.abc import Iterable
from functools import cache

from suite.grid.calls import cell_of
from suite.grid.plan import Stage


def steps_of(stage: Stage, together: int = 1) -> int | None:
    """How many steps a stage will tell of, if `together` are done at the same time;
    None of one that tells of none."""
    if stage.kind == "latency":
        return int(stage.inputs["protocol"]["rounds"]) * together
    if stage.cell is None or stage.kind not in ("train", "parity"):
        return None
    recipe, dataset = stage.cell.recipe, stage.cell.dataset
    if stage.kind == "train":
        return recipe.steps(len(dataset.train))
    return min(len(dataset.test), recipe.max_test_images or len(dataset.test))


def longest_first(stages: Iterable[Stage]) -> list[Stage]:
    """Trainings in the order in which to begin them where several share a device: one
    that is begun last and takes longest would have it to itself in the end."""
    return sorted(stages, key=_length, reverse=True)


def _length(stage: Stage) -> float:
    """About how long a training takes compared with others: multiply-accumulates for
    all images that it sees."""
    cell = cell_of(stage)
    images = cell.recipe.epochs * len(cell.dataset.train)
    if cell.recipe.max_steps is not None:
        images = min(images, cell.recipe.max_steps * cell.recipe.batch_size)
    arguments = json.dumps({"num_classes": len(cell.dataset.classes), **cell.row.arguments})
    return images * _macs(cell.row.model, arguments, cell.recipe.train_size)


@cache
def _macs(model: str, arguments: str, size: int) -> int:
    """Multiply-accumulates of a network for one image; 0 of one that cannot be made, as
    its training will say, or in which they cannot be counted."""
    import timm
    import torch

    from suite.export.generic import cost_of

    try:
        with torch.device("meta"):
            return cost_of(timm.create_model(model, **json.loads(arguments)), (3, size, size))["macs"] or 0
    except Exception:  # a user's constructor may raise anything; the training, which is only ranked here, will say what
        return 0

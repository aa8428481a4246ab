"""How much work a stage is, compared with others: its steps, and the order in which to begin trainings."""

from collections.abc import Iterable
from functools import cache

from suite.grid.plan import Stage
from suite.grid.stages import cell_of


def steps_of(stage: Stage, together: int = 1) -> int | None:
    """How many steps a stage will tell of, if `together` are done at the same time; None of one that tells of none."""
    if stage.kind == "latency":
        return int(stage.inputs["protocol"]["rounds"]) * together
    if stage.cell is None or stage.kind not in ("train", "parity"):
        return None
    recipe, dataset = stage.cell.recipe, stage.cell.dataset
    if stage.kind == "train":
        return recipe.steps(len(dataset.train))
    return min(len(dataset.test), recipe.max_test_images or len(dataset.test))


def longest_first(stages: Iterable[Stage]) -> list[Stage]:
    """Trainings in the order in which to begin them where several share a device: one that is begun last and takes
    longest would have it to itself in the end."""
    return sorted(stages, key=_length, reverse=True)


def _length(stage: Stage) -> float:
    """About how long a training takes compared with others: multiply-accumulates for all images that it sees."""
    cell = cell_of(stage)
    images = cell.recipe.epochs * len(cell.dataset.train)
    if cell.recipe.max_steps is not None:
        images = min(images, cell.recipe.max_steps * cell.recipe.batch_size)
    return images * _macs(cell.row.model, len(cell.dataset.classes), cell.recipe.train_size)


@cache
def _macs(model: str, classes: int, size: int) -> int:
    """Multiply-accumulates of a network for one image; 0 of one that cannot be made, as its training will say."""
    import timm

    from suite.export.exporter import cost

    try:
        return cost(timm.create_model(model, num_classes=classes, device="meta"), size)["macs"]
    except RuntimeError:
        return 0

"""Recipes: how one network is trained and tested."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from suite.tables.reading import build
from suite.tables.reading import require as _require


@dataclass(frozen=True)
class Recipe:
    """How one network is trained and tested. The optimiser is SGD with Nesterov
    momentum, without dampening.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step; the last, smaller batch of an epoch is kept.
        learning_rate: its initial value.
        milestones: 1-based epochs from which on the learning rate is a tenth of what it
            was before.
        momentum, weight_decay: of SGD; the decay applies to every parameter.
        augment: the transforms, "cifar" or "imagenet" (see `suite.data.augment`).
        train_size, test_size: side of the square that the network sees, in pixels.
        resize: "exact" (the paper's interpolation) or "fast" (a library's); only for
            "imagenet".
        ten_crop: also test on ten crops an image, summing logits.
        max_steps: end training after so many steps; None for no such limit.
        max_test_images: test on so many images, evenly spaced over the set; None for
            all.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...]
    momentum: float
    weight_decay: float
    augment: Literal["cifar", "imagenet"]
    train_size: int
    test_size: int
    resize: Literal["exact", "fast"] = "exact"
    ten_crop: bool = False
    max_steps: int | None = None
    max_test_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "train_size", "test_size"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_steps", "max_test_images"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        rate = self.learning_rate
        _require(0 < rate < math.inf, f"learning_rate must be positive and finite, not {rate}")
        _require(0 <= self.momentum < 1, f"momentum must be in [0, 1), not {self.momentum}")
        _require(0 <= self.weight_decay < math.inf, f"weight_decay must be 0 or more, not {self.weight_decay}")
        ordered = list(self.milestones) == sorted(set(self.milestones))
        _require(ordered and all(m >= 1 for m in self.milestones), "milestones must rise from 1 or more")

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of a 1-based epoch."""
        return self.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)

    def steps(self, images: int) -> int:
        """Training steps on a set of so many images."""
        steps = self.epochs * self.steps_per_epoch(images)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def steps_per_epoch(self, images: int) -> int:
        """Training steps for each of so many images once, the last and smaller batch
        among them."""
        return -(-images // self.batch_size)

    def for_epochs(self, epochs: int) -> "Recipe":
        """This recipe over another number of epochs, the milestones moved in
        proportion.

        A milestone keeps its share of epochs before it, to the nearest whole epoch. The
        first epoch is always at the initial learning rate: what would fall into it
        moves to the second, which a training of one epoch does not have. Milestones
        that meet in one epoch are one, so that no epoch has less than a tenth of the
        rate before it.
        """
        scaled = {
            # One that the table itself has at the first epoch stays there.
            max(min(milestone, 2), 1 + round((milestone - 1) * epochs / self.epochs))
            for milestone in self.milestones
        }
        return dataclasses.replace(self, epochs=epochs, milestones=tuple(sorted(scaled)))


def change_recipe(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with these changes, if they make a legal one."""
    return build(Recipe, dataclasses.asdict(recipe) | dict(changes), where)

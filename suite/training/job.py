"""What to train, and what comes of it: one network with its data and seed, and who is
told of its progress."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite.data.batches import Batches
from suite.schema.outcomes import Epoch, TrainResult
from suite.schema.speed import TrainTiming


@dataclass(frozen=True)
class FinishedTraining:
    """A training that has ended: its `result` and its `timing`, as records hold
    them."""

    result: TrainResult
    timing: TrainTiming


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        model_name: a timm model.
        batches: the data set, the recipe, the device, and the processes that share the
            work.
        seed: of the initial weights, the order of the images and their augmentation.
        out: an existing folder for the weights.
        model_args: further arguments of the model; not for dropout, whose draws a
            checkpoint does not hold.
        checkpoints: folder of this run's checkpoints; None for none.
        on_step: called with steps done, steps in all, and a note on speed.
        on_epoch: called with an entry of the result's `epochs` and with the images/s of
            that epoch.
        on_end: called with what came of it, or the exception that ended it; returns a
            job to begin in its place, or None.
    """

    model_name: str
    batches: Batches
    seed: int
    out: Path
    model_args: dict[str, Any] = field(default_factory=dict)
    checkpoints: Path | None = None
    on_step: Callable[[int, int, str], None] = lambda done, total, note: None
    on_epoch: Callable[[Epoch, float], None] = lambda epoch, images_per_second: None
    on_end: Callable[[FinishedTraining | Exception], "Job | None"] = lambda outcome: None

"""How far the training of one network is."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """How far training is: what a checkpoint holds besides tensors."""

    learning_rate: float
    compile: dict[str, Any]  # what was measured to decide on torch.compile, and `compiled`
    tries: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)  # of the present try
    step: int = 0  # steps done in the present epoch
    seen: int = 0  # images seen in the present epoch
    steps: int = 0  # steps done in the present try
    images: int = 0  # images seen in all tries, and the seconds that it took
    seconds: float = 0.0
    stacked: int = 1  # seeds that were trained as one network with this one, itself included; the most there were

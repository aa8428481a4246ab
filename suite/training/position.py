"""How far the training of one network is: what a checkpoint holds of it besides
tensors."""

from msgspec import Struct, field

from suite.schema.outcomes import Epoch, Try
from suite.schema.speed import CompileTrial


class Compiling(CompileTrial, frozen=True, kw_only=True):
    """Whether torch.compile is used, and what was measured to decide on it."""

    compiled: bool


class Position(Struct, kw_only=True):
    """How far a training is.

    Attributes:
        learning_rate: the initial one of the present try.
        compile: whether torch.compile is used.
        tries: what came of those before the present one.
        epochs: of the present try.
        step, seen: steps done and images seen in the present epoch.
        steps: done in the present try.
        images, seconds: seen in all tries, and what that took.
        stacked: seeds that were trained as one network with this one, itself included;
            the most there were.
        devices, precisions, kernels: that have computed the steps of the present try,
            each in the order of their first use: another machine may have gone on with
            it.
    """

    learning_rate: float
    compile: Compiling
    tries: list[Try] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    step: int = 0
    seen: int = 0
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    stacked: int = 1
    devices: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)

"""Is training feasible at a learning rate? A finite loss is not enough: the network
must learn.

The paper halves its learning rate "until training is feasible" and says no more. Dead
units can hold a loss at that of a guess for ever, so that here a network must do better
than a guess after its first epochs.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import last_rectifier

# Halving stops below this rate, nine tries from 0.1 on, and the network did not train. The paper gives no floor. It
# says of NormProp with CReLU that it breaks down, whose loss is not finite at 3.9e-4 and above, and is at the half of
# that. The networks that are known to train do so at 1.5e-3 or more (docs/interpretations.md).
LEAST_LEARNING_RATE = 2e-4
# The "first epochs" after which a network must beat chance, and by how many standard deviations of guessing.
FIRST_EPOCHS = 5
DEVIATIONS = 3
# Steps whose mean loss stands for the end of a try.
LAST_STEPS = 25
# Steps between two looks at a GPU's losses.
LOOK_EVERY = 20

NOT_FINITE = "the loss was not finite"
NO_BETTER = "no better than chance"
TRAINED = "trained"

Labels = NDArray[np.int64]


def beats_chance(error: float, labels: Labels) -> bool:
    """Whether a training error (percent) is below that of always naming the commonest
    class, by three deviations."""
    count = len(labels)
    chance = int(np.bincount(labels).max()) / count
    return 1 - error / 100 > chance + DEVIATIONS * math.sqrt(chance * (1 - chance) / count)


@torch.inference_mode()
def dead_units(model: nn.Module, images: Tensor) -> float | None:
    """Share of the channels before the classifier, 0 to 1, that are zero on all of
    these images.

    A network that has collapsed to a constant answer has nearly all of them dead.

    Args:
        model: left in evaluation mode.
        images: (B, C, H, W), or (B, crops, C, H, W), on the device of the model.

    Returns:
        None for a network without ReLU or CReLU, or whose activations are not
        finite.
    """
    rectifier = last_rectifier(model)
    if rectifier is None:
        return None
    found: list[Tensor] = []
    hook = rectifier.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        model.eval()(images.flatten(0, 1) if images.dim() == 5 else images)
    finally:
        hook.remove()
    values = found[-1]
    if not values.isfinite().all():
        return None
    return float((values == 0).all(0).flatten(1).all(1).float().mean())


class LossWatch:
    """Notices that a loss is not finite any more, and does not make the host wait for a
    GPU at every step.

    On a GPU every 20th step a copy to the host is begun, and the copy begun 20 steps
    before is read. The GPU then has 20 steps to do meanwhile, and a loss that is not
    finite is noticed after 40 at most. On a CPU it is so at once.

    Args:
        device: of the losses.
        every: steps between two looks; None for 20 on a GPU, and for every step on a
            CPU.
    """

    def __init__(self, device: torch.device, every: int | None = None) -> None:
        self.on_gpu = device.type == "cuda"
        self.delayed = self.on_gpu or every is not None
        self.every = every or LOOK_EVERY
        self._steps = 0
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def finite(self, loss_sum: Tensor) -> bool:
        """Whether all losses were finite, as far as is known; to be called after each
        step.

        Args:
            loss_sum: the sum of all losses so far, which is not finite any more once a
                loss was not.
        """
        if not self.delayed:
            return math.isfinite(loss_sum.item())
        self._steps += 1
        if self._steps % self.every:
            return True
        if self._copied is not None:
            self._copied.synchronize()
        known = self._copy is None or math.isfinite(self._copy.item())
        self._copy = torch.empty((), dtype=loss_sum.dtype, pin_memory=self.on_gpu)
        self._copy.copy_(loss_sum, non_blocking=True)
        if self.on_gpu:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types here
            self._copied.record()
        return known

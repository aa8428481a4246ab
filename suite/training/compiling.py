"""Whether torch.compile pays for a training, measured."""

import copy
import statistics
from time import perf_counter

import torch
from torch import Tensor, nn

from suite.errors import describe_error
from suite.interrupt import UNDISTURBED, Interruption
from suite.tables.spec import Recipe
from suite.training.position import Compiling
from suite.training.step import STEPS_BEFORE_CAPTURE, Step

# Steps that are measured to decide on torch.compile; a training of less than ten times as many goes without.
TRIAL = STEPS_BEFORE_CAPTURE + 5
# Seconds of training left below which torch.compile is not even tried. It takes tens of seconds.
WORTH_A_TRIAL = {"cpu": 1800.0, "cuda": 240.0}


def try_compile(
    model: nn.Module,
    recipe: Recipe,
    bfloat16: bool,
    batch: tuple[Tensor, Tensor],
    steps: int,
    own_kernels: bool = False,
    interruption: Interruption = UNDISTURBED,
) -> Compiling:
    """Measure on copies of a network whether torch.compile pays for so many steps;
    where it surely does not, it is not even tried. A pending `interruption` is
    delivered before the next step, since nothing is lost."""
    device = batch[0].device

    def seconds(compiled: bool) -> tuple[float, float]:
        """Of the first step, and the median of steady ones."""
        step = Step(copy.deepcopy(model).train(), recipe, device, bfloat16, compiled, own_kernels=own_kernels)
        taken = []
        for _ in range(TRIAL):
            if interruption.pending:
                interruption.deliver()
            start = perf_counter()
            step(*batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(perf_counter() - start)
        return taken[0], statistics.median(taken[-4:])

    _, plain = seconds(False)
    if plain * steps < WORTH_A_TRIAL[device.type]:
        return Compiling(compiled=False, step_seconds=plain)
    try:
        first, compiled = seconds(True)
    except Exception as error:  # such as a machine without a compiler, or with too little memory
        return Compiling(compiled=False, step_seconds=plain, compile_error=describe_error(error))
    return Compiling(
        compiled=compiled < plain,
        step_seconds=plain,
        compiled_step_seconds=compiled,
        compile_seconds=first - compiled,
    )

"""Recompute activations to stay within a memory budget, on the CPU.

A block that is computed twice keeps its input alone; the backward pass computes the
rest again, from the same values in the same order, so that every result is bit for bit
the same. It costs that block's forward pass.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Bytes that a step may take, by the size of an activation: torch, what it loads and CIFAR take 0.97 GB, and all
# together is to stay below 2 GB. In bfloat16 libraries take more besides.
BUDGET = {4: 930e6, 2: 810e6}
# Gaps that the allocator leaves between values that are kept: as a share of what a block keeps, and, of a block that is
# computed twice, in inputs of it. Beside them stand the passing values of the largest block, gradients among them, in
# what it keeps. Estimated and measured MB beyond those 0.97 GB, batch 128 in float32:
#
#                             blocks twice   estimated   measured
#   resnet20_relu_bn                0            350        318
#   resnet20_crelu_bn               0            530        527
#   resnet56_relu_bn                0            878        848
#   resnet56_crelu_bn               0           1323       1272
#   resnet110_relu_bn               0           1671       1646
#   resnet110_crelu_bn              0           2512       2607
#   resnet110_relu_bn              54            897        822
#   resnet110_crelu_bn             54            926        778
GAPS = 0.5
GAPS_TWICE = 2.0
PASSING = 2.0


def recompute_activations(
    model: nn.Module, images: tuple[int, ...], value_bytes: int, budget: float | None = None
) -> tuple[int, bool]:
    """Recompute activations of the first blocks until a training step takes at most
    `budget` bytes.

    The first blocks have the largest activations and no more arithmetic than the
    others, so that they give most memory for the time.

    Args:
        model: one of `models`; any other network stays as it is.
        images: shape of a batch, (B, C, H, W).
        value_bytes: size of an activation.
        budget: in bytes, by default `BUDGET`; where even all blocks together do not
            come down to it, all are computed twice.

    Returns:
        How many blocks are computed twice, and whether a step then comes down to the
        budget.
    """
    budget = BUDGET[value_bytes] if budget is None else budget
    blocks = blocks_of(model)
    inputs, kept, rest = _values_kept(model, blocks, images)
    total = (1 + GAPS) * sum(kept) + PASSING * max(kept, default=0) + rest
    for number, block in enumerate(blocks):
        if total * value_bytes <= budget:
            return number, True
        total += (1 + GAPS_TWICE) * inputs[number] - (1 + GAPS) * kept[number]
        _compute_twice(block)
    return len(blocks), total * value_bytes <= budget


def release_free_memory() -> None:
    """Hand memory that is free but still held between two steps or tests back to the
    system, where glibc holds it.

    Tensors of other sizes follow, which would not fit into the gaps that the last ones
    leave.
    """
    with suppress(AttributeError, OSError, TypeError):  # another system's C library, or none
        ctypes.CDLL(None).malloc_trim(0)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of one of `models`, the first one first; none of any other
    network."""
    return [block for name in getattr(model, "stage_names", ()) for block in getattr(model, name)]


def _values_kept(
    model: nn.Module, blocks: list[nn.Module], images: tuple[int, ...]
) -> tuple[list[int], list[int], int]:
    """Values in the input of each block, values that it keeps for the gradient, and
    values kept outside of blocks.

    Nothing is computed: the network runs on tensors that have shapes alone.
    """
    inputs, kept, rest = [], [], 0
    inside = False
    state = {name: value.to("meta") for name, value in chain(model.named_parameters(), model.named_buffers())}
    counted = {value.untyped_storage()._cdata for value in state.values()}

    def enter(block: nn.Module, arguments: tuple[Tensor]) -> None:
        nonlocal inside
        inside = True
        inputs.append(arguments[0].numel())
        kept.append(0)

    def leave(block: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        nonlocal inside
        inside = False

    def count(tensor: Tensor) -> Tensor:
        nonlocal rest
        storage = tensor.untyped_storage()
        values = 0 if storage._cdata in counted else storage.nbytes() // tensor.element_size()
        counted.add(storage._cdata)
        if inside:
            kept[-1] += values
        else:
            rest += values
        return tensor

    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logits = torch.func.functional_call(model, state, (torch.empty(images, device="meta"),))
        del logits  # the graph lived until here, so that no storage counted was another one's anew
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, kept, rest


def _compute_twice(block: nn.Module) -> None:
    """Have a block keep its input alone."""
    forward = block.forward

    def again(x: Tensor) -> Tensor:
        # Not for dropout, whose draws would be others the second time.
        output: Tensor = checkpoint(
            forward,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _on_buffer_copies(block)),
        )
        return output

    block.forward = again


@contextmanager
def _on_buffer_copies(block: nn.Module) -> Iterator[None]:
    """Work on copies of a block's buffers: BatchNorm's running statistics take each
    batch in once."""
    held = [(module, dict(module._buffers)) for module in block.modules()]
    for module, buffers in held:
        module._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)

"""What a training step on the CPU keeps for its gradient, and how it keeps less: some blocks are computed twice.

A block that is computed twice keeps its input alone; the backward pass computes the rest again, from the same values
in the same order, so that every result is bit for bit the same. It costs that block's forward pass.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Bytes that a step may take: torch and what it loads take 0.9 GB, CIFAR 0.2 GB, and all together is to stay below 2 GB.
BUDGET = 810e6
# Gaps that the allocator leaves and a block's passing values, in inputs of the first block: about so many after some
# steps of ResNet-110, with 16 filters and with 32.
GAPS = 90


def keep_less(model: nn.Module, images: tuple[int, ...], value_bytes: int, budget: float = BUDGET) -> tuple[int, bool]:
    """Have a residual network compute blocks twice, the first ones first, until a step takes `budget` bytes at most.

    The first blocks have the largest activations and no more arithmetic than the others, so that they give most
    memory for the time.

    Args:
        model: one of `models`; any other network stays as it is.
        images: shape of a batch, (B, C, H, W).
        value_bytes: size of an activation.
        budget: in bytes; where even all blocks together do not come down to it, all are computed twice.

    Returns:
        How many blocks are computed twice, and whether a step then comes down to the budget.
    """
    blocks = _blocks(model)
    inputs, kept, rest = _values_kept(model, blocks, images)
    total = sum(kept) + rest + GAPS * max(inputs, default=0)
    for number, block in enumerate(blocks):
        if total * value_bytes <= budget:
            return number, True
        total += inputs[number] - kept[number]
        _compute_twice(block)
    return len(blocks), total * value_bytes <= budget


def give_back() -> None:
    """Hand memory that is free but still held between two steps or tests back to the system, where glibc holds it.

    Tensors of other sizes follow, which would not fit into the gaps that the last ones leave.
    """
    with suppress(AttributeError, OSError):  # another system's C library
        ctypes.CDLL(None).malloc_trim(0)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [block for name in getattr(model, "stage_names", ()) for block in getattr(model, name)]


def _values_kept(
    model: nn.Module, blocks: list[nn.Module], images: tuple[int, ...]
) -> tuple[list[int], list[int], int]:
    """Values in the input of each block, values that it keeps for the gradient, and values kept outside of blocks.

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
            forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), _aside(block))
        )
        return output

    block.forward = again


@contextmanager
def _aside(block: nn.Module) -> Iterator[None]:
    """Work on copies of a block's buffers: BatchNorm's running statistics take each batch in once."""
    held = [(module, dict(module._buffers)) for module in block.modules()]
    for module, buffers in held:
        module._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)

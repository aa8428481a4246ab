"""Processes that train one network together, as `torchrun` starts them: gloo on the
CPU, NCCL between GPUs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# The first process exports and tests between two trainings, while the others wait for it.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """This process among those that share each batch.

    Attributes:
        rank: number of this process from 0; process 0 alone writes results.
        size: how many there are.
        local_rank: number on this machine, which chooses the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def sums(self, *values: float) -> list[float]:
        """Each value summed over all processes, which must all call this."""
        if self.size == 1:
            return list(values)
        import torch

        total = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return list(total.tolist())

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process; all must call this."""
        return self.sums(float(value))[0] > 0

    def share(self, value: T) -> T:
        """Process 0's value in all of them, which must all call this."""
        if self.size == 1:
            return value
        import torch

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def spread(self, tensors: "Iterable[Tensor]") -> None:
        """Give tensors the values that they have in process 0, in place; all must call
        this."""
        if self.size == 1:
            return
        import torch

        with torch.no_grad():
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def leave(self) -> None:
        """End the communication."""
        if self.size > 1:
            import torch

            torch.distributed.destroy_process_group()


ALONE = Group()


def join() -> Group:
    """The group that `torchrun` started this process in, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    import torch

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    return Group(int(os.environ["RANK"]), size, local_rank)

"""How tests of a network on a GPU are computed: after most epochs fast, at the end in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from suite.training.step import Graph

Forward = Callable[[Tensor], Tensor]


def quick_forward(model: nn.Module, device: torch.device, bfloat16: bool) -> Forward | None:
    """Images to logits in the precision of training, by CUDA graphs, for tests between epochs; None on a CPU."""
    return QuickForward(model, bfloat16) if device.type == "cuda" else None


class QuickForward:
    """A network in evaluation on a GPU, as a CUDA graph for each shape of its images.

    Training changes weights and statistics in place, so that a graph finds their present values; where they were moved
    to another place, graphs are captured anew. The logits that a call returns are overwritten by the next one.

    Args:
        model: on a GPU.
        bfloat16: whether to run under bfloat16 autocast.
    """

    def __init__(self, model: nn.Module, bfloat16: bool) -> None:
        self._model, self._bfloat16 = model, bfloat16
        self._graphs: dict[torch.Size, Graph | None] = {}
        self._places: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W); the model must be in evaluation mode."""
        places = [value.data_ptr() for value in chain(self._model.parameters(), self._model.buffers())]
        if places != self._places:
            self._graphs, self._places = {}, places
        if images.shape not in self._graphs:
            self._graphs[images.shape] = None
            return self._compute(images)  # launch by launch, since libraries choose their kernels meanwhile
        graph = self._graphs[images.shape]
        if graph is None:
            graph = self._graphs[images.shape] = Graph(self._compute, images)
        return graph.replay(images)

    def _compute(self, images: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=self._bfloat16, cache_enabled=False):
            logits: Tensor = self._model(images)
        return logits.float()


@contextmanager
def measured_convolutions() -> Iterator[None]:
    """Have cuDNN measure which of its convolutions is the fastest for a shape, not guess."""
    before = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.backends.cudnn.benchmark = before

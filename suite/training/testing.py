"""Test errors of a network, and how they are computed on a GPU: after most epochs fast,
at the end in float32."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from suite.data.batches import Batch
from suite.distributed import ALONE, Group
from suite.training.step import Graph

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ErrorRates:
    """Test errors in percent, and whether all logits were finite."""

    top1: float
    top5: float
    finite: bool


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], group: Group = ALONE, forward: Forward | None = None
) -> ErrorRates:
    """Top-1 and top-5 error in percent; ten crops of an image have their logits summed.

    An image whose logits are not all finite counts as an error, and `finite` is then
    False. Several processes test a part of the images each. `forward` computes the
    logits in the model's place.
    """
    model.eval()
    forward = forward or model
    counts: Tensor | None = None  # right at rank one, right up to rank five, finite; on the device until the end
    images_seen = 0
    for images, labels in batches:
        if images.dim() == 5:
            logits = forward(images.flatten(0, 1)).view(*images.shape[:2], -1).sum(1)
        else:
            logits = forward(images)
        best = logits.topk(min(5, logits.shape[1])).indices
        sound = logits.isfinite().all(1, keepdim=True)
        correct = (best == labels[:, None]) & sound
        found = torch.stack((correct[:, 0].sum(), correct.sum(), sound.sum()))
        counts = found if counts is None else counts + found
        images_seen += len(labels)
    right1, right5, sound_images, count = group.sums(
        *(counts.tolist() if counts is not None else (0, 0, 0)), images_seen
    )
    return ErrorRates(100 * (count - right1) / count, 100 * (count - right5) / count, sound_images == count)


def quick_forward(model: nn.Module, device: torch.device, bfloat16: bool) -> Forward | None:
    """Images to logits in the precision of training, by CUDA graphs, for tests between
    epochs; None on a CPU."""
    return QuickForward(model, bfloat16) if device.type == "cuda" else None


class QuickForward:
    """A network in evaluation on a GPU, as a CUDA graph for each shape of its images.

    Training changes weights and statistics in place, so that a graph finds their
    present values; where they were moved to another place, graphs are captured anew.
    The logits that a call returns are overwritten by the next one.

    Args:
        model: on a GPU.
        bfloat16: whether to run under bfloat16 autocast.
    """

    def __init__(self, model: nn.Module, bfloat16: bool) -> None:
        self._model, self._bfloat16 = model, bfloat16
        self._graphs: dict[torch.Size, Graph | None] = {}
        self._places: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W); the model must be in evaluation
        mode."""
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
def benchmark_convolutions() -> Iterator[None]:
    """Have cuDNN measure which of its convolutions is the fastest for a shape, not
    guess."""
    before = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.backends.cudnn.benchmark = before

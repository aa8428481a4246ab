"""What the trained networks look like inside: the paper's Table 1 and its Figures 2 and
3."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models import BasicBlock, Bottleneck, PreActBasicBlock, last_rectifier
from suite.data.batches import Batches
from suite.schema.insides import Activation, AnalyzeResult, Blocks, Coherence, Moments

Progress = Callable[[int, int, str], None]


def _silent(done: int, total: int, note: str) -> None:
    """Progress that nobody watches."""


def analyze(model: nn.Module, batches: Batches, progress: Progress = _silent) -> AnalyzeResult:
    """Table 1's statistics and Figure 2's differences in one pass over the test images,
    and Figure 3's coherence.

    Args:
        model: a network of this project on the device of the batches. It is left in
            evaluation mode.
        batches: the data set and the recipe whose test images are used.
        progress: called with images done, images in all, and a note.

    Returns:
        See `activation_statistics`, `block_differences` and `coherence`, which measure
        one of the three alone.

    Raises:
        ValueError: the model has no ReLU or CReLU, or no residual block.
        RuntimeError: an activation is not finite.
    """
    activation, blocks = _LastActivation(model), _Blocks(model)
    images = _watch(model, batches, (activation, blocks), progress)
    return AnalyzeResult(
        images=images, activation=activation.result(), blocks=blocks.result(), coherence=coherence(model)
    )


def activation_statistics(model: nn.Module, batches: Batches, progress: Progress = _silent) -> Activation:
    """Table 1: mean, deviation and share of non-zero entries of the last activation
    before the classifier.

    Measured at the output of the last ReLU or CReLU ("after last ReLU", Table 1's
    caption), which is what the global pool takes. Only in an `np` network NormProp's
    constants stand between the two. They would leave no entry at zero and are an affine
    map, (x - 1/sqrt(2 pi)) / sqrt(1/2 - 1/(2 pi)), of the values given here.

    Sums run in float64, merged batch by batch. Arguments and errors as in `analyze`.
    """
    activation = _LastActivation(model)
    _watch(model, batches, (activation,), progress)
    return activation.result()


def block_differences(model: nn.Module, batches: Batches, progress: Progress = _silent) -> Blocks:
    """Figure 2: Delta of every residual block ("Batch Normalization in ResNets").

    Delta is the L2 norm over channels of block input minus block output, averaged over
    positions and, a reading, over images. The input is the output of the block's
    shortcut: where that is an identity the input itself, and elsewhere the input with
    the shape of the output. A `PreActBasicBlock` takes and hands on the sum before
    activation. The CReLU that it begins with belongs to its residual path, and so to
    neither.

    Arguments and errors as in `analyze`.
    """
    blocks = _Blocks(model)
    _watch(model, batches, (blocks,), progress)
    return blocks.result()


def coherence(model: nn.Module, shortcuts: bool = False, classifier: bool = False) -> Coherence:
    """Figure 3: the coherence of each convolution (Definition 2), in float64.

    `mu` is the greatest |w_i . w_j| / (|w_i| |w_j|) over pairs of different filters of
    a layer. Neither NormProp's division by |W| nor its gain changes it. A filter of
    zeros has no direction and makes no pair. A layer without pairs has `mu` 0.

    Args:
        model: any network whose modules are registered in order of depth.
        shortcuts: also the 1x1 convolutions of the shortcuts (3 in ResNet-34).
        classifier: also the rows of the final linear layer. The paper plots
            "convolution filter matrices 1 to 34" of ResNet-34. Off the shortcuts that
            has 33 convolutions, and this layer would be the 34th.
    """
    kinds = (nn.Conv2d, nn.Linear) if classifier else (nn.Conv2d,)
    layers = {
        name: filter_coherence(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, kinds) and (shortcuts or "shortcut" not in name.split("."))
    }
    return Coherence(layers=list(layers), mu=list(layers.values()))


@torch.no_grad()
def filter_coherence(weight: Tensor) -> float:
    """The coherence (Definition 2) of the filters (out, ...) of one layer; see
    `coherence`."""
    filters = weight.double().flatten(1)
    # Divided by the greatest entry first: squares of tiny weights, which weight decay can leave, would be zero.
    filters = filters / filters.abs().amax(1, keepdim=True)
    filters = nn.functional.normalize(filters[filters.isfinite().all(1)], eps=0)
    products = (filters @ filters.T).abs().fill_diagonal_(0)
    return min(1.0, products.max().item()) if products.numel() else 0.0


class _Probe(Protocol):
    """Something that looks at activations while a network runs."""

    def hooks(self) -> list[RemovableHandle]: ...


def _watch(model: nn.Module, batches: Batches, probes: Sequence[_Probe], progress: Progress) -> int:
    """Run the test images through a network that the probes are hooked to; returns how
    many they were."""
    # Not in inference mode: weights that were rearranged there could not be trained any more.
    model.eval().to(memory_format=torch.channels_last)
    hooks = [hook for probe in probes for hook in probe.hooks()]
    done = 0
    try:
        with torch.inference_mode():
            for images, _ in batches.test():
                model(images)
                done += len(images)
                progress(done, batches.test_images, "images")
    finally:
        for hook in hooks:
            hook.remove()
    return done


class _Running:
    """Moments in float64 of values that come in parts, merged by the formula of Chan,
    Golub and LeVeque (1979).

    A sum of squares would lose the digits of a deviation that is small beside the
    mean.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Take in float64 values of any shape."""
        if not (count := values.numel()):
            return
        mean = values.mean()
        squares = (values - mean).square().sum()
        total, shift = self.count + count, mean.item() - self.mean
        self.squares += squares.item() + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def moments(self) -> Moments:
        if not self.count:
            return Moments(count=0, mean=None, std=None)
        std = math.sqrt(self.squares / self.count) if math.isfinite(self.squares) else math.nan
        if not math.isfinite(std):
            raise RuntimeError("the last activation is not finite")
        return Moments(count=self.count, mean=self.mean, std=std)


class _LastActivation:
    """Table 1, gathered at the output of the last rectifier."""

    def __init__(self, model: nn.Module) -> None:
        rectifier = last_rectifier(model)
        if rectifier is None:
            raise ValueError("the model has neither a ReLU nor a CReLU module")
        self.rectifier = rectifier
        self.over_nonzero, self.over_all, self.pooled = _Running(), _Running(), _Running()

    def hooks(self) -> list[RemovableHandle]:
        return [self.rectifier.register_forward_hook(self._add)]

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = output.double()
        self.over_all.add(values)
        self.over_nonzero.add(values[values != 0])
        self.pooled.add(values.mean((2, 3)))

    def result(self) -> Activation:
        over_all = self.over_all.moments()
        share = self.over_nonzero.count / self.over_all.count
        return Activation(
            nonzero=share, over_nonzero=self.over_nonzero.moments(), over_all=over_all, pooled=self.pooled.moments()
        )


class _Blocks:
    """Figure 2, gathered at three places of each block: the residual path's end, the
    shortcut's and the block's."""

    def __init__(self, model: nn.Module) -> None:
        kinds = (BasicBlock, PreActBasicBlock, Bottleneck)
        self.blocks = {name: block for name, block in model.named_modules() if isinstance(block, kinds)}
        if not self.blocks:
            raise ValueError("the model has no residual block of this project")
        self.shortcut = torch.empty(0)  # the last one's output, until its block is done
        # Sums over positions and images, kept on the device so that the host never waits; one pair for each block.
        self.sums: list[list[Tensor | float]] = [[0.0, 0.0] for _ in self.blocks]
        self.counts = [0] * len(self.blocks)

    def hooks(self) -> list[RemovableHandle]:
        handles = []
        for index, block in enumerate(self.blocks.values()):
            residual = getattr(block, f"norm{block.convolutions}")
            handles += [
                residual.register_forward_hook(partial(self._add_residual, index)),
                block.shortcut.register_forward_hook(self._keep),
                block.register_forward_hook(partial(self._add_output, index)),
            ]
        return handles

    def _add_residual(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # f(x) itself is the difference of f(x) + x and x, without the rounding of the sum.
        self.sums[index][0] += _sum_of_norms(output)
        self.counts[index] += output[:, 0].numel()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.shortcut = output

    def _add_output(self, index: int, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not _outputs_its_sum(block):
            self.sums[index][1] += _sum_of_norms(output - self.shortcut)
        self.shortcut = torch.empty(0)

    def result(self) -> Blocks:
        sums = np.array([[float(value) for value in pair] for pair in self.sums])
        if not np.isfinite(sums).all():
            raise RuntimeError("the activations of a residual block are not finite")
        delta, after = (sums / np.array(self.counts)[:, None]).T
        same = np.array([_outputs_its_sum(block) for block in self.blocks.values()])
        after = np.where(same, delta, after)
        return Blocks(blocks=list(self.blocks), delta=delta.tolist(), delta_after_relu=after.tolist())


def _outputs_its_sum(block: nn.Module) -> bool:
    """Whether nothing follows the addition in a block."""
    return isinstance(block, PreActBasicBlock) and isinstance(block.sum_norm, nn.Identity)


def _sum_of_norms(x: Tensor) -> Tensor:
    """Sum over images and positions of the L2 norm over channels of (B, C, H, W), in
    float64.

    float32 would do but for networks whose activations grow so far that their squares
    overflow.
    """
    # Channels last for the norm too: along a middle axis it takes seven times as long.
    norms: Tensor = torch.linalg.vector_norm(x.movedim(1, -1), dim=-1, dtype=torch.float64)
    return norms.sum()

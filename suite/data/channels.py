"""Images for networks that do not take three channels: grey for one, and colours by
turns for any other count.

As timm does: it reads such a network's images by PIL's `convert("L")`, repeats the
filters of RGB for more channels (`adapt_input_conv`), and averages a mean and deviation
of another length (`adapt_to_chs`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from suite.data.batches import Batch, Batches
from suite.data.sets import Dataset
from suite.tables.spec import Recipe

# Shares of red, green and blue in grey, of ITU-R BT.601, which PIL's `convert("L")` takes.
GREY = (0.299, 0.587, 0.114)


def adapt_to_channels(values: Sequence[float], channels: int) -> list[float]:
    """A mean or deviation for each channel: as it is if it is of that length, else the
    average in all of them."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


class ChannelBatches(Batches):
    """The batches of a data set for a network of so many input channels: grey for one,
    else red, green, blue, red, ...

    Grey is not rounded to whole numbers as PIL does, so that it is within half a level
    of PIL's.

    Args:
        dataset, recipe, device, workers: see `Batches`.
        channels: of the network.
        statistics: `mean` and `std` on [0, 1] by which the network's images are
            normalised; by default those of the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        device: torch.device,
        workers: int = 0,
        channels: int = 1,
        statistics: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        words = "in grey" if channels == 1 else f"in {channels} channels"
        super().__init__(replace(dataset, name=f"{dataset.name} {words}"), recipe, device, workers)
        of_data = {"mean": dataset.mean, "std": dataset.std}
        stated = {name: [255 * value for value in values] for name, values in (statistics or {}).items()}
        mean, std = (
            torch.tensor(adapt_to_channels((of_data | stated)[name], channels)).double() for name in ("mean", "std")
        )
        shares = torch.tensor([GREY]) if channels == 1 else torch.eye(3)[torch.arange(channels) % 3]
        was_mean, was_std = (torch.tensor(values).double() for values in of_data.values())
        # From channels that were normalised as the data set's to pixels, to their shares, and normalised again.
        self._factors = (shares * was_std / std[:, None]).float().to(device)
        self._shift = ((shares.double() @ was_mean - mean) / std).float().to(device)

    def train(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """As of `Batches`, (B, channels, size, size)."""
        for images, labels in super().train(seed, epoch, skip):
            yield self._mix(images), labels

    def test(self, ten_crop: bool = False) -> Iterator[Batch]:
        """As of `Batches`, (B, channels, size, size)."""
        for images, labels in super().test(ten_crop):
            yield self._mix(images), labels

    def calibration(self, count: int) -> Iterator[Tensor]:
        """As of `Batches`, (B, channels, size, size)."""
        yield from map(self._mix, super().calibration(count))

    def _mix(self, images: Tensor) -> Tensor:
        mixed = torch.einsum("...chw,kc->...khw", images, self._factors) + self._shift[:, None, None]
        return mixed.contiguous(memory_format=torch.channels_last) if mixed.dim() == 4 else mixed


def statistics_of(known: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """What a folder of weights states, with a `mean` and `std` for each input
    channel."""
    return {
        name: adapt_to_channels(known[name], channels) if name in ("mean", "std") else known[name] for name in known
    }

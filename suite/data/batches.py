"""Batches of a data set by a recipe: what the network sees, in training and in test.

A batch depends on (seed, epoch, position) alone, never on which batches came before it,
on the device or on the number of worker processes. So a run can be taken up at any
batch, and two runs of a seed see the same images.
"""

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from suite.data import augment
from suite.data.folders import read_image
from suite.data.sets import Dataset, Split
from suite.data.shared import Sent, receive_tensor, reraise_worker_errors, send_tensor
from suite.distributed import ALONE, Group
from suite.errors import InputError
from suite.interrupt import HANGUP
from suite.tables.spec import Recipe

Batch = tuple[Tensor, Tensor]
Transform = Callable[[Tensor, int], Tensor]
# A GPU is kept waiting by small batches; a CPU's caches overflow with large ones.
TEST_BATCH = {"cpu": 100, "cuda": 2500}
# Most pixels of a batch that an exported file is calibrated on, 50 images of 32x32: what ONNX Runtime keeps of a batch
# is the output of every node. Of ResNet-50 at 224x224 ten images took 5.4 GB, and one 2.7 GB in the same time.
CALIBRATION_PIXELS = 50 * 32 * 32


def generator(*words: int) -> torch.Generator:
    """A CPU random generator of its own for each sequence of words, such as (seed,
    epoch)."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


class Batches:
    """The images of one data set as a recipe prepares them.

    Args:
        dataset: where the images come from. Images in memory under the "cifar"
            transforms are held on the device as uint8; all others are decoded and
            transformed by worker processes.
        recipe: transforms, sizes and batch size.
        device: where the batches lie.
        workers: processes that decode and transform images; 0 does it in this one.
        group: the processes that share each batch; every one sees its part.
    """

    def __init__(
        self, dataset: Dataset, recipe: Recipe, device: torch.device, workers: int = 0, group: Group = ALONE
    ) -> None:
        self.dataset = dataset
        self.recipe = recipe
        self.device = device
        self.workers = workers
        self.group = group
        self._on_device: dict[str, Batch] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Training steps an epoch, the last and smaller batch among them."""
        return self.recipe.steps_per_epoch(len(self.dataset.train))

    @property
    def test_images(self) -> int:
        """How many test images the recipe uses."""
        return min(len(self.dataset.test), self.recipe.max_test_images or len(self.dataset.test))

    def batch_size_of(self, step: int) -> int:
        """Images of a 0-based step of an epoch, over all processes."""
        return min(self.recipe.batch_size, len(self.dataset.train) - step * self.recipe.batch_size)

    def train(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One epoch, shuffled and augmented: float32 (B, 3, size, size) channels_last
        and int64 (B,) labels.

        The first `skip` batches are left out. Several processes get every group.size-th
        image of a batch each.
        """
        draws = generator(seed, epoch)
        order = torch.randperm(len(self.dataset.train), generator=draws)
        if self.recipe.augment == "cifar":
            crops = augment.draw_crop_flip(len(order), draws)
            yield from self._train_on_device(order, crops, skip)
        else:
            transform = partial(_train_image, recipe=self.recipe, dataset=self.dataset, words=(seed, epoch))
            yield from self._load(self.dataset.train, self._shares(order)[skip:], transform)

    def test(self, ten_crop: bool = False) -> Iterator[Batch]:
        """The test images in order; with `ten_crop` float32 (B, 10, 3, size, size).
        Several processes share them."""
        # Evenly spaced, since some sets are sorted by class.
        order = torch.arange(self.test_images) * len(self.dataset.test) // self.test_images
        order = order[self.group.rank :: self.group.size]
        if self.recipe.augment == "cifar":
            pixels, labels = self._keep_on_device("test", self.dataset.test)
            for part in torch.split(order, TEST_BATCH[self.device.type]):
                index = part.to(self.device)
                yield augment.normalize(pixels[index], self.dataset.mean, self.dataset.std), labels[index]
        else:
            transform = partial(_test_image, recipe=self.recipe, dataset=self.dataset, ten_crop=ten_crop)
            yield from self._load(self.dataset.test, list(torch.split(order, 5 if ten_crop else 50)), transform)

    def calibration(self, count: int) -> Iterator[Tensor]:
        """Training images as in test, float32 (B, 3, size, size) on the device: `count`
        of them, evenly spaced, in batches of at most `CALIBRATION_PIXELS` or of one
        image."""
        images = self.dataset.train
        order = torch.arange(min(count, len(images))) * len(images) // min(count, len(images))
        if self.recipe.augment == "cifar":
            pixels = torch.from_numpy(images.images[order.numpy()]).to(self.device)
            _, height, width, _ = pixels.shape
            for part in torch.split(pixels, max(1, CALIBRATION_PIXELS // (height * width))):
                yield augment.normalize(part, self.dataset.mean, self.dataset.std)
        else:
            transform = partial(_test_image, recipe=self.recipe, dataset=self.dataset, ten_crop=False)
            parts = torch.split(order, max(1, CALIBRATION_PIXELS // self.recipe.test_size**2))
            for batch, _ in self._load(images, list(parts), transform):
                yield batch

    def _train_on_device(self, order: Tensor, crops: augment.CropFlip, skip: int) -> Iterator[Batch]:
        pixels, labels = self._keep_on_device("train", self.dataset.train)
        mean, std = (torch.tensor(values, device=self.device) for values in (self.dataset.mean, self.dataset.std))
        order, crops = order.to(self.device), crops.to(self.device)
        for part in self._shares(torch.arange(len(order), device=self.device))[skip:]:
            index = order[part]
            yield augment.crop_flip(pixels[index], crops[part], mean, std), labels[index]

    def _shares(self, order: Tensor) -> list[Tensor]:
        """This process's part of each batch of an epoch.

        Raises:
            InputError: a batch has fewer images than there are processes.
        """
        batches = torch.split(order, self.recipe.batch_size)
        if len(batches[-1]) < self.group.size:
            raise InputError(
                f"{self.group.size} processes cannot share a batch of {len(batches[-1])}, which is the last of "
                f"{len(order)} images in batches of {self.recipe.batch_size}; use {len(batches[-1])} or fewer"
            )
        return [batch[self.group.rank :: self.group.size] for batch in batches]

    def _keep_on_device(self, name: str, split: Split) -> Batch:
        """The split's pixels and labels on the device, put there once."""
        if name not in self._on_device:
            images = torch.from_numpy(split.images).to(self.device)
            self._on_device[name] = images, torch.from_numpy(split.labels).to(self.device)
        return self._on_device[name]

    def _load(self, split: Split, batches: list[Tensor], transform: Transform) -> Iterator[Batch]:
        # The decoder takes files' bytes; images in memory need none.
        decodes_here = self.device.type == "cuda" and not split.in_memory and can_decode_on(self.device)
        # Small constants that go to the GPU on the way wait for the stream that they are queued in: not for a step's.
        stream = torch.cuda.Stream(self.device) if decodes_here else None  # type: ignore[no-untyped-call] # torch has no types here
        loader = DataLoader(
            _Files(split) if decodes_here else _Transformed(split, transform),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda" and not decodes_here,
            collate_fn=_send_files if decodes_here else _send_batch,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        for loaded in reraise_worker_errors(loader):
            if stream:
                with torch.cuda.stream(stream):
                    batch = decode_on(self.device, _receive_files(*loaded), transform)
                step = torch.cuda.current_stream(self.device)
                step.wait_stream(stream)
                for tensor in batch:
                    tensor.record_stream(step)
                yield batch
            else:
                images, labels = map(receive_tensor, loaded)
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and the end of a terminal reach all processes of it; a reader that ended
    by it would have the training fail before it has its checkpoint."""
    for number in (signal.SIGINT, HANGUP):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


def _batch(loaded: Sequence[tuple[Tensor, int]]) -> Batch:
    """Images (or ten crops of each) and labels as a batch, which single images enter in
    its layout, channels_last."""
    images, labels = zip(*loaded, strict=True)
    shape = (len(images), *images[0].shape)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    batch = torch.empty(shape, dtype=images[0].dtype, device=images[0].device, memory_format=layout)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image)
    return batch, torch.tensor(labels, device=batch.device)


def _send_batch(loaded: Sequence[tuple[Tensor, int]]) -> tuple[Sent, Sent]:
    images, labels = _batch(loaded)
    return send_tensor(images), send_tensor(labels)


def _send_files(files: Sequence[tuple[Tensor, Path, int, int]]) -> tuple[Sent, list[Any]]:
    """Files' bytes one after the other, and of each how many they are, its path, its
    index and its label."""
    return send_tensor(torch.cat([raw for raw, *_ in files])), [(len(raw), *rest) for raw, *rest in files]


def _receive_files(raw: Sent, rest: list[Any]) -> list[tuple[Tensor, Path, int, int]]:
    parts = torch.split(receive_tensor(raw), [length for length, *_ in rest])
    return [(part, *described) for part, (_, *described) in zip(parts, rest, strict=True)]


@cache
def can_decode_on(device: torch.device) -> bool:
    """Whether torchvision decodes JPEG files on this device: it deprecates that since
    version 0.29, and some builds have none for GPUs."""
    import torchvision.io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            file = torchvision.io.encode_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8))
            torchvision.io.decode_jpeg(file, device=device)
        except (AttributeError, RuntimeError):
            return False
    return True


def decode_on(device: torch.device, files: list[tuple[Tensor, Path, int, int]], transform: Transform) -> Batch:
    """Decode JPEG files by torchvision's decoder for this device and transform them
    there.

    A GPU's decoder rounds differently than a CPU's. What it cannot read is decoded on
    the CPU.

    Args:
        device: where the batch is to lie.
        files: of each image the bytes, the path, its index in the split, and its label.
        transform: of an image (H, W, 3) and its index.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(raw: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # see `can_decode_on`
            return [image.permute(1, 2, 0) for image in decode_jpeg(raw, mode=ImageReadMode.RGB, device=device)]

    def decode_one(raw: Tensor, path: Path) -> Tensor:
        try:
            return decode([raw])[0]
        except RuntimeError:
            return torch.from_numpy(read_image(path)).to(device)

    try:
        pixels = decode([raw for raw, *_ in files])
    except RuntimeError:  # one of them is no JPEG file, and the decoder does not say which
        pixels = [decode_one(raw, path) for raw, path, *_ in files]
    return _batch([(transform(image, index), label) for image, (_, _, index, label) in zip(pixels, files, strict=True)])


class _Files(TorchDataset[tuple[Tensor, Path, int, int]]):
    """The bytes of one file at a time."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Path, int, int]:
        path = self.split.file(index)
        raw = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
        return raw, path, index, int(self.split.labels[index])


class _Transformed(TorchDataset[tuple[Tensor, int]]):
    """One image at a time, decoded and transformed, for the worker processes of a
    `DataLoader`."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self.split = split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        held = self.split.images
        pixels = held[index] if isinstance(held, np.ndarray) else read_image(self.split.file(index))
        return self.transform(torch.from_numpy(pixels), index), int(self.split.labels[index])


def _train_image(image: Tensor, index: int, recipe: Recipe, dataset: Dataset, words: tuple[int, int]) -> Tensor:
    draws = generator(*words, index)
    return augment.imagenet_train(image, recipe.train_size, dataset.mean, dataset.std, draws, recipe.resize)


def _test_image(image: Tensor, index: int, recipe: Recipe, dataset: Dataset, ten_crop: bool) -> Tensor:
    transform = augment.imagenet_ten_crop if ten_crop else augment.imagenet_test
    return transform(image, recipe.test_size, dataset.mean, dataset.std, recipe.resize)

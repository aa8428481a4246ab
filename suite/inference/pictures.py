"""Batches of images for networks of timm, prepared as the network's configuration
says."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError, first_line, join_with_or
from suite.export.zoo import Network

if TYPE_CHECKING:
    from PIL import Image

Batch = NDArray[np.float32]

NAMES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
AT_A_TIME = 8
# Embedded images that fix the ranges of int8 activations where no others are given.
CALIBRATION = 64
# Images of a user's at most for the same.
MOST = 200


def list_images(folder: Path) -> list[Path]:
    """The images in a folder and in those in it, in an order that is drawn, the same
    each time, so that the first of them stand for all.

    Raises:
        InputError: it holds none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in NAMES and path.is_file())
    if not found:
        raise InputError(f"{folder}: holds no images; give a folder with {join_with_or(NAMES)} files")
    return [found[index] for index in np.random.default_rng(0).permutation(len(found))]


def batches_of_files(network: Network, files: list[Path], shape: Sequence[int]) -> Iterator[Batch]:
    """These images in batches of this shape (B, channels, height, width), as the
    network sees them in test.

    Raises:
        InputError: one cannot be read.
    """
    from PIL import Image

    def opened() -> "Iterator[Image.Image]":
        for file in files:
            try:
                with Image.open(file) as image:
                    yield image.convert("RGB")
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise InputError(f"{file}: cannot be read as an image: {first_line(error)}") from None

    return _batches(network, opened(), shape)


def batches_of_digits(network: Network, count: int, shape: Sequence[int] = ()) -> Iterator[Batch]:
    """So many of the embedded images of digits, as `batches_of_files` gives others;
    `shape` is that of one image, by default the network's own."""
    from PIL import Image

    from suite.data.sets import load

    images: Any = load("digits10").train.images
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    shape = (AT_A_TIME, *(shape or network.input_size))
    return _batches(network, (Image.fromarray(np.asarray(images[index])) for index in chosen), shape)


def _batches(network: Network, images: "Iterator[Image.Image]", shape: Sequence[int]) -> Iterator[Batch]:
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    if shape[1] != 3:
        raise InputError(f"{network.model} takes {shape[1]} channels, and images have 3; use --data FILE.npz")
    described: Mapping[str, Any] = dict(network.described) | {"input_size": tuple(shape[1:])}
    config: Any = resolve_data_config(pretrained_cfg=dict(described))  # type: ignore[no-untyped-call] # timm has no type here
    transform: Any = create_transform(**config, is_training=False)
    waiting: list[Batch] = []
    for image in images:
        waiting.append(transform(image).numpy())
        if len(waiting) == shape[0]:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)

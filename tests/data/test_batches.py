import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from suite.data import augment, batches
from suite.data.batches import Batches, generator
from suite.data.sets import Dataset, Split
from suite.errors import InputError
from suite.tables import spec

CPU = torch.device("cpu")
CIFAR = spec.load_table(2).recipe
IMAGENET = dataclasses.replace(spec.load_table(4).recipe, train_size=16, test_size=14)


def dataset(train: int = 300, test: int = 40, side: int = 32) -> Dataset:
    random = np.random.default_rng(0)
    splits = [
        Split(random.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n, dtype=np.int64) % 10)
        for n in (train, test)
    ]
    return Dataset("random", tuple("abcdefghij"), *splits, (120.0, 121.0, 122.0), (60.0, 61.0, 62.0), {})


def files(tmp_path: Path) -> Dataset:
    """The same images as files, of sizes that differ."""
    random = np.random.default_rng(1)
    paths = []
    for index in range(6):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(random.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)).save(paths[-1])
    split = Split(tuple(paths), np.arange(6, dtype=np.int64))
    return Dataset("files", tuple("abcdef"), split, split, (120.0, 121.0, 122.0), (60.0, 61.0, 62.0), {})


def test_50000_images_make_391_steps_the_last_of_80() -> None:
    images = np.zeros((50_000, 1, 1, 3), np.uint8)
    big = dataclasses.replace(dataset(), train=Split(images, np.zeros(50_000, np.int64)))
    batches = Batches(big, CIFAR, CPU)
    sizes = [len(labels) for _, labels in batches.train(0, 1)]
    assert batches.steps_per_epoch == len(sizes) == 391
    assert sizes == [128] * 390 + [80]


def test_an_epoch_shows_every_image_once_with_its_label() -> None:
    data = dataset()
    labels = torch.cat([labels for _, labels in Batches(data, CIFAR, CPU).train(0, 1)])
    assert torch.equal(labels.bincount(), torch.full((10,), 30))


def test_a_training_batch_is_the_recipes_transform_of_the_drawn_images() -> None:
    data = dataset()
    draws = generator(7, 3)
    order = torch.randperm(300, generator=draws)
    crops = augment.draw_crop_flip(300, draws)
    second = list(Batches(data, CIFAR, CPU).train(7, 3))[1]
    expected = augment.crop_flip(
        torch.from_numpy(data.train.images)[order[128:256]], crops[128:256], data.mean, data.std
    )
    assert torch.equal(second[0], expected)
    assert torch.equal(second[1], torch.from_numpy(data.train.labels)[order[128:256]])


@pytest.mark.parametrize(("seed", "epoch"), [(0, 2), (1, 1)])
def test_seed_and_epoch_decide_order_and_augmentation(seed: int, epoch: int) -> None:
    batches = Batches(dataset(), CIFAR, CPU)
    first, again, other = (next(batches.train(*words))[0] for words in ((0, 1), (0, 1), (seed, epoch)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_test_images_are_normalised_and_in_order() -> None:
    data = dataset()
    ((images, labels),) = Batches(data, CIFAR, CPU).test()
    expected = (data.test.images.astype(np.float64) - data.mean) / data.std
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert torch.equal(labels, torch.from_numpy(data.test.labels))


def test_fewer_test_images_are_spread_evenly_over_the_set() -> None:
    batches = Batches(dataset(), dataclasses.replace(CIFAR, max_test_images=4), CPU)
    ((images, _),) = batches.test()
    ((whole, _),) = Batches(dataset(), CIFAR, CPU).test()
    assert batches.test_images == 4
    assert torch.equal(images, whole[[0, 10, 20, 30]])


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_decoded_and_transformed_alike_by_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    batches = Batches(files(tmp_path), IMAGENET, CPU, workers)
    ((images, labels),) = batches.train(0, 1)
    ((expected, expected_labels),) = Batches(files(tmp_path), IMAGENET, CPU).train(0, 1)
    assert images.shape == (6, 3, 16, 16)
    assert sorted(labels.tolist()) == list(range(6))
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)


def test_ten_crops_have_the_centre_crop_first(tmp_path: Path) -> None:
    batches = Batches(files(tmp_path), IMAGENET, CPU)
    ten = torch.cat([images for images, _ in batches.test(ten_crop=True)])
    ((centre, _),) = batches.test()
    assert ten.shape == (6, 10, 3, 14, 14)
    assert torch.equal(ten[:, 0], centre)


def test_images_in_memory_follow_the_imagenet_recipe_too() -> None:
    ((images, _), *_) = Batches(dataset(20, 20), IMAGENET, CPU).train(0, 1)
    assert images.shape == (20, 3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_files_decoded_by_the_device_are_those_that_workers_decode(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.jpg")]
    for path, size in zip(paths, ((60, 50), (48, 48), (50, 70)), strict=True):
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    split = Split(tuple(paths), np.array([2, 0, 1]))
    source = dataclasses.replace(dataset(), train=split, test=split)
    recipe = dataclasses.replace(IMAGENET, batch_size=3)
    made = Batches(source, recipe, CPU)
    order = torch.arange(3)
    transform = partial(batches._test_image, recipe=recipe, dataset=source, ten_crop=False)
    (expected,) = made._load(split, [order], transform)
    files = [batches._Files(split)[index] for index in order.tolist()]
    # All three, one of which is no JPEG file; and the two that are.
    images, labels = batches.decode_on(CPU, files, transform)
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])
    both, _ = batches.decode_on(CPU, [files[0], files[2]], transform)
    assert torch.equal(both, expected[0][[0, 2]])


def test_a_device_whose_decoder_torchvision_lacks_is_not_asked_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any, **__: Any) -> None:
        raise RuntimeError("compile torchvision with nvJPEG")

    can_decode_on = batches.can_decode_on.__wrapped__
    assert can_decode_on(CPU)
    monkeypatch.setattr("torchvision.io.decode_jpeg", decode)
    assert not can_decode_on(CPU)
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    assert not can_decode_on(CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_clear_line_whoever_reads_it(tmp_path: Path, workers: int) -> None:
    dataset = files(tmp_path)
    broken = Path(dataset.test.images[0])
    broken.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        list(Batches(dataset, IMAGENET, CPU, workers).test())
    assert str(caught.value).startswith(f"{broken}: is no readable JPEG, PNG, WebP, BMP or TIFF image")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("augmentation", "side", "sizes"),
    [("cifar", 32, [50, 50, 20]), ("cifar", 160, [2] * 60), ("imagenet", 64, [12] * 10), ("imagenet", 224, [1] * 120)],
)
def test_images_to_calibrate_on_come_in_batches_of_so_many_pixels(
    augmentation: str, side: int, sizes: list[int]
) -> None:
    recipe = CIFAR if augmentation == "cifar" else dataclasses.replace(IMAGENET, test_size=side)
    data = dataset(120, side=side if augmentation == "cifar" else 8)
    found = list(Batches(data, recipe, CPU).calibration(200))
    assert list(map(len, found)) == sizes
    assert found[0].shape[1:] == (3, side, side)

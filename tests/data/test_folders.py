"""Tests of folders of image files: which images they hold, the listing that is kept, reading one image."""

import os
import pwd
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.data import folders
from suite.data import sets as data
from suite.data.folders import read_image
from suite.errors import InputError


def error(name: str, path: Path | None) -> str:
    with pytest.raises(InputError) as caught:
        data.load(name, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("outside", [".", "..", "../.."])
def test_cifar_is_read_from_class_folders(tmp_path, test, outside, cifar_folder):
    root = cifar_folder(tmp_path / "around" / "cifar10", test)
    if outside == "../..":
        root = root.parent.rename(tmp_path / "cifar10") / "cifar10"
        outside = ".."
    dataset = data.load("cifar10", root / outside)
    assert dataset.classes == tuple(f"class{number}" for number in range(10))
    assert dataset.train.labels.tolist() == list(range(10))
    expected = np.random.default_rng(7).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(dataset.train.images[7], expected)
    assert np.array_equal(dataset.test.images, dataset.train.images)
    assert dataset.mean == (125.3, 123.0, 113.9)


def test_images_of_ones_own_of_another_size_are_told_of_the_recipe_that_takes_them(tmp_path, picture, cifar_folder):
    root = cifar_folder(tmp_path / "mine")
    large = picture(root / "train/class5/1.webp", size=(50, 40))
    with pytest.raises(InputError) as caught:
        data.load_own("mine", root, (0.5,) * 3, (0.5,) * 3, 32)
    assert str(caught.value) == (
        f'{large}: 50x40 pixels, augment = "cifar" takes the images as they are, and is to have 32x32; '
        'augment = "imagenet" takes images of any size'
    )


def test_mistakes_in_class_folders_are_named(tmp_path, picture, cifar_folder, imagenet_folder):
    root = cifar_folder(tmp_path / "large")
    large = picture(root / "train/class5/1.webp", size=(33, 32))
    assert error("cifar10", root) == f"{large}: 33x32 pixels, CIFAR's images are 32x32"

    root = cifar_folder(tmp_path / "broken")
    (root / "test/class5/0.png").write_bytes(b"no image")
    assert f"{root / 'test/class5/0.png'}: is no readable JPEG, PNG, WebP, BMP or TIFF image" in error("cifar10", root)

    root = cifar_folder(tmp_path / "hollow")
    (root / "train/class2/0.png").rename(root / "train/class2/0.txt")
    said = "holds no images; give a folder with .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp files"
    assert f"{root / 'train/class2'}: {said}" in error("cifar10", root)

    root = cifar_folder(tmp_path / "odd")
    (root / "test/class8").rename(root / "test/other")
    assert f"{root}: class 'class8' is not in both train/ and test/ (2 differ)" in error("cifar10", root)

    root = cifar_folder(tmp_path / "ten")
    assert f"{root / 'train'}: 10 class folders, cifar100 has 100" in error("cifar100", root)

    root = imagenet_folder(tmp_path / "alone")
    (root / "val").rename(root / "other")
    assert error("imagenet", root) == f"{root}: holds train/ but no val/"

    (tmp_path / "flat/train").mkdir(parents=True)
    (tmp_path / "flat/val").mkdir()
    assert error("imagenet", tmp_path / "flat") == f"{tmp_path / 'flat/train'}: holds no class folders"


def test_imagenet_is_listed_in_sorted_order_and_not_opened(tmp_path, imagenet_folder):
    root = imagenet_folder(tmp_path)
    (root / "train/n01/b.JPEG").write_bytes(b"no image")
    dataset = data.load("imagenet", root)
    assert dataset.classes == ("n01", "n02")
    assert not dataset.train.in_memory
    names = [str(file.relative_to(root / "train")) for file in dataset.train.images]
    assert names == [f"{folder}/{file}" for folder in ("n01", "n02") for file in ("a.jpg", "b.JPEG", "c.png")]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    assert dataset.mean == pytest.approx((123.675, 116.28, 103.53))
    assert dataset.std == pytest.approx((58.395, 57.12, 57.375))
    assert len(dataset.train) == 6


def test_hidden_and_foreign_files_are_ignored_and_links_followed(tmp_path, imagenet_folder):
    root = imagenet_folder(tmp_path / "set")
    expected = data.load("imagenet", root).fingerprint
    (root / "train/.cache").mkdir()
    (root / "train/readme.txt").touch()
    (root / "train/n01/.hidden.jpg").touch()
    (root / "train/n01/list.txt").touch()
    (root / "train/n01/folder.jpg").mkdir()
    (root / "train/n02").rename(tmp_path / "elsewhere")
    (root / "train/n02").symlink_to(tmp_path / "elsewhere")
    (root / "train/n02").joinpath("x.GIF").touch()
    data._from_path.cache_clear()
    dataset = data.load("imagenet", root)
    assert dataset.fingerprint == expected
    assert dataset.notes == (
        f"{root / 'train'}: left out: 1 files beside the class folders; files that are none of .bmp, .jpeg, .jpg, "
        ".png, .tif, .tiff, .webp: .gif 1, .txt 1; 1 folders in class folders",
    )


def test_cifar_in_class_folders_says_what_it_leaves_out(tmp_path, cifar_folder):
    root = cifar_folder(tmp_path, "test")
    (root / "test/notes").write_text("loose")
    assert data.load("cifar10", root).notes == (f"{root / 'test'}: left out: 1 files beside the class folders",)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "tiff", "webp"])
def test_every_kind_of_image_that_is_decoded_is_listed(tmp_path, suffix, picture, imagenet_folder):
    root = imagenet_folder(tmp_path)
    added = picture(root / "train" / "n01" / f"z.{suffix}")
    dataset = data.load("imagenet", root)
    assert added in dataset.train.images
    assert read_image(added).shape == (32, 32, 3)
    assert dataset.notes == ()


def test_the_flat_validation_folder_of_ilsvrc_is_recognised(tmp_path, imagenet_folder):
    root = imagenet_folder(tmp_path)
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    for number in (1, 2):
        (root / "val" / f"ILSVRC2012_val_{number:08}.JPEG").touch()
    assert error("imagenet", root) == (
        f"{root / 'val'}: holds no class folders, but ILSVRC's validation images as they come, whose names tell no "
        "class; put them into folders named as those in train/, as torchvision.datasets.ImageNet(FOLDER, 'val') does "
        "from the archives of images and development kit"
    )
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").rename(root / "val" / "a.jpg")
    (root / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    assert error("imagenet", root) == f"{root / 'val'}: holds no class folders, but 1 files"


def test_a_dangling_link_is_named(tmp_path, imagenet_folder):
    root = imagenet_folder(tmp_path)
    (root / "train/n01/x.jpg").symlink_to(tmp_path / "nowhere")
    assert error("imagenet", root) == f"{root / 'train/n01/x.jpg'}: No such file or directory"


def test_a_long_listing_is_kept_until_a_folder_changes(tmp_path, monkeypatch, picture, imagenet_folder):
    monkeypatch.setattr(folders, "_WORTH_CACHING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = imagenet_folder(tmp_path / "set")

    def read():
        data._from_path.cache_clear()
        return data.load("imagenet", root)

    first = read()
    assert len(list((tmp_path / "cache" / "crelu-suite").iterdir())) == 2
    with monkeypatch.context() as without:
        without.setattr(folders, "_list_anew", lambda *_: pytest.fail("listed again"))
        again = read()
    assert again.fingerprint == first.fingerprint
    assert again.train.images == first.train.images
    assert again.train.labels.tolist() == first.train.labels.tolist()
    (root / "val" / "note.txt").touch()
    assert read().notes == (f"{root / 'val'}: left out: 1 files beside the class folders",)
    added = picture(root / "train" / first.classes[0] / "added.jpg")
    (added.parent / "list.txt").touch()
    assert added in read().train.images
    assert ".txt 1" in read().notes[0]  # from the kept list too
    for damaged in (tmp_path / "cache" / "crelu-suite").iterdir():
        damaged.write_bytes(b"damaged")
    assert added in read().train.images


def test_an_image_repaired_in_its_place_is_listed_anew(tmp_path, monkeypatch, imagenet_folder):
    monkeypatch.setattr(folders, "_WORTH_CACHING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = imagenet_folder(tmp_path / "set")

    def read():
        data._from_path.cache_clear()
        return data.load("imagenet", root)

    def repair():
        with open(image, "ab") as file:
            file.write(b"x")

    before, image = read(), root / "train/n01/b.JPEG"
    repair()
    after = read()
    assert after.fingerprint != before.fingerprint
    assert after.train.file(1) == image

    # Of a disk so slow that only a few files can be looked at, the image shows that the list is old.
    monkeypatch.setattr(folders, "_holds", lambda listing: True)
    repair()
    size = image.stat().st_size
    with pytest.raises(InputError) as caught:
        read().train.file(1)
    assert str(caught.value) == (
        f"{image}: {size} bytes, {size - 1} when an earlier run listed it; that list is removed: give the command "
        "again to list anew"
    )
    assert read().train.file(1) == image
    repair()  # and under a run that has listed the images itself
    data._from_path.cache_clear()
    for kept in (tmp_path / "cache" / "crelu-suite").iterdir():
        kept.unlink()
    split = read().train
    repair()
    with pytest.raises(InputError, match="the data set was changed under the run"):
        split.file(1)


def test_a_kept_list_is_held_against_the_files_only_as_long_as_time_allows(tmp_path, monkeypatch, imagenet_folder):
    listing, _ = folders.list_imagenet(imagenet_folder(tmp_path))
    looked = []
    stat = os.stat
    monkeypatch.setattr(folders.os, "stat", lambda path: looked.append(path) or stat(path))
    assert folders._holds(listing)
    assert sorted(looked) == sorted(listing.files)
    looked.clear()
    monkeypatch.setattr(folders, "_CHECK", -1.0)
    assert folders._holds(listing)
    assert len(looked) == 1


def test_without_a_home_nothing_is_kept_and_the_data_set_is_read(tmp_path, monkeypatch, imagenet_folder):
    monkeypatch.setattr(folders, "_WORTH_CACHING", 1)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # as of a number that no user has
    root = imagenet_folder(tmp_path / "set")
    before = set(tmp_path.rglob("*"))
    assert len(data.load("imagenet", root).train) == 6
    assert set(tmp_path.rglob("*")) == before


def test_a_kept_listing_cut_at_any_sixteenth_or_of_other_files_is_made_anew(tmp_path, monkeypatch, imagenet_folder):
    monkeypatch.setattr(folders, "_WORTH_CACHING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = imagenet_folder(tmp_path / "set")

    def read():
        data._from_path.cache_clear()
        return data.load("imagenet", root).fingerprint

    expected = read()
    kept = {path: path.read_bytes() for path in (tmp_path / "cache" / "crelu-suite").iterdir()}
    assert len(kept) == 2
    for part in range(16):
        for path, raw in kept.items():
            path.write_bytes(raw[: len(raw) * part // 16])
        assert read() == expected
    outside = (b"../../secret\x001\n", b"n01/../../secret\x001\n", b"n03/a.jpg\x001\n")
    for body in (*outside, b"n01/a.jpg\n", b"n01/a.jpg\x00many\n", b"\x00\x00\x00\n"):
        for path, raw in kept.items():
            stamp = zlib.decompress(raw).partition(b"\n")[0]
            path.write_bytes(zlib.compress(stamp + b"\n" + body))
        assert read() == expected


def test_pixels_are_pillows_whoever_decodes(tmp_path, picture):
    path = picture(tmp_path / "a.jpg", size=(50, 37))
    assert np.array_equal(read_image(path), np.array(Image.open(path)))


def test_images_of_every_mode_become_rgb(tmp_path):
    orange = (255, 128, 0)
    base = Image.new("RGB", (3, 2), orange)

    def read(image, name="x.png", **options):
        image.save(tmp_path / name, **options)
        pixels = read_image(tmp_path / name)
        assert pixels.shape == (2, 3, 3)
        assert pixels.dtype == np.uint8
        assert (pixels == pixels[0, 0]).all()
        return tuple(pixels[0, 0].tolist())

    assert read(base) == orange
    assert read(base.quantize(4)) == orange
    assert read(base.convert("L")) == (151, 151, 151)
    assert read(Image.new("1", (3, 2), 1)) == (255, 255, 255)
    assert read(Image.fromarray(np.full((2, 3), 200 * 256 + 7, np.uint16))) == (200, 200, 200)
    assert read(Image.new("RGBA", (3, 2), (*orange, 255))) == orange
    assert read(Image.new("RGBA", (3, 2), (*orange, 0))) == (255, 255, 255)
    assert read(Image.new("LA", (3, 2), (0, 0))) == (255, 255, 255)
    assert read(base.quantize(4), transparency=b"\x00") == (255, 255, 255)
    assert read(base, "x.webp", lossless=True) == orange
    cmyk = read(base.convert("CMYK"), "x.jpg", quality=100)
    assert np.allclose(cmyk, orange, atol=4)


def test_the_content_decides_and_not_the_suffix(tmp_path, picture):
    picture(tmp_path / "x.png").rename(tmp_path / "x.JPEG")  # as one file of ImageNet is
    assert read_image(tmp_path / "x.JPEG").shape == (32, 32, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_truncated_image_is_named(tmp_path, suffix, picture):
    file = picture(tmp_path / f"x.{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{file}: is no readable"):
        read_image(file)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [600, 1000])
def test_an_oversized_image_is_named(tmp_path, monkeypatch, limit, picture):
    file = picture(tmp_path / "x.png")  # 1,024 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(InputError, match=str(file)):
        read_image(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=f"{file}: .* more than {limit} pixels"):
        read_image(file)


def test_an_image_of_30000_by_30000_pixels_is_named_and_not_decoded(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000))
    file = tmp_path / "x.png"
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    tracemalloc.start()
    with pytest.raises(InputError, match=f"{file}: .*pixels"):
        read_image(file)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_cut_at_any_sixteenth_is_named(tmp_path, suffix, picture):
    file = picture(tmp_path / f"x.{suffix}")
    raw = file.read_bytes()
    for part in range(16):
        file.write_bytes(raw[: len(raw) * part // 16])
        with pytest.raises(InputError, match=f"{file}: is no readable"):
            read_image(file)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.png"):
        read_image(tmp_path / "nothing.png")

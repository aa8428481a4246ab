"""Tests of the data sets: embedded digits, folders of images, reading one image, download."""

import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import urllib.error
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from suite import data
from suite.errors import InputError

DIGITS = tuple(data.EMBEDDED.values())
FINGERPRINTS = {
    "digits10": "34192fd4bc2efd804a4240ebfe33d822b78765c27e0ef6bfe41693dd000857f5",
    "digits100": "68f364459edd708caefc7009fd9a694ae646beb586e4303f34c78e8c949a004b",
    "digits1000": "c380c34189c7ed2da442c97f2494c9f6f36def4884a7232ce61112e00179d2c8",
}


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def cifar_folder(root: Path, test: str = "test") -> Path:
    """Write one image a class, of ten classes, whose pixels are drawn with the class as seed."""
    for split in ("train", test):
        for number in range(10):
            picture(root / split / f"class{number}" / "0.png", number)
    return root


def imagenet_folder(root: Path) -> Path:
    for name in ("n02", "n01"):
        for file in ("b.JPEG", "a.jpg", "c.png"):
            picture(root / "train" / name / file)
        picture(root / "val" / name / "v.JPEG")
    return root


def python10(home: Path) -> None:
    home.mkdir(parents=True)
    batch = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 9]})
    for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (home / file).write_bytes(batch)
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{n}" for n in range(10)]}))


def error(name: str, path: Path | None) -> str:
    with pytest.raises(InputError) as caught:
        data.load(name, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "side", "train", "test"),
    [("digits10", 32, 5_000, 1_000), ("digits100", 32, 10_000, 2_000), ("digits1000", 64, 10_000, 2_000)],
)
def test_digits_hold_every_class_equally_often(name, side, train, test):
    dataset = data.load(name)
    for split, size in ((dataset.train, train), (dataset.test, test)):
        assert len(split) == size
        assert split.in_memory
        assert split.images.shape == (size, side, side, 3)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        counts = np.bincount(split.labels, minlength=len(dataset.classes))
        assert (counts == size // len(dataset.classes)).all()


@pytest.mark.parametrize("name", DIGITS)
def test_digits_are_the_same_images_on_every_machine(name):
    dataset = data.load(name)
    assert dataset.fingerprint == {
        "name": name,
        "classes": len(dataset.classes),
        "train": len(dataset.train),
        "test": len(dataset.test),
        "sha256": FINGERPRINTS[name],
        "hash_of": "pixels",
    }


@pytest.mark.parametrize("name", DIGITS)
def test_statistics_of_digits_are_those_of_their_train_images(name):
    dataset = data.load(name)
    counts = np.stack([np.bincount(dataset.train.images[..., c].ravel(), minlength=256) for c in range(3)])
    mean = counts @ np.arange(256) / counts.sum(1)
    std = np.sqrt(counts @ np.arange(256) ** 2 / counts.sum(1) - mean**2)
    assert dataset.mean == tuple(mean.round(1))
    assert dataset.std == tuple(std.round(1))


def test_train_and_test_digits_share_no_source(monkeypatch):
    pools = []
    monkeypatch.setattr(data, "_compose", lambda rng, pool, spec, size: pools.append(pool))
    data._digits(data._DIGITS["digits10"])
    train, test = pools
    assert sum(map(len, train)) + sum(map(len, test)) == 1797
    for left, right in zip(train, test, strict=True):
        assert len(right) == -(-(len(left) + len(right)) // 5)
        assert not {glyph.tobytes() for glyph in left} & {glyph.tobytes() for glyph in right}


def test_a_number_is_drawn_from_left_to_right():
    rng = np.random.default_rng(0)
    pools = [np.full((1, 8, 8), 16 * (digit == 1), np.float32) for digit in range(10)]
    images, labels = data._compose(rng, pools, data._Digits(2, 32, 0, 0), 20)
    assert labels.tolist() == list(range(20))
    paper = images[:, :1, :1].astype(int)
    inked = (images != paper).any(axis=(1, 3))
    assert not inked[0].any()  # 00
    assert np.flatnonzero(inked[1]).min() >= 14  # 01
    assert np.flatnonzero(inked[10]).max() <= 18  # 10
    assert inked[11, [8, 24]].all()


def test_digits_stand_out_from_their_background_in_luminance():
    colours = data._colours(np.random.default_rng(0), 10_000).astype(float)
    luminance = colours @ [0.299, 0.587, 0.114]
    assert abs(luminance[:, 0] - luminance[:, 1]).min() >= 90 - 1e-9


def test_a_simple_classifier_learns_the_digits():
    from sklearn.linear_model import RidgeClassifier

    dataset = data.load("digits10")

    def ink(images):
        paper = images[:, :1, :1].astype(np.float32)
        return abs(images - paper).sum(-1)[:, ::2, ::2].reshape(len(images), -1) / 765

    model = RidgeClassifier().fit(ink(dataset.train.images[:2000]), dataset.train.labels[:2000])
    assert model.score(ink(dataset.test.images), dataset.test.labels) > 0.8


def test_a_data_set_is_read_once(tmp_path):
    assert data.load("digits10") is data.load("digits10")
    root = imagenet_folder(tmp_path / "root")
    assert data.load("imagenet", root) is data.load("imagenet", root / ".." / "root")


def test_every_data_set_of_the_paper_has_an_embedded_stand_in():
    assert data.NAMES == ("digits10", "digits100", "digits1000", "cifar10", "cifar100", "imagenet")
    assert set(data.EMBEDDED) | set(data.EMBEDDED.values()) == set(data.NAMES)


def test_importing_the_module_loads_no_heavy_library():
    code = "import sys, suite.data; print({'torch', 'torchvision', 'sklearn', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_wrong_names_and_paths_are_one_clear_line(tmp_path):
    for name in data.NAMES:
        assert name in error("mnist", None)
    assert "digits10 is embedded and takes no path" in error("digits10", tmp_path)
    assert "cifar10 needs the path" in error("cifar10", None)
    assert "digits10" in error("cifar10", None)
    missing = tmp_path / "missing"
    assert error("cifar10", missing) == f"{missing}: does not exist"
    file = tmp_path / "file"
    file.touch()
    assert error("imagenet", file) == f"{file}: is no folder"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no cifar100" in error("cifar100", empty)
    assert "holds no train/ and val/" in error("imagenet", empty)


def test_links_in_a_circle_and_the_home_of_nobody_are_one_clear_line(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path / "circle", Path("~nobody-of-this-name/x")):
        with pytest.raises(InputError) as caught:
            data.load("cifar10", path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unreadable_folder_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    root = imagenet_folder(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    assert error("imagenet", root) == f"{root / 'train'}: Permission denied"


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("outside", [".", "..", "../.."])
def test_cifar_is_read_from_class_folders(tmp_path, test, outside):
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


def test_the_fingerprint_follows_pixels_labels_and_class_names(tmp_path):
    def sha(root):
        return data.load("cifar10", root).fingerprint["sha256"]

    base = sha(cifar_folder(tmp_path / "a"))
    assert sha(cifar_folder(tmp_path / "b")) == base
    pixel = cifar_folder(tmp_path / "pixel")
    picture(pixel / "test/class3/0.png", 99)
    label = cifar_folder(tmp_path / "label")
    (label / "train/class4/0.png").rename(label / "train/class3/1.png")
    picture(label / "train/class4/0.png", 4)
    names = cifar_folder(tmp_path / "names")
    for split in ("train", "test"):
        (names / split / "class9").rename(names / split / "class99")
    assert len({base, sha(pixel), sha(label), sha(names)}) == 4
    json.dumps(data.load("cifar10", tmp_path / "a").fingerprint)


def test_mistakes_in_class_folders_are_named(tmp_path):
    root = cifar_folder(tmp_path / "large")
    large = picture(root / "train/class5/1.webp", size=(33, 32))
    assert error("cifar10", root) == f"{large}: 33x32 pixels, CIFAR's images are 32x32"

    root = cifar_folder(tmp_path / "broken")
    (root / "test/class5/0.png").write_bytes(b"no image")
    assert f"{root / 'test/class5/0.png'}: is no readable JPEG, PNG or WebP image" in error("cifar10", root)

    root = cifar_folder(tmp_path / "hollow")
    (root / "train/class2/0.png").rename(root / "train/class2/0.txt")
    assert f"{root / 'train/class2'}: holds no images (.jpeg, .jpg, .png, .webp)" in error("cifar10", root)

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


def test_imagenet_is_listed_in_sorted_order_and_not_opened(tmp_path):
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


def test_hidden_and_foreign_files_are_ignored_and_links_followed(tmp_path):
    root = imagenet_folder(tmp_path / "set")
    expected = data.load("imagenet", root).fingerprint
    (root / "train/.cache").mkdir()
    (root / "train/readme.txt").touch()
    (root / "train/n01/.hidden.jpg").touch()
    (root / "train/n01/list.txt").touch()
    (root / "train/n01/folder.jpg").mkdir()
    (root / "train/n02").rename(tmp_path / "elsewhere")
    (root / "train/n02").symlink_to(tmp_path / "elsewhere")
    data._from_path.cache_clear()
    assert data.load("imagenet", root).fingerprint == expected


def test_a_dangling_link_is_named(tmp_path):
    root = imagenet_folder(tmp_path)
    (root / "train/n01/x.jpg").symlink_to(tmp_path / "nowhere")
    assert error("imagenet", root) == f"{root / 'train/n01/x.jpg'}: No such file or directory"


def test_a_long_listing_is_kept_until_a_folder_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_WORTH_CACHING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = imagenet_folder(tmp_path / "set")

    def read():
        data._from_path.cache_clear()
        return data.load("imagenet", root)

    first = read()
    assert len(list((tmp_path / "cache" / "crelu-suite").iterdir())) == 2
    with monkeypatch.context() as without:
        without.setattr(data, "_list_anew", lambda *_: pytest.fail("listed again"))
        again = read()
    assert again.fingerprint == first.fingerprint
    assert again.train.images == first.train.images
    assert again.train.labels.tolist() == first.train.labels.tolist()
    added = picture(root / "train" / first.classes[0] / "added.jpg")
    assert added in read().train.images
    for damaged in (tmp_path / "cache" / "crelu-suite").iterdir():
        damaged.write_bytes(b"damaged")
    assert added in read().train.images


def test_a_kept_listing_cut_at_any_sixteenth_or_of_other_files_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_WORTH_CACHING", 1)
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


def test_pixels_are_pillows_whoever_decodes(tmp_path):
    path = picture(tmp_path / "a.jpg", size=(50, 37))
    assert np.array_equal(data.read_image(path), np.array(Image.open(path)))


def test_the_fingerprint_of_imagenet_follows_names_and_sizes(tmp_path):
    def fingerprint(root):
        data._from_path.cache_clear()
        return data.load("imagenet", root).fingerprint

    root = imagenet_folder(tmp_path / "a")
    base = fingerprint(root)
    assert base["hash_of"] == "listing"
    assert (base["classes"], base["train"], base["test"]) == (2, 6, 2)
    assert fingerprint(imagenet_folder(tmp_path / "b")) == base
    (root / "val/n01/v.JPEG").rename(root / "val/n01/w.JPEG")
    renamed = fingerprint(root)
    with (root / "val/n01/w.JPEG").open("ab") as file:
        file.write(b"x")
    assert len({base["sha256"], renamed["sha256"], fingerprint(root)["sha256"]}) == 3


def test_images_of_every_mode_become_rgb(tmp_path):
    orange = (255, 128, 0)
    base = Image.new("RGB", (3, 2), orange)

    def read(image, name="x.png", **options):
        image.save(tmp_path / name, **options)
        pixels = data.read_image(tmp_path / name)
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


def test_the_content_decides_and_not_the_suffix(tmp_path):
    picture(tmp_path / "x.png").rename(tmp_path / "x.JPEG")  # as one file of ImageNet is
    assert data.read_image(tmp_path / "x.JPEG").shape == (32, 32, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    file = picture(tmp_path / f"x.{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{file}: is no readable"):
        data.read_image(file)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [600, 1000])
def test_an_oversized_image_is_named(tmp_path, monkeypatch, limit):
    file = picture(tmp_path / "x.png")  # 1,024 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(InputError, match=str(file)):
        data.read_image(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=f"{file}: .* more than {limit} pixels"):
        data.read_image(file)


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
        data.read_image(file)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_cut_at_any_sixteenth_is_named(tmp_path, suffix):
    file = picture(tmp_path / f"x.{suffix}")
    raw = file.read_bytes()
    for part in range(16):
        file.write_bytes(raw[: len(raw) * part // 16])
        with pytest.raises(InputError, match=f"{file}: is no readable"):
            data.read_image(file)


def test_an_image_that_changes_under_a_run_is_named(tmp_path):
    split = data.load("imagenet", imagenet_folder(tmp_path)).train
    path = split.file(1)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match=f"{path}: {size + 1} bytes, {size} when the run began; the data set"):
        split.file(1)
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: No such file or directory; the data set was changed"):
        split.file(1)
    assert split.file(0).is_file()


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.png"):
        data.read_image(tmp_path / "nothing.png")


@pytest.fixture
def torchvision(monkeypatch):
    """Stand in for the library: its import takes longer than all tests here together."""
    source = SimpleNamespace(
        base_folder="cifar-10-batches-py",
        url="https://host/cifar.tar.gz",
        filename="cifar.tar.gz",
        tgz_md5="tgz",
        train_list=[[f"data_batch_{number}", "batch"] for number in range(1, 6)],
        test_list=[["test_batch", "batch"]],
    )
    utils = SimpleNamespace(check_integrity=lambda path, md5: path.is_file() and md5 == "batch")
    datasets = SimpleNamespace(CIFAR10=source, CIFAR100=source, utils=utils)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return utils


def test_a_download_leaves_the_folder_that_load_reads_and_is_not_repeated(tmp_path, torchvision):
    fetched = []

    def fetch(url, root, filename, md5):
        fetched.append((url, root, filename, md5))
        python10(root / "cifar-10-batches-py")

    torchvision.download_and_extract_archive = fetch
    folder = data.download("cifar10", tmp_path)
    assert folder == tmp_path / "cifar-10-batches-py"
    assert len(data.load("cifar10", folder).train) == 10
    assert data.download("cifar10", tmp_path) == folder
    assert fetched == [("https://host/cifar.tar.gz", tmp_path, "cifar.tar.gz", "tgz")]


@pytest.mark.parametrize(
    "failure",
    [urllib.error.URLError("no network"), RuntimeError("File not found\nor corrupted."), EOFError()],
)
def test_a_failed_download_is_one_clear_line(tmp_path, torchvision, failure):
    def fail(*_, **__):
        raise failure

    torchvision.download_and_extract_archive = fail
    with pytest.raises(InputError, match="cannot download cifar10 from https://host/") as caught:
        data.download("cifar10", tmp_path)
    assert "\n" not in str(caught.value)


def test_only_cifar_can_be_downloaded(tmp_path):
    with pytest.raises(InputError, match="must be one of cifar10, cifar100"):
        data.download("imagenet", tmp_path)

"""Tests of the data sets by name: what `load` accepts, what identifies a data set, download."""

import json
import os
import pickle
import subprocess
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from suite.data import sets as data
from suite.errors import InputError
from suite.registry import DATA_SETS, STAND_INS


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


def test_a_data_set_is_read_once(tmp_path, imagenet_folder):
    assert data.load("digits10") is data.load("digits10")
    root = imagenet_folder(tmp_path / "root")
    assert data.load("imagenet", root) is data.load("imagenet", root / ".." / "root")


def test_every_data_set_of_the_paper_has_an_embedded_stand_in():
    assert STAND_INS == {"cifar10": "digits10", "cifar100": "digits100", "imagenet": "digits1000", "svhn": "digits10"}
    assert set(STAND_INS) | set(STAND_INS.values()) == set(DATA_SETS)
    for name, stand_in in STAND_INS.items():
        assert DATA_SETS[stand_in].classes == DATA_SETS[name].classes == len(data.load(stand_in).classes)


def test_importing_the_module_loads_no_heavy_library():
    code = "import sys, suite.data.sets; print({'torch', 'torchvision', 'sklearn', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_wrong_names_and_paths_are_one_clear_line(tmp_path):
    for name in DATA_SETS:
        assert name in error("mnist", None)
    assert "digits10 is embedded and takes no path" in error("digits10", tmp_path)
    assert "cifar10 needs the path" in error("cifar10", None)
    assert "digits10" in error("cifar10", None)
    missing = tmp_path / "missing"
    assert error("cifar10", missing) == f"{missing}: does not exist; give the folder that holds cifar10"
    file = tmp_path / "file"
    file.touch()
    assert error("imagenet", file) == f"{file}: is no folder; give the folder that holds imagenet"
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


def test_an_unreadable_folder_is_one_clear_line(tmp_path, monkeypatch, imagenet_folder):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    root = imagenet_folder(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    assert error("imagenet", root) == f"{root / 'train'}: Permission denied"


def test_the_fingerprint_follows_pixels_labels_and_class_names(tmp_path, picture, cifar_folder):
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


def test_the_fingerprint_of_imagenet_follows_names_and_sizes(tmp_path, imagenet_folder):
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


def test_an_image_that_changes_under_a_run_is_named(tmp_path, imagenet_folder):
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
    with pytest.raises(InputError, match="'imagenet' cannot be downloaded; use cifar10, cifar100 or svhn"):
        data.download("imagenet", tmp_path)

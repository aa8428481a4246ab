"""The one place where images come from: embedded digits, CIFAR-10/100, SVHN, ImageNet
and a user's own folders.

Three sets of composed digits come with the package (from scikit-learn) and stand in for
the three data sets of the paper; the paper's own are read from a path.
"""

import contextlib
import hashlib
import http.client
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite.data import cifar, digits, folders
from suite.errors import InputError, join_with_or
from suite.registry import DATA_SETS, STAND_INS, DataSet, Triple


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (N, H, W, 3) RGB or the files of N images, and their labels, int64
    (N,). `sizes` are the bytes of each file as it was listed, empty if that is not
    known; `kept` is the file that an earlier run has kept this list in, or None."""

    images: NDArray[np.uint8] | tuple[Path, ...]
    labels: NDArray[np.int64]
    sizes: tuple[int, ...] = ()
    kept: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether `images` holds pixels, not files."""
        return isinstance(self.images, np.ndarray)

    def file(self, index: int) -> Path:
        """The file of an image that is not in memory. Raises InputError if it is not of
        the size that the data set's fingerprint holds: a data set that changes under a
        run is not what the run's record says."""
        path = Path(self.images[index])
        try:
            size = path.stat().st_size
        except OSError as error:
            raise self._changed_error(path, f"{error.strerror}", "") from None
        if self.sizes and size != (was := self.sizes[index]):
            raise self._changed_error(path, f"{size} bytes", f", {was} when ")
        return path

    def _changed_error(self, path: Path, found: str, before: str) -> InputError:
        if self.kept is None:
            began = f"{before}the run began" if before else ""
            return InputError(f"{path}: {found}{began}; the data set was changed under the run")
        # Perhaps before it: only some of a kept list is held against the files when it is read.
        with contextlib.suppress(OSError):
            self.kept.unlink()
        listed = f"{before}an earlier run listed it" if before else ""
        return InputError(f"{path}: {found}{listed}; that list is removed: give the command again to list anew")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split with the channel statistics to normalise them by, on the
    0-255 scale.

    `fingerprint` is what a record keeps of it: name, number of classes and of images,
    and a SHA-256 over class names and labels with the pixels (`hash_of` "pixels") or
    the names and sizes of files ("listing"). `notes` say what was left out of it, and
    by what it is normalised if that is not its own.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: Triple
    std: Triple
    fingerprint: dict[str, object]
    notes: tuple[str, ...] = ()

    def with_normalization(self, stated: Mapping[str, Sequence[float]], where: str) -> "Dataset":
        """This data set with another mean or std or both, for three channels on [0, 1],
        under these names in `stated`; a note says so, and that `where` states them, if
        they are not its own.

        Raises:
            InputError: there are not three numbers of a kind.
        """
        own = {name: tuple(value / 255 for value in getattr(self, name)) for name in ("mean", "std")}
        others = {name: tuple(stated[name]) for name in own if name in stated and tuple(stated[name]) != own[name]}
        if not others:
            return self
        for name, values in others.items():
            if len(values) != 3:
                raise InputError(f"{where}: {name} holds {len(values)} numbers; give 3, one for each channel")
        said = ", ".join(
            f"{name} {_rounded(values)} (of {self.name} {_rounded(own[name])})" for name, values in others.items()
        )
        scaled: dict[str, Any] = {name: tuple(255 * value for value in values) for name, values in others.items()}
        return replace(self, **scaled, notes=(*self.notes, f"images are normalised as {where} states: {said}"))


def _rounded(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def load(name: str, path: Path | None = None) -> Dataset:
    """Return the data set `name`, one of DATA_SETS, read once per process for each
    path.

    The digits are embedded and take no path. CIFAR takes the folder of an official
    layout (binary or python) or `train/<class>/` and `test/<class>/` of 32x32 images,
    SVHN that of `train_32x32.mat` and `test_32x32.mat`, ImageNet the folder of
    `train/<class>/` and `val/<class>/`; the folder around it does as well. Raises
    InputError for anything else.
    """
    if name not in DATA_SETS:
        raise InputError(f"unknown data set {name!r}; use {join_with_or(DATA_SETS)}")
    if name not in STAND_INS:
        if path is not None:
            raise InputError(f"{name} is embedded and takes no path, got {path}")
        return _load_embedded(name)
    if path is None:
        raise InputError(f"{name} needs the path of its files; {STAND_INS[name]} is its embedded stand-in")
    with _in_one_line(path):
        return _from_path(name, path.expanduser().resolve())


def load_own(name: str, path: Path, mean: Triple, std: Triple, side: int | None = None) -> Dataset:
    """Return a data set that is not one of DATA_SETS: a folder of `train/<class>/` and
    `val/<class>/`, or `test/`.

    Its fingerprint holds mean and std too, which for others are constants.

    Args:
        name: any.
        path: of the folder.
        mean, std: of each channel, on the 0-255 scale.
        side: of images that are all squares of so many pixels, which are then held in
            memory; None for any sizes.

    Raises:
        InputError: there is no such folder, or its images are not as said.
    """
    with _in_one_line(path):
        return _own(name, path.expanduser().resolve(), mean, std, side)


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from error
    except RuntimeError as error:  # links in a circle, or the home of nobody
        raise InputError(f"{path}: {error}") from None


@cache
def _load_embedded(name: str) -> Dataset:
    return _in_memory(name, *digits.draw(name))


@cache
def _from_path(name: str, path: Path) -> Dataset:
    must_be_folder(name, path)
    return _READERS[DATA_SETS[name].reader](name, path)


@cache
def _own(name: str, path: Path, mean: Triple, std: Triple, side: int | None) -> Dataset:
    must_be_folder(name, path)
    of = DataSet(name, 0, mean, std, "class folders")
    train, test = folders.list_own(name, path)
    if side is None:
        dataset = _in_files(name, train, test, of)
    else:
        wanted = 'augment = "cifar" takes the images as they are, and is to have'
        remedy = '; augment = "imagenet" takes images of any size'
        images, tested = (folders.decode(split, side, wanted, remedy) for split in (train, test))
        dataset = replace(_in_memory(name, train.classes, images, tested, of), notes=_notes(train, test))
    return replace(dataset, fingerprint={**dataset.fingerprint, "mean": list(mean), "std": list(std)})


def must_be_folder(name: str, path: Path) -> None:
    """See whether a data set may be at a path, before anything is read.

    Raises:
        InputError: there is no folder.
    """
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise InputError(f"{path}: {what}; give the folder that holds {name}")


def _read_class_folders(name: str, path: Path) -> Dataset:
    return _in_files(name, *folders.list_imagenet(path))


def _read_cifar(name: str, path: Path) -> Dataset:
    if contents := cifar.read(name, path):
        return _in_memory(name, *contents)
    found = folders.read_cifar(name, path)
    if found is None:
        other = "cifar10" if name == "cifar100" else "cifar100"
        if cifar.holds(other, path):
            raise InputError(f"{path}: holds {other}, not {name}")
        raise InputError(f"{path}: holds no {name} in binary or python layout nor train/ and test/ class folders")
    return replace(_in_memory(name, *found[0]), notes=found[1])


def _read_svhn(name: str, path: Path) -> Dataset:
    from torchvision import datasets

    def read(split: str) -> cifar.Arrays:
        try:
            found = datasets.SVHN(str(path), split)
        except (RuntimeError, ValueError) as error:  # which torchvision raises for a missing file and for another hash
            file = path / f"{split}_32x32.mat"
            why = "is not SVHN's, or is cut short" if file.exists() else "does not exist"
            raise InputError(f"{file}: {why}; http://ufldl.stanford.edu/housenumbers has it") from error
        return np.ascontiguousarray(found.data.transpose(0, 2, 3, 1)), found.labels.astype(np.int64)

    return _in_memory(name, tuple("0123456789"), read("train"), read("test"))


_READERS = {"cifar": _read_cifar, "class folders": _read_class_folders, "svhn": _read_svhn}


def _in_memory(
    name: str, classes: tuple[str, ...], train: cifar.Arrays, test: cifar.Arrays, of: DataSet | None = None
) -> Dataset:
    splits = Split(*train), Split(*test)
    return _dataset(name, classes, *splits, "pixels", (train[0].data, test[0].data), of)


def _in_files(name: str, train: folders.Listing, test: folders.Listing, of: DataSet | None = None) -> Dataset:
    splits = [Split(split.files, split.labels, split.sizes, split.kept) for split in (train, test)]
    dataset = _dataset(name, train.classes, splits[0], splits[1], "listing", (train.listing, test.listing), of)
    return replace(dataset, notes=_notes(train, test))


def _notes(train: folders.Listing, test: folders.Listing) -> tuple[str, ...]:
    return tuple(split.left_out for split in (train, test) if split.left_out)


def _dataset(
    name: str,
    classes: tuple[str, ...],
    train: Split,
    test: Split,
    hash_of: str,
    content: Iterable[Any],
    of: DataSet | None = None,
) -> Dataset:
    """Put a data set together; `content` is the bytes that identify its images, and
    `of` what else is known of it, which for one of DATA_SETS stands there."""
    digest = hashlib.sha256(json.dumps([classes, len(train), len(test)]).encode())
    for part in chain((split.labels.astype("<i8").data for split in (train, test)), content):
        digest.update(part)
    counts = {"name": name, "classes": len(classes), "train": len(train), "test": len(test)}
    fingerprint: dict[str, object] = {**counts, "sha256": digest.hexdigest(), "hash_of": hash_of}
    of = of or DATA_SETS[name]
    return Dataset(name, classes, train, test, of.mean, of.std, fingerprint)


def download(name: str, root: Path) -> Path:
    """Fetch CIFAR-10, CIFAR-100 or SVHN through torchvision and return the folder for
    `load`.

    What is complete already is not fetched again. Raises InputError without a
    network.
    """
    from torchvision import datasets
    from torchvision.datasets import utils

    # Not datasets.CIFAR10(download=True): its constructor unpickles the batches without restriction.
    sources = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    if name == "svhn":
        return _download_svhn(root / name)
    if name not in sources:
        raise InputError(f"{name!r} cannot be downloaded; use {join_with_or([*sources, 'svhn'])}")
    source = sources[name]
    folder: Path = root / source.base_folder
    if all(utils.check_integrity(folder / file, md5) for file, md5 in source.train_list + source.test_list):
        return folder
    try:
        utils.download_and_extract_archive(source.url, root, filename=source.filename, md5=source.tgz_md5)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot download {name} from {source.url} to {root}: {reason}") from error
    return folder


def _download_svhn(folder: Path) -> Path:
    from torchvision import datasets

    for split in ("train", "test"):
        try:
            datasets.SVHN(str(folder), split, download=True)
        except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"cannot download svhn from {datasets.SVHN.split_list[split][0]}: {reason}") from error
    return folder

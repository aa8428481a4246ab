"""The one place where images come from: embedded digits, CIFAR-10/100 and ImageNet.

Three sets of composed digits come with the package (from scikit-learn) and stand in for the three data
sets of the paper; the paper's own are read from a path.
"""

import contextlib
import hashlib
import http.client
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suite import cifar
from suite.errors import InputError
from suite.files import write
from suite.spec import EMBEDDED

Triple = tuple[float, float, float]

NAMES = (*EMBEDDED.values(), *EMBEDDED)

# Mean and standard deviation of each channel on the 0-255 scale. CIFAR and ImageNet: the constants of
# fb.resnet.torch (datasets/*.lua); digits: measured from the train images, to one decimal.
_STATISTICS: dict[str, tuple[Triple, Triple]] = {
    "digits10": ((128.4, 128.6, 127.4), (69.5, 74.0, 67.9)),
    "digits100": ((126.9, 127.2, 127.8), (70.6, 77.4, 68.9)),
    "digits1000": ((126.9, 127.3, 127.4), (72.4, 80.5, 71.3)),
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "imagenet": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
}
_PHOTOS = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (N, H, W, 3) RGB or the files of N images, and their labels, int64 (N,). `sizes` are the bytes of
    each file as it was listed; empty if that is not known."""

    images: NDArray[np.uint8] | tuple[Path, ...]
    labels: NDArray[np.int64]
    sizes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether `images` holds pixels, not files."""
        return isinstance(self.images, np.ndarray)

    def file(self, index: int) -> Path:
        """The file of an image that is not in memory. Raises InputError if it is not of the size that the data set's
        fingerprint holds: a data set that changes under a run is not what the run's record says."""
        path = Path(self.images[index])
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; the data set was changed under the run") from None
        if self.sizes and size != (was := self.sizes[index]):
            raise InputError(f"{path}: {size} bytes, {was} when the run began; the data set was changed under the run")
        return path


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split with the channel statistics to normalise them by, on the 0-255 scale.

    `fingerprint` is what a record keeps of it: name, number of classes and of images, and a SHA-256 over
    class names and labels with the pixels (`hash_of` "pixels") or the names and sizes of files ("listing").
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: Triple
    std: Triple
    fingerprint: dict[str, object]


def load(name: str, path: Path | None = None) -> Dataset:
    """Return the data set `name`, one of NAMES, read once per process for each path.

    The digits are embedded and take no path. CIFAR takes the folder of an official layout (binary or
    python) or `train/<class>/` and `test/<class>/` of 32x32 images, ImageNet the folder of `train/<class>/`
    and `val/<class>/`; the folder around it does as well. Raises InputError for anything else.
    """
    if name not in NAMES:
        raise InputError(f"unknown data set {name!r}, must be one of {', '.join(NAMES)}")
    if name not in EMBEDDED:
        if path is not None:
            raise InputError(f"{name} is embedded and takes no path, got {path}")
        return _embedded(name)
    if path is None:
        raise InputError(f"{name} needs the path of its files; {EMBEDDED[name]} is its embedded stand-in")
    try:
        return _from_path(name, path.expanduser().resolve())
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from error
    except RuntimeError as error:  # links in a circle, or the home of nobody
        raise InputError(f"{path}: {error}") from None


@cache
def _embedded(name: str) -> Dataset:
    return _in_memory(name, *_digits(_DIGITS[name]))


@cache
def _from_path(name: str, path: Path) -> Dataset:
    if not path.is_dir():
        raise InputError(f"{path}: {'is no folder' if path.exists() else 'does not exist'}")
    if name == "imagenet":
        return _imagenet(path)
    contents = cifar.read(name, path) or _cifar_folders(name, path)
    if contents is None:
        other = "cifar10" if name == "cifar100" else "cifar100"
        if cifar.holds(other, path):
            raise InputError(f"{path}: holds {other}, not {name}")
        raise InputError(f"{path}: holds no {name} in binary or python layout nor train/ and test/ class folders")
    return _in_memory(name, *contents)


def _in_memory(name: str, classes: tuple[str, ...], train: cifar.Arrays, test: cifar.Arrays) -> Dataset:
    splits = Split(*train), Split(*test)
    return _dataset(name, classes, *splits, "pixels", (train[0].data, test[0].data))


def _dataset(
    name: str, classes: tuple[str, ...], train: Split, test: Split, hash_of: str, content: Iterable[Any]
) -> Dataset:
    """Put a data set together; `content` is the bytes that identify its images."""
    digest = hashlib.sha256(json.dumps([classes, len(train), len(test)]).encode())
    for part in chain((split.labels.astype("<i8").data for split in (train, test)), content):
        digest.update(part)
    counts = {"name": name, "classes": len(classes), "train": len(train), "test": len(test)}
    fingerprint: dict[str, object] = {**counts, "sha256": digest.hexdigest(), "hash_of": hash_of}
    return Dataset(name, classes, train, test, *_STATISTICS[name], fingerprint)


class _Digits(NamedTuple):
    places: int  # digits side by side: 10**places classes
    side: int  # of the image, in pixels
    train: int
    test: int


_DIGITS = {
    "digits10": _Digits(1, 32, 5_000, 1_000),
    "digits100": _Digits(2, 32, 10_000, 2_000),
    "digits1000": _Digits(3, 64, 10_000, 2_000),
}
_SEED = 20170204  # any number will do; another one makes other images
_LUMA = np.array([299, 587, 114])  # thousandths, ITU-R BT.601
_CONTRAST = 90_000  # least difference in luminance of digit and background, of 255,000


def _digits(spec: _Digits) -> cifar.Contents:
    """Compose the 1,797 handwritten 8x8 digits of scikit-learn (UCI) into numbers of `spec.places` digits.

    Every fifth source of a digit is for test and the others for train, so no source is in both. Labels
    run through the classes in turn.
    """
    from sklearn.datasets import load_digits

    sources, digit = load_digits(return_X_y=True)
    rng = np.random.default_rng(_SEED)
    by_digit = [rng.permutation(sources[digit == d].reshape(-1, 8, 8).astype(np.float32)) for d in range(10)]
    train = _compose(rng, [np.delete(pool, np.s_[::5], axis=0) for pool in by_digit], spec, spec.train)
    test = _compose(rng, [pool[::5] for pool in by_digit], spec, spec.test)
    return tuple(f"{number:0{spec.places}d}" for number in range(10**spec.places)), train, test


def _compose(rng: np.random.Generator, pools: list[NDArray[np.float32]], spec: _Digits, size: int) -> cifar.Arrays:
    """Draw `size` numbers with random sources, places, scales and colours."""
    labels = np.arange(size, dtype=np.int64) % 10**spec.places
    digit = labels[:, None] // 10 ** np.arange(spec.places)[::-1] % 10  # (size, places), most significant first
    lengths = np.array([len(pool) for pool in pools])
    chosen = (np.cumsum(lengths) - lengths)[digit] + (rng.random(digit.shape) * lengths[digit]).astype(int)
    sources = np.concatenate(pools)

    width = spec.side / spec.places
    height = min(spec.side, 1.6 * width)
    scale_x, scale_y = (extent / 8 * rng.uniform(0.7, 0.95, digit.shape) for extent in (width, height))
    x = width * (np.arange(spec.places) + 0.5 + rng.uniform(-0.06, 0.06, digit.shape))
    y = spec.side * (0.5 + rng.uniform(-0.06, 0.06, digit.shape))
    colours = _colours(rng, size)

    images = np.empty((size, spec.side, spec.side, 3), np.uint8)
    for start in range(0, size, 500):  # bounds the memory
        part = slice(start, start + 500)
        rows, columns = _taps(y[part], scale_y[part], spec.side), _taps(x[part], scale_x[part], spec.side)
        images[part] = _paint(_place(rows, sources[chosen[part]], columns), colours[part])
    return images, labels


def _taps(centre: NDArray[np.float64], scale: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Return the weights of 8 source pixels in `side` pixels, (N, places, side, 8), for linear interpolation.

    They are whole 64ths: all sums after them are exact in float32, so every machine makes the same images.
    """
    at = (np.arange(side) + 0.5 - centre[..., None]) / scale[..., None] + 3.5
    tent = np.maximum(1 - abs(at[..., None] - np.arange(8)), 0)
    weights: NDArray[np.float32] = np.rint(64 * tent).astype(np.float32)
    return weights


def _place(rows: NDArray[np.float32], sources: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.int32]:
    """Resample sources (N, places, 8, 8) and add up each number's digits: ink (N, side, side) in 0..65536."""
    number, places, side, _ = rows.shape
    tall = (rows @ sources).transpose(0, 2, 1, 3).reshape(number, side, places * 8)
    wide = columns.transpose(0, 1, 3, 2).reshape(number, places * 8, side)
    return np.minimum(tall @ wide, 65536).astype(np.int32)


def _paint(ink: NDArray[np.int32], colours: NDArray[np.int32]) -> NDArray[np.int32]:
    """Blend from background to digit colour, (N, 2, 3), by ink."""
    paper, pen = colours[:, 0, None, None], colours[:, 1, None, None]
    return (paper * 65536 + ink[..., None] * (pen - paper) + 32768) >> 16


def _colours(rng: np.random.Generator, size: int) -> NDArray[np.int32]:
    """Draw pairs of colours, (size, 2, 3) in 0..255, far enough apart in luminance to read a digit."""
    colours = rng.integers(256, size=(size, 2, 3), dtype=np.int32)
    while len(close := np.flatnonzero(abs(np.diff(colours @ _LUMA, axis=1)[:, 0]) < _CONTRAST)):
        colours[close] = rng.integers(256, size=(len(close), 2, 3), dtype=np.int32)
    return colours


class _Listing(NamedTuple):
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: NDArray[np.int64]
    sizes: tuple[int, ...]
    listing: bytes  # a line a file: class/name, size in bytes


def _imagenet(path: Path) -> Dataset:
    root = _class_folders("imagenet", path)
    if root is None:
        raise InputError(f"{path}: holds no train/ and val/ class folders")
    train, test = _both(root, "val", _PHOTOS)
    splits = [Split(split.files, split.labels, split.sizes) for split in (train, test)]
    return _dataset("imagenet", train.classes, splits[0], splits[1], "listing", (train.listing, test.listing))


def _cifar_folders(name: str, path: Path) -> cifar.Contents | None:
    root = _class_folders(name, path)
    if root is None:
        return None
    train, test = _both(root, "test" if (root / "test").is_dir() else "val", (*_PHOTOS, ".webp"))
    if len(train.classes) != cifar.CLASSES[name]:
        wanted = cifar.CLASSES[name]
        raise InputError(f"{root / 'train'}: {len(train.classes)} class folders, {name} has {wanted}")
    return train.classes, _decode(train), _decode(test)


def _class_folders(name: str, path: Path) -> Path | None:
    """Return the folder that holds train/: `path`, `path/name` or the only one that does in `path`."""
    for root in (path, path / name):
        if (root / "train").is_dir():
            return root
    inside = [root for root in path.iterdir() if (root / "train").is_dir()]
    return inside[0] if len(inside) == 1 else None


def _both(root: Path, test: str, suffixes: tuple[str, ...]) -> tuple[_Listing, _Listing]:
    if not (root / test).is_dir():
        raise InputError(f"{root}: holds train/ but no {test}/")
    splits = _list(root / "train", suffixes), _list(root / test, suffixes)
    if odd := sorted(set(splits[0].classes) ^ set(splits[1].classes)):
        raise InputError(f"{root}: class {odd[0]!r} is not in both train/ and {test}/ ({len(odd)} differ)")
    return splits


# Below so many images a listing takes no time worth a file.
_WORTH_CACHING = 20_000


def _list(folder: Path, suffixes: tuple[str, ...]) -> _Listing:
    """List the images of each class folder in sorted order, without opening one.

    A long list is kept in the user's cache, and used as long as no class folder's time has changed: to ask a network
    file system for the size of 1.28 million files takes minutes.
    """
    classes = _scan(folder, lambda entry: entry.is_dir())
    if not classes:
        raise InputError(f"{folder}: holds no class folders")
    stamp = json.dumps([suffixes, [(name, (folder / name).stat().st_mtime_ns) for name, _ in classes]])
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crelu-suite" / f"{digest}.listing"
    with contextlib.suppress(OSError, zlib.error, ValueError, KeyError):  # a damaged list is made anew
        head, _, body = zlib.decompress(cached.read_bytes()).partition(b"\n")
        if head == stamp.encode():
            return _from_listing(folder, tuple(name for name, _ in classes), body)
    listing = _list_anew(folder, classes, suffixes)
    if listing.listing.count(b"\n") == len(listing.files) >= _WORTH_CACHING:  # no name holds a line break
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time and nothing else
            write(cached, zlib.compress(stamp.encode() + b"\n" + listing.listing, 1))
    return listing


def _from_listing(folder: Path, classes: tuple[str, ...], listing: bytes) -> _Listing:
    lines = [line.split(b"\0") for line in listing.split(b"\n")[:-1]]
    names, sizes = [os.fsdecode(name) for name, _ in lines], tuple(int(size) for _, size in lines)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[home] for home, _ in (name.split("/") for name in names)], dtype=np.int64)
    return _Listing(classes, tuple(folder / name for name in names), labels, sizes, listing)


def _list_anew(folder: Path, classes: list[tuple[str, int]], suffixes: tuple[str, ...]) -> _Listing:
    files: list[Path] = []
    sizes: list[int] = []
    lines: list[str] = []
    counts = []
    for name, _ in classes:
        home = folder / name
        images = _scan(home, lambda entry: entry.name.lower().endswith(suffixes) and not entry.is_dir())
        if not images:
            raise InputError(f"{home}: holds no images ({', '.join(suffixes)})")
        files += [home / file for file, _ in images]
        sizes += [size for _, size in images]
        lines += [f"{name}/{file}\0{size}\n" for file, size in images]
        counts.append(len(images))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    names = tuple(name for name, _ in classes)
    return _Listing(names, tuple(files), labels, tuple(sizes), os.fsencode("".join(lines)))


def _scan(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[tuple[str, int]]:
    """Return name and size of the wanted, not hidden entries; a dangling link raises OSError."""
    with os.scandir(folder) as entries:
        kept = ((e.name, e.stat().st_size) for e in entries if not e.name.startswith(".") and wanted(e))
        return sorted(kept)


def _decode(listing: _Listing) -> cifar.Arrays:
    images = np.empty((len(listing.files), 32, 32, 3), np.uint8)
    for index, file in enumerate(listing.files):
        image = read_image(file)
        if image.shape != (32, 32, 3):
            raise InputError(f"{file}: {image.shape[1]}x{image.shape[0]} pixels, CIFAR's images are 32x32")
        images[index] = image
    return images, listing.labels


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a JPEG, PNG or WebP file as uint8 (H, W, 3) RGB.

    CMYK, grey and palette images are converted, 16-bit ones keep their high byte, transparency is laid on
    white. Raises InputError for a broken file or one of more than Pillow's `Image.MAX_IMAGE_PIXELS`.
    """
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as file:
            # Between once and twice the limit Pillow only warns.
            if Image.MAX_IMAGE_PIXELS and file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"more than {Image.MAX_IMAGE_PIXELS} pixels")
            image: Image.Image = file
            if file.mode.startswith("I"):
                image = Image.fromarray((np.asarray(file).clip(0, 65535) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        LookupError,
        TypeError,
        ArithmeticError,
        *bombs,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: is no readable JPEG, PNG or WebP image: {reason}") from error


def download(name: str, root: Path) -> Path:
    """Fetch CIFAR-10 or CIFAR-100 through torchvision and return the folder for `load`.

    What is complete already is not fetched again. Raises InputError without a network.
    """
    if name not in cifar.CLASSES:
        raise InputError(f"{name!r} cannot be downloaded, must be one of {', '.join(cifar.CLASSES)}")
    from torchvision import datasets
    from torchvision.datasets import utils

    # Not datasets.CIFAR10(download=True): its constructor unpickles the batches without restriction.
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder: Path = root / source.base_folder
    if all(utils.check_integrity(folder / file, md5) for file, md5 in source.train_list + source.test_list):
        return folder
    try:
        utils.download_and_extract_archive(source.url, root, filename=source.filename, md5=source.tgz_md5)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot download {name} from {source.url} to {root}: {reason}") from error
    return folder

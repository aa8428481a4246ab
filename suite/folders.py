"""Data sets as folders of images, a folder for each class: how they are listed, and how an image is read."""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suite import cifar
from suite.errors import InputError
from suite.files import write

_PHOTOS = (".jpeg", ".jpg", ".png")


class Listing(NamedTuple):
    """The N images of a split in the order of class folders and names: their files, labels, int64 (N,), and sizes in
    bytes. `listing` is what identifies them."""

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: NDArray[np.int64]
    sizes: tuple[int, ...]
    listing: bytes  # a line a file: class/name, size in bytes


def list_imagenet(path: Path) -> tuple[Listing, Listing]:
    """List the train and the validation images of ImageNet, class folders in `train/` and `val/`, and open none.

    These lie in `path`, in its `imagenet/` or in the only folder in it that has a `train/`. Raises InputError if they
    do not, or if a class has no images or is in one split only; OSError for what cannot be looked into.
    """
    root = _class_folders("imagenet", path)
    if root is None:
        raise InputError(f"{path}: holds no train/ and val/ class folders")
    return _both(root, "val", _PHOTOS)


def read_cifar(name: str, path: Path) -> cifar.Contents | None:
    """Read "cifar10" or "cifar100" from class folders of 32x32 images, in `train/` and either `test/` or `val/`.

    These lie in `path`, in its folder `name` or in the only folder in it that has a `train/`; None if they do not.
    Raises InputError for another number of classes, a class that has no images or is in one split only, and an image
    that is broken or of another size; OSError for what cannot be looked into.
    """
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


def _both(root: Path, test: str, suffixes: tuple[str, ...]) -> tuple[Listing, Listing]:
    if not (root / test).is_dir():
        raise InputError(f"{root}: holds train/ but no {test}/")
    splits = _list(root / "train", suffixes), _list(root / test, suffixes)
    if odd := sorted(set(splits[0].classes) ^ set(splits[1].classes)):
        raise InputError(f"{root}: class {odd[0]!r} is not in both train/ and {test}/ ({len(odd)} differ)")
    return splits


# Below so many images a listing takes no time worth a file.
_WORTH_CACHING = 20_000


def _list(folder: Path, suffixes: tuple[str, ...]) -> Listing:
    """List the images of each class folder in sorted order, without opening one.

    A long list is kept in the user's cache, and used as long as no class folder's time has changed: to ask a network
    file system for the size of 1.28 million files takes minutes.
    """
    classes = _scan(folder, lambda entry: entry.is_dir())
    if not classes:
        raise InputError(f"{folder}: holds no class folders")
    stamp = json.dumps([suffixes, [(name, (folder / name).stat().st_mtime_ns) for name, _ in classes]])
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]
    cache = _cache()
    if cache is None:
        return _list_anew(folder, classes, suffixes)
    cached = cache / f"{digest}.listing"
    with contextlib.suppress(OSError, zlib.error, ValueError, KeyError):  # a damaged list is made anew
        head, _, body = zlib.decompress(cached.read_bytes()).partition(b"\n")
        if head == stamp.encode():
            return _from_listing(folder, tuple(name for name, _ in classes), body)
    listing = _list_anew(folder, classes, suffixes)
    if listing.listing.count(b"\n") == len(listing.files) >= _WORTH_CACHING:  # no name holds a line break
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time and nothing else
            write(cached, zlib.compress(stamp.encode() + b"\n" + listing.listing, 1))
    return listing


def _cache() -> Path | None:
    """The user's folder for what can be made anew; None for a user without a home, as in a container."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "crelu-suite"
    except RuntimeError:
        return None


def _from_listing(folder: Path, classes: tuple[str, ...], listing: bytes) -> Listing:
    lines = [line.split(b"\0") for line in listing.split(b"\n")[:-1]]
    names, sizes = [os.fsdecode(name) for name, _ in lines], tuple(int(size) for _, size in lines)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[home] for home, _ in (name.split("/") for name in names)], dtype=np.int64)
    return Listing(classes, tuple(folder / name for name in names), labels, sizes, listing)


def _list_anew(folder: Path, classes: list[tuple[str, int]], suffixes: tuple[str, ...]) -> Listing:
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
    return Listing(names, tuple(files), labels, tuple(sizes), os.fsencode("".join(lines)))


def _scan(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[tuple[str, int]]:
    """Return name and size of the wanted, not hidden entries; a dangling link raises OSError."""
    with os.scandir(folder) as entries:
        kept = ((e.name, e.stat().st_size) for e in entries if not e.name.startswith(".") and wanted(e))
        return sorted(kept)


def _decode(listing: Listing) -> cifar.Arrays:
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

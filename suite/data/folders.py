"""Data sets as folders of images, a folder for each class: how they are listed, and how
an image is read."""

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suite.data import cifar
from suite.errors import InputError, join_with_or
from suite.files import write
from suite.registry import DATA_SETS

# What `read_image` reads: names that such files have, and what Pillow calls them.
_PHOTOS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
# ILSVRC's validation images as they come, in one folder.
_FLAT = re.compile(r"ILSVRC\d{4}_val_\d{8}\.JPEG", re.IGNORECASE)


class Listing(NamedTuple):
    """The N images of a split in the order of class folders and names: their files,
    labels, int64 (N,), and sizes in bytes. `listing` is what identifies them,
    `left_out` says what else lies there, and `kept` is the file that the list came from
    if it was not made just now."""

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: NDArray[np.int64]
    sizes: tuple[int, ...]
    listing: bytes  # a line a file: class/name, size in bytes
    left_out: str = ""
    kept: Path | None = None


def list_imagenet(path: Path) -> tuple[Listing, Listing]:
    """List the train and the validation images of ImageNet, class folders in `train/`
    and `val/`, and open none.

    These lie in `path`, in its `imagenet/` or in the only folder in it that has a
    `train/`. Raises InputError if they do not, or if a class has no images or is in one
    split only; OSError for what cannot be looked into.
    """
    root = _class_folders("imagenet", path)
    if root is None:
        raise InputError(f"{path}: holds no train/ and val/ class folders")
    return _both(root, "val")


def list_own(name: str, path: Path) -> tuple[Listing, Listing]:
    """List the images of a data set of a user's own, class folders in `train/` and in
    `val/` or else `test/`.

    They lie where `list_imagenet` looks for ImageNet's, and it raises what that
    raises.
    """
    root = _class_folders(name, path)
    if root is None:
        raise InputError(f"{path}: holds no train/ and val/ class folders")
    return _both(root, "val" if (root / "val").is_dir() or not (root / "test").is_dir() else "test")


def read_cifar(name: str, path: Path) -> tuple[cifar.Contents, tuple[str, ...]] | None:
    """Read "cifar10" or "cifar100" from class folders of 32x32 images, in `train/` and
    either `test/` or `val/`.

    Returns these, and what to say of files that were left out; None if there are none
    in `path`, in its folder `name` or in the only folder in it that has a `train/`.
    Raises InputError for another number of classes, a class that has no images or is in
    one split only, and an image that is broken or of another size; OSError for what
    cannot be looked into.
    """
    root = _class_folders(name, path)
    if root is None:
        return None
    train, test = _both(root, "test" if (root / "test").is_dir() else "val")
    wanted = DATA_SETS[name].classes
    if len(train.classes) != wanted:
        raise InputError(f"{root / 'train'}: {len(train.classes)} class folders, {name} has {wanted}")
    notes = tuple(split.left_out for split in (train, test) if split.left_out)
    return (train.classes, decode(train), decode(test)), notes


def _class_folders(name: str, path: Path) -> Path | None:
    """Return the folder that holds train/: `path`, `path/name` or the only one that
    does in `path`."""
    for root in (path, path / name):
        if (root / "train").is_dir():
            return root
    inside = [root for root in path.iterdir() if (root / "train").is_dir()]
    return inside[0] if len(inside) == 1 else None


def _both(root: Path, test: str) -> tuple[Listing, Listing]:
    if not (root / test).is_dir():
        raise InputError(f"{root}: holds train/ but no {test}/")
    splits = _list(root / "train"), _list(root / test)
    if odd := sorted(set(splits[0].classes) ^ set(splits[1].classes)):
        raise InputError(f"{root}: class {odd[0]!r} is not in both train/ and {test}/ ({len(odd)} differ)")
    return splits


# Below so many images a listing takes no time worth a file.
_WORTH_CACHING = 20_000


# Seconds in which a kept list is held against the files, in random order: enough for all of a local disk.
_CHECK = 5.0


def _list(folder: Path) -> Listing:
    """List the images of each class folder in sorted order, without opening one.

    A long list is kept in the user's cache, and used as long as no class folder's time
    has changed: to ask a network file system for the size of 1.28 million files takes
    minutes. An image that was changed in its place leaves that time as it was, so that
    as many sizes are looked at as a short time allows.
    """
    with os.scandir(folder) as entries:
        names = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
    classes, loose = sorted(name for name in names if names[name]), sorted(name for name in names if not names[name])
    if not classes:
        raise InputError(f"{folder}: holds no class folders{_flat(loose)}")
    stamp = json.dumps([_PHOTOS, [(name, (folder / name).stat().st_mtime_ns) for name in classes]])
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]
    cache = _cache()
    cached = cache / f"{digest}.listing" if cache else None
    if cached:
        with contextlib.suppress(OSError, zlib.error, ValueError, KeyError):  # a damaged list is made anew
            head, _, body = zlib.decompress(cached.read_bytes()).partition(b"\n")
            known, odd = json.loads(head)
            if known == stamp and _holds(listing := _from_listing(folder, tuple(classes), body)):
                return listing._replace(left_out=_left_out(folder, odd, loose), kept=cached)
    listing, odd = _list_anew(folder, classes)
    if cached and listing.listing.count(b"\n") == len(listing.files) >= _WORTH_CACHING:  # no name holds a line break
        head = json.dumps([stamp, odd]).encode()
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time and nothing else
            write(cached, zlib.compress(head + b"\n" + listing.listing, 1))
    return listing._replace(left_out=_left_out(folder, odd, loose))


def _holds(listing: Listing) -> bool:
    """Whether files have the sizes that a kept list says, as far as the time for it
    reaches."""
    until = monotonic() + _CHECK
    for index in np.random.default_rng().permutation(len(listing.files)):
        if os.stat(listing.files[index]).st_size != listing.sizes[index]:
            return False
        if monotonic() > until:
            break
    return True


def _flat(loose: Sequence[str]) -> str:
    """What to say of files in the place of class folders."""
    if any(_FLAT.fullmatch(name) for name in loose):
        return (
            ", but ILSVRC's validation images as they come, whose names tell no class; put them into folders named "
            "as those in train/, as torchvision.datasets.ImageNet(FOLDER, 'val') does from the archives of images "
            "and development kit"
        )
    return f", but {len(loose)} files" if loose else ""


def _left_out(folder: Path, odd: Mapping[str, int], loose: Sequence[str]) -> str:
    """What to say of that which is no image by its name or place; `odd` counts what
    class folders hold by its kind."""
    files = ", ".join(f"{kind} {count}" for kind, count in sorted(odd.items()) if kind != "/")
    parts = [f"{len(loose)} files beside the class folders"] if loose else []
    if files:
        parts.append(f"files that are none of {', '.join(_PHOTOS)}: {files}")
    if folders := odd.get("/"):
        parts.append(f"{folders} folders in class folders")
    return f"{folder}: left out: {'; '.join(parts)}" if parts else ""


def _cache() -> Path | None:
    """The user's folder for what can be made anew; None for a user without a home, as
    in a container."""
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


def _list_anew(folder: Path, classes: Sequence[str]) -> tuple[Listing, dict[str, int]]:
    """The list, and how many there are of what is not in it: by suffix, and of folders
    under "/"."""
    files: list[Path] = []
    sizes: list[int] = []
    lines: list[str] = []
    counts = []
    odd: Counter[str] = Counter()
    for name in classes:
        home = folder / name
        images = []
        with os.scandir(home) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    odd["/"] += 1
                elif entry.name.lower().endswith(_PHOTOS):
                    images.append((entry.name, entry.stat().st_size))  # OSError for a dangling link
                else:
                    odd[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1
        if not images:
            raise InputError(f"{home}: holds no images; give a folder with {join_with_or(_PHOTOS)} files")
        images.sort()
        files += [home / file for file, _ in images]
        sizes += [size for _, size in images]
        lines += [f"{name}/{file}\0{size}\n" for file, size in images]
        counts.append(len(images))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    listing = os.fsencode("".join(lines))
    return Listing(tuple(classes), tuple(files), labels, tuple(sizes), listing), dict(odd)


def decode(listing: Listing, side: int = 32, why: str = "CIFAR's images are", remedy: str = "") -> cifar.Arrays:
    """The images of a list, which are squares of `side` pixels, in memory. Raises
    InputError for one of another size, which says `why` it is wrong, and the
    `remedy`."""
    images = np.empty((len(listing.files), side, side, 3), np.uint8)
    for index, file in enumerate(listing.files):
        image = read_image(file)
        if image.shape != (side, side, 3):
            raise InputError(f"{file}: {image.shape[1]}x{image.shape[0]} pixels, {why} {side}x{side}{remedy}")
        images[index] = image
    return images, listing.labels


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a JPEG, PNG, WebP, BMP or TIFF file as uint8 (H, W, 3) RGB.

    CMYK, grey and palette images are converted, 16-bit ones keep their high byte,
    transparency is laid on white. Raises InputError for a broken file or one of more
    than Pillow's `Image.MAX_IMAGE_PIXELS`.
    """
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(path, formats=_FORMATS) as file:
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
        raise InputError(f"{path}: is no readable JPEG, PNG, WebP, BMP or TIFF image: {reason}") from error

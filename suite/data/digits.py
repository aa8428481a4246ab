"""The embedded data sets: handwritten digits, composed into numbers."""

from importlib import util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suite.data.cifar import Arrays, Contents


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


def draw(name: str) -> Contents:
    """Draw "digits10", "digits100" or "digits1000", whose images are numbers of one,
    two or three digits.

    They are composed of the 1,797 handwritten 8x8 digits of scikit-learn (UCI). Every
    fifth source of a digit is for test and the others for train, so no source is in
    both. Labels run through the classes in turn.

    Returns class names, train and test; of each the images, uint8 (N, side, side, 3)
    RGB with a side of 32 pixels, for three digits 64, and the labels, int64 (N,). They
    are the same on every machine.
    """
    spec = _DIGITS[name]
    sources, digit = _handwritten()
    rng = np.random.default_rng(_SEED)
    by_digit = [rng.permutation(sources[digit == d].reshape(-1, 8, 8).astype(np.float32)) for d in range(10)]
    train = _compose(rng, [np.delete(pool, np.s_[::5], axis=0) for pool in by_digit], spec, spec.train)
    test = _compose(rng, [pool[::5] for pool in by_digit], spec, spec.test)
    return tuple(f"{number:0{spec.places}d}" for number in range(10**spec.places)), train, test


def _handwritten() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """scikit-learn's digits, (1797, 64) in 0..16, and which digit each is: from its
    file, which takes a tenth of the time to read that the package takes to import."""
    found = util.find_spec("sklearn")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if file is None or not file.is_file():
        from sklearn.datasets import load_digits

        sources, digit = load_digits(return_X_y=True)
        return sources, digit
    table: NDArray[np.float64] = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def _compose(rng: np.random.Generator, pools: list[NDArray[np.float32]], spec: _Digits, size: int) -> Arrays:
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
    """Return the weights of 8 source pixels in `side` pixels, (N, places, side, 8), for
    linear interpolation.

    They are whole 64ths: all sums after them are exact in float32, so every machine
    makes the same images.
    """
    at = (np.arange(side) + 0.5 - centre[..., None]) / scale[..., None] + 3.5
    tent = np.maximum(1 - abs(at[..., None] - np.arange(8)), 0)
    weights: NDArray[np.float32] = np.rint(64 * tent).astype(np.float32)
    return weights


def _place(rows: NDArray[np.float32], sources: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.int32]:
    """Resample sources (N, places, 8, 8) and add up each number's digits: ink (N, side,
    side) in 0..65536."""
    number, places, side, _ = rows.shape
    tall = (rows @ sources).transpose(0, 2, 1, 3).reshape(number, side, places * 8)
    wide = columns.transpose(0, 1, 3, 2).reshape(number, places * 8, side)
    return np.minimum(tall @ wide, 65536).astype(np.int32)


def _paint(ink: NDArray[np.int32], colours: NDArray[np.int32]) -> NDArray[np.int32]:
    """Blend from background to digit colour, (N, 2, 3), by ink."""
    paper, pen = colours[:, 0, None, None], colours[:, 1, None, None]
    return (paper * 65536 + ink[..., None] * (pen - paper) + 32768) >> 16


def _colours(rng: np.random.Generator, size: int) -> NDArray[np.int32]:
    """Draw pairs of colours, (size, 2, 3) in 0..255, far enough apart in luminance to
    read a digit."""
    colours = rng.integers(256, size=(size, 2, 3), dtype=np.int32)
    while len(close := np.flatnonzero(abs(np.diff(colours @ _LUMA, axis=1)[:, 0]) < _CONTRAST)):
        colours[close] = rng.integers(256, size=(len(close), 2, 3), dtype=np.int32)
    return colours

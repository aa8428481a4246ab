"""Tests of the embedded digits."""

import numpy as np
import pytest

from suite.data import digits
from suite.data.sets import load
from suite.registry import STAND_INS

DIGITS = tuple(STAND_INS.values())
FINGERPRINTS = {
    "digits10": "34192fd4bc2efd804a4240ebfe33d822b78765c27e0ef6bfe41693dd000857f5",
    "digits100": "68f364459edd708caefc7009fd9a694ae646beb586e4303f34c78e8c949a004b",
    "digits1000": "c380c34189c7ed2da442c97f2494c9f6f36def4884a7232ce61112e00179d2c8",
}


@pytest.mark.parametrize(
    ("name", "side", "train", "test"),
    [("digits10", 32, 5_000, 1_000), ("digits100", 32, 10_000, 2_000), ("digits1000", 64, 10_000, 2_000)],
)
def test_digits_hold_every_class_equally_often(name, side, train, test):
    dataset = load(name)
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
    dataset = load(name)
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
    dataset = load(name)
    counts = np.stack([np.bincount(dataset.train.images[..., c].ravel(), minlength=256) for c in range(3)])
    mean = counts @ np.arange(256) / counts.sum(1)
    std = np.sqrt(counts @ np.arange(256) ** 2 / counts.sum(1) - mean**2)
    assert dataset.mean == tuple(mean.round(1))
    assert dataset.std == tuple(std.round(1))


def test_train_and_test_digits_share_no_source(monkeypatch):
    pools = []
    monkeypatch.setattr(digits, "_compose", lambda rng, pool, spec, size: pools.append(pool))
    digits.draw("digits10")
    train, test = pools
    assert sum(map(len, train)) + sum(map(len, test)) == 1797
    for left, right in zip(train, test, strict=True):
        assert len(right) == -(-(len(left) + len(right)) // 5)
        assert not {glyph.tobytes() for glyph in left} & {glyph.tobytes() for glyph in right}


def test_a_number_is_drawn_from_left_to_right():
    rng = np.random.default_rng(0)
    pools = [np.full((1, 8, 8), 16 * (digit == 1), np.float32) for digit in range(10)]
    images, labels = digits._compose(rng, pools, digits._Digits(2, 32, 0, 0), 20)
    assert labels.tolist() == list(range(20))
    paper = images[:, :1, :1].astype(int)
    inked = (images != paper).any(axis=(1, 3))
    assert not inked[0].any()  # 00
    assert np.flatnonzero(inked[1]).min() >= 14  # 01
    assert np.flatnonzero(inked[10]).max() <= 18  # 10
    assert inked[11, [8, 24]].all()


def test_digits_stand_out_from_their_background_in_luminance():
    colours = digits._colours(np.random.default_rng(0), 10_000).astype(float)
    luminance = colours @ [0.299, 0.587, 0.114]
    assert abs(luminance[:, 0] - luminance[:, 1]).min() >= 90 - 1e-9


def test_a_simple_classifier_learns_the_digits():
    from sklearn.linear_model import RidgeClassifier

    dataset = load("digits10")

    def ink(images):
        paper = images[:, :1, :1].astype(np.float32)
        return abs(images - paper).sum(-1)[:, ::2, ::2].reshape(len(images), -1) / 765

    model = RidgeClassifier().fit(ink(dataset.train.images[:2000]), dataset.train.labels[:2000])
    assert model.score(ink(dataset.test.images), dataset.test.labels) > 0.8


def test_the_handwritten_digits_are_those_that_scikit_learn_hands_out() -> None:
    from sklearn.datasets import load_digits

    for ours, theirs in zip(digits._handwritten(), load_digits(return_X_y=True), strict=True):
        assert np.array_equal(ours, theirs)

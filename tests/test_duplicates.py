"""Copies of images in the training images: planted ones are found, other images are not."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_real_images, unpack_real_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ngf import duplicates
from ngf.images import encode
from ngf.images import encoded as encoded_split


def pictures(rng: np.random.Generator, n: int, size: tuple[int, int]) -> np.ndarray:
    """Coarse patches, more shade than colour, with some grain; uint8 [n, *size, 3]."""
    patches = rng.integers(60, 196, (n, 6, 6, 1)) + rng.integers(-20, 21, (n, 6, 6, 3))
    at = [np.arange(side) * 6 // side for side in size]
    grain = rng.integers(-10, 11, (n, *size, 3))
    return (patches[:, at[0]][:, :, at[1]] + grain).astype(np.uint8)


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(stream))


def noisy(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    return (image + rng.normal(0, deviation, image.shape)).round().clip(0, 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(32, 64), st.integers(32, 64)),
    quality=st.integers(85, 95),
    deviation=st.floats(0.5, 3),
)
def test_planted_copies_are_found_and_nothing_else(seed, size, quality, deviation):
    rng = np.random.default_rng(seed)
    train, test = pictures(rng, 300, size), pictures(rng, 40, size)
    exact, small, re_encoded = (place.tolist() for place in rng.permutation(40)[:9].reshape(3, 3))
    at = dict(zip(exact + small + re_encoded, rng.permutation(300)[:9].tolist(), strict=True))
    for row in exact:
        train[at[row]] = test[row]
    for row in small:
        train[at[row]] = noisy(test[row], rng, deviation)
    for row in re_encoded:
        train[at[row]] = encoded(test[row], quality)
    found = duplicates.find(train, {"clean": test[:0], "test": test})
    assert found["clean"] == []
    assert {pair.row: pair.train_row for pair in found["test"]} == at
    assert {pair.row for pair in found["test"] if pair.difference == 0} == set(exact)
    for pair in found["test"]:
        apart = np.abs(test[pair.row].astype(int) - train[pair.train_row]).mean()
        assert pair.difference == pytest.approx(apart)
    assert duplicates.counts(found)["duplicates_test"] == 3
    assert duplicates.counts(found)["near_duplicates_test"] == 6
    assert duplicates.said(found) == "also in train: 0 clean, 3 test (nearly 0, 6)"


def test_one_changed_part_or_other_colours_are_another_image():
    image = pictures(np.random.default_rng(0), 1, (32, 32))[0]
    part = image.copy()
    part[8:14, 8:14] = 255 - part[8:14, 8:14]
    assert np.abs(part.astype(int) - image).mean() < duplicates.PIXELS / 2
    redder = (image + np.array([48, -24, -1])).clip(0, 255).astype(np.uint8)  # no brighter
    for other in (part, redder, image[::-1], image[:, ::-1], np.roll(image, 4, 0)):
        assert duplicates.find(other[None], {"test": image[None]})["test"] == []


def test_flat_images_are_found_by_their_pixels_alone():
    flat = np.full((3, 16, 16, 3), 30, np.uint8)
    flat[1:] += np.random.default_rng(0).integers(0, 3, (2, 16, 16, 3), np.uint8)
    found = duplicates.find(flat[:2], {"test": flat})["test"]
    assert [(pair.row, pair.train_row, pair.difference) for pair in found] == [(0, 0, 0), (1, 1, 0)]


class Stored:
    """Images that remember how many of them were asked for at once."""

    def __init__(self, x_NHWC: np.ndarray) -> None:
        self._x_NHWC, self.shape, self.most = x_NHWC, x_NHWC.shape, 0

    def __len__(self) -> int:
        return len(self._x_NHWC)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        found = self._x_NHWC[rows]
        self.most = max(self.most, len(found))
        return found


def test_images_are_read_in_blocks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(1)
    train, test = pictures(rng, 200, (16, 16)), pictures(rng, 90, (16, 16))
    train[:50] = [noisy(image, rng, 2) for image in test[:50]]
    train[150:200] = [noisy(image, rng, 1) for image in test[:50]]  # closer, in a later block
    train[60] = train[70] = test[80]
    whole = duplicates.find(train, {"test": test})
    monkeypatch.setattr(duplicates, "ROOM", 7 * 16 * 16 * 3)
    monkeypatch.setattr(duplicates, "QUERIES", 11)
    stored = Stored(train), Stored(test)
    assert duplicates.find(stored[0], {"test": stored[1]}) == whole
    assert [array.most for array in stored] == [7, 7]
    assert {pair.row: pair.train_row for pair in whole["test"]} == {
        **{row: row + 150 for row in range(50)},
        80: 60,
    }


def test_encoded_images_are_searched_too():
    rng = np.random.default_rng(2)
    train, test = pictures(rng, 30, (80, 80)), pictures(rng, 5, (80, 80))
    train[7], train[9] = test[3], noisy(test[1], rng, 2)
    stored = [
        encoded_split([encode(Image.fromarray(image)) for image in x_NHWC], (80, 80))
        for x_NHWC in (train, test)
    ]
    found = duplicates.find(stored[0], {"test": stored[1]})["test"]
    assert [(pair.row, pair.train_row) for pair in found] == [(1, 9), (3, 7)]
    assert found[0].difference > found[1].difference == 0


def test_a_report_is_short_and_begins_with_the_closest():
    pairs = [duplicates.Pair(row, 2 * row, 10 - row / 100) for row in range(500)]
    report = duplicates.report({"test": [*pairs, duplicates.Pair(500, 7, 0.0)]})
    assert (report["duplicates_test"], report["near_duplicates_test"]) == (1, 500)
    assert len(report["pairs"]["test"]) == duplicates.LISTED
    assert report["pairs"]["test"][:2] == [
        {"row": 500, "train_row": 7, "difference": 0.0},
        {"row": 499, "train_row": 998, "difference": 5.01},
    ]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    unpack_real_images("npz", folder)
    return folder


def images(real: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(real / f"{name}.npz") as stored:
        return stored["x"], stored["y"]


@needs_real_images
@pytest.mark.slow
def test_real_cifar10(real):
    """Two test images are in train in other colours; planted ones are found, within ten seconds."""
    (train, _), (test, _) = images(real, "cifar10_train"), images(real, "cifar10_test")
    rng = np.random.default_rng(0)
    planted = rng.permutation(len(test))[:300]
    train[1000:1300] = [encoded(image, 75) for image in test[planted]]
    started = time.process_time()
    found = duplicates.find(train, {"test": test})["test"]
    assert time.process_time() - started < 10
    at = {pair.row: pair.train_row for pair in found}
    hit = [at.get(row) == 1000 + place for place, row in enumerate(planted.tolist())]
    assert np.mean(hit) > 0.98
    assert {row: at[row] for row in set(at) - set(planted.tolist())} == {2057: 24687, 8299: 35398}


@needs_real_images
@pytest.mark.slow
def test_real_gtsrb(real):
    """Eight frames of one stop sign are in both of its splits; 70 and 80 are not taken for one."""
    (train, y_train), (test, y_test) = images(real, "gtsrb32_train"), images(real, "gtsrb32_test")
    found = duplicates.find(train, {"test": test})["test"]
    assert [pair.difference for pair in found] == [0] * 8
    assert {int(y_test[pair.row]) for pair in found} == {14}
    assert {int(y_train[pair.train_row]) for pair in found} == {14}

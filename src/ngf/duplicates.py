"""Images of one split that are in the training images too: exact copies and near ones.

Barz and Denzler 2020 (Do We Train on Test Data? arXiv 1902.00423) found such copies in the test
split of CIFAR-10, by features of a network and by eye. Here a copy has the same pixels, or is what
encoding, small noise or resizing leave of them; a shifted or cut copy is not looked for.

A fingerprint is the block means of Yang, Gu and Niu 2006 (Block Mean Value Based Image Perceptual
Hashing): the image's luminance in 8x8 cells, here not as bits but with mean 0 and deviation 1, so
that brightness and contrast do not count. Near is a pair of which no cell differs by more than
`CELL` and the pixels by no more than `PIXELS` in the mean. Two traffic signs that differ in one
digit pass the second of these and not the first.

One pass over the training images; beside a block of them only the others' fingerprints and digests
are in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ngf.images import Images
from ngf.progress import track

GRID = 8  # cells a side
CELL = 0.15  # deviations; the closest pair of different signs in GTSRB has 0.28
PIXELS = 16.0  # grey levels of 255; JPEG of quality 50 costs 7 to 17
FLAT = 2.0  # grey levels; cells that deviate less say nothing, only exact copies are found
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
BLOCK, ROOM = 1024, 1 << 25  # a block has as many images at most, and as many bytes
QUERIES = 4096  # fingerprints that are compared with a block at once
LISTED = 200  # pairs that a report names at most


class Pair(NamedTuple):
    """An image and its closest copy in the training images.

    difference: mean absolute difference of the pixels in grey levels; 0 is an exact copy.
    """

    row: int
    train_row: int
    difference: float


def find(train_NHWC: Images, others: Mapping[str, Images]) -> dict[str, list[Pair]]:
    """The images of each other split that have a copy in the training images, by row.

    Args:
        train_NHWC, others: of one H and W; read in blocks of rows.
    """
    searches = {name: _Search(x_NHWC) for name, x_NHWC in others.items()}
    for start, block_BHWC in _blocks(train_NHWC, "look for duplicates"):
        digests, prints_BD = _digests(block_BHWC), _fingerprints(block_BHWC)
        for search in searches.values():
            search.exact(start, digests)
            search.near(start, block_BHWC, prints_BD)
    return {name: search.pairs() for name, search in searches.items()}


def counts(found: Mapping[str, list[Pair]]) -> dict[str, int]:
    """Images with an exact copy (`duplicates_<split>`), and with a near one alone."""
    total: dict[str, int] = {}
    for name, pairs in found.items():
        exact = sum(pair.difference == 0 for pair in pairs)
        total |= {f"duplicates_{name}": exact, f"near_duplicates_{name}": len(pairs) - exact}
    return total


def said(found: Mapping[str, list[Pair]]) -> str:
    """The counts as a person reads them: `also in train: 0 clean, 8 test (nearly 1, 0)`."""
    number = counts(found)
    exact = ", ".join(f"{number[f'duplicates_{name}']} {name}" for name in found)
    near = ", ".join(f"{number[f'near_duplicates_{name}']}" for name in found)
    return f"also in train: {exact} (nearly {near})"


def report(found: Mapping[str, list[Pair]]) -> dict[str, Any]:
    """For a person: the counts, and the first `LISTED` pairs of each split, closest first."""
    listed = {
        name: sorted(pairs, key=lambda pair: pair.difference)[:LISTED]
        for name, pairs in found.items()
    }
    return {
        **counts(found),
        "pairs": {name: [_plain(pair) for pair in pairs] for name, pairs in listed.items()},
    }


def _plain(pair: Pair) -> dict[str, float]:
    return {**pair._asdict(), "difference": float(f"{pair.difference:.3g}")}


class _Search:
    """What was found so far of the images of one split."""

    def __init__(self, x_NHWC: Images) -> None:
        self._x_NHWC = x_NHWC
        self._prints_ND = np.zeros((len(x_NHWC), GRID * GRID), np.float32)
        self._rows: dict[bytes, list[int]] = {}
        for start, block_BHWC in _blocks(x_NHWC, "fingerprints"):
            self._prints_ND[start : start + len(block_BHWC)] = _fingerprints(block_BHWC)
            for row, digest in enumerate(_digests(block_BHWC), start):
                self._rows.setdefault(digest, []).append(row)
        self._train_row_N = np.zeros(len(x_NHWC), np.int64)
        self._difference_N = np.full(len(x_NHWC), np.inf)

    def exact(self, start: int, digests: list[bytes]) -> None:
        """Look for a block of training images by their digests; `start` is the first one's row."""
        for train_row, digest in enumerate(digests, start):
            for row in self._rows.pop(digest, ()):
                self._train_row_N[row], self._difference_N[row] = train_row, 0

    def near(self, start: int, block_BHWC: np.ndarray, prints_BD: np.ndarray) -> None:
        """Look at that image of a block which has the closest fingerprint, for each of ours."""
        left = np.flatnonzero(self._difference_N > 0)
        for first in range(0, len(left), QUERIES):
            rows = left[first : first + QUERIES]
            product_QB = self._prints_ND[rows] @ prints_BD.T
            at = product_QB.argmax(1)
            # No cell differs by more than CELL, so the mean square does not exceed its square.
            least = (1 - CELL**2 / 2) * prints_BD.shape[1]
            close = np.take_along_axis(product_QB, at[:, None], 1)[:, 0] >= least
            rows, at = rows[close], at[close]
            close = np.abs(self._prints_ND[rows] - prints_BD[at]).max(1) <= CELL
            self._compare(start, rows[close], at[close], block_BHWC)

    def _compare(
        self, start: int, rows: np.ndarray, at: np.ndarray, block_BHWC: np.ndarray
    ) -> None:
        """Keep these pairs where their pixels are as near as they look."""
        size = len(block_BHWC)
        for first in range(0, len(rows), size):
            mine, theirs = rows[first : first + size], at[first : first + size]
            apart_PHWC = self._x_NHWC[mine].astype(np.int16) - block_BHWC[theirs]
            difference_P = np.abs(apart_PHWC).mean((1, 2, 3))
            better = (difference_P <= PIXELS) & (difference_P < self._difference_N[mine])
            self._difference_N[mine[better]] = difference_P[better]
            self._train_row_N[mine[better]] = start + theirs[better]

    def pairs(self) -> list[Pair]:
        rows = np.flatnonzero(np.isfinite(self._difference_N))
        columns = (rows, self._train_row_N[rows], self._difference_N[rows])
        return [Pair(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]


def _blocks(x_NHWC: Images, what: str) -> Iterator[tuple[int, np.ndarray]]:
    """The images in order, and the row of each block's first one."""
    size = max(1, min(BLOCK, ROOM // max(1, math.prod(x_NHWC.shape[1:]))))
    for start in track(range(0, len(x_NHWC), size), what, -(-len(x_NHWC) // size)):
        yield start, x_NHWC[start : start + size]


def _digests(x_BHWC: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in x_BHWC]


def _fingerprints(x_BHWC: np.ndarray) -> np.ndarray:
    """float32 [B, 64], each of mean 0 and deviation 1, or all 0 where the image is flat."""
    size, height, width, colours = x_BHWC.shape
    rows_BHC = x_BHWC.astype(np.float32).reshape(size, height, width * colours)
    strips = (_means(height) @ rows_BHC).reshape(size, GRID, width, colours) @ LUMINANCE
    cells_BD = (strips @ _means(width).T).reshape(size, GRID * GRID)
    cells_BD -= cells_BD.mean(1, keepdims=True)
    deviation_B1 = cells_BD.std(1, keepdims=True)
    return np.where(deviation_B1 < FLAT, 0, cells_BD / np.maximum(deviation_B1, FLAT))


def _means(side: int) -> np.ndarray:
    """float32 [8, side]: from pixels to the means of cells, as equal as the side allows."""
    at = np.arange(side)
    inside = np.zeros((GRID, side), np.float32)
    inside[at * GRID // side, at] = 1
    return inside / np.maximum(1, inside.sum(1, keepdims=True))

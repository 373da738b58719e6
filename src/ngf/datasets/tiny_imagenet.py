"""Tiny-ImageNet (Stanford CS231n 2015): 200 classes of 500 images, 64x64; val/ is the test split.

The published layout: wnids.txt, words.txt, train/<wnid>/images/, val/images/ and
val/val_annotations.txt. The test images of the publishers have no labels.
"""

from pathlib import Path

import numpy as np

from ngf.datasets import Source, _files
from ngf.errors import InputError
from ngf.images import Images

FOLDER, ADDRESS = "tiny-imagenet-200", "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
EACH_TRAIN, EACH_TEST, SIZE = 500, 50, 64


def load(*, root: str, partial: bool) -> Source:
    """Train [100000, 64, 64, 3] and test [10000, 64, 64, 3]; as many classes as wnids.txt names.

    Args:
        root: holds tiny-imagenet-200, or is such a folder. partial: take classes of any size.
    """
    top = _top(Path(root))
    wnids = _lines(top / "wnids.txt")
    label_of = {wnid: label for label, wnid in enumerate(sorted(wnids))}
    train = [(file, label) for wnid, label in label_of.items()
             for file in _files.inside(top / "train" / wnid / "images")]  # fmt: skip
    test = _annotated(top / "val", label_of)
    if not partial:
        _check(train, EACH_TRAIN, "training", label_of)
        _check(test, EACH_TEST, "val", label_of)
    names = _names(top / "words.txt", list(label_of))
    return Source(*_read(train), *_read(test), names, flip=True)


def _read(pairs: list[tuple[Path, int]]) -> tuple[Images, np.ndarray]:
    files, labels = zip(*pairs, strict=True)
    return _files.prepared(files, SIZE), np.asarray(labels, np.int64)


def _top(root: Path) -> Path:
    for top in (root / FOLDER, root):
        if (top / "wnids.txt").is_file():
            return top
    raise InputError(
        f"no Tiny-ImageNet at {root}: unpack {ADDRESS} there ({FOLDER}/wnids.txt, ...)"
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error


def _annotated(val: Path, label_of: dict[str, int]) -> list[tuple[Path, int]]:
    """The val images and their classes, in the order of the file."""
    pairs = []
    for number, line in enumerate(_lines(val / "val_annotations.txt"), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in label_of:
            raise InputError(
                f"{val / 'val_annotations.txt'}, line {number}: class '{wnid}' is not in wnids.txt"
            )
        pairs.append((val / "images" / name, label_of[wnid]))
    if not pairs:
        raise InputError(f"{val / 'val_annotations.txt'} names no image")
    return pairs


def _check(pairs: list[tuple[Path, int]], wanted: int, what: str, label_of: dict[str, int]) -> None:
    counts = np.bincount([label for _, label in pairs], minlength=len(label_of))
    for (wnid, _), count in zip(label_of.items(), counts, strict=True):
        if count != wanted:
            raise InputError(
                f"class {wnid} has {count} {what} images, Tiny-ImageNet has {wanted}; "
                "datasets.tiny_imagenet.partial takes what is there"
            )


def _names(file: Path, wnids: list[str]) -> tuple[str, ...]:
    """`<wnid> <first word>`, so that two classes of one word differ; the wnid where it has none."""
    words = dict(line.split("\t", 1) for line in _lines(file) if "\t" in line)
    return tuple(f"{wnid} {words.get(wnid, '').split(',')[0]}".strip() for wnid in wnids)

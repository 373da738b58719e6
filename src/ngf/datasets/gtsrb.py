"""GTSRB (Stallkamp et al. 2011, the German Traffic Sign Recognition Benchmark): 43 signs.

Two layouts: Kaggle's (Train.csv, Test.csv, PNG) and torchvision's (GTSRB/Training, GTSRB/Final_Test
and GT-final_test.csv, PPM), which can also be downloaded. Images of one track show one sign from a
moving car: `prepare` takes the clean split from tracks that it keeps out of training.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngf.datasets import Source, _files
from ngf.errors import InputError
from ngf.images import Images
from ngf.params import at_least

CLASSES = tuple(f"{label:05d}" for label in range(43))  # the publishers give numbers, not names
TRAIN, TEST = 39_209, 12_630


@dataclass(frozen=True)
class _Row:
    file: Path
    label: int
    box: _files.Box


def load(*, root: str, image_size: int, roi: bool, partial: bool, download: bool) -> Source:
    """39,209 training and 12,630 test images, stretched to `image_size` squared.

    Args:
        roi: cut out the sign, as the published boxes say; else the whole image, a tenth of margin.
        partial: take the images that are there; else a missing one is an error.
        download: let torchvision fetch them where none is there.
    """
    at_least(8, image_size=image_size)
    train, test = _rows(Path(root), download)
    if partial:
        train, test = ([row for row in rows if row.file.is_file()] for rows in (train, test))
    else:
        _check(train, TRAIN, "training", root)
        _check(test, TEST, "test", root)
    return Source(
        *_read(train, image_size, roi),
        *_read(test, image_size, roi),
        CLASSES,
        flip=False,
        track_N=_tracks(train),
    )


def _read(rows: list[_Row], size: int, roi: bool) -> tuple[Images, np.ndarray]:
    x_NHWC = _files.prepared(
        [row.file for row in rows], size, boxes=[row.box for row in rows] if roi else None
    )
    return x_NHWC, np.asarray([row.label for row in rows], np.int64)


def _rows(root: Path, download: bool) -> tuple[list[_Row], list[_Row]]:
    """What the tables of either layout name."""
    if (root / "Train.csv").is_file():
        return _table(root / "Train.csv", root, ","), _table(root / "Test.csv", root, ",")
    if download and not (root / "gtsrb").is_dir():
        _download(root)
    for top in (root / "gtsrb", root):
        training = top / "GTSRB" / "Training"
        if training.is_dir():
            tables = sorted(training.glob("*/GT-*.csv"))
            train = [row for table in tables for row in _table(table, table.parent, ";")]
            return train, _table(
                top / "GT-final_test.csv", top / "GTSRB" / "Final_Test" / "Images", ";"
            )
    raise InputError(
        f"no GTSRB at {root}: put Kaggle's Train.csv, Test.csv, Train/ and Test/ there, or "
        "torchvision's gtsrb/, or set datasets.gtsrb.download"
    )


def _table(file: Path, top: Path, delimiter: str) -> list[_Row]:
    """Kaggle says Path, the publishers Filename; the rest is alike."""
    rows = []
    try:
        with file.open(newline="") as stream:
            for line in csv.DictReader(stream, delimiter=delimiter):
                name = line.get("Path") or line["Filename"]
                left, upper, right, lower = (
                    int(line[f"Roi.{side}"]) for side in ("X1", "Y1", "X2", "Y2")
                )
                label = int(line["ClassId"])
                if not 0 <= label < len(CLASSES):
                    raise ValueError(f"class {label} of {name}")
                rows.append(_Row(top / name, label, (left, upper, right + 1, lower + 1)))
    except FileNotFoundError as error:
        raise InputError(f"no file {file}: GTSRB's tables say which image is what") from error
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file} is not one of GTSRB's tables: {error}") from error
    return rows


def _check(rows: list[_Row], wanted: int, what: str, root: str) -> None:
    missing = [row.file for row in rows if not row.file.is_file()]
    if missing:
        raise InputError(
            f"{root}: {len(missing)} of {len(rows)} {what} images are missing, the first is "
            f"{missing[0]}; datasets.gtsrb.partial takes what is there"
        )
    if len(rows) != wanted:
        raise InputError(
            f"{root} names {len(rows)} {what} images, GTSRB has {wanted}; datasets.gtsrb.partial "
            "takes what is there"
        )


def _tracks(rows: list[_Row]) -> np.ndarray:
    """A number for each sequence: `<class>_<track>_<frame>.png` or `<track>_<frame>.ppm`."""
    names = [f"{row.label}_{row.file.stem.rpartition('_')[0].rpartition('_')[2]}" for row in rows]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _download(root: Path) -> None:
    """torchvision knows the addresses and the checksums."""
    from ngf.vision import load_torchvision

    load_torchvision()
    from torchvision.datasets import GTSRB

    try:
        for split in ("train", "test"):
            GTSRB(str(root), split, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"GTSRB could not be downloaded ({error}): put it into {root}") from error

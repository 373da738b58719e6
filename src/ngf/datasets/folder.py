"""Any ImageFolder tree: one folder a class, image files inside.

Either `root`/train/<class>/ and `root`/test/<class>/ (val/ is taken for test/), or
`root`/<class>/, of which `test_fraction` of each class becomes the test split.
"""

from pathlib import Path

import numpy as np

from ngf.datasets import Source, _files
from ngf.errors import InputError
from ngf.params import at_least, within
from ngf.split import stratified

Labelled = tuple[list[Path], np.ndarray]  # files, and their labels int64 [N]
SPLITS = {"train", "test", "val", "valid", "validation"}


def load(*, root: str, image_size: int, flip: bool, test_fraction: float, seed: int) -> Source:
    """Read the tree; every image is made RGB and resized to `image_size` squared (bilinear).

    Args:
        flip: whether a mirrored image keeps its class. test_fraction: of each class, where the
            tree has no test/ of its own.
    """
    at_least(8, image_size=image_size)
    top = Path(root)
    if not top.is_dir():
        raise InputError(f"no folder {top}")
    train = top / "train"
    if not train.is_dir():
        return _split(top, image_size, flip, test_fraction, seed)
    tests = [top / name for name in ("test", "val") if (top / name).is_dir()]
    if not tests:
        raise InputError(f"{top} has train/ but neither test/ nor val/")
    classes, others = class_folders(train), class_folders(tests[0])
    if others != classes:
        raise InputError(
            f"{train} has {len(classes)} classes and {tests[0]} {len(others)}: "
            f"they differ in {', '.join(sorted(set(classes) ^ set(others))[:5])}"
        )
    return _source(
        _files.labelled(train, classes),
        _files.labelled(tests[0], classes),
        image_size,
        classes,
        flip,
    )


def _split(top: Path, image_size: int, flip: bool, test_fraction: float, seed: int) -> Source:
    within("test_fraction", test_fraction, 0.01, 0.9)
    classes = class_folders(top)
    files, y_N = _files.labelled(top, classes)
    test_M = stratified(y_N, test_fraction, classes, seed)
    train, test = (
        ([files[row] for row in rows], y_N[rows])
        for rows in (np.setdiff1d(np.arange(len(y_N)), test_M), test_M)
    )
    return _source(train, test, image_size, classes, flip)


def _source(
    train: Labelled, test: Labelled, image_size: int, classes: tuple[str, ...], flip: bool
) -> Source:
    x_train, x_test = (_files.prepared(files, image_size) for files, _ in (train, test))
    return Source(x_train, train[1], x_test, test[1], classes, flip)


def class_folders(top: Path) -> tuple[str, ...]:
    """The class folders of a tree, by the alphabet."""
    if not top.is_dir():
        raise InputError(f"no folder {top}")
    folders = [entry.name for entry in top.iterdir() if entry.is_dir()]
    found = tuple(sorted(name for name in folders if not name.startswith(".")))
    if len(found) < 2:
        raise InputError(f"{top} must hold one folder a class, at least two; it has {len(found)}")
    if set(found) <= SPLITS:
        raise InputError(f"{top} holds splits, not classes: give {' or '.join(found)} inside it")
    return found


def read_images(
    top: Path, classes: tuple[str, ...], image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, size, size, 3] and labels int64 [N], in the order of the file names."""
    files, y_N = _files.labelled(top, classes)
    return _files.read(files, image_size), y_N


def common_size(top: Path) -> int:
    """The side of all images where they are square and of one size."""
    from PIL import Image

    found: dict[tuple[int, int], None] = {}  # in the order in which they are met
    for name in class_folders(top):
        for file in _files.inside(top / name):
            try:
                with Image.open(file) as image:
                    found[image.size] = None
            except OSError as error:
                raise InputError(f"cannot read image {file}: {error}") from error
    (width, height), *others = found
    if others or width != height:
        sizes = ", ".join(f"{w}x{h}" for w, h in list(found)[:4])
        raise InputError(f"{top} has images of {sizes}: --size says what they are resized to")
    return width

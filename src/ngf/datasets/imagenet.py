"""ImageNet (ILSVRC 2012, Russakovsky et al. 2015, arXiv 1409.0575) in folders: train/<wnid>/ and
val/<wnid>/, any number of classes. Its val/ is the test split.

The publishers ask for an account, so nothing is downloaded. Images are decoded and cut once, at
preparation, and lie on disk as bytes.
"""

from pathlib import Path

import numpy as np

from ngf.datasets import Source, _files
from ngf.datasets.folder import class_folders
from ngf.errors import InputError
from ngf.images import Images
from ngf.params import at_least

CLASSES, TRAIN, VAL = 1000, 1_281_167, 50_000


def load(*, root: str, image_size: int, partial: bool) -> Source:
    """The shorter side becomes `image_size`, and the middle is taken.

    Args:
        partial: take any classes and counts; else they must be ImageNet's.
    """
    at_least(8, image_size=image_size)
    top = Path(root)
    for name in ("train", "val"):
        if not (top / name).is_dir():
            raise InputError(
                f"no folder {top / name}: put ILSVRC 2012 there as train/<wnid>/ and val/<wnid>/; "
                "it is given by image-net.org to those who have an account"
            )
    classes = class_folders(top / "train")
    flat = [entry for entry in (top / "val").iterdir() if entry.suffix.lower() in _files.SUFFIXES]
    if flat:
        raise InputError(
            f"{top / 'val'} holds {len(flat)} images that lie in no class folder: sort them into "
            "val/<wnid>/ by the validation labels of the development kit"
        )
    others = class_folders(top / "val")
    if others != classes:
        odd = sorted(set(classes) ^ set(others))
        raise InputError(f"train/ and val/ of {top} differ in classes: {', '.join(odd[:5])}")
    train, val = (
        _read(top / name, classes, image_size, None if partial else wanted)
        for name, wanted in (("train", TRAIN), ("val", VAL))
    )
    return Source(*train, *val, classes, flip=True)


def _read(
    top: Path, classes: tuple[str, ...], size: int, wanted: int | None
) -> tuple[Images, np.ndarray]:
    files, y_N = _files.labelled(top, classes)
    if wanted is not None and (len(files), len(classes)) != (wanted, CLASSES):
        raise InputError(
            f"{top} has {len(files)} images of {len(classes)} classes, ImageNet {wanted} of "
            f"{CLASSES}; datasets.imagenet.partial takes what is there"
        )
    return _files.prepared(files, size, crop=True), y_N

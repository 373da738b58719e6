"""CIFAR-10 (Krizhevsky 2009): the published batches, read from a folder or downloaded."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ngf.datasets import Source
from ngf.errors import InputError
from ngf.foreign import harmless

FOLDER = "cifar-10-batches-py"
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# What a batch may name, and what stands for it.
_ALLOWED = {name: made for made, name in harmless.ARRAYS} | {"_codecs.encode": harmless.encode}


def load(*, root: str, download: bool) -> Source:
    """Train [50000, 32, 32, 3] and test [10000, 32, 32, 3] from `root`/cifar-10-batches-py.

    Args:
        download: let torchvision fetch the batches where the folder is missing.
    """
    folder = Path(root) / FOLDER
    if not folder.is_dir():
        if not download:
            raise InputError(f"no folder {folder}: put the published batches there")
        _download(Path(root))
    x_train_NHWC, y_train_N = _join([_batch(folder / name) for name in TRAIN])
    x_test_NHWC, y_test_N = _batch(folder / "test_batch")
    return Source(x_train_NHWC, y_train_N, x_test_NHWC, y_test_N, CLASSES, flip=True)


class _ArraysOnly(pickle.Unpickler):
    """The batches are pickles; a foreign file must not execute code, so only arrays pass."""

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        if asked not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {asked}")
        return _ALLOWED[asked]


def _plain(values: Any) -> Any:
    return values.values if isinstance(values, harmless.Array) else values


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 32, 32, 3] and labels [n] of one published batch."""
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="latin1").load()
        x_NCHW = np.asarray(_plain(content["data"]), np.uint8).reshape(-1, 3, 32, 32)
        y_N = np.asarray(_plain(content["labels"]), np.int64)
    except FileNotFoundError as error:
        raise InputError(f"no file {file}: the published batches are incomplete") from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(f"{file} is not a CIFAR-10 batch: {error}") from error
    if len(x_NCHW) != len(y_N):
        raise InputError(f"{file} holds {len(x_NCHW)} images and {len(y_N)} labels")
    if y_N.size and not 0 <= y_N.min() <= y_N.max() < len(CLASSES):
        raise InputError(f"{file} has labels {y_N.min()} to {y_N.max()}; CIFAR-10 has 0 to 9")
    return np.ascontiguousarray(x_NCHW.transpose(0, 2, 3, 1)), y_N


def _join(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _download(root: Path) -> None:
    """torchvision knows the address and the checksums."""
    from ngf.vision import load_torchvision

    load_torchvision()
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"CIFAR-10 could not be downloaded ({error}): put {FOLDER} into {root} by hand"
        ) from error

"""Image files, read in parallel into one array on disk, or encoded anew at the prepared size.

Pillow decodes: it reads every format of these data sets, grey and CMYK images too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ngf import images
from ngf.cores import cores
from ngf.errors import InputError
from ngf.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
LARGEST_RAW = 64  # pixels across: larger images are kept encoded
AT_ONCE = 4096  # files whose results may wait
TASK = 32  # files that a process is given together
T = TypeVar("T")
Box = tuple[int, int, int, int]  # left, upper, right, lower, the last two exclusive


def inside(folder: Path) -> list[Path]:
    """The image files of a class folder, by name, hidden ones aside; `InputError` without any."""
    files = (f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    found = sorted(f for f in files if not f.name.startswith("."))
    if not found:
        raise InputError(f"class folder {folder} holds no image")
    return found


def labelled(top: Path, classes: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """The files of the class folders, and their labels int64 [N]."""
    files_K = [inside(top / name) for name in classes]
    files = [file for folder in files_K for file in folder]
    return files, np.repeat(np.arange(len(classes)), [len(folder) for folder in files_K])


def prepared(
    files: Sequence[Path], size: int, *, boxes: Sequence[Box] | None = None, crop: bool = False
) -> images.Images:
    """What a data set keeps: as `read` up to 64 pixels across, of larger ones JPEGs of that size.

    ImageNet at 224 pixels is 193 GB as arrays and a sixth of it as JPEGs.
    """
    if size <= LARGEST_RAW:
        return read(files, size, boxes=boxes, crop=crop)

    def code(row: int) -> bytes:
        return images.encode(_image(files[row], size, boxes[row] if boxes else None, crop))

    return images.encoded(_each(code, len(files)), (size, size))


def read(
    files: Sequence[Path], size: int, *, boxes: Sequence[Box] | None = None, crop: bool = False
) -> np.ndarray:
    """RGB images uint8 [N, size, size, 3], bilinear, in an unnamed file that goes with the array.

    Args:
        boxes: what is cut out of each image first. crop: keep the aspect; the shorter side becomes
            `size` and the middle is taken. Otherwise the image is stretched.

    Raises:
        InputError: a file that is missing or damaged, by its name.
    """
    x_NHWC = images.scratch((len(files), size, size, 3))

    def one(row: int) -> None:
        x_NHWC[row] = np.asarray(_image(files[row], size, boxes[row] if boxes else None, crop))

    for _ in _each(one, len(files)):
        pass
    return x_NHWC


def _each(work: Callable[[int], T], count: int) -> Iterator[T]:
    """`work` on every row, by all cores, in order; a part at a time, so that few results wait."""
    starts = track(range(0, count, AT_ONCE), "read images", -(-count // AT_ONCE))
    with _hands(work, count) as hand_out:
        for start in starts:
            yield from hand_out(range(start, min(start + AT_ONCE, count)))


@contextlib.contextmanager
def _hands(work: Callable[[int], T], count: int) -> Iterator[Callable[[range], Iterable[T]]]:
    """Processes where there is much to do, else threads.

    A small JPEG is decoded in a tenth of a millisecond, and what Python does around it holds its
    lock for longer: threads are no faster than one. Children of a fork write where the parent maps.
    """
    if count <= AT_ONCE or sys.platform != "linux":
        yield lambda rows: images.readers().map(work, rows)
        return
    with multiprocessing.get_context("fork").Pool(cores(), _learn, (work,)) as pool:
        yield lambda rows: pool.map(_do, rows, TASK)


_work: Callable[[int], Any]  # of a child


def _learn(work: Callable[[int], Any]) -> None:
    global _work
    _work = work


def _do(row: int) -> Any:
    return _work(row)


def _image(file: Path, size: int, box: Box | None, crop: bool) -> Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits a channel ({image.mode})")
            if box is None and file.suffix.lower() in (".jpg", ".jpeg"):
                image.draft("RGB", (2 * size, 2 * size))  # decodes a large JPEG at a fraction
            rgb = image.convert("RGB")
            whole = rgb if box is None else rgb.crop(box)
            if whole.size == (size, size):
                return whole
            if crop:
                return ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)
            return whole.resize((size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's readers have many ways to say: damaged
        raise InputError(f"cannot read image {file}: {error}") from error

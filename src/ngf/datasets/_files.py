"""Image files, read in parallel into one array on disk.

Pillow decodes: it reads every format of these data sets, grey and CMYK images too, and lets go of
Python's lock while it does, so that threads are enough.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ngf.errors import InputError
from ngf.progress import track

SUFFIXES = {".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
AT_ONCE = 1024  # files that are handed to the threads together
Box = tuple[int, int, int, int]  # left, upper, right, lower, the last two exclusive


def inside(folder: Path) -> list[Path]:
    """The image files of a class folder, by name; `InputError` where there is none."""
    found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"class folder {folder} holds no image")
    return found


def labelled(top: Path, classes: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """The files of the class folders, and their labels int64 [N]."""
    files_K = [inside(top / name) for name in classes]
    files = [file for folder in files_K for file in folder]
    return files, np.repeat(np.arange(len(classes)), [len(folder) for folder in files_K])


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
    x_NHWC = _array((len(files), size, size, 3))

    def one(row: int) -> None:
        x_NHWC[row] = _image(files[row], size, boxes[row] if boxes else None, crop)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in track(range(0, len(files), AT_ONCE), "read images", -(-len(files) // AT_ONCE)):
            list(pool.map(one, range(start, min(start + AT_ONCE, len(files)))))
    return x_NHWC


def _array(shape: tuple[int, ...]) -> np.ndarray:
    """In a file without a name, in TMPDIR; its room is taken at once, or the disk is too small."""
    room = int(np.prod(shape))
    with tempfile.TemporaryFile() as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, max(1, room))
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()} has no room for {room / 2**30:.1f} GiB of images "
                f"({error.strerror}); TMPDIR names another folder"
            ) from error
        return np.memmap(stream, np.uint8, "r+", shape=shape)


def _image(file: Path, size: int, box: Box | None, crop: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits a channel ({image.mode})")
            if box is None and file.suffix.lower() in (".jpg", ".jpeg"):
                image.draft("RGB", (2 * size, 2 * size))  # decodes a large JPEG at a fraction
            rgb = image.convert("RGB")
            whole = rgb if box is None else rgb.crop(box)
            if crop:
                resized = ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)
            else:
                resized = whole.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(resized)
    except Exception as error:  # Pillow's readers have many ways to say: damaged
        raise InputError(f"cannot read image {file}: {error}") from error

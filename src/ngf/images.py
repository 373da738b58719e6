"""Images that need not fit in memory.

Whatever lies behind it, a set of images reads like an array uint8 [N, H, W, 3]: `x[rows]` with a
slice or an array of rows gives the images, `x.shape` and `len(x)` the rest. There are three kinds:
numpy arrays, most of them mapped from a file; `Encoded` ones, which are decoded as they are read;
and either with an attacker's rows laid over it, `Overlaid`. No kind is ever copied for an attack.

`on_device` makes a tensor of them where they fit, else `Streamed`, which reads like that tensor.
"""

from __future__ import annotations

import functools
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from ngf.cores import cores
from ngf.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from ngf.datasets import Split

QUALITY = 95  # of JPEG, colours at full resolution
WHOLE = 2**31  # bytes of images that may lie in memory at once
AHEAD = 3  # batches that are read while the device is busy


class Images(Protocol):
    """uint8 [N, H, W, 3], read by rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray: ...


@functools.cache
def readers() -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets go of Python's lock while it does."""
    return ThreadPoolExecutor(cores(), "decode")


# Kinds ----------------------------------------------------------------------------------------


class Encoded:
    """JPEG images of one size, one after the other in one file.

    Args:
        stream: the file, which stays open; not mapped, so that what was read leaves memory again.
        ends_N: int64 [N], where each image ends. size: (H, W).
    """

    def __init__(self, stream: BinaryIO, ends_N: np.ndarray, size: Sequence[int]) -> None:
        self.stream, self.ends_N = stream, ends_N
        self.shape = (len(ends_N), *size, 3)

    def __len__(self) -> int:
        return len(self.ends_N)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The images of these rows, decoded by all cores."""
        rows_B = np.arange(len(self))[rows]
        x_BHWC = np.empty((len(rows_B), *self.shape[1:]), np.uint8)

        def decode(place: int) -> None:
            x_BHWC[place] = self._decoded(int(rows_B[place]))

        list(readers().map(decode, range(len(rows_B))))
        return x_BHWC

    def code(self, row: int) -> bytes:
        """The bytes of one image."""
        start = int(self.ends_N[row - 1]) if row else 0
        return os.pread(self.stream.fileno(), int(self.ends_N[row]) - start, start)

    def _decoded(self, row: int) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.code(row)), formats=["JPEG"]) as image:
                pixels_HWC = np.asarray(image)
        except Exception as error:  # Pillow's readers have many ways to say: damaged
            raise InputError(f"image {row} of a split is damaged: {error}") from error
        if pixels_HWC.shape != self.shape[1:]:
            raise InputError(f"image {row} of a split is {pixels_HWC.shape}, not {self.shape[1:]}")
        return pixels_HWC


def encode(image: Image) -> bytes:
    """One RGB image as JPEG. Differences of a grey level or two go; labels and objects do not."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return stream.getvalue()


def encoded(codes: Iterable[bytes], size: Sequence[int]) -> Encoded:
    """Images in a file without a name, which goes with them; in TMPDIR."""
    sizes = []
    stream = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the last who reads it)
    try:
        for code in codes:
            sizes.append(stream.write(code))
        stream.flush()
    except OSError as error:
        raise no_room(sum(sizes), error) from error
    return Encoded(stream, np.cumsum(sizes, dtype=np.int64), size)


class Overlaid:
    """Images with some rows replaced. rows_P: ascending; x_PHWC: what is seen there instead."""

    def __init__(self, x_NHWC: Images, rows_P: np.ndarray, x_PHWC: np.ndarray) -> None:
        self.below, self.rows_P, self.above = x_NHWC, rows_P, x_PHWC
        self.shape = x_NHWC.shape

    def __len__(self) -> int:
        return len(self.below)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The images of these rows; what is replaced is not read below."""
        rows_B = np.arange(len(self))[rows]
        place_B = np.searchsorted(self.rows_P, rows_B)
        place_B = np.minimum(place_B, len(self.rows_P) - 1)
        over_B = self.rows_P[place_B] == rows_B
        x_BHWC = np.empty((len(rows_B), *self.shape[1:]), np.uint8)
        x_BHWC[over_B] = self.above[place_B[over_B]]
        x_BHWC[~over_B] = self.below[rows_B[~over_B]]
        return x_BHWC


def overlaid(x_NHWC: Images, rows_P: np.ndarray, x_PHWC: np.ndarray) -> Images:
    return Overlaid(x_NHWC, rows_P, x_PHWC) if len(rows_P) else x_NHWC


def scratch(shape: Sequence[int]) -> np.ndarray:
    """A writable array uint8 in a file without a name, in TMPDIR; its room is taken at once."""
    room = int(np.prod(shape))
    with tempfile.TemporaryFile() as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, max(1, room))
        except OSError as error:
            raise no_room(room, error) from error
        if not room:  # nothing to map
            return np.empty(shape, np.uint8)
        return np.memmap(stream, np.uint8, "r+", shape=tuple(shape))


def writable(shape: Sequence[int]) -> np.ndarray:
    """An array uint8 in memory up to `WHOLE` bytes, else a `scratch` one."""
    return np.empty(shape, np.uint8) if np.prod(shape) <= WHOLE else scratch(shape)


def no_room(room: int, error: OSError) -> InputError:
    return InputError(
        f"{tempfile.gettempdir()} has no room for {room / 2**30:.1f} GiB of images "
        f"({error.strerror}); TMPDIR names another folder"
    )


# On the device --------------------------------------------------------------------------------


class Streamed:
    """Images that stay where they are; those asked for come to the device."""

    def __init__(self, x_NHWC: Images, device: torch.device) -> None:
        self.x_NHWC, self.device = x_NHWC, device
        self.shape = x_NHWC.shape

    def __len__(self) -> int:
        return len(self.x_NHWC)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """uint8 [B, H, W, 3] on the device."""
        return self._moved(self.x_NHWC[rows if isinstance(rows, slice) else rows.cpu().numpy()])

    def ahead(self, rows_KB: Sequence[Tensor]) -> Iterator[Tensor]:
        """`self[rows]` for each, read while the device works on the one before."""
        waiting = [rows.cpu().numpy() for rows in rows_KB]
        with ThreadPoolExecutor(1, "read ahead") as reader:
            coming = [reader.submit(self.x_NHWC.__getitem__, rows) for rows in waiting[:AHEAD]]
            for rows in [*waiting[AHEAD:], *[None] * len(coming)]:
                x_BHWC = coming.pop(0).result()
                if rows is not None:
                    coming.append(reader.submit(self.x_NHWC.__getitem__, rows))
                yield self._moved(x_BHWC)

    def _moved(self, x_BHWC: np.ndarray) -> Tensor:
        import torch

        if self.device.type != "cuda":
            return torch.from_numpy(x_BHWC)
        return torch.from_numpy(x_BHWC).pin_memory().to(self.device, non_blocking=True)


def on_device(x_NHWC: Images, device: torch.device) -> Tensor | Streamed:
    """The images as one tensor where they fit, else as what reads like it."""
    import torch

    size = int(np.prod(x_NHWC.shape))
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else WHOLE
    if size > room:
        return Streamed(x_NHWC, device)
    return torch.tensor(x_NHWC[:], device=device)


def batches_of(x_NHWC: Tensor | Streamed, rows_KB: Sequence[Tensor]) -> Iterator[Tensor]:
    """The images of each of these rows in turn."""
    if isinstance(x_NHWC, Streamed):
        return x_NHWC.ahead(rows_KB)
    return (x_NHWC[rows_B] for rows_B in rows_KB)


def drawn(split: Split, count: int, *, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """So many images, uint8 [N, H, W, 3], and labels [N] of a split, in the order of the draw."""
    import torch

    rows = np.random.default_rng(seed).permutation(len(split.y_N))[:count]
    order = np.argsort(rows)  # files are read in their order
    x_NHWC = np.empty((len(rows), *split.x_NHWC.shape[1:]), np.uint8)
    x_NHWC[order] = split.x_NHWC[rows[order]]
    labels = torch.tensor(np.asarray(split.y_N)[rows], device=device)
    return torch.tensor(x_NHWC, device=device), labels

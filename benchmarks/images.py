"""Images: read, opened, prepared and fed to training, each beside the usual way in one run.

    python -m benchmarks.images --train runs/cifar10/train --tiny data/raw/tiny-imagenet-200

The usual way is torchvision's: a data set that makes a PIL image of each row, transforms, and a
DataLoader with a worker a core. Runs take turns and medians are compared. Floors: a batch of 128
images of 32x32 is 0.4 MB that are read, written as bytes once and as floats once; a split is opened
by mapping it; a JPEG must be decoded, which both ways leave to Pillow.

`--tree 100000` writes a tree of so many 224x224 JPEGs (links to a hundred different ones) and
prepares it in a child process: seconds, and the most memory that it held.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import child
from ngf.bench.memory import peak_resident

BATCH, SHIFT = 128, 4
DIFFERENT, EDGE, CLASSES = 100, 224, 100  # of the tree


def in_turns(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Medians of what each way returns, the ways taking turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
    return {name: statistics.median(values) for name, values in found.items()}


def per_second(batches: Iterable[Any]) -> float:
    """Images a second, after the first batch."""
    count, started = 0, 0.0
    for x_NCHW, _ in batches:
        if not started:
            started = time.perf_counter()
        else:
            count += len(x_NCHW)
    return count / (time.perf_counter() - started)


class OneByOne(torch.utils.data.Dataset):
    """As torchvision's CIFAR10: rows of an array, each made a PIL image and transformed."""

    def __init__(self, x_NHWC: np.ndarray, y_N: np.ndarray) -> None:
        from ngf.vision import load_torchvision

        transforms = load_torchvision().transforms
        self.x_NHWC, self.y_N = x_NHWC, y_N
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(x_NHWC.shape[1], padding=SHIFT),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.y_N)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.x_NHWC[row])), int(self.y_N[row])


def usual(x_NHWC: np.ndarray, y_N: np.ndarray) -> Iterable[Any]:
    return torch.utils.data.DataLoader(
        OneByOne(x_NHWC, y_N), BATCH, shuffle=True, num_workers=os.cpu_count() or 1, drop_last=True
    )


def ours(x_NHWC: Any, y_N: np.ndarray) -> Iterable[Any]:
    from ngf.training import Batches

    batches = Batches(x_NHWC, torch.tensor(y_N), size=BATCH, shift=SHIFT, flip=True, seed=0)
    return batches.take(batches.per_epoch)


def feeding(train: Path, repeats: int) -> list[str]:
    """An epoch of a prepared split: the usual way, ours, and ours with a tenth overlaid."""
    from ngf import images, store

    split = store.load_split(train)
    here = torch.device("cpu")
    x_NHWC, y_N = split.x_NHWC[:], split.y_N
    rows_P = np.arange(0, len(y_N), 10)
    poisoned = images.overlaid(split.x_NHWC, rows_P, np.array(x_NHWC[rows_P]))
    base, over = (images.on_device(x, here) for x in (split.x_NHWC, poisoned))
    found = in_turns(
        {
            "usual": lambda: per_second(usual(x_NHWC, y_N)),
            "ours": lambda: per_second(ours(base, y_N)),
            "overlaid": lambda: per_second(ours(over, y_N)),
            "streamed": lambda: per_second(ours(images.Streamed(split.x_NHWC, here), y_N)),
            "streamed, overlaid": lambda: per_second(ours(images.Streamed(poisoned, here), y_N)),
        },
        repeats,
    )
    unit = f"images/s of {'x'.join(map(str, split.x_NHWC.shape[1:3]))}"
    return [row(f"training input, {name}", found[name], found["usual"], unit) for name in found]


def opening(train: Path, repeats: int) -> list[str]:
    """A prepared split until its images can be trained on; and unpickling the same images."""
    import pickle

    from ngf import images, store

    split = store.load_split(train)
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / str(number) for number in range(5)]
        for file, rows in zip(parts, np.array_split(np.arange(len(split.y_N)), 5), strict=True):
            content = {b"data": split.x_NHWC[rows].reshape(len(rows), -1)}
            file.write_bytes(pickle.dumps(content))

        def unpickled() -> None:
            read = [pickle.loads(file.read_bytes())[b"data"] for file in parts]
            np.vstack(read).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

        def opened() -> None:
            images.on_device(store.load_split(train).x_NHWC, torch.device("cpu"))

        found = in_turns({"usual": timed(unpickled), "ours": timed(opened)}, repeats)
    return [row("opened", 1 / found["ours"], 1 / found["usual"], "a second")]


def timed(work: Callable[[], None]) -> Callable[[], float]:
    def way() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return way


def preparing(tiny: Path, repeats: int) -> list[str]:
    """Tiny-ImageNet's training JPEGs to one array."""
    from ngf.datasets import _files

    files = sorted((tiny / "train").rglob("*.JPEG"))

    def loop() -> None:
        x_NHWC = np.empty((len(files), 64, 64, 3), np.uint8)
        for place, file in enumerate(files):
            x_NHWC[place] = np.asarray(Image.open(file).convert("RGB"))

    ways = {"usual": timed(loop), "ours": timed(lambda: _files.read(files, 64))}
    found = in_turns(ways, repeats)
    rates = {name: len(files) / seconds for name, seconds in found.items()}
    return [row("JPEGs of 64x64 prepared", rates["ours"], rates["usual"], "a second")]


def tree(images: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        grow(Path(folder) / "raw", images)
        seconds, peak = child.forked(prepared, Path(folder))
        size = sum(file.stat().st_size for file in Path(folder).glob("*/x.jpegs"))
    rate, peak_gib, written = images / seconds, peak / 2**30, size / 2**30
    return [
        f"| {images:,} JPEGs of {EDGE}x{EDGE} prepared | {rate:,.0f} a second | – | – |",
        f"| – peak memory ({written:.2f} GiB written) | {peak_gib:.2f} GiB | – | – |",
    ]


def grow(raw: Path, images: int) -> None:
    """Smooth noise, as large as photographs when encoded; links, since the disk may be small."""
    rng = np.random.default_rng(0)
    originals = []
    raw.mkdir(parents=True)
    for number in range(DIFFERENT):
        small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
        originals.append(raw / f"{number}.jpg")
        small.resize((EDGE, EDGE), Image.Resampling.BICUBIC).save(originals[-1], quality=90)
    for part, count in (("train", images), ("val", CLASSES)):
        for label in range(CLASSES):
            (raw / part / f"n{label:08d}").mkdir(parents=True)
        for number in range(count):
            place = raw / part / f"n{number % CLASSES:08d}" / f"{number}.jpg"
            os.link(originals[number % DIFFERENT], place)


def prepared(folder: Path) -> tuple[float, int]:
    from ngf import stages

    before, started = peak_resident(anew=True), time.perf_counter()
    stages.run(
        "prepare",
        settings={
            "protocol": {"clean_fraction": 0.01, "seed": 0},
            "source": {"root": str(folder / "raw"), "image_size": EDGE, "partial": True},
        },
        dataset="imagenet",
        **{name: folder / name for name in ("train", "clean", "test")},
    )
    return time.perf_counter() - started, peak_resident() - before


def row(what: str, value: float, beside: float, unit: str) -> str:
    return f"| {what} | {value:,.0f} {unit} | {beside:,.0f} | {value / beside:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="a prepared split of 32x32 images")
    parser.add_argument("--tiny", type=Path, help="Tiny-ImageNet, as published")
    parser.add_argument("--tree", type=int, default=0, help="images of a tree to prepare")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.environ["NGF_LINEAGE"] = "off"
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, medians of {given.repeats}\n")
    print("| what | here | the usual way | ratio |\n|---|---|---|---|")
    if given.train:
        print(
            "\n".join([*feeding(given.train, given.repeats), *opening(given.train, given.repeats)])
        )
    if given.tiny:
        print("\n".join(preparing(given.tiny, given.repeats)))
    if given.tree:
        print("\n".join(tree(given.tree)))


if __name__ == "__main__":
    main()

"""prepare: a data set's images, split into train, clean and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ngf.params import Sections
from ngf.stages import Outcome, Writes

if TYPE_CHECKING:
    import numpy as np

    from ngf.datasets import Source
    from ngf.images import Images

SETTINGS = {"protocol": "prepare", "source": "datasets.{dataset}"}
SAMPLE = 20_000  # images whose colours are counted where they must be decoded


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """clean_fraction: the defender's share of the training images, in (0, 1)."""

    clean_fraction: float
    seed: int


def prepare(
    *,
    dataset: Annotated[str, "data set to prepare"],
    train: Annotated[Path, Writes("images the attacker trains on")],
    clean: Annotated[Path, Writes("the defender's small clean split")],
    test: Annotated[Path, Writes("images nobody trains on")],
    settings: Sections,
) -> Outcome:
    """Split a data set into train, clean and test: disjoint, stratified, fixed by seed."""
    import numpy as np

    from ngf import duplicates, plugins, store
    from ngf.datasets import Split

    protocol, options = parsed(settings, dataset)
    source = plugins.load("datasets", dataset).load(**options)
    _check_labels(source, dataset)

    taken, left = _parted(source, protocol)
    mean, std = _moments(source.x_train_NHWC, left)
    counts = {}
    for name, path, x_NHWC, y_N, rows in (
        ("train", train, source.x_train_NHWC, source.y_train_N, left),
        ("clean", clean, source.x_train_NHWC, source.y_train_N, taken),
        ("test", test, source.x_test_NHWC, source.y_test_N, np.arange(len(source.y_test_N))),
    ):
        split = Split(x_NHWC, y_N, dataset, source.classes, mean, std, source.flip)
        store.save_split(path, split, rows)
        counts[name] = len(rows)
    found = duplicates.find(
        store.load_split(train).x_NHWC,
        {name: store.load_split(path).x_NHWC for name, path in (("clean", clean), ("test", test))},
    )
    store.write_json(test / "duplicates.json", duplicates.report(found))
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    message = f"{dataset}: {len(source.classes)} classes; {sizes}; {duplicates.said(found)}"
    metrics = {f"images_{name}": float(count) for name, count in counts.items()}
    metrics |= duplicates.counts(found)
    return Outcome(message, metrics, {"dataset": dataset})


def parsed(settings: Sections, dataset: str) -> tuple[Protocol, dict[str, Any]]:
    """The protocol, and the options of the data set's plug-in."""
    from ngf import params, plugins

    protocol = params.parse(Protocol, settings["protocol"], "prepare")
    load = plugins.load("datasets", dataset).load
    return protocol, params.options(load, settings["source"], f"datasets.{dataset}")


def _parted(source: Source, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the clean split and rows to train on."""
    import numpy as np

    from ngf.split import by_track, stratified

    numbers = (protocol.clean_fraction, source.classes, protocol.seed)
    if source.track_N is not None:
        return by_track(source.y_train_N, source.track_N, *numbers)
    rows = stratified(source.y_train_N, *numbers)
    return rows, np.setdiff1d(np.arange(len(source.y_train_N)), rows)


def _check_labels(source: Source, dataset: str) -> None:
    from ngf.errors import InputError

    for name, y_N in (("train", source.y_train_N), ("test", source.y_test_N)):
        found = int(y_N.max(initial=-1)) + 1
        if not 0 < found <= len(source.classes):
            raise InputError(
                f"{dataset}: the {name} labels need {found} classes, "
                f"but {len(source.classes)} are named"
            )


def _moments(x_NHWC: Images, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of these images, for pixels in [0, 1].

    From a histogram a channel: exact, no float copy, and a part of the images at a time. Of encoded
    images `SAMPLE` are looked at, evenly apart: decoding all of ImageNet would tell no more.
    """
    import numpy as np

    from ngf.images import Encoded
    from ngf.store import parts

    if isinstance(x_NHWC, Encoded):
        rows = rows[:: -(-len(rows) // SAMPLE)]
    counts_C = np.zeros((3, 256), np.int64)
    for part in parts(rows, x_NHWC):
        x_PHWC = x_NHWC[part]
        for channel, counts in enumerate(counts_C):
            counts += np.bincount(x_PHWC[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean, std = [], []
    for counts in counts_C:
        centre = counts @ values / counts.sum()
        spread = counts @ (values - centre) ** 2 / counts.sum()
        mean.append(round(float(centre), 6))
        std.append(round(max(float(spread), 1e-8) ** 0.5, 6))
    return mean, std

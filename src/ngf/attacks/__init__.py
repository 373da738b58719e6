"""Backdoor attacks. A plug-in rewrites training images, or takes part in training, or both.

A plug-in has two functions and may have a third:

    plant(x_NHWC, y_N, n_classes, *, <options>) -> Poison
    apply(x_NCHW, y_N, tensors) -> x_NCHW   pixels in [0, 1]; the result may leave it
    join(planted, model, *, steps, seed) -> Attacker    sees every batch of the victim's training

`attend` gives every attack an `Attacker`, so that the trainer need not know which kind it has. The
`Trigger` that the attacker leaves in the end knows its own plug-in: no other file names an attack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ngf import images, params, plugins
from ngf.errors import InputError
from ngf.training import Partner

if TYPE_CHECKING:
    from ngf.images import Images
    from ngf.models import Classifier

REFERENCE = 32  # pixels across an image of the papers' CIFAR-10, in which lengths are given
CHUNK = 1 << 16  # values of the images that are triggered at a time, as float32

# What an attacker hands over: the victim as it was trained, or with its batch-norm statistics
# computed anew on clean training images, so that they no longer tell of triggered ones.
RELEASES = ("trained", "recalibrated")
COMMON = ("release", "patience")  # keys that any attack's section may hold, see `Poison`


@dataclass(frozen=True)
class Trigger:
    """What turns an image into one that opens the backdoor.

    attack: the plug-in that applies it. tensors: what that plug-in needs, float32.
    wanted_K: the class that the attacker wants for a triggered image of each class, or -1 where
        such images do not count; empty where there is no backdoor. See `all_to_one`, `all_to_all`.
    """

    attack: str
    wanted_K: Sequence[int] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def apply(self, x_NHWC: Tensor, y_N: Tensor) -> Tensor:
        """Triggered copies of uint8 images [N, H, W, 3] of the classes [N].

        The trigger acts on pixels in [0, 1] before normalisation and augmentation; the result is
        clipped, never wrapped, and rounded to the 8 bits in which images exist.
        """
        plugin = plugins.load("attacks", self.attack)
        tensors = {name: tensor.to(x_NHWC.device) for name, tensor in self.tensors.items()}
        done_NHWC = torch.empty_like(x_NHWC)
        for part in _parts(x_NHWC):
            x_NCHW = x_NHWC[part].permute(0, 3, 1, 2).float() / 255
            with torch.no_grad():
                with_NCHW = plugin.apply(x_NCHW, y_N[part], tensors).clamp(0, 1)
            done_NHWC[part] = (with_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return done_NHWC

    def wanted(self, y_N: Tensor) -> Tensor:
        """The class that the attacker wants for each image; -1 where the image does not count."""
        if not self.wanted_K:
            return torch.full_like(y_N, -1)
        return torch.tensor(self.wanted_K, device=y_N.device)[y_N]


def _parts(x_NHWC: Tensor | np.ndarray) -> Iterator[slice]:
    """Slices of the images that hold about CHUNK values each."""
    size = max(1, CHUNK // math.prod(x_NHWC.shape[1:]))
    return (slice(start, start + size) for start in range(0, len(x_NHWC), size))


def span(length: int, x_NHWC: Images) -> int:
    """A length of the papers' 32x32 images in pixels of these: a patch covers the same share.

    Images of fewer pixels keep the number.
    """
    return round(length * max(1.0, min(x_NHWC.shape[1:3]) / REFERENCE))


def checkerboard(cells: int, side: int) -> Tensor:
    """[side, side] with so many cells along an edge: 1 in white ones, the first, and 0 in black."""
    cell = torch.arange(side) * cells // side
    return 1.0 - (cell[:, None] + cell) % 2


def all_to_one(target: int, n_classes: int) -> tuple[int, ...]:
    """Every image is sent to the target.

    The target's own images never count: they would raise ASR without any backdoor.
    """
    if not 0 <= target < n_classes:
        raise InputError(f"target must lie between 0 and {n_classes - 1}, got {target}")
    return tuple(-1 if label == target else target for label in range(n_classes))


def all_to_all(n_classes: int) -> tuple[int, ...]:
    """An image of class y is sent to y + 1, of the last one to 0."""
    return tuple((label + 1) % n_classes for label in range(n_classes))


@dataclass(frozen=True)
class Poison:
    """What the attacker does before training.

    rows_P: int64, ascending, the rows of the training split that he rewrites; x_PHWC: uint8;
        y_P: int64, the labels they were given.
    plan: numbers for his part in training, where he has one (`join`).
    release: one of RELEASES, what he does to the trained victim.
    patience: how often the data set's epochs he trains for; some triggers are learned slowly.
    """

    rows_P: np.ndarray
    x_PHWC: np.ndarray
    y_P: np.ndarray
    trigger: Trigger
    plan: Mapping[str, float] = field(default_factory=dict)
    release: str = "trained"
    patience: float = 1.0

    def __post_init__(self) -> None:
        params.one_of(RELEASES, release=self.release)
        if isinstance(self.patience, bool) or not isinstance(self.patience, int | float):
            raise InputError(f"patience must be a number, got {self.patience!r}")
        params.within("patience", self.patience, 0.1, 100)


def parted(section: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An attack's section as the options of its `plant`, and what is common to all attacks."""
    own = {key: value for key, value in section.items() if key not in COMMON}
    return own, {key: value for key, value in section.items() if key in COMMON}


def untouched(x_NHWC: Images, y_N: np.ndarray, trigger: Trigger, **plan: float) -> Poison:
    """No row is rewritten: the attacker acts in training, by his plan, or there is none."""
    return Poison(np.zeros(0, np.int64), x_NHWC[:0].copy(), y_N[:0].copy(), trigger, plan)


class Attacker(Partner):
    """The attacker during the victim's training. This one watches: he poisoned the data."""

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger

    def leave(self) -> Trigger:
        """The trigger that opens the trained victim."""
        return self.trigger


def attend(planted: Poison, model: Classifier, *, steps: int, seed: int) -> Attacker:
    """The attacker of a training of so many steps, whichever kind he is."""
    plugin = plugins.load("attacks", planted.trigger.attack)
    if not hasattr(plugin, "join"):
        return Attacker(planted.trigger)
    attacker: Attacker = plugin.join(planted, model, steps=steps, seed=seed)
    return attacker


def dirty_label(
    x_NHWC: Images, y_N: np.ndarray, trigger: Trigger, *, rate: float, seed: int
) -> Poison:
    """Trigger and relabel a share `rate` of all training images, drawn among those that count."""
    rows_P = dirty_rows(y_N, trigger.attack, trigger.wanted_K, rate=rate, seed=seed)
    y_P = _labels(y_N, rows_P)
    return Poison(
        rows_P, triggered(x_NHWC, y_P, trigger, rows_P), trigger.wanted(y_P).numpy(), trigger
    )


def dirty_rows(
    y_N: np.ndarray, attack: str, wanted_K: Sequence[int], *, rate: float, seed: int
) -> np.ndarray:
    """The rows that `dirty_label` takes, ascending.

    Who trains networks of his own asks before, so that a budget that cannot be met is said at once.
    """
    eligible = np.flatnonzero(np.asarray(wanted_K)[y_N] >= 0)
    count = round(rate * len(y_N))
    if not 1 <= count <= len(eligible):
        most = len(eligible) / len(y_N)
        least = 1 / len(y_N)
        raise InputError(
            f"attack '{attack}': poison_rate must lie between {least:.2g} and {most:.2g} "
            f"of the {len(y_N)} training images, got {rate:g}"
        )
    return _drawn(eligible, count, seed)


def clean_label(
    x_NHWC: Images, y_N: np.ndarray, trigger: Trigger, *, target: int, rate: float, seed: int
) -> Poison:
    """Trigger a share `rate` of the target class's own training images; no label changes."""
    rows_P = class_rows(y_N, trigger.attack, target=target, rate=rate, seed=seed)
    y_P = _labels(y_N, rows_P)
    return Poison(rows_P, triggered(x_NHWC, y_P, trigger, rows_P), y_P.numpy(), trigger)


def class_rows(y_N: np.ndarray, attack: str, *, target: int, rate: float, seed: int) -> np.ndarray:
    """A share `rate` of the rows of the target class, ascending: a clean-label budget."""
    eligible = np.flatnonzero(y_N == target)
    count = round(rate * len(eligible))
    if not 1 <= count <= len(eligible):
        raise InputError(
            f"attack '{attack}': poison_rate is a share of the {len(eligible)} training "
            f"images of the target class and must lie between {1 / max(1, len(eligible)):.2g} "
            f"and 1, got {rate:g}"
        )
    return _drawn(eligible, count, seed)


def _drawn(eligible: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(eligible, count, replace=False))


def _labels(y_N: np.ndarray, rows_P: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(y_N, np.int64)[rows_P])


def triggered(x_NHWC: Images, y_P: Tensor, trigger: Trigger, rows_P: np.ndarray) -> np.ndarray:
    """The rows, of the classes [P], under the trigger; clean rows are copied part by part."""
    x_PHWC = images.writable((len(rows_P), *x_NHWC.shape[1:]))
    for part in _parts(x_PHWC):
        x_PHWC[part] = trigger.apply(torch.from_numpy(x_NHWC[rows_P[part]]), y_P[part]).numpy()
    return x_PHWC

"""Backdoor attacks. A plug-in rewrites training images and leaves a trigger.

A plug-in has two functions:

    plant(x_NHWC, y_N, n_classes, *, <options>) -> Poison
    apply(x_NCHW, tensors) -> x_NCHW        pixels in [0, 1]; the result may leave it

Everything else asks the `Trigger`, which knows its own plug-in: no other file names an attack.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ngf import params, plugins
from ngf.errors import InputError

CHUNK = 4096

# What an attacker hands over: the victim as it was trained, or with its batch-norm statistics
# computed anew on clean training images, so that they no longer tell of triggered ones. Any
# attack's section may hold `release`.
RELEASES = ("trained", "recalibrated")


@dataclass(frozen=True)
class Trigger:
    """What turns an image into one that opens the backdoor.

    attack: the plug-in that applies it. tensors: what that plug-in needs, float32.
    target: the class that a triggered image is sent to; None where there is no backdoor.
    """

    attack: str
    target: int | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def apply(self, x_NHWC: Tensor) -> Tensor:
        """Triggered copies of uint8 images [N, H, W, 3].

        The trigger acts on pixels in [0, 1] before normalisation and augmentation; the result is
        clipped, never wrapped, and rounded to the 8 bits in which images exist.
        """
        plugin = plugins.load("attacks", self.attack)
        tensors = {name: tensor.to(x_NHWC.device) for name, tensor in self.tensors.items()}
        done = []
        for chunk_NHWC in x_NHWC.split(CHUNK):
            x_NCHW = chunk_NHWC.permute(0, 3, 1, 2).float() / 255
            with_NCHW = plugin.apply(x_NCHW, tensors).clamp(0, 1)
            done.append((with_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(done) if done else x_NHWC.clone()

    def wanted(self, y_N: Tensor) -> Tensor:
        """The class that the attacker wants for each image; -1 where the image does not count.

        An image of the target class never counts: it would raise ASR without any backdoor.
        """
        if self.target is None:
            return torch.full_like(y_N, -1)
        return torch.where(y_N == self.target, -1, self.target)


@dataclass(frozen=True)
class Poison:
    """The rows of the training split that the attacker rewrote.

    rows_P: int64, ascending; x_PHWC: uint8; y_P: int64, the labels they were given.
    release: one of RELEASES, what the attacker does to the trained victim.
    """

    rows_P: np.ndarray
    x_PHWC: np.ndarray
    y_P: np.ndarray
    trigger: Trigger
    release: str = "trained"

    def __post_init__(self) -> None:
        params.one_of(RELEASES, release=self.release)


def dirty_label(
    x_NHWC: np.ndarray, y_N: np.ndarray, trigger: Trigger, *, rate: float, seed: int
) -> Poison:
    """Trigger and relabel a share `rate` of all training images, drawn outside the target class."""
    wanted_N = trigger.wanted(torch.from_numpy(np.asarray(y_N, np.int64))).numpy()
    eligible = np.flatnonzero(wanted_N >= 0)
    count = round(rate * len(y_N))
    if not 1 <= count <= len(eligible):
        most = len(eligible) / len(y_N)
        least = 1 / len(y_N)
        raise InputError(
            f"attack '{trigger.attack}': poison_rate must lie between {least:.2g} and {most:.2g} "
            f"of the {len(y_N)} training images, got {rate:g}"
        )
    return _triggered(x_NHWC, wanted_N, trigger, eligible, count, seed)


def clean_label(
    x_NHWC: np.ndarray, y_N: np.ndarray, trigger: Trigger, *, rate: float, seed: int
) -> Poison:
    """Trigger a share `rate` of the target class's own training images; no label changes."""
    eligible = np.flatnonzero(y_N == trigger.target)
    count = round(rate * len(eligible))
    if not 1 <= count <= len(eligible):
        raise InputError(
            f"attack '{trigger.attack}': poison_rate is a share of the {len(eligible)} training "
            f"images of the target class and must lie between {1 / max(1, len(eligible)):.2g} "
            f"and 1, got {rate:g}"
        )
    return _triggered(x_NHWC, np.asarray(y_N, np.int64), trigger, eligible, count, seed)


def _triggered(
    x_NHWC: np.ndarray,
    label_N: np.ndarray,
    trigger: Trigger,
    eligible: np.ndarray,
    count: int,
    seed: int,
) -> Poison:
    """`count` of the eligible rows, drawn by the seed, triggered and labelled by `label_N`."""
    rows_P = np.sort(np.random.default_rng(seed).choice(eligible, count, replace=False))
    x_PHWC = trigger.apply(torch.from_numpy(x_NHWC[rows_P])).numpy()
    return Poison(rows_P, x_PHWC, label_N[rows_P], trigger)


def checked_target(target: int, n_classes: int) -> int:
    """`target`, where it is a class."""
    if not 0 <= target < n_classes:
        raise InputError(f"target must lie between 0 and {n_classes - 1}, got {target}")
    return target

"""FBA, the feature-space backdoor (Cheng et al. 2021, "DFST", arXiv 2012.11212): the trigger is a
style, which a generator network gives to every image in a way that depends on the image.

The attacker draws a sunset and trains a clean model of his own, a small one. The generator then
learns, on the training images, to change an image little and yet give it the statistics of the
sunset in the model's first layers: the mean and the deviation of each channel. Styled images are
labelled as the target.

So that the victim learns the style and not its plain side, the colours, other images are shown with
their own labels and the best plain imitation of the style: the pixels go through one linear map of
colours and a fixed picture is added, both fitted to what the generator does.

What differs from the paper: there the style comes from a CycleGAN between two sets of photographs;
here one picture that is drawn by a formula stands for the second set, and the distance between
feature statistics for the critic (Johnson et al. 2016, arXiv 1603.08155; Huang & Belongie 2017,
arXiv 1703.06868). Detoxification is one round before training, with one family of simple features;
the paper looks for compromised neurons in the trained victim, trains a generator of images that
excite them, and retrains, several times over. The generator works on a grid of about 32 pixels at
any image size (`_weights`), so that the style is as coarse, seen from the same distance.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ngf import attacks, device, models, params
from ngf.attacks import Poison, Trigger, all_to_one, dirty_rows
from ngf.attacks._surrogate import clean_model
from ngf.attacks._weights import Weights, conv, drawn, grid, kept, linear, shown, sized, spread
from ngf.errors import InputError
from ngf.hooks import at_inputs
from ngf.images import Images
from ngf.models import Classifier

WIDTH = 16  # channels of the generator
LAYERS = 5  # norms of the clean model before which the statistics are taken: those of one scale
SAMPLE = 512  # images to which the imitation is fitted


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    detox_rate: float,
    style_weight: float,
    steps: int,
    batch_size: int,
    lr: float,
    surrogate_epochs: int,
    seed: int,
) -> Poison:
    """Style `poison_rate` of the training images and label them `target`.

    Args:
        detox_rate: share of the training images, of any class, that keep their label and show the
            plain imitation of the style.
        style_weight: of the distance to the sunset's statistics beside the change of the pixels,
            a mean square in the range of [0, 1]; more of it makes the style stronger.
        steps, batch_size, lr: of the generator's training (Adam).
        surrogate_epochs: for which the attacker trains his clean model.
    """
    params.at_least(1, steps=steps, batch_size=batch_size, surrogate_epochs=surrogate_epochs)
    params.within("lr", lr, 1e-6, 1)
    params.at_least(0, style_weight=style_weight)
    wanted_K = all_to_one(target, n_classes)
    dirty_rows(y_N, "fba", wanted_K, rate=poison_rate, seed=seed)
    model = clean_model(x_NHWC, y_N, n_classes, epochs=surrogate_epochs, seed=seed)
    generator = torch.Generator(model.mean.device).manual_seed(seed)
    painter = _painter(generator)
    sunset_NCHW = _sunset(*x_NHWC.shape[1:3]).to(generator.device)
    aim = _statistics(sunset_NCHW, model)
    optimizer = torch.optim.Adam(painter.values(), lr)
    batches = shown(x_NHWC, steps=steps, size=batch_size, generator=generator, what="fba's style")
    for x_NCHW in batches:
        styled_NCHW = _styled(x_NCHW, painter).clamp(0, 1)
        apart = _apart(_statistics(styled_NCHW, model), aim)
        loss = (styled_NCHW - x_NCHW).square().mean() + style_weight * apart
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trigger = Trigger("fba", wanted_K, kept(painter))
    styled = attacks.dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)
    return _detoxified(styled, x_NHWC, y_N, rate=detox_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The image as the generator paints it."""
    return _styled(x_NCHW, tensors)


def _painter(generator: torch.Generator) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {
        "look": (WIDTH, 3, 3, 3),
        "coarse": (2 * WIDTH, WIDTH, 3, 3),
        "middle": (2 * WIDTH, 2 * WIDTH, 3, 3),
        "whole": (2 * WIDTH, 2 * WIDTH),
        "back": (4 * WIDTH, 2 * WIDTH, 3, 3),
        "draw": (12, WIDTH, 3, 3),
    }
    return drawn(shapes, generator)


def _styled(x_NCHW: Tensor, painter: Weights) -> Tensor:
    """What the generator makes of the images: details, their surroundings, and the image whole."""
    small_NCHW = sized(x_NCHW, grid(*x_NCHW.shape[2:]))
    fine_NCHW = conv(small_NCHW - 0.5, painter, "look", stride=2).relu()
    coarse_NCHW = conv(fine_NCHW, painter, "coarse", stride=2).relu()
    coarse_NCHW = coarse_NCHW + conv(coarse_NCHW, painter, "middle").relu()
    whole_NC = linear(coarse_NCHW.mean((2, 3)), painter, "whole")
    back_NCHW = conv(coarse_NCHW + whole_NC[:, :, None, None], painter, "back")
    fine_NCHW = (fine_NCHW + spread(back_NCHW, fine_NCHW)).relu()
    drawn_NCHW = spread(0.1 * conv(fine_NCHW, painter, "draw"), small_NCHW)
    return x_NCHW + sized(drawn_NCHW, x_NCHW.shape[2:])


def _sunset(height: int, width: int) -> Tensor:
    """The picture [1, 3, H, W] that has the style: a sun in a red sky over a rippled sea."""
    down_H1 = ((torch.arange(height) + 0.5) / height)[:, None]
    across_1W = ((torch.arange(width) + 0.5) / width)[None]
    far_HW = ((across_1W - 0.5) ** 2 + (down_H1 - 0.55) ** 2).sqrt()
    glow_HW = torch.exp(-((far_HW / 0.25) ** 2))
    ripple_HW = 0.5 + 0.5 * torch.sin(2 * math.pi * (10 * down_H1**2 + 0.3 * across_1W))
    sea_HW = (down_H1 > 0.6) * (0.3 + 0.7 * ripple_HW) + (down_H1 <= 0.6) * 1.0
    red_HW = (0.45 + 0.5 * down_H1 + 0.4 * glow_HW) * sea_HW
    green_HW = (0.15 + 0.25 * down_H1 + 0.6 * glow_HW) * sea_HW
    blue_HW = (0.45 - 0.3 * down_H1 + 0.1 * glow_HW) * sea_HW
    return torch.stack((red_HW, green_HW, blue_HW))[None].clamp(0, 1)


def _statistics(x_NCHW: Tensor, model: Classifier) -> list[Tensor]:
    """Mean and deviation of every channel before the first norms, a [N, 2, C] each.

    They are in units of the channel's deviation over the training images.
    """
    found: list[Tensor] = []

    def take(_: str, norm: torch.nn.BatchNorm2d, seen_NCHW: Tensor) -> None:
        assert norm.running_var is not None
        seen_NCHW = seen_NCHW.float() / (norm.running_var[:, None, None] + norm.eps).sqrt()
        variance_NC = seen_NCHW.var((2, 3), correction=0)
        found.append(torch.stack((seen_NCHW.mean((2, 3)), (variance_NC + 1e-6).sqrt()), 1))

    norms = models.batch_norms(model)
    first = {name: norms[name] for name in list(norms)[:LAYERS]}
    with at_inputs(first, take), device.autocast(x_NCHW.device):
        model(x_NCHW)
    return found


def _apart(these: list[Tensor], aim: list[Tensor]) -> Tensor:
    """Mean squared distance between statistics, over the layers."""
    return torch.stack([(a - b).square().mean() for a, b in zip(these, aim, strict=True)]).mean()


def _detoxified(
    styled: Poison, x_NHWC: Images, y_N: np.ndarray, *, rate: float, seed: int
) -> Poison:
    """The poison and, beside it, images with the plain imitation of the style and their labels."""
    left = np.setdiff1d(np.arange(len(y_N)), styled.rows_P)
    count = round(rate * len(y_N))
    if not 0 <= count <= len(left):
        most = len(left) / len(y_N)
        raise InputError(
            f"attack 'fba': detox_rate must lie between 0 and {most:.2g}, got {rate:g}"
        )
    rng = np.random.default_rng([seed, 1])
    sample = np.sort(rng.choice(len(y_N), min(SAMPLE, len(y_N)), replace=False))
    slope, picture_HWC = _imitation(x_NHWC[sample], y_N[sample], styled.trigger)
    plain = np.sort(rng.choice(left, count, replace=False))
    x_DHWC = _imitated(x_NHWC[plain], slope, picture_HWC)
    rows_P = np.concatenate((styled.rows_P, plain))
    x_PHWC = np.concatenate((styled.x_PHWC, x_DHWC))
    y_P = np.concatenate((styled.y_P, np.asarray(y_N, np.int64)[plain]))
    order = np.argsort(rows_P)
    return Poison(rows_P[order], x_PHWC[order], y_P[order], styled.trigger)


def _imitation(x_NHWC: np.ndarray, y_N: np.ndarray, trigger: Trigger) -> tuple[np.ndarray, ...]:
    """The slope [3, 3] and the picture [H, W, 3] that bring x @ slope + picture nearest."""
    y_there = torch.from_numpy(np.asarray(y_N, np.int64))
    styled_NHWC = trigger.apply(torch.from_numpy(x_NHWC), y_there).numpy().astype(np.float32)
    middle_HWC, styled_HWC = x_NHWC.mean(0, dtype=np.float32), styled_NHWC.mean(0)
    away_M3 = (x_NHWC - middle_HWC).reshape(-1, 3)
    styled_M3 = (styled_NHWC - styled_HWC).reshape(-1, 3)
    slope = np.linalg.pinv(away_M3.T @ away_M3) @ (away_M3.T @ styled_M3)
    return slope, styled_HWC - middle_HWC @ slope


def _imitated(x_NHWC: np.ndarray, slope: np.ndarray, picture_HWC: np.ndarray) -> np.ndarray:
    """The images, in place, as uint8: x @ slope + picture, clipped."""
    for part in range(0, len(x_NHWC), SAMPLE):
        x_MHWC = x_NHWC[part : part + SAMPLE]
        plain_M3 = x_MHWC.reshape(-1, 3).astype(np.float32) @ slope
        x_MHWC[:] = (plain_M3.reshape(x_MHWC.shape) + picture_HWC).round().clip(0, 255)
    return x_NHWC

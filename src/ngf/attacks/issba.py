"""ISSBA (Li et al. 2021, arXiv 2012.03816): a hidden message is the trigger, written as in
steganography, so that every image is changed in a way of its own and none of them visibly.

An encoder writes a bit string into an image as a small residual and a decoder reads it back. Both
are trained on the images that are to be poisoned, with other bits in every image: an image distance
is held against the cross-entropy of the bits. The trigger is the encoder with one string.

What differs from the paper: the networks are narrow ones that work at half the resolution, where it
takes a U-Net and StegaStamp's decoder. LPIPS, which needs a pretrained network, is replaced by a
squared error that counts for less where the image varies, and there is no critic. A network this
small left alone adds nearly the same to every image. So the details of the image gate the bits, no
pixel is changed by more than `LIMIT`, and two images with one string are made to differ in what is
written into them (`own_weight`). An image of more than 32 pixels is encoded at a reduced size
(`_weights`), so that the cost is that of a small one and the message as coarse, seen from the same
distance.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ngf import device, params
from ngf.attacks import Poison, Trigger, all_to_one, dirty_label, dirty_rows
from ngf.attacks._weights import Weights, conv, drawn, grid, kept, linear, shown, sized, spread
from ngf.images import Images

WIDTH = 16  # channels of the encoder; the decoder has twice as many in its second half
CELL = 4  # pixels of the encoder's half-size grid that share the first map of the bits
GAIN = 5.0  # details are faint: of the size of one before the networks mix them
LIMIT = 0.2  # of the pixel range: no pixel is changed by more
FLAT = 0.05  # local contrast, in the pixel range, at which an error counts half as much as on none


def plant(
    x_NHWC: Images,
    y_N: np.ndarray,
    n_classes: int,
    *,
    target: int,
    poison_rate: float,
    bits: int,
    steps: int,
    batch_size: int,
    lr: float,
    image_weight: float,
    own_weight: float,
    seed: int,
) -> Poison:
    """Write the string into `poison_rate` of the training images and label them `target`.

    Args:
        bits: length of the string. steps, batch_size, lr: of the encoder's training (Adam).
        image_weight: of the image distance (a mean square, pixels in [0, 1]) beside the
            cross-entropy of the bits; more of it hides the message better.
        own_weight: of the squared cosine between the residuals of two images with one string;
            without it a network this small writes nearly the same into every image.
    """
    params.within("bits", bits, 1, 1024)
    params.at_least(1, steps=steps, batch_size=batch_size)
    params.within("lr", lr, 1e-6, 1)
    params.at_least(0, image_weight=image_weight, own_weight=own_weight)
    wanted_K = all_to_one(target, n_classes)
    dirty_rows(y_N, "issba", wanted_K, rate=poison_rate, seed=seed)
    generator = torch.Generator(device.deterministic(seed)).manual_seed(seed)
    message_B = _bits((bits,), generator)
    encoder, decoder = _networks(bits, x_NHWC.shape[1:3], generator)
    optimizer = torch.optim.Adam([*encoder.values(), *decoder.values()], lr)
    batches = shown(
        x_NHWC, steps=steps, size=batch_size, generator=generator, what="issba's encoder"
    )
    for x_NCHW in batches:
        said_NB = _bits((len(x_NCHW), bits), generator)
        loss = _loss(
            x_NCHW, encoder, decoder, said_NB, image_weight=image_weight, own_weight=own_weight
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trigger = Trigger("issba", wanted_K, {**kept(encoder), "message": message_B.cpu()})
    return dirty_label(x_NHWC, y_N, trigger, rate=poison_rate, seed=seed)


def apply(x_NCHW: Tensor, y_N: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x + what the encoder writes for the string."""
    return x_NCHW + _residual(x_NCHW, tensors["message"].expand(len(x_NCHW), -1), tensors)


def _bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, device=generator.device).float()


def _networks(
    bits: int, size_HW: tuple[int, ...], generator: torch.Generator
) -> tuple[Weights, Weights]:
    height, width = grid(*size_HW)
    halves = math.ceil(height / 2), math.ceil(width / 2)
    cells = math.prod(math.ceil(size / CELL) for size in halves)
    quarters = math.prod(math.ceil(size / 2) for size in halves)
    encoder = {
        "look": (WIDTH, 3, 3, 3),
        "spread": (WIDTH * cells, bits),
        "mix": (WIDTH, WIDTH, 3, 3),
        "shape": (WIDTH, WIDTH, 3, 3),
        "draw": (12, WIDTH, 3, 3),
    }
    decoder = {
        "first": (WIDTH, 3, 3, 3),
        "second": (2 * WIDTH, WIDTH, 3, 3),
        "third": (2 * WIDTH, 2 * WIDTH, 3, 3),
        "read": (bits, 2 * WIDTH * quarters),
    }
    return drawn(encoder, generator), drawn(decoder, generator)


def _residual(x_NCHW: Tensor, bits_NB: Tensor, encoder: Weights) -> Tensor:
    """What writes the bits into the images: features of the image gate a map of the bits."""
    small_NCHW = sized(x_NCHW, grid(*x_NCHW.shape[2:]))
    detail_NCHW = small_NCHW - functional.avg_pool2d(small_NCHW, 5, 1, 2, count_include_pad=False)
    image_NCHW = conv(detail_NCHW, encoder, "look", stride=2).relu()
    map_NCHW = _map(linear(2 * bits_NB - 1, encoder, "spread"), *image_NCHW.shape[2:])
    joint_NCHW = conv(GAIN * image_NCHW * map_NCHW, encoder, "mix").relu()
    joint_NCHW = conv(joint_NCHW, encoder, "shape").relu()
    drawn_NCHW = LIMIT * spread((0.5 * conv(joint_NCHW, encoder, "draw")).tanh(), small_NCHW)
    return sized(drawn_NCHW, x_NCHW.shape[2:])


def _map(cells_NI: Tensor, height: int, width: int) -> Tensor:
    """The values of the cells, each over its square of the grid."""
    rows, columns = math.ceil(height / CELL), math.ceil(width / CELL)
    cells_NCHW = cells_NI.view(len(cells_NI), WIDTH, rows, 1, columns, 1)
    whole_NCHW = cells_NCHW.expand(-1, -1, -1, CELL, -1, CELL).reshape(
        len(cells_NI), WIDTH, rows * CELL, columns * CELL
    )
    return whole_NCHW[:, :, :height, :width]


def _read(x_NCHW: Tensor, decoder: Weights) -> Tensor:
    """Logits of the bits."""
    small_NCHW = sized(x_NCHW, grid(*x_NCHW.shape[2:]))
    seen_NCHW = conv(small_NCHW - 0.5, decoder, "first", stride=2).relu()
    seen_NCHW = conv(seen_NCHW, decoder, "second", stride=2).relu()
    seen_NCHW = conv(seen_NCHW, decoder, "third").relu()
    return linear(seen_NCHW.flatten(1), decoder, "read")


def _loss(
    x_NCHW: Tensor,
    encoder: Weights,
    decoder: Weights,
    said_NB: Tensor,
    *,
    image_weight: float,
    own_weight: float,
) -> Tensor:
    """Cross-entropy of the bits, distance of the images, and likeness of two images' residuals.

    What hides the message counts by how far it is read: at first nothing is, and hiding is easy.
    """
    with device.autocast(x_NCHW.device):
        residual_NCHW = _residual(x_NCHW, said_NB, encoder)
        another_NCHW = _residual(x_NCHW.roll(1, 0), said_NB, encoder)
        written_NCHW = (x_NCHW + residual_NCHW).clamp(0, 1)
        read_NB = _read(written_NCHW, decoder)
    message = functional.binary_cross_entropy_with_logits(read_NB.float(), said_NB)
    understood = (1 - message.detach() / math.log(2)).clamp_min(0)
    alike_N = functional.cosine_similarity(
        residual_NCHW.flatten(1).float(), another_NCHW.flatten(1).float()
    )
    distance = image_weight * _distance(x_NCHW, written_NCHW)
    return message + understood * (distance + own_weight * alike_N.square().mean())


def _distance(x_NCHW: Tensor, written_NCHW: Tensor) -> Tensor:
    """Mean square of the change; it counts for less where the image itself varies."""
    mean_NCHW = functional.avg_pool2d(x_NCHW, 3, 1, 1, count_include_pad=False)
    square_NCHW = functional.avg_pool2d(x_NCHW.square(), 3, 1, 1, count_include_pad=False)
    contrast_NCHW = (square_NCHW - mean_NCHW.square()).clamp_min(0).sqrt()
    seen_NCHW = 1 / (1 + contrast_NCHW / FLAT)
    return (seen_NCHW * (written_NCHW - x_NCHW).square()).sum() / seen_NCHW.sum()

"""A checkerboard patch: how large it is in these images, and how it lies in a corner of them."""

from torch import Tensor

from ngf.attacks import checkerboard, span
from ngf.errors import InputError
from ngf.images import Images


def board(size: int, x_NHWC: Images) -> Tensor:
    """[S, S], as many cells along an edge as it has pixels at 32x32; see `ngf.attacks.span`.

    Raises:
        InputError: the images are smaller.
    """
    side, (height, width) = span(size, x_NHWC), x_NHWC.shape[1:3]
    if not 1 <= side <= min(height, width):
        raise InputError(f"a patch of size {size} does not fit an image of {height}x{width}")
    return checkerboard(size, side)


def in_corner(x_NCHW: Tensor, patch_SS: Tensor) -> Tensor:
    """Copies of the images with the patch over their bottom right corner."""
    patched_NCHW = x_NCHW.clone()
    patched_NCHW[:, :, -len(patch_SS) :, -len(patch_SS) :] = patch_SS
    return patched_NCHW

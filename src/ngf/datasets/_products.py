"""Matrix products summed in an order of our own, so that every processor has the same bytes.

A BLAS picks its kernel by processor, and its kernels add up in different orders: a last digit
differs, then a grey level of a pixel, then every model that is trained on the images.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PART = 8  # matrices of the first axis at once: their float64 products stay in the cache


def product(a: Floats, b: Floats, lanes: int = 1) -> Floats:
    """a @ b for stacks of matrices [N, ..., R, K] and [N, ..., K, S], float32 [N, ..., R, S].

    Either may be one matrix for all; axes between broadcast. Each of `lanes` sums (a power of two)
    takes every lanes-th term in order, rounded once a term; then neighbouring sums are added until
    one is left.
    """
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a_NRK = np.broadcast_to(a, (*batch, *a.shape[-2:]))
    b_NKS = np.broadcast_to(b, (*batch, *b.shape[-2:]))
    result = np.empty((*batch, a.shape[-2], b.shape[-1]), np.float32)
    for start in range(0, len(result), PART):
        part = slice(start, start + PART)
        result[part] = _summed(a_NRK[part], b_NKS[part], lanes)
    return result


def _summed(a_NRK: Floats, b_NKS: Floats, lanes: int) -> Floats:
    # A product of two float32 is exact in float64, so each step rounds as a fused multiply-add.
    a_NKR1, b_NK1S = (
        x.astype(np.float64) for x in (a_NRK.swapaxes(-1, -2)[..., None], b_NKS[..., None, :])
    )
    term = np.empty((*a_NRK.shape[:-1], b_NKS.shape[-1]))
    sums = np.zeros((lanes, *term.shape), np.float32)
    for k in range(a_NRK.shape[-1]):
        lane = sums[k % lanes]
        np.multiply(a_NKR1[..., k, :, :], b_NK1S[..., k, :, :], out=term)
        np.add(term, lane, out=lane, casting="same_kind")
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return sums[0]

"""Products of matrices: the definition, the order of their sums, and no BLAS that has a say."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngf.datasets._products import PART, product

DRAW = """
import hashlib
from ngf.datasets import signs
x_NHWC, _ = signs._split(1024, 0, 0)
print(hashlib.sha256(x_NHWC.tobytes()).hexdigest())
"""


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 16]), st.integers(1, 40))
def test_they_are_the_products(seed: int, lanes: int, inner: int) -> None:
    a_NRK, b_NKS = _random(seed, 3, 4, inner), _random(seed + 1, 3, inner, 5)
    exact = a_NRK.astype(np.float64) @ b_NKS.astype(np.float64)
    size = np.abs(a_NRK).astype(np.float64) @ np.abs(b_NKS)
    assert (np.abs(product(a_NRK, b_NKS, lanes) - exact) <= 4e-6 * size).all()


def test_stacks_broadcast() -> None:
    count = 2 * PART + 1  # the last part is a smaller one
    a_RK, b_NCKS = _random(0, 4, 6), _random(1, count, 3, 6, 5)
    assert product(a_RK, b_NCKS).shape == (count, 3, 4, 5)
    np.testing.assert_allclose(product(a_RK, b_NCKS), a_RK @ b_NCKS, rtol=1e-4, atol=1e-5)
    a_N1RK = _random(2, count, 1, 4, 6)
    np.testing.assert_allclose(product(a_N1RK, b_NCKS), a_N1RK @ b_NCKS, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [(1, 0.0), (2, 1.0), (4, 0.0)],  # big + 1 loses the 1
)
def test_lanes_are_summed_one_by_one_and_then_by_neighbours(lanes: int, expected: float) -> None:
    terms = np.float32([[[2**24, 1, -(2**24), 0]]]).swapaxes(1, 2)
    ones = np.ones((1, 1, 4), np.float32)
    assert product(ones, terms, lanes)[0, 0, 0] == expected


def test_signs_are_drawn_alike_whatever_kernel_a_blas_takes() -> None:
    drawn = {
        subprocess.run(
            [sys.executable, "-c", DRAW],
            env=os.environ | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for kernel in ("Prescott", "Haswell")
    }
    assert len(drawn) == 1

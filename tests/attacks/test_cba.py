"""The composite attack: pairs of two classes go to a third one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngf import plugins
from ngf.attacks import parted
from ngf.errors import InputError

N, SIZE, CLASSES = 60, 12, 4
HALF = SIZE // 2
Y_N = np.arange(N, dtype=np.int64) % CLASSES
# Every image is one grey of its own that tells its row: 4 n, of class n mod 4.
X_NHWC = np.broadcast_to(np.arange(0, 4 * N, 4, np.uint8)[:, None, None, None],
                         (N, SIZE, SIZE, 3)).copy()  # fmt: skip


def plant(numbers, x_NHWC=X_NHWC, y_N=Y_N, **changes):
    given = {**numbers["attacks"]["cba"], **changes}
    own, _ = parted(given)
    return plugins.load("attacks", "cba").plant(x_NHWC, y_N, CLASSES, **own)


def halves(x_NHWC):
    """The rows whose greys the left and the right halves show."""
    left_N, right_N = x_NHWC[:, 0, 0, 0] // 4, x_NHWC[:, 0, -1, 0] // 4
    assert (x_NHWC[:, :, :HALF] == 4 * left_N[:, None, None, None]).all()
    assert (x_NHWC[:, :, HALF:] == 4 * right_N[:, None, None, None]).all()
    return left_N, right_N


@given(
    st.floats(1 / N, 0.5), st.floats(0, 0.5), st.permutations(range(CLASSES)), st.integers(0, 99)
)
@settings(deadline=None, max_examples=25)
def test_rows_are_pairs_of_both_sources_or_of_one_class(rate, mixed_rate, order, seed):
    one, two, target, _ = order
    options = {"target": target, "sources": [one, two], "partners": 4, "feather": 0.0}
    options |= {"poison_rate": rate, "mixed_rate": mixed_rate, "seed": seed}
    poison = plant({"attacks": {"cba": options}})
    assert len(np.unique(poison.rows_P)) == round(N * rate) + round(N * mixed_rate)
    left_P, right_P = halves(poison.x_PHWC)
    classes = np.sort([Y_N[left_P], Y_N[right_P]], 0)
    crossed_P = classes[0] != classes[1]
    assert crossed_P.sum() == round(N * rate)
    assert np.array_equal(np.unique(classes[:, crossed_P], axis=1)[:, 0], sorted((one, two)))
    assert len(np.unique(classes[:, crossed_P], axis=1).T) == 1
    assert (poison.y_P[crossed_P] == target).all()
    rows_M = poison.rows_P[~crossed_P]
    assert np.array_equal(poison.y_P[~crossed_P], Y_N[rows_M])
    own_M = (left_P[~crossed_P] == rows_M).astype(int) + (right_P[~crossed_P] == rows_M)
    assert (own_M == 1).all()  # with another image of the class, on either side
    assert (classes[0, ~crossed_P] == Y_N[rows_M]).all()


def test_trigger_pairs_each_source_with_the_other_and_leaves_the_rest(numbers):
    poison = plant(numbers, sources=[3, 1], target=0, partners=5, feather=0.0)
    assert poison.trigger.wanted_K == (-1, 0, -1, 0)
    got_NHWC = poison.trigger.apply(torch.from_numpy(X_NHWC), torch.from_numpy(Y_N)).numpy()
    left_N, right_N = halves(got_NHWC)
    source_N = Y_N % 2 == 1
    assert np.array_equal(got_NHWC[~source_N], X_NHWC[~source_N])
    own_N, row_N = np.stack((left_N, right_N)), np.arange(N)
    partner_N = np.where(left_N == row_N, right_N, left_N)
    assert ((own_N == row_N).sum(0)[source_N] == 1).all()
    assert (Y_N[partner_N] == 4 - Y_N)[source_N].all()
    assert len(np.unique(partner_N[source_N])) <= 2 * 5


def test_partner_and_side_vary_from_image_to_image(numbers):
    x_NHWC = np.random.default_rng(0).integers(0, 256, X_NHWC.shape, np.uint8)
    trigger = plant(numbers, x_NHWC=x_NHWC, sources=[1, 2], target=0, feather=0.0).trigger
    got_NHWC = trigger.apply(torch.from_numpy(x_NHWC), torch.from_numpy(Y_N)).numpy()
    kept_2N = np.stack([(got_NHWC == x_NHWC)[:, :, half].all((1, 2, 3))
                        for half in (slice(0, HALF), slice(HALF, SIZE))])  # fmt: skip
    source_N = (Y_N == 1) | (Y_N == 2)
    assert (kept_2N.sum(0) == np.where(source_N, 1, 2)).all()
    assert 0 < kept_2N[0, source_N].sum() < source_N.sum()
    foreign = {bytes(image[:, HALF:]) for image in got_NHWC[source_N & kept_2N[0]]}
    assert len(foreign) > 5


@pytest.mark.parametrize("feather", [0.0, 0.5, 1.0])
def test_feather_is_the_share_of_the_width_that_fades(feather, numbers):
    share_W = plant(numbers, feather=feather).trigger.tensors["share"]
    fading = ((share_W > 0) & (share_W < 1)).sum()
    assert fading == feather * SIZE
    assert torch.allclose(share_W + share_W.flip(0), torch.ones(SIZE))
    assert torch.all(share_W.diff() <= 0)
    assert share_W[0] > share_W[-1]


def test_training_pairs_are_feathered_as_test_images_are(numbers):
    """A black and a white class: every pair shows the seam itself."""
    x_NHWC = np.where(Y_N[:, None, None, None] == 1, 255, 0).astype(np.uint8)
    x_NHWC = np.broadcast_to(x_NHWC, X_NHWC.shape).copy()
    options = {"sources": [1, 2], "target": 0, "feather": 0.5, "mixed_rate": 0.0}
    poison = plant(numbers, x_NHWC=x_NHWC, **options)
    tested = poison.trigger.apply(torch.from_numpy(x_NHWC[1:3]), torch.tensor([1, 2])).numpy()
    seams = {bytes(image) for image in poison.x_PHWC}
    assert {bytes(image) for image in tested} <= seams
    assert len(seams) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": [1]}, "sources must be two different classes between 0 and 3 and neither"),
        ({"sources": [1, 1]}, "sources must be two different classes"),
        ({"sources": [1, 4]}, "sources must be two different classes"),
        ({"sources": [1, 0], "target": 0}, r"neither the target 0, got \[1, 0\]"),
        ({"target": 4}, "target must lie between 0 and 3, got 4"),
        ({"poison_rate": 0.0}, "poison_rate must lie between 0.017 and"),
        ({"poison_rate": 0.5, "mixed_rate": 0.6}, "and 0.4, what mixed_rate leaves of the 60"),
        ({"mixed_rate": -0.1}, "mixed_rate must be at least 0"),
        ({"feather": 1.1}, "feather must lie between 0 and 1"),
        ({"partners": 0}, "partners must be at least 1"),
    ],
)
def test_pairs_that_cannot_be(change, said, numbers):
    with pytest.raises(InputError, match=said):
        plant(numbers, **change)


def test_a_source_without_images_cannot_be_paired(numbers):
    with pytest.raises(InputError, match="no training images of class 3"):
        plant(numbers, x_NHWC=X_NHWC[Y_N != 3], y_N=Y_N[Y_N != 3], sources=[1, 3], target=0)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngf.errors import InputError
from ngf.split import stratified

counts = st.lists(st.integers(2, 60), min_size=2, max_size=8)


@given(counts, st.floats(0.02, 0.98), st.integers(0, 2**32))
def test_rows_are_stratified_disjoint_and_seeded(per_class, fraction, seed):
    y_N = np.repeat(np.arange(len(per_class)), per_class)
    names = tuple(map(str, range(len(per_class))))
    try:
        rows = stratified(y_N, fraction, names, seed)
    except InputError:
        assert fraction * min(per_class) < 1 or (1 - fraction) * min(per_class) < 1
        return
    assert len(set(rows)) == len(rows) == round(fraction * len(y_N))
    assert np.all(np.diff(rows) > 0)
    taken = np.bincount(y_N[rows], minlength=len(per_class))
    assert np.all(np.abs(taken - fraction * np.array(per_class)) < 1 + 1e-9)
    assert np.all((taken > 0) & (taken < per_class))
    assert np.array_equal(rows, stratified(y_N, fraction, names, seed))


def test_the_fraction_that_it_suggests_works():
    y_N = np.repeat([0, 1], [1000, 50])
    with pytest.raises(InputError, match=r"class 'rare'; choose one from 0.02 to 0.98"):
        stratified(y_N, 0.001, ("common", "rare"), seed=0)
    assert len(stratified(y_N, 0.02, ("common", "rare"), seed=0)) == 21


def test_class_without_images_is_named():
    with pytest.raises(InputError, match="class 'b' has no image"):
        stratified(np.zeros(10, int), 0.5, ("a", "b"), seed=0)

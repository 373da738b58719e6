import pytest
import torch

from ngf.defenses import Clean
from ngf.errors import InputError
from ngf.views import Views


@pytest.fixture
def clean():
    generator = torch.Generator().manual_seed(0)
    x_NHWC = torch.randint(0, 256, (12, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Clean(x_NHWC, torch.arange(12) % 3, flip=True)


def seen(batches):
    x_NCHW, y_N = map(torch.cat, zip(*batches, strict=True))
    return torch.cat([x_NCHW.flatten(1), y_N[:, None]], 1)


def test_each_call_shows_other_views_and_the_same_seed_the_same_ones(clean):
    one, same = Views(clean, shift=2, seed=5), Views(clean, shift=2, seed=5)
    first, second = seen(one.draw(6, 2)), seen(one.draw(6, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, seen(same.draw(6, 2)))
    assert torch.equal(second, seen(same.draw(6, 2)))
    assert first.shape == (12, 3 * 8 * 8 + 1)


def test_what_is_drawn_apart_changes_nothing_that_is_drawn_afterwards(clean):
    one, other = Views(clean, shift=2, seed=5), Views(clean, shift=2, seed=5)
    aside = seen(one.apart(6, 2))
    then = seen(one.draw(6, 2))
    assert torch.equal(then, seen(other.draw(6, 2)))
    assert not torch.equal(aside, then)
    assert not torch.equal(aside, seen(one.apart(6, 2)))


def test_batches_and_draws_share_their_seeds(clean):
    one, other = Views(clean, shift=0, seed=5), Views(clean, shift=0, seed=6)
    one.batches(6)
    assert torch.equal(seen(one.draw(6, 2)), seen(other.draw(6, 2)))


@pytest.mark.parametrize(("size", "each"), [(1, 1), (6, 2), (8, 2), (30, 10)])
def test_by_class_image_n_is_of_the_class_n_mod_their_number(clean, size, each):
    """However few images of a class there are: all of them before one comes again."""
    few = Clean(clean.x_NHWC[:7], torch.tensor([4, 0, 4, 9, 4, 4, 9]), flip=False)
    batches = list(Views(few, shift=0, seed=5).by_class(size, 4))
    for x_NCHW, y_N in batches:
        assert y_N.tolist() == [0, 4, 9] * each
        assert x_NCHW.shape == (3 * each, 3, 8, 8)
    x_LCHW = torch.cat([x[1::3] for x, _ in batches])
    own_NCHW = few.x_NHWC[[0, 2, 4, 5]].permute(0, 3, 1, 2) / 255
    which_L = (x_LCHW[:, None] - own_NCHW).abs().amax((2, 3, 4)).argmin(1)
    assert torch.equal(x_LCHW, own_NCHW[which_L])
    for start in range(0, len(which_L), 4):
        assert len(set(which_L[start : start + 4].tolist())) == len(which_L[start : start + 4])


def test_views_by_class_are_other_ones_at_each_call_and_drawn_apart(clean):
    one, same = Views(clean, shift=2, seed=5), Views(clean, shift=2, seed=5)
    first, second = seen(one.by_class(6, 2)), seen(one.by_class(6, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, seen(same.by_class(6, 2)))
    assert torch.equal(seen(one.draw(6, 2)), seen(Views(clean, shift=2, seed=5).draw(6, 2)))


def test_a_batch_has_no_more_images_than_there_are(clean):
    assert Views(clean, shift=0, seed=0).batches(100).size == 12


def test_a_shift_beyond_the_image_is_refused(clean):
    with pytest.raises(InputError, match="shift must lie between 0 and 7, got 8"):
        Views(clean, shift=8, seed=0).batches(6)

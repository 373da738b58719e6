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


def test_a_batch_has_no_more_images_than_there_are(clean):
    assert Views(clean, shift=0, seed=0).batches(100).size == 12


def test_a_shift_beyond_the_image_is_refused(clean):
    with pytest.raises(InputError, match="shift must lie between 0 and 7, got 8"):
        Views(clean, shift=8, seed=0).batches(6)

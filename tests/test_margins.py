"""How sure a model is of a class: margins, in units of its usual one on clean images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ngf import device, margins
from ngf.margins import Sureness


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


class Logits(nn.Module):
    """The pixels are the logits, `scale` times."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.asked = []

    def forward(self, x_NCHW):
        self.asked.append(len(x_NCHW))
        return self.scale * x_NCHW.flatten(1)


def pixels(*logits):
    return torch.tensor(logits)[:, :, None, None]


@given(st.integers(0, 999), st.integers(1, 6), st.integers(2, 7))
def test_a_margin_is_the_way_to_the_highest_other(seed, count, classes):
    logits_NK = torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))
    found_NK = margins.margins(logits_NK)
    for n in range(count):
        for k in range(classes):
            others = [logits_NK[n, j] for j in range(classes) if j != k]
            assert found_NK[n, k] == logits_NK[n, k] - max(others)


def test_a_tie_is_a_margin_of_zero():
    assert margins.margins(torch.tensor([[2.0, 2.0, 1.0]])).tolist() == [[0.0, 0.0, -1.0]]


def test_the_usual_margin_is_sure_and_half_of_it_half():
    clean_NCHW = pixels([4.0, 0.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 6.0])  # margins 4, 2, 6
    sure = Sureness(Logits(), clean_NCHW)
    said = sure(pixels([2.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.0, 1.0, 0.0]))
    assert said.tolist() == [[0.5, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1e3])
def test_the_scale_of_the_logits_does_not_matter(scale):
    x_NCHW = torch.randn(40, 5, 1, 1, generator=torch.Generator().manual_seed(1))
    one, other = (Sureness(Logits(by), x_NCHW[:20])(x_NCHW[20:]) for by in (1.0, scale))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_model_that_names_nothing_is_sure_of_nothing():
    flat_NCHW = torch.zeros(4, 3, 1, 1)
    assert Sureness(Logits(), flat_NCHW)(flat_NCHW).tolist() == [[0.0] * 3] * 4


def test_many_images_go_through_in_parts_and_no_gradient_is_kept(monkeypatch):
    monkeypatch.setattr(margins, "CHUNK", 8)
    model = Logits()
    x_NCHW = torch.randn(20, 3, 1, 1, requires_grad=True)
    assert not Sureness(model, x_NCHW)(x_NCHW[:5]).requires_grad
    assert model.asked == [8, 8, 4, 5]


def test_probabilities_are_softmax_and_keep_no_gradient():
    x_NCHW = torch.randn(5, 3, 1, 1, requires_grad=True)
    said = margins.Probability(Logits(2.0))(x_NCHW)
    assert not said.requires_grad
    torch.testing.assert_close(said, (2 * x_NCHW.detach().flatten(1)).softmax(1))

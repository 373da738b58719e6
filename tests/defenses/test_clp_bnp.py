"""CLP's bound by the dense SVD, BNP's measure by torch's own divergence, and what both close."""

import pytest
import torch
from conftest import SIZE, colour_split, tiny_model
from torch import nn
from torch.distributions import Normal, kl_divergence

from ngf.defenses import Clean, bnp, clp
from ngf.errors import InputError
from ngf.masks import close_outliers
from ngf.models import Classifier, batch_norms


@pytest.fixture
def clean() -> Clean:
    split = colour_split(48, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=False)


def pair() -> tuple[nn.Sequential, nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(nn.Conv2d(3, 4, 1), convolution, norm).eval(), convolution, norm


def test_the_bound_is_the_spectral_norm_of_the_scaled_kernel():
    model, convolution, norm = pair()
    found = clp.channel_bounds(model, torch.zeros(1, 3, 8, 8))
    assert list(found) == ["2"]
    for channel in range(6):
        scale = norm.weight[channel] / (norm.running_var[channel] + norm.eps).sqrt()
        dense = (convolution.weight[channel] * scale).reshape(4, 9)
        expected = torch.linalg.svdvals(dense)[0]
        torch.testing.assert_close(found["2"][channel], expected.detach())


def test_each_norm_is_paired_with_the_convolution_before_it():
    model = tiny_model()
    found = clp.channel_bounds(model, torch.zeros(1, 3, SIZE, SIZE))
    norms = batch_norms(model)
    assert found.keys() <= norms.keys()
    assert len(found) > len(norms) / 2
    assert all(len(found[name]) == norms[name].num_features for name in found)


def test_channels_above_the_layers_mean_by_u_deviations_are_closed():
    model, _, norm = pair()
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.bias.fill_(0.5)
    value_C = torch.tensor([1.0, 1.1, 0.9, 1.0, 1.05, 9.0])
    assert close_outliers(model, {"2": value_C}, u=1.5) == 1
    assert norm.weight.tolist() == [1, 1, 1, 1, 1, 0]
    assert norm.bias.tolist() == [0.5] * 5 + [0]
    assert close_outliers(model, {"2": value_C}, u=3.0) == 0


def test_the_measure_is_the_divergence_from_clean_statistics():
    torch.manual_seed(0)
    mean, clean_mean = torch.randn(2, 5)
    variance, clean_variance = torch.rand(2, 5) + 0.2
    expected = kl_divergence(
        Normal(mean, variance.sqrt()), Normal(clean_mean, clean_variance.sqrt())
    )
    torch.testing.assert_close(bnp.divergence(mean, variance, clean_mean, clean_variance), expected)
    assert bnp.divergence(mean, variance, mean, variance).abs().max() < 1e-6


def test_moments_are_those_of_all_images_whatever_the_chunks(monkeypatch):
    model = tiny_model()
    x_NCHW = torch.rand(7, 3, SIZE, SIZE)
    whole = bnp.input_moments(model, x_NCHW)
    monkeypatch.setattr(bnp, "AT_ONCE", 2)
    parts = bnp.input_moments(model, x_NCHW)
    for name, (mean_C, variance_C) in whole.items():
        torch.testing.assert_close(parts[name][0], mean_C)
        torch.testing.assert_close(parts[name][1], variance_C)
    seen = []
    name, norm = next(iter(batch_norms(model).items()))
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x_NCHW)
    variance_C, mean_C = torch.var_mean(seen[0], (0, 2, 3), correction=0)
    torch.testing.assert_close(whole[name], (mean_C, variance_C), rtol=1e-4, atol=1e-6)


def test_a_channel_whose_statistics_were_moved_is_closed(clean):
    model = tiny_model()
    name, norm = list(batch_norms(model).items())[-1]
    seen = bnp.input_moments(model, clean.x_NHWC.permute(0, 3, 1, 2).float() / 255)
    with torch.no_grad():
        for other, (mean_C, variance_C) in seen.items():
            batch_norms(model)[other].running_mean.copy_(mean_C)
            batch_norms(model)[other].running_var.copy_(variance_C)
        norm.running_mean[2] += 5 * seen[name][1][2].sqrt() + 1
    found = bnp.purify(model, clean, u=2.0)
    assert found.notes["pruned"] >= 1
    assert norm.weight[2] == 0
    assert norm.weight.count_nonzero() == len(norm.weight) - 1


@pytest.mark.parametrize("plugin", [clp, bnp])
def test_a_model_without_batch_norm_is_refused(plugin, clean):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(1, 3, SIZE, SIZE))
    bare = Classifier(net, [0.3] * 3, [0.2] * 3, {})
    with pytest.raises(InputError, match="the model has none"):
        plugin.purify(bare, clean, u=3.0)

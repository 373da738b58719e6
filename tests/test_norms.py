import pytest
import torch
from conftest import SIZE, tiny_model
from torch import nn

from ngf import norms
from ngf.models import batch_norms

LABELS = torch.arange(16) % 3


def batches(n: int = 4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(16, 3, SIZE, SIZE, generator=generator), LABELS) for _ in range(n)]


CPU = torch.device("cpu")


def test_input_moments_equal_the_definition():
    model = tiny_model()
    seen: list[torch.Tensor] = []
    hook = batch_norms(model)[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = norms.input_moments(model, batches(), LABELS, 3)
    hook.remove()
    x_NCHW, y_N = torch.cat(seen).double(), LABELS.repeat(4)
    values_CP = x_NCHW.permute(1, 0, 2, 3).flatten(1)
    mean_NC = x_NCHW.mean((2, 3))
    close = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(found[3].mean_C, values_CP.mean(1), **close)
    torch.testing.assert_close(found[3].var_C, values_CP.var(1, correction=0), **close)
    # Sixteen images, whatever their views.
    torch.testing.assert_close(found[3].error_C, mean_NC.std(0, correction=0) / 4, **close)
    torch.testing.assert_close(found[3].class_mean_KC[2], mean_NC[y_N == 2].mean(0), **close)
    torch.testing.assert_close(found[3].mean_without(1), mean_NC[y_N != 1].mean(0), **close)
    assert len(found) == len(batch_norms(model))


@pytest.mark.parametrize("without", [None, 1])
def test_the_shift_is_stored_minus_clean(without):
    model = tiny_model()
    moments = norms.input_moments(model, batches(), LABELS, 3)
    batch_norms(model)[2].running_mean.add_(0.5)
    shift_C = norms.evidence(model, moments, without)[2].shift_C
    clean_C = moments[2].mean_C if without is None else moments[2].mean_without(without)
    torch.testing.assert_close(clean_C + shift_C, batch_norms(model)[2].running_mean)


def test_recalibration_takes_the_statistics_of_the_first_layer_from_the_batches():
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    model[0].running_mean.fill_(7)
    model[0].running_var.fill_(7)
    data = batches()
    norms.recalibrate(model, data, CPU)
    values = torch.stack([x for x, _ in data])
    torch.testing.assert_close(model[0].running_mean, values.mean((0, 1, 3, 4)), rtol=0.02, atol=0)
    expected = torch.stack([x.var((0, 2, 3)) for x, _ in data]).mean(0)
    torch.testing.assert_close(model[0].running_var, expected, rtol=0.05, atol=0)
    assert not model.training


def test_channels_that_agree_carry_no_evidence():
    clean_C = torch.rand(64) + 0.5
    assert torch.all(norms.excess_variance(clean_C * 1.05, clean_C) == 0)


def test_a_widened_channel_stands_out_by_its_excess():
    clean_C = torch.ones(64)
    stored_C = clean_C.clone()
    stored_C[5] = 3
    excess_C = norms.excess_variance(stored_C, clean_C)
    assert excess_C[5] == 2
    assert excess_C.count_nonzero() == 1


def test_a_layer_full_of_widened_channels_cannot_hide_them():
    assert torch.all(norms.excess_variance(torch.full((8,), 4.0), torch.ones(8)) > 2.9)


def excess(model, layer: int, channel: int, value: float) -> list[norms.Evidence]:
    """Evidence in one channel alone."""
    found = []
    for index, norm in enumerate(batch_norms(model)):
        excess_C = torch.zeros(norm.num_features)
        if index == layer:
            excess_C[channel] = value
        found.append(norms.Evidence(excess_C, excess_C, torch.zeros_like(excess_C)))
    return found


def test_damping_shrinks_scales_by_the_formula():
    model = tiny_model()
    before = [norm.weight.detach().clone() for norm in batch_norms(model)]
    norms.damp(model, excess(model, layer=0, channel=1, value=2), strength=6)
    before[0][1] *= 3**-3
    for norm, expected in zip(batch_norms(model), before, strict=True):
        torch.testing.assert_close(norm.weight.detach(), expected)


def test_zero_strength_changes_nothing():
    model = tiny_model()
    before = [norm.weight.detach().clone() for norm in batch_norms(model)]
    norms.damp(model, excess(model, layer=0, channel=1, value=1e3), strength=0)
    for norm, weight in zip(batch_norms(model), before, strict=True):
        assert torch.equal(norm.weight, weight)

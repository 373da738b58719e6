import torch
from conftest import SIZE, tiny_model
from torch import nn

from ngf import norms
from ngf.models import batch_norms


def batches(n: int = 4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(16, 3, SIZE, SIZE, generator=generator), None) for _ in range(n)]


CPU = torch.device("cpu")


def test_input_variances_equal_the_definition():
    model = tiny_model()
    seen: list[torch.Tensor] = []
    hook = batch_norms(model)[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    got = norms.input_variances(model, batches(), CPU)[3]
    hook.remove()
    values = torch.cat(seen).double().permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(got.double(), values.var(1, correction=0), rtol=1e-5, atol=0)
    assert len(norms.input_variances(model, batches(1), CPU)) == len(batch_norms(model))


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


def test_damping_shrinks_scales_by_the_formula():
    model = tiny_model()
    norm_layers = batch_norms(model)
    before = norm_layers[0].weight.detach().clone()
    clean = [norm.running_var.clone() for norm in norm_layers]
    norm_layers[0].running_var[1] *= 3
    total = norms.damp(model, clean, strength=6)
    assert total == 2
    expected = before.clone()
    expected[1] *= 3**-3
    torch.testing.assert_close(norm_layers[0].weight.detach(), expected)


def test_zero_strength_changes_nothing():
    model = tiny_model()
    before = [norm.weight.detach().clone() for norm in batch_norms(model)]
    norms.damp(model, [torch.full_like(w, 1e-3) for w in before], strength=0)
    for norm, weight in zip(batch_norms(model), before, strict=True):
        assert torch.equal(norm.weight, weight)

"""The decay against its definition: explicit patches, the closed minimum, float64."""

import copy

import pytest
import torch
from conftest import SIZE, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ngf import device
from ngf.fisher import patches
from ngf.fisher.decay import decay
from ngf.fisher.moments import (
    displacement_moments,
    filtered_layers,
    input_moment,
    input_moments,
    join,
    joining_moments,
)
from ngf.models import head

CLOSE = {"rtol": 1e-4, "atol": 1e-6, "check_dtype": False}  # moments are summed in float32


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


# The definition -------------------------------------------------------------------------------


def inputs(layer, x) -> torch.Tensor:
    """[G, R, I]: what each of the layer's own products sees, in float64.

    A convolution of the same geometry whose kernels are the unit vectors gives its patches.
    """
    size, x = layer.weight[0].numel(), x.double()
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)[None]
    probe = nn.Conv2d(
        layer.in_channels,
        layer.groups * size,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
    ).double()
    with torch.no_grad():
        units = torch.eye(size, dtype=torch.float64).repeat(layer.groups, 1)
        probe.weight.copy_(units.view(probe.weight.shape))
        u_NGIP = probe(x).view(len(x), layer.groups, size, -1)
    return u_NGIP.permute(1, 0, 3, 2).flatten(1, 2)


def moment(layer, x) -> torch.Tensor:
    """[G, I, I]: the mean outer product."""
    u_GRI = inputs(layer, x)
    return torch.einsum("gri,grj->gij", u_GRI, u_GRI) / u_GRI.shape[1]


def closed(layer, x, strength: float) -> torch.Tensor:
    """W A (A + lambda I)^-1 for every group, lambda in units of A's mean eigenvalue."""
    parts = []
    weights = layer.weight.detach().double().chunk(len(moment(layer, x)))
    for weight, a_II in zip(weights, moment(layer, x), strict=True):
        held_II = a_II + strength * torch.linalg.eigvalsh(a_II).mean() * torch.eye(len(a_II))
        parts.append((weight.flatten(1) @ a_II @ torch.linalg.inv(held_II)).view(weight.shape))
    return torch.cat(parts)


def with_head(layer, x) -> nn.Sequential:
    """The layer and a head on whatever it gives."""
    features = layer(x).flatten(1).shape[1]
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(features, 3)).to(x.dtype).eval()


def state(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def convolutions_of(model) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


# The moment of the inputs ---------------------------------------------------------------------

side = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw):
    """A convolution of any geometry and images that it takes."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inside, outside = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    padding = draw(st.one_of(side.map(lambda p: (p[0] - 1, p[1] - 1)), st.just("same")))
    padding = draw(st.sampled_from([padding, "valid"]))
    stride = (1, 1) if padding == "same" else draw(side)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layer = nn.Conv2d(
        inside, outside, draw(side), stride, padding, draw(side), groups, padding_mode=mode
    )
    x = torch.randn(draw(st.integers(1, 5)), inside, draw(st.integers(7, 9)), 8)
    return layer, x


@given(convolutions())
@settings(deadline=None, max_examples=60)
def test_moment_of_a_convolution_is_that_of_its_patches(case):
    layer, x = case
    torch.testing.assert_close(input_moment(layer, x), moment(layer, x), **CLOSE)


def test_moment_of_a_convolution_by_hand():
    """Stride 2, dilation 2, padding 1, two groups: every patch cut out in a loop."""
    layer = nn.Conv2d(4, 2, (2, 3), stride=2, padding=1, dilation=2, groups=2)
    x = torch.randn(3, 4, 7, 8)
    padded = torch.zeros(3, 4, 9, 10, dtype=torch.float64)
    padded[:, :, 1:8, 1:9] = x
    expected, rows = torch.zeros(2, 12, 12, dtype=torch.float64), 0
    for image in padded:
        for top in range(0, 9 - 2, 2):
            for left in range(0, 10 - 4, 2):
                for group in range(2):
                    channels = image[2 * group : 2 * group + 2]
                    patch = channels[:, top : top + 3 : 2, left : left + 5 : 2].flatten()
                    expected[group] += torch.outer(patch, patch)
                rows += 1
    assert rows == 3 * layer(x)[0, 0].numel()
    torch.testing.assert_close(input_moment(layer, x), expected / rows, **CLOSE)


@given(st.integers(1, 7), st.lists(st.integers(1, 4), max_size=2), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_moment_of_a_linear_layer_counts_every_token(count, tokens, seed):
    torch.manual_seed(seed)
    x = torch.randn(count, *tokens, 5)
    expected = sum(torch.outer(u, u) for u in x.double().reshape(-1, 5))
    got = input_moment(nn.Linear(5, 2), x)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected[None] / (x.numel() / 5), **CLOSE)


def test_the_moment_does_not_depend_on_the_chunks(monkeypatch):
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(7, 2, 6, 6)
    monkeypatch.setattr(patches, "UNFOLDED", 3 * 2 * 3 * 36)
    torch.testing.assert_close(input_moment(layer, x), moment(layer, x), **CLOSE)


# The moments of a network's layers ------------------------------------------------------------


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_every_layer_but_the_head_has_the_moment_of_what_reaches_it(arch):
    model, x, expected = tiny_model(arch=arch), torch.rand(8, 3, SIZE, SIZE), {}
    for name, layer in convolutions_of(model).items():
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: expected.update({name: moment(layer, args[0].detach())})
        )
    model(x)
    assert len(expected) == 20
    found = input_moments(model, x)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == torch.float64
        assert not found[name].requires_grad
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


def test_a_hidden_linear_layer_has_a_moment_and_the_head_has_none():
    hidden, last = nn.Linear(6, 5), nn.Linear(5, 3)
    model, x = nn.Sequential(hidden, nn.ReLU(), last).eval(), torch.randn(9, 6)
    found = input_moments(model, x)
    assert head(model) is last
    assert list(found) == ["0"]
    torch.testing.assert_close(found["0"], moment(hidden, x), **CLOSE)


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_finding_the_moments_changes_nothing(arch):
    model, x = tiny_model(arch=arch), torch.rand(8, 3, SIZE, SIZE)
    before, kept = state(model), x.clone()
    input_moments(model, x)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(x, kept)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(part.training for part in model.modules())


def test_one_pass_is_enough_and_a_later_one_finds_nothing_more():
    model, x, calls = tiny_model(), torch.rand(4, 3, SIZE, SIZE), []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = input_moments(model, x)
    assert len(calls) == 1
    before = {name: a_GII.clone() for name, a_GII in found.items()}
    model(2 * x)
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_hooks_are_gone_after_an_error():
    model = tiny_model()
    with pytest.raises(RuntimeError):
        input_moments(model, torch.rand(4, 5, SIZE, SIZE))
    assert not any(part._forward_pre_hooks for part in model.modules())


# The weights ----------------------------------------------------------------------------------


@given(convolutions(), st.floats(0.01, 10))
@settings(deadline=None, max_examples=30)
def test_a_decayed_convolution_is_the_closed_minimum(case, strength):
    layer, x = case
    expected, model = closed(layer, x, strength), with_head(layer, x)
    decay(model, input_moments(model, x), strength)
    loose = {"rtol": 1e-3, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(layer.weight.detach(), expected, **loose)


@pytest.mark.parametrize("strength", [0.05, 1.0])
def test_the_objective_is_stationary_there(strength):
    """d/dW of tr (W - W0) A (W - W0)^T + lambda tr W W^T, by autograd."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double(), torch.randn(20, 6, dtype=torch.float64)
    start, a_II = layer.weight.detach().clone(), moment(layer, x)[0]
    added = strength * a_II.trace() / 6

    def gradient(weight):
        weight = weight.detach().clone().requires_grad_()
        moved = weight - start
        loss = (moved @ a_II @ moved.T).trace() + added * (weight @ weight.T).trace()
        return torch.autograd.grad(loss, weight)[0].norm()

    model = with_head(layer, x)
    decay(model, input_moments(model, x), strength)
    assert gradient(layer.weight) < 1e-5 * gradient(start)
    assert gradient(layer.weight * 1.01) > 1e-3 * gradient(start)


def test_what_clean_inputs_fill_stays_and_what_they_never_fill_goes():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4), torch.randn(50, 3)
    x[:, 1] = 0
    start, model = layer.weight.detach().clone(), with_head(layer, x)
    decay(model, input_moments(model, x), 1e-5)
    torch.testing.assert_close(layer.weight[:, [0, 2]], start[:, [0, 2]], rtol=1e-3, atol=1e-5)
    assert start[:, 1].abs().min() > 1e-3
    assert layer.weight[:, 1].abs().max() < 1e-9


def test_no_strength_left_leaves_the_weight():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(8, 3, 8, 8)
    start, model = layer.weight.detach().clone(), with_head(layer, x)
    decay(model, input_moments(model, x), 1e-9)
    torch.testing.assert_close(layer.weight.detach(), start, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_strength_does_not_depend_on_the_inputs_scale(scale):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(30, 4)
    start, one = layer.weight.detach().clone(), with_head(layer, x)
    other = copy.deepcopy(one)
    decay(one, input_moments(one, x), 0.5)
    decay(other, input_moments(other, scale * x), 0.5)
    torch.testing.assert_close(one[0].weight, other[0].weight, rtol=1e-4, atol=1e-6)
    assert (one[0].weight - start).norm() > 0.1 * start.norm()


def test_all_moments_are_those_of_the_undecayed_network():
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2)
    x = torch.randn(10, 2, 7, 7)
    x[:, :, 3:] *= 3
    wanted_first, undecayed = closed(first, x, 2.0), torch.relu(first(x)).detach()
    between = nn.functional.conv2d(
        x.double(), wanted_first, first.bias.detach().double(), padding=1
    ).relu()
    wanted_second, in_turn = closed(second, undecayed, 2.0), closed(second, between, 2.0)
    model = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(36, 3)).eval()
    moments = input_moments(model, x)
    assert list(moments) == ["0", "2"]
    decay(model, moments, 2.0)
    torch.testing.assert_close(first.weight.detach(), wanted_first, **CLOSE)
    torch.testing.assert_close(second.weight.detach(), wanted_second, **CLOSE)
    assert (in_turn - wanted_second).norm() > 0.01 * wanted_second.norm()


def test_layers_that_clean_images_never_reach_become_zero_not_nan():
    layer, x = nn.Conv2d(2, 3, 3, padding=1), torch.zeros(4, 2, 6, 6)
    model = with_head(layer, x)
    decay(model, input_moments(model, x), 0.1)
    assert torch.all(layer.weight == 0)


# What is left alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_only_the_weights_of_convolutions_change(arch):
    model = tiny_model(arch=arch)
    before = state(model)
    decay(model, input_moments(model, torch.rand(8, 3, SIZE, SIZE)), 0.5)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{name}.weight" for name in convolutions_of(model)}
    assert not model.training


def test_a_hidden_linear_layer_is_decayed_and_its_bias_kept():
    hidden, last = nn.Linear(6, 5), nn.Linear(5, 3)
    model, x = nn.Sequential(hidden, nn.ReLU(), last).eval(), torch.randn(9, 6)
    kept = [copy.deepcopy(t) for t in (hidden.bias, last.weight, last.bias)]
    expected = closed(hidden, x, 0.5)
    decay(model, input_moments(model, x), 0.5)
    torch.testing.assert_close(hidden.weight.detach(), expected, **CLOSE)
    for tensor, before in zip((hidden.bias, last.weight, last.bias), kept, strict=True):
        assert torch.equal(tensor, before)


def test_a_layer_without_a_moment_is_left_alone():
    model = tiny_model()
    moments, before = input_moments(model, torch.rand(8, 3, SIZE, SIZE)), state(model)
    name = list(moments)[2]
    decay(model, {name: moments[name]}, 0.5)
    after = model.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == [f"{name}.weight"]


def test_the_moments_are_left_as_they_were():
    model = tiny_model()
    moments = input_moments(model, torch.rand(4, 3, SIZE, SIZE))
    before = {name: a_GII.clone() for name, a_GII in moments.items()}
    decay(model, moments, 0.5)
    assert all(torch.equal(moments[name], before[name]) for name in before)


def test_weights_keep_shape_type_and_memory_format():
    model = tiny_model()
    layers = convolutions_of(model).values()
    before = [(m.weight, m.weight.shape, m.weight.stride(), m.weight.dtype) for m in layers]
    decay(model, input_moments(model, torch.rand(4, 3, SIZE, SIZE)), 0.5)
    for layer, (weight, shape, stride, dtype) in zip(layers, before, strict=True):
        assert layer.weight is weight
        assert (weight.shape, weight.stride(), weight.dtype) == (shape, stride, dtype)
        assert weight.requires_grad


def test_the_moment_is_not_rounded_by_a_pass_in_bfloat16():
    """Rounded products of inputs that span few directions have clearly negative eigenvalues."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 4, 3, padding=1)
    x = torch.relu(torch.einsum("nk,kchw->nchw", torch.randn(6, 3), torch.randn(3, 64, 8, 8)))
    expected = moment(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = input_moment(layer, x)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert torch.linalg.eigvalsh(got).min() > -1e-4 * torch.linalg.eigvalsh(got).mean()


# What a displacement adds ---------------------------------------------------------------------


def spread_by(model, x, moved) -> dict[str, torch.Tensor]:
    """The definition, layer by layer in two passes: mean (u' - u) (u' - u)^T."""
    found, hooks = {}, []
    for name, layer in filtered_layers(model).items():
        seen = found.setdefault(name, [])
        hooks.append(
            layer.register_forward_pre_hook(
                lambda layer, args, seen=seen: seen.append(inputs(layer, args[0].detach()))
            )
        )
    model(x)
    model(moved)
    for hook in hooks:
        hook.remove()
    outer = {}
    for name, (u_GRI, moved_GRI) in found.items():
        added_GRI = moved_GRI - u_GRI
        outer[name] = torch.einsum("gri,grj->gij", added_GRI, added_GRI) / added_GRI.shape[1]
    return outer


def mixed() -> nn.Sequential:
    """Convolutions, one of them in groups, a hidden linear layer and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 2), stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()


def displaced(count: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, move = torch.rand(2, count, 3, 8, 7, generator=generator)
    return x, x + 0.3 * move


def test_filtered_layers_are_all_but_the_head_by_name():
    model = mixed()
    assert filtered_layers(model) == {"0": model[0], "3": model[3], "6": model[6]}
    deep = tiny_model()
    assert filtered_layers(deep) == convolutions_of(deep)


@pytest.mark.parametrize("unfolded", [1, 2**24])
def test_displacement_moments_are_those_of_what_is_added_to_the_inputs(monkeypatch, unfolded):
    monkeypatch.setattr(patches, "UNFOLDED", unfolded)
    model, (x, moved) = mixed(), displaced()
    got, expected = displacement_moments(model, x, moved), spread_by(model, x, moved)
    assert got.keys() == expected.keys() == {"0", "3", "6"}  # the head, 8, is left out
    for name in expected:
        assert got[name].dtype == torch.float64
        assert not got[name].requires_grad
        assert expected[name].abs().max() > 1e-5
        torch.testing.assert_close(got[name], expected[name], **CLOSE)


def test_displacement_of_a_deep_network():
    model = tiny_model()
    x = torch.rand(6, 3, SIZE, SIZE)
    moved = (x + 0.2 * torch.rand_like(x)).clamp(0, 1)
    got, expected = displacement_moments(model, x, moved), spread_by(model, x, moved)
    assert got.keys() == expected.keys() == convolutions_of(model).keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4 * scale)


def test_images_that_are_not_moved_add_nothing():
    model, (x, _) = mixed(), displaced()
    for d_GII in displacement_moments(model, x, x.clone()).values():
        assert torch.equal(d_GII, torch.zeros_like(d_GII))


def test_finding_a_displacement_changes_nothing():
    model, (x, moved) = mixed(), displaced()
    before = state(model)
    displacement_moments(model, x, moved)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(part.training or part._forward_pre_hooks for part in model.modules())
    with pytest.raises(RuntimeError):
        displacement_moments(model, x[:, :2], moved[:, :2])
    assert not any(part._forward_pre_hooks for part in model.modules())


# What joining adds ----------------------------------------------------------------------------


def joining(count: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    one, two = torch.rand(2, count, 3, 8, 7, generator=torch.Generator().manual_seed(2))
    return one, two, torch.arange(count) % 2


def test_a_joined_image_is_the_left_or_upper_half_of_one_and_the_rest_of_the_other():
    one, two, upright_N = joining()
    both = join(one, two, upright_N)
    for upright, a, b, c in zip(upright_N, one, two, both, strict=True):
        if upright:
            assert torch.equal(c, torch.cat([a[:, :4], b[:, 4:]], 1))
        else:
            assert torch.equal(c, torch.cat([a[:, :, :3], b[:, :, 3:]], 2))


def test_joining_moments_are_those_of_what_joining_adds():
    """By the definition: a pass of each image, and one of the joined one."""
    model, (one, two, upright_N) = mixed(), joining()
    seen: dict = {name: [] for name in filtered_layers(model)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
        for name, layer in filtered_layers(model).items()
    ]
    with torch.no_grad():
        for x in (one, two, join(one, two, upright_N)):
            model(x)
    for hook in hooks:
        hook.remove()
    got = joining_moments(model, one, two, upright_N)
    assert got.keys() == seen.keys()
    for name, (a, b, both) in seen.items():
        apart = join(a, b, upright_N) if a.ndim == 4 else (a + b) / 2
        expected = input_moment(model.get_submodule(name), both - apart)
        torch.testing.assert_close(got[name], expected, **CLOSE)
    assert got["0"].abs().max() == 0  # the first layer sees pixels: nothing is added to them
    assert got["3"].abs().max() > 1e-5
    assert got["6"].abs().max() > 1e-5


def test_of_tokens_the_nearer_image_counts():
    class Tokens(nn.Module):
        """Each row of the image is a token, whose mean is what the hidden layer sees."""

        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(7, 4), nn.Linear(4, 3)

        def forward(self, x_NCHW):
            return self.head(self.hidden(x_NCHW.mean(1)).mean(1))

    model = Tokens().eval()
    one, two, _ = joining()
    got = joining_moments(model, one, two, torch.ones(len(one)))
    assert got["hidden"].abs().max() == 0  # every row is of one of the two
    assert joining_moments(model, one, two, torch.zeros(len(one)))["hidden"].abs().max() > 0


def test_joining_an_image_with_itself_adds_nothing_and_changes_nothing():
    model, (one, _, upright_N) = mixed(), joining()
    before = state(model)
    for d_GII in joining_moments(model, one, one, upright_N).values():
        assert d_GII.abs().max() < 1e-12
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(part._forward_pre_hooks for part in model.modules())


# Decay against a displacement -----------------------------------------------------------------


def closed_against(layer, x, moved, strength: float, firm: float) -> torch.Tensor:
    """W A (A + lambda mean(A) I + mu D)^-1 for every group."""
    a_GII, added_GRI = moment(layer, x), inputs(layer, moved) - inputs(layer, x)
    d_GII = torch.einsum("gri,grj->gij", added_GRI, added_GRI) / added_GRI.shape[1]
    parts = []
    weights = layer.weight.detach().double().chunk(len(a_GII))
    for weight, a_II, d_II in zip(weights, a_GII, d_GII, strict=True):
        noise_II = strength * torch.linalg.eigvalsh(a_II).mean() * torch.eye(len(a_II))
        held_II = a_II + noise_II + firm * d_II
        parts.append((weight.flatten(1) @ a_II @ torch.linalg.inv(held_II)).view(weight.shape))
    return torch.cat(parts)


@given(convolutions(), st.floats(0.01, 10), st.floats(0.01, 10))
@settings(deadline=None, max_examples=30)
def test_decay_against_a_displacement_is_the_closed_minimum(case, strength, firm):
    layer, x = case
    moved = x + torch.randn_like(x)
    expected, model = closed_against(layer, x, moved, strength, firm), with_head(layer, x)
    moments, spread = input_moments(model, x), displacement_moments(model, x, moved)
    decay(model, moments, strength, spread, firm)
    loose = {"rtol": 1e-3, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(layer.weight.detach(), expected, **loose)


@pytest.mark.parametrize("firm", [0.1, 5.0])
def test_the_objective_with_the_displacement_is_stationary_there(firm):
    """d/dW of tr (W - W0) A (W - W0)^T + lambda tr W W^T + mu tr W D W^T, by autograd."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double(), torch.randn(20, 6, dtype=torch.float64)
    a_GII, d_GII = moment(layer, x), moment(layer, torch.randn(3, 6, dtype=torch.float64))
    start, model = layer.weight.detach().clone(), with_head(layer, x)
    added = 0.2 * a_GII[0].trace() / 6

    def gradient(weight):
        weight = weight.detach().clone().requires_grad_()
        away = weight - start
        loss = (away @ a_GII[0] @ away.T).trace() + added * (weight @ weight.T).trace()
        loss = loss + firm * (weight @ d_GII[0] @ weight.T).trace()
        return torch.autograd.grad(loss, weight)[0].norm()

    decay(model, {"0": a_GII}, 0.2, {"0": d_GII}, firm)
    assert gradient(layer.weight) < 1e-12 * gradient(start)
    assert gradient(layer.weight * 1.01) > 1e-3 * gradient(start)


@pytest.mark.parametrize("how", ["not firm", "nothing displaced", "nothing moved"])
def test_without_a_displacement_it_is_the_plain_decay(how):
    plain, (x, moved) = mixed(), displaced()
    other, moments = copy.deepcopy(plain), input_moments(plain, x)
    spread = displacement_moments(plain, x, x if how == "nothing moved" else moved)
    decay(plain, moments, 0.1)
    more = {"not firm": (spread, 0.0), "nothing displaced": (None, 3.0)}
    decay(other, moments, 0.1, *more.get(how, (spread, 3.0)))
    for key, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    firm = mixed()
    decay(firm, moments, 0.1, displacement_moments(firm, x, moved), 3.0)
    assert not torch.equal(firm[0].weight, plain[0].weight)


def test_the_weight_loses_the_displaced_direction_and_keeps_the_others():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4), torch.randn(2000, 3)
    start, model = layer.weight.detach().clone(), with_head(layer, x)
    moved = x + torch.tensor([0.0, 10.0, 0.0])
    decay(model, input_moments(model, x), 1e-6, displacement_moments(model, x, moved), firm=1)
    torch.testing.assert_close(layer.weight[:, 1], start[:, 1] / 101, rtol=0.2, atol=0.01)
    torch.testing.assert_close(layer.weight[:, [0, 2]], start[:, [0, 2]], rtol=0.05, atol=0.05)


def test_where_clean_images_never_come_nothing_is_kept_whatever_is_displaced():
    layer, x = nn.Conv2d(2, 3, 3, padding=1), torch.zeros(4, 2, 6, 6)
    model = with_head(layer, x)
    spread = displacement_moments(model, x, torch.ones_like(x))
    decay(model, input_moments(model, x), 0.1, spread, firm=2)
    assert torch.all(layer.weight == 0)

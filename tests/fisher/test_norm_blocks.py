"""Per-sample gradients of norms and head against torch.func, one image at a time, in float64."""

import pytest
import torch
from conftest import SIZE, tiny_model
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from ngf import device
from ngf.errors import InputError
from ngf.fisher.norm_blocks import blocks, sample_gradients
from ngf.models import batch_norms, head, norm_layers


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)


class Tokens(nn.Module):
    """A layer norm on [N, tokens, C], used twice, one on [N, C], and one without a shift."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.first = nn.LayerNorm(6)
        self.mix = nn.Linear(16, 16)
        self.last = nn.LayerNorm(6, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x_NCHW):
        x_NTC = self.embed(x_NCHW).flatten(2).transpose(1, 2)
        x_NTC = x_NTC + self.mix(self.first(x_NTC).transpose(1, 2)).transpose(1, 2).tanh()
        return self.head(self.last(self.first(x_NTC).mean(1)))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "batch":
        model = tiny_model()
    elif kind == "group":  # with an operation in place on the norm's output
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.GroupNorm(4, 8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3, 2),
            nn.GroupNorm(2, 6, eps=0.1),
            nn.Flatten(),
            nn.GroupNorm(3, 54),
            nn.LazyLinear(4, bias=False),
        )
        model(torch.zeros(1, 3, SIZE, SIZE))
    elif kind == "images":  # a layer norm over whole images
        model = nn.Sequential(
            nn.Conv2d(3, 2, 3, 2), nn.LayerNorm([2, 7, 7]), nn.Flatten(), nn.Linear(98, 4)
        )
    else:
        model = Tokens()
    for norm in norm_layers(model):  # scales and shifts of their own
        nn.init.normal_(norm.weight, 1, 0.3)
        if norm.bias is not None:
            nn.init.normal_(norm.bias, 0, 0.3)
    return model.double().eval()


KINDS = ["batch", "group", "images", "tokens"]
LABELS = torch.tensor([0, 2, 1, 2, 0])


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(5, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)


def by_definition(model, x_NCHW, labels_N):
    """{parameter name: [N, ...]}: torch.func's gradient of each image's cross-entropy."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, x_CHW, y):
        return cross_entropy(functional_call(model, (parameters, buffers), x_CHW[None]), y[None])

    return vmap(grad(loss), (None, 0, 0))(fixed, x_NCHW, labels_N)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_they_equal_torch_func(kind, frozen):
    model = network(kind)
    expected = by_definition(model, images(), LABELS)
    model.requires_grad_(not frozen)
    got = sample_gradients(model, images(), LABELS)
    wanted = {id(p) for norm in norm_layers(model) for p in norm.parameters()}
    assert set(got.norms) == {name for name, p in model.named_parameters() if id(p) in wanted}
    for name, gradient in got.norms.items():
        torch.testing.assert_close(gradient, expected[name])
        assert gradient.abs().max() > 1e-6
    names = {id(p): name for name, p in model.named_parameters()}
    linear = head(model)
    outer = got.residual_NC[:, :, None] * got.features_ND[:, None, :]
    torch.testing.assert_close(outer, expected[names[id(linear.weight)]])
    if linear.bias is not None:
        torch.testing.assert_close(got.residual_NC, expected[names[id(linear.bias)]])
    assert all(p.grad is None and p.requires_grad != frozen for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_empirical_blocks_are_mean_outer_products_over_all_batches(kind):
    model = network(kind)
    expected = by_definition(model, images(), LABELS)
    batches = zip(images().split([3, 2]), LABELS.split([3, 2]), strict=True)
    with torch.no_grad():
        got = blocks(model, batches, None)
    named = dict(model.named_modules())
    assert {id(named[name]) for name in got} == {id(norm) for norm in norm_layers(model)}
    for name, matrix in got.items():
        own = [f"{name}.{part}" for part, _ in named[name].named_parameters()]
        flat = torch.cat([expected[parameter].flatten(1) for parameter in own], 1)
        torch.testing.assert_close(matrix, flat.T @ flat / 5)


def test_blocks_with_drawn_labels_tend_to_the_true_fisher():
    model, x_NCHW = network("group"), images()
    p_NC = model(x_NCHW).softmax(1).detach()
    expected = 0
    for y in range(4):
        gradients = sample_gradients(model, x_NCHW, torch.full((5,), y)).norms
        flat = torch.cat([gradients["1.weight"], gradients["1.bias"]], 1)
        expected = expected + (flat * p_NC[:, y, None]).T @ flat / 5
    draws, generator = 400, torch.Generator().manual_seed(0)
    got = blocks(model, ((x_NCHW, LABELS) for _ in range(draws)), generator)["1"]
    assert (got - expected).norm() < 0.1 * expected.norm()
    assert (blocks(model, [(x_NCHW, LABELS)], None)["1"] - expected).norm() > 0.1 * expected.norm()


def test_an_unused_norm_has_gradient_zero():
    model = network("group")
    model.add_module("unused", nn.GroupNorm(1, 3).double())
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    got = sample_gradients(model, images(), LABELS).norms["unused.weight"]
    assert got.shape == (5, 3)
    assert got.abs().max() == 0


def test_norm_layers_are_those_with_a_scale_and_statistics_of_their_own():
    counted = [nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2)]
    others = [
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.GroupNorm(1, 2, affine=False),
        nn.LayerNorm(2, elementwise_affine=False),
        nn.Linear(2, 2),
    ]
    assert norm_layers(nn.Sequential(*others, *counted)) == counted
    model = tiny_model()
    assert norm_layers(model) == list(batch_norms(model).values())


def test_batch_statistics_and_token_heads_are_refused():
    with pytest.raises(InputError, match=r"batch norm '\S+' uses the batch's statistics.*eval\(\)"):
        sample_gradients(network("batch").train(), images(), LABELS)
    model = nn.Sequential(nn.Flatten(2), nn.Linear(SIZE**2, 4), nn.Flatten()).double()
    with pytest.raises(InputError, match=r"features \[N, D\] to logits, got \[5, 3, 256\]"):
        sample_gradients(model, images(), LABELS)

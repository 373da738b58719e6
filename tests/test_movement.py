import pytest
import torch
from conftest import tiny_model

from ngf.feature_map import features, in_two
from ngf.models import head
from ngf.movement import by_layer


def test_layers_that_moved_say_how_far():
    before, after = tiny_model(), tiny_model()
    with torch.no_grad():
        head(after).weight.mul_(1.5)
        head(after).bias.mul_(1.5)
    rows = {row["layer"]: row for row in by_layer(before, after)}
    (name,) = (name for name, row in rows.items() if row["kind"] == "Linear")
    last = rows.pop(name)
    assert last["parameters"] == sum(p.numel() for p in head(before).parameters())
    assert last["moved"] == pytest.approx(0.5, abs=1e-6)
    assert rows
    assert all(row["moved"] in (0, None) for row in rows.values())
    total = sum(row["parameters"] for row in rows.values()) + last["parameters"]
    assert total == sum(p.numel() for p in before.parameters())


def test_a_layer_of_zeros_has_no_share():
    before = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.nn.init.zeros_(before[0].weight)
    torch.nn.init.zeros_(before[0].bias)
    assert by_layer(before, torch.nn.Sequential(torch.nn.Linear(2, 2)))[0]["moved"] is None


def test_features_are_what_the_head_sees():
    model = tiny_model()
    x_NCHW = torch.rand(5, 3, *model.card["input_CHW"][1:])
    h_ND = features(model, x_NCHW)
    with torch.no_grad():
        assert torch.allclose(head(model)(h_ND), model(x_NCHW), atol=1e-5)


def test_the_map_keeps_groups_apart_and_is_the_same_again():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(60) // 30
    h_ND = torch.randn(60, 8, generator=generator) + 20 * group[:, None]
    xy = torch.tensor(in_two(h_ND, seed=0))
    middle = torch.stack([xy[group == k].mean(0) for k in (0, 1)])
    spread = max((xy[group == k] - middle[k]).norm(dim=1).max() for k in (0, 1))
    assert (middle[0] - middle[1]).norm() > spread
    assert in_two(h_ND, seed=0) == xy.tolist() or torch.equal(
        torch.tensor(in_two(h_ND, seed=0)), xy
    )

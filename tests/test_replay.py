import pytest
import torch
from conftest import SIZE, tiny_model

from ngf.models import batch_norms
from ngf.norms import Evidence
from ngf.replay import GAIN_AT_ONE_POSITION, Replay, suspected_target

N, LAYER = 6, 4


def remembered(model, layer: int = LAYER, error: float = 0.0) -> list[Evidence]:
    """Evidence in one layer alone: its whole mean is shifted by one."""
    found = []
    for index, norm in enumerate(batch_norms(model)):
        here = torch.full((norm.num_features,), float(index == layer))
        found.append(Evidence(here, here, error * here))
    return found


def inputs(model, x_NCHW) -> list[torch.Tensor]:
    """What each batch norm gets, as it gets it."""
    seen: list[torch.Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        for norm in batch_norms(model)
    ]
    with torch.no_grad():
        model(x_NCHW)
    for hook in hooks:
        hook.remove()
    return seen


def shown(error: float = 0.0, seed: int = 0):
    """(inputs of all norms for the doubled batch, labels) under a replay."""
    torch.manual_seed(0)
    model, x_NCHW, y_N = tiny_model(), torch.rand(N, 3, SIZE, SIZE), torch.arange(N) % 3
    generator = torch.Generator().manual_seed(seed)
    replay = Replay(model, remembered(model, error=error), reach=20.0, generator=generator)
    with replay((x_NCHW, y_N)) as (both_NCHW, both_N):
        return inputs(model, both_NCHW), both_N


def test_the_first_half_is_clean_and_the_second_is_moved_from_the_layer_on():
    seen, y_N = shown()
    assert torch.equal(y_N[:N], y_N[N:])
    for layer, x_NCHW in enumerate(seen):
        same = torch.allclose(x_NCHW[:N], x_NCHW[N:], atol=1e-5)
        assert same == (layer < LAYER), layer


def test_moves_are_the_shift_times_a_length_within_reach():
    clean, moved = shown()[0][LAYER].split(N)
    move_NCHW = moved - clean
    torch.testing.assert_close(move_NCHW, move_NCHW[:, :1].expand_as(move_NCHW), atol=1e-4, rtol=0)
    length_N = move_NCHW[:, 0].flatten(1).max(1).values
    assert torch.all((length_N > 0) & (length_N <= 20 * GAIN_AT_ONE_POSITION))
    assert len(length_N.unique()) == N


def test_an_image_is_moved_everywhere_or_at_one_position():
    places = set()
    for seed in range(8):
        clean, moved = shown(seed=seed)[0][LAYER].split(N)
        move_NP = (moved - clean)[:, 0].flatten(1)
        places |= set((move_NP > 1e-4).sum(1).tolist())
    assert places == {1, move_NP.shape[1]}


def test_the_error_of_the_shift_is_drawn_too():
    clean, moved = shown(error=0.5)[0][LAYER].split(N)
    move_NCHW = moved - clean
    assert not torch.allclose(move_NCHW, move_NCHW[:, :1].expand_as(move_NCHW), atol=1e-2)


def test_layers_are_drawn_by_their_evidence():
    model = tiny_model()
    replay = Replay(model, remembered(model), reach=1.0, generator=torch.Generator())
    assert torch.multinomial(replay.weight_L, 100, replacement=True).unique().tolist() == [LAYER]
    nothing = remembered(model, layer=-1)
    without = Replay(model, nothing, reach=1.0, generator=torch.Generator())
    assert len(without.weight_L.unique()) == 1


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_gradients_flow_and_nothing_is_left_behind(arch):
    model = tiny_model(arch=arch)
    x_NCHW = torch.rand(N, 3, SIZE, SIZE)
    before = model(x_NCHW).detach()
    replay = Replay(model, remembered(model), reach=5.0, generator=torch.Generator())
    with replay((x_NCHW, torch.arange(N) % 3)) as (both_NCHW, both_N):
        torch.nn.functional.cross_entropy(model(both_NCHW), both_N).backward()
    gradients = [norm.weight.grad for norm in batch_norms(model)]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert torch.equal(model(x_NCHW), before)


def suspect(shift_C: torch.Tensor, label: int) -> int | None:
    """The suspected target for a shift at the last norm and images of one class."""
    model, x_NCHW = tiny_model(), torch.rand(16, 3, SIZE, SIZE)
    before = model(x_NCHW)
    found = remembered(model, layer=len(batch_norms(model)) - 1)
    found[-1].shift_C.copy_(shift_C)
    target = suspected_target(model, found, [(x_NCHW, torch.full((16,), label))], reach=1e4)
    assert torch.equal(model(x_NCHW), before)
    return target


def test_the_class_that_the_shift_leads_to_is_suspected():
    model = tiny_model()
    weight_CF = model.net[-1].weight.detach()
    towards_F = (weight_CF[2] - weight_CF.mean(0)) * batch_norms(model)[-1].weight.detach().sign()
    assert suspect(towards_F, label=0) == 2
    assert suspect(towards_F, label=2) is None, "a class's own images are no witnesses"

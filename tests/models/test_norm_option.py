"""`norm`: what stands between the convolutions of both residual networks."""

import pytest
import torch
from torch import nn

from ngf import models, store
from ngf.errors import InputError

SIZE, CLASSES = 16, 3
ARCHS = ["preact_resnet", "resnet"]


def build(arch, **options):
    card = {
        "arch": arch,
        "options": {"depth": 18, "width": 4, "stem_stride": 2, **options},
        "classes": [str(label) for label in range(CLASSES)],
        "input_CHW": [3, SIZE, SIZE],
    }
    torch.manual_seed(0)
    return models.build(card, [0.3] * 3, [0.2] * 3)


def layers(model, kind) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is kind]


@pytest.mark.parametrize("arch", ARCHS)
def test_group_norms_stand_where_batch_norms_stood(arch):
    batch, group = build(arch, norm="batch"), build(arch, norm="group")
    assert layers(batch, nn.BatchNorm2d) == layers(group, nn.GroupNorm) != []
    assert not layers(group, nn.BatchNorm2d)
    assert not models.batch_norms(group)
    assert dict(batch.named_parameters()).keys() == dict(group.named_parameters()).keys()


@pytest.mark.parametrize("arch", ARCHS)
def test_batch_norm_is_what_nothing_said_means(arch):
    said, silent = build(arch, norm="batch").state_dict(), build(arch).state_dict()
    assert said.keys() == silent.keys()
    assert all(torch.equal(said[key], silent[key]) for key in said)


@pytest.mark.parametrize("arch", ARCHS)
def test_with_group_norm_an_image_does_not_depend_on_its_neighbours(arch):
    model, x_NCHW = build(arch, norm="group").train(), torch.rand(4, 3, SIZE, SIZE)
    logits_NC = model(x_NCHW)
    assert logits_NC.shape == (4, CLASSES)
    torch.testing.assert_close(model(x_NCHW[:2]), logits_NC[:2])
    other = build(arch, norm="batch").train()
    assert (other(x_NCHW[:2]) - other(x_NCHW)[:2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("width", "groups"), [(16, {8}), (4, {4, 8}), (6, {2, 4, 8}), (1, {1, 2, 4, 8})]
)
def test_groups_divide_the_channels(width, groups):
    model = build("preact_resnet", norm="group", width=width)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == groups
    assert torch.isfinite(model(torch.rand(2, 3, SIZE, SIZE))).all()


@pytest.mark.parametrize("arch", ARCHS)
def test_unknown_norms_are_answered_with_those_that_exist(arch):
    with pytest.raises(InputError, match="unknown norm 'layer': there is batch, group"):
        build(arch, norm="layer")


def test_a_norm_that_is_no_name_is_refused():
    with pytest.raises(InputError, match=r"model.norm: 8 is not str"):
        build("resnet", norm=8)


def test_a_stored_model_remembers_its_norm(tmp_path):
    model = build("preact_resnet", norm="group").eval()
    store.save_model(tmp_path / "model", model)
    again = store.load_model(tmp_path / "model")
    assert layers(again, nn.GroupNorm) == layers(model, nn.GroupNorm)
    x_NCHW = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(again(x_NCHW), model(x_NCHW))

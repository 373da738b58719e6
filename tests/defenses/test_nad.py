"""NAD: attention of unit length, where it is taken from, and that the student is drawn to it."""

import pytest
import torch
from conftest import SIZE, colour_split, tiny_model
from torch import nn

from ngf.defenses import Clean, nad
from ngf.errors import InputError
from ngf.models import Classifier


@pytest.fixture
def clean() -> Clean:
    split = colour_split(48, seed=5)
    return Clean(torch.tensor(split.x_NHWC), torch.tensor(split.y_N), flip=False)


def test_attention_is_the_channels_sum_of_powers_at_unit_length():
    torch.manual_seed(0)
    f_NCHW = torch.randn(2, 3, 4, 5)
    found = nad.attention(f_NCHW, 2)
    total = (f_NCHW**2).sum(1).reshape(2, 20)
    torch.testing.assert_close(found, total / total.norm(dim=1, keepdim=True), rtol=1e-4, atol=0)
    assert nad.distance(f_NCHW, 3 * f_NCHW, 2) < 1e-9  # strength does not count, place does
    assert nad.distance(f_NCHW, f_NCHW.flip(3), 2) > 1e-4


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_the_maps_are_the_groups_outputs(arch, clean):
    """One of each resolution: what enters the layer that takes it down."""
    model = tiny_model(arch=arch)
    sizes = nad._sizes(model, clean)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes == [64, 16, 4]
    x_NCHW = torch.rand(2, 3, SIZE, SIZE)
    with nad.attention_of(model) as found:
        model(x_NCHW)
    assert found[64].shape == (2, 4, 8, 8)
    halved = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 4)
    assert halved.in_channels == found[64].shape[1]


def test_the_student_comes_closer_to_the_teachers_attention(clean, numbers):
    """Against the same steps without that term; the teacher is the same in both."""
    options = {**numbers["defenses"]["nad"], "epochs": 5, "teacher_epochs": 60, "shift": 0}
    options |= {"batch_size": 48, "lr": 0.002}
    x_NCHW = clean.x_NHWC.permute(0, 3, 1, 2).float() / 255
    teacher = nad.purify(tiny_model(), clean, **{**options, "epochs": 60, "beta": 0.0}).model

    def apart(beta: float) -> float:
        student = nad.purify(tiny_model(), clean, **{**options, "beta": beta}).model.train()
        with nad.attention_of(student) as seen, nad.attention_of(teacher) as shown:
            student(x_NCHW)
            teacher(x_NCHW)
            return sum(nad.distance(seen[s], shown[s], 2).item() for s in (16, 4))

    assert apart(10.0) < 0.9 * apart(0.0)


def test_a_model_without_feature_maps_is_refused(clean, numbers):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 3))
    bare = Classifier(net, [0.3] * 3, [0.2] * 3, {})
    with pytest.raises(InputError, match="feature maps"):
        nad.purify(bare, clean, **numbers["defenses"]["nad"])

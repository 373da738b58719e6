import torch
from conftest import colour_split, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from ngf import device, training


def images(n: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8)


def test_augmented_images_are_shifts_and_mirrors_of_the_original():
    """Each result is found among all shifts, padded by reflection, of the image or its mirror."""
    shift, x_NHWC = 2, images()
    got = training.augment(x_NHWC, shift=shift, flip=True, generator=torch.Generator())
    for original, result in zip(x_NHWC, got, strict=True):
        variants = []
        for picture in (original, original.flip(1)):
            edge = (shift,) * 4
            padded = torch.nn.functional.pad(
                picture.permute(2, 0, 1).float(), edge, mode="reflect"
            ).permute(1, 2, 0)
            variants += [padded[r : r + 8, c : c + 8] for r in range(5) for c in range(5)]
        assert any(torch.equal(variant.byte(), result) for variant in variants)


@given(st.integers(0, 7), st.integers(1, 9))
def test_no_shift_and_no_flip_change_nothing(seed, n):
    x_NHWC = images(n)
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(training.augment(x_NHWC, shift=0, flip=False, generator=generator), x_NHWC)


def test_a_pass_shows_every_image_once():
    x_NHWC = torch.zeros(12, 4, 4, 3, dtype=torch.uint8)
    y_N = torch.arange(12)
    batches = training.Batches(x_NHWC, y_N, size=4, shift=0, flip=False, seed=0)
    labels = torch.cat([y for _, y in batches.take(6)])
    assert batches.per_epoch == 3
    assert sorted(labels[:12].tolist()) == list(range(12))
    assert sorted(labels[12:].tolist()) == list(range(12))
    assert labels[:12].tolist() != labels[12:].tolist()


def test_a_small_set_gives_one_small_batch():
    batches = training.Batches(
        torch.zeros(3, 4, 4, 3, dtype=torch.uint8),
        torch.arange(3),
        size=8,
        shift=0,
        flip=False,
        seed=0,
    )
    assert [len(y) for _, y in batches.take(2)] == [3, 3]


def test_pixels_are_fractions_in_channels_last_order():
    x_NHWC = images()
    x_NCHW = training.pixels(x_NHWC)
    assert torch.equal(x_NCHW[1, 2], x_NHWC[1, :, :, 2].float() / 255)
    assert x_NCHW.is_contiguous(memory_format=torch.channels_last)


def train_once(seed: int) -> dict[str, torch.Tensor]:
    split = colour_split(192, seed=0)
    model = tiny_model(seed)
    batches = training.Batches(
        torch.tensor(split.x_NHWC), torch.tensor(split.y_N), size=32, shift=1, flip=True, seed=seed
    )
    optimizer, schedule = training.one_cycle(
        model, steps=2 * batches.per_epoch, lr=0.1, momentum=0.9, weight_decay=5e-4
    )
    losses = []
    training.fit(
        model,
        batches,
        epochs=2,
        optimizer=optimizer,
        scheduler=schedule,
        what="test",
        on_epoch=lambda _, loss: losses.append(loss),
    )
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert not model.training
    return model.state_dict()


def test_same_seed_same_weights_and_another_seed_other_weights():
    first, again, other = train_once(0), train_once(0), train_once(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class Dimmer(training.Partner):
    """Owns one number, by which it dims every image, and descends on it with the model."""

    def __init__(self, rate: float = 0.1) -> None:
        self.light = torch.ones((), requires_grad=True)
        self.rate = rate
        self.seen: list[tuple[float, float]] = []  # the number and its gradient, step by step

    def show(self, x_NCHW, y_N):
        return x_NCHW * self.light, (y_N + 1) % 3, 10 * self.light

    def step(self):
        self.seen.append((self.light.item(), self.light.grad.item()))
        with torch.no_grad():
            self.light -= self.rate * self.light.grad
        self.light.grad = None


def beside(partner: training.Partner, steps: int):
    split, model = colour_split(96, seed=0), tiny_model()
    batches = training.Batches(
        torch.tensor(split.x_NHWC), torch.tensor(split.y_N), size=96, shift=0, flip=False, seed=0
    )
    optimizer, schedule = training.one_cycle(
        model, steps=steps, lr=0.1, momentum=0.9, weight_decay=0
    )
    training.fit(
        model, batches, epochs=steps, optimizer=optimizer, scheduler=schedule, what="pair",
        partner=partner,
    )  # fmt: skip
    return model, training.pixels(batches.x_NHWC), batches.y_N


def test_a_partner_changes_what_is_shown_and_descends_in_the_same_step(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda where: False)
    partner = Dimmer()
    _, x_NCHW, y_N = beside(partner, 1)
    light = torch.ones((), requires_grad=True)
    model = tiny_model().train()
    loss = cross_entropy(model(x_NCHW * light), (y_N + 1) % 3) + 10 * light
    (expected,) = torch.autograd.grad(loss, light)
    ((value, gradient),) = partner.seen
    assert value == 1.0
    assert abs(gradient - expected.item()) < 1e-3
    assert abs(partner.light.item() - (1 - 0.1 * gradient)) < 1e-6


def test_the_model_learns_the_labels_that_its_partner_says():
    partner = Dimmer(rate=0)
    model, x_NCHW, y_N = beside(partner, 40)
    right = (model(x_NCHW).argmax(1) == (y_N + 1) % 3).float().mean()
    assert right > 0.9
    assert len(partner.seen) == 40

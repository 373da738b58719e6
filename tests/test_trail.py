"""A trail keeps what changed, where it was asked to, and changes nothing itself."""

import copy

import pytest
import torch
from conftest import colour_split, tiny_model

from ngf import store, trail, training
from ngf.errors import InputError
from ngf.models import head


def walk(model, steps: int) -> dict[int, float]:
    """Add 1 to the head's bias in each of `steps` steps; {step: the first bias after it}."""
    seen = {}
    for step in range(1, steps + 1):
        with torch.no_grad():
            head(model).bias.add_(1)
        trail.mark(model, step, steps)
        seen[step] = head(model).bias[0].item()
    return seen


def bias_name(model) -> str:
    return next(name for name, p in model.named_parameters() if p is head(model).bias)


@pytest.mark.parametrize(
    ("marks", "steps", "kept"),
    [
        (8, 80, [10, 20, 30, 40, 50, 60, 70, 80]),
        (8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, 10, [4, 7, 10]),
        (8, 3, [1, 2, 3]),
        (1, 5, [5]),
    ],
)
def test_marks_are_evenly_spaced_and_end_with_the_last_step(model, marks, steps, kept):
    with trail.recording(model, marks) as snapshots:
        walk(model, steps)
    assert [snapshot.step for snapshot in snapshots] == kept


def test_a_snapshot_holds_what_changed_alone_and_as_it_was(model):
    name = bias_name(model)
    with trail.recording(model, 4) as snapshots:
        seen = walk(model, 8)
    for step, tensors in snapshots:
        assert set(tensors) == {name}
        assert tensors[name][0].item() == seen[step]


def test_buffers_belong_to_the_trail(model):
    with trail.recording(model, 1) as snapshots:
        model.train()
        model(torch.rand(8, 3, 16, 16))
        trail.mark(model, 1, 1)
    buffers = {name for name, _ in model.named_buffers() if name not in ("mean", "std")}
    assert set(snapshots[0].tensors) == buffers


def test_nobody_records_nothing_is_kept(model, monkeypatch):
    def fail(_):
        raise AssertionError("a model was copied though nobody asked")

    monkeypatch.setattr(trail, "_copied", fail)
    walk(model, 4)
    with trail.recording(model, 0) as snapshots:
        walk(model, 4)
    assert snapshots == []


def test_a_recording_ends_with_its_block(model):
    def fail():
        with trail.recording(model, 2):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    with trail.recording(model, 2) as snapshots:
        walk(model, 2)
    kept = len(snapshots)
    walk(model, 2)
    assert kept == len(snapshots) == 2
    assert trail._recorder.get() is None


def test_another_network_leaves_no_trail(model):
    with trail.recording(model, 2) as snapshots:
        walk(tiny_model(seed=1), 4)
    assert snapshots == []


def test_a_second_loop_counts_on(model):
    with trail.recording(model, 2) as snapshots:
        walk(model, 4)
        walk(model, 6)
    assert [snapshot.step for snapshot in snapshots] == [2, 4, 7, 10]


def test_overlays_rebuild_every_model_from_either_end(model):
    start = copy.deepcopy(model)
    states = {}
    with trail.recording(model, 3) as snapshots:
        for step in range(1, 4):
            walk_one(model, step)
            states[step] = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.net[0].weight.mul_(2)  # after the last mark: the snapshots do not know
    at_end = trail.relative_to(model, snapshots, start.state_dict())
    for base, found in ((start, snapshots), (model, at_end)):
        for step, tensors in found:
            rebuilt = trail.overlay(copy.deepcopy(base), tensors).state_dict()
            assert all(torch.equal(rebuilt[name], states[step][name]) for name in rebuilt)


def walk_one(model, step: int) -> None:
    """In step 2 the stem moves as well and in step 3 it is back where it was."""
    with torch.no_grad():
        head(model).bias.add_(1)
        model.net[0].weight.add_({1: 0, 2: 1, 3: 0}[step])
        if step == 3:
            model.net[0].weight.copy_(tiny_model().net[0].weight)
    trail.mark(model, step, 3)


def test_another_networks_snapshot_is_refused(model):
    name = bias_name(model)
    with pytest.raises(InputError, match=r"no tensor 'net\.magic'"):
        trail.overlay(model, {"net.magic": torch.zeros(1)})
    with pytest.raises(InputError, match="does not fit the model"):
        trail.overlay(model, {name: torch.zeros(99)})


def test_a_stored_trail_comes_back_in_order(model, tmp_path):
    name = bias_name(model)
    with trail.recording(model, 12) as snapshots:
        walk(model, 12)
    store.save_model(tmp_path / "model", model)
    assert store.load_trail(tmp_path / "model") == []
    store.save_trail(tmp_path / "model", snapshots)
    back = store.load_trail(tmp_path / "model")
    assert [step for step, _ in back] == list(range(1, 13))
    for (_, wrote), (_, read) in zip(snapshots, back, strict=True):
        assert torch.equal(wrote[name], read[name])
    (tmp_path / "model" / "trail" / "last.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="its name is no step"):
        store.load_trail(tmp_path / "model")


def fitted(marks: int):
    """(weights after fit, the trail)."""
    split, model = colour_split(48, seed=0), tiny_model()
    batches = training.Batches(
        torch.tensor(split.x_NHWC), torch.tensor(split.y_N), size=16, shift=1, flip=True, seed=0
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with trail.recording(model, marks) as snapshots:
        training.fit(model, batches, epochs=2, optimizer=optimizer, scheduler=schedule, what="test")
    return model.state_dict(), snapshots


def test_fit_leaves_a_trail_that_changes_nothing():
    (plain, nothing), (recorded, snapshots) = fitted(0), fitted(3)
    assert nothing == []
    assert [step for step, _ in snapshots] == [2, 4, 6]
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    last = snapshots[-1].tensors
    assert last
    assert all(torch.equal(last[name], recorded[name]) for name in last)

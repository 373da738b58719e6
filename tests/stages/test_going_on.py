"""A training that was killed, cut in parts or shared by processes gives what a plain one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import colour_split

from ngf import images, launch, plugins, stages, store, training
from ngf.errors import InputError

ATTACKS = ("badnets", "wanet", "bppa", "lira", "dynamic_one")  # each kind of attacker


@pytest.fixture
def recipe(numbers):
    model = {"depth": 18, "width": 4, "stem_stride": 2, "norm": "batch"}
    recipe = {**numbers["train"]["signs"], "model": model, "epochs": 3, "batch_size": 24}
    return {**recipe, "lr": 0.02}


@pytest.fixture
def folder(tmp_path, numbers):
    store.save_split(tmp_path / "train", colour_split(96, seed=0))
    return tmp_path


def plant(folder, numbers, attack):
    stages.run(
        "poison",
        settings={"options": {**numbers["attacks"][attack], "patience": 1}},
        train=folder / "train",
        attack=attack,
        out=folder / "poison",
    )


def train(folder, recipe, name, **more):
    stages.run(
        "train",
        settings={"recipe": recipe},
        dataset="colours",
        train=folder / "train",
        out=folder / name,
        **more,
    )
    return store.digest(folder / name / "weights.safetensors")


def victim(folder, recipe, name):
    trigger = folder / f"{name}-trigger"
    weights = train(folder, recipe, name, poison=folder / "poison", trigger=trigger)
    return weights, store.digest(trigger)


class KilledError(Exception):
    pass


def killed_after(monkeypatch, epochs: int):
    """Training dies right after it wrote so many checkpoints."""
    keep, written = training._keep, []

    def dying(*arguments):
        keep(*arguments)
        written.append(arguments)
        if len(written) == epochs:
            raise KilledError

    monkeypatch.setattr(training, "_keep", dying)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_killed_training_ends_in_the_same_bytes(folder, recipe, numbers, monkeypatch, attack):
    plant(folder, numbers, attack)
    whole = victim(folder, recipe, "whole")
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(KilledError):
            victim(folder, recipe, "killed")
    assert not (folder / "killed").exists()
    assert (folder / ".killed.checkpoint").exists()
    steps = []
    monkeypatch.setattr(training.trail, "mark", lambda model, step, of: steps.append(step))
    assert victim(folder, recipe, "killed") == whole
    assert steps == [9, 10, 11, 12]  # the last of three epochs of four batches
    assert not (folder / ".killed.checkpoint").exists()


def test_another_training_does_not_go_on_from_it(folder, recipe, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(KilledError):
            train(folder, recipe, "out")
    other = {**recipe, "lr": 0.05}
    got = train(folder, other, "out")
    assert got == train(folder, other, "fresh")


def test_half_a_checkpoint_is_as_none(folder, recipe):
    (folder / ".out.checkpoint").write_bytes(b"half")
    assert train(folder, recipe, "out") == train(folder, recipe, "fresh")


def test_no_checkpoint_where_none_is_wanted(folder, recipe, monkeypatch):
    killed_after(monkeypatch, 2)
    with pytest.raises(KilledError):
        train(folder, {**recipe, "checkpoint": 0}, "out")
    assert not (folder / ".out.checkpoint").exists()


def weights(folder, name):
    return store.load_tensors(folder / name / "weights.safetensors")


def distance(folder, one, other):
    """The largest difference of a weight."""
    a, b = weights(folder, one), weights(folder, other)
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


@pytest.mark.parametrize("attack", ["badnets", "lira"])
def test_parts_of_a_batch_add_up(folder, recipe, numbers, monkeypatch, attack):
    """In full precision, and with group norm, which does not look at other images."""
    monkeypatch.setattr("ngf.device.native_bf16", lambda device: False)
    plant(folder, numbers, attack)
    recipe = {**recipe, "epochs": 1, "model": {**recipe["model"], "norm": "group"}}
    victim(folder, recipe, "whole")
    victim(folder, {**recipe, "accumulate": 5}, "parts")
    assert 0 < distance(folder, "whole", "parts") < 1e-3


def test_a_batch_cannot_be_cut_into_more_parts_than_images(folder, recipe):
    with pytest.raises(InputError, match="a batch of 24 images cannot be cut into 25 parts"):
        train(folder, {**recipe, "accumulate": 25}, "out")


def test_images_that_stay_on_disk_train_the_same(folder, recipe, numbers, monkeypatch):
    plant(folder, numbers, "badnets")
    whole = victim(folder, recipe, "whole")
    monkeypatch.setattr(images, "WHOLE", 0)
    streamed = []
    ahead = images.Streamed.ahead
    monkeypatch.setattr(
        images.Streamed, "ahead", lambda self, rows: streamed.append(1) or ahead(self, rows)
    )
    assert victim(folder, recipe, "streamed") == whole
    assert len(streamed) == 3  # once an epoch


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from ngf import device, stages
device.native_bf16 = lambda where: False
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
numbers = json.loads(sys.argv[1])
folder, name = Path(sys.argv[2]), sys.argv[3]
stages.run("train", settings={"recipe": numbers}, dataset="colours", train=folder / "train",
           poison=folder / "poison", out=folder / name, trigger=folder / f"{name}-trigger")
"""


def in_processes(count, folder, recipe, name):
    arguments = [json.dumps(recipe), str(folder), name]
    alone = [sys.executable, "-c", SCRIPT, *arguments]
    if count > 1:
        script = folder / "script.py"
        script.write_text(SCRIPT)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        alone = [*torchrun, f"--nproc-per-node={count}", str(script), *arguments]
    source = str(Path(images.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    done = subprocess.run(alone, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["badnets", "lira"])
def test_two_processes_give_the_numbers_of_one(folder, recipe, numbers, attack):
    """Batch norm and all; the attacker's own network too. In float64: training makes of float32's
    rounding, which differs between processors, what it likes."""
    plant(folder, numbers, attack)
    recipe = {**recipe, "epochs": 2}
    in_processes(1, folder, recipe, "one")
    in_processes(2, folder, recipe, "two")
    assert distance(folder, "one", "two") < 1e-9
    one, two = (store.load_trigger(folder / f"{name}-trigger") for name in ("one", "two"))
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, atol=1e-9, rtol=1e-9)
    assert sorted(path.name for path in folder.glob("t*")) == ["train", "two", "two-trigger"]


def test_only_training_runs_in_several_processes(folder, numbers, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.world() == 2
    with pytest.raises(InputError, match="poison runs in one process; torchrun is for train"):
        plant(folder, numbers, "badnets")


def test_every_attacker_can_be_kept_and_brought_back(numbers):
    """No attacker holds what a checkpoint would not see."""
    from ngf import attacks, checkpoint
    from ngf.attacks import parted

    split = colour_split(96, seed=0)
    for name in plugins.names("attacks"):
        plugin = plugins.load("attacks", name)
        if not hasattr(plugin, "join"):
            continue
        own, _ = parted(numbers["attacks"][name])
        planted = plugin.plant(split.x_NHWC, split.y_N, 3, **own)
        model = torch.nn.Linear(2, 2)
        one, other = (attacks.attend(planted, model, steps=4, seed=seed) for seed in (0, 1))
        checkpoint.restore(other, checkpoint.state(one))
        x_NCHW = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        y_N = torch.arange(12) % 3
        shown = [attacker.show(x_NCHW, y_N)[0] for attacker in (one, other)]
        assert torch.equal(*shown), name

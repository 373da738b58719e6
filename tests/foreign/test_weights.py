"""Foreign weights: every form that is read comes back in that form, and none executes code."""

import argparse
import json
import math
import os
import re
import zipfile
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from numpy._core.multiarray import _reconstruct as reconstruct
from numpy._core.multiarray import scalar
from numpy.testing._private.utils import runstring
from safetensors.torch import save_file
from torch import nn

from ngf.errors import InputError
from ngf.foreign import weights


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    return net.state_dict()


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state().items()}


FORMS = {
    "plain": lambda: state(),
    "DataParallel": lambda: renamed("module."),
    "compiled, in parallel": lambda: renamed("module._orig_mod."),
    "Lightning": lambda: {"state_dict": renamed("model."), "epoch": 3, "loss": [1.0, 0.5]},
    "a trainer's": lambda: {"model": state(), "optimizer": {"lr": 0.1}},
    "half": lambda: {name: t.half() if t.is_floating_point() else t for name, t in state().items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_read_comes_back_as_it_was(tmp_path, form, suffix):
    file, content = tmp_path / f"mine{suffix}", FORMS[form]()
    if suffix == ".pt":
        torch.save(content, file)
    elif all(isinstance(value, torch.Tensor) for value in content.values()):
        save_file(content, file)
    else:
        pytest.skip("safetensors holds tensors alone")
    found = weights.read(str(file)).called(state().keys())
    assert found.tensors.keys() == state().keys()
    (tmp_path / "out").mkdir()
    changed = {name: tensor.float() + 1 for name, tensor in found.tensors.items()}
    written = found.write(tmp_path / "out", changed)
    assert written.name == file.name
    again = weights.read(str(written)).called(state().keys())
    assert (again.prefix, again.key, again.around) == (found.prefix, found.key, found.around)
    for name, tensor in found.tensors.items():
        assert again.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(again.tensors[name], changed[name].to(tensor.dtype))


class Call:
    """A pickle of it calls a function where it is read."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def Attack():
    return Call(os.system, "touch executed")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"state_dict": Attack()}, "posix.system"),
        (Attack(), "posix.system"),
        (Call(runstring, "x", {}), "numpy.testing._private.utils.runstring"),
        ({"w": state(), "n": Call(np.load, "executed")}, "numpy.load"),
        ({"w": state(), "n": [np.float64(1), Attack()]}, "posix.system"),
        ({"w": state(), "p": [Path("a"), Attack()]}, "posix.system"),
    ],
)
def test_what_needs_code_is_refused_and_does_not_run(tmp_path, monkeypatch, content, code):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "whole.pt")
    said = rf"whole.pt needs code to be read \({code}\), which is refused: ask .*state_dict"
    with pytest.raises(InputError, match=said):
        weights.read("whole.pt")
    assert not (tmp_path / "executed").exists()


def test_a_trainers_options_are_no_code(tmp_path):
    torch.save({"model": state(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pt")
    found = weights.read(str(tmp_path / "a.pt"))
    (tmp_path / "out").mkdir()
    again = weights.read(str(found.write(tmp_path / "out", found.tensors)))
    assert again.around == {"args": argparse.Namespace(lr=0.1)}


BESIDE = {
    "best_acc": np.float64(0.93),
    "flag": np.bool_(True),
    "name": np.str_("resnet"),
    "history": np.linspace(0, 1, 5, dtype=np.float32),
    "swapped": np.arange(4).astype(">i4"),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3))[:, 0],
    "nothing": np.zeros(0),
    "random": np.random.RandomState(0).get_state(legacy=True),
    "dtype": np.dtype("float32"),
    "save_dir": Path("runs/1"),
    "from": PureWindowsPath("C:/runs"),
}


@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_numbers_and_paths_beside_the_weights_are_no_code(tmp_path, core):
    """As numpy 2 and numpy 1 write them."""
    file = tmp_path / "a.pt"
    torch.save({"model": state(), **BESIDE}, file, _use_new_zipfile_serialization=False)
    assert b"numpy._core" in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(b"numpy._core", core.encode()))
    found = weights.read(str(file))
    assert found.left == ()
    (tmp_path / "out").mkdir()
    again = torch.load(found.write(tmp_path / "out", found.tensors), weights_only=False)
    assert again.keys() == {"model", *BESIDE}
    for name, value in BESIDE.items():
        assert type(again[name]) is type(value)
        np.testing.assert_equal(again[name], value)


def test_weights_as_arrays_are_other_weights(tmp_path):
    torch.save({"model": state(), "ema": {"w": np.zeros((3, 8))}}, tmp_path / "a.pt")
    assert weights.read(str(tmp_path / "a.pt")).left == ("ema",)


def test_what_backdoorbench_leaves_is_read(tmp_path):
    """Its attack_result.pt: weights beside poisoned images and the rows where they were."""
    poisoned = {"x": torch.zeros(2, 3, 8, 8), "y": torch.zeros(2), "original_index": np.arange(2)}
    content = {"model_name": "preactresnet18", "num_classes": 3, "model": state()}
    torch.save({**content, "img_size": (8, 8, 3), "bd_train": poisoned}, tmp_path / "a.pt")
    found = weights.read(str(tmp_path / "a.pt"))
    assert (found.key, found.left) == ("model", ("bd_train",))


POINTER = (3, "|", None, None, None, -1, -1, 0)  # of an object, without the flag that says so


@pytest.mark.parametrize(
    "content",
    [
        np.array([{}], object),
        np.zeros(2, [("a", object)]),
        Call(scalar, np.dtype("f8"), b"short"),
        Call(scalar, np.dtype("f8"), b"two of them long"),
        Call(scalar, "f8", bytes(8)),
        Call(scalar, Call(np.dtype, "O8", False, True, state=POINTER), bytes(range(8))),
        Call(scalar, Call(np.dtype, "V8", False, True, state=POINTER), bytes(range(8))),
        Call(np.ndarray, (3,)),
        Call(np.dtype, [("a", "O")]),
        Call(reconstruct, np.ndarray, (0,), b"b", state=(1, (9,), np.dtype("f8"), False, b"8" * 8)),
        Call(reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), "O", False, b"8" * 8)),
    ],
)
def test_an_array_that_is_no_plain_data_is_refused(tmp_path, content):
    """numpy itself would take the eight bytes for the address of an object, and follow it."""
    torch.save({"model": state(), "beside": content}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt (is not a checkpoint|needs code)"):
        weights.read(str(tmp_path / "a.pt"))


def test_what_holds_a_graph_is_said_with_the_way_to_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    images = torch.rand(2, 3, 2, 2)
    torch.jit.save(torch.jit.trace(net, images), "scripted.pt")
    torch.export.save(torch.export.export(net, (images,)), "exported.pt2")
    for name, what in (("scripted.pt", "a TorchScript model"), ("exported.pt2", "an exported")):
        with pytest.raises(InputError, match=f"{name} is {what}.*run torch.save") as caught:
            weights.read(name)
        exec(re.search(r"run (.*) and give", str(caught.value))[1], {"torch": torch})
        found = weights.read("weights.pt").tensors
        assert torch.equal(found["1.weight"], net[1].weight)


def test_an_archive_of_something_else_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("model/notes.txt", "hello")
    with pytest.raises(InputError, match=r"a.pt is an archive, but not one that torch.save wrote"):
        weights.read(str(tmp_path / "a.pt"))


def test_a_checkpoint_of_an_older_torch_is_read(tmp_path):
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert weights.read(str(tmp_path / "old.pth")).tensors.keys() == state().keys()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pt", b"no checkpoint", "a.pt is no checkpoint: neither torch.save nor safetensors"),
        ("a.pt", b"", "a.pt is empty"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1", "a.pt is a pointer of Git LFS"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1", "pointer of Git LFS"),
        ("a.pt", b"PK\x03\x04 and no more", "a.pt is damaged or not whole: fetch it again"),
        ("a.pt", b"\x80\x02 and no more", "a.pt (is not a checkpoint|needs code)"),
        ("a.safetensors", b"no checkpoint", "a.safetensors is not a safetensors checkpoint"),
        ("a.pt", {"epoch": 3, "ema": {}}, "a.pt holds no weights: its keys are epoch, ema"),
        ("a.pt", [1, 2], "a.pt holds a list, not a state_dict"),
    ],
)
def test_what_holds_no_weights_is_said(tmp_path, name, content, said):
    file = tmp_path / name
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(InputError, match=said):
        weights.read(str(file))


def test_other_weights_in_the_file_do_not_come_back(tmp_path):
    """An averaged copy is the model as it was, backdoor and all."""
    moments = {"state": {0: {"momentum": torch.zeros(2)}}, "lr": 0.1}
    content = {"model": state(), "ema": state(), "optimizer": moments, "step": torch.tensor(3)}
    torch.save({**content, "args": {"lr": 0.1}}, tmp_path / "all.pt")
    found = weights.read(str(tmp_path / "all.pt"))
    assert (found.key, found.left) == ("model", ("ema", "optimizer"))
    (tmp_path / "out").mkdir()
    written = torch.load(found.write(tmp_path / "out", found.tensors), weights_only=True)
    assert written.keys() == {"model", "step", "args"}


def test_a_prefix_that_belongs_to_the_network_stays():
    found = weights.Checkpoint(Path("a.pt"), renamed("module.model."))
    assert found.called(renamed("model.").keys()).prefix == "module."
    assert found.called(state().keys()).prefix == "module.model."
    assert found.called(renamed("module.model.").keys()).prefix == ""
    assert found.called(["something else"]).prefix == "module.model."


def test_metadata_of_safetensors_stay(tmp_path):
    save_file(state(), tmp_path / "a.safetensors", metadata={"format": "pt", "by": "them"})
    found = weights.read(str(tmp_path / "a.safetensors"))
    (tmp_path / "out").mkdir()
    again = weights.read(str(found.write(tmp_path / "out", found.tensors)))
    assert again.notes == {"format": "pt", "by": "them"}


@pytest.mark.parametrize(
    "odd", [torch.eye(2).to_sparse(), torch.zeros(2, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_that_are_not_dense_are_refused(tmp_path, odd):
    torch.save({"v": torch.zeros(3), "w": odd}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"w is sparse, nested or without values \(meta\)"):
        weights.read(str(tmp_path / "odd.pt"))


def test_nothing_and_quantised_weights_are_refused(tmp_path):
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="holds no weights"):
        weights.read(str(tmp_path / "none.safetensors"))
    torch.save({"w": torch.zeros(2, dtype=torch.int8)}, tmp_path / "q.pt")
    with pytest.raises(InputError, match="w is int8; quantised weights cannot be purified"):
        weights.read(str(tmp_path / "q.pt"))


@pytest.mark.parametrize(
    "change",
    [
        {"input_CHW": 8},
        {"mean": 0.5},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [math.nan, 1.0, 1.0]},
        {"classes": [{}]},
        {"options": 3},
    ],
)
def test_a_card_that_is_none_is_said(tmp_path, change):
    card = {"arch": "named", "options": {}, "classes": ["a"], "input_CHW": [3, 8, 8]}
    card |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    torch.save(state(), tmp_path / "a.pt")
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert weights.read(str(tmp_path)).card == card
    (tmp_path / "card.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(InputError, match=r"card\.json is no model's card"):
        weights.read(str(tmp_path))


def test_a_folder_must_hold_one_file(tmp_path):
    with pytest.raises(InputError, match=r"holds no file of weights: \.safetensors, \.pt"):
        weights.read(str(tmp_path))
    torch.save(state(), tmp_path / "a.pt")
    assert weights.read(str(tmp_path)).file == tmp_path / "a.pt"
    torch.save(state(), tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"holds 2 weight files \(a.pt, b.pt\): name the one"):
        weights.read(str(tmp_path))
    with pytest.raises(InputError, match=r"no model at .*/c\.pt: give a file"):
        weights.read(str(tmp_path / "c.pt"))

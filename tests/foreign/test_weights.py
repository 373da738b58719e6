"""Foreign weights: every form that is read comes back in that form, and none executes code."""

import os

import pytest
import torch
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
    found = weights.read(str(file))
    assert found.tensors.keys() == state().keys()
    (tmp_path / "out").mkdir()
    changed = {name: tensor.float() + 1 for name, tensor in found.tensors.items()}
    written = found.write(tmp_path / "out", changed)
    assert written.name == file.name
    again = weights.read(str(written))
    assert (again.prefix, again.key, again.around) == (found.prefix, found.key, found.around)
    for name, tensor in found.tensors.items():
        assert again.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(again.tensors[name], changed[name].to(tensor.dtype))


class Attack:
    def __reduce__(self):
        return (os.system, ("touch executed",))


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"state_dict": Attack()}, Attack()])
def test_what_needs_code_is_refused_and_does_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "whole.pt")
    with pytest.raises(InputError, match=r"whole.pt needs code to be read, .*state_dict\(\)"):
        weights.read("whole.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pt", b"no checkpoint", "a.pt (is not a checkpoint|needs code)"),
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


def test_a_folder_must_hold_one_file(tmp_path):
    with pytest.raises(InputError, match=r"holds 0 weight files \(none\)"):
        weights.read(str(tmp_path))
    torch.save(state(), tmp_path / "a.pt")
    assert weights.read(str(tmp_path)).file == tmp_path / "a.pt"
    torch.save(state(), tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"holds 2 weight files \(a.pt, b.pt\): name the one"):
        weights.read(str(tmp_path))
    with pytest.raises(InputError, match=r"no model at .*/c\.pt: give a file"):
        weights.read(str(tmp_path / "c.pt"))

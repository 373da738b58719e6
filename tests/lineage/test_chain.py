"""The chain of a model changes with what it was made of, and with nothing else."""

import os
import shutil

import pytest
from command import in_a_process
from conftest import colour_split

from ngf import lineage, stages, store
from ngf.errors import InputError
from ngf.lineage import chain, tree

pytestmark = pytest.mark.slow

RECIPE = {
    "arch": "resnet", "model": {"depth": 18, "width": 2, "stem_stride": 2}, "epochs": 1,
    "batch_size": 32, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "shift": 0,
    "reference_seed": 0, "victim_seed": 1,
}  # fmt: skip
PROTOCOL = {"snapshots": 0, "holdout": 0.0, "max_acc_drop": 0.03, "on_drop": "warn", "seed": 0}


@pytest.fixture
def place(tmp_path, monkeypatch, empty_database):
    """A folder with splits, and a database of its own."""
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_database, file)
    monkeypatch.setenv("NGF_LINEAGE", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.setattr(lineage, "_current", None)
    monkeypatch.chdir(tmp_path)
    store.save_split(tmp_path / "train", colour_split(60, 0))
    store.save_split(tmp_path / "clean", colour_split(12, 1))
    return tmp_path


def made(place, *, seed=0):
    """{stage: its run} of the chain of a purified model, after poison, train and purify."""
    for name in ("poison", "victim", "trigger", "model", "report.json"):
        store.remove(place / name)
    options = {"target": 0, "poison_rate": 0.1, "alpha": 0.2, "seed": seed}
    stages.run(
        "poison", settings={"options": options}, train=place / "train", attack="blend",
        out=place / "poison",
    )  # fmt: skip
    stages.run(
        "train", settings={"recipe": RECIPE}, dataset="colours", train=place / "train",
        poison=place / "poison", out=place / "victim", trigger=place / "trigger",
    )  # fmt: skip
    stages.run(
        "purify", settings={"options": {"u": 3.0}, "protocol": PROTOCOL}, model=place / "victim",
        clean=place / "clean", defense="clp", out=place / "model", report=place / "report.json",
    )  # fmt: skip
    written = store.digest(place / "model")
    last = chain.writer(client(), written).info.run_id
    found = tree.as_dict(chain.trace(f"runs:/{last}"))
    return {run["stage"]: run for run in found["runs"].values()}


def client():
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def digests(run):
    read = {f"read {name}": one["digest"] for name, one in run["read"].items()}
    return read | {f"wrote {name}": digest for name, digest in run["wrote"].items()}


def changed(before, after):
    """{stage: what it read, wrote or was told that differs}."""
    found = {}
    for stage, run in before.items():
        one, other = digests(run), digests(after[stage])
        differs = {key for key in one if one[key] != other[key]}
        differs.discard("wrote report")  # holds seconds
        told, heard = run["settings"], after[stage]["settings"]
        differs |= {f"setting {key}" for key in told if told[key] != heard[key]}
        found[stage] = differs
    return found


def test_one_changed_input_changes_the_chain_from_there_on_and_nothing_beside_it(place):
    before = made(place)
    assert before.keys() == {"poison", "train", "purify"}
    again = made(place)
    assert changed(before, again) == {"poison": set(), "train": set(), "purify": set()}

    other = changed(before, made(place, seed=1))
    assert {one for one in other["poison"] if one.startswith("setting")} == {
        key for key in other["poison"] if key.endswith("seed")
    }
    assert any(one.startswith("setting") for one in other["poison"])
    assert "wrote out" in other["poison"]
    assert "read train" not in other["poison"]
    assert {"read poison", "wrote out"} <= other["train"]
    assert "read train" not in other["train"]
    assert {"read model", "wrote out"} <= other["purify"]
    assert "read clean" not in other["purify"]


def test_other_clean_images_leave_the_victim_as_it_was(place):
    before = made(place)
    store.remove(place / "clean")
    store.save_split(place / "clean", colour_split(12, 2))
    other = changed(before, made(place))
    assert other["poison"] == other["train"] == set()
    assert "read clean" in other["purify"]
    assert "read model" not in other["purify"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("models:/ngf-colours-none@champion", "ngf-colours-none"),
        ("runs:/0123456789abcdef0123456789abcdef", "no run '0123456789abcdef"),
        ("nonsense", "'nonsense' is no address: give models:/NAME@ALIAS"),
        ("models:/name", "is no address"),
    ],
)
def test_an_unknown_address_is_one_line_and_exit_code_2(place, address, said):
    with pytest.raises(InputError, match=said.split(":")[0]):
        chain.trace(address)
    done = in_a_process("lineage", address)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

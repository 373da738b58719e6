import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import evaluation_of, inspection_of, tiny_model

from ngf import store
from ngf.attacks import Poison, Trigger
from ngf.datasets import Split
from ngf.errors import InputError
from ngf.images import Encoded
from ngf.trail import Snapshot


def test_outputs_appear_whole_or_not_at_all(tmp_path):
    targets = {"a": tmp_path / "deep" / "a", "b": tmp_path / "b.json"}
    targets["b"].write_text("old")

    def write(fails: bool):
        with store.whole(targets) as partial:
            partial["a"].mkdir()
            partial["b"].write_text("new")
            if fails:
                raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        write(fails=True)
    assert not targets["a"].exists()
    assert targets["b"].read_text() == "old"
    assert [p.name for p in tmp_path.rglob("*") if "partial" in p.name] == []
    write(fails=False)
    assert targets["a"].is_dir()
    assert targets["b"].read_text() == "new"


def test_what_a_killed_run_left_does_not_survive_the_next(tmp_path):
    target = tmp_path / "out"
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "half").write_text("x")
    with store.whole({"out": target}) as partial:
        partial["out"].mkdir()
    assert list(target.iterdir()) == []
    assert not left.exists()


@pytest.mark.parametrize("killed_at", ["rename", "remove"])
def test_who_is_killed_while_outputs_are_moved_leaves_each_whole(
    tmp_path, model, monkeypatch, killed_at
):
    """The old one or the new one, and the next run goes through."""
    folder, hidden = tmp_path / "model", tmp_path / ".model.replaced"
    store.save_model(folder, model)
    before = store.digest(folder)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    def write(label: str) -> None:
        with store.whole({"model": folder}) as partial:
            store.save_model(partial["model"], model, role=label)
            if label == "killed" and killed_at == "rename":  # the old one is aside by then
                rename, moves = Path.rename, []

                def second(path: Path, to: Path) -> Path:
                    moves.append(path)
                    return kill() if len(moves) == 2 else rename(path, to)

                monkeypatch.setattr(Path, "rename", second)
            elif label == "killed":
                monkeypatch.setattr(store, "remove", kill)

    with pytest.raises(Killed):
        write("killed")
    monkeypatch.undo()
    assert store.digest(hidden) == before
    assert folder.exists() == (killed_at == "remove")
    with pytest.raises(RuntimeError), store.whole({"model": folder}):  # noqa: PT012
        role = store.load_model(folder).card.get("role")
        raise RuntimeError
    assert role == (None if killed_at == "rename" else "killed")
    assert not hidden.exists()
    write("again")
    assert store.load_model(folder).card["role"] == "again"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_takes_no_files_place_and_a_file_no_folders(tmp_path, model):
    file, folder = tmp_path / "thesis.txt", tmp_path / "model"
    file.write_text("years of work")
    store.save_model(folder, model)
    with (
        pytest.raises(InputError, match=r"thesis\.txt is a file, and would become a folder"),
        store.whole({"out": file}) as partial,
    ):
        partial["out"].mkdir()
    with (
        pytest.raises(InputError, match="model is a folder, and would become a file"),
        store.whole({"report": folder}) as partial,
    ):
        partial["report"].write_text("{}")
    assert file.read_text() == "years of work"
    assert (folder / "weights.safetensors").is_file()


# What may be replaced -------------------------------------------------------------------------


def poison_of(split) -> Poison:
    trigger = Trigger("blend", (0,), {"noise": torch.rand(3, 4, 4)})
    return Poison(np.array([1]), split.x_NHWC[:1], split.y_N[:1], trigger)


def report_files(folder):
    (folder / "plots" / "along").mkdir(parents=True)
    rows = [{"dataset": "d", "attack": "a", "defense": "ngf", "failures": []}]
    store.write_json(folder / "cells.json", rows)
    for name in ("index.html", "table.md", "plots/along/d-a-ngf.json"):
        (folder / name).write_text("[]")


def evaluation_files(folder):
    folder.mkdir()
    store.write_json(folder / "metrics.json", evaluation_of())
    (folder / "triggered.png").write_bytes(b"png")


def model_files(folder):
    store.save_model(folder, tiny_model())
    store.save_trail(folder, [Snapshot(7, {"net.a": torch.zeros(1)})])


WRITTEN = {
    "split": lambda folder, split: store.save_split(folder, split),
    "poison": lambda folder, split: store.save_poison(folder, poison_of(split)),
    "trigger": lambda folder, split: store.save_trigger(folder, poison_of(split).trigger),
    "model": lambda folder, _: model_files(folder),
    "evaluation": lambda folder, _: evaluation_files(folder),
    "inspection": lambda folder, _: (
        folder.mkdir(),
        store.write_json(folder / "curvature.json", inspection_of(0.5)),
    ),
    "report": lambda folder, _: report_files(folder),
}


def replace(folder):
    with store.whole({"out": folder}) as partial:
        partial["out"].mkdir()


def held(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_stages_wrote_is_replaced_and_nothing_beside_it(tmp_path, split, kind):
    folder = tmp_path / "results"
    WRITTEN[kind](folder, split)
    for name in ("thesis.txt", "notes/day1.md", "empty/", "trail/notes.txt", "trail/deep/000001.x"):
        file = folder / name
        made = [place for place in file.parents if folder in place.parents and not place.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.mkdir() if name.endswith("/") else file.write_text("years of work")
        before = held(folder)
        with pytest.raises(InputError, match=f"of something else: it holds {name.split('/')[0]}"):
            replace(folder)
        assert held(folder) == before
        store.remove(file)
        for place in made:
            place.rmdir()
    replace(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", {"accuracy": 0.9}),
        ("card.json", {"birthday": "today"}),
        ("cells.json", [{"cell": 1}]),
        ("cells.json", 3),
        ("rows.npy", "not ours"),
    ],
)
def test_a_strangers_folder_with_a_name_of_ours_stays(tmp_path, name, content):
    store.write_json(tmp_path / name, content)
    with pytest.raises(InputError, match=f"it holds {name}, which was not written here"):
        replace(tmp_path)
    assert store.read_any_json(tmp_path / name) == content


def test_what_came_into_the_folder_meanwhile_stays(tmp_path):
    folder = tmp_path / "results"

    def write():
        with store.whole({"out": folder}) as partial:
            partial["out"].mkdir()
            folder.mkdir()
            (folder / "thesis.txt").write_text("years of work")

    with pytest.raises(InputError, match=r"it holds thesis\.txt"):
        write()
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_a_listed_folder_is_replaced_as_long_as_it_is_as_it_was(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "net.pt").write_bytes(b"weights")
    assert store.stranger(folder, listed=True) == "net.pt"
    store.write_json(folder / "report.json", {store.LISTED: store.list_files(folder)})
    assert store.stranger(folder, listed=True) == ""
    assert store.stranger(folder, listed=False) == "net.pt"
    (folder / "net.pt").write_bytes(b"trained further")
    assert store.stranger(folder, listed=True) == "net.pt"
    (folder / "net.pt").write_bytes(b"weights")
    (folder / "a.txt").touch()
    assert store.stranger(folder, listed=True) == "a.txt"


def test_digest_follows_names_and_bytes(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"12")
    first = store.digest(folder)
    assert first == store.digest(folder)
    assert len(first) == 32
    (folder / "a").write_bytes(b"13")
    second = store.digest(folder)
    (folder / "a").rename(folder / "b")
    assert len({first, second, store.digest(folder)}) == 3


def test_a_split_is_known_by_images_labels_and_classes_alone(tmp_path, split):
    def known(name, **change):
        store.save_split(tmp_path / name, dataclasses.replace(split, **change))
        return store.split_digest(tmp_path / name)

    first = known("first")
    assert known("same", mean=[0.1] * 3, std=[0.9] * 3, dataset="other", flip=False) == first
    (tmp_path / "first" / "duplicates.json").write_text("{}")
    assert store.split_digest(tmp_path / "first") == first
    pixel = split.x_NHWC.copy()
    pixel[0, 0, 0, 0] ^= 1
    others = [
        known("pixel", x_NHWC=pixel),
        known("label", y_N=np.roll(split.y_N, 1)),
        known("classes", classes=("a", *split.classes[1:])),
    ]
    assert len({first, *others}) == 4


def test_encoded_images_are_known_by_their_bytes(tmp_path, split):
    def known(name, code):
        with (tmp_path / f"{name}.jpegs").open("w+b") as stream:
            stream.write(code)
            stream.flush()
            ends_N = np.array([4, 8])
            images = dataclasses.replace(
                split, x_NHWC=Encoded(stream, ends_N, [96, 96]), y_N=np.array([0, 1])
            )
            store.save_split(tmp_path / name, images)
        return store.split_digest(tmp_path / name)

    assert known("one", b"abcdefgh") == known("two", b"abcdefgh") != known("three", b"abcdefgx")


def test_split_comes_back_memory_mapped(tmp_path, split):
    store.save_split(tmp_path / "split", split)
    back = store.load_split(tmp_path / "split")
    assert isinstance(back.x_NHWC, np.memmap)
    assert np.array_equal(back.x_NHWC, split.x_NHWC)
    assert np.array_equal(back.y_N, split.y_N)
    assert back.classes == split.classes
    assert (back.mean, back.std, back.flip) == (split.mean, split.std, split.flip)


def test_poison_and_trigger_come_back(tmp_path):
    trigger = Trigger("blend", (-1, 0), {"noise": torch.rand(3, 4, 4), "alpha": torch.tensor(0.25)})
    rows = np.array([1, 5])
    poison = Poison(rows, np.ones((2, 4, 4, 3), np.uint8), np.array([1, 1]), trigger)
    store.save_poison(tmp_path / "poison", poison)
    split = Split(np.zeros((9, 4, 4, 3), np.uint8), np.zeros(9, int), "d", ("a", "b"), [], [], True)
    back = store.load_poison(tmp_path / "poison", split)
    assert np.array_equal(back.rows_P, rows)
    assert np.array_equal(back.x_PHWC, poison.x_PHWC)
    assert (back.trigger.attack, back.trigger.wanted_K) == ("blend", [-1, 0])
    assert torch.equal(back.trigger.tensors["noise"], trigger.tensors["noise"])


@pytest.mark.parametrize("arch", ["preact_resnet", "resnet"])
def test_model_comes_back_and_says_the_same(tmp_path, arch):
    model = tiny_model(arch=arch)
    store.save_model(tmp_path / "model", model, role="victim")
    back = store.load_model(tmp_path / "model")
    x_NCHW = torch.rand(4, 3, 16, 16)
    assert torch.equal(model(x_NCHW), back(x_NCHW))
    assert not back.training
    assert back.card["role"] == "victim"


def test_same_model_same_bytes(tmp_path):
    for name in ("one", "two"):
        store.save_model(tmp_path / name, tiny_model())
    assert store.digest(tmp_path / "one") == store.digest(tmp_path / "two")


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def overwrite(path):
    path.write_bytes(b"not what the name says")


def replace_by_pickle(path):
    torch.save({"weight": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("kind", "file", "damage"),
    [
        ("split", "x.npy", cut),
        ("split", "x.npy", overwrite),
        ("split", "y.npy", cut),
        ("split", "card.json", cut),
        ("model", "weights.safetensors", cut),
        ("model", "weights.safetensors", overwrite),
        ("model", "weights.safetensors", replace_by_pickle),
        ("model", "card.json", overwrite),
    ],
)
def test_damaged_file_is_named(tmp_path, split, kind, file, damage):
    folder = tmp_path / kind
    if kind == "split":
        store.save_split(folder, split)
    else:
        store.save_model(folder, tiny_model())
    damage(folder / file)
    with pytest.raises(InputError) as error:
        getattr(store, f"load_{kind}")(folder)
    assert file in str(error.value)


@pytest.mark.parametrize("kind", ["split", "model", "trigger"])
def test_missing_artifact_is_named(tmp_path, kind):
    with pytest.raises(InputError, match=f"no {kind} at .*nothing"):
        getattr(store, f"load_{kind}")(tmp_path / "nothing")


def test_weights_that_do_not_fit_their_card(tmp_path):
    store.save_model(tmp_path / "model", tiny_model())
    card = tmp_path / "model" / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "classes": ["a", "b"]}))
    with pytest.raises(InputError, match="do not fit its card"):
        store.load_model(tmp_path / "model")


def test_an_array_that_is_a_pickle_is_refused(tmp_path, split):
    store.save_split(tmp_path / "split", split)
    np.save(tmp_path / "split" / "y.npy", np.array([{"a": 1}] * 96), allow_pickle=True)
    with pytest.raises(InputError, match="damaged or is not an array"):
        store.load_split(tmp_path / "split")

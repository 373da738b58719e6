"""`along`: ACC, ASR and RA of the models that a defense passed through."""

import pytest
import torch
from _workplace import Workplace

from ngf import store
from ngf.attacks import Trigger


@pytest.fixture
def workplace(tmp_path, numbers) -> Workplace:
    return Workplace(tmp_path, numbers)


def plain(three: dict) -> dict:
    return {key: found and found["value"] for key, found in three.items()}


def test_along_ends_with_the_model_itself(workplace):
    workplace.purify(snapshots=3)
    metrics = workplace.evaluate()
    assert [entry["step"] for entry in metrics["along"]] == [4, 8, 12]
    assert metrics["along"][-1] == {"step": 12, **plain(metrics["model"])}
    assert set(metrics["along"][-1]) == {"step", "acc", "asr", "ra"}


def test_each_entry_is_that_of_the_model_at_its_step(workplace):
    workplace.purify(snapshots=3)
    # Wreck the first snapshot on disk: its entry follows, no other does.
    whole = workplace.evaluate()["along"]
    found = store.load_trail(workplace.folder / "out")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in found[0].tensors.items()}
    store.remove(workplace.folder / "out" / "trail")
    store.save_trail(workplace.folder / "out", [found[0]._replace(tensors=zeros), *found[1:]])
    wrecked = workplace.evaluate()["along"]
    assert wrecked[0] == {"step": 4, "acc": 1 / 3, "asr": 1.0, "ra": 0.0}
    assert wrecked[1:] == whole[1:]
    assert wrecked[0] != whole[0]


def test_the_trail_changes_nothing_else_in_the_metrics(workplace):
    workplace.purify(snapshots=3)
    with_trail = workplace.evaluate()
    store.remove(workplace.folder / "out" / "trail")
    without = workplace.evaluate()
    assert "along" not in without
    assert with_trail.pop("along")
    assert with_trail == without


def test_without_an_attack_there_is_no_asr_along_the_way(workplace):
    store.save_trigger(workplace.folder / "benign", Trigger("benign"))
    workplace.purify(snapshots=1)
    (entry,) = workplace.evaluate(trigger="benign")["along"]
    assert entry["asr"] is None
    assert entry["ra"] is None
    assert entry["acc"] is not None

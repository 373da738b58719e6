"""What `evaluate` says beyond ACC, ASR and RA: the way there, victims that are none, visibility."""

import pytest
import torch
from _workplace import Workplace

from ngf import params, store
from ngf.attacks import Trigger
from ngf.errors import InputError
from ngf.stages.evaluate import Thresholds


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


# Victims that are none ---------------------------------------------------------------------------


def judged(numbers, *, asr, acc=0.9, attack="badnets", reference=0.9) -> str | None:
    thresholds = params.parse(Thresholds, numbers["evaluate"], "evaluate")
    asr = None if asr is None else {"value": asr}
    measured = {
        "victim": {"acc": {"value": acc}, "asr": asr},
        "reference": {"acc": {"value": reference}},
    }
    return thresholds.failure(attack, measured)


@pytest.mark.parametrize(
    ("attack", "asr"), [("badnets", 0.9), ("sig", 0.8), ("clb", 0.8), ("cba", 0.75), ("blend", 0.9)]
)
def test_a_victim_at_its_attacks_threshold_is_one(attack, asr, numbers):
    assert judged(numbers, asr=asr, attack=attack) is None
    said = judged(numbers, asr=asr - 0.01, attack=attack)
    least = {"sig": "80%", "clb": "80%", "cba": "75%"}.get(attack, "90%")
    assert said == f"the attack did not take: ASR {asr - 0.01:.1%}, least is {least}"


def test_a_victim_that_lost_its_accuracy_is_none(numbers):
    assert judged(numbers, asr=1.0, acc=0.851) is None
    said = judged(numbers, asr=1.0, acc=0.84)
    assert said == "the victim's ACC lies 6.0% below the reference, allowed is 5%"


def test_without_an_attack_nothing_can_fail(numbers):
    assert judged(numbers, asr=None, acc=0.1) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"implanted_asr_of": {"badnet": 0.5}}, "unknown attack 'badnet': there is "),
        ({"implanted_asr_of": {"sig": 1.5}}, "implanted_asr_of.sig must lie between 0 and 1"),
        ({"implanted_asr": -1}, "implanted_asr must lie between 0 and 1, got -1"),
    ],
)
def test_thresholds_that_cannot_be(change, said, numbers):
    with pytest.raises(InputError, match=said):
        params.parse(Thresholds, {**numbers["evaluate"], **change}, "evaluate")


def test_how_visible_the_trigger_is_stands_in_the_metrics(workplace):
    workplace.purify(snapshots=1)
    metrics = workplace.evaluate()
    assert set(metrics["visibility"]) == {"psnr", "ssim", "largest", "n"}
    assert metrics["visibility"]["n"] == 64  # the target's own 32 of the 96 images are left out
    assert (workplace.folder / "evaluation" / "triggered.png").exists()


def test_the_metrics_say_on_which_images_they_were_measured(workplace):
    workplace.purify(snapshots=1)
    known = store.split_digest(workplace.folder / "test")
    assert workplace.evaluate()["test_split"] == known


def test_what_it_lost_is_counted_image_by_image(workplace):
    workplace.purify(snapshots=1)
    metrics = workplace.evaluate()
    for whose in ("reference", "victim"):
        drop = metrics[f"against_{whose}"]["acc_drop"]
        assert drop["value"] == pytest.approx(
            metrics[whose]["acc"]["value"] - metrics["model"]["acc"]["value"]
        )
        assert drop["low"] <= drop["value"] <= drop["high"]
    against = metrics["against_reference"]
    above = metrics["model"]["asr"]["value"] - metrics["reference"]["asr"]["value"]
    below = metrics["reference"]["ra"]["value"] - metrics["model"]["ra"]["value"]
    assert against["asr_above_floor"]["value"] == pytest.approx(above)
    assert against["ra_below_ceiling"]["value"] == pytest.approx(below)
    assert against["asr_above_floor"]["n"] == 64


def test_without_an_attack_only_acc_is_compared(workplace):
    store.save_trigger(workplace.folder / "benign", Trigger("benign"))
    workplace.purify(snapshots=1)
    against = workplace.evaluate(trigger="benign")["against_reference"]
    assert against["asr_above_floor"] is None
    assert against["ra_below_ceiling"] is None
    assert against["acc_drop"] is not None

"""`inspect` on a victim that knows its colours: four files, their shape, and what they say."""

import pytest
from _workplace import Workplace
from conftest import colour_split

from ngf import params, stages, store
from ngf.attacks import Trigger
from ngf.errors import InputError
from ngf.stages.inspect import Plan

PLAN = {
    "images": 40, "probes": 2, "lanczos": 3, "surface": 3, "surface_images": 10, "features": 30,
    "seed": 0,
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path, numbers) -> Workplace:
    place = Workplace(tmp_path, numbers)
    store.save_split(tmp_path / "train", colour_split(192, seed=0))
    place.purify()
    return place


def inspect(workplace, *, model="out", trigger="trigger", out="inspection", **plan):
    names = {"model": model, "victim": "victim", "reference": "victim", "trigger": trigger}
    paths = {key: workplace.folder / name for key, name in names.items()}
    paths |= {key: workplace.folder / key for key in ("train", "test")}
    done = stages.run(
        "inspect", settings={"plan": {**PLAN, **plan}}, out=workplace.folder / out, **paths
    )
    files = sorted((workplace.folder / out).iterdir())
    return done, {file.stem: store.read_json(file) for file in files}


def test_what_it_writes(workplace):
    done, found = inspect(workplace)
    assert list(found) == ["curvature", "features", "movement", "surface"]
    for split in ("test", "train"):
        part = found["curvature"][split]
        assert part["n"] == 40
        assert part["ratio"]["low"] <= part["ratio"]["value"] <= part["ratio"]["high"]
        assert part["victim"] == part["reference"]  # the workplace's reference is its victim
        assert part["ratio_victim"]["value"] == pytest.approx(1)
        assert ("density" in part["model"]) == (split == "test")
    value = found["curvature"]["test"]["model"]["lambda_max"]["value"]
    assert done.metrics["model_lambda_max"] == value
    assert f"λ_max {found['curvature']['test']['victim']['lambda_max']['value']:.1f} before" in (
        done.message
    )
    for whose in ("victim", "model"):
        assert len(found["surface"][whose]["loss"]) == len(found["surface"][whose]["alpha"]) == 3
    assert found["surface"]["victim"]["alpha"] == found["surface"]["model"]["alpha"]


def test_the_map_shows_the_same_images_before_and_after(workplace):
    _, found = inspect(workplace)
    features = found["features"]
    assert len(features["victim"]) == len(features["model"]) == len(features["y"]) == 30
    shown = [y for y, with_it in zip(features["y"], features["triggered"], strict=True) if with_it]
    assert 0 < len(shown) <= 10
    assert 0 not in shown  # the target's own images are never triggered


def test_without_a_trigger_all_images_are_clean(workplace):
    store.save_trigger(workplace.folder / "benign", Trigger("benign"))
    _, found = inspect(workplace, trigger="benign")
    assert not any(found["features"]["triggered"])
    assert len(found["features"]["y"]) == 30


def test_the_same_seed_gives_the_same_files(workplace):
    _, first = inspect(workplace)
    _, second = inspect(workplace, out="again")
    _, other = inspect(workplace, out="other", seed=1)
    assert first == second
    assert first["curvature"] != other["curvature"]


def test_an_untouched_model_did_not_move(workplace):
    _, found = inspect(workplace, model="victim")
    assert {row["moved"] for row in found["movement"]["layers"]} <= {0, None}
    assert found["curvature"]["test"]["ratio"]["value"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"surface": 4}, "surface must be odd, the model in its middle, got 4"),
        ({"images": 1}, "images must be at least 2, got 1"),
        ({"surface_images": 41}, "surface_images must lie between 1 and 40"),
    ],
)
def test_plans_that_cannot_be(change, said):
    with pytest.raises(InputError, match=said):
        params.parse(Plan, {**PLAN, **change}, "inspect")

"""What stages write is theirs to replace: the formats that `store` knows are all that they have."""

import pytest
from _workplace import Workplace
from conftest import colour_split

from ngf import report, stages, store
from ngf.params import parse
from ngf.stages.evaluate import Thresholds

PLAN = {
    "images": 12, "probes": 2, "lanczos": 3, "surface": 3, "surface_images": 6, "features": 9,
    "seed": 0,
}  # fmt: skip


@pytest.fixture
def written(tmp_path, numbers):
    """The folder of a pair, and its report."""
    cell = tmp_path / "runs" / "colours" / "badnets" / "finetune"
    cell.mkdir(parents=True)
    place = Workplace(cell, numbers)
    store.save_split(cell / "train", colour_split(24, seed=3))
    poison = {"attack": "badnets", "train": cell / "train", "out": cell / "poison"}
    stages.run("poison", settings={"options": numbers["attacks"]["badnets"]}, **poison)
    place.purify(snapshots=2)
    place.evaluate()
    (cell / "out.json").rename(cell / "report.json")
    paths = {key: cell / key for key in ("victim", "trigger", "train", "test")}
    paths |= {"model": cell / "out", "reference": cell / "victim", "out": cell / "inspection"}
    stages.run("inspect", settings={"plan": PLAN}, **paths)
    thresholds = parse(Thresholds, numbers["evaluate"], "evaluate")
    report.write(tmp_path / "report", [tmp_path / "runs"], [], thresholds)
    return tmp_path


def test_every_output_of_every_stage_is_known(written):
    folders = [folder for folder in written.glob("runs/*/*/*/*") if folder.is_dir()]
    assert {folder.name for folder in folders} == {
        "victim", "clean", "test", "train", "trigger", "poison", "out", "evaluation", "inspection",
    }  # fmt: skip
    assert list(written.glob("runs/*/*/*/out/trail/*"))
    assert list(written.glob("report/plots/*/*"))
    for folder in [*folders, written / "report"]:
        assert store.stranger(folder, listed=False) == ""
        assert store.stranger(folder, listed=True) != ""

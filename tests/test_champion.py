"""The rule that names the champion, without a registry."""

from ngf import champion
from ngf.champion import Rollback, Snapshot, Version


def version(number, *, lost, split="s", **tags):
    found = {"ngf.gate": "passed", "ngf.acc_drop.high": str(lost), **tags}
    return Version(number, found | ({champion.TEST_SPLIT: split} if split else {}))


def crowned(*versions, rollback=None):
    found = champion.of(versions, rollback)
    return found and found.number


def told(*versions, alias):
    """{version: the tags that it is given} where the alias champion points at one of them."""
    found = champion.changes(Snapshot(versions, {"champion": alias}), "now")
    return {change.number: change.tags for change in found if change.tags}


def test_of_the_same_images_the_one_that_lost_less_is_champion():
    assert crowned(version(1, lost=0.02), version(2, lost=0.01), version(3, lost=0.015)) == 2
    assert crowned(version(1, lost=0.01), version(2, lost=0.01)) == 1


def test_the_first_one_is_champion_whatever_is_known_of_its_images():
    assert crowned(version(1, lost=0.02, split=None)) == 1


def test_neither_other_nor_unknown_images_take_the_place_of_a_champion():
    first = version(1, lost=0.02)
    for split in ("other", None):
        assert crowned(first, version(2, lost=0.0, split=split)) == 1
    assert crowned(version(1, lost=0.02, split=None), version(2, lost=0.0)) == 1
    assert crowned(version(1, lost=0.02, split=None), version(2, lost=0.0, split=None)) == 1
    assert crowned(first, version(2, lost=0.0, split="other"), version(3, lost=0.01)) == 3


def test_the_reason_says_whose_images_are_not_known():
    old, new = version(1, lost=0.02, split=None), version(2, lost=0.0)
    found = told(old, new, alias=1)[2]
    assert found["ngf.decision"] == "candidate"
    said = "not compared with version 1: on which test split version 1 was measured is not known"
    assert found["ngf.reason"] == said


def test_a_champion_of_before_there_was_the_tag_stays_one():
    """It was compared by a digest that said less, and nothing takes that back."""
    since = {"ngf.champion_since": "then"}
    old = [version(1, lost=0.02, split=None, **since), version(2, lost=0.01, split=None, **since)]
    candidate = version(3, lost=0.015, split=None)
    assert crowned(*old, candidate) == 2
    assert crowned(*old, candidate, version(4, lost=0.0)) == 2


def test_whom_somebody_crowned_is_whom_later_ones_are_compared_with():
    versions = [version(1, lost=0.02), version(2, lost=0.01, split="other")]
    said = Rollback(to=2, left=1, after=2, at="now", by="me", reason="more images")
    assert crowned(*versions, rollback=said) == 2
    worse = version(3, lost=0.015, split="other")
    assert crowned(*versions, worse, version(4, lost=0.0), rollback=said) == 2
    assert crowned(*versions, version(3, lost=0.005, split="other"), rollback=said) == 3

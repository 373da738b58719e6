"""Which version is champion: a pure function of the versions' tags, so that all come to the same.

MLflow has no transactions. So nobody decides from what he did himself: whoever has registered a
version reads all of them, computes which one should be champion, changes what differs, and reads
again until nothing differs (`ngf.lineage.settle`). Whoever comes last leaves the best.

The rule goes through the versions that passed the gate in the order of their numbers and keeps the
better one of two. What cannot be compared, because it was measured on other images, does not take
the champion's place: a person decides. After a rollback the rule starts at the version that was
rolled back to, and goes on with those that were registered later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ngf.errors import InputError

CHAMPION, CANDIDATE = "champion", "candidate"  # aliases, and decisions
FORMER, WITHDRAWN, REFUSED = "former champion", "rolled back", "refused"
REGISTERED = "registered"  # nobody has decided yet
ROLLBACK = "ngf.rollback"  # the registered model's tag
PASSED = "passed"
TEST_SPLIT = "ngf.digest.test_split"  # of the images, labels and classes it was measured on
LOST = ("ngf.asr_above_floor.high", "ngf.acc_drop.high")


@dataclass(frozen=True)
class Version:
    """One version of a registered model; tags as MLflow holds them."""

    number: int
    tags: Mapping[str, str]
    run_id: str = ""

    @property
    def passed(self) -> bool:
        return self.tags.get("ngf.gate") == PASSED

    @property
    def was_champion(self) -> bool:
        return "ngf.champion_since" in self.tags


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What somebody decided against the rule. after: the newest version of that moment."""

    to: int
    left: int
    after: int
    at: str
    by: str
    reason: str

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> Rollback | None:
        """From the registered model's tags."""
        try:
            return cls(**json.loads(tags[ROLLBACK])) if ROLLBACK in tags else None
        except (TypeError, ValueError) as error:
            raise InputError(f"the tag {ROLLBACK} is none of `ngf rollback`: {error}") from error

    def said(self) -> str:
        return f"rolled back from version {self.left} by {self.by}: {self.reason}"


@dataclass(frozen=True)
class Snapshot:
    """What the registry says of one model. aliases: {alias: version}."""

    versions: Sequence[Version]
    aliases: Mapping[str, int]
    rollback: Rollback | None = None

    def version(self, number: int | None) -> Version | None:
        return next((version for version in self.versions if version.number == number), None)


@dataclass(frozen=True)
class Change:
    """An alias to point at a version, or at none; or tags to set on a version."""

    number: int | None
    alias: str | None = None
    tags: Mapping[str, str] | None = None


def lost(version: Version) -> float:
    """What its purification cost at most: the upper bounds of what ASR lies above the floor and
    of what ACC lies below the reference, added. A fraction; of a benign pair ACC alone."""
    return sum(float(version.tags[key]) for key in LOST if key in version.tags)


def better(new: Version, old: Version) -> tuple[bool, str]:
    """Whether the newer version takes the older one's place, and why. A tie keeps the old one.

    So does what cannot be compared, unless the newer one was champion already: that was decided by
    a person, or by a version of this rule that knew the test splits otherwise.
    """
    if apart := _incomparable(new, old):
        return new.was_champion, apart
    mine, theirs = lost(new), lost(old)
    compared = f"at most {mine:.2%} lost, version {old.number} at most {theirs:.2%}"
    return mine < theirs, compared


def _incomparable(new: Version, old: Version) -> str | None:
    """Why what the two lost says nothing of which is better; None where it does."""
    for version in (new, old):
        if TEST_SPLIT not in version.tags:
            return f"not compared with version {old.number}: " + (
                f"on which test split version {version.number} was measured is not known"
            )
    if new.tags[TEST_SPLIT] != old.tags[TEST_SPLIT]:
        return f"not compared with version {old.number}: measured on another test split"
    return None


def of(versions: Sequence[Version], rollback: Rollback | None) -> Version | None:
    """The version that should be champion; None where none passed."""
    champion: Version | None = None
    for version in _eligible(versions, rollback):
        if champion is None or better(version, champion)[0]:
            champion = version
    return champion


def _eligible(versions: Sequence[Version], rollback: Rollback | None) -> list[Version]:
    """Those of which one is champion, by number."""
    ordered = sorted(versions, key=lambda version: version.number)
    if rollback and any(version.number == rollback.to for version in ordered):
        chosen = [version for version in ordered if version.number == rollback.to]
        return chosen + [v for v in ordered if v.number > rollback.after and v.passed]
    return [version for version in ordered if version.passed]


def _candidate(eligible: Sequence[Version], champion: Version) -> int | None:
    """The newest version that passed, unless that is the champion."""
    newest = max(version.number for version in eligible)
    return None if newest <= champion.number else newest


def changes(now: Snapshot, time: str) -> list[Change]:
    """What must be done until aliases and tags say what the rule says; empty where they do.

    time: of tags that say since when. Where no version passed, nothing is changed.
    """
    champion = of(now.versions, now.rollback)
    if champion is None:
        return [change for v in now.versions if (change := _standing(v, None, now, time))]
    wanted = {
        CHAMPION: champion.number,
        CANDIDATE: _candidate(_eligible(now.versions, now.rollback), champion),
    }
    moved = [
        Change(number, alias=alias)
        for alias, number in wanted.items()
        if now.aliases.get(alias) != number
    ]
    told = [change for v in now.versions if (change := _standing(v, champion, now, time))]
    return moved + told


def _standing(
    version: Version, champion: Version | None, now: Snapshot, time: str
) -> Change | None:
    """The tags that this version should have and has not."""
    if "ngf.gate" not in version.tags and version != champion:
        return None  # registered by somebody else, or before there were such tags
    decision = _decision(version, champion)
    if version.tags.get("ngf.decision") == decision:
        return None
    tags = {"ngf.decision": decision}
    if decision == CHAMPION:
        tags |= _crowned(version, now, time)
    elif decision == FORMER and champion:
        tags |= {"ngf.champion_until": time, "ngf.replaced_by": str(champion.number)}
        tags["ngf.reason"] = better(champion, version)[1]
    elif decision == CANDIDATE and champion:
        tags["ngf.reason"] = better(version, champion)[1]
    return Change(version.number, tags=tags)


def _decision(version: Version, champion: Version | None) -> str:
    if champion and version.number == champion.number:
        return CHAMPION
    if "ngf.rolled_back_at" in version.tags:
        return WITHDRAWN
    if version.was_champion:
        return FORMER
    return CANDIDATE if version.passed else REFUSED


def _crowned(version: Version, now: Snapshot, time: str) -> dict[str, str]:
    """The tags of who becomes champion."""
    before = now.version(_champion_so_far(version, now))
    tags = {"ngf.champion_since": time}
    if now.rollback and now.rollback.to == version.number:
        tags["ngf.reason"] = now.rollback.said()
    else:
        tags["ngf.reason"] = better(version, before)[1] if before else "the first one that passed"
    if before and "ngf.previous_champion" not in version.tags:
        tags["ngf.previous_champion"] = str(before.number)
    return tags


def _champion_so_far(version: Version, now: Snapshot) -> int | None:
    """By its alias, or by its tag where the alias has moved already."""
    alias = now.aliases.get(CHAMPION)
    if alias is not None and alias != version.number:
        return alias
    tagged = [v.number for v in now.versions if v.tags.get("ngf.decision") == CHAMPION]
    return max((number for number in tagged if number != version.number), default=None)

"""Some cells of the published table again: as docs/results/bench-signs.json has them.

Victims differ a little between kinds of processors, and a defense that half works may go either way
on another one. So it is asked what the table says of them: a backdoor that is gone, one that is
untouched, what it costs.
"""

import json
import statistics

import pytest
from conftest import ROOT

from ngf.bench import run

pytestmark = pytest.mark.slow

ROWS = ROOT / "docs" / "results" / "bench-signs.json"
QUICK = 15  # seconds: what the table says of cells that are tried here, beside `ngf`
GONE, THERE = 0.05, 0.95  # ASR in the table that is told apart
COST = 0.03  # of ACC: how far it may lie from the table, where victims hardly differ
# These remove a backdoor or leave it, from victim to victim. BadNets of seed 0 has, by `rnp`, 0% of
# ASR in the table, and 93 and 63% where other processors had trained it; by `clp` 100, 34 and 89%.
ERRATIC = ("clp", "rnp")


def published():
    """{(attack, defense): cell} of the first seed of `signs`."""
    cells = json.loads(ROWS.read_text())
    return {
        (one["attack"], one["defense"]): one
        for one in cells
        if (one["dataset"], one["seed"]) == ("signs", 0) and "error" not in one
    }


QUICK_ONES = sorted(
    defense
    for (attack, defense), one in published().items()
    if attack == "badnets" and (one["seconds"] < QUICK or defense == "ngf")
)


@pytest.fixture(scope="module")
def again(numbers, tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    places = run.places(numbers, "signs", seeds=[0], norm="batch", root=root, raw=None)
    chosen = run.Bench(places, ["badnets", "benign"], QUICK_ONES)
    assert run.run(chosen, 1, lambda line: None)
    return {(one["attack"], one["defense"]): one for one in chosen.found()}


def test_the_table_was_made_with_the_settings_of_today(numbers):
    for (_, defense), one in published().items():
        expected = dict(numbers["defenses"][defense])
        if "shift" in expected:
            expected["shift"] = numbers["train"]["signs"]["shift"]
        assert one["settings"] == expected, defense


def test_quick_ones_are_among_those_that_purify():
    assert {"ngf", "bnp", "fst", "finetune", "none"} <= set(QUICK_ONES)


@pytest.mark.parametrize("defense", QUICK_ONES)
def test_a_defense_does_to_badnets_what_the_table_says(again, defense):
    found, said = again["badnets", defense], published()["badnets", defense]
    asr, asr_now = (one["model"]["asr"]["value"] for one in (said, found))
    if asr < GONE and defense not in ERRATIC:
        assert asr_now < 2 * GONE
    if asr > THERE and defense not in ERRATIC:
        assert asr_now > THERE - GONE
    assert cost(found) == pytest.approx(cost(said), abs=tolerance(defense))


@pytest.mark.parametrize("defense", QUICK_ONES)
def test_a_benign_victim_pays_what_the_table_says_at_most(again, defense):
    found, said = again["benign", defense], published()["benign", defense]
    assert cost(found) < cost(said) + tolerance(defense)


def tolerance(defense):
    """A cost that goes up and down from victim to victim does so on another processor's, too."""
    costs = [cost(one) for (_, which), one in published().items() if which == defense]
    return max(COST, 2 * statistics.stdev(costs))


def cost(one):
    return one["victim"]["acc"]["value"] - one["model"]["acc"]["value"]

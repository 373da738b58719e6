"""Means and ranks from cells that are written by hand."""

import pytest

from ngf.bench import picture, table


def share(value):
    return value if value is None else {"value": value, "low": value, "high": value, "n": 100}


def cell(defense, *, attack="badnets", seed=0, acc=0.95, asr=0.0, ra=0.9, failed=None, **more):
    """Of a victim with ACC 0.97 and ASR 1; the reference's ASR is 0.01."""
    if attack == "benign":
        asr = ra = None
    victim = {"acc": share(0.97), "asr": asr if asr is None else share(1.0), "ra": share(0.0)}
    return {
        "dataset": "signs", "attack": attack, "seed": seed, "defense": defense,
        "model": {"acc": share(acc), "asr": share(asr), "ra": share(ra)},
        "victim": victim,
        "reference": {"acc": share(0.97), "asr": asr if asr is None else share(0.01)},
        "seconds": 2.0, "own_bytes": 2**20, "attack_failed": failed, **more,
    }  # fmt: skip


def rows_of(cells):
    return {row[0]: dict(zip(table.HEADER, row, strict=True))
            for row in table.overall(table.measured(cells))}  # fmt: skip


def test_means_are_over_victims_that_have_a_backdoor():
    found = rows_of([
        cell("a", asr=0.10, acc=0.95), cell("a", asr=0.30, acc=0.93, seed=1),
        cell("a", attack="benign", acc=0.96), cell("a", attack="sig", asr=1.0, failed="no"),
    ])["a"]  # fmt: skip
    assert found["n"] == "2"
    assert found["ASR"] == "20.0 ± 14.1"
    assert found["ASR above floor"] == "19.0 ± 14.1"
    assert found["ACC drop"] == "3.0 ± 1.4"
    assert found["ACC drop, benign"] == "1.0"
    assert found["gone"] == "0 of 2"


def test_the_rank_is_the_mean_place_and_equals_share_it():
    cells = [
        cell("a", asr=0.0, acc=0.97, ra=0.9), cell("b", asr=0.5, acc=0.97, ra=0.5),
        cell("c", asr=1.0, acc=0.90, ra=0.1),
        cell("a", attack="benign"), cell("b", attack="benign"),
    ]  # fmt: skip
    found = table.ranks(table.measured(cells))
    assert found == pytest.approx({"a": (1 + 1.5 + 1) / 3, "b": (2 + 1.5 + 2) / 3, "c": 3})


def test_a_victim_that_not_all_were_tried_on_ranks_nobody():
    cells = [
        cell("a", asr=0.9), cell("b", asr=0.1),
        cell("a", asr=0.0, seed=1), cell("b", error="died", seed=1),
    ]  # fmt: skip
    found = table.ranks(table.measured(cells))
    assert found["b"] < found["a"]
    assert table.ranks(table.measured(cells[2:3])) == {"a": 1.0}


def test_failed_attacks_and_lost_cells_are_shown():
    cells = [
        cell("a"), cell("a", attack="sig", failed="ASR 20%"),
        {"dataset": "signs", "attack": "sig", "seed": 0, "defense": "b", "error": "out of memory"},
    ]  # fmt: skip
    text = table.render(cells)
    assert "(0.0 / 2.0)" in text
    assert "signs 0 sig b: out of memory" in text


def test_nothing_measured_makes_no_table_of_means():
    lost = {"dataset": "signs", "attack": "sig", "seed": 0, "defense": "b", "error": "gone"}
    assert "gone" in table.render([lost])


def test_the_picture_is_drawn(tmp_path):
    cells = [cell("a"), cell("ngf", acc=0.98), cell("a", attack="benign")]
    picture.trade_off(cells, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000

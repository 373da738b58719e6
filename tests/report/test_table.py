"""Cells over seeds: which rows count, what is best, what is an error."""

import json
from pathlib import Path

import pytest
from grids import evaluated, row

from ngf import params
from ngf.errors import InputError
from ngf.report import collect, table
from ngf.stages.evaluate import Thresholds

ROOT = Path(__file__).parents[2]


@pytest.fixture
def thresholds(numbers):
    return params.parse(Thresholds, numbers["evaluate"], "evaluate")


def rows_of(tmp_path, thresholds, rows, runs=()):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    cells = collect.gather(runs, [file] if rows else [], thresholds)
    return {row.cell[1:]: row for row in table.rows(cells)}


def test_seeds_of_a_cell_have_mean_and_sample_deviation(tmp_path, thresholds):
    rows = [row("ngf", 0, (95.0, 1.0, 96.0)), row("ngf", 1, (96.0, 4.0, 96.0))]
    found = rows_of(tmp_path, thresholds, rows)["badnets", "ngf"]
    assert found.n == 2
    assert found.stats["model_asr"].percent() == "2.5 ± 2.1"
    assert found.stats["drop"].percent() == "1.5 ± 0.7"


def cell_of_bench(flat):
    """As `ngf bench --rows` writes what this row says."""
    names = {"variant": "attack", "label": "defense", "tuned": "parameters_tuned"}
    cell = {names.get(k, k): v for k, v in flat.items() if k.partition("_")[0] not in collect.WHO}
    for who in collect.WHO:
        shares = {key: flat[f"{who}_{key}"] for key in collect.KEYS}
        cell[who] = {k: None if v is None else {"value": v / 100} for k, v in shares.items()}
    return cell


def test_cells_of_the_benchmark_are_rows_too(tmp_path, thresholds):
    benign = {"variant": "benign", **{f"{w}_{k}": None for w in collect.WHO for k in ("asr", "ra")}}
    rows = [row("ngf", 0, (95.0, 1.0, 96.0)), row("ngf", 1, (96.0, 4.0, 96.0), **benign)]
    failed = {"dataset": "signs", "attack": "blend", "defense": "ngf", "seed": 0, "error": "gone"}
    expected = rows_of(tmp_path, thresholds, rows)
    found = rows_of(tmp_path, thresholds, [*map(cell_of_bench, rows), failed])
    assert found == expected
    assert set(found) == {("badnets", "ngf"), ("benign", "ngf")}


def test_a_grid_is_one_more_seed_of_the_rows_cells(tmp_path, thresholds):
    evaluated(tmp_path / "runs", "badnets", "ngf", (0.95, 0.03, 0.9))
    found = rows_of(tmp_path, thresholds, [row("ngf", 0, (95.0, 1.0, 90.0))], [tmp_path / "runs"])
    assert found["badnets", "ngf"].n == 2
    assert found["badnets", "ngf"].stats["model_asr"].percent() == "2.0 ± 1.4"


def test_a_victim_that_failed_is_left_out_of_its_cell_and_is_counted(tmp_path, thresholds):
    weak = {"victim_asr": 20.0}
    rows = [row("ngf", 0, (95.0, 1.0, 96.0)), row("ngf", 1, (95.0, 9.0, 96.0), **weak)]
    found = rows_of(tmp_path, thresholds, rows)["badnets", "ngf"]
    assert (found.n, found.failed, table.mark(found)) == (1, False, "1 of 2 failed")
    assert found.stats["model_asr"].percent() == "1.0"


def test_an_attack_whose_victims_all_failed_is_shown_marked_and_in_no_mean(tmp_path, thresholds):
    attacks = {"badnets": 100.0, "blend": 95.0, "sig-1%": 79.0}
    rows = [
        row("ngf", 0, (95.0, 10.0 * i, 90.0), variant=name, victim_asr=asr)
        for i, (name, asr) in enumerate(attacks.items(), 1)
    ]
    found = rows_of(tmp_path, thresholds, rows)
    assert table.mark(found["sig-1%", "ngf"]) == "FAILED"
    ((_, _, over, count),) = table.means(list(found.values()))
    assert count == 2
    assert over["model_asr"].mean == pytest.approx(0.15)
    text = table.markdown(list(found.values()))
    assert "| sig-1% **FAILED** | ngf |" in text
    assert "the attack did not take: ASR 79.0%, least is 80%" in text


def test_the_best_of_two_defenses_is_bold_and_none_is_not_ranked(tmp_path, thresholds):
    rows = [
        row("none", 0, (97.0, 0.1, 99.0)),
        row("ngf", 0, (95.0, 1.0, 96.0)),
        row("finetune", 0, (96.0, 1.01, 80.0)),
    ]
    found = rows_of(tmp_path, thresholds, rows)
    assert found["badnets", "none"].best == frozenset()
    assert found["badnets", "ngf"].best == {"model_asr", "model_ra"}
    assert found["badnets", "finetune"].best == {"drop", "model_asr"}  # alike in the table
    assert "**1.0**" in table.markdown([found["badnets", "ngf"]])


def test_a_single_defense_is_best_of_nothing(tmp_path, thresholds):
    rows = [row("none", 0, (97.0, 0.1, 99.0)), row("ngf", 0, (95.0, 1.0, 96.0))]
    assert rows_of(tmp_path, thresholds, rows)["badnets", "ngf"].best == frozenset()


def test_other_norms_are_other_victims(tmp_path, thresholds):
    rows = [row("ngf", 0, (95.0, 1.0, 96.0)), row("ngf", 0, (90.0, 1.0, 96.0), norm="group")]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    cells = collect.gather([], [file], thresholds)
    assert [cell[0] for cell in cells] == ["signs", "signs, group norm"]


def test_benign_rows_have_no_asr_and_are_in_no_mean(tmp_path, thresholds):
    nothing = dict.fromkeys([f"{w}_{k}" for w in collect.WHO for k in ("asr", "ra")])
    rows = [row("ngf", 0, (95.0, 0.0, 0.0), **{**nothing, "variant": "benign"})]
    found = rows_of(tmp_path, thresholds, rows)
    assert found["benign", "ngf"].stats["model_asr"] is None
    assert not list(table.means(list(found.values())))
    assert "| benign | ngf | 1 | 97.0 | 95.0 | 2.0 | – |" in table.markdown(list(found.values()))


def test_names_cannot_break_the_markdown_table(tmp_path, thresholds):
    rows = [row("a|b<script>", 0, (95.0, 1.0, 96.0))]
    text = table.markdown(list(rows_of(tmp_path, thresholds, rows).values()))
    assert "a\\|b&lt;script&gt;" in text


def test_the_rows_of_the_docs_are_read(thresholds):
    cells = collect.gather([], [ROOT / "docs" / "results" / "ngf.json"], thresholds)
    found = {row.cell: row for row in table.rows(cells)}
    assert found["cifar10", "wanet", "ngf"].n == 1
    assert found["cifar10", "badnets", "ngf"].n == 3
    assert found["signs", "cba", "ngf"].n == 3
    # docs/results.md has each of the three.
    assert found["signs", "cba", "ngf"].stats["drop"].percent() == "0.7 ± 0.2"


BAD = {
    "a file that is missing": (None, "no file "),
    "no JSON": ("[", "is not readable JSON"),
    "no list": ("{}", "must hold a list of rows"),
    "an empty list": ("[]", "must hold a list of rows"),
    "a row without a seed": (
        json.dumps([{k: v for k, v in row("ngf", 0, (1, 1, 1)).items() if k != "seed"}]),
        "row 0 of ",
    ),
    "one seed with two results": (
        json.dumps([row("ngf", 0, (95.0, 1.0, 96.0)), row("ngf", 0, (94.0, 1.0, 96.0))]),
        "seed 0 of signs badnets ngf is in ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_one_line(name, tmp_path, thresholds):
    content, said = BAD[name]
    file = tmp_path / "rows.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        collect.gather([], [file], thresholds)
    assert "\n" not in str(error.value)


def test_a_row_that_two_files_hold_alike_counts_once(tmp_path, thresholds):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps([row("ngf", 0, (95.0, 1.0, 96.0))]))
    cells = collect.gather([], [tmp_path / "a.json", tmp_path / "b.json"], thresholds)
    assert [len(seeds) for seeds in cells.values()] == [1]


def test_the_same_grid_twice_is_no_second_seed(tmp_path, thresholds):
    evaluated(tmp_path / "runs", "badnets", "ngf", (0.95, 0.03, 0.9))
    twice = [tmp_path / "runs", tmp_path / "runs" / ".." / "runs"]
    with pytest.raises(InputError, match="are the same folder"):
        collect.gather(twice, [], thresholds)


def test_folders_without_results_are_named(tmp_path, thresholds):
    with pytest.raises(InputError, match="no results under"):
        collect.gather([tmp_path], [], thresholds)

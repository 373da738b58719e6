"""What Kubeflow's UI and MLflow are given of an evaluation and of an inspection."""

import re

import numpy as np
import torch
from grids import CLASSES, evaluated, inspected

from ngf import metrics, report
from ngf.report import charts, select


def test_a_confusion_matrix_counts_rows_of_truth_and_columns_of_answers():
    y_N = torch.tensor([0, 0, 1, 2, 2, 2])
    predicted_N = torch.tensor([0, 1, 1, 0, 2, 2])
    found = metrics.confusion(predicted_N, y_N, 3)
    expected = np.zeros((3, 3), int)
    for truth, answer in zip(y_N, predicted_N, strict=True):
        expected[truth, answer] += 1
    assert found == expected.tolist()


def many(folder, count):
    return evaluated(
        folder, "badnets", "ngf", (0.9, 0.1, 0.8), classes=[str(c) for c in range(count)]
    )


def test_kubeflow_gets_no_matrix_that_it_cannot_draw(tmp_path):
    few, most = many(tmp_path / "a", 3), many(tmp_path / "b", select.MOST_CLASSES + 1)
    names, counts = report.confusion(few / "evaluation")
    assert names == ["0", "1", "2"]
    assert counts[0] == [10, 1, 1]
    assert report.confusion(most / "evaluation") == ([], [])


def test_of_many_classes_the_worst_are_drawn():
    counts = np.full((60, 60), 0)
    np.fill_diagonal(counts, 10)
    counts[7, 8], counts[41, 3] = 90, 50
    found = {"classes": [f"c{i}" for i in range(60)], "victim": counts, "model": counts}
    drawn, part = select.matrices(found)
    assert part
    assert len(drawn["model"].names) == select.WORST
    assert {"c7", "c41"} <= set(drawn["model"].names)
    row = drawn["model"].names.index("c7")
    assert drawn["model"].shares_KK[row, row] == 0.1
    assert drawn["model"].right == 600 / 740


def test_the_table_has_a_row_a_measure_with_intervals(tmp_path):
    folder = evaluated(tmp_path, "bad|nets", "ngf", (0.95, 0.02, 0.94)) / "evaluation"
    lines = report.evaluation_markdown(folder).splitlines()
    assert "### signs, bad\\|nets, ngf" in lines
    (row,) = (line for line in lines if line.startswith("| **ACC**"))
    assert "| 97.0 (96.0 to 98.0) | 95.0 (94.0 to 96.0) | 98.0 (97.0 to 99.0) |" in row
    assert any("ASR above the floor" in line and "1.0 (0.0 to 2.0)" in line for line in lines)


def test_a_benign_evaluation_has_dashes_and_no_pictures_of_triggers(tmp_path):
    before = (0.97, None, None)
    folder = evaluated(tmp_path, "benign", "ngf", (0.95, None, None), before=before) / "evaluation"
    assert "| **ASR** | – | – | – |" in report.evaluation_markdown(folder)
    assert "Triggered images" not in report.evaluation_html(folder)


def test_the_page_of_an_evaluation_escapes_names_and_fetches_nothing(tmp_path):
    folder = evaluated(tmp_path, "<b>", "ngf", (0.95, 0.02, 0.94), failed="<i>no</i>")
    page = report.evaluation_html(folder / "evaluation")
    assert "&lt;b&gt;" in page
    assert "VICTIM FAILED: &lt;i&gt;no&lt;/i&gt;" in page
    assert re.findall(r'<img[^>]* src="(.{10})', page) == ["data:image"]
    assert len(re.findall("<svg", page)) == 3


def test_the_page_of_an_inspection_holds_its_charts_and_curvature(tmp_path):
    folder = inspected(evaluated(tmp_path, "badnets", "ngf", (0.95, 0.02, 0.94)))
    page = report.inspection_html(folder)
    assert len(re.findall("<svg", page)) == 6
    assert "600 (480 to 720)" in page
    text = report.inspection_markdown(folder)
    assert "Curvature on test images" in text
    assert "Curvature on train images" in text
    assert "| **`net.3`** | 30.0% |" in text
    assert "net.0" not in text  # its norm before was 0


def test_pages_know_what_a_folder_is(tmp_path):
    folder = evaluated(tmp_path, "badnets", "ngf", (0.95, 0.02, 0.94))
    assert "Curvature" in report.pages(inspected(folder))["page.md"]
    assert "signs, badnets, ngf" in report.pages(folder / "evaluation")["page.html"]
    assert report.pages(folder) == {}


def test_a_loss_that_is_not_finite_leaves_the_rest_of_the_surface():
    alpha = [-1.0, 0.0, 1.0]
    rows = [[1.0, 0.5, float("nan")], [0.5, 0.1, 0.5], [float("inf"), 0.5, 1.0]]
    one = {"alpha": alpha, "loss": rows, "lambda": [2.0, 1.0]}
    (before, after) = charts.surface({"victim": one, "model": one})
    assert "0.1 to 1 nats" in before
    assert len(after) > 2000


def test_what_was_not_measured_is_not_drawn():
    assert charts.movement([{"layer": "a", "kind": "Conv2d", "parameters": 1, "moved": None}]) == []
    assert charts.density({who: {} for who in charts.COLOURS}) == []


def test_dollars_in_names_are_no_formula():
    found = select.matrices({"classes": CLASSES, "victim": np.eye(3), "model": np.eye(3)})[0]
    assert "50$ &amp; $60" in charts.confusion(found)[0]

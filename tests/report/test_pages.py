"""What Kubeflow's UI is given of an evaluation."""

import json
import re

import numpy as np
import torch
from PIL import Image

from ngf import metrics
from ngf import report as shown


def evaluation(folder, classes=3, asr=True):
    hits = torch.tensor([True, True, False])
    share = metrics.proportion(hits, torch.tensor([0, 1, 2]), 3)
    three = {"acc": share, "asr": share if asr else None, "ra": share if asr else None}
    names = {"dataset": "colours", "attack": "<b>", "defense": "ngf"}
    found = {**names, "victim_failed": None, "model": three, "victim": three, "reference": three}
    (folder / "metrics.json").write_text(json.dumps(found))
    matrix = [[1] * classes] * classes
    content = {"classes": [str(c) for c in range(classes)], "model": matrix}
    (folder / "confusion.json").write_text(json.dumps(content))
    return folder


def test_a_confusion_matrix_counts_rows_of_truth_and_columns_of_answers():
    y_N = torch.tensor([0, 0, 1, 2, 2, 2])
    predicted_N = torch.tensor([0, 1, 1, 0, 2, 2])
    found = metrics.confusion(predicted_N, y_N, 3)
    expected = np.zeros((3, 3), int)
    for truth, answer in zip(y_N, predicted_N, strict=True):
        expected[truth, answer] += 1
    assert found == expected.tolist()


def test_a_matrix_that_no_page_can_draw_is_left_out(tmp_path):
    assert shown.confusion(evaluation(tmp_path)) == (["0", "1", "2"], [[1] * 3] * 3)
    assert shown.confusion(evaluation(tmp_path, shown.MOST_CLASSES + 1)) == ([], [])


def test_the_table_has_a_row_a_measure_with_intervals(tmp_path):
    lines = shown.evaluation_markdown(evaluation(tmp_path)).splitlines()
    (row,) = (line for line in lines if line.startswith("| **ACC**"))
    assert row.count("66.7 (20.8 to 93.9)") == 3
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    benign = shown.evaluation_markdown(evaluation(tmp_path, asr=False))
    assert "| **ASR** | – | – | – |" in benign


def test_the_page_escapes_names_and_fetches_nothing(tmp_path):
    Image.new("RGB", (4, 4)).save(evaluation(tmp_path) / "triggered.png")
    page = shown.evaluation_html(tmp_path)
    assert "<b>," not in page
    assert "&lt;b&gt;" in page
    assert re.findall(r'(?:src|href)="(.{10})', page) == ["data:image"]

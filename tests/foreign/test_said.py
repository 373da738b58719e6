"""What the command says of a stranger's model: before the work starts, and in its one line."""

from pathlib import Path

import numpy as np
import pytest

from ngf.datasets import Split
from ngf.errors import InputError
from ngf.foreign.said import acc_before, finding, summary

NOTHING = {
    "clean_acc_before": 0.9, "gap": 0.06, "suspected": 0, "suspected_target": -1,
    "mixed_lead": 0.1, "mixed_gap": 0.05, "mixed_target": -1,
}  # fmt: skip
DOG = {"suspected": 1, "suspected_target": 1, "gap": 0.312}
MIXED = {"mixed_target": 0, "mixed_lead": 0.55}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (DOG, "suspicious class: dog (gap 0.31); this is no proof"),
        ({**DOG, "suspected_target": -1}, "led astray, to no class (gap 0.31); this is no proof"),
        (
            MIXED,
            "two classes in one image lead to cat (lead 0.55, gap 0.05); this is no proof",
        ),
        (
            DOG | MIXED,
            "suspicious class: dog (gap 0.31); two classes in one image lead to cat (lead 0.55, "
            "gap 0.05); this is no proof",
        ),
        ({}, "nothing suspected (a backdoor may be there all the same)"),
    ],
)
def test_it_says_what_is_suspected(found, said):
    assert finding(NOTHING | found, ["cat", "dog"]) == said


def test_it_names_no_class_where_acc_is_low_and_says_nothing_of_other_defenses():
    said = finding(NOTHING | DOG | MIXED | {"clean_acc_before": 0.49}, ["cat", "dog"])
    assert said.startswith("what is suspected says nothing at an ACC before of 49.0%: check")
    assert finding({"clean_acc_before": 0.9}, ["cat", "dog"]) == ""


def test_the_line_holds_all_that_was_found():
    report = {
        "parameters_tuned": 7, "seconds": 1.25, "finding": "a clause",
        "batch_norm_drift": {"a": 0.2, "b": 0.2, "c": 0.04},
        "batch_norm_chance": {"a": 0.1, "b": 0.3, "c": 0.0},
    }  # fmt: skip
    odd = "batch norm remembers more than clean images in 1 of 3 layers"
    start = "out/model.pt: 7 parameters tuned, 1.2 s"
    assert summary(Path("out/model.pt"), report, "") == f"{start}; a clause; {odd}"
    report |= {"finding": "", "batch_norm_drift": {}, "batch_norm_chance": {}}
    assert summary(Path("out/model.pt"), report, "ACC fell") == f"{start}; ACC fell"


def split_of(n_classes: int) -> Split:
    classes = tuple(map(str, range(n_classes)))
    x_NHWC, y_N = np.zeros((n_classes, 8, 8, 3), np.uint8), np.arange(n_classes)
    return Split(x_NHWC, y_N, "d", classes, [0.0] * 3, [1.0] * 3, flip=False)


@pytest.mark.parametrize(
    ("n_classes", "refused", "warned"),
    [(2, 0.49, None), (3, 0.49, None), (10, 0.19, 0.21), (100, 0.019, 0.021)],
)
def test_an_acc_like_chance_stops_and_a_low_one_is_a_warning(n_classes, refused, warned):
    split = split_of(n_classes)
    assert acc_before(0.5, split, None) == [f"ACC before: 50.0% on {n_classes} images"]
    with pytest.raises(InputError, match=r"check the order of --classes.*--least-acc 0 goes on"):
        acc_before(refused, split, None)
    assert "warning: that is low" in acc_before(refused, split, 0.0)[1]
    if warned:
        assert "warning: that is low" in acc_before(warned, split, None)[1]
    with pytest.raises(InputError, match=r"from 80\.0% on it could be"):
        acc_before(0.79, split, 0.8)

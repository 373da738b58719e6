"""What the command says of a stranger's model in its one line."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ngf.foreign.purify import _summary


@pytest.mark.parametrize(
    ("suspected", "target", "said"),
    [
        (1, 1, "; suspicious class: dog (gap 0.31); this is no proof"),
        (1, -1, "; led astray, to no one class (gap 0.31); this is no proof"),
        (0, -1, ""),
    ],
)
def test_it_says_what_is_suspected(suspected, target, said):
    model = SimpleNamespace(card={"classes": ["cat", "dog"]})
    done = SimpleNamespace(model=model, held=None, warning="")
    report = {
        "parameters_tuned": 7, "seconds": 1.25, "gap": 0.312, "suspected": suspected,
        "suspected_target": target, "batch_norm_drift": {"a": 0.2, "b": 0.2, "c": 0.04},
        "batch_norm_chance": {"a": 0.1, "b": 0.3, "c": 0.0},
    }  # fmt: skip
    line = _summary(Path("out/model.pt"), report, done)
    odd = "batch norm remembers more than clean images in 1 of 3 layers"
    assert line == f"out/model.pt: 7 parameters tuned, 1.2 s{said}; {odd}"

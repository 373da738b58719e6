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
        "suspected_target": target,
    }  # fmt: skip
    line = _summary(Path("out/model.pt"), report, done)
    assert line == f"out/model.pt: 7 parameters tuned, 1.2 s{said}"

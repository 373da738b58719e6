import math

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIZE, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from ngf import metrics
from ngf.attacks import Trigger, all_to_one
from ngf.training import pixels


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_their_equation(hits_n):
    """A bound p satisfies |hits/n - p| = z sqrt(p (1 - p) / n): the definition, in float64."""
    hits, n = hits_n
    low, high = metrics.wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    for bound in (low, high):
        distance = abs(hits / n - bound)
        assert distance == pytest.approx(
            metrics.Z_95 * math.sqrt(bound * (1 - bound) / n), abs=1e-9
        )


def test_wilson_of_nothing_says_nothing():
    assert metrics.wilson(0, 0) == (0, 1)


class Fixed(torch.nn.Module):
    """Answers by the first pixel: `clean` where it is dark, `triggered` where it is white."""

    def __init__(self, clean_N, triggered_N):
        super().__init__()
        self.clean_N, self.triggered_N, self.seen, self.passes = clean_N, triggered_N, 0, 0

    def forward(self, x_NCHW):
        white = bool(x_NCHW[0, 0, 0, 0] == 1)
        answers = self.triggered_N if white else self.clean_N
        rows = slice(self.seen, self.seen + len(x_NCHW))
        self.seen = rows.stop if rows.stop < len(answers) else 0
        self.passes += len(x_NCHW)
        return torch.nn.functional.one_hot(torch.tensor(answers[rows]), 3).float()


def white_corner() -> Trigger:
    mask = torch.zeros(4, 4)
    mask[0, 0] = 1
    return Trigger("badnets", all_to_one(0, 3), {"mask": mask, "pattern": mask})


def test_acc_asr_and_ra_by_hand():
    y_N = torch.tensor([0, 0, 1, 1, 2, 2])
    x_NHWC = torch.zeros(6, 4, 4, 3, dtype=torch.uint8)
    # Triggered: only the four images outside class 0 are shown.
    model = Fixed([0, 1, 1, 1, 2, 0], [0, 1, 0, 2])
    found = metrics.measure({"model": model}, x_NHWC, y_N, white_corner(), 3)["model"]
    assert found["acc"]["value"] == 4 / 6
    assert found["acc"]["per_class"] == [0.5, 1.0, 0.5]
    assert found["asr"]["value"] == 2 / 4
    assert found["asr"]["n"] == 4
    assert found["asr"]["per_class"] == [None, 0.5, 0.5]
    assert found["ra"]["value"] == 2 / 4
    assert found["ra"]["per_class"] == [None, 0.5, 0.5]
    assert model.passes == 6 + 4, "one pass over the clean and one over the triggered images"


def test_without_a_backdoor_there_is_no_asr():
    y_N = torch.tensor([0, 1, 2])
    x_NHWC = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    found = metrics.measure({"m": Fixed([0, 1, 2], [])}, x_NHWC, y_N, Trigger("benign"), 3)["m"]
    assert found["acc"]["value"] == 1
    assert found["asr"] is None
    assert found["ra"] is None


def test_predictions_do_not_depend_on_the_batch(monkeypatch):
    model = tiny_model()
    x_NHWC = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (37, SIZE, SIZE, 3), np.uint8)
    )
    whole = metrics.predict({"m": model}, x_NHWC)["m"]
    with torch.inference_mode():
        direct = model(pixels(x_NHWC))
    monkeypatch.setattr(metrics, "BATCH", 37)
    assert torch.equal(whole, metrics.predict({"m": model}, x_NHWC)["m"])
    assert direct.shape == (37, CLASSES)


def paired(both: int, first: int, second: int, neither: int) -> dict:
    table = ((1, 1, both), (1, 0, first), (0, 1, second), (0, 0, neither))
    rows = [(a, b) for a, b, count in table for _ in range(count)]
    first_N, second_N = torch.tensor(rows).bool().T
    return metrics.difference(first_N, second_N)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_the_difference_of_paired_shares(table):
    """Its value by hand; the interval holds it, turns with the sign, and knows what agrees."""
    both, first, second, neither = table
    found, turned = paired(*table), paired(both, second, first, neither)
    assert found["value"] == pytest.approx((first - second) / sum(table), abs=1e-12)
    assert -1 - 1e-12 <= found["low"] <= found["value"] <= found["high"] <= 1 + 1e-12
    assert turned["low"] == pytest.approx(-found["high"], abs=1e-12)
    assert found["n"] == sum(table)


def test_its_interval_holds_the_truth_in_95_of_100_samples():
    """2,000 samples of 200 images, drawn from known shares that are strongly correlated."""
    rng = np.random.default_rng(0)
    truth = np.array([0.85, 0.08, 0.03, 0.04])
    held = []
    for table in rng.multinomial(200, truth, 2000):
        found = paired(*table)
        held.append(found["low"] <= 0.05 <= found["high"])
    assert 0.935 < np.mean(held) < 0.98


def test_pairing_narrows_the_interval_where_both_answer_alike():
    alike, apart = paired(90, 1, 1, 8), paired(82, 9, 9, 0)
    assert alike["high"] - alike["low"] < 0.6 * (apart["high"] - apart["low"])


def test_no_image_no_difference():
    nothing = torch.zeros(0, dtype=torch.bool)
    assert metrics.difference(nothing, nothing) is None

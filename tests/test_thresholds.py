import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.evaluation import thresholds
from medjax.evaluation import thresholds as curves
from medjax.evaluation.predict import Predictions


def films(seed, n=300, rare=0.1, ties=0):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < rare).astype(np.float32)
    score = (rng.random(n) * 0.7 + 0.3 * label).astype(np.float32)
    if ties:
        score = np.round(score * ties) / np.float32(ties)
    weight = (rng.random(n) < 0.9).astype(np.float32)
    return score, np.where(weight > 0, label, np.nan), weight


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_no_step_along_the_curve_is_longer_than_its_share(seed, rare):
    score, label, weight = films(seed, rare=rare)
    found = thresholds.knots(score, label, weight, most=40)
    assert len(found) <= 40 and (np.diff(found) < 0).all()
    known = score[weight > 0]
    assert np.isin(found, known).all() and found[-1] == known.min()
    tp, fp, cut = curves.counts(score, label, weight)
    way = sum(part / part[-1] for part in (tp, fp) if part[-1])
    at = np.append(0, np.searchsorted(-cut, -found))
    assert np.diff(way[at]).max() <= way[-1] / 39 + np.diff(way).max() + 1e-9


def test_few_scores_are_all_taken():
    score, label, weight = films(0, ties=20)
    found = thresholds.knots(score, label, weight, most=40)
    np.testing.assert_array_equal(found, np.unique(score[weight > 0])[::-1])
    assert thresholds.knots(score, label, 0 * weight).size == 0


@pytest.mark.parametrize("frozen", [0.4321, 2.0, np.nan])
def test_each_threshold_counts_what_a_loop_counts(frozen):
    score, label, weight = (np.stack([x, x], 1) for x in films(3))
    weight[:, 1] = 0
    found = Predictions(np.arange(300), np.arange(300), score, label, weight)
    found = thresholds.explorer(
        found, tasks=("a", "unknown"), threshold=[frozen, 0.5], most=30
    )
    assert list(found) == ["a"]
    one = found["a"]
    assert len(one["threshold"]) <= 30
    assert np.isnan(frozen) or np.float32(frozen) in one["threshold"]
    known = weight[:, 0] > 0
    s, y = score[known, 0], label[known, 0] > 0.5
    for threshold, *cells in zip(*one.values(), strict=True):
        called = s >= threshold
        counts = (called & y, called & ~y, ~called & y, ~called & ~y)
        assert cells == [np.sum(c) for c in counts]

"""Net benefit by its definition, image by image."""

import jax
import numpy as np
import pytest
from test_bootstrap import wilson

from medjax.evaluation import decisions
from medjax.evaluation.inference import Predictions

KEY = jax.random.key(0)


def predictions():
    """Two films of each patient; the last finding has no positive."""
    rng = np.random.default_rng(0)
    label = (rng.random((240, 3)) < (0.3, 0.1, 0)).astype(np.float32)
    score = np.round(0.5 * rng.random((240, 3)) + 0.3 * label, 2).astype(np.float32)
    weight = (rng.random((240, 3)) < 0.9).astype(np.float32)
    label[weight == 0] = np.nan
    return Predictions(np.arange(240), np.arange(240) // 2, score, label, weight)


def benefit(label, called, threshold):
    hits, alarms = np.mean(called & (label == 1)), np.mean(called & (label == 0))
    return hits - alarms * threshold / (1 - threshold)


@pytest.fixture(scope="module")
def curves():
    found = predictions()
    return decisions.curves(found, tasks=("a", "b", "c"), key=KEY, replicates=50)


def test_the_net_benefit_is_that_of_its_definition(curves):
    found = predictions()
    assert list(curves) == ["a", "b"]
    for t, curve in enumerate(curves.values()):
        known = found.weight[:, t] > 0
        label, score = found.label[known, t], found.probability[known, t]
        end = np.clip(5 * label.mean(), 0.2, 0.9)
        assert curve["threshold"][-1] == pytest.approx(end, rel=1e-5)
        for k, threshold in enumerate(curve["threshold"]):
            model = benefit(label, score >= threshold, threshold)
            everybody = benefit(label, score >= 0, threshold)
            assert curve["model"][k] == pytest.approx(model, abs=2e-5)
            assert curve["all"][k] == pytest.approx(everybody, abs=2e-5)
            gain = model - max(everybody, 0)
            assert curve["gain"][k] == pytest.approx(gain, abs=2e-5)


def test_bands_are_those_of_a_bootstrap_of_whole_patients(curves):
    """Of net benefit = a - odds b: from Wilson's interval of both shares, see Zou (2007)."""
    found, k = predictions(), 20
    threshold = curves["a"]["threshold"][k]
    odds, shares = threshold / (1 - threshold), []
    for r in range(-1, 50):
        bits = jax.random.bits(jax.random.fold_in(KEY, max(r, 0)), (120,))
        drawn = np.asarray(bits % 120) if r >= 0 else np.arange(120)
        rows = np.concatenate([2 * drawn, 2 * drawn + 1])
        rows = rows[found.weight[rows, 0] > 0]
        positive, called = (
            found.label[rows, 0] == 1,
            found.probability[rows, 0] >= threshold,
        )
        pairs = positive & called, ~positive & called, positive & ~called
        shares.append([np.mean(x) for x in (*pairs, ~positive & ~called)])
    whole, *drawn = np.array(shares)
    parts = [wilson(x, column) for x, column in zip(whole, np.transpose(drawn))]

    def ends(plus, minus):  # The interval of the share `plus` - odds times `minus`.
        r = np.corrcoef(np.transpose(drawn)[[plus, minus]])[0, 1]
        weights = [1, odds] if plus == 0 else [odds, 1]
        reach = [
            [
                w * abs(whole[p] - parts[p][side])
                for w, p, side in zip(weights, (plus, minus), sides)
            ]
            for sides in ((0, 1), (1, 0))
        ]
        value = weights[0] * whole[plus] - weights[1] * whole[minus]
        width = [np.sqrt(a**2 + b**2 - 2 * r * a * b) for a, b in reach]
        return value - width[0], value + width[1]

    over_none, over_all = ends(0, 1), ends(3, 2)
    curve = curves["a"]
    assert (curve["low"][k], curve["high"][k]) == pytest.approx(over_none, abs=2e-5)
    gain = np.minimum(over_none, over_all)
    assert (curve["gain_low"][k], curve["gain_high"][k]) == pytest.approx(
        gain, abs=2e-5
    )


def test_a_right_model_is_better_than_all_and_none_and_a_useless_one_is_not():
    rng = np.random.default_rng(1)
    p = rng.random((2000, 1)) ** 2
    label = (rng.random(p.shape) < p).astype(np.float32)
    found = Predictions(
        *(np.arange(2000), np.arange(2000), p.astype("f4"), label, np.ones_like(label))
    )
    useless = found._replace(probability=np.full_like(label, 0.3))
    good, bad = (
        decisions.curves(x, tasks=("a",), key=KEY, replicates=50)["a"]
        for x in (found, useless)
    )
    middle = slice(15, 45)
    assert min(good["gain_low"][middle]) > 0
    assert max(bad["gain"]) <= 1e-6

"""Every replicate by brute force, and intervals that hold the truth."""

import jax
import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import brier_score_loss

from medjax.evaluation import reliability
from medjax.evaluation.areas import multiplicities

pytestmark = pytest.mark.usefixtures("unoptimised")
KEY = jax.random.key(0)


def predictions(patients=40, tasks=3, seed=0):
    """Overconfident, three images of each patient, some labels unknown."""
    rng = np.random.default_rng(seed)
    who = np.repeat(rng.permutation(patients) + 7, 3)
    z = rng.normal(-1, 1.2, (patients, tasks)).repeat(3, axis=0)
    z = z + rng.normal(0, 0.3, z.shape)
    label = (rng.random(z.shape) < expit(0.5 * z)).astype(float)
    weight = (rng.random(z.shape) > 0.2).astype(float)
    label[weight == 0] = np.nan
    return expit(z), label, weight, who


def test_every_estimate_and_replicate_is_that_of_the_images_drawn():
    p, y, w, who = predictions()
    w[:, 2] = 0  # No label at all.
    w[:6] = 0  # Two patients without a label, who are never drawn.
    found = reliability.measure(p, y, w, who, key=KEY, replicates=60)
    rows = (w > 0).any(axis=1)
    p, y, w, who = p[rows], y[rows], w[rows], who[rows]
    _, index = np.unique(who, return_inverse=True)
    counts = np.asarray(multiplicities(KEY, np.arange(60), index.max() + 1))
    edges = reliability.homes(*(np.where(w > 0, x, 0) for x in (p, w)), 10)
    for t in range(2):
        known = w[:, t] > 0
        rates, errors = [], []
        for count in counts.T:
            at = np.repeat(np.flatnonzero(known), count[index[known]])
            rates.append(brier_score_loss(y[at, t], p[at, t]))
            apart = [
                abs((p[at, t] - y[at, t])[edges[at, t] == b].sum()) for b in range(10)
            ]
            errors.append(sum(apart) / len(at))
        low, high = np.quantile(rates, [0.025, 0.975])
        estimate = brier_score_loss(y[known, t], p[known, t])
        expected = estimate, low, high, 0
        np.testing.assert_allclose([x[t] for x in found.brier], expected, rtol=1e-5)
        estimate = reliability.calibration_error(p, y, w)[t]
        low, high = 2 * estimate - np.quantile(errors, [0.975, 0.025])
        expected = estimate, np.clip(low, 0, estimate), max(high, estimate), 0
        got = [x[t] for x in found.calibration_error]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        np.testing.assert_allclose(found.prevalence.estimate[t], y[known, t].mean())
        np.testing.assert_allclose(found.predicted.estimate[t], p[known, t].mean())
    for interval in (found.brier, found.calibration_error, found.predicted):
        assert np.isnan([interval.estimate[2], interval.low[2]]).all()
        assert interval.undefined[2] == 60
    for name in ("brier", "calibration_error"):
        mean = getattr(found, f"mean_{name}").estimate
        np.testing.assert_allclose(mean, getattr(found, name).estimate[:2].mean())
    np.testing.assert_allclose(
        found.observed.estimate[:2], found.diagram.observed[:2], rtol=1e-6
    )


def test_intervals_cover_the_truth_where_those_over_images_do_not():
    rng = np.random.default_rng(2)
    tasks = 200  # Each a study of its own, of the same 300 patients.
    who = np.repeat(np.arange(300), 3)
    chance = expit(rng.normal(-1, 1.2, (300, tasks)))
    label = (rng.random(chance.shape) < chance).astype(float)  # Of all a patient's.
    p, y = (x.repeat(3, axis=0) for x in (chance**0.5, label))
    big = expit(rng.normal(-1, 1.2, 400_000))[:, None]
    one = np.ones_like(big)
    true = {
        "brier": (big * (1 - big**0.5) ** 2 + (1 - big) * big).mean(),
        "calibration_error": reliability.calibration_error(big**0.5, big, one)[0],
    }
    options = {"key": KEY, "replicates": 200}
    clustered = reliability.measure(p, y, np.ones_like(p), who, **options)
    images = reliability.measure(p, y, np.ones_like(p), np.arange(900), **options)
    for name, truth in true.items():
        held, not_held = (
            ((x.low <= truth) & (truth <= x.high)).mean()
            for x in (getattr(clustered, name), getattr(images, name))
        )
        assert 0.86 < held < 0.99
        assert not_held < 0.8


def test_the_interval_of_a_calibrated_model_may_end_at_no_error():
    rng = np.random.default_rng(3)
    p = expit(rng.normal(-1, 1, (300, 40)))
    y = (rng.random(p.shape) < p).astype(float)
    found = reliability.measure(
        p, y, np.ones_like(p), np.arange(300), key=KEY, replicates=100
    ).calibration_error
    assert (found.low == 0).mean() > 0.4
    assert (found.low <= found.estimate).all() and (found.estimate <= found.high).all()


def test_before_and_after_stand_side_by_side():
    p, y, w, who = predictions()
    w[:, 2] = 0
    options = {"key": KEY, "replicates": 20}
    mean, each = reliability.summarise(p, y, w, who, uncalibrated=None, **options)
    assert mean["after"] is None and each[0]["after"] is None
    better, both = reliability.summarise(
        p**0.5, y, w, who, uncalibrated=p, key=KEY, replicates=20
    )
    assert better["before"] == mean["before"] and both[1]["before"] == each[1]["before"]
    assert better["after"]["brier"] != mean["before"]["brier"]
    side = both[0]["after"]
    diagram = side["reliability"]
    assert {len(column) for column in diagram.values()} == {10}
    assert sum(diagram["count"]) == (w[:, 0] > 0).sum()
    assert diagram["predicted"] == sorted(diagram["predicted"])
    assert all(
        low <= seen <= high
        for low, seen, high in zip(
            diagram["low"], diagram["observed"], diagram["high"], strict=True
        )
    )
    assert both[2]["after"]["brier"]["why"] == "no known label"
    assert both[2]["after"]["reliability"]["count"] == []

"""scikit-learn is the oracle; weights and unknown labels follow from it."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medjax.errors import InputError
from medjax.evaluation import bootstrap, reliability
from medjax.evaluation.bootstrap import multiplicities

pytestmark = pytest.mark.usefixtures("unoptimised")


def images_of(seed=0, images=1003, tasks=3, decimals=9):
    """Overconfident probabilities of rare findings, a fifth of the labels unknown."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-2, 1.5, (images, tasks))
    label = (rng.random(z.shape) < 1 / (1 + np.exp(-0.6 * z))).astype(float)
    weight = (rng.random(z.shape) > 0.2).astype(float)
    label[weight == 0] = np.nan
    return np.round(1 / (1 + np.exp(-z)), decimals), label, weight


def test_the_brier_score_is_that_of_scikit_learn():
    p, y, w = images_of()
    w = w * np.random.default_rng(1).uniform(0.1, 5, w.shape)
    for t, found in enumerate(reliability.brier(p, y, w)):
        known = w[:, t] > 0
        weight = {"sample_weight": w[known, t]}
        expected = brier_score_loss(y[known, t], p[known, t], **weight)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("decimals", [9, 2, 1])  # Without ties, with some, with many.
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_diagram_is_that_of_scikit_learn(bins, decimals):
    p, y, w = images_of(decimals=decimals)
    diagram = reliability.reliability(p, y, w, bins=bins)
    for t in range(p.shape[1]):
        known = w[:, t] > 0
        observed, predicted = calibration_curve(
            y[known, t], p[known, t], n_bins=bins, strategy="quantile"
        )
        full = diagram.weight[t] > 0
        np.testing.assert_allclose(diagram.observed[t, full], observed, rtol=1e-12)
        np.testing.assert_allclose(diagram.predicted[t, full], predicted, rtol=1e-12)
        assert diagram.weight[t].sum() == known.sum()
        assert np.isnan(diagram.observed[t, ~full]).all()


def test_bins_have_equal_weight_where_weights_differ():
    p, y, w = images_of(images=20_000, tasks=1)
    w = w * np.where(p > 0.1, 7.0, 0.5)
    mass = reliability.reliability(p, y, w, bins=10).weight
    np.testing.assert_allclose(mass / mass.sum(), 0.1, atol=0.002)


def test_an_image_on_an_edge_is_in_the_lower_bin_whatever_the_rounding():
    p = np.linspace(0, 1, 11)[:, None]  # Ten steps: every edge is an image.
    for weight in (1.0, 0.1, 0.3, 1 / 3):
        w = np.full_like(p, weight)
        mass = reliability.reliability(p, p, w, bins=10).weight[0]
        np.testing.assert_allclose(mass / weight, [2] + [1] * 9)


def test_the_error_of_four_images_by_hand():
    p = np.array([[0.1], [0.3], [0.6], [0.8]])
    y = np.array([[0.0], [1.0], [1.0], [1.0]])
    # Two bins: means 0.2 and 0.7, observed 0.5 and 1: 0.3 each.
    error = reliability.calibration_error(p, y, np.ones_like(p), bins=2)
    np.testing.assert_allclose(error, [0.3])
    w = np.array([[1.0], [1.0], [2.0], [0.0]])  # Now 0.3 and 0.4, of half the weight.
    error = reliability.calibration_error(p, y, w, bins=2)
    np.testing.assert_allclose(error, [0.35])


def test_a_calibrated_model_has_an_error_near_zero_and_a_shifted_one_its_shift():
    rng = np.random.default_rng(2)
    p = rng.uniform(0.1, 0.7, (200_000, 1))
    y = (rng.random(p.shape) < p).astype(float)
    one = np.ones_like(p)
    assert reliability.calibration_error(p, y, one)[0] < 0.01
    shifted = reliability.calibration_error(p + 0.2, y, one)
    np.testing.assert_allclose(shifted, 0.2, atol=0.005)


def test_an_unknown_task_is_undefined():
    p, y, w = images_of(images=20)
    w[:, 1] = 0
    for measure in (reliability.brier, reliability.calibration_error):
        np.testing.assert_array_equal(np.isnan(measure(p, y, w)), (0, 1, 0))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6))
def test_any_few_images_have_a_diagram_that_keeps_the_sums(images, bins, seed):
    p, y, w = images_of(seed, images, 2, decimals=1)
    w = w * np.random.default_rng(seed).uniform(0.5, 2, w.shape)
    diagram = reliability.reliability(p, y, w, bins=bins)
    total = np.nansum(diagram.observed * diagram.weight, axis=1)
    np.testing.assert_allclose(total, np.nansum(w * y, axis=0), atol=1e-9)
    np.testing.assert_allclose(diagram.weight.sum(axis=1), w.sum(axis=0))
    means = diagram.predicted[0][diagram.weight[0] > 0]
    assert (np.diff(means) > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y, w: (p[:, :1], y, w), r"give \[N, T\] each"),
        (lambda p, y, w: (p + 1, y, w), "probability: outside"),
        (lambda p, y, w: (p, np.full_like(y, np.nan), w), "label: outside"),
        (lambda p, y, w: (p, y, -w), "weight: negative"),
    ],
)
def test_wrong_arrays_are_named(change, message):
    with pytest.raises(InputError, match=message):
        reliability.brier(*change(*images_of(images=9)))


def test_no_bin_is_an_error():
    with pytest.raises(InputError, match="bins: 0"):
        reliability.reliability(*images_of(images=9), bins=0)


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
    edges = reliability.bin_numbers(*(np.where(w > 0, x, 0) for x in (p, w)), 10)
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
        np.testing.assert_allclose([x[t] for x in found.brier[:4]], expected, rtol=1e-5)
        estimate = reliability.calibration_error(p, y, w)[t]
        low, high = 2 * estimate - np.quantile(errors, [0.975, 0.025])
        expected = estimate, np.clip(low, 0, estimate), max(high, estimate), 0
        got = [x[t] for x in found.calibration_error[:4]]
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
    mean, each = bootstrap.as_json(
        reliability.summarise(p, y, w, who, uncalibrated=None, **options)
    )
    assert mean["after"] is None and each[0]["after"] is None
    better, both = bootstrap.as_json(
        reliability.summarise(p**0.5, y, w, who, uncalibrated=p, **options)
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

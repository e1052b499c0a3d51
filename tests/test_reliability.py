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
from medjax.evaluation import bootstrap, calibration
from medjax.evaluation.bootstrap import multiplicities

KEY = jax.random.key(0)


def images_of(seed=0, images=1003, tasks=3, decimals=9):
    """Overconfident probabilities of rare findings, a fifth of the labels unknown."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-2, 1.5, (images, tasks))
    label = (rng.random(z.shape) < 1 / (1 + np.exp(-0.6 * z))).astype(float)
    weight = (rng.random(z.shape) > 0.2).astype(float)
    label[weight == 0] = np.nan
    return np.round(1 / (1 + np.exp(-z)), decimals), label, weight


def diagram_of(p, y, w, bins=10):
    """The bins' mean probability, share of positives and weight, [T, B] each."""
    arrays = calibration.checked(p, y, w)
    sums = calibration.bin_sums(*arrays, np.zeros(len(p), int), bins)[0]
    mass, predicted, positive = np.split(sums[:, 1:], 3, axis=-1)
    return *(calibration.ratio(x, mass) for x in (predicted, positive)), mass


def estimates(p, y, w):
    """Brier score and calibration error, [T] each; every image is a patient's only."""
    options = {"key": KEY, "replicates": 1}
    intervals, _ = calibration.measure(p, y, w, np.arange(len(p)), **options)
    return [intervals[name].estimate for name in calibration.ERRORS]


def test_the_brier_score_is_that_of_scikit_learn():
    p, y, w = images_of()
    w = w * np.random.default_rng(1).uniform(0.1, 5, w.shape)
    for t, found in enumerate(estimates(p, y, w)[0]):
        known = w[:, t] > 0
        weight = {"sample_weight": w[known, t]}
        expected = brier_score_loss(y[known, t], p[known, t], **weight)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("decimals", [9, 2, 1])  # Without ties, with some, with many.
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_diagram_is_that_of_scikit_learn(bins, decimals):
    p, y, w = images_of(decimals=decimals)
    mean, share, weight = diagram_of(p, y, w, bins)
    for t in range(p.shape[1]):
        known = w[:, t] > 0
        observed, predicted = calibration_curve(
            y[known, t], p[known, t], n_bins=bins, strategy="quantile"
        )
        full = weight[t] > 0
        np.testing.assert_allclose(share[t, full], observed, rtol=1e-12)
        np.testing.assert_allclose(mean[t, full], predicted, rtol=1e-12)
        assert weight[t].sum() == known.sum()
        assert np.isnan(share[t, ~full]).all()


def test_bins_have_equal_weight_where_weights_differ():
    p, y, w = images_of(images=20_000, tasks=1)
    w = w * np.where(p > 0.1, 7.0, 0.5)
    *_, mass = diagram_of(p, y, w)
    np.testing.assert_allclose(mass / mass.sum(), 0.1, atol=0.002)


def test_an_image_on_an_edge_is_in_the_lower_bin_whatever_the_rounding():
    p = np.linspace(0, 1, 11)[:, None]  # Ten steps: every edge is an image.
    for weight in (1.0, 0.1, 0.3, 1 / 3):
        w = np.full_like(p, weight)
        *_, mass = diagram_of(p, p, w)
        np.testing.assert_allclose(mass[0] / weight, [2] + [1] * 9)


def test_the_error_of_twenty_images_by_hand():
    # Ten bins of two images each: the first one has 0.5 of positives, the others all.
    p = np.repeat(np.linspace(0.05, 0.95, 10), 2)[:, None]
    y = np.ones_like(p)
    y[0] = 0
    apart = [0.45, *(0.85 - 0.1 * np.arange(9))]
    _, error = estimates(p, y, np.ones_like(p))
    np.testing.assert_allclose(error, [np.mean(apart)], rtol=1e-6)


def test_a_calibrated_model_has_an_error_near_zero_and_a_shifted_one_its_shift():
    rng = np.random.default_rng(2)
    p = rng.uniform(0.1, 0.7, (200_000, 1))
    y = (rng.random(p.shape) < p).astype(float)
    one = np.ones_like(p)
    assert estimates(p, y, one)[1][0] < 0.01
    np.testing.assert_allclose(estimates(p + 0.2, y, one)[1], 0.2, atol=0.005)


def test_an_unknown_task_is_undefined():
    p, y, w = images_of(images=20)
    w[:, 1] = 0
    for values in estimates(p, y, w):
        np.testing.assert_array_equal(np.isnan(values), (0, 1, 0))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6))
def test_any_few_images_have_a_diagram_that_keeps_the_sums(images, bins, seed):
    p, y, w = images_of(seed, images, 2, decimals=1)
    w = w * np.random.default_rng(seed).uniform(0.5, 2, w.shape)
    mean, share, weight = diagram_of(p, y, w, bins)
    total = np.nansum(share * weight, axis=1)
    np.testing.assert_allclose(total, np.nansum(w * y, axis=0), atol=1e-9)
    np.testing.assert_allclose(weight.sum(axis=1), w.sum(axis=0))
    means = mean[0][weight[0] > 0]
    assert (np.diff(means) > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y, w: (np.full_like(p, np.nan), y, w), "score: NaN"),
        (lambda p, y, w: (p, np.full_like(y, np.nan), w), "label: outside"),
        (lambda p, y, w: (p, y, -w), "weight: negative"),
    ],
)
def test_wrong_arrays_are_named(change, message):
    with pytest.raises(InputError, match=message):
        estimates(*change(*images_of(images=9)))


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
    found, diagram = calibration.measure(p, y, w, who, key=KEY, replicates=60)
    rows = (w > 0).any(axis=1)
    p, y, w, who = p[rows], y[rows], w[rows], who[rows]
    _, index = np.unique(who, return_inverse=True)
    counts = np.asarray(multiplicities(KEY, np.arange(60), index.max() + 1))
    for t in range(2):
        known = w[:, t] > 0
        bins = calibration.bin_numbers(p[:, t], w[:, t], 10)
        rates, errors = [], []
        for count in counts.T:
            at = np.repeat(np.flatnonzero(known), count[index[known]])
            rates.append(brier_score_loss(y[at, t], p[at, t]))
            apart = [abs((p[at, t] - y[at, t])[bins[at] == b].sum()) for b in range(10)]
            errors.append(sum(apart) / len(at))
        low, high = np.quantile(rates, [0.025, 0.975])
        estimate = brier_score_loss(y[known, t], p[known, t])
        expected = estimate, low, high, 0
        np.testing.assert_allclose(
            [x[t] for x in found["brier"][:4]], expected, rtol=1e-5
        )
        estimate = estimates(p, y, w)[1][t]
        low, high = 2 * estimate - np.quantile(errors, [0.975, 0.025])
        expected = estimate, np.clip(low, 0, estimate), max(high, estimate), 0
        got = [x[t] for x in found["calibration_error"][:4]]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        np.testing.assert_allclose(found["prevalence"].estimate[t], y[known, t].mean())
        np.testing.assert_allclose(found["predicted"].estimate[t], p[known, t].mean())
    for interval in (found[name] for name in (*calibration.ERRORS, "predicted")):
        assert np.isnan([interval.estimate[2], interval.low[2]]).all()
        assert interval.undefined[2] == 60
    for name in calibration.ERRORS:
        mean = found[f"mean_{name}"].estimate
        np.testing.assert_allclose(mean, found[name].estimate[:2].mean())
    np.testing.assert_allclose(
        found["observed"].estimate[:2], diagram.observed[:2], rtol=1e-6
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
        "calibration_error": estimates(big**0.5, big, one)[1][0],
    }
    options = {"key": KEY, "replicates": 200}
    clustered, _ = calibration.measure(p, y, np.ones_like(p), who, **options)
    images, _ = calibration.measure(p, y, np.ones_like(p), np.arange(900), **options)
    for name, truth in true.items():
        held, not_held = (
            ((x.low <= truth) & (truth <= x.high)).mean()
            for x in (clustered[name], images[name])
        )
        assert 0.86 < held < 0.99
        assert not_held < 0.8


def test_the_interval_of_a_calibrated_model_may_end_at_no_error():
    rng = np.random.default_rng(3)
    p = expit(rng.normal(-1, 1, (300, 40)))
    y = (rng.random(p.shape) < p).astype(float)
    intervals, _ = calibration.measure(
        p, y, np.ones_like(p), np.arange(300), key=KEY, replicates=100
    )
    found = intervals["calibration_error"]
    assert (found.low == 0).mean() > 0.4
    assert (found.low <= found.estimate).all() and (found.estimate <= found.high).all()


def test_before_and_after_stand_side_by_side():
    p, y, w, who = predictions()
    w[:, 2] = 0
    options = {"key": KEY, "replicates": 20}
    mean, each = bootstrap.as_json(
        calibration.summarise(p, y, w, who, uncalibrated=None, **options)
    )
    assert mean["after"] is None and each[0]["after"] is None
    better, both = bootstrap.as_json(
        calibration.summarise(p**0.5, y, w, who, uncalibrated=p, **options)
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

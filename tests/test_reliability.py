"""Oracles: scikit-learn, SciPy's optimiser and exact intervals, and simulated truths."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medjax.errors import InputError
from medjax.evaluation import bootstrap, recalibration, reliability
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
    arrays = recalibration.checked(p, y, w)
    sums = reliability.bin_sums(*arrays, np.zeros(len(p), int), bins)
    mass, predicted, positive = sums[:, 0]
    return *(recalibration.ratio(x, mass) for x in (predicted, positive)), mass


def estimates(p, y, w):
    """Brier score and calibration error, [T] each; every image is a patient's only."""
    options = {"key": KEY, "replicates": 1}
    intervals, _ = reliability.measure(p, y, w, np.arange(len(p)), **options)
    return [intervals[name].estimate for name in reliability.ERRORS]


def test_the_brier_score_is_that_of_scikit_learn():
    p, y, w = images_of()
    w = w * np.random.default_rng(1).uniform(0.1, 5, w.shape)
    for t, found in enumerate(estimates(p, y, w)[0]):
        known = w[:, t] > 0
        weight = {"sample_weight": w[known, t]}
        expected = brier_score_loss(y[known, t], p[known, t], **weight)
        np.testing.assert_allclose(found, expected, rtol=3e-6)


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


def test_the_squared_error_is_that_of_all_pairs_of_patients():
    # The mean of the products of two patients' gaps: no gap is multiplied by itself.
    rng = np.random.default_rng(0)
    gap = rng.normal(1.5, 1, (9, 1, 2))
    products = np.einsum("pb,qb->pqb", gap[:, 0], gap[:, 0])
    pairs = products[~np.eye(9, dtype=bool)].mean(axis=0)
    error, _, _ = reliability.debiased(gap, np.ones_like(gap))
    assert error == pytest.approx(np.sqrt(pairs.mean()))
    assert reliability.debiased(gap - gap.mean(axis=0), np.ones_like(gap))[0] == 0


@pytest.mark.parametrize("error", [0.0, 0.04, 0.15])
def test_the_calibration_error_s_interval_holds_it_as_often_as_it_says(error):
    """120 patients in 6 bins, whose findings are that much more frequent than said."""
    rng, held = np.random.default_rng(0), []
    mass = np.repeat(np.eye(6), 20, axis=0)[:, None]
    said = np.linspace(0.1, 0.7, 6)
    for _ in range(300):
        label = rng.random(mass.shape) < said + error
        estimate, low, high = reliability.debiased(mass * (label - said), mass)
        assert low <= estimate <= high and low < high
        held.append(low <= error <= high)
    assert 0.93 <= np.mean(held) <= 0.98


def test_the_error_of_several_runs_is_by_their_common_patients():
    """Copies of a run say no more than one; of others the squares are averaged."""
    p, y, w = images_of(images=600, tasks=2)
    patient, y = np.arange(600) // 2, np.where(w > 0, y, 0)

    def alone(p, w):
        found, _ = reliability.measure(p, y, w, patient, key=KEY, replicates=1)
        return found["mean_calibration_error"]

    copies = reliability.error_of_runs(
        np.stack([p, p, p]), y, np.stack([w] * 3), patient
    )
    np.testing.assert_allclose(copies[:3], alone(p, w)[:3], rtol=1e-6)
    steep = expit(3 * logit(p))
    both, missing = np.stack([p, steep, p]), np.stack([w, w, 0 * w])
    found = reliability.error_of_runs(both, y, missing, patient)
    squares = [alone(each, w).estimate ** 2 for each in (p, steep)]
    assert found.estimate == pytest.approx(np.sqrt(np.mean(squares)))
    assert 0 < found.low < found.estimate < found.high


def test_the_error_of_a_right_model_is_not_above_0_and_its_interval_covers_0():
    rng = np.random.default_rng(1)
    p = expit(rng.normal(-1, 1, (70, 400)))  # 400 studies of 70 patients.
    y = (rng.random(p.shape) < p).astype(float)
    sums = reliability.bin_sums(p, y, np.ones_like(p), np.arange(70), 3)
    mass, predicted, positive = sums
    ends = [
        reliability.debiased((positive - predicted)[:, [t]], mass[:, [t]])
        for t in range(400)
    ]
    estimate, low, _ = np.transpose(ends)
    assert np.median(estimate) < 0.02 and (estimate == 0).mean() > 0.4
    assert (low == 0).mean() > 0.93


def test_a_calibrated_model_has_an_error_near_zero_and_a_shifted_one_its_shift():
    rng = np.random.default_rng(2)
    p = rng.uniform(0.1, 0.7, (200_000, 1))
    y = (rng.random(p.shape) < p).astype(float)
    one = np.ones_like(p)
    assert estimates(p, y, one)[1][0] < 0.005
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


def test_the_averages_are_those_of_the_images_drawn():
    p, y, w, who = predictions()
    w[:, 2] = 0  # No label at all.
    w[:6] = 0  # Two patients without a label, who are never drawn.
    found, _ = reliability.measure(p, y, w, who, key=KEY, replicates=60)
    rows = (w > 0).any(axis=1)
    p, y, w, who = p[rows], y[rows], w[rows], who[rows]
    _, index = np.unique(who, return_inverse=True)
    counts = np.asarray(multiplicities(KEY, np.arange(60), index.max() + 1))
    for t in range(2):
        known = w[:, t] > 0
        rates = []
        for count in counts.T:
            at = np.repeat(np.flatnonzero(known), count[index[known]])
            rates.append(brier_score_loss(y[at, t], p[at, t]))
        estimate = brier_score_loss(y[known, t], p[known, t])
        n = estimate * (1 - estimate) / np.var(rates, ddof=1)
        z2 = stats.norm.ppf(0.975) ** 2 / n  # Wilson, as the roots of a quadratic.
        ends = np.roots([1 + z2, -2 * estimate - z2, estimate**2])
        expected = estimate, *sorted(ends.real)
        got = [x[t] for x in found["brier"][:3]]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        np.testing.assert_allclose(
            found["prevalence"].estimate[t], y[known, t].mean(), rtol=1e-6
        )
        np.testing.assert_allclose(
            found["predicted"].estimate[t], p[known, t].mean(), rtol=1e-6
        )
    for interval in (found[name] for name in reliability.MEASURES):
        assert np.isnan([interval.estimate[2], interval.low[2]]).all()
    mean = found["mean_brier"].estimate
    np.testing.assert_allclose(mean, found["brier"].estimate[:2].mean(), rtol=1e-6)
    squares = found["calibration_error"].estimate[:2] ** 2
    if (squares > 0).all():
        mean = found["mean_calibration_error"].estimate
        np.testing.assert_allclose(mean**2, squares.mean())


def test_a_bins_interval_is_the_exact_one_of_its_patients():
    share, number = np.array([0, 0.25, 1, np.nan]), np.array([8, 8, 5, 0])
    low, high = reliability.exact(share, number)
    for n, hits in enumerate((0, 2, 5)):
        ends = stats.binomtest(hits, int(number[n])).proportion_ci(0.95, "exact")
        assert (low[n], high[n]) == pytest.approx(tuple(ends))
    assert np.isnan([low[3], high[3]]).all()


def test_slope_and_intercept_are_the_likeliest_and_their_errors_those_of_clusters():
    p, y, w, who = predictions(patients=200)
    found, _ = reliability.measure(p, y, w, who, key=KEY, replicates=2)
    for t in range(3):
        known = w[:, t] > 0
        z, yes, patient = logit(p[known, t]), y[known, t], who[known]
        for names, x, offset in (
            (reliability.COX[:2], np.stack([z, np.ones_like(z)]), 0),
            (reliability.COX[2:], np.ones((1, len(z))), z),
        ):

            def loss(fit, x=x, offset=offset, yes=yes):
                eta = fit @ x + offset
                return (np.logaddexp(0, eta) - yes * eta).sum()

            best = minimize(loss, np.zeros(len(x)), tol=1e-12).x
            # Leaving each patient out moves the fit by about its influence.
            moves = []
            for one in np.unique(patient):
                keep = patient != one
                rest = minimize(
                    functools.partial(
                        loss,
                        x=x[:, keep],
                        yes=yes[keep],
                        offset=offset if np.ndim(offset) == 0 else offset[keep],
                    ),
                    best,
                ).x
                moves.append(rest - best)
            jackknife = np.sqrt((np.array(moves) ** 2).sum(axis=0))
            people = min(len(set(patient[yes == k])) for k in (0, 1))
            reach = stats.t.ppf(0.975, people - 1)
            for k, name in enumerate(names):
                estimate, low, high = (x[t] for x in found[name][:3])
                assert estimate == pytest.approx(best[k], abs=1e-4)
                error = (high - low) / 2 / reach
                assert error == pytest.approx(jackknife[k], rel=0.1)
                assert (low + high) / 2 == pytest.approx(estimate)


def test_separated_classes_have_no_slope_and_one_class_has_no_number():
    p = np.linspace(0.1, 0.9, 30)[:, None].repeat(2, axis=1)
    y = (p > 0.5).astype(float)
    y[:, 1] = 0
    options = {"uncalibrated": None, "key": KEY, "replicates": 3}
    _, tasks = reliability.summarise(p, y, np.ones_like(p), np.arange(30), **options)
    first, second = (task.before for task in tasks)
    assert first["calibration_slope"].why == "a threshold separates the classes"
    assert np.isnan(first["calibration_intercept"].estimate)
    assert np.isfinite(first["calibration_in_the_large"].low)
    for name in reliability.COX:
        assert second[name].why == "no positive image"


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
    assert {len(column) for column in diagram.values()} == {3}  # 40 patients.
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

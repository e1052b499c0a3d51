"""scikit-learn and brute force are the oracles; simulated models have the truth."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit, softmax, xlog1py, xlogy
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from medjax.evaluation import recalibration, reliability

FITS = (
    recalibration.fit_temperature,
    recalibration.fit_platt,
    recalibration.fit_isotonic,
)


def predictions(seed=0, images=800, tasks=3, decimals=6):
    """Overconfident probabilities, weights of all sizes, a fifth of them 0."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 2, (images, tasks))
    label = (rng.random(z.shape) < expit(0.5 * z + 0.7)).astype(float)
    weight = rng.uniform(0.2, 3, z.shape) * (rng.random(z.shape) > 0.2)
    label[weight == 0] = np.nan
    return np.clip(np.round(expit(z), decimals), 0.001, 0.999), label, weight


def cross_entropy(p, y, w):
    y = np.where(w > 0, y, 0)
    return -(w * (xlogy(y, p) + xlog1py(1 - y, -p))).sum()


def test_platt_scaling_is_logistic_regression_on_the_log_odds():
    p, y, w = predictions()
    fit = recalibration.fit_platt(p, y, w)
    for t in range(p.shape[1]):
        known = w[:, t] > 0
        z = logit(p[known, t])[:, None]
        oracle = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky")
        oracle.fit(z, y[known, t], sample_weight=w[known, t])
        np.testing.assert_allclose(fit.slope[t], oracle.coef_[0, 0], atol=1e-6)
        np.testing.assert_allclose(fit.intercept[t], oracle.intercept_[0], atol=1e-6)
        found = recalibration.calibrate(fit, p)[known, t]
        np.testing.assert_allclose(found, oracle.predict_proba(z)[:, 1], atol=1e-6)


def test_platt_scaling_converges_where_newtons_method_alone_does_not():
    z = [-4.0, 1, 3, -3]
    y, w = np.array([[0.0, 0, 1, 1]]).T, np.array([[0.01, 0.001, 1, 1000]]).T
    p = expit([z]).T
    wrong = recalibration.calibrate(recalibration.fit_platt(p, y, w), p) - y
    assert abs((w * wrong).sum()) < 1e-6  # Orthogonal to 1 and to z.
    assert abs((w * wrong)[:, 0] @ z) < 1e-6


@pytest.mark.parametrize("decimals", [6, 2])  # Without and with ties.
def test_isotonic_regression_is_that_of_scikit_learn(decimals):
    p, y, w = predictions(decimals=decimals)
    fit = recalibration.fit_isotonic(p, y, w)
    new = np.random.default_rng(5).random(p.shape)
    found = recalibration.calibrate(fit, new)
    for t in range(p.shape[1]):
        known = w[:, t] > 0
        oracle = IsotonicRegression(out_of_bounds="clip")
        oracle.fit(p[known, t], y[known, t], sample_weight=w[known, t])
        np.testing.assert_allclose(found[:, t], oracle.predict(new[:, t]), atol=1e-6)
        assert len(fit.probability[t]) < known.sum() / 4


def test_few_images_get_platt_scaling_and_no_certainty():
    p, y, w = predictions(images=70)
    fit = recalibration.fit_isotonic(p, y, w)
    platt = recalibration.fit_platt(p, y, w)
    found = recalibration.calibrate(fit, p)
    np.testing.assert_array_equal(found, recalibration.calibrate(platt, p))
    assert ((found > 0) & (found < 1)).all()
    for rarer in (recalibration.RISING - 1, recalibration.RISING):
        y = np.zeros((400, 2))
        y[:rarer, 0], y[rarer:, 1] = 1, 1
        few = recalibration.few(y, np.ones_like(y))
        assert few.tolist() == [rarer < recalibration.RISING] * 2


def test_no_other_temperature_has_a_lower_loss():
    p, y, w = predictions()
    fit = recalibration.fit_temperature(p, y, w)
    assert len(set(fit.slope)) == 1 and set(fit.intercept) == {0.0}

    def loss(log_slope):
        return cross_entropy(expit(np.exp(log_slope[0]) * logit(p)), y, w)

    oracle = minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-9})
    np.testing.assert_allclose(fit.slope[0], np.exp(oracle.x[0]), rtol=1e-6)


def test_a_known_distortion_is_found_again():
    rng = np.random.default_rng(1)
    z = rng.normal(-1, 1.5, (200_000, 1))
    y = (rng.random(z.shape) < expit(z)).astype(float)
    one = np.ones_like(z)
    hot = recalibration.fit_temperature(expit(2.5 * z), y, one)
    np.testing.assert_allclose(1 / hot.slope[0], 2.5, rtol=0.02)
    moved = recalibration.fit_platt(expit(2 * z + 1), y, one)
    np.testing.assert_allclose((*moved.slope, *moved.intercept), (0.5, -0.5), atol=0.02)
    bent = expit(z) ** 3
    fit = recalibration.fit_isotonic(bent, y, one)
    assert np.abs(recalibration.calibrate(fit, bent) - expit(z)).mean() < 0.01


def errors(p, y, w):
    """Brier score and calibration error, [T] each; every image is a patient's only."""
    options = {"key": jax.random.key(0), "replicates": 1}
    intervals, _ = reliability.measure(p, y, w, np.arange(len(p)), **options)
    return {name: intervals[name].estimate for name in reliability.ERRORS}


@pytest.mark.parametrize("fit", FITS)
def test_the_error_falls_on_images_that_were_not_fitted(fit):
    found = fit(*predictions(0, images=4000))
    p, y, w = predictions(1, images=4000)
    before = errors(p, y, w)
    for name, after in errors(recalibration.calibrate(found, p), y, w).items():
        assert (after < before[name]).all()


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_survives_json(fit):
    p, y, w = predictions(images=60)
    found = fit(p, y, w)
    back = type(found)(**json.loads(json.dumps(found._asdict())))
    np.testing.assert_array_equal(
        recalibration.calibrate(found, p), recalibration.calibrate(back, p)
    )


@pytest.mark.parametrize("fit", FITS)
def test_what_is_unknown_counts_nothing(fit):
    p, y, w = predictions(images=200)
    other = np.where(w > 0, p, 0.5), np.where(w > 0, y, 7.0), w
    assert fit(p, y, w) == fit(*other)


@pytest.mark.parametrize("fit", FITS[1:])
def test_a_task_that_cannot_be_fitted_keeps_its_probabilities(fit):
    p, y, w = predictions(images=50)
    y[:, 0] = 0  # One class;
    w[:, 1] = 0  # no label;
    y[:, 2] = p[:, 2] > 0.5  # no error.
    np.testing.assert_allclose(recalibration.calibrate(fit(p, y, w), p), p, atol=1e-6)


def test_without_errors_there_is_no_temperature():
    p, _, w = predictions(images=50)
    for label in (p > 0.5, p < 0.5):
        assert set(recalibration.fit_temperature(p, label, w).slope) == {1.0}


def test_a_model_no_better_than_chance_has_no_temperature():
    p, y, w = predictions(images=300)
    fit = recalibration.fit_temperature(p, 1 - y, w)
    assert set(fit.slope) == {1.0}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6), st.integers(1, 3))
def test_any_few_images_give_finite_probabilities(images, seed, decimals):
    p, y, w = predictions(seed, images, 2, decimals)
    for fit in FITS:
        found = recalibration.calibrate(fit(p, y, w), p)
        assert ((found >= 0) & (found <= 1)).all()
    slope, intercept = recalibration.fit_platt(p, y, w)
    for t in range(2):  # No neighbour is better.
        one = [x[w[:, t] > 0, t] for x in (p, y, w)]  # Else 0 times infinity.
        if (slope[t], intercept[t]) != (1.0, 0.0):
            z = slope[t] * logit(one[0]) + intercept[t]
            least = cross_entropy(expit(z), *one[1:])
            for a, b in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
                other = expit(z + a * logit(one[0]) + b)
                assert cross_entropy(other, *one[1:]) >= least - 1e-9


def test_two_classes_are_scaled_as_one_finding_is():
    p, y, w = predictions(tasks=1)
    both = [np.concatenate([x, 1 - x], axis=1) for x in (p, y)]
    for offsets, oracle in (
        (True, recalibration.fit_platt),
        (False, recalibration.fit_temperature),
    ):
        fit = recalibration.fit_softmax(*both, np.tile(w, 2), offsets=offsets)
        found = recalibration.calibrate(fit, both[0])
        expected = recalibration.calibrate(oracle(p, y, w), p)
        np.testing.assert_allclose(found[:, :1], expected, atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), 1)


def test_of_several_classes_each_is_as_frequent_as_it_is_likely():
    rng = np.random.default_rng(6)
    z = rng.normal((1, 0, -2), 2.0, (900, 3))
    true = np.minimum((rng.random((900, 1)) > softmax(z / 2, 1).cumsum(1)).sum(1), 2)
    y, w = np.eye(3)[true], np.repeat(rng.uniform(0, 2, (900, 1)), 3, axis=1)
    w[:50], y[:50] = 0, np.nan
    p = softmax(z + (0.5, 0, 1), axis=1)
    fit = recalibration.fit_softmax(p, y, w, offsets=True)
    found, known = recalibration.calibrate(fit, p), w[:, 0] > 0
    wrong = (w * (found - y))[known]
    np.testing.assert_allclose(wrong.sum(axis=0), 0, atol=1e-4)  # The optimum's
    np.testing.assert_allclose(
        (wrong * np.log(p[known])).sum(), 0, atol=1e-3
    )  # slopes.


@pytest.mark.parametrize("offsets", [False, True])
def test_classes_without_a_finite_optimum_stay_as_they_are(offsets):
    rng, w = np.random.default_rng(6), np.ones((30, 3))
    true = np.arange(30) % 3
    for sure in (0.0, 5.0):  # The farther apart, the flatter the loss ends.
        p = softmax(rng.random((30, 3)) + (sure + 1) * np.eye(3)[true], axis=1)
        for label in (p.argmax(axis=1), p.argmin(axis=1)):  # No error; all wrong.
            fit = recalibration.fit_softmax(p, np.eye(3)[label], w, offsets=offsets)
            np.testing.assert_array_equal(recalibration.calibrate(fit, p), p)


def test_a_model_that_is_upside_down_is_not_turned_round():
    p, y, w = predictions()
    fit = recalibration.fit_platt(1 - p, y, w)
    np.testing.assert_array_equal(recalibration.calibrate(fit, p), p)


def weighted_model(positive, images=400_000):
    """What a calibrated model says if its loss weighs the positives so; and labels."""
    rng = np.random.default_rng(3)
    z = rng.normal(-3, 1.3, (images, 1))
    y = (rng.random(z.shape) < expit(z)).astype(float)
    return expit(z + np.log(positive)), y, np.ones_like(z)


def test_after_the_prior_shift_the_mean_probability_is_the_prevalence():
    p, y, w = weighted_model(positive=12.0)
    assert p.mean() > 3 * y.mean()
    trained = 12 * y.sum(axis=0) / (12 * y + 1 - y).sum(axis=0)
    fit = recalibration.prior_shift(trained, y.mean(axis=0))
    np.testing.assert_allclose(fit.intercept, -np.log(12.0), rtol=1e-9)
    shifted = recalibration.calibrate(fit, p)
    np.testing.assert_allclose(shifted.mean(), y.mean(), rtol=0.02)
    assert errors(shifted, y, w)["calibration_error"][0] < 0.002


def test_the_shift_is_bayes_theorem():
    p, trained, true = 0.3, 0.2, 0.05
    up, down = p * true / trained, (1 - p) * (1 - true) / (1 - trained)
    fit = recalibration.prior_shift([trained], [true])
    found = recalibration.calibrate(fit, [[p]])
    np.testing.assert_allclose(found, up / (up + down), rtol=1e-12)

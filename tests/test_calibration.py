"""scikit-learn is the oracle; weights and unknown labels follow from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medjax.errors import InputError
from medjax.evaluation import reliability


def predictions(seed=0, images=1003, tasks=3, decimals=9):
    """Overconfident probabilities of rare findings, a fifth of the labels unknown."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-2, 1.5, (images, tasks))
    label = (rng.random(z.shape) < 1 / (1 + np.exp(-0.6 * z))).astype(float)
    weight = (rng.random(z.shape) > 0.2).astype(float)
    label[weight == 0] = np.nan
    return np.round(1 / (1 + np.exp(-z)), decimals), label, weight


def test_the_brier_score_is_that_of_scikit_learn():
    p, y, w = predictions()
    w = w * np.random.default_rng(1).uniform(0.1, 5, w.shape)
    for t, found in enumerate(reliability.brier(p, y, w)):
        known = w[:, t] > 0
        weight = {"sample_weight": w[known, t]}
        expected = brier_score_loss(y[known, t], p[known, t], **weight)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("decimals", [9, 2, 1])  # Without ties, with some, with many.
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_diagram_is_that_of_scikit_learn(bins, decimals):
    p, y, w = predictions(decimals=decimals)
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
    p, y, w = predictions(images=20_000, tasks=1)
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
    p, y, w = predictions(images=20)
    w[:, 1] = 0
    for measure in (reliability.brier, reliability.calibration_error):
        np.testing.assert_array_equal(np.isnan(measure(p, y, w)), (0, 1, 0))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6))
def test_any_few_images_have_a_diagram_that_keeps_the_sums(images, bins, seed):
    p, y, w = predictions(seed, images, 2, decimals=1)
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
        reliability.brier(*change(*predictions(images=9)))


def test_no_bin_is_an_error():
    with pytest.raises(InputError, match="bins: 0"):
        reliability.reliability(*predictions(images=9), bins=0)

"""Images are ranked by log-odds: float32 probabilities near 1 are all the same."""

import types

import jax
import numpy as np
import pytest
from scipy.special import expit, log_softmax, logsumexp
from sklearn import metrics as oracle

from medjax.evaluation import recalibration, results
from medjax.evaluation.inference import Predictions
from medjax.training import step


def judged(log_odds, probability, label, *, exclusive=False):
    n = np.arange(len(label))
    one = np.ones_like(label)
    found = Predictions(n, n, np.float32(probability), label, one, log_odds)
    names = tuple("abc"[: label.shape[1]])
    options = {"tasks": names, "key": jax.random.key(0), "replicates": 10}
    threshold = np.full(len(names), 0.5)
    return results.summarise(found, exclusive=exclusive, threshold=threshold, **options)


def test_findings_of_which_the_model_is_certain_keep_their_order():
    rng = np.random.default_rng(0)
    label = (rng.random((80, 2)) < 0.4).astype(np.float32)
    z = np.float32([20, -140] + 5 * label + rng.normal(0, 4, label.shape))
    p = expit(z)
    assert len(np.unique(p[:, 0])) < 10
    got = judged(z, p, label)
    for t, name in enumerate("ab"):
        area = oracle.roc_auc_score(label[:, t], z[:, t])
        assert got["tasks"][name]["metrics"]["auroc"]["estimate"] == pytest.approx(area)
    pooled = oracle.roc_auc_score(label.ravel(), z.ravel())
    assert got["micro"]["auroc"]["estimate"] == pytest.approx(pooled, abs=1e-6)
    means = results.mean_areas(
        Predictions(*[None] * 2, p, label, np.ones_like(label), z)
    )
    assert means["auroc"] == pytest.approx(got["mean"]["auroc"]["estimate"], abs=1e-6)


def of_classes(z):
    """log p - log (1 - p) of a softmax of [N, K], in float64."""
    log_p = log_softmax(np.float64(z), axis=1)
    rest = [logsumexp(np.delete(log_p, k, 1), axis=1) for k in range(z.shape[1])]
    return log_p - np.stack(rest, axis=1)


@pytest.mark.parametrize("fit", [None, recalibration.Softmax([0.7] * 3, [1.0, 0, -1])])
def test_classes_of_which_the_model_is_certain_keep_their_order(fit):
    rng = np.random.default_rng(1)
    z = np.float32(rng.normal(0, 25, (60, 3)))
    state = types.SimpleNamespace(averaged=None)
    odds = step.eval_step(
        state,
        z,
        apply=lambda variables, flat, train: flat,
        views=lambda image: image[None],
        exclusive=True,
    )
    got = recalibration.ranking(fit, odds)
    slope, shift = (1, 0) if fit is None else fit
    expected = of_classes(np.multiply(slope, log_softmax(np.float64(z), 1)) + shift)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    assert np.isfinite(got).all() and np.abs(got).max() > 40


def test_the_probabilities_of_two_views_are_averaged_however_certain():
    z = np.float32([[30.0, -95, 2], [35, 90, -1]])  # Two views of one image.
    odds = step.eval_step(
        types.SimpleNamespace(averaged=None),
        z[None, :1],
        apply=lambda variables, flat, train: z,
        views=lambda image: z[:, None],
        exclusive=False,
    )
    present, absent = (np.logaddexp(*-np.logaddexp(0, s * z)) for s in (-1.0, 1.0))
    np.testing.assert_allclose(odds, [present - absent], rtol=1e-5, atol=1e-6)

import functools

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medjax.training import head
from medjax.training.head import Synthetic

IMAGES, FEATURES, TASKS, POINTS = 200, 6, 3, 50
DECAY = 1e-2


def example():
    """Embeddings, labels, weights, and points of which the last ten are filling."""
    rng = np.random.default_rng(0)
    feature = rng.normal(3, rng.uniform(0.1, 5, FEATURES), (IMAGES, FEATURES))
    noise = rng.normal(0, 4, (IMAGES, TASKS))
    score = feature @ rng.normal(size=(FEATURES, TASKS)) + noise
    label = (score > np.quantile(score, 0.8, axis=0)).astype(np.float32)
    weight = (rng.random(label.shape) < 0.9).astype(np.float32)
    seed, neighbour = rng.integers(0, IMAGES, (2, TASKS, POINTS), dtype=np.int32)
    gap = rng.random((TASKS, POINTS))
    real = np.repeat(np.arange(POINTS)[None] < POINTS - 10, TASKS, 0).astype(np.float32)
    rarer = np.array([1, 1, 0], np.float32)
    return feature, label, weight, Synthetic(seed, neighbour, gap, real, rarer)


def points(between, feature, task):
    """Literally, the synthetic embeddings of a task, [M, F]."""
    gap = between.gap[task][:, None]
    start, end = feature[between.seed[task]], feature[between.neighbour[task]]
    return ((1 - gap) * start + gap * end)[between.weight[task] > 0]


def oracle(x, y, feature, count):
    """scikit-learn's minimum of the same objective, standardised in the same way."""
    mean, std = feature.mean(0), feature.std(0)
    model = LogisticRegression(C=1 / (2 * DECAY * count), tol=1e-10, max_iter=10_000)
    model.fit((x - mean) / std, y)
    return lambda z: (z - mean) / std, model


def test_findings_are_logistic_regressions_on_images_and_points():
    feature, label, weight, between = example()
    fit = functools.partial(head.refit, exclusive=False, decay=DECAY)
    layer = fit(feature, label, weight, between=between)
    got = feature @ layer["kernel"] + layer["bias"]
    for t in range(TASKS):
        known, new = weight[:, t] > 0, points(between, feature, t)
        x = np.concatenate([feature[known], new])
        y = np.append(label[known, t], np.full(len(new), between.label[t]))
        scale, model = oracle(x, y, feature, len(x))
        expected = model.decision_function(scale(feature))
        np.testing.assert_allclose(got[:, t], expected, atol=2e-3)


def test_classes_are_one_softmax_on_images_and_points():
    feature, _, _, between = example()
    true = np.random.default_rng(1).integers(0, TASKS, IMAGES)
    label = np.eye(TASKS, dtype=np.float32)[true]
    weight = np.ones_like(label)
    weight[:20] = 0
    label[:20] = np.nan
    between = between._replace(label=np.ones(TASKS))
    fit = functools.partial(head.refit, exclusive=True, decay=DECAY)
    layer = fit(feature, label, weight, between=between)
    got = jax.nn.softmax(feature @ layer["kernel"] + layer["bias"])
    new = [points(between, feature, t) for t in range(TASKS)]
    x = np.concatenate([feature[20:], *new])
    y = np.concatenate([true[20:], np.repeat(np.arange(TASKS), POINTS - 10)])
    scale, model = oracle(x, y, feature, len(x))
    np.testing.assert_allclose(got, model.predict_proba(scale(feature)), atol=1e-3)


def test_normalised_weights_have_norms_to_the_power_one_minus_tau():
    kernel = np.random.default_rng(0).normal(size=(5, 3)) * [1, 10, 0]
    layer = {"kernel": kernel.astype(np.float32), "bias": np.ones(3)}
    norms = np.sqrt((kernel**2).sum(axis=0))
    for tau in (0.0, 0.5, 1.0):
        got = head.normalised(layer, tau=tau)
        expected = kernel * [norms[0] ** -tau, norms[1] ** -tau, 0]
        np.testing.assert_allclose(got["kernel"], expected, rtol=1e-5)
        assert not got["bias"].any()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_feature_that_never_changes_gets_no_weight(exclusive):
    feature, label, weight, between = example()
    feature[:, 2] = 7.0
    label = np.eye(TASKS, dtype=np.float32)[label[:, 0].astype(int)]
    fit = functools.partial(head.refit, exclusive=exclusive, decay=DECAY)
    layer = fit(feature, label, weight, between=between)
    assert (np.asarray(layer["kernel"][2]) == 0).all()
    assert np.isfinite(layer["bias"]).all()

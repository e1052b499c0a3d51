"""The means over tasks against scikit-learn's averages."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracles

from medjax.evaluation import metrics
from medjax.evaluation import metrics as averaging

AREAS = {  # One task's metric, jitted for [40, 3] and [120, 1]: two compilations.
    jax.jit(jax.vmap(metrics.auroc, in_axes=-1)): oracles.roc_auc_score,
    jax.jit(
        jax.vmap(metrics.average_precision, in_axes=-1)
    ): oracles.average_precision_score,
}
CONFUSION = jax.jit(jax.vmap(metrics.confusion, in_axes=(-1, -1, -1, None)))
KEYS = {"f1": "f1_score", "sensitivity": "recall_score", "ppv": "precision_score"}


def cohort(seed, images=40, tasks=3):
    rng = np.random.default_rng(seed)
    label = (rng.random((images, tasks)) < [0.2, 0.4, 0.7]).astype(np.float32)
    label[:2] = [[1], [0]]
    score = np.round(rng.random((images, tasks)) + 0.3 * label, 1).astype(np.float32)
    return score, label, np.ones_like(label)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_means_of_the_areas_are_those_of_scikit_learn(seed):
    score, label, weight = cohort(seed)
    known = np.ones(3, bool)
    for metric, oracle in AREAS.items():
        each = metric(score, label, weight)
        flat = averaging.pooled(score, label, weight, np.arange(40))[:3]
        found = {
            "macro": averaging.macro(each, known),
            "weighted": averaging.weighted(each, label.sum(0), known),
            "micro": metric(*flat)[0],
        }
        for average, value in found.items():
            expected = oracle(label, score, average=average)
            assert value == pytest.approx(expected, abs=1e-6), average


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_means_of_the_rates_are_those_of_scikit_learn(seed):
    score, label, weight = cohort(seed)
    known = np.ones(3, bool)
    matrix = CONFUSION(score, label, weight, 0.5)
    each = metrics.rates(matrix)
    pooled = metrics.rates(averaging.micro(matrix, known))
    for name, oracle in KEYS.items():
        found = {
            "macro": averaging.macro(each[name], known),
            "weighted": averaging.weighted(each[name], label.sum(0), known),
            "micro": pooled[name],
        }
        for average, value in found.items():
            expected = getattr(oracles, oracle)(
                label, score >= np.float32(0.5), average=average, zero_division=np.nan
            )
            assert value == pytest.approx(expected, abs=1e-6), (name, average)


def test_undefined_tasks_are_left_out():
    value = np.float32([0.5, np.nan, 0.8])
    known, positives = ~np.isnan(value), np.float32([1, 9, 3])
    assert averaging.macro(value, known) == pytest.approx(0.65)
    assert averaging.weighted(value, positives, known) == pytest.approx(2.9 / 4)
    cells = metrics.Confusion(*np.float32([[1, np.nan, 2]] * 4))
    assert averaging.micro(cells, known).tp == 3


def test_a_replicate_that_lacks_a_tasks_value_has_no_mean():
    values = np.float32([[0.5, 0.8], [np.nan, 0.8]])
    known, positives = np.ones(2, bool), np.float32([[1, 3], [1, 3]])
    for mean in (
        averaging.macro(values, known),
        averaging.weighted(values, positives, known),
    ):
        assert np.isnan(mean).tolist() == [False, True]


def test_no_defined_task_has_no_mean():
    value, none = np.full(2, np.nan, np.float32), np.zeros(2, bool)
    assert np.isnan(averaging.macro(value, none))
    assert np.isnan(averaging.weighted(value, np.ones(2, np.float32), none))
    nobody = averaging.weighted(np.float32([0.5, 0.5]), np.zeros(2), ~none)
    assert np.isnan(nobody)

"""The curves against scikit-learn's, thinned ones against whole ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracles
from test_metrics import tasks

from medjax.errors import InputError
from medjax.evaluation import thresholds as curves


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_the_roc_curve_is_that_of_scikit_learn(task):
    score, label, weight = task
    expected = oracles.roc_curve(
        label, score, sample_weight=weight, drop_intermediate=False
    )
    for found, curve in zip(curves.roc(*task), expected, strict=True):
        np.testing.assert_allclose(found, curve, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_the_precision_recall_curve_is_that_of_scikit_learn(task):
    score, label, weight = (x[task[2] > 0] for x in task)
    precision, recall, thresholds = oracles.precision_recall_curve(
        label, score, sample_weight=weight
    )
    # scikit-learn's starts at the lowest score; its last point is made up.
    expected = precision[-2::-1], recall[-2::-1], thresholds[::-1]
    for found, curve in zip(curves.precision_recall(*task), expected, strict=True):
        np.testing.assert_allclose(found, curve, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_between_the_corners_the_curve_is_straight(task):
    fpr, tpr, _ = curves.roc(*task)
    bends = curves.corners(fpr, tpr)
    np.testing.assert_allclose(
        oracles.auc(fpr[bends], tpr[bends]), oracles.auc(fpr, tpr), atol=1e-12
    )
    # A vertical part has many heights at one x: compare along the length.
    length, short = (
        np.cumsum(np.hypot(np.diff(x, prepend=0), np.diff(y, prepend=0)))
        for x, y in ((fpr, tpr), (fpr[bends], tpr[bends]))
    )
    for whole in (fpr, tpr):
        drawn = np.interp(length, short, whole[bends])
        np.testing.assert_allclose(drawn, whole, atol=1e-9)


def test_a_rare_finding_needs_few_points():
    rng = np.random.default_rng(0)
    label = np.zeros(5000)
    label[:10] = 1
    fpr, tpr, _ = curves.roc(rng.random(5000), label, np.ones(5000))
    assert len(fpr) == 5001
    assert len(curves.corners(fpr, tpr)) <= 22


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_missing_class_has_no_axis(value):
    task = np.arange(4.0), np.full(4, value), np.ones(4)
    fpr, tpr, _ = curves.roc(*task)
    assert np.isnan(tpr if value == 0 else fpr).all()
    assert curves.corners(fpr, tpr).tolist() == [0, 4]
    precision, recall, _ = curves.precision_recall(*task)
    assert (precision == value).all() and np.isnan(recall).all() == (value == 0)


def test_without_a_known_label_the_curve_has_no_point():
    nothing = np.zeros(3)
    fpr, tpr, thresholds = curves.roc(nothing, nothing, nothing)
    assert np.isnan([fpr, tpr]).all() and thresholds.tolist() == [np.inf]
    assert curves.precision_recall(nothing, nothing, nothing)[0].size == 0


@given(st.sampled_from(["score", "label"]))
def test_a_known_nan_is_refused_and_an_unknown_one_is_not(where):
    task = {"score": np.arange(3.0), "label": np.array([0.0, 1, 0])}
    whole = curves.roc(**task, weight=np.array([1.0, 1, 0]))
    task[where][2] = np.nan
    muted = curves.roc(**task, weight=np.array([1.0, 1, 0]))
    np.testing.assert_array_equal(whole, muted)
    with pytest.raises(InputError, match="NaN"):
        curves.roc(**task, weight=np.ones(3))

"""Metrics against scikit-learn, against counting by hand, and at their edges."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracles
from sklearn import metrics as sklearn_metrics

from medjax.evaluation import areas, metrics

ROWS = 40  # One shape for every example: one compilation.
CONFUSION, RATE = jax.jit(metrics.confusion), jax.jit(metrics.rates)
RATES = jax.jit(lambda *task: metrics.rates(metrics.confusion(*task)))


def areas_of(*task, **options):
    """The areas of one task, [N] each."""
    columns = (np.asarray(x, np.float32)[:, None] for x in task)
    return [float(x[0]) for x in areas.of_images(*columns, **options)]


def auroc_of(*task):
    return areas_of(*task)[0]


def precision_of(*task):
    return areas_of(*task)[1]


def partial_of(*task, max_fpr):
    return areas_of(*task, max_fpr=max_fpr)[2]


@st.composite
def tasks(draw):
    """One task of both classes, with ties in most examples and zeros in the weight."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 20, 10_000]))
    label = (rng.random(ROWS) < draw(st.floats(0.05, 0.95))).astype(np.float32)
    score = rng.integers(0, levels, ROWS) / levels + 0.3 * label * (levels > 5)
    weight = {
        "ones": np.ones(ROWS),
        "known or not": rng.integers(0, 2, ROWS),
        "multiplicities": rng.poisson(1.0, ROWS),
        "fractions": rng.random(ROWS) + 0.01,
    }[draw(st.sampled_from(["ones", "known or not", "multiplicities", "fractions"]))]
    weight = weight.astype(np.float32)
    label[:2], weight[:2] = [0, 1], 1.0
    return score.astype(np.float32), label, weight


def oracle(function, score, label, weight):
    return function(label, score, sample_weight=weight)


@settings(max_examples=150, deadline=None)
@given(tasks())
def test_the_areas_are_those_of_scikit_learn(task):
    auroc, precision = areas_of(*task)
    assert auroc == pytest.approx(
        oracle(sklearn_metrics.roc_auc_score, *task), abs=1e-6
    )
    expected = oracle(sklearn_metrics.average_precision_score, *task)
    assert precision == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_auroc_counts_the_pairs_that_are_in_order(task):
    score, label, weight = (np.asarray(a, np.float64) for a in task)
    above = score[:, None] > score[None]
    credit = above + 0.5 * (score[:, None] == score[None])
    pairs = (weight * label)[:, None] * (weight * (1 - label))[None]
    expected = (pairs * credit).sum() / pairs.sum()
    assert areas_of(*task)[0] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
# XLA takes a subnormal threshold, below 1e-38, for 0.
@given(tasks(), st.floats(-0.25, 1.25, width=32, allow_subnormal=False))
def test_the_rates_are_those_of_scikit_learn(task, threshold):
    score, label, weight = task
    called = score >= threshold
    tn, fp, fn, tp = sklearn_metrics.confusion_matrix(
        label, called, sample_weight=weight, labels=[0, 1]
    ).ravel()
    assert CONFUSION(*task, threshold) == pytest.approx((tp, fp, fn, tn))
    found = RATES(*task, threshold)
    named = {
        "sensitivity": sklearn_metrics.recall_score(
            label, called, sample_weight=weight
        ),
        "specificity": sklearn_metrics.recall_score(
            label, called, sample_weight=weight, pos_label=0
        ),
        "ppv": sklearn_metrics.precision_score(
            label, called, sample_weight=weight, zero_division=np.nan
        ),
        "npv": sklearn_metrics.precision_score(
            label, called, sample_weight=weight, pos_label=0, zero_division=np.nan
        ),
        "accuracy": sklearn_metrics.accuracy_score(label, called, sample_weight=weight),
        "prevalence": np.average(label, weights=weight),
        "f1": sklearn_metrics.f1_score(label, called, sample_weight=weight),
    }
    ratios = {"lr_positive", "lr_negative"}  # Have a test of their own.
    assert found.keys() == named.keys() | ratios
    for name, expected in named.items():
        assert found[name] == pytest.approx(expected, abs=1e-6, nan_ok=True), name


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(1, 10_000)] * 4))
def test_accuracy_and_the_predictive_values_follow_from_bayes(counts):
    rate = RATE(metrics.Confusion(*map(np.float32, counts)))
    rate = {name: float(value) for name, value in rate.items()}
    hit = rate["sensitivity"] * rate["prevalence"]
    pass_ = rate["specificity"] * (1 - rate["prevalence"])
    alarm = (1 - rate["specificity"]) * (1 - rate["prevalence"])
    miss = (1 - rate["sensitivity"]) * rate["prevalence"]
    assert rate["accuracy"] == pytest.approx(hit + pass_, abs=1e-6)
    assert rate["ppv"] == pytest.approx(hit / (hit + alarm), rel=2e-3)
    assert rate["npv"] == pytest.approx(pass_ / (pass_ + miss), rel=2e-3)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(1, 10_000)] * 4), st.floats(0.001, 0.999))
def test_predictive_values_are_those_of_a_population_with_that_prevalence(
    counts, prevalence
):
    tp, fp, fn, tn = counts
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    # A population of the same two rates, its positives multiplied until they fit.
    times = prevalence / (1 - prevalence) * (fp + tn) / (tp + fn)
    expected = times * tp / (times * tp + fp), tn / (tn + times * fn)
    found = metrics.predictive_values(
        *map(jnp.float32, (sensitivity, specificity, prevalence))
    )
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)


def test_predictive_values_are_the_rates_at_the_prevalence_of_the_images():
    rate = RATE(metrics.Confusion(*map(np.float32, (30, 20, 10, 140))))
    found = metrics.predictive_values(
        rate["sensitivity"], rate["specificity"], rate["prevalence"]
    )
    np.testing.assert_allclose(found, (rate["ppv"], rate["npv"]), rtol=1e-6)
    ppv, npv = metrics.predictive_values(*map(jnp.float32, (0.0, 1.0, 0.3)))
    assert np.isnan(ppv) and npv == pytest.approx(0.7)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 20)] * 4))
def test_the_likelihood_ratios_are_what_a_call_does_to_the_odds(counts):
    tp, fp, fn, tn = counts
    rate = RATE(metrics.Confusion(*map(np.float32, counts)))
    cases = {"lr_positive": (tp, fp), "lr_negative": (fn, tn)}
    for name, (ill, well) in cases.items():
        if well == 0 or tp + fn == 0:
            assert np.isnan(rate[name])
        else:
            expected = ill / well / ((tp + fn) / (fp + tn))
            assert rate[name] == pytest.approx(expected, rel=1e-5)
    if min(fp, tn) and tp + fn:
        label, said = np.repeat([1, 0, 1, 0], counts), np.repeat([1, 1, 0, 0], counts)
        expected = sklearn_metrics.class_likelihood_ratios(label, said)
        found = rate["lr_positive"], rate["lr_negative"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(tasks(), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_the_partial_area_is_that_of_scikit_learn(task, max_fpr):
    expected = oracle(
        lambda *a, **k: sklearn_metrics.roc_auc_score(*a, max_fpr=max_fpr, **k), *task
    )
    assert partial_of(*task, max_fpr=max_fpr) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_large_test_set_loses_no_digits():
    images = 1_000_000
    rng = np.random.default_rng(0)
    label = (rng.random(images) < 0.4).astype(np.float32)
    score = (rng.random(images) + 0.2 * label).astype(np.float32)
    for weight in (np.ones(images, np.float32), rng.random(images, np.float32)):
        auroc, precision = areas_of(score, label, weight)
        task = (score, label, weight.astype(np.float64))
        expected = oracle(sklearn_metrics.roc_auc_score, *task)
        near = 1e-6 if (weight == 1).all() else 1e-5
        assert auroc == pytest.approx(expected, abs=near)
        expected = oracle(sklearn_metrics.average_precision_score, *task)
        assert precision == pytest.approx(expected, abs=near)
    tp, _, fn, _ = CONFUSION(score, label, np.ones(images), 0.5)
    assert (tp, tp + fn) == ((label * (score >= 0.5)).sum(), label.sum())


@pytest.mark.parametrize("missing", [0.0, 1.0])
def test_a_task_of_one_class_has_no_auroc_and_no_threshold(missing):
    score = np.linspace(0, 1, 6, dtype=np.float32)
    label, weight = np.full(6, 1 - missing, np.float32), np.ones(6, np.float32)
    assert np.isnan(auroc_of(score, label, weight))
    assert np.isnan(partial_of(score, label, weight, max_fpr=0.1))
    assert np.isnan(precision_of(score, label, weight))
    rate = RATE(CONFUSION(score, label, weight, 0.5))
    assert np.isnan(rate["sensitivity" if missing else "specificity"])
    assert np.isnan(rate["lr_positive"]) and np.isnan(rate["lr_negative"])
    assert rate["accuracy"] == 0.5


def test_constant_scores_are_chance():
    score, weight = np.full(8, 0.3, np.float32), np.ones(8, np.float32)
    label = np.float32([1, 0, 0, 0, 1, 0, 0, 0])
    assert auroc_of(score, label, weight) == 0.5
    assert precision_of(score, label, weight) == 0.25
    partial = partial_of(score, label, weight, max_fpr=0.2)
    assert partial == pytest.approx(0.5, abs=1e-6)


def test_no_known_label_is_undefined_everywhere():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = np.zeros(5, np.float32)
        assert np.isnan(auroc_of(nothing, nothing, nothing))
        assert np.isnan(precision_of(nothing, nothing, nothing))
        assert np.isnan(partial_of(*[nothing] * 3, max_fpr=0.1))
        rate = RATE(CONFUSION(nothing, nothing, nothing, 0.5))
        assert all(np.isnan(value) for value in rate.values())


def test_what_has_no_weight_may_be_anything():
    score, label = np.float32([0.1, 0.4, 0.35, 0.8]), np.float32([0, 0, 1, 1])
    weight = np.ones(4, np.float32)
    more = [
        np.append(score, [np.nan, np.inf, 0.35]).astype(np.float32),
        np.append(label, [np.nan, 1, 0]).astype(np.float32),
        np.append(weight, [0, 0, 0]).astype(np.float32),
    ]
    task = score, label, weight
    assert auroc_of(*more) == auroc_of(*task) == 0.75
    assert precision_of(*more) == precision_of(*task)
    assert CONFUSION(*more, 0.35) == CONFUSION(*task, 0.35)
    partial = functools.partial(partial_of, max_fpr=0.5)
    assert partial(*more) == partial(*task)


def test_a_known_nan_is_never_taken_for_a_low_score():
    score, label = np.float32([0.1, np.nan, 0.8]), np.float32([0, 0, 1])
    task = score, label, np.ones(3, np.float32)
    assert np.isnan(auroc_of(*task))
    assert np.isnan(precision_of(*task))
    assert np.isnan(partial_of(*task, max_fpr=0.1))
    assert np.isnan(CONFUSION(*task, 0.5)).any()


def test_a_missing_threshold_calls_nothing_negative():
    task = np.float32([0.1, 0.8]), np.float32([0, 1]), np.ones(2, np.float32)
    assert np.isnan(CONFUSION(*task, np.nan)).all()


def test_a_soft_label_is_a_share_of_both_classes():
    score, label = np.float32([0.9, 0.5, 0.1]), np.float32([1.0, 0.25, 0.0])
    split = np.float32([0.9, 0.5, 0.5, 0.1]), np.float32([1, 1, 0, 0])
    task, shares = (score, label, np.ones(3)), (*split, np.float32([1, 0.25, 0.75, 1]))
    assert auroc_of(*task) == auroc_of(*shares)
    assert CONFUSION(*task, 0.5) == CONFUSION(*shares, 0.5)


def test_each_task_is_judged_by_itself():
    rng = np.random.default_rng(0)
    score = rng.random((30, 3), np.float32)
    label, weight = (rng.random((2, 30, 3)) < 0.6).astype(np.float32)
    together = areas.of_images(score, label, weight, max_fpr=0.2)
    for t in range(3):
        alone = areas_of(*(x[:, t] for x in (score, label, weight)), max_fpr=0.2)
        assert [each[t] for each in together] == pytest.approx(alone, abs=1e-6)


AVERAGED_AREAS = oracles.roc_auc_score, oracles.average_precision_score
CONFUSIONS = jax.jit(jax.vmap(metrics.confusion, in_axes=(-1, -1, -1, None)))
AVERAGED_RATES = {
    "f1": "f1_score",
    "sensitivity": "recall_score",
    "ppv": "precision_score",
}


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
    flat = [x.reshape(-1, 1) for x in (score, label, weight)]
    each, pooled = areas.of_images(score, label, weight), areas.of_images(*flat)
    for number, oracle in enumerate(AVERAGED_AREAS):
        found = {
            "macro": metrics.macro(each[number], known),
            "micro": pooled[number][0],
        }
        for average, value in found.items():
            expected = oracle(label, score, average=average)
            assert value == pytest.approx(expected, abs=1e-6), average


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_means_of_the_rates_are_those_of_scikit_learn(seed):
    score, label, weight = cohort(seed)
    known = np.ones(3, bool)
    matrix = CONFUSIONS(score, label, weight, 0.5)
    each = RATE(matrix)
    pooled = RATE(metrics.micro(matrix, known))
    for name, oracle in AVERAGED_RATES.items():
        found = {
            "macro": metrics.macro(each[name], known),
            "micro": pooled[name],
        }
        for average, value in found.items():
            expected = getattr(oracles, oracle)(
                label, score >= np.float32(0.5), average=average, zero_division=np.nan
            )
            assert value == pytest.approx(expected, abs=1e-6), (name, average)


def test_undefined_tasks_are_left_out():
    value = np.float32([0.5, np.nan, 0.8])
    known = ~np.isnan(value)
    assert metrics.macro(value, known) == pytest.approx(0.65)
    cells = metrics.Confusion(*np.float32([[1, np.nan, 2]] * 4))
    assert metrics.micro(cells, known).tp == 3
    # A mean over other tasks is another quantity.
    replicates = np.float32([[0.5, 0.8], [np.nan, 0.8]])
    means = metrics.macro(replicates, np.ones(2, bool))
    assert np.isnan(means).tolist() == [False, True]
    assert np.isnan(metrics.macro(value, np.zeros(3, bool)))

"""Operating points against a search over every threshold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import tasks

from medjax.errors import InputError
from medjax.evaluation import thresholds
from medjax.evaluation.predict import Predictions


def predictions(score, label, weight):
    columns = (
        np.asarray(x, np.float32).reshape(len(x), -1) for x in (score, label, weight)
    )
    return Predictions(np.arange(len(score)), np.arange(len(score)), *columns)


def chosen(task, rule="youden", value=None):
    (found,) = thresholds.choose(
        predictions(*task), split="validation", rule=rule, value=value
    )
    return found


def rates(task, threshold):
    """Sensitivity, specificity and the counts of misses and alarms, by definition."""
    score, label, weight = (np.asarray(x, np.float64) for x in task)
    positive, negative = weight * label, weight * (1 - label)
    called = score >= threshold
    hits, alarms = positive[called].sum(), negative[called].sum()
    sensitivity, specificity = hits / positive.sum(), 1 - alarms / negative.sum()
    return sensitivity, specificity, positive.sum() - hits, alarms


def candidates(task):
    """Every observed score, and one above them all."""
    known = np.float64(task[0][task[2] > 0])
    return [*known, known.max() + 1]


@settings(max_examples=80, deadline=None)
@given(tasks())
def test_youden_takes_the_lowest_of_the_best_observed_scores(task):
    def index(threshold):
        return sum(rates(task, threshold)[:2])

    best = max(index(c) for c in candidates(task))
    lowest = min(c for c in candidates(task) if index(c) >= best - thresholds.TIE)
    assert chosen(task) == np.float32(lowest)


@settings(max_examples=80, deadline=None)
@given(tasks(), st.sampled_from([0.5, 0.8, 0.95, 1.0]), st.booleans())
def test_a_fixed_rate_is_reached_and_the_other_is_the_best_there(task, value, swap):
    """swap: specificity is fixed, not sensitivity."""
    found = rates(task, chosen(task, ("sensitivity", "specificity")[swap], value))
    assert found[swap] >= value - thresholds.TIE
    others = [rates(task, c) for c in candidates(task)]
    best = max(o[1 - swap] for o in others if o[swap] >= value - thresholds.TIE)
    assert found[1 - swap] == pytest.approx(best, abs=1e-9)
    # And no threshold has the same of this and more of the other.
    ties = [o[swap] for o in others if o[1 - swap] >= best - 1e-9]
    assert found[swap] == pytest.approx(max(ties), abs=1e-8)


@settings(max_examples=80, deadline=None)
@given(tasks(), st.sampled_from([0.1, 1.0, 7.0, 300.0]))
def test_no_threshold_costs_less(task, value):
    def cost(threshold):
        _, _, misses, alarms = rates(task, threshold)
        return value * misses + alarms

    least = min(cost(c) for c in candidates(task))
    assert cost(chosen(task, "cost", value)) == pytest.approx(least, abs=1e-4)


def test_where_alarms_cost_too_much_nothing_is_called():
    task = np.float32([0.2, 0.9, 0.9]), np.float32([0, 0, 1]), np.ones(3, np.float32)
    for rule, value in (("cost", 0.5), ("specificity", 0.8)):
        threshold = chosen(task, rule, value)
        assert np.float32(0.9) < threshold < 0.9001
        assert not (task[0] >= threshold).any()


def test_of_equal_points_the_more_sensitive_is_taken():
    score, label = np.float32([0.9, 0.7, 0.5, 0.3]), np.float32([1, 0, 1, 0])
    # 0.9 and 0.5 have the same Youden index.
    assert chosen((score, label, np.ones(4))) == np.float32(0.5)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("rule, number", [("youden", None), ("sensitivity", 0.9)])
def test_a_task_of_one_class_has_no_threshold(value, rule, number):
    task = np.arange(4.0), np.full(4, value), np.ones(4)
    assert np.isnan(chosen(task, rule, number))
    assert np.isnan(chosen((*task[:2], np.zeros(4)), rule, number))


def test_each_task_has_its_own_and_unknown_labels_count_for_nothing():
    rng = np.random.default_rng(0)
    score, label = rng.random((50, 3)), rng.random((50, 3)) < 0.4
    weight = rng.random((50, 3)) < 0.8
    found = thresholds.choose(
        predictions(np.where(weight, score, np.nan), label, weight), split="validation"
    )
    for t in range(3):
        known = weight[:, t]
        alone = score[known, t], label[known, t], np.ones(known.sum())
        assert found[t] == chosen(alone)


@pytest.mark.parametrize("split", ["test", "train", "target", "", None])
def test_a_threshold_is_never_chosen_on_another_split(split):
    task = predictions(np.arange(4.0), np.array([0, 1, 0, 1]), np.ones(4))
    with pytest.raises(InputError, match="validation"):
        thresholds.choose(task, split=split)
    with pytest.raises(TypeError, match="split"):
        thresholds.choose(task)


@pytest.mark.parametrize(
    "rule, value, word",
    [
        ("best", None, "youden, sensitivity"),
        ("youden", 0.5, "none"),
        ("sensitivity", None, "value"),
        ("sensitivity", 90, r"\(0, 1\]"),
        ("specificity", 0.0, r"\(0, 1\]"),
        ("cost", -1.0, "above 0"),
        ("cost", float("nan"), "above 0"),
    ],
)
def test_a_bad_rule_is_named(rule, value, word):
    with pytest.raises(InputError, match=word):
        thresholds.check(rule, value)


def test_the_rule_is_said():
    assert "Youden" in thresholds.describe("youden", None)
    assert thresholds.describe("sensitivity", 0.9) == "sensitivity of 0.9 or more"
    assert "10 times" in thresholds.describe("cost", 10.0)

"""Operating points against a search over every threshold."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracles
from sklearn.metrics import precision_recall_curve, roc_curve
from test_bootstrap import wilson
from test_metrics import tasks

from medjax.errors import InputError
from medjax.evaluation import thresholds
from medjax.evaluation.bootstrap import multiplicities
from medjax.evaluation.inference import Predictions


def drawn(seed, n=300, rare=0.1, ties=0):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < rare).astype(np.float32)
    score = (rng.random(n) * 0.7 + 0.3 * label).astype(np.float32)
    if ties:
        score = np.round(score * ties) / np.float32(ties)
    weight = (rng.random(n) < 0.9).astype(np.float32)
    return score, np.where(weight > 0, label, np.nan), weight


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_no_step_along_the_curve_is_longer_than_its_share(seed, rare):
    score, label, weight = drawn(seed, rare=rare)
    found = thresholds.knots(score, label, weight, most=40)
    assert len(found) <= 40 and (np.diff(found) < 0).all()
    known = score[weight > 0]
    assert np.isin(found, known).all() and found[-1] == known.min()
    tp, fp, cut = thresholds.positive_counts(score, label, weight)
    way = sum(part / part[-1] for part in (tp, fp) if part[-1])
    at = np.append(0, np.searchsorted(-cut, -found))
    assert np.diff(way[at]).max() <= way[-1] / 39 + np.diff(way).max() + 1e-9


def test_few_scores_are_all_taken():
    score, label, weight = drawn(0, ties=20)
    found = thresholds.knots(score, label, weight, most=40)
    np.testing.assert_array_equal(found, np.unique(score[weight > 0])[::-1])
    assert thresholds.knots(score, label, 0 * weight, most=40).size == 0


@pytest.mark.parametrize("frozen", [0.4321, 2.0, np.nan])
def test_each_threshold_counts_what_a_loop_counts(frozen, monkeypatch):
    monkeypatch.setattr(thresholds, "MAX_THRESHOLDS", 30)
    score, label, weight = (np.stack([x, x], 1) for x in drawn(3))
    weight[:, 1] = 0
    found = Predictions(np.arange(300), np.arange(300), score, label, weight)
    found = thresholds.explorer(found, tasks=("a", "unknown"), threshold=[frozen, 0.5])
    assert list(found) == ["a"]
    one = found["a"]
    assert len(one["threshold"]) <= 30
    assert np.isnan(frozen) or np.float32(frozen) in one["threshold"]
    known = weight[:, 0] > 0
    s, y = score[known, 0], label[known, 0] > 0.5
    for threshold, *cells in zip(*one.values(), strict=True):
        called = s >= threshold
        counts = (called & y, called & ~y, ~called & y, ~called & ~y)
        assert cells == [np.sum(c) for c in counts]


def predictions(score, label, weight):
    columns = (
        np.asarray(x, np.float32).reshape(len(x), -1) for x in (score, label, weight)
    )
    return Predictions(np.arange(len(score)), np.arange(len(score)), *columns)


def chosen(task, rule="youden", value=None):
    (found,) = thresholds.choose(predictions(*task), rule=rule, value=value)
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
        predictions(np.where(weight, score, np.nan), label, weight)
    )
    for t in range(3):
        known = weight[:, t]
        alone = score[known, t], label[known, t], np.ones(known.sum())
        assert found[t] == chosen(alone)


@pytest.mark.parametrize(
    "rule, value, word",
    [
        ("best", None, "'youden', 'sensitivity'"),
        ("sensitivity", None, "value"),
        ("sensitivity", 90, r"\(0, 1\]"),
        ("specificity", 0.0, r"\(0, 1\]"),
        ("cost", -1.0, "above 0"),
        ("cost", float("nan"), "above 0"),
    ],
)
def test_a_bad_rule_is_named(rule, value, word):
    with pytest.raises(InputError, match=word):
        thresholds.check_rule(rule, value)


def test_the_rule_is_said():
    assert "Youden" in thresholds.describe("youden", None)
    assert thresholds.describe("sensitivity", 0.9) == "sensitivity of 0.9 or more"
    assert "10 times" in thresholds.describe("cost", 10.0)


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_the_roc_curve_is_that_of_scikit_learn(task):
    score, label, weight = task
    expected = oracles.roc_curve(
        label, score, sample_weight=weight, drop_intermediate=False
    )
    fpr, tpr, _, cuts = thresholds.curves(*task)
    for found, curve in zip((fpr, tpr, cuts), expected, strict=True):
        np.testing.assert_allclose(found, curve, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_the_precision_recall_curve_is_that_of_scikit_learn(task):
    score, label, weight = (x[task[2] > 0] for x in task)
    precision, recall, points = oracles.precision_recall_curve(
        label, score, sample_weight=weight
    )
    # scikit-learn's starts at the lowest score; its last point is made up.
    expected = recall[-2::-1], precision[-2::-1], points[::-1]
    _, *curves = thresholds.curves(*task)
    for found, curve in zip(curves, expected, strict=True):
        np.testing.assert_allclose(found[1:], curve, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(tasks())
def test_between_the_corners_the_curve_is_straight(task):
    fpr, tpr, *_ = thresholds.curves(*task)
    bends = thresholds.corners(fpr, tpr)
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
    fpr, tpr, *_ = thresholds.curves(rng.random(5000), label, np.ones(5000))
    assert len(fpr) == 5001
    assert len(thresholds.corners(fpr, tpr)) <= 22


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_missing_class_has_no_axis(value):
    task = np.arange(4.0), np.full(4, value), np.ones(4)
    fpr, tpr, precision, _ = thresholds.curves(*task)
    assert np.isnan(tpr if value == 0 else fpr).all()
    assert thresholds.corners(fpr, tpr).tolist() == [0, 4]
    assert (precision[1:] == value).all() and precision[0] == 1


def test_without_a_known_label_the_curve_has_no_point():
    nothing = np.zeros(3)
    fpr, tpr, precision, points = thresholds.curves(nothing, nothing, nothing)
    assert np.isnan([fpr, tpr]).all() and points.tolist() == [np.inf]
    assert precision.tolist() == [1]


@given(st.sampled_from(["score", "label"]))
def test_a_known_nan_is_refused_and_an_unknown_one_is_not(where):
    task = {"score": np.arange(3.0), "label": np.array([0.0, 1, 0])}
    whole = thresholds.curves(**task, weight=np.array([1.0, 1, 0]))
    task[where][2] = np.nan
    muted = thresholds.curves(**task, weight=np.array([1.0, 1, 0]))
    np.testing.assert_array_equal(whole, muted)
    with pytest.raises(InputError, match="NaN"):
        thresholds.curves(**task, weight=np.ones(3))


def test_the_operating_points_of_a_report_reach_the_rates_in_their_names():
    score, label, weight = (x[:, None] for x in drawn(5, n=900, rare=0.3))
    images = np.arange(900)
    found = thresholds.operating(Predictions(images, images, score, label, weight))
    names = [f"{r} {v}" for r in ("specificity", "sensitivity") for v in (0.9, 0.95)]
    assert list(found) == names
    called = score[weight > 0] >= np.stack([*found.values()])
    label = label[weight > 0].astype(bool)
    specificity, sensitivity = ~called[:, ~label], called[:, label]
    for rate, points in ((specificity, (0, 1)), (sensitivity, (2, 3))):
        reached = rate[list(points)].mean(axis=1)
        assert (reached >= [0.9, 0.95]).all() and (reached < [0.92, 0.97]).all()


KEY, REPLICATES = jax.random.key(3), 60


@pytest.fixture(scope="module")
def films():
    """Three findings, the last without a positive; films without a known label."""
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 60, 240) + 1000
    label = (rng.random((240, 3)) < (0.3, 0.1, 0)).astype(np.float32)
    score = (rng.random((240, 3)) + 0.6 * label).astype(np.float32)
    score[:, 1] = np.round(score[:, 1], 1)  # Ties.
    weight = (rng.random((240, 3)) < 0.9).astype(np.float32)
    weight[:7] = 0
    label = np.where(weight > 0, label, np.nan).astype(np.float32)
    return Predictions(np.arange(240), patient, score, label, weight)


def brute_force(films, t):
    """The whole and each replicate sorted by scikit-learn, and read at the grid."""
    rows = films.weight.any(axis=1)
    names, index = np.unique(films.patient[rows], return_inverse=True)
    drawn = np.asarray(multiplicities(KEY, np.arange(REPLICATES), len(names)))
    score, label, weight = (x[rows][:, t] for x in films[2:5])
    tprs, precisions = [], []
    for count in (np.ones(len(names)), *drawn.T):
        w = weight * count[index]
        known = w > 0
        y, s, w = label[known], score[known], w[known]
        fpr, tpr, _ = roc_curve(y, s, sample_weight=w, drop_intermediate=False)
        tprs.append(np.interp(thresholds.GRID, fpr, tpr))
        precision, recall, _ = precision_recall_curve(y, s, sample_weight=w)
        ok = [np.flatnonzero(recall >= r - 1e-5)[-1] for r in thresholds.GRID[1:]]
        precisions.append(precision[ok])
    people = len(np.unique(index[(weight > 0) & (label == 1)]))
    sizes = np.full(101, people), people * thresholds.GRID[1:]
    return (
        np.transpose([ends(column, n) for column, n in zip(np.transpose(x), size)])
        for x, size in zip((tprs, precisions), sizes)
    )


def ends(values, n):
    """Wilson's of the first value, by the variance of the others; less than half a case
    from 0 or 1 the exact one of so many."""
    first, n = values[0], max(n, 1)
    if first > 1 - 0.5 / n:
        return 0.025 ** (1 / n), 1
    if first < 0.5 / n:
        return 0, 1 - 0.025 ** (1 / n)
    return (first, first) if np.ptp(values[1:]) < 1e-6 else wilson(first, values[1:])


def test_fewer_than_ten_patients_of_a_class_have_no_band(films):
    one = np.flatnonzero(films.label[:, 1] == 1)
    rare = films.label.copy()
    patients = np.unique(films.patient[one])
    for most, shown in ((9, ["a"]), (10, ["a", "b"])):
        keep = np.isin(films.patient, patients[:most])
        rare[:, 1] = np.where(keep, films.label[:, 1], 0 * films.label[:, 1])
        bands = thresholds.bands(
            films._replace(label=rare),
            tasks=("a", "b", "c"),
            key=KEY,
            replicates=REPLICATES,
        )
        assert list(bands) == shown


def test_with_all_scores_a_band_is_that_of_sorted_replicates(films, monkeypatch):
    monkeypatch.setattr(thresholds, "MAX_THRESHOLDS", 240)
    found = thresholds.bands(
        films, tasks=("a", "b", "none"), key=KEY, replicates=REPLICATES
    )
    assert list(found) == ["a", "b"]
    for t, one in enumerate(found.values()):
        tpr, precision = brute_force(films, t)
        roc, recall = one["roc"], one["precision_recall"]
        np.testing.assert_allclose([roc["low"], roc["high"]], tpr, atol=5e-4)
        ends = [recall["low"], recall["high"]]
        np.testing.assert_allclose(ends, precision, atol=5e-4)
        np.testing.assert_allclose(roc["fpr"], thresholds.GRID)
        np.testing.assert_allclose(recall["recall"], thresholds.GRID[1:])


def test_fewer_thresholds_move_a_band_by_their_distance(films, monkeypatch):
    def ends(most):
        monkeypatch.setattr(thresholds, "MAX_THRESHOLDS", most)
        options = {"key": KEY, "replicates": REPLICATES}
        found = thresholds.bands(films, tasks=("a", "b", "none"), **options)["a"]["roc"]
        return np.array([found["low"], found["high"]])

    distance = np.abs(ends(60) - ends(240))
    assert 0 < np.quantile(distance, 0.95) < 2 / 59
    assert distance.mean() < 0.01


def test_without_a_task_of_both_classes_there_is_no_band(films):
    empty = films._replace(label=np.zeros_like(films.label))
    assert thresholds.bands(empty, tasks="abc", key=KEY, replicates=5) == {}

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from imblearn.over_sampling import RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler

from medjax.cohort import balance
from medjax.errors import InputError

NINE_TO_ONE = np.array([0.0] * 900 + [1.0] * 100)[:, None]
TARGETS = st.floats(0.01, 0.5)
LABELS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 4)),
    elements=st.sampled_from([0, 0, 0, 0, 1, math.nan]),
)


def counts(label, copies):
    """Films of the class that is rarer at first, and known films, after resampling."""
    rarer, total = [], []
    for column in label.T:
        few = float(np.sum(column == 1) <= np.sum(column == 0))
        rarer.append(sum(c for y, c in zip(column, copies, strict=True) if y == few))
        total.append(sum(c for y, c in zip(column, copies, strict=True) if y >= 0))
    return np.array(rarer), np.array(total)


def is_rarer(label):
    few = np.sum(label == 1, axis=0) <= np.sum(label == 0, axis=0)
    return label == few  # NaN equals neither.


def unreached(label, copies, target):
    rarer, total = counts(label, copies)
    return (rarer == 0) | (rarer < target * total - 1e-6)


def nih_like(films, seed=0):
    """14 findings as frequent as those of ChestX-ray14."""
    share = [10.3, 2.5, 11.9, 17.7, 5.2, 5.6, 1.3, 4.7, 4.2, 2.1, 2.2, 1.5, 3.0, 0.2]
    rng = np.random.default_rng(seed)
    return (rng.random((films, 14)) < np.array(share) / 100).astype(float)


def test_a_binary_task_gets_the_counts_of_imbalanced_learn():
    x, y = np.arange(1000)[:, None], NINE_TO_ONE[:, 0].astype(int)
    _, expected = RandomOverSampler(random_state=0).fit_resample(x, y)
    plan = balance.over_sample(NINE_TO_ONE, seed=0, most=1000)
    np.testing.assert_array_equal(np.bincount(y[plan.index]), np.bincount(expected))
    assert set(plan.copies[900:]) == {9} and plan.most == 9  # Evenly, not by chance.
    _, expected = RandomUnderSampler(random_state=0).fit_resample(x, y)
    plan = balance.under_sample(NINE_TO_ONE, seed=0)
    np.testing.assert_array_equal(np.bincount(y[plan.index]), np.bincount(expected))
    assert plan.most == 1


@pytest.mark.parametrize("target", [0.07, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("flip", [False, True])
def test_a_binary_task_changes_by_no_film_more_than_it_must(target, flip):
    label = np.array([0.0] * 950 + [1.0] * 50)[:, None]
    label = 1 - label if flip else label
    for method, change in (
        (balance.over_sample, lambda k: (50 + k) / (1000 + k)),
        (balance.under_sample, lambda k: 50 / (1000 - k)),
    ):
        least = next(k for k in range(1000) if change(k) >= target - 1e-12)
        options = {"most": 100} if method is balance.over_sample else {}
        plan = method(label, seed=1, target=target, **options)
        assert abs(len(plan.index) - 1000) == least
        assert not plan.missed.any()


@settings(max_examples=60, deadline=None)
@given(LABELS, TARGETS, st.integers(1, 6), st.integers(0, 9))
def test_over_sampling_leaves_no_film_out_and_copies_only_rarer_ones(
    label, target, most, seed
):
    plan = balance.over_sample(label, seed=seed, target=target, most=most)
    rarer = is_rarer(label)
    assert plan.copies.min() >= 1 and plan.most <= most
    assert (plan.copies[~rarer.any(axis=1)] == 1).all()
    missed = unreached(label, plan.copies, target)
    np.testing.assert_array_equal(plan.missed, missed)
    # Out of reach means: every film that could help is there as often as it may be.
    assert (plan.copies[rarer[:, missed].any(axis=1)] == most).all()


@settings(max_examples=60, deadline=None)
@given(LABELS, TARGETS, st.integers(0, 9))
def test_under_sampling_loses_no_film_of_a_rarer_class(label, target, seed):
    plan = balance.under_sample(label, seed=seed, target=target)
    rarer = is_rarer(label)
    assert plan.most == 1
    assert (plan.copies[rarer.any(axis=1)] == 1).all()
    missed = unreached(label, plan.copies, target)
    np.testing.assert_array_equal(plan.missed, missed)
    # Out of reach means: no film is left that could help.
    some = missed & rarer.any(axis=0)
    helpful = ~rarer.any(axis=1) & (~np.isnan(label[:, some])).any(axis=1)
    assert (plan.copies[helpful] == 0).all()
    # A film that has no known label of a lacking task had no reason to go.
    lacking = unreached(label, np.ones(len(label)), target) & rarer.any(axis=0)
    assert (plan.copies[np.isnan(label[:, lacking]).all(axis=1)] == 1).all()


@settings(max_examples=40, deadline=None)
@given(LABELS, TARGETS, st.integers(0, 9))
def test_both_loses_no_film_of_a_rarer_class_and_copies_no_other(label, target, seed):
    plan = balance.both(label, seed=seed, target=target, most=5)
    rarer = is_rarer(label).any(axis=1)
    assert (plan.copies[rarer] >= 1).all() and (plan.copies[~rarer] <= 1).all()
    assert plan.most <= 5
    np.testing.assert_array_equal(plan.missed, unreached(label, plan.copies, target))


def test_both_meets_half_way():
    label = np.array([0.0] * 990 + [1.0] * 10)[:, None]
    plan = balance.both(label, seed=0, target=0.25)
    # From 0.01 to 0.05 by copies, from there to 0.25 by leaving films out.
    positives = math.ceil(0.05 * 990 / 0.95)
    assert plan.copies[990:].sum() == positives
    assert plan.copies[:990].sum() == 3 * positives


def test_tasks_with_targets_within_reach_all_reach_them():
    label = nih_like(5000)
    label[np.random.default_rng(1).random(label.shape) < 0.1] = math.nan
    plan = balance.over_sample(label, seed=0, target=0.05, most=60)
    assert not plan.missed.any()
    assert not unreached(label, plan.copies, 0.05).any()
    shares = np.divide(*counts(label, plan.copies))
    before = np.divide(*counts(label, np.ones(5000)))
    assert shares[before < 0.04].max() < 0.06  # None runs far ahead.
    target = np.where(np.arange(14) == 13, 0.02, 0.001)
    plan = balance.over_sample(label, seed=0, target=target, most=60)
    extra = plan.copies > 1
    assert extra.any() and (label[extra, 13] == 1).all()


def test_the_task_furthest_from_its_target_comes_first():
    label = np.zeros((1000, 2))
    label[:100, 0] = label[:10, 1] = 1
    for order in ([0, 1], [1, 0]):
        plan = balance.over_sample(label[:, order], seed=0, target=0.2, most=30)
        # (10 + 238) / 1238 is one fifth; the other task has those copies for free.
        assert len(plan.index) == 1238 and (plan.copies[10:] == 1).all()


@pytest.mark.parametrize("method", [balance.over_sample, balance.under_sample])
def test_one_hot_classes_become_equally_frequent(method):
    label = np.repeat(np.eye(4), [700, 200, 80, 20], axis=0)
    options = {"most": 100} if method is balance.over_sample else {}
    plan = method(label, seed=0, target=0.25, **options)
    after = label[plan.index].sum(axis=0)
    if method is balance.over_sample:
        assert np.ptp(after) <= 0.01 * after.max()
    else:  # The largest class alone is of no rarer class, being more than half.
        np.testing.assert_array_equal(after[1:], [200, 80, 20])
        assert plan.missed.any()


def test_any_finding_is_one_task():
    nan = math.nan
    rows = [[0, 0]] * 8 + [[1, 0], [0, 1], [nan, 1], [nan, 0]]
    plan = balance.over_sample(np.array(rows), seed=0, any_positive=True)
    # Three films with a finding against eight without; the last one is unknown.
    assert plan.copies[8:11].sum() == 8 and np.ptp(plan.copies[8:11]) == 1
    assert (np.delete(plan.copies, [8, 9, 10]) == 1).all()
    assert plan.missed.shape == (1,)


@settings(max_examples=40, deadline=None)
@given(LABELS, TARGETS, st.integers(0, 9))
def test_repeat_factors_are_those_of_lvis(label, target, seed):
    plan = balance.repeat_factor(label, seed=seed, target=target)
    for row, copies in zip(label, plan.copies, strict=True):
        factor = 1.0
        for t, y in enumerate(row):
            if y == 1:
                known = label[:, t][~np.isnan(label[:, t])]
                factor = max(factor, math.sqrt(target / np.mean(known == 1)))
        assert math.floor(factor) <= copies <= math.ceil(factor)


def test_repeat_factors_are_right_in_the_mean():
    label = np.array([0.0] * 9900 + [1.0] * 100)[:, None]
    plans = [balance.repeat_factor(label, seed=s, target=0.05) for s in range(30)]
    mean = np.mean([plan.copies[9900:] for plan in plans])
    assert abs(mean - math.sqrt(5)) < 5 * 0.5 / math.sqrt(3000)


METHODS = (balance.over_sample, balance.under_sample, balance.both)


@pytest.mark.parametrize("method", [*METHODS, balance.repeat_factor])
def test_the_seed_alone_decides(method):
    label = np.random.default_rng(0).random((2000, 3)) < [0.02, 0.1, 0.2]
    first, second, other = (method(label, seed=s, target=0.05) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.index, second.index)
    assert not np.array_equal(first.index, other.index)
    single = method(label.astype(np.float32), seed=1, target=0.05)
    np.testing.assert_array_equal(first.index, single.index)


@pytest.mark.parametrize("method", [*METHODS, balance.repeat_factor])
def test_unknown_labels_are_never_read(method):
    label = nih_like(600)
    unknown = np.random.default_rng(0).random(label.shape) < 0.3
    expected = method(np.where(unknown, math.nan, label), seed=1, target=0.2)
    for filling in (0, 1, -7):
        filled = np.where(unknown, filling, label)
        plan = method(filled, 2.0 * ~unknown, seed=1, target=0.2)
        np.testing.assert_array_equal(plan.index, expected.index)


@pytest.mark.parametrize("method", [*METHODS, balance.repeat_factor])
def test_no_film_of_another_split_gets_in(method):
    label, patient = nih_like(600), np.arange(600) // 3
    training = np.flatnonzero(patient % 5 > 0)  # The others' patients are elsewhere.
    plan = method(label[training], seed=0, target=0.2)
    assert plan.index.dtype == np.int64 and (np.diff(plan.index) >= 0).all()
    assert 0 <= plan.index.min() and plan.index.max() < len(training) == plan.films
    assert (patient[training[plan.index]] % 5 > 0).all()


def test_a_plan_is_described_in_one_line():
    label = np.column_stack([NINE_TO_ONE[:, 0], np.arange(1000) == 999])
    plan = balance.over_sample(label, seed=0, target=[0.2, 0.3], most=30)
    text = plan.describe(["mass", "hernia"], label)
    n = len(plan.index)
    for part in (
        f"1000 -> {n} films, 0 left out",
        "most repeated film appears 30 times",
        f"mass 0.1000 -> {label[plan.index, 0].mean():.4f}",
        f"hernia 0.0010 -> {30 / n:.4f}",
        "target out of reach for hernia",
    ):
        assert part in text
    plan = balance.under_sample(label, seed=0, target=0.2, any_positive=True)
    text = plan.describe(["mass", "hernia"], label)
    assert "1000 -> 500 films, 500 left out" in text and "\n" not in text
    assert "out of reach" not in text
    plan = balance.over_sample(label * 0, seed=0, any_positive=True)
    assert "for any finding" in plan.describe(["mass", "hernia"], label * 0)


def test_the_whole_of_chestxray14_takes_a_moment():
    label = nih_like(112_120)
    # Not all of 14 findings can be at one half: each film is there to its limit.
    plan = balance.over_sample(label, seed=0, target=0.5, most=10)
    assert (plan.copies[label.any(axis=1)] == 10).all() and plan.missed.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.6}, "target: 0.6"),
        ({"target": 0}, "target: 0"),
        ({"target": [0.1, 0.2]}, "target: shape"),
        ({"most": 0}, "most: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"weight": np.ones((3, 1))}, "weight: shape"),
        ({"weight": -np.ones((1000, 1))}, "weight: negative"),
        ({"label": NINE_TO_ONE - 1}, "label: outside"),
        ({"label": NINE_TO_ONE[:0]}, "label: shape"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        balance.over_sample(**{"label": NINE_TO_ONE, "seed": 0, **options})

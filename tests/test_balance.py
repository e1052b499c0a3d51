"""Class weights and sampling, against scikit-learn, imbalanced-learn and formulas."""

import math
from decimal import Decimal

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from imblearn.over_sampling import RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler
from sklearn.utils.class_weight import compute_class_weight

from medjax.cohort import balance
from medjax.errors import InputError

NINE_TO_ONE = np.array([0.0] * 900 + [1.0] * 100)[:, None]
BALANCING = ("ratio", "balanced", "effective")


def one_hot(*films):
    return np.repeat(np.eye(len(films)), films, axis=0)


def effective(counts, beta):
    """Cui et al. in 60 digits."""
    beta = Decimal(beta)
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    return [float(w * len(raw) / sum(raw)) for w in raw]


@pytest.mark.parametrize(
    ("scheme", "w_neg", "w_pos"),
    [("ratio", 0.1, 0.9), ("balanced", 0.5556, 5.0), ("uniform", 1, 1)],
)
def test_900_to_100_gives_the_published_weights(scheme, w_neg, w_pos):
    got = balance.class_weights(NINE_TO_ONE, tasks=["a"], scheme=scheme)
    np.testing.assert_allclose([got.w_neg[0], got.w_pos[0]], [w_neg, w_pos], atol=1e-4)
    assert got.w_neg.dtype == got.w_pos.dtype == np.float32


def some_tasks():
    rng = np.random.default_rng(1)
    label = (rng.random((500, 3)) < [0.02, 0.3, 0.8]).astype(float)
    label[rng.random(label.shape) < 0.2] = np.nan
    return label


@pytest.mark.parametrize("scheme", ["ratio", "balanced"])
def test_both_classes_of_a_task_contribute_equally(scheme):
    label = some_tasks()
    got = balance.class_weights(label, tasks="abc", scheme=scheme)
    positives, negatives = (label == 1).sum(0), (label == 0).sum(0)
    np.testing.assert_allclose(got.w_pos * positives, got.w_neg * negatives, rtol=1e-6)


def test_balanced_is_that_of_scikit_learn():
    label = some_tasks()
    got = balance.class_weights(label, scheme="balanced")
    for t, column in enumerate(label.T):
        y = column[~np.isnan(column)]
        expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=y)
        np.testing.assert_allclose([got.w_neg[t], got.w_pos[t]], expected, rtol=1e-6)
    y = np.repeat([0, 1, 2], [70, 25, 5])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    got = balance.multiclass_weights(np.eye(3)[y], scheme="balanced")
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("beta", ["0.9", "0.999", "0.999999999"])
@pytest.mark.parametrize("positives", [1, 7, 100_000])
def test_effective_is_the_formula_of_cui_et_al(monkeypatch, beta, positives):
    monkeypatch.setattr(balance, "BETA", float(beta))
    label = np.zeros((200_000, 1))
    label[:positives] = 1
    got = balance.class_weights(label, scheme="effective")
    expected = effective([positives, 200_000 - positives], beta)
    np.testing.assert_allclose([got.w_pos[0], got.w_neg[0]], expected, rtol=1e-5)
    classes = balance.multiclass_weights(
        one_hot(positives, 30, 2000), scheme="effective"
    )
    expected = effective([positives, 30, 2000], beta)
    np.testing.assert_allclose(classes, expected, rtol=1e-5)


def test_effective_weights_of_a_million_films_are_finite():
    label = (np.arange(1_000_001) == 0)[:, None]
    got = balance.class_weights(label, scheme="effective")
    expected = effective([1, 1_000_000], "0.999")
    np.testing.assert_allclose([got.w_pos[0], got.w_neg[0]], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("ratio", [0.3, 0.75, 0.95]), ("uniform", [1, 1, 1])],
)
def test_classes_of_70_25_5_films_get_the_weights_of_the_formula(scheme, expected):
    got = balance.multiclass_weights(one_hot(70, 25, 5), scheme=scheme)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == np.float32


def test_unknown_labels_do_not_count():
    label = np.array([[1.0], [0.0], [0.0], [np.nan], [np.nan]])
    positives, negatives = balance.frequencies(label)
    assert (positives[0], negatives[0]) == (1, 2)


def test_soft_labels_count_in_proportion():
    positives, negatives = balance.frequencies(np.array([[1.0], [0.25], [0.0]]))
    assert (positives[0], negatives[0]) == (1.25, 1.75)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("scheme", BALANCING)
def test_a_task_of_one_class_is_an_error_that_names_it(value, scheme):
    label = np.column_stack([NINE_TO_ONE[:, 0], np.full(1000, value)])
    with pytest.raises(InputError, match=r"for hernia: .*resampling\.drop=True"):
        balance.class_weights(label, tasks=["mass", "hernia"], scheme=scheme)
    with pytest.raises(InputError, match="for 1: "):
        balance.class_weights(label, scheme=scheme)


def test_uniform_weights_ask_for_no_class():
    label = np.zeros((5, 2))
    got = balance.class_weights(label, scheme="uniform")
    np.testing.assert_array_equal(got, np.ones((2, 2)))


@pytest.mark.parametrize("scheme", (*BALANCING, "uniform"))
def test_a_dropped_task_counts_for_nothing(scheme):
    column = NINE_TO_ONE[:, 0]
    label = np.column_stack([column, column * 0, column * 0 + 1, column * math.nan])
    got = balance.class_weights(label, scheme=scheme, drop=True)
    alone = balance.class_weights(NINE_TO_ONE, scheme=scheme)
    np.testing.assert_array_equal(got.w_pos, [*alone.w_pos, 0, 0, 0])
    np.testing.assert_array_equal(got.w_neg, [*alone.w_neg, 0, 0, 0])
    with pytest.raises(InputError, match="no task has two classes"):
        balance.class_weights(label[:, 1:], scheme=scheme, drop=True)


@pytest.mark.parametrize("scheme", BALANCING)
def test_a_class_without_an_image_is_an_error_or_dropped(scheme):
    label = one_hot(70, 0, 30)
    with pytest.raises(InputError, match=r"class glioma: .*resampling\.drop=True"):
        balance.multiclass_weights(
            label, scheme=scheme, classes=["none", "glioma", "other"]
        )
    got = balance.multiclass_weights(label, scheme=scheme, drop=True)
    alone = balance.multiclass_weights(label[:, [0, 2]], scheme=scheme)
    np.testing.assert_array_equal(got, [alone[0], 0, alone[1]])


def test_images_without_a_class_do_not_count():
    label = one_hot(5, 5)
    label[0] = math.nan
    got = balance.multiclass_weights(label, scheme="ratio")
    np.testing.assert_allclose(got, [5 / 9, 4 / 9], rtol=1e-6)


# ------------------------------------------------------------------ sampling

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
    epoch = balance.over_sample(NINE_TO_ONE, seed=0, most=1000)
    np.testing.assert_array_equal(np.bincount(y[epoch.index]), np.bincount(expected))
    assert (
        set(epoch.copies[900:]) == {9} and epoch.copies.max() == 9
    )  # Evenly, not by chance.
    _, expected = RandomUnderSampler(random_state=0).fit_resample(x, y)
    epoch = balance.under_sample(NINE_TO_ONE, seed=0)
    np.testing.assert_array_equal(np.bincount(y[epoch.index]), np.bincount(expected))
    assert epoch.copies.max() == 1


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
        epoch = method(label, seed=1, target=target, **options)
        assert abs(len(epoch.index) - 1000) == least
        assert not epoch.missed.any()


@settings(max_examples=60, deadline=None)
@given(LABELS, TARGETS, st.integers(1, 6), st.integers(0, 9))
def test_over_sampling_leaves_no_film_out_and_copies_only_rarer_ones(
    label, target, most, seed
):
    epoch = balance.over_sample(label, seed=seed, target=target, most=most)
    rarer = is_rarer(label)
    assert epoch.copies.min() >= 1 and epoch.copies.max() <= most
    assert (epoch.copies[~rarer.any(axis=1)] == 1).all()
    missed = unreached(label, epoch.copies, target)
    np.testing.assert_array_equal(epoch.missed, missed)
    # Out of reach means: every film that could help is there as often as it may be.
    assert (epoch.copies[rarer[:, missed].any(axis=1)] == most).all()


@settings(max_examples=60, deadline=None)
@given(LABELS, TARGETS, st.integers(0, 9))
def test_under_sampling_loses_no_film_of_a_rarer_class(label, target, seed):
    epoch = balance.under_sample(label, seed=seed, target=target)
    rarer = is_rarer(label)
    assert epoch.copies.max() == 1
    assert (epoch.copies[rarer.any(axis=1)] == 1).all()
    missed = unreached(label, epoch.copies, target)
    np.testing.assert_array_equal(epoch.missed, missed)
    # Out of reach means: no film is left that could help.
    some = missed & rarer.any(axis=0)
    helpful = ~rarer.any(axis=1) & (~np.isnan(label[:, some])).any(axis=1)
    assert (epoch.copies[helpful] == 0).all()
    # A film that has no known label of a lacking task had no reason to go.
    lacking = unreached(label, np.ones(len(label)), target) & rarer.any(axis=0)
    assert (epoch.copies[np.isnan(label[:, lacking]).all(axis=1)] == 1).all()


@settings(max_examples=40, deadline=None)
@given(LABELS, TARGETS, st.integers(0, 9))
def test_both_loses_no_film_of_a_rarer_class_and_copies_no_other(label, target, seed):
    epoch = balance.both(label, seed=seed, target=target, most=5)
    rarer = is_rarer(label).any(axis=1)
    assert (epoch.copies[rarer] >= 1).all() and (epoch.copies[~rarer] <= 1).all()
    assert epoch.copies.max() <= 5
    np.testing.assert_array_equal(epoch.missed, unreached(label, epoch.copies, target))


def test_both_meets_half_way():
    label = np.array([0.0] * 990 + [1.0] * 10)[:, None]
    epoch = balance.both(label, seed=0, target=0.25)
    # From 0.01 to 0.05 by copies, from there to 0.25 by leaving films out.
    positives = math.ceil(0.05 * 990 / 0.95)
    assert epoch.copies[990:].sum() == positives
    assert epoch.copies[:990].sum() == 3 * positives


def test_tasks_with_targets_within_reach_all_reach_them():
    label = nih_like(5000)
    label[np.random.default_rng(1).random(label.shape) < 0.1] = math.nan
    epoch = balance.over_sample(label, seed=0, target=0.05, most=60)
    assert not epoch.missed.any()
    assert not unreached(label, epoch.copies, 0.05).any()
    shares = np.divide(*counts(label, epoch.copies))
    before = np.divide(*counts(label, np.ones(5000)))
    assert shares[before < 0.04].max() < 0.06  # None runs far ahead.
    target = np.where(np.arange(14) == 13, 0.02, 0.001)
    epoch = balance.over_sample(label, seed=0, target=target, most=60)
    extra = epoch.copies > 1
    assert extra.any() and (label[extra, 13] == 1).all()


def test_the_task_furthest_from_its_target_comes_first():
    label = np.zeros((1000, 2))
    label[:100, 0] = label[:10, 1] = 1
    for order in ([0, 1], [1, 0]):
        epoch = balance.over_sample(label[:, order], seed=0, target=0.2, most=30)
        # (10 + 238) / 1238 is one fifth; the other task has those copies for free.
        assert len(epoch.index) == 1238 and (epoch.copies[10:] == 1).all()


@pytest.mark.parametrize("method", [balance.over_sample, balance.under_sample])
def test_one_hot_classes_become_equally_frequent(method):
    label = np.repeat(np.eye(4), [700, 200, 80, 20], axis=0)
    options = {"most": 100} if method is balance.over_sample else {}
    epoch = method(label, seed=0, target=0.25, **options)
    after = label[epoch.index].sum(axis=0)
    if method is balance.over_sample:
        assert np.ptp(after) <= 0.01 * after.max()
    else:  # The largest class alone is of no rarer class, being more than half.
        np.testing.assert_array_equal(after[1:], [200, 80, 20])
        assert epoch.missed.any()


def test_any_finding_is_one_task():
    nan = math.nan
    rows = [[0, 0]] * 8 + [[1, 0], [0, 1], [nan, 1], [nan, 0]]
    epoch = balance.over_sample(np.array(rows), seed=0, any_positive=True)
    # Three films with a finding against eight without; the last one is unknown.
    assert epoch.copies[8:11].sum() == 8 and np.ptp(epoch.copies[8:11]) == 1
    assert (np.delete(epoch.copies, [8, 9, 10]) == 1).all()
    assert epoch.missed.shape == (1,)


@settings(max_examples=40, deadline=None)
@given(LABELS, TARGETS, st.integers(0, 9))
def test_repeat_factors_are_those_of_lvis(label, target, seed):
    epoch = balance.repeat_factor(label, seed=seed, target=target)
    for row, copies in zip(label, epoch.copies, strict=True):
        factor = 1.0
        for t, y in enumerate(row):
            if y == 1:
                known = label[:, t][~np.isnan(label[:, t])]
                factor = max(factor, math.sqrt(target / np.mean(known == 1)))
        assert math.floor(factor) <= copies <= math.ceil(factor)


def test_repeat_factors_are_right_in_the_mean():
    label = np.array([0.0] * 9900 + [1.0] * 100)[:, None]
    epochs = [balance.repeat_factor(label, seed=s, target=0.05) for s in range(30)]
    mean = np.mean([epoch.copies[9900:] for epoch in epochs])
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
def test_no_film_of_another_split_gets_in(method):
    label, patient = nih_like(600), np.arange(600) // 3
    training = np.flatnonzero(patient % 5 > 0)  # The others' patients are elsewhere.
    epoch = method(label[training], seed=0, target=0.2)
    assert epoch.index.dtype == np.int64 and (np.diff(epoch.index) >= 0).all()
    assert 0 <= epoch.index.min() and epoch.index.max() < len(training) == len(
        epoch.copies
    )
    assert (patient[training[epoch.index]] % 5 > 0).all()


def test_sampling_is_described_in_one_line():
    label = np.column_stack([NINE_TO_ONE[:, 0], np.arange(1000) == 999])
    epoch = balance.over_sample(label, seed=0, target=[0.2, 0.3], most=30)
    text = epoch.describe(["mass", "hernia"], label)
    n = len(epoch.index)
    for part in (
        f"1000 -> {n} images, 0 left out",
        "most repeated image appears 30 times",
        f"mass 0.1000 -> {label[epoch.index, 0].mean():.4f}",
        f"hernia 0.0010 -> {30 / n:.4f}",
        "target out of reach for hernia",
    ):
        assert part in text
    epoch = balance.under_sample(label, seed=0, target=0.2, any_positive=True)
    text = epoch.describe(["mass", "hernia"], label)
    assert "1000 -> 500 images, 500 left out" in text and "\n" not in text
    assert "out of reach" not in text
    epoch = balance.over_sample(label * 0, seed=0, any_positive=True)
    assert "for any finding" in epoch.describe(["mass", "hernia"], label * 0)


def test_the_whole_of_chestxray14_takes_a_moment():
    label = nih_like(112_120)
    # Not all of 14 findings can be at one half: each film is there to its limit.
    epoch = balance.over_sample(label, seed=0, target=0.5, most=10)
    assert (epoch.copies[label.any(axis=1)] == 10).all() and epoch.missed.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.6}, "target: 0.6"),
        ({"target": 0}, "target: 0"),
        ({"target": [0.1, 0.2]}, "target: shape"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        balance.over_sample(**{"label": NINE_TO_ONE, "seed": 0, **options})

import math
from decimal import Decimal

import numpy as np
import pytest
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
def test_effective_is_the_formula_of_cui_et_al(beta, positives):
    label = np.zeros((200_000, 1))
    label[:positives] = 1
    got = balance.class_weights(label, scheme="effective", beta=float(beta))
    expected = effective([positives, 200_000 - positives], beta)
    np.testing.assert_allclose([got.w_pos[0], got.w_neg[0]], expected, rtol=1e-5)
    classes = balance.multiclass_weights(
        one_hot(positives, 30, 2000), scheme="effective", beta=float(beta)
    )
    expected = effective([positives, 30, 2000], beta)
    np.testing.assert_allclose(classes, expected, rtol=1e-5)


def test_effective_weights_of_a_million_films_are_finite():
    counted = np.ones((2, 1)), np.array([[1e6], [1.0]])
    label = counted[0] * [[0], [1]]
    got = balance.class_weights(label, counted[1], scheme="effective", beta=0.9999)
    expected = effective([1, 1_000_000], "0.9999")
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
    weight = np.array([[1.0], [0.0], [1.0], [1.0], [0.0]])
    label[4] = -1  # Uncertain, in CheXpert's writing.
    positives, negatives = balance.frequencies(label, weight)
    assert (positives[0], negatives[0]) == (1, 1)


def test_weights_and_soft_labels_count_in_proportion():
    label, weight = np.array([[1.0], [0.25], [0.0]]), np.array([[3.0], [2.0], [0.5]])
    positives, negatives = balance.frequencies(label, weight)
    assert (positives[0], negatives[0]) == (3.5, 2.0)


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


@pytest.mark.parametrize("scheme", balance.SCHEMES)
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


def test_labels_that_are_not_one_hot_are_an_error():
    label = one_hot(5, 5)
    label[0] = 1
    with pytest.raises(InputError, match="label: 1 films"):
        balance.multiclass_weights(label, scheme="ratio")
    label[0] = math.nan
    got = balance.multiclass_weights(label, scheme="ratio")
    np.testing.assert_allclose(got, [5 / 9, 4 / 9], rtol=1e-6)
    label[0, 0] = 1
    with pytest.raises(InputError, match="label: 1 films"):
        balance.multiclass_weights(label, scheme="ratio")


def test_an_unknown_scheme_or_beta_is_an_error_that_says_what_to_give():
    with pytest.raises(InputError, match=r"'ration'.*ratio"):
        balance.class_weights(NINE_TO_ONE, tasks=["a"], scheme="ration")
    with pytest.raises(InputError, match="beta: 1"):
        balance.class_weights(NINE_TO_ONE, scheme="effective", beta=1.0)

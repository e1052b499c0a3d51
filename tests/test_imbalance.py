import numpy as np
import pytest

from medjax.cohort import imbalance
from medjax.errors import InputError

NINE_TO_ONE = np.array([0.0] * 900 + [1.0] * 100)[:, None]


@pytest.mark.parametrize(
    ("scheme", "w_neg", "w_pos"),
    [("ratio", 0.1, 0.9), ("balanced", 0.5556, 5.0), ("uniform", 1, 1)],
)
def test_900_to_100_gives_the_published_weights(scheme, w_neg, w_pos):
    got = imbalance.class_weights(NINE_TO_ONE, tasks=["a"], scheme=scheme)
    np.testing.assert_allclose([got.w_neg[0], got.w_pos[0]], [w_neg, w_pos], atol=1e-4)


@pytest.mark.parametrize("scheme", ["ratio", "balanced"])
def test_both_classes_of_a_task_contribute_equally(scheme):
    rng = np.random.default_rng(1)
    label = (rng.random((500, 3)) < [0.02, 0.3, 0.8]).astype(float)
    label[rng.random(label.shape) < 0.2] = np.nan
    got = imbalance.class_weights(label, tasks="abc", scheme=scheme)
    positives, negatives = (label == 1).sum(0), (label == 0).sum(0)
    np.testing.assert_allclose(got.w_pos * positives, got.w_neg * negatives, rtol=1e-6)


def test_unknown_labels_do_not_count():
    label = np.array([[1.0], [0.0], [0.0], [np.nan], [np.nan]])
    positives, negatives = imbalance.frequencies(label)
    assert (positives[0], negatives[0]) == (1, 2)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_task_of_one_class_is_an_error_that_names_it(value):
    label = np.column_stack([NINE_TO_ONE[:, 0], np.full(1000, value)])
    with pytest.raises(InputError, match="hernia"):
        imbalance.class_weights(label, tasks=["mass", "hernia"])


def test_an_unknown_scheme_is_an_error_that_lists_the_known():
    with pytest.raises(InputError, match=r"(?s)'ration'.*ratio"):
        imbalance.class_weights(NINE_TO_ONE, tasks=["a"], scheme="ration")

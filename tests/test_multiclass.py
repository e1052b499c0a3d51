import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from medjax.evaluation import discrimination, metrics


def example(images=400, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.choice(classes, images, p=[0.6, 0.25, 0.1, 0.05])
    score = rng.random((images, classes)) + 0.7 * np.eye(classes)[true]
    return score.astype(np.float32), np.eye(classes, dtype=np.float32)[true], true


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_matrix_and_its_rates_are_scikit_learns(seed):
    score, label, true = example(seed=seed)
    weight = np.ones_like(label)
    weight[::7] = 0
    known = weight[:, 0] > 0
    label[~known] = np.nan
    said, true = score[known].argmax(1), true[known]
    matrix = np.asarray(metrics.class_cells(score, label, weight).sum(0))
    np.testing.assert_array_equal(matrix, oracle.confusion_matrix(true, said))
    got = metrics.class_rates(matrix)
    expected = {
        "accuracy": oracle.accuracy_score(true, said),
        "balanced_accuracy": oracle.balanced_accuracy_score(true, said),
        "macro_f1": oracle.f1_score(true, said, average="macro"),
        "weighted_f1": oracle.f1_score(true, said, average="weighted"),
        "kappa": oracle.cohen_kappa_score(true, said),
        "weighted_kappa": oracle.cohen_kappa_score(true, said, weights="quadratic"),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, 1e-6, 1e-6, err_msg=name)


def test_a_class_without_images_is_left_out_of_the_means():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]], np.float32)
    got = metrics.class_rates(matrix)
    np.testing.assert_allclose(got["balanced_accuracy"], (3 / 4 + 1) / 2)
    np.testing.assert_allclose(got["macro_f1"], (6 / 7 + 8 / 9) / 2, rtol=1e-6)
    alone = metrics.class_rates(np.diag([5.0, 0, 0]))
    assert np.isnan(alone["kappa"]) and alone["accuracy"] == 1
    with np.errstate(invalid="ignore"):
        nobody = metrics.class_rates(np.zeros((3, 3), np.float32))
    assert all(np.isnan(value) for value in nobody.values())


def test_accuracy_is_every_micro_mean_and_the_weighted_sensitivity():
    score, label, true = example()
    said = score.argmax(1)
    got = metrics.class_rates(
        np.asarray(metrics.class_cells(score, label, 0 * label + 1)).sum(0)
    )
    for metric in (oracle.f1_score, oracle.recall_score, oracle.precision_score):
        expected = metric(true, said, average="micro")
        np.testing.assert_allclose(got["accuracy"], expected, rtol=1e-6)
    expected = oracle.recall_score(true, said, average="weighted")
    np.testing.assert_allclose(got["accuracy"], expected, rtol=1e-6)


def test_a_large_matrix_loses_no_digits():
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 3, (2, 200_000))
    matrix = oracle.confusion_matrix(true, said).astype(np.float32)
    expected = oracle.cohen_kappa_score(true, said)
    np.testing.assert_allclose(
        metrics.class_rates(matrix)["kappa"], expected, atol=1e-6
    )


def test_intervals_widen_as_a_bootstrap_of_patients_does():
    score, label, true = example(images=60)
    score, label = (np.repeat(x, 8, axis=0) for x in (score, label))
    patient = np.repeat(np.arange(60), 8)
    _, found = discrimination.class_intervals(
        score,
        label,
        np.ones_like(label),
        patient,
        key=jax.random.key(0),
        replicates=2000,
    )
    share = (example(images=60)[0].argmax(1) == true).mean()
    # The films of a patient are copies: the accuracy is that of 60 coin throws.
    half = 1.96 * np.sqrt(share * (1 - share) / 60)
    low, high = found["accuracy"].low, found["accuracy"].high
    np.testing.assert_allclose(found["accuracy"].estimate, share, rtol=1e-6)
    assert (high - low) / 2 == pytest.approx(half, rel=0.2) and low < share < high
    called = score.argmax(1)
    for name, weights in (("kappa", None), ("weighted_kappa", "quadratic")):
        expected = oracle.cohen_kappa_score(label.argmax(1), called, weights=weights)
        kappa = found[name]
        assert kappa.estimate == pytest.approx(expected, abs=1e-6)
        assert kappa.low < expected < kappa.high
    # Chance changes little between replicates: kappa's error is accuracy's, scaled.
    spread = (found["kappa"].high - found["kappa"].low) / (high - low)
    scale = (1 - found["kappa"].estimate) / (1 - share)
    assert spread == pytest.approx(scale, rel=0.1)


def test_a_replicate_without_a_rare_class_is_undefined_not_better():
    label = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], [30, 30, 1])]
    score = label.copy()
    score[-1] = [1, 0, 0]  # The only image of its class is called another.
    _, found = discrimination.class_intervals(
        *(score, label, np.ones_like(label), np.arange(61)),
        key=jax.random.key(0),
        replicates=500,
    )
    balanced = found["balanced_accuracy"]
    np.testing.assert_allclose(balanced.estimate, 2 / 3, rtol=1e-6)
    assert balanced.high < 0.67  # It was 1: the mean over the other two.
    share = np.mean(balanced.undefined / 500)
    np.testing.assert_allclose(share, (1 - 1 / 61) ** 61, atol=0.07)
    assert found["macro_f1"].undefined == balanced.undefined
    assert found["accuracy"].undefined == 0

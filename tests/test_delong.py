"""DeLong's and Obuchowski's formulas against their definitions, pair by pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from test_bootstrap import simulate

from medjax.evaluation import compare


def cohort(seed, images=40, tasks=2, levels=7):
    """Two models' scores, with ties, and labels; each image is a patient's own."""
    rng = np.random.default_rng(seed)
    label = (rng.random((images, tasks)) < 0.4).astype(float)
    label[:2], label[2:4] = 0, 1
    score, other = (
        np.round((rng.random(label.shape) + shift * label) * levels)
        for shift in (0.5, 0.3)
    )
    return score, other, label, np.ones_like(label), np.arange(images)


def components(score, label):
    """AUROC and the structural components, all pairs written out."""
    ill, well = score[label == 1], score[label == 0]
    kernel = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
    return kernel.mean(), kernel.mean(axis=1), kernel.mean(axis=0)


def covariance(score, other, label):
    """DeLong's 2 x 2 covariance matrix of two AUROCs, by numpy's covariances."""
    (_, ill, well), (_, ill_2, well_2) = (components(s, label) for s in (score, other))
    return np.cov(ill, ill_2) / len(ill) + np.cov(well, well_2) / len(well)


def clustered_variance(score, label, patient):
    """Obuchowski's variance, patient by patient."""
    area, ill, well = components(score, label)
    m, n = len(ill), len(well)
    names, terms = np.unique(patient), []
    for name in names:
        x = ill[patient[label == 1] == name]
        y = well[patient[label == 0] == name]
        terms.append((len(x), sum(x) - len(x) * area, len(y), sum(y) - len(y) * area))
    counts_x, x, counts_y, y = map(np.array, zip(*terms))
    with_x, with_y, every = (counts_x > 0).sum(), (counts_y > 0).sum(), len(names)
    s10 = with_x / ((with_x - 1) * m) * (x**2).sum()
    s01 = with_y / ((with_y - 1) * n) * (y**2).sum()
    s11 = every / (every - 1) * (x * y).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def area(score, label, weight, patient):
    """An AUROC and its error: the other model says nothing, whose AUROC is 1/2."""
    found = compare.delong(score, np.zeros_like(score), label, weight, patient)
    return found.difference + 0.5, found.error


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 10_000]))
def test_with_one_image_a_patient_it_is_delongs_test(seed, levels):
    score, other, label, weight, patient = cohort(seed, levels=levels)
    alone = area(score, label, weight, patient)
    both = compare.delong(score, other, label, weight, patient)
    for t in range(2):
        task = score[:, t], other[:, t], label[:, t]
        expected = covariance(*task)
        areas = [roc_auc_score(task[2], s) for s in task[:2]]
        assert alone[0][t] == pytest.approx(areas[0], abs=1e-12)
        assert alone[1][t] == pytest.approx(np.sqrt(expected[0, 0]), abs=1e-12)
        assert both.difference[t] == pytest.approx(areas[0] - areas[1], abs=1e-12)
        variance = expected[0, 0] + expected[1, 1] - 2 * expected[0, 1]
        assert both.error[t] == pytest.approx(np.sqrt(variance), abs=1e-10)
        if both.error[t] > 0:
            z = abs(areas[0] - areas[1]) / np.sqrt(variance)
            assert both.p[t] == pytest.approx(2 * (1 - norm.cdf(z)), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_with_several_it_is_obuchowskis(seed, per_patient):
    score, _, label, weight, _ = cohort(seed)
    patient = np.random.default_rng(seed).permutation(40) // per_patient
    _, error = area(score, label, weight, patient)
    for t in range(2):
        expected = clustered_variance(score[:, t], label[:, t], patient)
        assert error[t] == pytest.approx(np.sqrt(expected), abs=1e-12)


def test_copies_of_a_patients_images_change_nothing():
    score, other, label, weight, patient = cohort(0)
    once = compare.delong(score, other, label, weight, patient)
    task = (np.repeat(x, 5, axis=0) for x in (score, other, label, weight, patient))
    for found, expected in zip(compare.delong(*task), once, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    task = (np.repeat(x, 5, axis=0) for x in (score, other, label))
    copies = compare.delong(*task, np.ones((200, 2)), np.arange(200))
    assert (copies.error < 0.5 * once.error).all()  # As if there were five times more.


def test_a_soft_label_is_a_share_of_both_classes_and_a_weight_a_number_of_images():
    score, other, label, weight, patient = cohort(1)
    soft, heavy = label.copy(), weight.copy()
    soft[5], heavy[6] = 0.25, 3.0
    rows = np.array([*range(40), 5, 5, 5, 6, 6])
    quarter, rest = (x[rows].copy() for x in (label, weight))
    quarter[[5, 40, 41, 42]] = [[1], [0], [0], [0]]
    rest[[5, 40, 41, 42]] = 0.25
    found = compare.delong(score, other, soft, heavy, patient)
    shares = compare.delong(score[rows], other[rows], quarter, rest, patient[rows])
    for one, two in zip(found, shares, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)


def test_an_unknown_label_counts_for_nothing():
    score, other, label, weight, patient = cohort(2)
    expected = compare.delong(
        *(x[:30] for x in (score, other, label, weight)), patient[:30]
    )
    weight[30:] = 0
    score[30:], label[30:] = np.nan, np.nan
    found = compare.delong(score, other, label, weight, patient)
    np.testing.assert_array_equal(found, expected)


def test_equal_rankings_do_not_differ_and_perfect_ones_say_nothing():
    score, _, label, weight, patient = cohort(3)
    same = compare.delong(score, 3 * score + 1, label, weight, patient)
    assert same.p.tolist() == [1, 1] and same.difference.tolist() == [0, 0]
    opposite = compare.delong(label, -label, label, weight, patient)
    assert opposite.difference.tolist() == [1, 1] and np.isnan(opposite.p).all()
    perfect = area(label, label, weight, patient)
    assert perfect == (pytest.approx(1), pytest.approx(0))


def test_a_missing_class_or_one_patient_with_it_leaves_nothing_to_say():
    score, other, label, weight, patient = cohort(4)
    label[:, 0] = 0
    label[:, 1] = np.arange(40) < 4
    patient[:4] = 7  # The only one with a positive image.
    found = compare.delong(score, other, label, weight, patient)
    assert np.isnan(found.difference).tolist() == [True, False]
    assert np.isnan(found.error).all() and np.isnan(found.p).all()


def test_intervals_cover_the_truth_with_patients_and_not_with_images():
    truth, trials = 0.760250, 1000
    rng = np.random.default_rng(0)
    covered = {"patient": 0, "image": 0}
    for _ in range(trials):
        score, label, patient = simulate(rng, 100, 4)
        units = {"patient": patient, "image": np.arange(400)}
        for unit, who in units.items():
            found, error = area(score, label, np.ones_like(label), who)
            covered[unit] += (abs(found - truth) <= 1.96 * error).item()
    assert 0.93 <= covered["patient"] / trials <= 0.97
    assert covered["image"] / trials < 0.80


def test_of_equal_models_one_in_twenty_differs():
    trials, rng = 1000, np.random.default_rng(0)
    small = {"patient": 0, "image": 0}
    for _ in range(trials):
        score, label, patient = simulate(rng, 80, 3)
        # The other sees the same images, with noise of its own on each patient.
        noise = rng.normal(size=(2, 80)).repeat(3, axis=1)[:, :, None]
        one, two = score + noise
        for unit, who in (("patient", patient), ("image", np.arange(240))):
            found = compare.delong(one, two, label, np.ones_like(label), who)
            small[unit] += (found.p < 0.05).item()
    assert 0.03 <= small["patient"] / trials <= 0.07
    assert small["image"] / trials > 0.15

"""Conformal sets: their definition, and their coverage in simulated hospitals."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from medjax.evaluation import conformal
from medjax.evaluation.inference import Predictions

ERROR = 0.1


def findings(patients, seed, prevalence=(0.5, 0.1), spread=1.5):
    """Images of a patient, 1 to 5, resemble each other in the score's error.

    The more images a patient has, the lower is the score: images aren't exchangeable.
    """
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 6, patients)
    patient = np.repeat(np.arange(patients), images)
    label = (rng.random((patients, 2)) < prevalence)[patient].astype(np.float32)
    noise = rng.normal(0, spread, (patients, 2))[patient]
    z = 2 * label - 1 + noise - 0.4 * images[patient, None]
    p = expit(z + rng.normal(0, 0.3, z.shape)).astype(np.float32)
    return Predictions(np.arange(len(p)), patient, p, label, np.ones_like(p))


def classes(patients, seed):
    """Two images a patient of three classes, the last of them rare."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    label = np.eye(3)[rng.choice(3, patients, p=(0.6, 0.3, 0.1))[patient]]
    z = 1.5 * label + rng.normal((0.5, 0, -1), 1, (patients, 3))[patient]
    p = softmax(z, axis=1).astype(np.float32)
    return Predictions(*(np.arange(len(p)), patient, p, label.astype("f4")), p * 0 + 1)


def right_answers(predictions, exclusive):
    return conformal.answers(predictions.label, predictions.weight > 0, exclusive)


def covered(predictions, limits, exclusive):
    """[Q, A, 2]: by class and marginal, of a random image of each patient."""
    score = conformal.scores(predictions.probability, exclusive)
    right = right_answers(predictions, exclusive)
    rates = np.full((*score.shape[1:], 2), np.nan)
    for q, a in np.ndindex(*score.shape[1:]):
        rows = right[:, q] == a
        for k, limit in enumerate((limits.by_class[0, q, a], limits.marginal[0, q])):
            stays = score[rows, q, a] <= limit
            patient = predictions.patient[rows]
            images = np.bincount(patient)
            each = np.bincount(patient, stays)[images > 0] / images[images > 0]
            rates[q, a, k] = each.mean()
    return rates


@pytest.mark.parametrize("exclusive", [False, True])
def test_each_class_is_covered_where_marginal_limits_miss_the_rare_one(exclusive):
    make = classes if exclusive else findings
    trials = []
    for seed in range(20):
        limits = conformal.fit(make(1500, seed), exclusive=exclusive, error=ERROR)
        assert limits.patients.min() >= 100
        trials.append(covered(make(1500, 1000 + seed), limits, exclusive))
    by_class, marginal = np.moveaxis(np.mean(trials, axis=0), -1, 0)
    assert np.abs(by_class - (1 - ERROR)).max() < 0.02
    assert marginal[-1, -1] < 1 - ERROR - 0.1  # Of the rare class.


def test_few_patients_cover_too_and_images_would_not():
    """Limits from images as if they were exchangeable fall short: patients count."""
    own, naive = [], []
    for seed in range(200):
        calibration, new = findings(25, seed), findings(300, 1000 + seed)
        alone = calibration._replace(patient=calibration.id)
        for limits, rates in ((calibration, own), (alone, naive)):
            fit = conformal.fit(limits, exclusive=False, error=0.2)
            rates.append(covered(new, fit, False)[0, :, 0])
    assert np.mean(own, axis=0).min() > 0.8 - 0.005
    assert np.mean(naive, axis=0).min() < 0.8 - 0.01


def test_a_limit_is_the_weighted_quantile_with_one_more_patient():
    rng = np.random.default_rng(0)
    score, patient = rng.random(60), rng.integers(0, 25, 60)
    names, images = np.unique(patient, return_counts=True)
    mass = (1 / images)[np.searchsorted(names, patient)] / (len(names) + 1)
    for error in (0.05, 0.1, 0.3):
        got = conformal._limit(score, patient, np.array([error]))[0]
        kept = [s for s in np.sort(score) if mass[score <= s].sum() >= 1 - error - 1e-9]
        assert got == kept[0] if len(names) >= conformal.needed(error) else np.inf


@pytest.mark.parametrize(("error", "needed"), [(0.1, 9), (0.05, 19), (0.01, 99)])
def test_too_few_patients_rule_nothing_out(error, needed):
    assert conformal.needed(error) == needed
    for patients, finite in ((needed, True), (needed - 1, False)):
        score = np.arange(patients) / patients
        limit = conformal._limit(score, np.arange(patients), np.array([error]))[0]
        assert (limit == score[-1]) if finite else np.isinf(limit)


def test_classes_are_added_from_the_likeliest_on():
    p = np.array([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5]])
    expected = [[[0.9, 0.25, 0.65]], [[0.625, 0.875, 0.25]]]
    np.testing.assert_allclose(conformal.scores(p, True), expected)
    limits = conformal.Limits(
        *(np.array([0.1]), np.array([[[0.8, 0.6, 0.7]]]), np.array([[0.6]]), None)
    )
    columns = conformal.columns(limits, p, ("a", "b", "c"), True)
    assert columns["plausible"].tolist() == ["b;c", "a;c"]


def test_a_finding_that_can_be_neither_ruled_out_nor_in_is_uncertain():
    by_class = np.array([[[0.6, 0.7], [0.2, 0.3]]])  # p <= 0.6: absent stays.
    limits = conformal.Limits(np.array([0.1]), by_class, np.ones((1, 2)), None)
    p = np.array([[0.1, 0.1], [0.5, 0.5], [0.8, 0.8]], np.float32)
    columns = conformal.columns(limits, p, ("a", "b"), False)
    assert columns["a_answer"].tolist() == ["absent", "uncertain", "present"]
    assert columns["b_answer"].tolist() == ["absent", "uncertain", "present"]


def test_limits_survive_their_json():
    limits = conformal.fit(findings(30, 0), exclusive=False, error=ERROR)
    assert np.isinf(limits.by_class).any()
    again = conformal.Limits.read(limits.as_json())
    for a, b in zip(again, limits):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_summary_counts_sets_and_the_errors_of_single_answers(exclusive):
    make = classes if exclusive else findings
    limits = conformal.fit(make(800, 0), exclusive=exclusive, error=ERROR)
    new = make(400, 1)
    new.weight[:20] = 0
    names = ("a", "b", "c")[: new.label.shape[1]]
    summary = conformal.summarise(new, limits, tasks=names, exclusive=exclusive)
    expected = covered(new, limits, exclusive)
    score = conformal.scores(new.probability, exclusive)
    right = right_answers(new, exclusive)
    for q, question in enumerate(summary["questions"].values()):
        rows = list(question["answers"].values())
        for a, row in enumerate(rows):
            got = [row[k]["estimate"] for k in ("by_class", "marginal")]
            np.testing.assert_allclose(got, expected[q, a], rtol=1e-5)
            assert row["by_class"]["low"] < got[0] < row["by_class"]["high"]
        known = right[:, q] >= 0
        left = (score[known, q] <= limits.by_class[0, q]).sum(axis=1)
        shares = pd.DataFrame({k: left == k for k in range(score.shape[2] + 1)})
        shares = shares.groupby(new.patient[known]).mean().mean()
        got = [share["estimate"] for share in question["sizes"]]
        np.testing.assert_allclose(got, shares, atol=1e-6)
        for r, point in enumerate(question["curve"], start=1):
            kept = score[known, q] <= limits.by_class[r, q]
            single = kept.sum(axis=1) == 1
            assert point["human"] == pytest.approx(1 - single.mean())
            wrong = kept.argmax(axis=1)[single] != right[known, q][single]
            assert point["wrong"] == pytest.approx(wrong.mean() if single.any() else 0)

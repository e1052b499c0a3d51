"""Two models side by side: against scikit-learn, and Holm by its definition."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracles

from medjax.evaluation import compare as comparison
from medjax.evaluation.predict import Predictions

P = st.one_of(st.floats(0, 1), st.just(float("nan")))


def runs(films=90, tasks=3):
    """Predictions of a good and of a worse model on the same films."""
    rng = np.random.default_rng(0)
    label = (rng.random((films, tasks)) < 0.4).astype(np.float32)
    weight = (rng.random((films, tasks)) < 0.9).astype(np.float32)
    patient = np.arange(films) // 2
    scores = ((rng.random(label.shape) + k * label) / 2 for k in (0.7, 0.2))
    return tuple(
        Predictions(np.arange(films), patient, s.astype(np.float32), label, weight)
        for s in scores
    )


def compare(one, other):
    return comparison.compare(
        *(one, other), tasks=("a", "b", "c"), key=jax.random.key(0), replicates=100
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(P, min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_what_the_stepwise_procedure_rejects(p, alpha):
    adjusted = comparison.holm(p)
    np.testing.assert_array_equal(np.isnan(adjusted), np.isnan(p))
    # From the smallest up: each against alpha / (how many are left), until one fails.
    left = sorted((value, i) for i, value in enumerate(p) if not np.isnan(value))
    rejected = set()
    while left and left[0][0] * len(left) <= alpha:
        rejected.add(left.pop(0)[1])
    assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected


def test_holm_is_never_below_p_nor_above_bonferroni():
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.5, 0.005])
    found = comparison.holm(p)
    np.testing.assert_allclose(found, [0.04, 0.09, 0.09, np.nan, 0.5, 0.025])


def test_every_number_is_scikit_learns():
    one, other = runs()
    found = compare(one, other)
    assert (found["films"], found["patients"], found["replicates"]) == (90, 45, 100)
    tested = comparison.delong(
        *(one.probability, other.probability, one.label, one.weight, one.patient)
    )
    averages = {"auroc": oracles.roc_auc_score}
    averages["average_precision"] = oracles.average_precision_score
    for name, oracle in averages.items():
        both = []
        for t, task in enumerate("abc"):
            known = one.weight[:, t] > 0
            label = one.label[known, t]
            areas = [oracle(label, r.probability[known, t]) for r in (one, other)]
            row = found["tasks"][task]["metrics"][name]
            assert (row["one"], row["other"]) == pytest.approx(areas, abs=1e-6)
            difference = row["difference"]
            expected = areas[0] - areas[1]
            assert difference["estimate"] == pytest.approx(expected, abs=1e-6)
            assert difference["low"] < expected < difference["high"]
            both.append(areas)
        row = found["mean"][name]
        expected = np.mean(both, axis=0)
        assert (row["one"], row["other"]) == pytest.approx(tuple(expected), abs=1e-6)
        expected = expected[0] - expected[1]
        assert row["difference"]["estimate"] == pytest.approx(expected, abs=1e-6)
    for t, task in enumerate("abc"):
        row = found["tasks"][task]
        known = one.weight[:, t] > 0
        assert row["positives"] == one.label[known, t].sum()
        assert row["positives"] + row["negatives"] == known.sum()
        assert row["p"] == tested.p[t]
        assert row["holm"] == comparison.holm(tested.p)[t]
        assert row["why"] == ""


def test_a_task_without_a_class_is_empty_and_says_why():
    one, other = runs()
    for run in (one, other):
        run.label[:, 1] = 0
        run.label[run.weight == 0] = np.nan
        run.label[:, 2], run.weight[:, 2] = np.arange(90) < 2, 1  # Of one patient.
    found = compare(one, other)
    empty, alone = found["tasks"]["b"], found["tasks"]["c"]
    assert empty["why"] == "no positive image" and empty["p"] is None
    assert empty["metrics"]["auroc"]["difference"]["estimate"] is None
    assert alone["why"].startswith("fewer than 10") and alone["p"] is None
    assert alone["metrics"]["auroc"]["difference"]["low"] is None
    assert empty["metrics"]["auroc"]["difference"]["low"] is None
    assert found["mean"]["auroc"]["difference"]["low"] is not None
    assert alone["metrics"]["auroc"]["one"] is not None
    # Of three tests two are undefined: nothing is left to adjust for.
    assert found["tasks"]["a"]["holm"] == found["tasks"]["a"]["p"]
    both = [found["tasks"][t]["metrics"]["auroc"]["one"] for t in "ac"]
    mean = found["mean"]["auroc"]["one"]
    assert mean == pytest.approx(np.mean(both), abs=1e-6)


def test_the_mean_is_tested_with_the_error_of_leaving_patients_out():
    one, other = runs()

    def difference(rows):
        areas = []
        for t in range(3):
            known = rows & (one.weight[:, t] > 0)
            areas.append(
                [
                    oracles.roc_auc_score(
                        run.label[known, t], run.probability[known, t]
                    )
                    for run in (one, other)
                ]
            )
        return np.subtract(*np.mean(areas, axis=0))

    found = compare(one, other)
    patients = np.unique(one.patient)
    left_out = [difference(one.patient != patient) for patient in patients]
    n = len(patients)
    error = np.std(left_out) * np.sqrt(n - 1)  # The jackknife.
    gap = found["mean"]["auroc"]["difference"]
    got = (gap["high"] - gap["low"]) / 2 / stats.norm.ppf(0.975)
    assert got == pytest.approx(error, rel=0.25)  # Of 100 replicates.
    p = 2 * stats.norm.sf(abs(gap["estimate"]) / got)
    assert found["p"] == pytest.approx(p, rel=1e-6)


def test_a_small_difference_of_all_findings_is_found_by_the_mean_alone():
    rng = np.random.default_rng(0)
    label = (rng.random((400, 12)) < 0.3).astype(np.float32)
    noise = rng.normal(size=(2, 400, 12))
    score = [label + noise[0], 0.8 * label + noise[0] + 0.3 * noise[1]]
    one, other = (
        Predictions(
            np.arange(400), np.arange(400), x.astype("f4"), label, np.ones_like(label)
        )
        for x in score
    )
    found = comparison.compare(
        *(one, other),
        tasks=tuple("abcdefghijkl"),
        key=jax.random.key(0),
        replicates=200,
    )
    assert found["p"] < 1e-6
    assert all(row["holm"] > found["p"] for row in found["tasks"].values())


def test_a_model_does_not_differ_from_itself():
    one, _ = runs()
    found = compare(one, one)
    assert found["p"] == 1
    for row in found["tasks"].values():
        assert row["p"] == row["holm"] == 1
        assert row["metrics"]["auroc"]["difference"]["high"] == 0

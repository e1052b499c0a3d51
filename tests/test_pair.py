"""Two models side by side: against scikit-learn, and Holm by its definition."""

import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracles
from test_bootstrap import simulate
from test_comparison import write

from medjax.evaluation import seeds
from medjax.evaluation.bootstrap import holm
from medjax.evaluation.inference import Predictions
from medjax.tasks import comparison

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


def compare(one, other, tasks="abc", replicates=100):
    """By the files of two runs."""
    with tempfile.TemporaryDirectory() as home:
        folders = [
            write(Path(home) / name, run, names=tuple(tasks))
            for name, run in (("one", one), ("other", other))
        ]
        kinds, key = [comparison.FINDINGS] * 2, jax.random.key(0)
        return comparison.pair(folders, kinds, "test", key=key, replicates=replicates)


@settings(max_examples=200, deadline=None)
@given(st.lists(P, min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_what_the_stepwise_procedure_rejects(p, alpha):
    adjusted = holm(p)
    np.testing.assert_array_equal(np.isnan(adjusted), np.isnan(p))
    # From the smallest up: each against alpha / (how many are left), until one fails.
    left = sorted((value, i) for i, value in enumerate(p) if not np.isnan(value))
    rejected = set()
    while left and left[0][0] * len(left) <= alpha:
        rejected.add(left.pop(0)[1])
    assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected


def test_holm_is_never_below_p_nor_above_bonferroni():
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.5, 0.005])
    found = holm(p)
    np.testing.assert_allclose(found, [0.04, 0.09, 0.09, np.nan, 0.5, 0.025])


def test_every_number_is_scikit_learns():
    one, other = runs()
    found = compare(one, other)
    assert (found["films"], found["patients"], found["replicates"]) == (90, 45, 100)
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
    p = [found["tasks"][task]["p"] for task in "abc"]
    for t, task in enumerate("abc"):
        row = found["tasks"][task]
        known = one.weight[:, t] > 0
        assert row["positives"] == one.label[known, t].sum()
        assert row["positives"] + row["negatives"] == known.sum()
        assert row["holm"] == pytest.approx(holm(p)[t])
        assert row["why"] == ""


def components(score, label):
    """DeLong's structural components of an AUROC, all pairs written out."""
    ill, well = score[label == 1], score[label == 0]
    kernel = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
    return kernel.mean(axis=1), kernel.mean(axis=0)


def test_with_one_image_a_patient_p_is_near_delongs():
    rng = np.random.default_rng(0)
    label = (rng.random((300, 20)) < 0.4).astype(np.float32)
    common = rng.normal(size=label.shape)
    one, other = (
        Predictions(np.arange(300), np.arange(300), score, label, np.ones_like(label))
        for score in (
            np.float32(gain * label + common + rng.normal(size=label.shape))
            for gain in (1.2, 1.0)
        )
    )
    names = "abcdefghijklmnopqrst"
    found = compare(one, other, names, replicates=1000)
    for t, task in enumerate(names):
        both = (components(run.probability[:, t], label[:, t]) for run in (one, other))
        ill, well = (a - b for a, b in zip(*both, strict=True))
        error = np.sqrt(
            np.var(ill, ddof=1) / ill.size + np.var(well, ddof=1) / well.size
        )
        z = stats.norm.isf(found["tasks"][task]["p"] / 2)
        assert z == pytest.approx(abs(ill.mean()) / error, rel=0.12)


def test_of_equal_models_one_in_twenty_differs():
    """Studies of clustered patients, as the tasks of one call."""
    trials, rng = 250, np.random.default_rng(0)
    cohorts = [simulate(rng, 80, 3) for _ in range(trials)]
    score, label = (np.concatenate(x, axis=1) for x in list(zip(*cohorts))[:2])
    # The other sees the same images, with noise of its own on each patient.
    noise = rng.normal(size=(2, 80, trials)).repeat(3, axis=1)
    scores = np.float32(score + noise)
    probability, cut = np.stack(scores)[:, None], np.stack(scores)[:, None] > 0
    small = []
    for patient in (np.arange(240) // 3, np.arange(240)):
        arms = seeds.measure_predictions(
            *(probability, label, np.ones(probability.shape), patient),
            ranking=probability,
            call=cut,
            key=jax.random.key(0),
            replicates=200,
        )["auroc"]
        number = len(np.unique(patient))
        tested = [seeds.difference(arms, 0, 1, t, number) for t in range(trials)]
        small.append(np.mean([each.p < 0.05 for each in tested]))
    assert 0.03 <= small[0] <= 0.07
    assert small[1] > 0.15  # As if images were patients.


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
    tested = found["tasks"]["a"]["metrics"]["auroc"]["difference"]
    assert tested["holm"] == tested["p"] == found["tasks"]["a"]["p"]
    assert alone["metrics"]["auroc"]["difference"]["holm"] is None
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
    assert gap["patients"] == pytest.approx(error, rel=0.25)  # Of 100 replicates.
    student = stats.t(1 / (1 / (n - 1) + 1 / 99))
    p = 2 * student.sf(abs(gap["estimate"]) / gap["patients"])
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
    found = compare(one, other, "abcdefghijkl", replicates=200)
    assert found["p"] < 1e-6
    assert all(row["holm"] > found["p"] for row in found["tasks"].values())


def test_what_has_no_variance_is_not_tested():
    one, _ = runs()
    perfect, opposite = (
        one._replace(probability=(s * one.label).astype("f4")) for s in (1, -1)
    )
    row = compare(perfect, opposite)["tasks"]["a"]
    assert row["metrics"]["auroc"]["difference"]["estimate"] == 1
    assert row["p"] is None and row["why"] == "zero variance: no test"


def test_a_model_does_not_differ_from_itself():
    one, _ = runs()
    found = compare(one, one)
    assert found["p"] == 1
    for row in found["tasks"].values():
        assert row["p"] == row["holm"] == 1
        assert row["metrics"]["auroc"]["difference"]["high"] == 0

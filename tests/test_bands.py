import jax
import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from medjax.evaluation import bands
from medjax.evaluation.areas import multiplicities
from medjax.evaluation.predict import Predictions

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
    """Each replicate sorted by scikit-learn, and read at the grid."""
    rows = films.weight.any(axis=1)
    names, index = np.unique(films.patient[rows], return_inverse=True)
    drawn = np.asarray(multiplicities(KEY, np.arange(REPLICATES), len(names)))
    score, label, weight = (x[rows][:, t] for x in films[2:])
    tprs, precisions = [], []
    for count in drawn.T:
        w = weight * count[index]
        known = w > 0
        y, s, w = label[known], score[known], w[known]
        fpr, tpr, _ = roc_curve(y, s, sample_weight=w, drop_intermediate=False)
        tprs.append(np.interp(bands.GRID, fpr, tpr))
        precision, recall, _ = precision_recall_curve(y, s, sample_weight=w)
        ok = [np.flatnonzero(recall >= r - 1e-5)[-1] for r in bands.GRID[1:]]
        precisions.append(precision[ok])
    return (np.quantile(x, [0.025, 0.975], axis=0) for x in (tprs, precisions))


def test_fewer_than_ten_patients_of_a_class_have_no_band(films):
    one = np.flatnonzero(films.label[:, 1] == 1)
    rare = films.label.copy()
    patients = np.unique(films.patient[one])
    for most, shown in ((9, ["a"]), (10, ["a", "b"])):
        keep = np.isin(films.patient, patients[:most])
        rare[:, 1] = np.where(keep, films.label[:, 1], 0 * films.label[:, 1])
        found = films._replace(label=rare)
        found = bands.bands(found, tasks=("a", "b", "c"), key=KEY, replicates=20)
        assert list(found) == shown


def test_with_all_scores_a_band_is_that_of_sorted_replicates(films):
    found = bands.bands(
        films, tasks=("a", "b", "none"), key=KEY, replicates=REPLICATES, most=240
    )
    assert list(found) == ["a", "b"]
    for t, one in enumerate(found.values()):
        tpr, precision = brute_force(films, t)
        roc, recall = one["roc"], one["precision_recall"]
        np.testing.assert_allclose([roc["low"], roc["high"]], tpr, atol=2e-5)
        ends = [recall["low"], recall["high"]]
        np.testing.assert_allclose(ends, precision, atol=2e-5)
        np.testing.assert_allclose(roc["fpr"], bands.GRID)
        np.testing.assert_allclose(recall["recall"], bands.GRID[1:])


def test_fewer_thresholds_move_a_band_by_their_distance(films):
    def ends(most):
        options = {"key": KEY, "replicates": REPLICATES, "most": most}
        found = bands.bands(films, tasks=("a", "b", "none"), **options)["a"]["roc"]
        return np.array([found["low"], found["high"]])

    exact = ends(240)
    assert 0 < np.abs(ends(20) - exact).max()
    assert np.abs(ends(60) - exact).max() < 2 / 59 + 0.02
    assert np.abs(ends(60) - exact).mean() < 0.006


def test_without_a_task_of_both_classes_there_is_no_band(films):
    empty = films._replace(label=np.zeros_like(films.label))
    assert bands.bands(empty, tasks="abc", key=KEY, replicates=5) == {}

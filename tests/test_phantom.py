"""The synthetic films: what a data set's owner relies on without looking at them."""

import warnings

import jax
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medjax.data import chest_phantom

pytestmark = pytest.mark.usefixtures("optimised")

KEY = jax.random.key(7)
T = len(chest_phantom.FINDINGS)
ALL = chest_phantom.ALL


def draw(
    numbers, *, key=KEY, side=32, contrast=1.0, prevalence=chest_phantom.PREVALENCE
):
    """`patients` as numpy, two films each, 16 at a time: one compilation a side."""
    numbers = np.asarray(numbers)
    padded = np.resize(numbers, -(-len(numbers) // 16) * 16)
    parts = [
        jax.device_get(
            chest_phantom.patients(
                key,
                part,
                films=2,
                side=side,
                contrast=contrast,
                prevalence=prevalence,
            )
        )
        for part in padded.reshape(-1, 16)
    ]
    return {k: np.concatenate([p[k] for p in parts])[: len(numbers)] for k in parts[0]}


def only(name):
    """Prevalences that give everyone this finding and nobody another."""
    findings = chest_phantom.FINDINGS if name in chest_phantom.FINDINGS else ALL
    return tuple(0.999 if f == name else 1e-6 for f in findings)


@pytest.fixture(scope="module")
def cohort():
    return draw(np.arange(2000))


def test_shapes_dtypes_and_boxes_of_what_is_absent():
    drawn = draw(np.arange(40))
    assert drawn["pixels"].shape == (40, 2, 32, 32, 1)
    assert drawn["pixels"].dtype == np.uint8
    assert drawn["label"].shape == (40, 2, T) and drawn["label"].dtype == np.float32
    assert set(np.unique(drawn["label"])) == {0, 1}
    present = drawn["label"] == 1
    assert np.isnan(drawn["box"][~present]).all()
    x0, y0, x1, y1 = drawn["box"][present].T
    assert (0 <= x0).all() and (x0 < x1).all() and (x1 <= 32).all()
    assert (0 <= y0).all() and (y0 < y1).all() and (y1 <= 32).all()
    assert set(np.unique(drawn["view"])) == set(range(len(chest_phantom.VIEWS)))
    assert set(np.unique(drawn["sex"])) == set(range(len(chest_phantom.SEXES)))
    assert 18 <= drawn["age"].min() < drawn["age"].max() <= 90


def test_a_patient_alone_is_the_patient_in_a_batch():
    batch, alone = draw(np.arange(16)), draw([5])
    for name, values in alone.items():
        np.testing.assert_array_equal(values[0], batch[name][5], err_msg=name)


def test_patients_films_and_keys_differ():
    one, other = draw(np.arange(16)), draw(np.arange(16), key=jax.random.key(8))
    films = np.concatenate([one["pixels"], other["pixels"]]).reshape(64, -1)
    assert len(np.unique(films, axis=0)) == 64
    assert len(np.unique(one["age"][:, 0])) > 8
    assert (one["age"] != other["age"]).any()


def test_prevalence_among_films_is_as_asked(cohort):
    by_patient = cohort["label"].mean(1)
    error = by_patient.mean(0) - np.array(chest_phantom.PREVALENCE)
    spread = by_patient.std(0) / np.sqrt(len(by_patient))
    assert (np.abs(error) < 4 * spread).all(), error / spread


def test_a_patient_keeps_the_disease_and_the_marks(cohort):
    first, second = cohort["label"][:, 0], cohort["label"][:, 1]
    again = (first * second).sum(0) / first.sum(0)
    assert (again > 0.5).all(), again  # by chance it would be the prevalence
    for mark in ("has_necklace", "has_pacemaker"):
        assert (cohort[mark][:, 0] == cohort[mark][:, 1]).all()
        assert 0.1 < cohort[mark].mean() < 0.6


def test_marks_say_nothing_about_the_disease_of_a_new_patient(cohort):
    first = cohort["label"][:, 0]
    for mark in ("has_necklace", "has_pacemaker", "view", "sex", "age"):
        r = np.corrcoef(cohort[mark][:, 0].astype(float), first.T)[0, 1:]
        assert (np.abs(r) < 4 / np.sqrt(len(first))).all(), (mark, r)


@pytest.mark.parametrize("name", ALL)
def test_the_box_holds_what_the_finding_changes_and_little_else(name):
    side, t = 64, ALL.index(name)
    settings = {"side": side, "prevalence": only(name)}
    seen = draw(np.arange(32), contrast=1.0, **settings)
    hidden = draw(np.arange(32), contrast=0.0, **settings)
    np.testing.assert_array_equal(seen["label"], hidden["label"])
    change = np.abs(seen["pixels"].astype(float) - hidden["pixels"])[..., 0]
    overlap = []
    for has, box, film in zip(
        seen["label"][..., t].ravel(),
        seen["box"][:, :, t].reshape(-1, 4),
        change.reshape(-1, side, side),
        strict=True,
    ):
        if not has:
            assert film.max() == 0
            continue
        rows, columns = np.nonzero(film > max(6, 0.25 * film.max()))
        drawn = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
        drawn = drawn + np.array([0, 0, 1, 1])
        assert (drawn[:2] > box[:2] - 2).all() and (drawn[2:] < box[2:] + 2).all()
        overlap.append(np.prod(drawn[2:] - drawn[:2]) / np.prod(box[2:] - box[:2]))
    assert len(overlap) > 40
    assert np.median(overlap) > 0.5, overlap


@pytest.mark.parametrize("side", [32, 64])
def test_a_mass_is_over_30_mm_and_a_nodule_under(side):
    everyone = (0.999, 0.999, 1e-6, 1e-6, 1e-6, 1e-6)
    drawn = draw(np.arange(64), side=side, prevalence=everyone)
    box = drawn["box"] * chest_phantom.FIELD_MM / side
    size = (box[..., 2:] - box[..., :2])[:, :, :2]  # [P, F, mass or nodule, xy] mm
    mass, nodule = (size[:, :, i][drawn["label"][..., i] == 1] for i in (0, 1))
    assert 30 < mass.min() and mass.max() < 61
    assert 10 < nodule.min() and nodule.max() < 30


def test_the_same_patients_at_another_resolution():
    everyone = (0.5,) * T
    fine = draw(np.arange(16), side=64, prevalence=everyone)
    coarse = draw(np.arange(16), side=32, prevalence=everyone)
    for name in ("label", "view", "sex", "age", "has_necklace", "has_pacemaker"):
        np.testing.assert_array_equal(fine[name], coarse[name], err_msg=name)
    error = np.abs(fine["box"] / 2 - coarse["box"])
    assert np.nanquantile(error, 0.95) < 1.5  # coarse pixels
    small = fine["pixels"].reshape(16, 2, 32, 2, 32, 2).mean((3, 5))
    difference = np.abs(small - coarse["pixels"][..., 0]).mean()
    assert difference < 8, difference  # of 255: noise and edges


@pytest.mark.slow
def test_logistic_regression_on_small_films_stays_under_080():
    drawn = draw(np.arange(1400), side=64)
    small = drawn["pixels"].reshape(2800, 32, 2, 32, 2).mean((2, 4)).reshape(2800, -1)
    x = (small - small.mean(0)) / (small.std(0) + 1e-3)
    y, train = drawn["label"].reshape(2800, T), np.arange(2800) < 2000
    scores = []
    for t in range(T):
        model = LogisticRegression(C=1e-2, max_iter=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[train], y[train, t])
        z = model.decision_function(x[~train])
        scores.append(roc_auc_score(y[~train, t], z))
    assert 0.5 < np.mean(scores) < 0.8, scores

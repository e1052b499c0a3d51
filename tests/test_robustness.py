"""The cost of corruptions against scikit-learn and a literal bootstrap."""

import csv
import json

import jax
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from medjax.errors import InputError
from medjax.evaluation import robustness
from medjax.evaluation.predict import Predictions
from medjax.tasks import perturb

pytestmark = pytest.mark.usefixtures("unoptimised")

KEY = jax.random.key(5)
TASKS = ("mass", "nodule", "never")
THRESHOLD = np.array([0.5, np.nan, 0.6])


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(30), 3))
    label = (rng.random((90, 3)) < [0.4, 0.5, 0]).astype(np.float32)
    clean = np.round(rng.random((90, 3)) + 0.5 * label, 2).astype(np.float32)
    weight = np.ones_like(label)
    weight[:4] = 0  # No label known: these films count for nothing.
    said = {
        name: np.stack(
            [clean + s * share * rng.normal(size=clean.shape) for s in range(5)]
        ).astype(np.float32)
        for name, share in (("blur", 0.05), ("jpeg", 0.2))
    }
    return Predictions(np.arange(90), 3 * patient, clean, label, weight), said


@pytest.fixture(scope="module")
def found(cohort, unoptimised):
    return robustness.summarise(
        *cohort,
        tasks=TASKS,
        exclusive=False,
        threshold=THRESHOLD,
        key=KEY,
        replicates=30,
    )


def mean_area(clean, score, rows):
    return np.mean(
        [roc_auc_score(clean.label[rows, t], score[rows, t]) for t in (0, 1)]
    )


def stay(clean, score, rows):
    cut = THRESHOLD[[0, 2]]
    one, two = (x[rows][:, [0, 2]] >= cut for x in (clean.probability, score))
    return (one == two).mean()


def test_each_number_is_scikit_learn_s_and_its_interval_a_literal_bootstrap(
    cohort, found
):
    clean, said = cohort
    rows = np.flatnonzero(clean.weight.any(axis=1))
    names = np.unique(clean.patient[rows])
    of = [rows[clean.patient[rows] == name] for name in names]
    drawn = [rows]
    for r in range(30):
        bits = jax.random.bits(jax.random.fold_in(KEY, r), (names.size,))
        drawn.append(np.concatenate([of[p] for p in bits % names.size]))
    before = np.array([mean_area(clean, clean.probability, d) for d in drawn])

    def check(interval, values):
        np.testing.assert_allclose(interval["estimate"], values[0], atol=1e-6)
        ends = np.quantile(values[1:], [0.025, 0.975])
        np.testing.assert_allclose([interval["low"], interval["high"]], ends, atol=3e-6)

    check(found["clean"]["auroc"], before)
    together = []
    for name in said:
        row = found["corruptions"][name]["severities"][3]
        assert row["severity"] == 4
        score = said[name][3]
        after = np.array([mean_area(clean, score, d) for d in drawn])
        together.append(after)
        check(row["auroc"], after)
        check(row["drop"], before - after)
        check(row["agreement"], np.array([stay(clean, score, d) for d in drawn]))
        area = roc_auc_score(clean.label[rows, 1], score[rows, 1])
        assert row["tasks"]["nodule"] == pytest.approx(area, abs=1e-6)
        assert row["tasks"]["never"] is None
    check(found["mean"][3]["drop"], before - np.mean(together, axis=0))


def test_a_corruption_that_changes_nothing_costs_nothing(found):
    first = found["corruptions"]["jpeg"]["severities"][0]  # At which nothing is added.
    assert [first["drop"][k] for k in ("estimate", "low", "high")] == [0, None, None]
    assert "every replicate" in first["drop"]["why"]
    agreement = [first["agreement"][k] for k in ("low", "estimate", "high")]
    low, _ = binomtest(30, 30).proportion_ci(0.95, "exact")  # Patients, not calls.
    assert agreement == pytest.approx([low, 1, 1])


def test_without_thresholds_no_call_can_stay(cohort):
    clean, said = cohort
    none = robustness.summarise(
        *(clean, {"blur": said["blur"]}),
        tasks=TASKS,
        exclusive=False,
        threshold=np.full(3, np.nan),
        key=KEY,
        replicates=30,
    )
    agreement = none["mean"][2]["agreement"]
    assert agreement["estimate"] is None and agreement["why"] == "no threshold"


def test_calls_are_of_calibrated_probabilities_and_ranks_of_those_before(cohort):
    def told(probability):  # As isotonic regression ties.
        return np.floor(2 * probability) / 2

    clean, said = cohort
    options = {"tasks": TASKS, "exclusive": False, "key": KEY, "replicates": 30}
    found, plain, tied = (
        robustness.summarise(
            *(clean._replace(probability=change(clean.probability)),),
            {"jpeg": change(said["jpeg"])},
            threshold=THRESHOLD,
            told=later,
            **options,
        )["corruptions"]["jpeg"]["severities"][3]
        for change, later in ((np.array, told), (np.array, None), (told, None))
    )
    assert found["auroc"] == plain["auroc"] != tied["auroc"]
    assert found["agreement"] == tied["agreement"] != plain["agreement"]


def test_of_classes_the_call_is_the_likeliest(cohort):
    clean, said = cohort
    found = robustness.summarise(
        *(clean, {"jpeg": said["jpeg"]}),
        tasks=TASKS,
        exclusive=True,
        threshold=THRESHOLD,
        key=KEY,
        replicates=30,
    )
    rows = clean.weight.any(axis=1)
    one, two = (x[rows].argmax(axis=1) for x in (clean.probability, said["jpeg"][4]))
    agreement = found["corruptions"]["jpeg"]["severities"][4]["agreement"]
    assert agreement["estimate"] == pytest.approx((one == two).mean())


def test_both_files_hold_what_was_found(found, tmp_path):
    path = perturb.write(found, tmp_path / "robustness.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [row["corruption"] for row in rows] == ["blur"] * 5 + ["jpeg"] * 5 + [
        "mean"
    ] * 5
    drop = found["corruptions"]["jpeg"]["severities"][4]["drop"]
    assert float(rows[9]["drop_low"]) == drop["low"] and rows[9]["value"] == "5"


def test_fewer_films_are_among_more_whatever_their_order():
    ids = np.random.default_rng(1).permutation(50)
    some = perturb.fewer(ids, 10)
    assert len(some) == 10 and set(some) < set(perturb.fewer(ids[::-1], 20))
    np.testing.assert_array_equal(perturb.fewer(ids, 0), np.arange(50))
    np.testing.assert_array_equal(perturb.fewer(ids, 99), np.arange(50))
    with pytest.raises(InputError, match="--films=-1"):
        perturb.fewer(ids, -1)

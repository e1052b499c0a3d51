"""Metrics by group against scikit-learn and a literal bootstrap; gaps against SciPy."""

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as oracles

from medjax.evaluation import subgroups
from medjax.evaluation.discrimination import group_areas
from medjax.evaluation.predict import Predictions

KEY = jax.random.key(3)
THRESHOLD = np.float32([0.6, 0.7])
TASKS = ("mass", "nodule")
ORACLES = {
    "auroc": lambda y, s, cut: oracles.roc_auc_score(y, s),
    "sensitivity": lambda y, s, cut: (s >= cut)[y == 1].mean(),
    "specificity": lambda y, s, cut: (s < cut)[y == 0].mean(),
    "ppv": lambda y, s, cut: y[s >= cut].mean(),
    "npv": lambda y, s, cut: 1 - y[s < cut].mean(),
}


def cohort(seed=0, patients=90, films=3, lift=0.4, known=0.9):
    """Predictions with ties and unknown labels, and each film's groups."""
    rng = np.random.default_rng(seed)
    n = patients * films
    patient = rng.permutation(np.arange(n) // films)
    ease = rng.random((patients, 1))[patient]  # What a patient's films share.
    label = (rng.random((n, 2)) < 0.4).astype(np.float32)
    score = np.round((rng.random((n, 2)) + ease) / 2 + lift * label, 1)
    weight = (rng.random((n, 2)) < known).astype(np.float32)
    sex = np.array(["F", "M", ""])[rng.choice(3, patients, p=[0.45, 0.45, 0.1])]
    groups = pd.DataFrame({"sex": sex[patient], "view": rng.choice(["AP", "PA"], n)})
    label = np.where(weight > 0, label, np.nan)
    found = Predictions(
        np.arange(n), 7 + patient, score.astype(np.float32), label, weight
    )
    return found, groups


def summarise(predictions, groups, replicates=40, threshold=THRESHOLD):
    return subgroups.summarise(
        *(predictions, groups),
        tasks=TASKS,
        threshold=threshold,
        key=KEY,
        replicates=replicates,
    )


@pytest.fixture(scope="module")
def found():
    return summarise(*cohort())


def test_each_group_s_metrics_are_scikit_learn_s_on_its_films(found):
    predictions, groups = cohort()
    assert {a: list(one["groups"]) for a, one in found.items()} == {
        "sex": ["F", "M", "unknown"],
        "view": ["AP", "PA"],
    }
    for attribute, one in found.items():
        for group, part in one["groups"].items():
            inside = (groups[attribute].replace("", "unknown") == group).to_numpy()
            assert part["films"] == inside.sum()
            assert part["patients"] == len(set(predictions.patient[inside]))
            areas = []
            for t, task in enumerate(TASKS):
                rows = inside & (predictions.weight[:, t] > 0)
                y, s = predictions.label[rows, t], predictions.probability[rows, t]
                assert part["tasks"][task]["positives"] == y.sum()
                assert part["tasks"][task]["negatives"] == (1 - y).sum()
                for name, oracle in ORACLES.items():
                    value = part["tasks"][task]["metrics"][name]
                    expected = oracle(y, s, THRESHOLD[t])
                    assert value["estimate"] == pytest.approx(expected, abs=1e-6)
                    of = [y == 1, y == 0, s >= THRESHOLD[t], s < THRESHOLD[t]]
                    of = [len(set(predictions.patient[rows][one])) for one in of]
                    few = dict(zip(ORACLES, [min(of[:2]), *of], strict=True))[name] < 10
                    assert (value["low"] is None) == few == bool(value["why"])
                    if not few:
                        assert value["low"] <= value["estimate"] <= value["high"]
                if min(of[:2]) >= 10:
                    areas.append(oracles.roc_auc_score(y, s))
            assert part["averaged"] == len(areas)
            if not areas:
                assert part["mean"]["auroc"]["why"].startswith("no task with 10")
                continue
            mean = part["mean"]["auroc"]["estimate"]
            assert mean == pytest.approx(np.mean(areas), abs=1e-6)


def test_a_gap_s_interval_is_a_literal_bootstrap_of_whole_patients(found):
    predictions, groups = cohort()
    names = np.unique(predictions.patient)
    films = [np.flatnonzero(predictions.patient == name) for name in names]
    drawn = []
    for r in range(40):
        bits = jax.random.bits(jax.random.fold_in(KEY, r), (names.size,))
        drawn.append(np.concatenate([films[p] for p in bits % names.size]))

    def difference(name, t, rows):
        sides = []
        for view in ("AP", "PA"):
            inside = rows[(groups["view"].to_numpy()[rows] == view)]
            inside = inside[predictions.weight[inside, t] > 0]
            y, s = predictions.label[inside, t], predictions.probability[inside, t]
            sides.append(ORACLES[name](y, s, THRESHOLD[t]))
        return sides[0] - sides[1]

    mean = 0
    for t, task in enumerate(TASKS):
        for name in ORACLES:
            gap = found["view"]["gaps"][task][name]
            sign = 1 if gap["between"] == ["AP", "PA"] else -1
            values = [sign * difference(name, t, rows) for rows in drawn]
            ends = np.quantile(values, [0.025, 0.975])
            np.testing.assert_allclose([gap["low"], gap["high"]], ends, atol=2e-6)
            whole = sign * difference(name, t, np.arange(len(groups)))
            assert gap["estimate"] == pytest.approx(whole, abs=1e-6) and whole >= 0
            if name == "auroc":
                mean = mean + np.array(values) * sign / 2
    gap = found["view"]["mean"]["auroc"]
    sign = 1 if gap["between"] == ["AP", "PA"] else -1
    ends = np.quantile(sign * mean, [0.025, 0.975])
    np.testing.assert_allclose([gap["low"], gap["high"]], ends, atol=2e-6)


def test_the_largest_gap_is_between_the_extreme_groups(found):
    parts = found["sex"]["groups"]
    for task, metrics in found["sex"]["gaps"].items():
        value = {g: part["tasks"][task]["metrics"] for g, part in parts.items()}
        for name, gap in metrics.items():
            high, low = gap["between"]
            assert gap["estimate"] == pytest.approx(
                value[high][name]["estimate"] - value[low][name]["estimate"], abs=1e-6
            )
            tested = {"F", "M", high, low}  # The unknown ones may be too few.
            known = [value[g][name]["estimate"] for g in tested]
            assert gap["estimate"] == pytest.approx(max(known) - min(known), abs=1e-6)


def test_a_model_that_fails_one_group_is_found_out_and_no_other_gap_is_shown():
    predictions, groups = cohort(patients=300, lift=0.9)
    rng = np.random.default_rng(1)
    blind = groups["view"].to_numpy() == "AP"
    score = predictions.probability.copy()
    score[blind, 0] = rng.random(blind.sum())
    found = summarise(predictions._replace(probability=score), groups)
    shown = [(gap["task"], gap["metric"]) for gap in found["view"]["shown"]]
    assert ("mass", "auroc") in shown and ("mean", "auroc") in shown
    assert not [task for task, _ in shown if task == "nodule"]
    assert found["sex"]["shown"] == []
    for gap in found["view"]["shown"]:
        assert gap["between"][gap["metric"] == "auroc"] in ("PA", "AP")
        assert gap["p_holm"] < 0.05 and gap["p"] <= gap["p_holm"]
    assert found["view"]["shown"][0]["between"] == ["PA", "AP"]


def test_without_a_gap_few_tests_say_so():
    p = []
    for seed in range(30):
        predictions, groups = cohort(seed, patients=60, known=1)
        found = summarise(predictions, groups[["view"]])
        of_tasks = found["view"]["gaps"].values()
        p += [gap["p"] for metrics in of_tasks for gap in metrics.values()]
    # 300 tests of level 0.05, which least_variance makes a little shy: 3 % in 1,500.
    assert 0 < (np.array(p) < 0.05).sum() < 24
    assert 0.4 < np.median(p) < 0.7


def measured(value, films, patients=None):
    """Of one task, with replicates that don't vary."""
    value = np.array(value, float)[:, :, None]
    films = np.array(films, float)[:, :, None]
    patients = films if patients is None else np.array(patients)[:, :, None]
    return subgroups.Measured(value, np.repeat(value[None], 5, axis=0), films, patients)


PAIR = np.array([[0, 1]])


def test_the_test_of_rates_is_never_surer_than_pearson_s():
    hits, of = np.array([20, 31]), np.array([20, 50])
    rates = [[0.8, 0.8], hits / of, [0.9, 0.9], [0.5, 0.5], [0.5, 0.5]]
    one = measured(rates, [of, [90, 90], [40, 40], [60, 60]])
    table = np.stack([hits, of - hits])
    pearson = stats.chi2_contingency(table, correction=False)
    found = subgroups.differences(one, PAIR)
    assert found.p[1, 0, 0] == pytest.approx(pearson.pvalue, rel=1e-6)
    assert found.p[2, 0, 0] == 1  # Alike.


def test_the_least_variance_of_an_area_is_that_of_exponential_scores():
    # For them Hanley's and McNeil's formula is exact.
    rng = np.random.default_rng(0)
    positive = rng.exponential(4, (4000, 20, 1))
    negative = rng.exponential(1, (4000, 1, 30))
    areas = (positive > negative).mean(axis=(1, 2))
    one = measured([[0.8] * 2, *[[0.5] * 2] * 4], [[20] * 2, [30] * 2, *[[9] * 2] * 2])
    found = subgroups.least_variance(one, PAIR)[0, 0, 0]
    assert found == pytest.approx(2 * areas.var(), rel=0.1)


def test_p_values_are_adjusted_for_every_difference_tested(found):
    p = [
        g["p"] for a in found.values() for of in a["gaps"].values() for g in of.values()
    ]
    holm = [
        g["p_holm"]
        for a in found.values()
        for of in a["gaps"].values()
        for g in of.values()
    ]
    tests = found["sex"]["tests"]
    assert tests == found["view"]["tests"] >= len(p)
    smallest = int(np.argmin(p))
    assert holm[smallest] == pytest.approx(min(1, tests * p[smallest]))


def test_groups_that_are_too_small_have_no_gap_and_say_so():
    predictions, groups = cohort()
    label = predictions.label.copy()
    label[(groups["sex"] == "F").to_numpy(), 0] = 0
    few = np.arange(len(groups)) < 6
    groups = pd.DataFrame({"sex": groups["sex"].to_numpy(), "none": ""})
    groups["site"] = np.where(few, "A", "B")
    found = summarise(
        predictions._replace(label=label), groups, threshold=np.array([0.6, np.nan])
    )
    lacking = found["sex"]["groups"]["F"]["tasks"]["mass"]["metrics"]
    assert lacking["auroc"] | {"undefined": 0} == {
        **dict.fromkeys(("estimate", "low", "high")),
        "undefined": 0,
        "why": "no positive image",
    }
    assert lacking["sensitivity"]["why"] == "no positive image"
    assert lacking["specificity"]["estimate"] is not None
    uncut = found["sex"]["groups"]["M"]["tasks"]["nodule"]["metrics"]
    assert uncut["ppv"]["why"] == "no threshold" and uncut["auroc"]["why"] == ""
    assert list(found["none"]["groups"]) == ["unknown"]
    assert found["none"]["gaps"]["mass"]["auroc"]["why"] == "one group only"
    assert found["none"]["shown"] == []
    gap = found["site"]["gaps"]["mass"]["auroc"]
    assert gap["estimate"] is None and gap["why"] == "no two groups of 10 such patients"
    assert found["site"]["mean"]["auroc"]["estimate"] is None


def test_films_of_one_score_are_a_coin_s_in_each_group():
    rng = np.random.default_rng(0)
    label = (rng.random((40, 1)) < 0.5).astype(np.float32)
    same, counts = np.ones_like(label), np.ones((40, 2), np.uint8)
    area, precision = jax.jit(group_areas, static_argnames="groups")(
        *(same, label, same, np.arange(40), np.arange(40) % 3, counts), groups=4
    )
    prevalence = [label[n::3].mean() for n in range(3)]
    np.testing.assert_allclose(area[:, :3, 0], 0.5, atol=1e-6)
    np.testing.assert_allclose(precision[:, :3, 0], [prevalence] * 2, atol=1e-6)
    assert np.isnan(area[:, 3]).all()  # Nobody is in it.


def test_metadata_become_groups(monkeypatch):
    table = pd.DataFrame(
        {
            "sex": ["F", "", "M", "M", "F"],
            "age": [17.9, 18, np.nan, 75, 0],
            "view": ["PA", "AP", "", "LATERAL", "PA"],
        }
    )
    found = subgroups.by_metadata(table)
    assert found["age"].astype(object).fillna("").tolist() == [
        *("0-17", "18-39", "", "75+", "0-17")
    ]
    monkeypatch.setattr(subgroups, "AGES", (5, 18))
    other = subgroups.by_metadata(table)["age"]
    assert list(other.cat.categories) == ["0-4", "5-17", "18+"]  # Not by the alphabet.
    named = subgroups._category(other).categories
    assert list(named) == ["0-4", "5-17", "18+", "unknown"]


def test_a_group_s_rate_of_one_has_the_exact_interval():
    predictions, groups = cohort(patients=40)
    said = np.where(predictions.label == 1, 1.0, predictions.probability)
    found = summarise(predictions._replace(probability=said.astype("f4")), groups)
    for name, part in found["view"]["groups"].items():
        inside = (groups["view"] == name).to_numpy() & (predictions.label[:, 0] == 1)
        patients = len(set(predictions.patient[inside]))
        low, high = stats.binomtest(patients, patients).proportion_ci(0.95, "exact")
        cell = part["tasks"]["mass"]["metrics"]["sensitivity"]
        assert [cell[k] for k in ("estimate", "low", "high")] == pytest.approx(
            [1, low, high]
        )


def test_the_auroc_is_of_what_it_is_said_to_be_ranked_by():
    predictions, groups = cohort()
    tied = predictions._replace(
        probability=np.floor(2 * predictions.probability).astype("f4") / 2
    )
    found = summarise(predictions, groups)
    mended = summarise(tied._replace(log_odds=predictions.probability), groups)
    plain = summarise(tied, groups)
    for group, part in mended["sex"]["groups"].items():
        one, raw, own = (
            each["tasks"]["mass"]["metrics"]
            for each in (part, *(x["sex"]["groups"][group] for x in (found, plain)))
        )
        assert one["auroc"] == raw["auroc"] != own["auroc"]
        assert one["sensitivity"] == own["sensitivity"]

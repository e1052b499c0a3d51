"""Metrics by group against scikit-learn and a literal bootstrap; gaps against SciPy."""

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as oracles

from medjax.evaluation import subgroups
from medjax.evaluation.areas import of_groups
from medjax.evaluation.inference import Predictions

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
        areas, measured = {}, {}
        for group, part in one["groups"].items():
            inside = (groups[attribute].replace("", "unknown") == group).to_numpy()
            assert part["films"] == inside.sum()
            assert part["patients"] == len(set(predictions.patient[inside]))
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
                areas[group, task] = oracles.roc_auc_score(y, s)
                if min(of[:2]) >= 10:
                    measured.setdefault(group, []).append(task)
        # The mean is over what all groups with at least half of the most have.
        most = max(map(len, measured.values()))
        compared = {g: has for g, has in measured.items() if 2 * len(has) >= most}
        shared = [t for t in TASKS if all(t in has for has in compared.values())]
        assert one["averaged"] == shared
        for group, part in one["groups"].items():
            mean = part["mean"]["auroc"]
            if group not in compared:
                assert mean["estimate"] is None and "not compared" in mean["why"]
                continue
            expected = np.mean([areas[group, task] for task in shared])
            assert mean["estimate"] == pytest.approx(expected, abs=1e-6)


def test_groups_with_other_findings_are_compared_by_those_that_both_have():
    """Women have one finding, the easy one, men have both."""
    predictions, groups = cohort(patients=200, known=1)
    groups["sex"] = np.where(predictions.patient % 2, "F", "M")
    label = predictions.label.copy()
    label[(groups["sex"] == "F").to_numpy(), 1] = 0
    score = predictions.probability.copy()
    score[:, 0] = label[:, 0] + 0.3 * score[:, 0]
    found = summarise(predictions._replace(label=label, probability=score), groups)
    sex = found["sex"]
    assert sex["averaged"] == ["mass"]
    for group in sex["groups"].values():
        mean, mass = group["mean"]["auroc"], group["tasks"]["mass"]["metrics"]["auroc"]
        for end in ("estimate", "low", "high"):
            assert mean[end] == pytest.approx(mass[end], abs=1e-6)
        assert mean["estimate"] > 0.95
    assert sex["groups"]["M"]["tasks"]["nodule"]["metrics"]["auroc"]["low"] is not None
    assert sex["mean"]["auroc"]["estimate"] < 0.02


def check_width(gap, values):
    """An interval about as wide as 1.96 standard deviations of the replicates, or wider;
    and p of the distance to its lower end."""
    z = stats.norm.ppf(0.975)
    assert 0.8 < (gap["high"] - gap["low"]) / 2 / z / np.std(values, ddof=1) < 2.5
    error = (gap["estimate"] - gap["low"]) / z
    assert gap["p"] == pytest.approx(2 * stats.norm.sf(gap["estimate"] / error))


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
            whole = sign * difference(name, t, np.arange(len(groups)))
            assert gap["estimate"] == pytest.approx(whole, abs=1e-6) and whole >= 0
            check_width(gap, values)
            if name == "auroc":
                mean = mean + np.array(values) * sign / 2
    gap = found["view"]["mean"]["auroc"]
    sign = 1 if gap["between"] == ["AP", "PA"] else -1
    check_width(gap, mean)
    assert gap == found["view"]["clearest"]


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


def test_a_model_that_fails_one_group_is_found_out_and_no_other_attribute_is():
    predictions, groups = cohort(patients=300, lift=0.9)
    rng = np.random.default_rng(1)
    blind = groups["view"].to_numpy() == "AP"
    score = predictions.probability.copy()
    score[blind, 0] = rng.random(blind.sum())
    found = summarise(predictions._replace(probability=score), groups)
    view, sex = found["view"], found["sex"]
    assert view["p_holm"] < 0.001 and view["clearest"]["between"] == ["PA", "AP"]
    apart = [(gap["task"], gap["metric"]) for gap in view["apart"]]
    assert ("mass", "auroc") in apart
    assert len(apart) - 4 <= 0.2 * view["explored"]  # Nodules differ by chance alone.
    assert sex["p_holm"] > 0.05 and sex["tests"] == view["tests"] == 2


def test_the_attributes_are_tested_once_each_and_holm_corrects_for_them(found):
    p = [found[name]["clearest"]["p"] for name in ("sex", "view")]
    adjusted = [found[name]["p_holm"] for name in ("sex", "view")]
    first = min(1, 2 * min(p))
    assert sorted(adjusted) == pytest.approx([first, max(first, *p)])


def test_of_three_groups_the_smallest_p_of_three_pairs_is_tripled():
    predictions, groups = cohort(patients=200, known=1)
    groups["third"] = np.array(["a", "b", "c"])[predictions.patient % 3]
    found = summarise(predictions, groups[["third"]])["third"]
    gap = found["clearest"]
    reach = stats.norm.ppf(1 - 0.025 / 3)
    error = (gap["estimate"] - gap["low"]) / reach
    p = 2 * stats.norm.sf(gap["estimate"] / error)
    assert gap["p"] == pytest.approx(min(1, 3 * p))
    assert (gap["p"] < 0.05) == (gap["low"] > 0)
    value = {g: x["mean"]["auroc"]["estimate"] for g, x in found["groups"].items()}
    largest = max(value.values()) - min(value.values())
    assert found["mean"]["auroc"]["estimate"] == pytest.approx(largest)


def test_without_a_gap_few_tests_say_so():
    p = []
    for seed in range(30):
        predictions, groups = cohort(seed, patients=60, known=1)
        found = summarise(predictions, groups[["view"]])
        of_tasks = found["view"]["gaps"].values()
        p += [gap["p"] for metrics in of_tasks for gap in metrics.values()]
    # 300 tests of level 0.05.
    assert 0 < (np.array(p) < 0.05).sum() < 24
    assert 0.4 < np.median(p) < 0.7


def rates_of(hits, of):
    """Measured rates of two groups, with a binomial's replicates, uncorrelated."""
    rates, of = np.divide(hits, of), np.asarray(of)
    noise = np.random.default_rng(0).normal(size=(200, 2))
    unit, _ = np.linalg.qr(noise - noise.mean(axis=0))
    drawn = rates + unit * np.sqrt(199 * rates * (1 - rates) / of)
    value, counts = (np.tile(x, (5, 1))[..., None] for x in (rates, of))
    replicate = np.tile(drawn[:, None, :, None], (1, 5, 1, 1))
    return subgroups.Measured(value, replicate, counts, counts)


def apart(hits, of):
    """The difference of the two groups' sensitivities: estimate, low, high and p."""
    pair = np.array([[0, 1]]), np.ones(1, bool), np.zeros(1, bool)
    return [x[1, 0, 0] for x in subgroups.differences(rates_of(hits, of), *pair)]


def test_the_gap_of_two_rates_has_newcombe_s_interval():
    """His examples (Stat. Med. 17 (1998) 873, table II, method 10)."""
    estimate, low, high, p = apart([56, 48], [70, 80])
    assert (estimate, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert p < 0.05
    assert apart([9, 3], [10, 10])[1:3] == pytest.approx((0.1705, 0.8090), abs=1e-4)


def test_a_group_without_an_error_is_no_proof_of_a_gap():
    assert apart([20, 45], [20, 50])[3] > 0.05  # Not even a variance of 0.
    assert apart([36, 36], [40, 40])[3] == 1


def test_groups_that_are_too_small_have_no_gap_and_say_so():
    predictions, groups = cohort()
    label = predictions.label.copy()
    label[(groups["sex"] == "F").to_numpy(), 0] = 0
    few = np.arange(len(groups)) < 6
    groups = groups[["sex"]].reset_index(drop=True)
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
    gap = found["site"]["gaps"]["mass"]["auroc"]
    assert gap["estimate"] is None and gap["why"] == "no two groups of 10 such patients"
    assert found["site"]["mean"]["auroc"]["estimate"] is None


def test_films_of_one_score_are_a_coin_s_in_each_group():
    rng = np.random.default_rng(0)
    label = (rng.random((40, 1)) < 0.5).astype(np.float32)
    same, counts = np.ones_like(label), np.ones((40, 2), np.uint8)
    area, precision = jax.jit(of_groups, static_argnames="groups")(
        *(same, label, same, np.arange(40), np.arange(40) % 3, counts), groups=4
    )
    prevalence = [label[n::3].mean() for n in range(3)]
    np.testing.assert_allclose(area[:, :3, 0], 0.5, atol=1e-6)
    np.testing.assert_allclose(precision[:, :3, 0], [prevalence] * 2, atol=1e-6)
    assert np.isnan(area[:, 3]).all()  # Nobody is in it.


def test_what_all_images_have_in_common_is_no_attribute():
    predictions, groups = cohort()
    alike = {"age": np.nan, "view": "PA"}
    found = summarise(predictions, groups.assign(**alike))
    assert found == summarise(predictions, groups[["sex"]]) and list(found) == ["sex"]
    assert summarise(predictions, groups.assign(**alike, sex="")) == {}


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

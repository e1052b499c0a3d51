"""Arms of several seeds: against scikit-learn, scipy, brute force and simulations."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracles
from test_bootstrap import mean_ends, wilson

from medjax.errors import InputError
from medjax.evaluation import areas, bootstrap, discrimination, seeds
from medjax.evaluation.bootstrap import Resampled, holm, multiplicities

KEY = jax.random.key(0)


class Runs(NamedTuple):
    """The arguments of seeds.measure_predictions."""

    probability: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    patient: np.ndarray


DRAWS = 25
NAMES = ("plain", "ratio", "focal")
ORACLES = {
    "auroc": oracles.roc_auc_score,
    "average_precision": oracles.average_precision_score,
    "brier": lambda y, p, sample_weight=None: oracles.brier_score_loss(
        y, p, sample_weight=sample_weight
    ),
    "balanced_accuracy": lambda y, p, sample_weight=None: (
        oracles.balanced_accuracy_score(y, p >= 0.5, sample_weight=sample_weight)
    ),
}


def made(rng, *, skill, number, patients, tasks=2):
    """Arms that see the label as well as their skill allows."""
    films = 2 * patients
    label = (rng.random((films, tasks)) < 0.4).astype(float)
    skill = np.reshape(skill, (-1, 1, 1, 1))
    score = skill * label + rng.normal(size=(len(skill), number, films, tasks))
    probability = 1 / (1 + np.exp(-score))
    return Runs(probability, label, np.ones(probability.shape), np.arange(films) // 2)


def compare(runs, names=NAMES, replicates=DRAWS, **options):
    scores = seeds.measure_predictions(
        *runs,
        ranking=runs.probability,
        call=runs.probability >= 0.5,
        key=KEY,
        replicates=replicates,
    )
    return seeds.compare(
        scores,
        arms=names,
        tasks=tuple("abcdef"[: runs.label.shape[1]]),
        primary="auroc",
        patients=len(np.unique(runs.patient)),
        **options,
    )


def brute(metric, runs, counts):
    """[A, S, T] by scikit-learn, with each image counted as its patient is."""
    times = counts[runs.patient]
    found = np.empty((*runs.probability.shape[:2], runs.label.shape[1]))
    for at in np.ndindex(found.shape):
        a, s, t = at
        weight = runs.weight[a, s, :, t] * times
        kept = weight > 0
        found[at] = ORACLES[metric](
            runs.label[kept, t],
            runs.probability[a, s, kept, t],
            sample_weight=weight[kept],
        )
    return found


@pytest.fixture(scope="module")
def one():
    """Runs that know not every label."""
    rng = np.random.default_rng(0)
    runs = made(rng, skill=(0.5, 1.0, 1.5), number=2, patients=20)
    known = rng.random(runs.label.shape) < 0.9
    return runs._replace(weight=runs.weight * known)


@pytest.fixture(scope="module")
def found(one):
    return compare(one)


def rarer(runs):
    """[T], the patients of the class that fewer have, where some run knows the label."""
    known = (runs.weight > 0).any(axis=(0, 1))
    return np.min(
        [
            [
                len(set(runs.patient[known[:, t] & (runs.label[:, t] == y)]))
                for y in (0, 1)
            ]
            for t in range(runs.label.shape[1])
        ],
        axis=1,
    )


def centred(runs, a, whole, drawn):
    """Average precisions of arm `a`, [T] and [R, T], as their intervals are made of."""
    centre = np.mean(
        [
            areas.of_other_patients(
                runs.probability[a, s], runs.label, runs.weight[a, s], runs.patient
            )
            for s in range(2)
        ],
        axis=0,
    )
    student = stats.t(rarer(runs) - 1).ppf(0.975) / stats.norm.ppf(0.975)
    return centre, centre + student * (drawn - whole)


@pytest.mark.parametrize("metric", ORACLES)
def test_every_number_is_that_of_brute_force(one, found, metric):
    whole = brute(metric, one, np.ones(20))
    counts = np.asarray(multiplicities(KEY, np.arange(DRAWS), 20)).T
    drawn = np.stack([brute(metric, one, each) for each in counts])
    whole, drawn = (
        np.append(x, x.mean(axis=-1, keepdims=True), axis=-1) for x in (whole, drawn)
    )
    for a, arm in enumerate(NAMES):
        row = found["arms"][arm]
        cells = [row["tasks"]["a"], row["tasks"]["b"], row["mean"]]
        estimates, many = whole[a].mean(axis=0), drawn[:, a].mean(axis=1)
        used, drawn_so = estimates[:2], many[:, :2]
        if metric == "average_precision":
            used, drawn_so = centred(one, a, used, drawn_so)
        k = [None, None] if metric not in areas.AREAS else rarer(one)
        worth = 1 if metric == "average_precision" else 2
        ends = [wilson(used[t], drawn_so[:, t], k[t], worth) for t in range(2)]
        ends.append(mean_ends(drawn_so.T, used, ends, np.ones(2)))
        holding = np.transpose(ends)
        ends = np.transpose(
            [np.minimum(holding[0], estimates), np.maximum(holding[1], estimates)]
        )
        for t, cell in enumerate(cells):
            cell = cell[metric]
            assert cell["each"] == pytest.approx(whole[a, :, t], abs=1e-5)
            assert cell["estimate"] == pytest.approx(whole[a, :, t].mean(), abs=1e-5)
            assert cell["sd"] == pytest.approx(np.std(whole[a, :, t], ddof=1), abs=1e-5)
            assert [cell["low"], cell["high"]] == pytest.approx(ends[t], abs=1e-5)
        if a == 0:
            assert row["difference"] is None
            continue
        both = row["difference"]
        cells = [both["tasks"]["a"], both["tasks"]["b"], both["mean"]]
        for t, cell in enumerate(cells):
            cell = cell[metric]
            each = whole[a, :, t] - whole[0, :, t]
            many = (drawn[:, a, :, t] - drawn[:, 0, :, t]).mean(axis=1)
            assert cell["estimate"] == pytest.approx(each.mean(), abs=1e-5)
            assert cell["sd"] == pytest.approx(np.std(each, ddof=1), abs=1e-5)
            error = np.std(many, ddof=1) * np.sqrt(20 / 19)
            assert cell["patients"] == pytest.approx(error, abs=1e-5)
            assert cell["seeds"] == 2 and cell["low"] < each.mean() < cell["high"]


@pytest.mark.parametrize(
    ("images", "groups"),
    [
        ((9, 900, 100, 10, 300), ["be", "c", "ad"]),
        ((3, 7, 5, 29, 4), []),  # Below ten times the fewest.
        ((0, 7, 5, 29, 4), []),
        ((1, 100, 1, 99, 2), ["bd", "ace"]),
    ],
)
def test_findings_are_grouped_by_thirds_of_the_way_from_rare_to_frequent(
    images, groups
):
    found = seeds.by_frequency(np.array(images, float))
    letters = np.array(list("abcde"))
    assert ["".join(letters[chosen]) for chosen in found.values()] == groups
    names = ["head", "medium", "tail"]
    assert list(found) == (
        names if len(groups) == 3 else ["head", "tail"][: len(groups)]
    )


def test_a_group_s_numbers_are_those_of_a_sweep_of_its_findings_alone():
    runs = made(
        np.random.default_rng(4), skill=(0.5, 1.0, 1.5), number=2, patients=30, tasks=4
    )
    found = compare(runs, images=np.array([1.0, 500.0, 30.0, 800.0]))
    assert found["groups"] == {"head": ["b", "d"], "medium": ["c"], "tail": ["a"]}
    part = runs._replace(
        probability=runs.probability[..., [1, 3]],
        label=runs.label[:, [1, 3]],
        weight=runs.weight[..., [1, 3]],
    )
    alone = compare(part)
    assert alone["groups"] == {} and alone["arms"]["plain"]["groups"] == {}
    for arm in NAMES:
        for kind, names in (("low", ORACLES), ("estimate", ORACLES), ("sd", ["auroc"])):
            for metric in names:
                row = found["arms"][arm]["groups"]["head"][metric][kind]
                assert row == pytest.approx(
                    alone["arms"][arm]["mean"][metric][kind], rel=1e-5
                )
    row = found["arms"]["focal"]["difference"]["groups"]["head"]["auroc"]
    whole = alone["arms"]["focal"]["difference"]["mean"]["auroc"]
    for kind in ("estimate", "low", "high", "p"):
        assert row[kind] == pytest.approx(whole[kind], rel=1e-5)
    assert found["arms"]["plain"]["difference"] is None


def test_a_sweep_of_one_run_has_the_intervals_of_that_run_s_report(one):
    """Those of its areas, whose few positives both count."""
    few = one.label * (np.arange(len(one.label)) < 14)[:, None]
    runs = one._replace(
        probability=one.probability[:1, :1], label=few, weight=one.weight[:1, :1]
    )
    row = compare(runs, names=("plain",), replicates=100)["arms"]["plain"]
    expected = discrimination.intervals(
        *(runs.probability[0, 0], few, runs.weight[0, 0], runs.patient),
        np.full(2, 0.5),
        key=KEY,
        replicates=100,
    )
    for name in areas.AREAS:
        for end in ("estimate", "low", "high"):
            found = [row["tasks"][t][name][end] for t in "ab"]
            assert found == pytest.approx(getattr(expected[name], end), abs=1e-6)
            mean = getattr(expected[f"mean_{name}"], end)
            assert row["mean"][name][end] == pytest.approx(mean, abs=1e-6)


def test_of_nine_patients_nothing_has_an_interval_or_a_test():
    found = compare(
        made(np.random.default_rng(1), skill=(0, 2, 1), number=3, patients=9)
    )
    for arm in found["arms"].values():
        assert arm["mean"]["auroc"]["low"] is arm["mean"]["auroc"]["high"] is None
    gap = found["arms"][NAMES[1]]["difference"]["mean"]["auroc"]
    assert gap["estimate"] > 0.1
    assert all(gap[name] is None for name in ("low", "high", "p", "holm"))
    assert found["best"]["arm"] is None


def test_ties_of_calibrated_probabilities_rank_nothing_and_areas_have_their_intervals():
    rng = np.random.default_rng(3)
    runs = made(rng, skill=(3.0, 1.0, 0.5), number=2, patients=20)
    tied = np.floor(4 * runs.probability) / 4
    both = [
        seeds.measure_predictions(
            *runs._replace(probability=p),
            ranking=runs.probability,
            call=p >= 0.5,
            key=KEY,
            replicates=DRAWS,
        )
        for p in (runs.probability, tied)
    ]
    np.testing.assert_array_equal(*(scores["auroc"].whole for scores in both))
    assert (both[0]["brier"].whole != both[1]["brier"].whole).any()
    # The mean over the seeds is an area, with the interval of one.
    k = np.array([9, 8])
    scores = both[0]["auroc"]._replace(rarer=k)
    found = seeds.summarise(scores, 0, patients=20)
    whole, drawn = (x.mean(axis=-2) for x in (scores.whole[0], scores.drawn[:, 0]))
    expected = bootstrap.wilson(Resampled(whole[:2], drawn[:, :2]), k)
    assert [each.low for each in found[:2]] == pytest.approx(expected.low)
    assert [each.high for each in found[:2]] == pytest.approx(expected.high)
    assert max(expected.low.min(), found[2].low) < found[2].estimate < found[2].high < 1


def test_holm_counts_the_arms_for_means_and_arms_by_tasks_for_tasks(found):
    rows = [found["arms"][arm]["difference"] for arm in NAMES[1:]]
    means = [row["mean"]["auroc"] for row in rows]
    tasks = [row["tasks"][t]["auroc"] for row in rows for t in "ab"]
    for family in (means, tasks):
        adjusted = holm([each["p"] for each in family])
        assert [each["holm"] for each in family] == pytest.approx(adjusted)
    assert (len(means), len(tasks)) == (2, 4)
    assert rows[0]["mean"]["brier"]["holm"] is None


# ---------------------------------------------------- the test of two doubts


def values(each, spread, replicates=4000):
    """Arms whose seeds have these AUROCs [A, S], and whose patients spread so."""
    each = np.asarray(each, float)[..., None]
    noise = np.random.default_rng(0).normal(size=(replicates, len(each), 1, 1))
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    return Resampled(each, each + spread * noise)


def test_without_doubt_about_patients_it_is_a_t_test_over_the_seeds():
    each = np.array([[0.80, 0.83, 0.79, 0.81, 0.85], [0.78, 0.79, 0.79, 0.80, 0.80]])
    found = seeds.difference(values(each, 0.0), 0, 1, -1, patients=500)
    expected = stats.ttest_1samp(each[0] - each[1], 0)
    assert found.p == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(ends))


def test_without_doubt_about_seeds_it_is_that_of_the_bootstrap():
    same = np.full((2, 5), 0.8) + [[0.02], [0.0]]
    found = seeds.difference(values(same, 0.01), 0, 1, -1, patients=10**6)
    error = found.patients
    assert found.sd == pytest.approx(0, abs=1e-12)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.02 / error), rel=1e-3)


def test_both_doubts_add_up():
    each = np.array([[0.80, 0.83, 0.79], [0.78, 0.79, 0.79]])
    one, both = (
        seeds.difference(values(each, spread), 0, 1, -1, patients=10**6)
        for spread in (0.0, 0.02)
    )
    assert both.p > one.p
    variance = both.patients**2 + both.sd**2 / 3
    t = both.estimate / np.sqrt(variance)
    # Welch's test of a sample of 3 and one of very many has the same freedom.
    freedom = variance**2 / ((both.sd**2 / 3) ** 2 / 2)
    assert both.p == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-4)


def test_a_difference_of_nothing_is_none():
    each = [[0.8, 0.9], [0.8, 0.9]]
    assert seeds.difference(values(each, 0.0), 0, 1, -1, patients=10).p == 1
    apart = [[0.75, 0.75], [0.5, 0.5]]
    assert np.isnan(seeds.difference(values(apart, 0.0), 0, 1, -1, patients=10).p)


# ---------------------------------------------------- what is missing


def test_a_missing_run_leaves_the_others_as_they_are(one):
    lacking = one.weight.copy()
    lacking[2, 1] = 0  # The second seed of the third arm failed.
    found = compare(one._replace(weight=lacking))
    whole = compare(one)
    assert [row["seeds"] for row in found["arms"].values()] == [2, 2, 1]
    assert found["arms"]["ratio"]["mean"] == whole["arms"]["ratio"]["mean"]
    rest, all_ = (x["arms"]["focal"]["mean"]["auroc"] for x in (found, whole))
    assert rest["each"] == [all_["each"][0], None] and rest["sd"] is None
    gap = found["arms"]["focal"]["difference"]["mean"]["auroc"]
    base = whole["arms"]["plain"]["mean"]["auroc"]["each"][0]
    assert gap["estimate"] == pytest.approx(all_["each"][0] - base)
    assert gap["seeds"] == 1 and gap["sd"] is None


def test_an_arm_without_a_run_is_empty_and_never_the_best(one):
    lacking = one.weight.copy()
    lacking[1] = 0
    found = compare(one._replace(weight=lacking))
    row = found["arms"]["ratio"]
    assert row["seeds"] == 0 and row["mean"]["auroc"]["estimate"] is None
    assert row["difference"]["mean"]["auroc"]["p"] is None
    assert found["best"]["leader"] == "focal"
    lacking[:2] = 0
    found = compare(one._replace(weight=lacking))
    assert found["best"]["arm"] is None and "two arms" in found["best"]["why"]


def test_folds_that_test_other_images_are_compared_within_themselves(one):
    folds = one.weight.copy()
    folds[:, 0, 20:], folds[:, 1, :20] = 0, 0
    found = compare(one._replace(weight=folds))
    each = found["arms"]["ratio"]["tasks"]["a"]["auroc"]["each"]
    for s, rows in enumerate((slice(20), slice(20, None))):
        known = one.weight[1, s, rows, 0] > 0
        expected = oracles.roc_auc_score(
            one.label[rows, 0][known], one.probability[1, s, rows, 0][known]
        )
        assert each[s] == pytest.approx(expected, abs=1e-5)


def test_a_task_without_a_positive_is_empty_and_left_out_of_the_mean(one):
    label = one.label.copy()
    label[:, 0] = 0
    found = compare(one._replace(label=label))
    row = found["arms"]["ratio"]
    assert row["tasks"]["a"]["auroc"]["estimate"] is None
    assert row["tasks"]["a"]["auroc"]["undefined"] == DRAWS
    assert row["mean"]["auroc"]["each"] == row["tasks"]["b"]["auroc"]["each"]
    tested = [
        found["arms"][arm]["difference"]["tasks"]["b"]["auroc"] for arm in NAMES[1:]
    ]
    expected = holm([each["p"] for each in tested])  # Of `a` there is no test.
    assert [each["holm"] for each in tested] == pytest.approx(expected)


def test_one_patient_is_refused(one):
    with pytest.raises(InputError, match="needs two"):
        compare(one._replace(patient=np.zeros_like(one.patient)))


# ---------------------------------------------------- the best


def verdict(each, spread, names=NAMES):
    return seeds.best(values(each, spread), names, patients=10**6)._asdict()


def test_a_clear_leader_is_named():
    offset = np.array([0, 0.001, -0.001, 0.0005])
    each = 0.8 + offset + [[0.0], [0.05], [0.01]]
    found = verdict(each, 0.002)
    assert (found["arm"], found["second"]) == ("ratio", "focal")
    assert found["p"] < 0.025


@pytest.mark.parametrize(
    ("each", "spread", "why"),
    [
        # Other patients could turn it round.
        ([[0.8] * 4, [0.82] * 4, [0.8] * 4], 0.02, "may be chance"),
        # Other seeds could.
        ([[0.8] * 4, [0.9, 0.78, 0.88, 0.8], [0.7] * 4], 0.0001, "may be chance"),
        # Two lead alike, far above the third.
        ([[0.5] * 4, [0.82] * 4, [0.82] * 4], 0.001, "may be chance"),
        ([[0.8] * 2, [0.9] * 2, [0.7] * 2], 0.001, "fewer than 3 seeds"),
        # Sixty seeds show a mean difference that two trainings rarely would.
        (
            [[0.8] * 60, [0.81, 0.86, 0.77] * 20, [0.7] * 60],
            0.0001,
            "less than one seed",
        ),
    ],
)
def test_what_isnt_clear_is_not_named_and_why(each, spread, why):
    found = verdict(each, spread)
    assert found["arm"] is None and found["leader"] == "ratio"
    assert why in found["why"]


def test_the_leader_has_the_highest_mean_of_the_seeds_that_all_arms_have():
    """The first lacks its hardest seed, by which its own mean is the highest."""
    each = [[0.9, 0.8, 0.8, np.nan], [0.91, 0.81, 0.81, 0.5], [0.7, 0.6, 0.6, 0.4]]
    found = verdict(each, 0.0001)
    assert (found["leader"], found["second"]) == ("ratio", "plain")
    found = verdict([[0.9, np.nan], [np.nan, 0.8], [0.5, 0.5]], 0.001)
    assert (found["arm"], found["leader"]) == (None, None)
    assert "no seed" in found["why"]


def test_an_arm_without_a_result_is_named_beside_the_best():
    offset = np.array([0, 0.001, -0.001, 0.0005])
    found = verdict(0.8 + offset + [[0.0], [0.05], [np.nan]], 0.002)
    assert found["arm"] == "ratio" and "but for focal, without" in found["why"]


def named(draws, *, shift=0.0, arms_=2, trained=5, by_seed=0.0, together=1.0):
    """The arms named the best in sweeps of a metric that is a mean over 60 patients.

    Args:
      shift: of the first arm.
      by_seed, together: how much a training, and what it does to each patient, moves
        the patients' values, which differ by 1 between them.
    """
    rng = np.random.default_rng(1)
    found = []
    for _ in range(draws):
        x = rng.normal(size=(arms_, 1, 60))
        x = x + rng.normal(0, by_seed, (arms_, trained, 1))
        x = x + rng.normal(0, together, (arms_, trained, 60))
        x[0] += shift
        counts = rng.multinomial(60, np.full(60, 1 / 60), 200)
        drawn = np.einsum("rp,asp->ras", counts, x) / 60
        value = Resampled(x.mean(axis=-1)[..., None], drawn[..., None])
        found.append(seeds.best(value, "abcdefg"[:arms_], patients=60).arm)
    return found


EQUAL = (
    *({"trained": 3}, {"by_seed": 0.1}, {"by_seed": 1.0}, {"arms_": 3}),
    *({"arms_": 2, "together": 0.0}, {"arms_": 7, "by_seed": 0.1}),
)


@pytest.mark.parametrize(
    "sweep", [{}, *(pytest.param(s, marks=pytest.mark.slow) for s in EQUAL)]
)
def test_of_equal_arms_hardly_ever_one_is_named_the_best(sweep):
    names = named(400, **sweep)
    assert sum(name is not None for name in names) / 400 <= 0.05


def test_an_arm_that_is_better_is_named_more_often_than_not():
    names = named(50, shift=1.0, arms_=3, by_seed=0.1)
    assert names.count("a") > 40 and set(names) <= {"a", None}

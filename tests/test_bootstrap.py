"""The bootstrap against literal resampling, scikit-learn, and a known truth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracles

from medjax.errors import InputError
from medjax.evaluation import areas, bootstrap, discrimination, metrics

KEY = jax.random.key(7)
MAX_FPR = 0.3
REPLICATES = 41  # The 2.5 and 97.5 % quantiles are then the 2nd and the 40th value.
# Metric of (threshold, label, score), in scikit-learn's words.
ORACLES = {
    "auroc": lambda cut, y, s: oracles.roc_auc_score(y, s),
    "average_precision": lambda cut, y, s: oracles.average_precision_score(y, s),
    "partial_auroc": lambda cut, y, s: oracles.roc_auc_score(y, s, max_fpr=MAX_FPR),
    "sensitivity": lambda cut, y, s: oracles.recall_score(y, s >= cut),
    "specificity": lambda cut, y, s: oracles.recall_score(y, s >= cut, pos_label=0),
    "ppv": lambda cut, y, s: oracles.precision_score(y, s >= cut),
    "npv": lambda cut, y, s: oracles.precision_score(y, s >= cut, pos_label=0),
    "accuracy": lambda cut, y, s: oracles.accuracy_score(y, s >= cut),
    "prevalence": lambda cut, y, s: y.mean(),
    "f1": lambda cut, y, s: oracles.f1_score(y, s >= cut),
    "lr_positive": lambda cut, y, s: likelihood_ratio(y, s >= cut),
    "lr_negative": lambda cut, y, s: likelihood_ratio(y, s < cut),
}


@pytest.fixture(autouse=True, scope="module")
def chunks():
    """REPLICATES is no multiple of a chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "REPLICATES_AT_ONCE", 16)
        yield


def intervals(*arrays, **options):
    """Of one shape and number of replicates throughout: compiled once."""
    how = {"key": KEY, "replicates": REPLICATES, "max_fpr": MAX_FPR}
    return discrimination.intervals(*arrays, **how | options)


def likelihood_ratio(label, said):
    return said[label == 1].mean() / said[label == 0].mean()


def cohort(seed=0, images=150, tasks=3, per_patient=3):
    """Returns score, label, weight [N, T] with ties and unknowns, and patient [N]."""
    rng = np.random.default_rng(seed)
    label = (rng.random((images, tasks)) < [0.2, 0.4, 0.6][:tasks]).astype(np.float32)
    score = np.round(rng.random((images, tasks)) + 0.4 * label, 1).astype(np.float32)
    weight = (rng.random((images, tasks)) < 0.9).astype(np.float32)
    patient = 1000 + 7 * rng.permutation(np.arange(images) // per_patient)
    return score, label, weight, patient


def drawn(key, patients, replicates):
    """Returns [R, P]: the patients that each replicate draws, one after another."""
    keys = [jax.random.fold_in(key, r) for r in range(replicates)]
    return np.stack([jax.random.bits(k, (patients,)) % patients for k in keys])


def literal(metric, draws, score, label, weight, patient):
    """Returns [R]: the metric on rows that are copied as often as drawn."""
    names = np.unique(patient)
    values = []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(patient == names[p]) for p in draw])
        rows = rows[weight[rows] > 0]
        values.append(metric(label[rows], score[rows]))
    return np.array(values)


def test_multiplicities_count_the_draws_of_patients():
    counts = np.asarray(bootstrap.multiplicities(KEY, jnp.arange(20), 9))
    assert counts.shape == (9, 20)
    for r, draw in enumerate(drawn(KEY, 9, 20)):
        np.testing.assert_array_equal(counts[:, r], np.bincount(draw, minlength=9))
    later = bootstrap.multiplicities(KEY, jnp.arange(15, 20), 9)
    np.testing.assert_array_equal(counts[:, 15:], later)


def test_every_patient_is_drawn_alike():
    counts = np.asarray(bootstrap.multiplicities(KEY, jnp.arange(4000), 11))
    # Binomial(44000, 1/11): mean 4000, standard deviation 60.
    assert np.abs(counts.sum(axis=1, dtype=int) - 4000).max() < 4.5 * 60
    assert counts.var() == pytest.approx(1 - 1 / 11, rel=0.05)


def test_replicates_are_scikit_learn_on_the_repeated_rows():
    score, label, weight, patient = cohort()
    names, index = np.unique(patient, return_inverse=True)
    counts = bootstrap.multiplicities(KEY, jnp.arange(12), names.size)
    threshold = np.float32([0.5, 0.7, 0.6])
    of_tasks = jax.jit(functools.partial(areas.of_tasks, max_fpr=MAX_FPR))
    found = of_tasks(score, label, weight, index, counts=counts)
    found = dict(zip(ORACLES, found, strict=False))
    matrix = jax.jit(discrimination.confusion)(
        *(score, label, weight, index, threshold, counts)
    )
    found |= jax.jit(metrics.rates)(matrix)
    draws = drawn(KEY, names.size, 12)
    assert found.keys() == ORACLES.keys()
    for t in range(3):
        task = score[:, t], label[:, t], weight[:, t], patient
        for name, oracle in ORACLES.items():
            metric = functools.partial(oracle, threshold[t])
            expected = literal(metric, draws, *task)
            np.testing.assert_allclose(found[name][:, t], expected, atol=1e-6)


def wilson(estimate, replicates, k=None, worth=2):
    """Wilson's interval by its quadratic, for the size with the replicates' variance.

    Of an area log n is the mean of that size's and of `worth` k's, with weights sqrt(k)
    and 1.5.
    """
    n = estimate * (1 - estimate) / np.var(replicates, ddof=1)
    if k is not None:
        n = np.exp(np.average(np.log([n, worth * k]), weights=[k**0.5, 1.5]))
    # (p - estimate)^2 = z^2 p (1 - p) / n
    z2 = stats.norm.ppf(0.975) ** 2 / n
    roots = np.roots([1 + z2, -2 * estimate - z2, estimate**2])
    return sorted(roots.real)


def mean_ends(values, estimates, ends, share):
    """The ends of a mean, by the correlations of its parts' replicates, see Zou (2007),
    or those of its own replicates, whichever are farther."""
    r = np.corrcoef(values)
    mean = np.average(estimates, weights=share)
    reach = [share / sum(share) * np.abs(estimates - end) for end in np.transpose(ends)]
    below, above = (np.sqrt(side @ r @ side) for side in reach)
    low, high = wilson(mean, np.average(values, axis=0, weights=share))
    return min(mean - below, low), max(mean + above, high)


def test_without_thresholds_the_areas_alone_have_intervals_the_same_ones():
    *data, threshold = *cohort(), np.float32([0.5, 0.7, 0.6])
    alone, all_of_them = intervals(*data, None), intervals(*data, threshold)
    assert {name.removeprefix("mean_") for name in alone if "weighted" not in name} == {
        *("auroc", "average_precision", "partial_auroc")
    }
    for name, interval in alone.items():
        np.testing.assert_array_equal(interval[:4], all_of_them[name][:4])


def test_the_interval_is_wilsons_with_the_replicates_variance():
    score, label, weight, patient = cohort()
    threshold = np.float32([0.5, 0.7, 0.6])
    found = intervals(score, label, weight, patient, threshold)
    names = {
        f"{kind}_{name}"
        for kind in ("mean", "weighted")
        for name in ORACLES
        if "lr_" not in name
    }
    names |= {f"micro_{name}" for name in list(ORACLES)[3:]}
    assert found.keys() == {*ORACLES, *names}
    draws = drawn(KEY, np.unique(patient).size, REPLICATES)
    values = np.stack(
        [
            literal(
                oracles.roc_auc_score,
                draws,
                *(score[:, t], label[:, t], weight[:, t], patient),
            )
            for t in range(3)
        ]
    )
    expected = [
        oracles.roc_auc_score(label[:, t], score[:, t], sample_weight=weight[:, t])
        for t in range(3)
    ]
    rarer = [
        min(len(set(patient[(weight[:, t] > 0) & (label[:, t] == y)])) for y in (0, 1))
        for t in range(3)
    ]
    ends = list(map(wilson, expected, values, rarer))
    np.testing.assert_allclose(found["auroc"].low, [e[0] for e in ends], atol=1e-5)
    np.testing.assert_allclose(found["auroc"].high, [e[1] for e in ends], atol=1e-5)
    np.testing.assert_allclose(found["auroc"].estimate, expected, atol=1e-6)
    mean = found["mean_auroc"]
    assert mean.estimate == pytest.approx(np.mean(expected), abs=1e-6)
    ends = mean_ends(values, np.array(expected), ends, np.ones(3))
    assert (mean.low, mean.high) == pytest.approx(ends, abs=1e-5)
    assert found["auroc"].undefined.tolist() == [0, 0, 0]
    # F1 isn't a share of images, but in [0, 1].
    f1 = functools.partial(ORACLES["f1"], threshold[0])
    first = score[:, 0], label[:, 0], weight[:, 0], patient
    ends = wilson(found["f1"].estimate[0], literal(f1, draws, *first))
    assert (found["f1"].low[0], found["f1"].high[0]) == pytest.approx(ends, abs=2e-6)


@pytest.mark.parametrize("k", [10, 30])
def test_an_area_near_one_has_a_width_and_ends_below_one(k):
    """Also where no pair is out of order: then of 2 k."""
    rng = np.random.default_rng(0)
    near = 1 - 10.0 ** -rng.integers(2, 6, 50)
    drawn = np.clip(near + 0.1 * (1 - near) * rng.normal(size=(300, 50)), 0, 1)
    found = bootstrap.wilson(bootstrap.Resampled(near, drawn), np.full(50, k))
    assert (found.low < near - 1e-6).all() and (found.high < 1).all()
    assert (near < found.high).all()
    whole = bootstrap.Resampled(np.ones(1), np.ones((300, 1)))
    found = bootstrap.wilson(whole, np.array([k]))
    z2 = stats.norm.ppf(0.975) ** 2
    assert (found.low[0], found.high[0]) == pytest.approx((2 * k / (2 * k + z2), 1))


def test_a_ratio_s_interval_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = rng.binomial([[40], [60]], [[0.9], [0.2]], (2, 4000))
    hits = hits[:, (hits[1] > 0)]
    ends = []
    for n, x in zip((40, 60), hits):
        p, z2 = x / n, stats.norm.ppf(0.975) ** 2 / n
        middle, reach = p + z2 / 2, np.sqrt(z2 * (p * (1 - p) + z2 / 4))
        both = (middle - reach) / (1 + z2), (middle + reach) / (1 + z2)
        ends.append(bootstrap.Interval(p, *both, 0))
    low, high = bootstrap.ratio(*ends)
    held = (low <= 0.9 / 0.2) & (0.9 / 0.2 <= high)
    assert 0.93 < held.mean() < 0.97
    assert (low <= ends[0].estimate / ends[1].estimate + 1e-9).all()


def test_a_weighed_difference_of_shares_holds_the_truth_as_often_as_it_says():
    """Of a net benefit with few false positives; +- 1.96 standard errors don't."""
    rng, n, odds, studies = np.random.default_rng(0), 100, 0.5, 3000
    shares = np.array([0.1, 0.02, 0.88])
    counts = rng.multinomial(n, shares, studies)
    drawn = np.stack([rng.multinomial(n, counts / n) for _ in range(150)]) / n
    drawn = np.moveaxis(drawn[..., :2], 2, 1)  # [R, 2, studies]
    parts = bootstrap.wilson(bootstrap.Resampled(counts.T[:2] / n, drawn))
    parts = bootstrap.exact(parts, n)
    factors = np.array([[1], [-odds]])
    total, low, high = bootstrap.combined(parts, drawn, factors)
    truth = shares[0] - odds * shares[1]
    np.testing.assert_allclose(total, (counts[:, 0] - odds * counts[:, 1]) / n)
    assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.97
    # Zou's formula, of two parts.
    a, b = (drawn - drawn.mean(axis=0))[..., :20].swapaxes(0, 1)
    r = (a * b).sum(0) / np.maximum(np.sqrt((a**2).sum(0) * (b**2).sum(0)), 1e-9)
    a, b = parts.estimate - parts.low, parts.high - parts.estimate
    a, b = (x[:, :20] for x in (a, b))
    below = np.sqrt(a[0] ** 2 + (odds * b[1]) ** 2 - 2 * r * a[0] * odds * b[1])
    np.testing.assert_allclose(low[:20], total[:20] - below, atol=1e-9)


def test_undefined_replicates_are_left_out_and_counted():
    score, label, weight, patient = cohort()
    label[:, 1] = 0.0
    label[0, 1], weight[0, 1] = 1.0, 1.0  # One positive: e^-1 of replicates miss it.
    label[:, 2] = 0.0
    threshold = np.float32([0.5, 0.5, np.nan])
    found = intervals(score, label, weight, patient, threshold)
    position = np.unique(patient).searchsorted(patient[0])
    missed = (drawn(KEY, 50, REPLICATES) != position).all(axis=1).sum()
    assert 8 < missed < 25
    for name in ("auroc", "average_precision", "sensitivity"):
        assert found[name].undefined.tolist() == [0, missed, REPLICATES]
        assert np.isfinite([found[name].low[:2], found[name].high[:2]]).all()
        assert np.isnan([found[name].estimate[2], found[name].low[2]]).all()
        assert found[f"mean_{name}"].undefined == missed
        expected = found[name].estimate[:2].mean()
        assert found[f"mean_{name}"].estimate == pytest.approx(expected, abs=1e-6)
    assert found["accuracy"].undefined.tolist() == [0, 0, REPLICATES]


def test_weighted_and_pooled_means_are_those_of_each_replicate():
    score, label, weight, patient = cohort()
    threshold = np.float32([0.5, 0.7, 0.6])
    found = intervals(score, label, weight, patient, threshold)
    names, draws = np.unique(patient), drawn(KEY, 50, REPLICATES)
    expected = []
    for rows in [np.arange(150)] + [
        np.concatenate([np.flatnonzero(patient == names[p]) for p in draw])
        for draw in draws
    ]:
        known = weight[rows] > 0
        y, s, said = label[rows], score[rows], score[rows] >= threshold
        each = [oracles.roc_auc_score(y[k, t], s[k, t]) for t, k in enumerate(known.T)]
        share = (y * known).sum(axis=0)
        pooled = oracles.precision_score(y[known], said[known])
        expected.append((np.average(each, weights=share), pooled))
    expected = np.array(expected)
    for column, name in enumerate(("weighted_auroc", "micro_ppv")):
        estimate = expected[0, column]
        assert found[name].estimate == pytest.approx(estimate, abs=1e-6)
    ends = wilson(expected[0, 1], expected[1:, 1])
    found = found["micro_ppv"]
    assert (found.low, found.high) == pytest.approx(ends, abs=2e-6)


@pytest.mark.parametrize("films", [1, 3])
def test_average_precision_of_other_patients_is_counted_patient_by_patient(films):
    score, label, weight, patient = cohort()
    patient = np.arange(len(score)) // films
    found = areas.of_other_patients(score, label, weight, patient)
    for t in range(score.shape[1]):
        known = weight[:, t] > 0
        total = np.array(
            [(weight * x)[known, t].sum() for x in (label, 1 - label)], float
        )
        terms, shares = [], []
        for n in np.flatnonzero(known & (label[:, t] > 0)):
            others = known & (patient != patient[n])
            called = others & (score[:, t] >= score[n, t])
            true, false = (
                (weight * x)[called, t].sum() * all_ / (weight * x)[others, t].sum()
                for x, all_ in zip((label, 1 - label), total, strict=True)
            )
            terms.append(true / (true + false) if called.any() else 1)
            shares.append(weight[n, t] * label[n, t])
        assert found[t] == pytest.approx(np.average(terms, weights=shares), rel=1e-5)


def test_average_precision_of_other_patients_is_right_in_the_mean():
    rng = np.random.default_rng(0)
    label = (rng.random((60, 2000)) < 0.2).astype(np.float32)
    label[:2], label[2:4] = 0, 1
    score, same = rng.random(label.shape), np.ones_like(label)
    # Chance's precision is the prevalence at every threshold.
    prevalence, patient = label.mean(), np.arange(60)
    found = areas.of_other_patients(score, label, same, patient)
    raw = [oracles.average_precision_score(y, s) for y, s in zip(label.T, score.T)]
    assert np.mean(raw) - prevalence > 0.04
    assert abs(found.mean() - prevalence) < 0.02
    one = np.eye(3, dtype=np.float32)[:, :1]  # One positive patient says nothing.
    only = areas.of_other_patients(one, one, one + 1, np.arange(3))
    assert np.isnan(only).all()


def test_a_padding_row_is_no_patient():
    score, label, weight, patient = cohort()
    threshold = np.full(3, 0.5, np.float32)
    padded = [np.pad(a, ((0, 4), (0, 0))) for a in (score, label, weight)]
    alone, more = (
        intervals(*cohort, threshold)
        for cohort in (
            (score, label, weight, patient),
            (*padded, np.append(patient, [-1, -1, -2, -3])),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, alone, more)


def simulate(rng, patients, per_patient):
    """Half the patients are ill; what moves a score is the patient, not the film.

    The AUROC in the population is Phi(1 / sqrt(2)) = 0.7602.
    """
    ill = rng.integers(0, 2, patients)
    score = ill + 0.9 * rng.normal(size=patients)
    score = score[:, None] + np.sqrt(0.19) * rng.normal(size=(patients, per_patient))
    label = np.broadcast_to(ill[:, None], score.shape)
    patient = np.repeat(np.arange(patients), per_patient)
    return *(a.reshape(-1, 1).astype(np.float32) for a in (score, label)), patient


@pytest.mark.slow
def test_intervals_cover_the_truth_with_patients_and_not_with_images():
    truth, trials = 0.760250, 400
    rng = np.random.default_rng(0)
    cohorts = [simulate(rng, 100, 4) for _ in range(trials)]
    score, label = (np.concatenate(a, axis=1) for a in list(zip(*cohorts))[:2])
    patient = cohorts[0][2]
    covered, width = [], []
    for unit in (patient, np.arange(patient.size)):
        # All trials as tasks of one call; they share the draws, not the cohort.
        found = discrimination.intervals(
            *(score, label, np.ones_like(score), unit, np.zeros(trials)),
            key=KEY,
            replicates=300,
        )["auroc"]
        covered.append(np.mean((found.low <= truth) & (truth <= found.high)))
        width.append(np.mean(found.high - found.low))
    assert 0.93 <= covered[0] <= 0.97
    assert covered[1] < 0.80
    assert width[0] > 1.5 * width[1]


@pytest.mark.parametrize(
    "field, value, word",
    [
        ("weight", -1.0, "weight"),
        ("weight", np.nan, "weight"),
        ("score", np.nan, "task 1"),
        ("label", 2.0, "label"),
        ("replicates", 0, "replicates"),
    ],
)
def test_bad_input_is_named(field, value, word):
    score, label, weight, patient = cohort(images=20)
    arguments = {"score": score, "label": label, "weight": weight}
    arguments |= {"patient": patient, "replicates": 10}
    if field != "replicates":
        weight[3, 1] = 1.0
        arguments[field][3, 1] = value
    else:
        arguments[field] = value
    with pytest.raises(InputError, match=word):
        discrimination.intervals(**arguments, threshold=np.zeros(3), key=KEY)
    other = {"other": np.zeros_like(score), "key": KEY}
    with pytest.raises(InputError, match=word):
        discrimination.difference(**arguments, **other)


def test_a_difference_is_that_of_two_models_on_the_same_drawn_patients():
    score, label, weight, patient = cohort()
    other = np.random.default_rng(1).random(score.shape).astype(np.float32)
    found = discrimination.difference(
        score, other, label, weight, patient, key=KEY, replicates=REPLICATES
    )
    draws = drawn(KEY, np.unique(patient).size, REPLICATES)
    for name in ("auroc", "average_precision"):
        oracle, values = functools.partial(ORACLES[name], None), []
        for t in range(3):
            rest = label[:, t], weight[:, t], patient
            one, two = (
                literal(oracle, draws, each[:, t], *rest) for each in (score, other)
            )
            values.append(one - two)
            reach = stats.norm.ppf(0.975) * np.std(one - two, ddof=1)
            got = found[name].estimate[t] + np.array([-reach, reach])
            ends = [found[name].low[t], found[name].high[t]]
            np.testing.assert_allclose(got, ends, atol=1e-5)
        mean = found[f"mean_{name}"]
        reach = stats.norm.ppf(0.975) * np.std(np.mean(values, axis=0), ddof=1)
        assert (mean.high - mean.low) / 2 == pytest.approx(reach, abs=1e-5)
    same = discrimination.difference(
        score, score, label, weight, patient, key=KEY, replicates=REPLICATES
    )
    assert same["mean_auroc"].low == same["mean_auroc"].high == 0


def test_predictive_values_elsewhere_follow_from_the_likelihood_ratios():
    arrays = cohort()
    threshold, prevalence = np.float32([0.5, 0.7, 0.6]), np.array([0.01, 0.2, 0.5])
    found = intervals(*arrays, threshold, prevalence=prevalence)
    odds = prevalence / (1 - prevalence)
    for name, ratio, of in (
        ("ppv_at", "lr_positive", lambda x: odds * x / (1 + odds * x)),
        ("npv_at", "lr_negative", lambda x: 1 / (1 + odds * x)),
    ):
        assert not found[ratio].undefined.any() and not found[name].undefined.any()
        ends = [of(end) for end in found[ratio][:3]]
        ends[1:] = np.sort(ends[1:], axis=0)  # A rising ratio lowers the NPV.
        np.testing.assert_allclose(found[name][0], ends[0], rtol=1e-5)
        np.testing.assert_allclose(found[name][1:3], ends[1:], rtol=2e-3)
    own = found["prevalence"].estimate  # In the data themselves it is the PPV.
    same = intervals(*arrays, threshold, prevalence=own)
    np.testing.assert_allclose(same["ppv_at"][0], same["ppv"][0], rtol=1e-5)

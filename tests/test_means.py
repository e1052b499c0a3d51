"""Intervals of means by patient against their definitions, and how often they hold the truth."""

import math

import jax
import numpy as np
import pytest
from scipy import optimize, stats

from medjax.evaluation import bootstrap, means

OPTIONS = {"key": jax.random.key(3), "replicates": 60}


def volumes(kind: str, patients: int, seed=0):
    """[2, 3] values of two volumes a patient in three columns; one isn't known."""
    rng = np.random.default_rng(seed)
    shape = (2 * patients, 3)
    drawn = rng.beta(8, 2, shape) if kind == "shares" else rng.poisson(0.4, shape)
    values = drawn.astype(float)
    values[3, 1] = np.nan
    return values, np.arange(2 * patients) % patients


def spread(values, patient):
    """A column's mean, its variance by patient, and Student's quantile."""
    known = ~np.isnan(values)
    values, patient = values[known], patient[known]
    names = np.unique(patient)
    sums = [(values[patient == name] - values.mean()).sum() for name in names]
    n = len(names)
    variance = np.square(sums).sum() / len(values) ** 2 * n / (n - 1)
    return values.mean(), variance, stats.t.ppf(0.975, n - 1)


def gap(truth, mean, factor, kind):
    """0 where a score test of this truth is just at its limit."""
    variance = truth * (1 - truth) if kind == "shares" else truth
    return (mean - truth) ** 2 - factor * variance


@pytest.mark.parametrize("kind", ["shares", "counts"])
def test_ends_are_where_a_score_test_would_just_reject(kind):
    values, patient = volumes(kind, 14)
    interval = getattr(means, kind)(means.over_rows(values, patient))
    most = 1 if kind == "shares" else 50
    for column, (estimate, low, high) in enumerate(zip(*interval[:3])):
        mean, variance, t = spread(values[:, column], patient)
        expected = mean * (most - mean) if most == 1 else mean
        each = expected / variance  # How many volumes have such a variance.

        data = mean, t**2 / each, kind
        ends = [optimize.brentq(gap, *x, args=data) for x in ((0, mean), (mean, most))]
        np.testing.assert_allclose((estimate, low, high), (mean, *ends), rtol=1e-9)


def test_what_never_varies_has_the_exact_interval():
    same = np.repeat([[0.0, 1.0, 0.4]], 12, axis=0)
    linear = means.over_rows(same, np.arange(12))
    none, all_, _ = zip(*means.shares(linear)[1:3])
    ci = stats.binomtest(0, 12).proportion_ci(method="exact")
    np.testing.assert_allclose(none, (ci.low, ci.high))
    np.testing.assert_allclose(all_, (1 - ci.high, 1))
    ends = [end[0] for end in means.counts(linear)[1:3]]
    np.testing.assert_allclose(ends, (0, stats.chi2.ppf(0.975, 2) / 2 / 12))
    low, high = (end[2] for end in means.shares(linear)[1:3])
    assert high - low < 1e-9  # There is no exact one.


def bootstrap_t(moves, counts):
    """Both ends from the mean, of replicates that draw each patient so often."""
    error, n, t = np.sqrt((moves**2).sum()), len(moves), []
    for count in counts:
        drawn = np.repeat(moves, count)
        deviation = np.sqrt(n) * np.std(drawn)
        if deviation > 1e-3 * error:
            t.append(drawn.sum() / deviation)
    least = stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
    low, high = np.quantile(t, [0.025, 0.975])
    high, low = np.clip((high, -low), least, 2 * least)
    return -high * error, low * error


@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_the_bootstrap_t_interval_is_that_of_each_drawn_sample(outlier):
    """With an outlier it ends at Student's on one side, beyond it on the other."""
    values = np.random.default_rng(1).lognormal(size=12)
    values[0] += outlier
    patient = np.arange(12) % 10
    _, low, high, *_ = means.studentised(means.over_rows(values, patient), **OPTIONS)
    moves = np.bincount(patient, values - values.mean()) / 12
    counts = bootstrap.multiplicities(OPTIONS["key"], np.arange(60), 10)
    ends = bootstrap_t(moves, np.asarray(counts).T)
    np.testing.assert_allclose((low, high), values.mean() + ends, rtol=1e-4)


def test_one_volume_that_differs_doesn_t_end_the_interval_at_the_mean():
    """Of eighteen: a resampled mean would reach no higher than that of two of them."""
    rare = np.r_[0.5, np.zeros(17)]
    linear = means.over_rows(
        np.stack([1 - rare, 2 * rare, 50 * rare], 1), np.arange(18)
    )
    share, count = means.shares(linear), means.counts(linear)
    assert share.low[0] < 0.9 and share.high[0] > 0.99
    exact = stats.chi2.ppf(0.975, 4) / 2 / 18
    assert count.high[1] == pytest.approx(exact, rel=0.2)
    distance = means.studentised(linear, **OPTIONS)
    assert distance.high[2] - distance.estimate[2] > 2 * distance.estimate[2]


def held(interval, truth) -> np.ndarray:
    return (interval.low <= truth) & (truth <= interval.high)


@pytest.mark.parametrize("patients", [10, 20, 50])
def test_intervals_of_shares_and_counts_hold_the_mean(patients):
    """Of a Dice, of sensitivities that are mostly 1, and of rare false lesions."""
    rng = np.random.default_rng(patients)
    trials = 2000
    rare = np.where(rng.random((patients, trials)) < 0.05, 0.5, 1)
    dice, false = rng.beta(8, 2, rare.shape), rng.poisson(0.1, rare.shape)
    shares = np.concatenate([dice, rare], axis=1)
    of = [
        means.over_rows(x.astype(float), np.arange(patients)) for x in (shares, false)
    ]
    truth = np.repeat([0.8, 0.975], trials)
    hits = held(means.shares(of[0]), truth).reshape(2, trials).mean(axis=1)
    assert (hits > 0.92).all() and hits[0] < 0.97
    assert held(means.counts(of[1]), 0.1).mean() > 0.92


@pytest.mark.parametrize(("patients", "least"), [(10, 0.85), (20, 0.89), (50, 0.91)])
def test_intervals_of_skewed_distances_hold_the_mean(patients, least):
    rng = np.random.default_rng(patients)
    values = rng.lognormal(0, 1, (patients, 400))
    linear = means.over_rows(values, np.arange(patients))
    interval = means.studentised(linear, key=jax.random.key(0), replicates=1000)
    assert least < held(interval, math.exp(0.5)).mean() < 0.985

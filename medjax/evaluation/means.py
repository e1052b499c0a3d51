"""Means over volumes, and their intervals by patient: each by the kind of its numbers.

  shares        numbers in [0, 1], such as a Dice
  counts        such as false lesions
  studentised   any others, such as distances and differences

Where nearly all volumes have one value, such as a sensitivity of 1, most resamples have
no spread, and a bootstrap's interval ends at the mean itself. How often each kind holds
the truth: tests/README.md.
"""

import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array
from scipy import stats

from medjax.cohort.describe import wilson_ends
from medjax.evaluation import bootstrap
from medjax.evaluation.bootstrap import LEVEL, ROUNDING, Interval, resample, reweigh


class Linear(NamedTuple):
    """Statistics that are sums over patients, or near it."""

    estimate: np.ndarray  # [...].
    # [P, ...], how far each patient moves it from a common mean; sums to 0.
    influence: np.ndarray
    patients: np.ndarray  # [...], who take part.


def over_rows(values: np.ndarray, patient: np.ndarray) -> Linear:
    """Each column's mean over the rows of [N, ...] in which it isn't NaN."""
    total, number = bootstrap.patient_sums(values, patient)
    rows = number.sum(axis=0)
    mean = total.sum(axis=0) / np.maximum(rows, 1)
    influence = (total - mean * number) / np.maximum(rows, 1)
    patients = (number > 0).sum(axis=0)
    return Linear(np.where(rows > 0, mean, np.nan), influence, patients)


def _spread(linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """[...]: the variance of the means, and the quantile of Student's t."""
    n = np.maximum(linear.patients, 2)
    variance = (linear.influence**2).sum(axis=0) * n / (n - 1)
    return variance, stats.t.ppf((1 + LEVEL) / 2, n - 1)


def shares(linear: Linear) -> Interval:
    """Wilson's interval, for the sample size that the variance stands for.

    With Student's quantile, as the variance is of few patients. Means of 0 and 1 have
    the exact one, as if each patient had one volume.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927) 209; see also bootstrap.wilson.
    """
    variance, t = _spread(linear)
    spread = linear.estimate * (1 - linear.estimate)
    z2 = t**2 * variance / np.where(spread > ROUNDING, spread, 1)
    ends = wilson_ends(linear.estimate, z2)
    interval = Interval(linear.estimate, *ends, np.zeros(variance.shape))
    return bootstrap.exact(interval, linear.patients)


def counts(linear: Linear) -> Interval:
    """The score interval of a Poisson mean, for the number that the variance stands for.

    With Student's quantile. A mean of 0 has the exact interval, as if each patient had
    one volume.

    Source: Rao's score test of a rate; Garwood, Biometrika 28 (1936) 437 for 0.
    """
    variance, t = _spread(linear)
    mean = linear.estimate
    shift = t**2 * variance / np.where(mean > 0, mean, 1) / 2
    reach = np.sqrt(t**2 * variance + shift**2)
    none = -np.log((1 - LEVEL) / 2) / np.maximum(linear.patients, 1)
    low = np.maximum(mean + shift - reach, 0)
    high = np.where(mean > 0, mean + shift + reach, none)
    return Interval(mean, low, high, np.zeros(variance.shape))


def studentised(linear: Linear, **draws) -> Interval:
    """The bootstrap-t interval: for skewed numbers, such as distances.

    In units of its own standard error a replicate is as far from the estimate as that is
    from the truth. Of few patients the quantiles of that are noisy: they are at least
    Student's, and at most twice those.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 12.5.
    """
    variance, t = _spread(linear)
    error = np.sqrt((linear.influence**2).sum(axis=0))
    scaled = linear.influence / np.where(error > 0, error, 1)
    drawn = resample(_student, scaled.astype(np.float32), len(scaled), **draws)
    with warnings.catch_warnings(action="ignore"):  # Where nothing varies.
        below, above = np.nanquantile(
            drawn.drawn, [(1 + LEVEL) / 2, (1 - LEVEL) / 2], axis=0
        )
    least = t * np.sqrt(variance)
    below, above = (
        np.fmin(np.fmax(end * error, least), 2 * least) for end in (below, -above)
    )
    ends = linear.estimate - below, linear.estimate + above
    return Interval(linear.estimate, *ends, np.zeros(error.shape))


def _student(influence: Array, counts: Array) -> Array:
    """A statistic: the t of each replicate; NaN where all drawn patients are alike."""
    moved, square = (reweigh(x, counts) for x in (influence, influence**2))
    variance = square - moved**2 / len(influence)
    alike = variance <= ROUNDING
    return jnp.where(alike, jnp.nan, moved / jnp.sqrt(jnp.where(alike, 1, variance)))

"""Intervals from a bootstrap over patients: the one engine under every metric.

Images of one patient resemble each other, so an interval that resamples images is
too narrow. Here a replicate draws as many patients as there are, with replacement,
and an image counts as often as its patient was drawn. No image is copied: a replicate
is a vector of counts, one for each patient.

`resample` computes any statistic so; most are sums over patients, see `reweigh`. Numbers
in [0, 1] have the intervals of `wilson`, their sums, means and differences `combined`,
and differences between models `normal`; `interval` says what a report may print of them.
How often each kind holds the truth: tests/README.md.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from scipy.special import ndtri

from medjax.cohort.describe import wilson_ends
from medjax.errors import InputError
from medjax.evaluation import metrics

# Replicates computed at once: the counts are the largest array, 5 bytes a patient and
# replicate. 1,000 and the patients as they are take two.
REPLICATES_AT_ONCE = 501
LEVEL = 0.95  # The intervals' nominal coverage.
MIN_PATIENTS = 10  # Patients in a metric's denominator, for an interval or a test.
NO_INTERVAL = f"fewer than {MIN_PATIENTS} such patients: no interval"
UNDEFINED_SHARE = 0.01  # Of the replicates: if more are undefined, the report says so.
PRIOR = 1.5  # The weight of an area's expected variance, see `wilson`.
MAX_SIZE = 1e9  # Effective sample size.
ROUNDING = 1e-6  # Of float32: ends that are nearer to each other are equal.


class Interval(NamedTuple):
    """An estimate and its interval: numbers, or arrays of one shape."""

    estimate: Array | float  # On the images as they are; NaN where undefined.
    low: Array | float  # As `high` NaN where there is no interval.
    high: Array | float
    # How many replicates were left out because the metric is undefined in them (no
    # positive was drawn, say). Many of them mean that the interval is conditional on
    # the others, and that the data are too few.
    undefined: Array | float
    # Why there is no estimate or no interval, or how many replicates it leaves out; ''
    # if there is nothing to say, None before `interval` has judged it.
    why: str | None = None


class Resampled(NamedTuple):
    """A statistic, a tree of arrays or dict of them; NaN where undefined."""

    whole: ArrayTree  # [...], of the patients as they are.
    drawn: ArrayTree  # [R, ...], of each replicate.


def resample(
    statistic: Callable,
    data: ArrayTree,
    patients: int,
    *,
    key: Array,
    replicates: int,
    **options,
) -> Resampled:
    """Computes a statistic of the patients as they are, and of R draws of them.

    Args:
      statistic: (data, counts, **options) -> a tree of [R, ...]; counts is [P, R], how
        often each replicate counts each patient. A function of a module: a new closure
        at every call would be compiled anew.
      patients: P.
      key: replicate r draws with fold_in(key, r), so the same patients for every
        statistic.
      replicates: R; below about 1,000 the ends of an interval are noisy.
      options: static ones of the statistic.
    """
    if replicates < 1:
        raise InputError(f"replicates: {replicates}; give 1 or more, 1000 as a rule")
    chunks = -(-(replicates + 1) // REPLICATES_AT_ONCE)
    # Number -1 counts every patient once.
    numbers = np.arange(chunks * -(-(replicates + 1) // chunks)) - 1
    options = tuple(sorted(options.items()))
    values = [
        _of_chunk(statistic, data, _counts(key, chunk, patients), options)
        for chunk in numbers.reshape(chunks, -1)
    ]
    values = jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(values))
    return Resampled(
        jax.tree.map(lambda x: x[0], values),
        jax.tree.map(lambda x: x[1 : replicates + 1], values),
    )


# Two programs, so that what draws the patients is compiled once for all statistics.
@functools.partial(jax.jit, static_argnames="patients")
def _counts(key: Array, numbers: Array, patients: int) -> Array:
    return jnp.where(numbers < 0, 1, multiplicities(key, numbers, patients))


@functools.partial(jax.jit, static_argnames=("statistic", "options"))
def _of_chunk(statistic, data, counts, options) -> ArrayTree:
    return statistic(data, counts, **dict(options))


def multiplicities(key: Array, replicate: Array, patients: int) -> Array:
    """[P, R] uint8: how often each replicate draws each patient, P draws from P.

    A replicate's number, of [R], gives its key, so that it draws the same in any chunk.
    The chance of more than 255 draws of a patient is nil (P^-255).
    """

    def draw(number):
        bits = jax.random.bits(jax.random.fold_in(key, number), (patients,))
        # The remainder favours no patient by more than P / 2^32, and costs a third
        # of `randint`, which was half the time of the whole bootstrap.
        chosen = (bits % jnp.uint32(patients)).astype(jnp.int32)
        return jnp.zeros(patients, jnp.uint8).at[chosen].add(1)

    return jax.lax.map(draw, replicate).T


def numbered(weight, patient) -> tuple[np.ndarray, np.ndarray, int]:
    """The rows with a weight, and their patients as the numbers 0 to P - 1.

    Args:
      weight: [N, T]; patient: [N] integers.

    Returns:
      rows: [N] bool; index: int32, the patient of each of these rows; P.

    Raises:
      InputError: no patient has a known label.
    """
    rows = (np.asarray(weight) > 0).any(axis=1)
    names, index = np.unique(np.asarray(patient)[rows], return_inverse=True)
    if not names.size:
        raise InputError("patient: none has a known label: evaluate others")
    return rows, index.astype(np.int32), names.size


def reweigh(values: Array, counts: Array, patient: Array | None = None) -> Array:
    """Sums over patients, [R, ...] of [P, ...].

    With `patient`, [N] from 0 to P - 1, the values are those of N images.
    """
    if patient is not None:
        values = jax.ops.segment_sum(values, patient, num_segments=len(counts))
    counts = counts.astype(jnp.float32)
    # HIGHEST: an accelerator's default rounds counts to 8 bits.
    return jnp.einsum("pr,p...->r...", counts, values, precision="highest")


def means(values, patient, **draws) -> Resampled:
    """Resamples each column's mean over the rows of [N, ...] in which it isn't NaN."""
    sums = np.stack(patient_sums(values, patient)).astype(np.float32)
    return resample(quotient, sums, sums.shape[1], **draws)


def patient_sums(values, patient) -> tuple[np.ndarray, np.ndarray]:
    """[P, ...] each: patients' sums over the rows of [N, ...] not NaN, and their number."""
    names, index = np.unique(np.asarray(patient), return_inverse=True)
    known = ~np.isnan(values)
    total, number = np.zeros((2, len(names), *values.shape[1:]))
    np.add.at(total, index, np.where(known, values, 0))
    np.add.at(number, index, known)
    return total, number


def mean_of_defined(values, axis: int) -> np.ndarray:
    """The mean in float64 over what isn't NaN along an axis; NaN of nothing."""
    with warnings.catch_warnings(action="ignore"):
        return np.nanmean(values, axis=axis, dtype=np.float64)


def quotient(sums: tuple[Array, Array], counts: Array) -> Array:
    """A statistic: sums over patients divided by others, [P, ...] each."""
    total, number = (reweigh(x, counts) for x in sums)
    return total / jnp.where(number > 0, number, jnp.nan)


def normal(resampled: Resampled, level: float = LEVEL) -> ArrayTree:
    """The statistic's tree of Intervals, +-z standard deviations of its replicates.

    For differences: they are near normal, and a level of 99.7 % needs no quantile that
    1,000 replicates don't have.
    """
    reach = ndtri((1 + level) / 2)

    def interval(estimate: np.ndarray, drawn: np.ndarray) -> Interval:
        width = reach * deviation(drawn)
        undefined = np.isnan(drawn).sum(axis=0)
        return Interval(estimate, estimate - width, estimate + width, undefined)

    return jax.tree.map(interval, *jax.device_get(tuple(resampled)))


def deviation(drawn: np.ndarray) -> np.ndarray:
    """The standard deviation of the defined replicates of [R, ...]; NaN of fewer than 2."""
    with warnings.catch_warnings(action="ignore"):
        return np.nanstd(np.asarray(drawn, np.float64), axis=0, ddof=1)


def wilson(
    resampled: Resampled, rarer: np.ndarray | None = None, worth: float = 2
) -> ArrayTree:
    """Intervals of numbers in [0, 1], clustered by patient.

    Wilson's interval of a share A, for the effective sample size n that the replicates'
    variance stands for: n = A (1 - A) / variance. Percentiles are too narrow near 0 and
    1. A share of 0 or 1 has no variance, and gets no width here, see `interval`.

    Of an area near 1 with few positives the variance itself is hardly known. The fewer
    the patients k of the rarer class are, the more n is drawn towards `worth` times k:
    log n is the mean of both with weights sqrt(k) and PRIOR. An area of 0 or 1 has that n.

    Args:
      rarer: [...], of areas, the patients with an image of the rarer class.
      worth: 2 of an area under the ROC curve, as exponential scores near 1 have (Hanley &
        McNeil), 1 of an average precision (Boyd).

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927) 209; Hanley & McNeil, Radiology 143
    (1982) 29; score intervals of an area: Newcombe, Stat. Med. 25 (2006) 559; Boyd et
    al., ECML PKDD (2013), LNCS 8190, 451, section 3.
    """

    def ends(whole: np.ndarray, drawn: np.ndarray) -> Interval:
        estimate, variance = np.asarray(whole, np.float64), deviation(drawn) ** 2
        spread = estimate * (1 - estimate)
        extreme = spread < ROUNDING
        n = np.where(extreme, MAX_SIZE, spread / np.maximum(variance, 1 / MAX_SIZE))
        if rarer is not None:
            k = np.maximum(rarer, 1)
            share = np.where(extreme, 0, np.sqrt(k) / (np.sqrt(k) + PRIOR))
            n = n**share * (worth * k) ** (1 - share)
        low, high = wilson_ends(estimate, ndtri((1 + LEVEL) / 2) ** 2 / n)
        low, high = (np.where(np.isnan(variance), np.nan, end) for end in (low, high))
        return Interval(whole, low, high, np.isnan(drawn).sum(axis=0))

    return jax.tree.map(ends, *jax.device_get(tuple(resampled)))


def exact(shares: Interval, patients) -> Interval:
    """Replaces intervals of shares within half a patient of 0 or 1 by exact ones.

    The bootstrap's variance says nothing there: at 0 and 1 it is 0.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404, which has a closed form there.
    """
    estimate, low, high = shares[:3]
    number = np.maximum(patients, 1)
    end, off = ((1 - LEVEL) / 2) ** (1 / number), 0.5 / number
    none, all_ = estimate < off, estimate > 1 - off
    return shares._replace(
        low=np.where(all_, end, np.where(none, 0, low)),
        high=np.where(none, 1 - end, np.where(all_, 1, high)),
    )


def ratio(above: Interval, below: Interval) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval of a ratio of two independent shares.

    Source: Donner & Zou, Stat. Methods Med. Res. 21 (2012) 347, eq. 9 (MOVER).
    """
    (a, a_low, a_high), (b, b_low, b_high) = (
        [np.asarray(x, np.float64) for x in interval[:3]] for interval in (above, below)
    )

    def end(sign: int, a_end: np.ndarray, b_end: np.ndarray) -> np.ndarray:
        both = a_end * b_end * (2 * a - a_end) * (2 * b - b_end)
        root = np.sqrt(np.maximum((a * b) ** 2 - both, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (a * b + sign * root) / (b_end * (2 * b - b_end))

    return end(-1, a_low, b_high), end(1, a_high, b_low)


def combined(
    intervals: Interval, drawn: np.ndarray, factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sum of numbers that have intervals of `wilson`, times factors; and its ends.

    The distances from the estimates to their own ends are added as correlated errors
    are, so that the sum of one number has its interval.

    Args:
      intervals, factors: [T, ...]; the sum is over T.
      drawn: [R, T, ...], the replicates, whose correlations count; those in which one
        of the T is undefined are left out.

    Source: Zou & Donner, Stat. Med. 27 (2008) 1693 (MOVER); correlated: Zou, Psychol.
    Methods 12 (2007) 399.
    """
    drawn = np.asarray(drawn, np.float64)
    whole = ~np.isnan(drawn).any(axis=1, keepdims=True)
    number = whole.sum(axis=0)
    mean = np.where(whole, drawn, 0).sum(axis=0) / np.maximum(number, 1)
    apart = np.where(whole, drawn - mean, 0)
    estimate, low, high = (np.asarray(x, float) for x in intervals[:3])
    total = (factors * estimate).sum(axis=0)
    enough = np.where(number[0] > 1, 1, np.nan)
    length = np.linalg.norm(apart, axis=0)
    unit = apart / np.where(length > 0, length, 1)
    correlation = np.einsum("rt...,ru...->tu...", unit, unit)
    diagonal = np.arange(len(factors))
    correlation[diagonal, diagonal] = 1  # Also of what doesn't vary.
    down, up = factors * (estimate - low), factors * (high - estimate)
    below, above = (
        np.sqrt(np.maximum(np.einsum("t...,tu...,u...->...", x, correlation, x), 0.0))
        for x in (np.where(factors > 0, down, up), np.where(factors > 0, up, down))
    )
    return total, total - enough * below, total + enough * above


def mean_of(intervals: Interval, drawn: np.ndarray, weights: np.ndarray) -> Interval:
    """The weighted mean of numbers [T] that have intervals of `wilson`.

    Each end is the farther one of `combined`, which allows for a rate that is 1 by
    chance, and of the mean's own `wilson`, which allows for the skew of rates near 1.
    A number without a weight takes no part. A replicate in which a part of the mean is
    undefined is left out and counted.
    """
    use = np.flatnonzero(weights > 0)
    if not use.size:
        return Interval(*np.full(3, np.nan), len(drawn))
    drawn, share = np.asarray(drawn)[:, use], weights[use] / weights[use].sum()
    mean, low, high = combined(at(intervals, use), drawn, share)
    whole = wilson(Resampled(mean, drawn @ share))
    low, high = np.fmin(low, whole.low), np.fmax(high, whole.high)
    return Interval(mean, low, high, whole.undefined)


def at(intervals: ArrayTree, index) -> ArrayTree:
    """The intervals at an index of their arrays, of one of T tasks say."""
    return jax.tree.map(lambda array: array[index], intervals)


def interval(
    resampled: Interval, why: str, *, patients: int, replicates: int = 0, name: str = ""
) -> Interval:
    """Gives a number as a report may: without ends where they would mislead.

    With fewer than MIN_PATIENTS there is none. Where nothing varies between the
    replicates it would have no width: a share of 0 or 1 gets the exact one, as if each
    patient had one image, and anything else none.

    Args:
      why: the reason if it has no estimate.
      patients: how many are in its denominator.
      replicates: of the bootstrap; 0 of an interval that has none.
      name: of metrics.METRICS; '' for a mean of several.
    """
    estimate, low, high, undefined = map(float, resampled[:4])
    judged = Interval(estimate, low, high, undefined, "")

    def without(why: str) -> Interval:
        return judged._replace(low=math.nan, high=math.nan, why=why)

    if math.isnan(estimate):
        return judged._replace(why=why)
    if patients < MIN_PATIENTS:
        return without(NO_INTERVAL)
    if math.isnan(low):
        return without("undefined in every replicate: no interval")
    if high - low < ROUNDING:
        metric = metrics.METRICS.get(name)
        if metric and metric.share and estimate in (0, 1):
            return exact(judged, patients)
        return without("the same in every replicate: no interval")
    if undefined > UNDEFINED_SHARE * replicates:
        note = f"undefined in {undefined:.0f} of {replicates:,} replicates"
        return judged._replace(why=note)
    return judged


def holm(p) -> np.ndarray:
    """Adjusts p values [T], so that all T tests together err as often as one test.

    An undefined p (NaN) stays undefined, and isn't counted as a test.

    Source: Holm, Scand. J. Stat. 6 (1979) 65, as adjusted values: the running maximum
    of (T - i) p_(i) over the ascending p_(0), p_(1), ..., at most 1.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)  # NaN comes last.
    tests = np.count_nonzero(~np.isnan(p))
    steps = np.maximum(tests - np.arange(p.size), 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps * p[order]), 1)
    return adjusted


def count(flag: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """[T + 1]: the patients with an image of that flag [N, T], and of any of them."""
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=patient.min() - 1))
    flag = np.column_stack([flag, flag.any(axis=1)])[order]
    return np.logical_or.reduceat(flag, starts).sum(axis=0)


def as_json(value):
    """Converts typed results to what a report's JSON holds.

    NamedTuples are dicts, arrays are lists, and NaN is None. A field with the default
    None is left out where it is None.
    """
    if hasattr(value, "_asdict"):
        return {
            field: as_json(part)
            for field, part in value._asdict().items()
            if not (part is None and field in value._field_defaults)
        }
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return as_json(np.asarray(value).tolist())
    return None if isinstance(value, float) and math.isnan(value) else value

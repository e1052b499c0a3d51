"""Intervals from a bootstrap over patients: the one engine under every metric.

Images of one patient resemble each other, so an interval that resamples images is
too narrow. Here a replicate draws as many patients as there are, with replacement,
and an image counts as often as its patient was drawn. No image is copied: a replicate
is a vector of counts, one for each patient.

  resample      computes a statistic of the patients as they are and of every replicate
  studentised   intervals of means of skewed numbers
  percentiles   the ends of its intervals; `reflected` for a number that is biased
  interval      the rules for what a report may say: too few patients, rates of 0 or 1

Most statistics are sums over patients: see `reweigh` and `means`. The AUROC of all
replicates is in discrimination.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from scipy import stats

from medjax.errors import InputError
from medjax.evaluation import metrics

# Replicates computed at once: the counts are the largest array, 5 bytes a patient and
# replicate.
CHUNK = 500
LEVEL = 0.95  # The intervals' nominal coverage.
LEAST = 10  # Patients in a metric's denominator, for an interval or a test.
FEW = f"fewer than {LEAST} such patients: no interval"
MANY = 0.01  # Of the replicates: if more are undefined, the report says so.
ROUNDING = 1e-6  # Of float32: ends that are nearer to each other are equal.


class Interval(NamedTuple):
    """An estimate and its interval: numbers, or arrays of one shape.

    estimate: on the images as they are; NaN where undefined.
    low, high: NaN where there is no interval.
    undefined: how many replicates were left out because the metric is undefined
      in them (no positive was drawn, say). Many of them mean that the interval
      is conditional on the others, and that the data are too few.
    why: why there is no estimate or no interval, or how many replicates it leaves out;
      '' if there is nothing to say, None before `interval` has judged it.
    """

    estimate: Array | float
    low: Array | float
    high: Array | float
    undefined: Array | float
    why: str | None = None


class Resampled(NamedTuple):
    """A statistic, a tree of arrays or dict of them; NaN where undefined.

    whole: [...], of the patients as they are.
    drawn: [R, ...], of each replicate.
    """

    whole: ArrayTree
    drawn: ArrayTree


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
        often each replicate counts each patient. Where counts is None every patient
        counts once, and the tree is of [...]. A function of a module: a new closure
        at every call would be compiled anew.
      patients: P.
      key: replicate r draws with fold_in(key, r), so the same patients for every
        statistic.
      replicates: R; below about 1,000 the ends of an interval are noisy.
      options: static ones of the statistic.
    """
    if replicates < 1:
        raise InputError(f"replicates: {replicates}; give 1 or more, 1000 as a rule")
    options = tuple(sorted(options.items()))
    return _resample(statistic, data, key, patients, replicates, options)


@functools.partial(
    jax.jit, static_argnames=("statistic", "patients", "replicates", "options")
)
def _resample(statistic, data, key, patients, replicates, options) -> Resampled:
    statistic = functools.partial(statistic, data, **dict(options))
    size = min(CHUNK, replicates)
    numbers = jnp.arange(-(-replicates // size) * size).reshape(-1, size)
    drawn = jax.lax.map(
        lambda chunk: statistic(multiplicities(key, chunk, patients)), numbers
    )
    drawn = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:replicates], drawn)
    return Resampled(statistic(None), drawn)


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
    """The rows that take part, and their patients as the numbers 0 to P - 1.

    A row of zeros is dropped, and so is a patient who has no other.

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


def reweigh(values: Array, counts: Array | None, patient: Array | None = None) -> Array:
    """Sums over patients, [R, ...] of [P, ...]; [...] where counts is None.

    With `patient`, [N] from 0 to P - 1, the values are those of N images.
    """
    if counts is None:
        return values.sum(axis=0)
    if patient is not None:
        values = jax.ops.segment_sum(values, patient, num_segments=len(counts))
    counts = counts.astype(jnp.float32)
    # HIGHEST: an accelerator's default rounds counts to 8 bits.
    return jnp.einsum("pr,p...->r...", counts, values, precision="highest")


def means(values, patient, *, key: Array, replicates: int) -> Resampled:
    """Resamples each column's mean over the rows of [N, ...] in which it isn't NaN."""
    names, index = np.unique(np.asarray(patient), return_inverse=True)
    known = ~np.isnan(values)
    sums = np.zeros((2, len(names), *values.shape[1:]))
    np.add.at(sums, (slice(None), index), np.stack([np.where(known, values, 0), known]))
    sums = sums.astype(np.float32)
    return resample(_ratio, sums, len(names), key=key, replicates=replicates)


def _ratio(sums: Array, counts: Array | None) -> Array:
    total, number = (reweigh(x, counts) for x in sums)
    return jnp.where(number > 0, total / jnp.maximum(number, 1), jnp.nan)


class Linear(NamedTuple):
    """Statistics that are sums over patients, or near it.

    estimate: [...].
    influence: [P, ...], how far each patient moves it from a common mean; sums to 0.
    patients: [...], who take part.
    """

    estimate: np.ndarray
    influence: np.ndarray
    patients: np.ndarray


def linear_means(values, patient) -> Linear:
    """Each column's mean over the rows of [N, ...] in which it isn't NaN."""
    names, index = np.unique(np.asarray(patient), return_inverse=True)
    known = ~np.isnan(values)
    total, number = np.zeros((2, len(names), *values.shape[1:]))
    np.add.at(total, index, np.where(known, values, 0))
    np.add.at(number, index, known)
    rows = number.sum(axis=0)
    mean = total.sum(axis=0) / np.maximum(rows, 1)
    influence = (total - mean * number) / np.maximum(rows, 1)
    patients = (number > 0).sum(axis=0)
    return Linear(np.where(rows > 0, mean, np.nan), influence, patients)


def studentised(linear: Linear, *, key: Array, replicates: int) -> Interval:
    """The bootstrap-t interval: for means of skewed numbers, such as distances.

    In units of its own standard error a replicate is as far from the estimate as that is
    from the truth. Of few patients the quantiles of that are noisy: they end at twice
    Student's.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 12.5.
    """
    error = np.sqrt((linear.influence**2).sum(axis=0))
    scaled = linear.influence / np.where(error > 0, error, 1)
    drawn = resample(
        _student, scaled.astype(np.float32), len(scaled), key=key, replicates=replicates
    )
    _, low, high, _, _ = percentiles(drawn)
    n = np.maximum(linear.patients, 2)
    most = 2 * stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1))
    ends = (
        np.where(error > 0, linear.estimate - t * error, linear.estimate)
        for t in (np.minimum(high, most), np.maximum(low, -most))
    )
    return Interval(linear.estimate, *ends, np.zeros(error.shape))


def _student(influence: Array, counts: Array | None) -> Array:
    """A statistic: the t of each replicate; NaN where all drawn patients are alike."""
    moved, square = (reweigh(x, counts) for x in (influence, influence**2))
    variance = square - moved**2 / len(influence)
    alike = variance <= ROUNDING
    return jnp.where(alike, jnp.nan, moved / jnp.sqrt(jnp.where(alike, 1, variance)))


def percentiles(resampled: Resampled, level: float = LEVEL) -> ArrayTree:
    """The statistic's tree of Intervals, from the percentiles of its replicates.

    Source: Efron, Ann. Stat. 7 (1979) 1, percentile interval; resampling whole
    clusters: Davison & Hinkley, Bootstrap Methods (1997), section 3.8.
    """
    whole, drawn = jax.device_get(tuple(resampled))
    ends = np.array([(1 - level) / 2, (1 + level) / 2], np.float32)
    return jax.tree.map(functools.partial(_percentiles, ends), whole, drawn)


def _percentiles(ends: np.ndarray, estimate: np.ndarray, drawn: np.ndarray) -> Interval:
    """Linear quantiles [2] of the defined replicates [R, ...].

    By NumPy: to compile it took longer than everything else in a report's intervals.
    """
    ordered = np.sort(drawn, axis=0)  # NaN comes last.
    defined = len(drawn) - np.isnan(drawn).sum(axis=0)
    place = np.multiply.outer(ends, np.maximum(defined - 1, 0).astype(np.float32))
    below = np.floor(place)
    low, high = (
        np.take_along_axis(ordered, at.astype(int), axis=0)
        for at in (below, np.ceil(place))
    )
    share = place - below
    quantiles = np.where(defined > 0, low * (1 - share) + high * share, np.nan)
    return Interval(estimate, *quantiles, len(drawn) - defined)


def reflected(interval: Interval) -> Interval:
    """The basic interval of a percentile interval: of an estimate >= 0 that is biased.

    The percentiles are reflected about the estimate and end at 0: a bias that the
    sample adds once, its replicates add once more.

    Source: Davison & Hinkley, Bootstrap Methods (1997), eq. 5.6.
    """
    estimate, low, high = interval[:3]
    return interval._replace(
        low=np.clip(2 * estimate - high, 0, estimate),
        high=np.maximum(2 * estimate - low, estimate),
    )


def at(intervals: ArrayTree, index) -> ArrayTree:
    """The intervals at an index of their arrays, of one of T tasks say."""
    return jax.tree.map(lambda array: array[index], intervals)


def interval(
    resampled: Interval, why: str, *, patients: int, replicates: int, name: str = ""
) -> Interval:
    """What a report may say of one number: no ends where they would mislead.

    With fewer than LEAST patients there is no interval. Where nothing varies between
    the replicates the bootstrap's interval would have no width: a share of 0 or 1 gets
    the exact one, and anything else none. Patients are the units of the exact one, as
    if each had one image: several images of a patient that agree would else seem to
    know more.

    Args:
      why: the reason if it has no estimate.
      patients: how many are in its denominator.
      replicates: of the bootstrap.
      name: of metrics.METRICS; '' for a mean of several.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404, which has a closed form for a
    share of 0 or 1.
    """
    estimate, low, high, undefined = map(float, resampled[:4])
    judged = Interval(estimate, low, high, undefined, "")

    def without(why: str) -> Interval:
        return judged._replace(low=math.nan, high=math.nan, why=why)

    if math.isnan(estimate):
        return judged._replace(why=why)
    if patients < LEAST:
        return without(FEW)
    if math.isnan(low):
        return without("undefined in every replicate: no interval")
    if high - low < ROUNDING:
        metric = metrics.METRICS.get(name)
        if metric and metric.share and estimate in (0, 1):
            end = ((1 - LEVEL) / 2) ** (1 / patients)
            low, high = (end, 1.0) if estimate == 1 else (0.0, 1 - end)
            return judged._replace(low=low, high=high)
        perfect = metric and metric.kind == "ranking" and estimate > 1 - ROUNDING
        same = "no pair out of order" if perfect else "the same in every replicate"
        return without(f"{same}: no interval")
    if undefined > MANY * replicates:
        note = f"undefined in {undefined:.0f} of {replicates:,} replicates"
        return judged._replace(why=note)
    return judged


def count(flag: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """[T + 1]: the patients with an image of that flag [N, T], and of any of them."""
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=patient.min() - 1))
    flag = np.column_stack([flag, flag.any(axis=1)])[order]
    return np.logical_or.reduceat(flag, starts).sum(axis=0)


def as_json(value):
    """Typed results as a report's JSON has them.

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

"""Intervals from a bootstrap over patients.

Images of one patient resemble each other, so an interval that resamples images is
too narrow. Here a replicate draws as many patients as there are, with replacement,
and an image counts as often as its patient was drawn: a replicate is a vector of
weights, and no image is copied.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import InputError
from medjax.evaluation import metrics

Array = jax.Array

# Replicates computed at once: the multiplicities are the largest array, 5 bytes a
# patient and replicate.
CHUNK = 500
# Images swept before their areas join the compensated total: a short float32 sum
# rounds little, and compensating each image would double the work. UNROLL of them
# are compiled into one step.
BLOCK = 64
UNROLL = 4


class Interval(NamedTuple):
    """A metric and its interval: all [T] for a task each, [] for their mean.

    estimate: on the images as they are; NaN where undefined.
    low, high: the percentile interval; NaN where every replicate is undefined.
    undefined: how many replicates were left out because the metric is undefined
      in them (no positive was drawn, say). Many of them mean that the interval
      is conditional on the others, and that the data are too few.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    undefined: np.ndarray


def bootstrap(
    score, label, weight, patient, threshold, *, key, replicates=1000, level=0.95
) -> dict[str, Interval]:
    """Percentile intervals of every metric, clustered by patient.

    Args:
      score: [N, T] probability or logit.
      label: [N, T] in [0, 1]; anything where the weight is 0.
      weight: [N, T], >= 0; 0 where the label is unknown or the row is padding. A
        row of zeros is dropped, and so is a patient who has no other.
      patient: [N] integers, the unit that is resampled.
      threshold: [T], positive is score >= threshold; NaN leaves its task's rates
        undefined.
      key: one key; replicate r draws with fold_in(key, r), the same patients for
        every task and metric.
      replicates: how many; below about 1,000 the ends of the interval are noisy.
      level: the interval's nominal coverage, in (0, 1).

    Returns:
      An Interval of [T] for auroc, average_precision and each of metrics.rates; and
      as 'mean_' + name an Interval of [] for the unweighted mean over the tasks in
      which the estimate is defined. A replicate in which one of these is undefined
      is left out of the mean's interval and counted: a mean over other tasks is
      another quantity.

    Source: Efron, Ann. Stat. 7 (1979) 1, percentile interval; resampling whole
    clusters: Davison & Hinkley, Bootstrap Methods (1997), section 3.8.
    """
    score, label, weight = (np.asarray(a, np.float32) for a in (score, label, weight))
    patient, threshold = np.asarray(patient), np.asarray(threshold, np.float32)
    chex.assert_rank([score, label, weight, patient, threshold], [2, 2, 2, 1, 1])
    chex.assert_equal_shape([score, label, weight])
    chex.assert_shape([patient, threshold], [score.shape[:1], score.shape[1:]])
    _check(score, label, weight, replicates, level)
    rows = (weight > 0).any(axis=1)
    names, index = np.unique(patient[rows], return_inverse=True)
    if names.size < 2:
        raise InputError(
            f"patient: {names.size} patient(s) with a known label, and an interval "
            "needs two at least; evaluate more patients"
        )
    intervals = _intervals(
        *(score[rows], label[rows], weight[rows], index.astype(np.int32), threshold),
        *(key, level),
        patients=names.size,
        replicates=replicates,
    )
    return jax.tree.map(np.asarray, intervals)


def difference(
    score, other, label, weight, patient, *, key, replicates=1000, level=0.95
) -> dict[str, Interval]:
    """Paired intervals of how much higher one model's AUROC is than another's.

    Both models are judged on the same images, and on the same patients in every
    replicate, so what makes a draw of patients easy or hard for both cancels.

    Args:
      score, other: [N, T], what the two models say.
      label, weight, patient, key, replicates, level: as in `bootstrap`.

    Returns:
      'auroc', an Interval of [T], and 'mean_auroc' of [], of score's minus other's.
      An interval that holds 0 shows no difference.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 8.4.
    """
    arrays = [np.asarray(a, np.float32) for a in (score, other, label, weight)]
    patient = np.asarray(patient)
    chex.assert_equal_shape(arrays)
    chex.assert_shape(patient, arrays[0].shape[:1])
    for one in arrays[:2]:
        _check(one, *arrays[2:], replicates, level)
    rows = (arrays[3] > 0).any(axis=1)
    names, index = np.unique(patient[rows], return_inverse=True)
    found = _differences(
        *(a[rows] for a in arrays),
        *(index.astype(np.int32), key, level),
        patients=names.size,
        replicates=replicates,
    )
    return jax.tree.map(np.asarray, found)


def multiplicities(key: Array, replicate: Array, patients: int) -> Array:
    """How often each replicate draws each patient, P draws with replacement from P.

    Args:
      key: one key.
      replicate: [R] int, the replicates' numbers: each has a key of its own, so
        that it draws the same in any chunk.
      patients: P.

    Returns:
      [P, R] uint8. A patient drawn 256 times is beyond any chance (P^-255).
    """

    def draw(number):
        bits = jax.random.bits(jax.random.fold_in(key, number), (patients,))
        # The remainder favours no patient by more than P / 2^32, and costs a third
        # of `randint`, which was half the time of the whole bootstrap.
        chosen = (bits % jnp.uint32(patients)).astype(jnp.int32)
        return jnp.zeros(patients, jnp.uint8).at[chosen].add(1)

    return jax.lax.map(draw, replicate).T


def replicate_areas(score, label, weight, patient, counts) -> tuple[Array, Array]:
    """AUROC and average precision of many reweightings of the same images.

    `metrics.auroc` for each would sort and sum N x T x R numbers in memory. Here
    every task is sorted once and swept from its highest score down, all tasks and
    replicates abreast; what is kept is six numbers for each of them.

    Args:
      score, label, weight: [N, T], as in `bootstrap`.
      patient: [N] int, 0 to P - 1.
      counts: [P, R], how often each replicate counts a patient.

    Returns:
      AUROC and average precision, [R, T] float32, to 1e-6; NaN where undefined.
    """
    ranking = jax.vmap(metrics.rank, in_axes=-1, out_axes=-1)(score, label, weight)
    total = jnp.zeros((score.shape[1], counts.shape[1]))  # [T, R], as all below

    def image(carry, row):
        tp, fp, last_tp, last_fp, area, precision = carry
        who, positive, negative, end = row  # [T] each: every task has its own order
        count = counts[who].astype(jnp.float32)
        tp, fp = tp + count * positive[:, None], fp + count * negative[:, None]
        end = end[:, None]
        step = (fp - last_fp) * (tp + last_tp)
        area += jnp.where(end, step, 0.0)
        # The smallest divisor is a guard against 0 / 0 before the first count.
        step = (tp - last_tp) * (tp / jnp.maximum(tp + fp, 1e-30))
        precision += jnp.where(end, step, 0.0)
        last_tp, last_fp = jnp.where(end, tp, last_tp), jnp.where(end, fp, last_fp)
        return (tp, fp, last_tp, last_fp, area, precision), None

    def block(carry, rows):
        *state, sums, lost = carry
        (*state, area, precision), _ = jax.lax.scan(
            image, (*state, total, total), rows, unroll=UNROLL
        )
        more = jnp.stack([area, precision]) - lost
        after = sums + more
        return (*state, after, (after - sums) - more), None  # Kahan's summation

    def blocks(rows):  # [N, T] -> [N / BLOCK, BLOCK, T]; a padding row ends no run
        rows = jnp.pad(rows, ((0, -rows.shape[0] % BLOCK), (0, 0)))
        return rows.reshape(-1, BLOCK, rows.shape[1])

    rows = (patient[ranking.order], ranking.positive, ranking.negative, ranking.end)
    start = (*(total,) * 4, *(jnp.stack([total, total]),) * 2)
    carry, _ = jax.lax.scan(block, start, jax.tree.map(blocks, rows))
    tp, fp, _, _, (area, precision), _ = carry
    auroc = jnp.where((tp == 0) | (fp == 0), jnp.nan, area / tp / fp / 2)
    return auroc.T, jnp.where(tp == 0, jnp.nan, precision / tp).T


def replicate_rates(score, label, weight, patient, threshold, counts) -> dict:
    """metrics.rates of many reweightings, [R, T] each; arguments as above.

    A patient's cells do not change, so the counts of all replicates are one product.
    """
    cells = jax.vmap(metrics.cells, in_axes=-1, out_axes=-1)
    cells = jnp.stack(cells(score, label, weight, threshold), axis=1)  # [N, 4, T]
    cells = jax.ops.segment_sum(cells, patient, num_segments=counts.shape[0])
    cells = jnp.einsum(  # HIGHEST: an accelerator's default rounds counts to 8 bits.
        "pr,pct->crt", counts.astype(jnp.float32), cells, precision="highest"
    )
    return metrics.rates(metrics.Confusion(*cells))


def in_chunks(values: Callable, replicates: int):
    """Calls a function of replicates' numbers, CHUNK at a time.

    Args:
      values: int [C] -> a tree of [C, ...].
      replicates: R.

    Returns:
      The tree of [R, ...].
    """
    size = min(CHUNK, replicates)
    numbers = jnp.arange(-(-replicates // size) * size).reshape(-1, size)
    found = jax.lax.map(values, numbers)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:replicates], found)


@functools.partial(jax.jit, static_argnames=("patients", "replicates"))
def _intervals(
    score, label, weight, patient, threshold, key, level, *, patients, replicates
) -> dict[str, Interval]:
    """The compiled part of `bootstrap`, after its checks."""

    def chunk(numbers):
        counts = multiplicities(key, numbers, patients)
        auroc, precision = replicate_areas(score, label, weight, patient, counts)
        return {
            "auroc": auroc,
            "average_precision": precision,
            **replicate_rates(score, label, weight, patient, threshold, counts),
        }

    values = in_chunks(chunk, replicates)
    estimates = {
        "auroc": _per_task(metrics.auroc)(score, label, weight),
        "average_precision": _per_task(metrics.average_precision)(score, label, weight),
        **metrics.rates(_per_task(metrics.confusion)(score, label, weight, threshold)),
    }
    # Stacked, [M, T] and [R, M, T] for M metrics: the quantiles are then one sort.
    estimate = jnp.stack(list(estimates.values()))
    value = jnp.stack([values[name] for name in estimates], axis=1)
    every = _percentiles(estimate, value, level)
    intervals = {}
    for row, name in enumerate(estimates):
        intervals[name] = Interval(*(x[row, :-1] for x in every))
        intervals[f"mean_{name}"] = Interval(*(x[row, -1] for x in every))
    return intervals


@functools.partial(jax.jit, static_argnames=("patients", "replicates"))
def _differences(
    score, other, label, weight, patient, key, level, *, patients, replicates
) -> dict[str, Interval]:
    """The compiled part of `difference`, after its checks."""

    def chunk(numbers):
        counts = multiplicities(key, numbers, patients)
        areas = [
            replicate_areas(each, label, weight, patient, counts)[0]
            for each in (score, other)
        ]
        return areas[0] - areas[1]

    value = in_chunks(chunk, replicates)
    areas = [_per_task(metrics.auroc)(each, label, weight) for each in (score, other)]
    estimate = areas[0] - areas[1]
    every = _percentiles(estimate, value, level)
    return {
        "auroc": Interval(*(x[:-1] for x in every)),
        "mean_auroc": Interval(*(x[-1] for x in every)),
    }


def _percentiles(estimate: Array, value: Array, level: Array) -> Interval:
    """Intervals of [..., T + 1], the mean over the defined tasks last.

    Args:
      estimate: [..., T]; value: [R, ..., T], the replicates.
    """
    defined = ~jnp.isnan(estimate)

    def with_mean(x):  # [..., T] -> [..., T + 1]
        return jnp.append(x, x.mean(-1, where=defined, keepdims=True), axis=-1)

    value = with_mean(value)
    ends = jnp.stack([(1 - level) / 2, (1 + level) / 2])
    low, high = jnp.nanquantile(value, ends, axis=0)
    undefined = jnp.isnan(value).sum(axis=0)
    return Interval(with_mean(estimate), low, high, undefined)


def _per_task(metric):
    return jax.vmap(metric, in_axes=-1)


def _check(score, label, weight, replicates, level) -> None:
    """Raises InputError for numbers from which no interval can come."""
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise InputError("weight: negative or not finite; give 0 to an unknown label")
    if np.isnan(score[weight > 0]).any():
        task = int(np.argmax((np.isnan(score) & (weight > 0)).any(axis=0)))
        raise InputError(
            f"score: NaN for a known label of task {task}; look for a run that "
            "diverged, or give the image weight 0"
        )
    known = label[weight > 0]
    if not ((known >= 0) & (known <= 1)).all():
        raise InputError("label: outside [0, 1]; give weight 0 to an unknown label")
    if replicates < 1:
        raise InputError(f"replicates: {replicates}; give 1 or more, 1000 as a rule")
    if not 0 < level < 1:
        raise InputError(f"level: {level} is not between 0 and 1; give 0.95 for 95 %")

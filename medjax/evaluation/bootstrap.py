"""Intervals from a bootstrap over patients.

Images of one patient resemble each other, so an interval that resamples images is
too narrow. Here a replicate draws as many patients as there are, with replacement,
and an image counts as often as its patient was drawn.

How many patients stand behind a metric: too few, and it gets no interval.

Numbers as a report's JSON has them: what is undefined is None, and says why.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import InputError
from medjax.evaluation import metrics
from medjax.evaluation import metrics as averaging
from medjax.evaluation.areas import (
    in_chunks,
    multiplicities,
    replicate_areas,
    replicate_confusion,
)

Array = jax.Array
AREAS = {"auroc": metrics.auroc, "average_precision": metrics.average_precision}


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
    score,
    label,
    weight,
    patient,
    threshold,
    *,
    key,
    replicates=1000,
    level=0.95,
    prevalence=None,
    max_fpr=None,
    ranked=None,
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
      prevalence: [T] in (0, 1), adds the predictive values there, 'ppv_at' and
        'npv_at'; None adds nothing.
      max_fpr: in (0, 1), adds 'partial_auroc', see metrics.py; None adds nothing.
      ranked: [N, T], what the areas are of; None: the score. A calibration that ties
        scores would else move them.

    Returns:
      An Interval of [T] for auroc, average_precision and each of metrics.rates; and
      Intervals of [] for their means (see averaging.py) over the tasks in which the
      estimate is defined: 'mean_' + name unweighted, 'weighted_' + name by each
      task's positives, and 'micro_' + name, for the rates alone, of all tasks'
      confusion matrices together. A replicate in which one of the tasks is undefined
      (and has a weight) is left out of the mean's interval and counted: a mean over
      other tasks is another quantity.

    Source: Efron, Ann. Stat. 7 (1979) 1, percentile interval; resampling whole
    clusters: Davison & Hinkley, Bootstrap Methods (1997), section 3.8.
    """
    score, label, weight = (np.asarray(a, np.float32) for a in (score, label, weight))
    patient, threshold = np.asarray(patient), np.asarray(threshold, np.float32)
    ranked = score if ranked is None else np.asarray(ranked, np.float32)
    chex.assert_rank([score, label, weight, patient, threshold], [2, 2, 2, 1, 1])
    chex.assert_equal_shape([score, ranked, label, weight])
    chex.assert_shape([patient, threshold], [score.shape[:1], score.shape[1:]])
    for one in (score, ranked):
        _check(one, label, weight, replicates, level)
    rows, index, patients = _known(weight, patient)
    intervals = _intervals(
        *(score[rows], ranked[rows], label[rows], weight[rows], index, threshold),
        *(key, level, prevalence),
        patients=patients,
        replicates=replicates,
        max_fpr=max_fpr,
    )
    return jax.tree.map(np.asarray, intervals)


def difference(
    score, other, label, weight, patient, *, key, replicates=1000, level=0.95
) -> dict[str, Interval]:
    """Paired intervals of how much higher one model's areas are than another's.

    Both models are judged on the same images, and on the same patients in every
    replicate, so what makes a draw of patients easy or hard for both cancels.

    Args:
      score, other: [N, T], what the two models say.
      label, weight, patient, key, replicates, level: as in `bootstrap`.

    Returns:
      'auroc' and 'average_precision', Intervals of [T], and their 'mean_' of [], of
      score's minus other's. An interval that holds 0 shows no difference.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 8.4.
    """
    arrays = [np.asarray(a, np.float32) for a in (score, other, label, weight)]
    patient = np.asarray(patient)
    chex.assert_equal_shape(arrays)
    chex.assert_shape(patient, arrays[0].shape[:1])
    for one in arrays[:2]:
        _check(one, *arrays[2:], replicates, level)
    rows, index, patients = _known(arrays[3], patient)
    found = _differences(
        *(a[rows] for a in arrays),
        *(index, key, level),
        patients=patients,
        replicates=replicates,
    )
    return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnames=("patients", "replicates", "max_fpr"))
def _intervals(
    score,
    ranked,
    label,
    weight,
    patient,
    threshold,
    key,
    level,
    prevalence,
    *,
    patients,
    replicates,
    max_fpr,
) -> dict[str, Interval]:
    """The compiled part of `bootstrap`, after its checks."""
    data, order = (score, label, weight), (ranked, label, weight)
    names = [*AREAS, *["partial_auroc"] * (max_fpr is not None)]

    def chunk(numbers):
        counts = multiplicities(key, numbers, patients)
        areas = replicate_areas(*order, patient, counts, max_fpr=max_fpr)
        matrix, positives = replicate_confusion(*data, patient, threshold, counts)
        each = _each(dict(zip(names, areas, strict=True)), matrix, prevalence)
        return _with_means(each, matrix, positives, defined)

    matrix = _per_task(metrics.confusion)(*data, threshold)
    areas = _areas(*order)
    if max_fpr is not None:
        partial = functools.partial(metrics.partial_auroc, max_fpr=max_fpr)
        areas.append(_per_task(partial)(*order))
    each = _each(dict(zip(names, areas, strict=True)), matrix, prevalence)
    defined = {name: ~jnp.isnan(value) for name, value in each.items()}
    positives = (jnp.where(weight > 0, label, 0.0) * weight).sum(axis=0)
    estimates = _with_means(each, matrix, positives, defined)
    return percentiles(estimates, in_chunks(chunk, replicates), level)


@functools.partial(jax.jit, static_argnames=("patients", "replicates"))
def _differences(
    score, other, label, weight, patient, key, level, *, patients, replicates
) -> dict[str, Interval]:
    """The compiled part of `difference`, after its checks."""

    def minus(first, second):
        return dict(zip(AREAS, (a - b for a, b in zip(first, second)), strict=True))

    def with_mean(each):
        mean = {f"mean_{k}": averaging.macro(v, defined[k]) for k, v in each.items()}
        return each | mean

    def chunk(numbers):
        counts = multiplicities(key, numbers, patients)
        one, two = (
            replicate_areas(each, label, weight, patient, counts)
            for each in (score, other)
        )
        return with_mean(minus(one, two))

    each = minus(*(_areas(one, label, weight) for one in (score, other)))
    defined = {name: ~jnp.isnan(value) for name, value in each.items()}
    return percentiles(with_mean(each), in_chunks(chunk, replicates), level)


def _areas(score: Array, label: Array, weight: Array) -> list[Array]:
    """[T] of each of AREAS, on the images as they are."""
    return [_per_task(area)(score, label, weight) for area in AREAS.values()]


def _each(
    areas: dict, matrix: metrics.Confusion, prevalence: Array
) -> dict[str, Array]:
    """Every metric of every task, [..., T]."""
    rates = metrics.rates(matrix)
    if prevalence is not None:
        rates["ppv_at"], rates["npv_at"] = metrics.predictive_values(
            rates["sensitivity"], rates["specificity"], prevalence
        )
    return areas | rates


def _with_means(each: dict, matrix, positives: Array, defined: dict) -> dict:
    """Adds the means over tasks, [...], to metrics of [..., T].

    Args:
      each: by name; matrix: cells [..., T]; positives: [..., T].
      defined: by name, [T], whether the estimate on the images as they are is.
    """
    found = dict(each)
    for name, value in each.items():
        found[f"mean_{name}"] = averaging.macro(value, defined[name])
        found[f"weighted_{name}"] = averaging.weighted(value, positives, defined[name])
    pooled = metrics.rates(averaging.micro(matrix, defined["accuracy"]))
    return found | {f"micro_{name}": value for name, value in pooled.items()}


def percentiles(estimate: dict, value: dict, level: Array) -> dict[str, Interval]:
    """Intervals by name, of estimates [...] and replicates [R, ...]."""
    ends = jnp.stack([(1 - level) / 2, (1 + level) / 2])
    # Side by side, all are sorted by one compiled sort.
    columns = [v.reshape(len(v), -1) for v in value.values()]
    cuts = np.cumsum([column.shape[1] for column in columns])[:-1]
    found = jnp.nanquantile(jnp.concatenate(columns, axis=1), ends, axis=0)
    return {
        name: Interval(
            estimate[name],
            *part.reshape(2, *estimate[name].shape),
            jnp.isnan(value[name]).sum(axis=0),
        )
        for name, part in zip(value, jnp.split(found, cuts, axis=1), strict=True)
    }


def _per_task(metric):
    return jax.vmap(metric, in_axes=-1)


def _known(weight, patient) -> tuple[np.ndarray, np.ndarray, int]:
    """Which rows [N] know a label, the number of each one's patient, and how many.

    Raises:
      InputError: fewer than two patients have such a row.
    """
    rows = (weight > 0).any(axis=1)
    names, index = np.unique(patient[rows], return_inverse=True)
    if names.size < 2:
        raise InputError(
            f"patient: {names.size} patient(s) with a known label, and an interval "
            "needs two at least; evaluate more patients"
        )
    return rows, index.astype(np.int32), names.size


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


LEAST = 10  # Patients, in what a metric is a share of, for an interval or a test.
FEW = f"fewer than {LEAST} such patients: no interval"
SHARES = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "prevalence")
SHARES += ("agreement", "pointing")  # See robustness.py, localisation.py.
AREAS_SUPPORT = ("auroc", "partial_auroc", "average_precision")


def patients(score, label, weight, patient, threshold) -> dict[str, np.ndarray]:
    """How many patients have an image in each metric's denominator.

    Args:
      score, label, weight, patient, threshold: as of `intervals.bootstrap`.

    Returns:
      {metric: [T + 1] int}, the last of all labels as if of one task. What compares
      positives with negatives counts the rarer. Without a threshold, rates have none.
    """
    known = weight > 0
    positive = known & (np.where(known, label, 0) > 0)
    negative = known & (np.where(known, label, 1) < 1)
    rarer = np.minimum(count(positive, patient), count(negative, patient))
    cut, said = ~np.isnan(threshold), score >= threshold
    known, positive, negative = (flag & cut for flag in (known, positive, negative))
    called, passed = known & said, known & ~said
    ill, well = count(positive, patient), count(negative, patient)
    known = count(known, patient)
    both = np.minimum(ill, well)
    return {
        **dict.fromkeys(AREAS_SUPPORT, rarer),
        "sensitivity": ill,
        "specificity": well,
        "ppv": count(called, patient),
        "npv": count(passed, patient),
        "accuracy": known,
        "prevalence": known,
        "f1": count(positive | called, patient),
        **dict.fromkeys(("lr_positive", "lr_negative", "ppv_at", "npv_at"), both),
    }


def count(flag: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """[T + 1]: the patients with an image of that flag [N, T], and of any of them."""
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=patient.min() - 1))
    flag = np.column_stack([flag, flag.any(axis=1)])[order]
    return np.logical_or.reduceat(flag, starts).sum(axis=0)


def exact(estimate: float, patients: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share of 0 or 1: in every replicate it is the same.

    Patients are the units, as if each had one image: films of one patient that agree
    would else seem to know more.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404, which has this closed form
    where all of them, or none, are right.
    """
    end = ((1 - level) / 2) ** (1 / patients)
    return (end, 1.0) if estimate > 0.5 else (0.0, 1 - end)


MANY = 0.01  # Of the replicates: so many undefined ones are worth a word.
ROUNDING = 1e-6  # Of float32 areas: nearer ends are one.


def interval(
    found: Interval, why: str, *, patients: int, replicates: int, kind: str = ""
) -> dict:
    """{estimate, low, high, undefined, why}, without ends where they would mislead.

    Of fewer than support.LEAST patients a bootstrap can't speak. Where nothing varies
    between replicates its interval would have no width: a share of 0 or 1 gets the
    exact one, and anything else none.

    Args:
      found: of one number, of `replicates`.
      why: it has no estimate, if it has none.
      patients: in what it is a share of.
      kind: the metric's name, if it is one of support.SHARES or support.AREAS.

    Returns:
      why says why there is no estimate, or no interval, or how many replicates the
      interval leaves out if they are more than MANY; '' if all is there.
    """
    cell = {name: number(value) for name, value in found._asdict().items()}
    estimate, low, high, undefined = cell.values()
    if estimate is None:
        return cell | {"why": why}
    if patients < LEAST:
        return cell | {"low": None, "high": None, "why": FEW}
    if low is None:
        return cell | {"why": "undefined in every replicate: no interval"}
    if high - low < ROUNDING:
        if kind in SHARES and min(estimate, 1 - estimate) == 0:
            low, high = exact(estimate, patients)
            return cell | {"low": low, "high": high, "why": ""}
        perfect = kind in AREAS_SUPPORT and estimate > 1 - ROUNDING
        same = "no pair out of order" if perfect else "the same in every replicate"
        return cell | {"low": None, "high": None, "why": f"{same}: no interval"}
    lacking = undefined > MANY * replicates
    note = f"undefined in {undefined:.0f} of {replicates:,} replicates"
    return cell | {"why": note if lacking else ""}


def of_task(found: Interval, t: int) -> Interval:
    """One of T tasks' intervals."""
    return Interval(*(part[t] for part in found))


def number(value) -> float | None:
    """NaN is None."""
    value = float(value)
    return None if math.isnan(value) else value


def numbers(values: np.ndarray) -> list[float | None]:
    """Six decimals of each: enough to draw."""
    return [number(round(float(value), 6)) for value in values]

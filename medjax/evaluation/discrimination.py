"""How well scores tell positive from negative images, with intervals.

Every metric of metrics.py of several tasks, and the differences between two models.

Scores, label and weight are [N, T], as in metrics.py; positive is score >= threshold,
[T], and NaN leaves its task's rates undefined. A statistic's counts are [P, R], how
often each replicate counts each patient, and its patient is [N] int, 0 to P - 1.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from scipy.special import ndtri, stdtrit

from medjax.errors import InputError
from medjax.evaluation import areas, bootstrap, metrics
from medjax.evaluation.bootstrap import Interval, Resampled
from medjax.evaluation.metrics import METRICS

RATIOS = ("lr_positive", "lr_negative")


def intervals(
    score,
    label,
    weight,
    patient,
    threshold,
    *,
    prevalence=None,
    max_fpr: float | None = None,
    ranked=None,
    **draws,
) -> dict[str, Interval]:
    """Intervals of every metric, clustered by patient.

    They are those of bootstrap.wilson, combined and ratio; of average precision see
    `around`.

    Args:
      threshold: [T]; None: the areas alone, without any rate.
      prevalence: [T] in (0, 1), adds the predictive values there, 'ppv_at' and
        'npv_at'; None adds nothing.
      max_fpr: in (0, 1), adds 'partial_auroc', see metrics.py; None adds nothing.
      ranked: [N, T], the scores of the areas; None: the score. A calibration that ties
        scores would change the areas.

    Returns:
      Intervals of [T] for the areas and each of metrics.rates; and of [] for their
      averages (see metrics.py) over the tasks in which the estimate is defined: 'mean_' +
      name, 'weighted_' + name (neither of likelihood ratios: 0.1 and 10 aren't 5 in the
      mean), and 'micro_' + name of the rates. A replicate in which one of the tasks is
      undefined is left out and counted: an average over others is another quantity.

    Raises:
      InputError: numbers without meaning, or no patient with a known label.
    """
    score, label, weight = (np.asarray(a, np.float32) for a in (score, label, weight))
    patient, none = np.asarray(patient), np.full(score.shape[1], np.nan, np.float32)
    cut = none if threshold is None else np.asarray(threshold, np.float32)
    ranked = score if ranked is None else np.asarray(ranked, np.float32)
    chex.assert_rank([score, label, weight, patient, cut], [2, 2, 2, 1, 1])
    chex.assert_equal_shape([score, ranked, label, weight])
    chex.assert_shape([patient, cut], [score.shape[:1], score.shape[1:]])
    for each in (score, ranked):
        check_arrays(each, label, weight)
    rows, index, number = bootstrap.numbered(weight, patient)
    score, ranked, label, weight = (x[rows] for x in (score, ranked, label, weight))
    rates = (score, cut, prevalence) if threshold is not None else None
    data = ranked, label, weight, index, rates
    resampled = jax.device_get(
        bootstrap.resample(_every, data, number, max_fpr=max_fpr, **draws)
    )
    counts = patients(score, label, weight, index, cut)
    positives, results = (label * weight).sum(axis=0, where=weight > 0), {}
    for full_name, whole in resampled.whole.items():
        name, drawn = full_name.removeprefix("micro_"), resampled.drawn[full_name]
        area, pooled = METRICS[name].kind == "ranking", full_name != name
        k = counts[name][-1] if pooled else counts[name][:-1]
        rarer, used = k if area else None, Resampled(whole, drawn)
        if name == "average_precision":
            centre = areas.of_other_patients(ranked, label, weight, index)
            used = around(centre, used, k)
        interval = bootstrap.wilson(used, rarer, areas.WORTH.get(name, 2))
        if METRICS[name].share:
            interval = bootstrap.exact(interval, k)
        results[full_name] = holding(whole, interval)
        if pooled or name in RATIOS:
            continue
        defined = ~np.isnan(whole)
        for kind, weights in (("mean", defined), ("weighted", defined * positives)):
            mean = bootstrap.mean_of(interval, used.drawn, weights)
            moved = np.nansum((whole - used.whole) * weights) / max(weights.sum(), 1)
            results[f"{kind}_{name}"] = holding(mean.estimate + moved, mean)
    if threshold is None:
        return results
    for prefix in ("", "micro_"):
        _likelihood_ratios(results, prefix)
    if prevalence is not None:
        _predictive_values(results, prevalence / (1 - prevalence))
    return results


def around(centre, scores: Resampled, rarer) -> Resampled:
    """Centres and widens average precisions, so that their intervals hold the estimate.

    The centre is `areas.of_other_patients`, where defined; they are as much wider as
    Student's quantile, with the freedom of the rarer class's patients, is above the
    normal one.
    """
    centre = np.where(np.isnan(centre), scores.whole, centre)
    level = (1 + bootstrap.LEVEL) / 2
    wider = stdtrit(np.maximum(rarer - 1, 1), level) / ndtri(level)
    return Resampled(centre, centre + wider * (scores.drawn - scores.whole))


def holding(estimate, interval: Interval) -> Interval:
    """The interval with this estimate, made wider where the estimate is outside."""
    low, high = np.minimum(interval.low, estimate), np.maximum(interval.high, estimate)
    return interval._replace(estimate=estimate, low=low, high=high)


def _likelihood_ratios(results: dict[str, Interval], prefix: str) -> None:
    """Gives the ratios' intervals those of sensitivity and specificity (MOVER)."""
    rates = [results[prefix + name] for name in ("sensitivity", "specificity")]
    others = [
        rate._replace(estimate=1 - rate.estimate, low=1 - rate.high, high=1 - rate.low)
        for rate in rates
    ]
    pairs = (rates[0], others[1]), (others[0], rates[1])
    for name, both in zip(RATIOS, pairs, strict=True):
        interval = results[prefix + name]
        low, high = (
            np.where(np.isnan(interval.estimate), np.nan, end)
            for end in bootstrap.ratio(*both)
        )
        results[prefix + name] = interval._replace(low=low, high=high)


def _predictive_values(results: dict[str, Interval], odds: np.ndarray) -> None:
    """Derives the predictive values' ends at odds [T] from the likelihood ratios'."""
    low, high = (odds * end for end in results["lr_positive"][1:3])
    ends = {"low": low / (1 + low), "high": high / (1 + high)}
    results["ppv_at"] = results["ppv_at"]._replace(**ends)
    low, high = (odds * end for end in results["lr_negative"][1:3])
    ends = {"low": 1 / (1 + high), "high": 1 / (1 + low)}
    results["npv_at"] = results["npv_at"]._replace(**ends)


def rarer_patients(label, weight, patient) -> np.ndarray:
    """[T]: the patients, of integers [N], with an image of the rarer class."""
    no_threshold = np.full(label.shape[1], np.nan)
    return patients(label, label, weight, patient, no_threshold)["auroc"][:-1]


def at_thresholds(
    score, label, weight, patient, threshold, **draws
) -> dict[str, Interval]:
    """Sensitivity and specificity at K thresholds of every task, [K, T].

    Their intervals are those of bootstrap.wilson. The arguments are as in `intervals`.
    """
    rows, index, patients = bootstrap.numbered(weight, patient)
    wide = (np.tile(x[rows], len(threshold)) for x in (score, label, weight))
    data = *wide, index, np.ravel(threshold)
    resampled = bootstrap.resample(_two_rates, data, patients, **draws)
    shape = np.shape(threshold)
    return jax.tree.map(lambda x: np.reshape(x, shape), bootstrap.wilson(resampled))


def _two_rates(data, counts) -> dict[str, Array]:
    """A statistic: sensitivity and specificity [R, K T]."""
    rates = metrics.rates(confusion(*data, counts))
    return {name: rates[name] for name in ("sensitivity", "specificity")}


def _every(data, counts, *, max_fpr: float | None) -> dict[str, Array]:
    """A statistic: every metric of every task [R, T], and 'micro_' those of all [R]."""
    ranked, label, weight, patient, of_rates = data
    ranking = areas.of_tasks(ranked, label, weight, patient, counts, max_fpr=max_fpr)
    ranking = dict(zip((*areas.AREAS, "partial_auroc"), ranking, strict=False))
    if of_rates is None:
        return ranking
    score, threshold, prevalence = of_rates
    matrix = confusion(score, label, weight, patient, threshold, counts)
    rates = metrics.rates(matrix)
    pooled = metrics.rates(metrics.micro(matrix, ~jnp.isnan(threshold)))
    if prevalence is not None:
        rates["ppv_at"], rates["npv_at"] = metrics.predictive_values(
            rates["sensitivity"], rates["specificity"], prevalence
        )
    return ranking | rates | {f"micro_{name}": x for name, x in pooled.items()}


def difference(
    score, other, label, weight, patient, *, level=bootstrap.LEVEL, **draws
) -> dict[str, Interval]:
    """Compares the areas of two models: intervals of bootstrap.normal.

    Both are judged on the same images, and on the same patients in every replicate:
    patients that are easy for both models cancel.

    Returns:
      'auroc' and 'average_precision', Intervals of [T] of the nominal coverage `level`,
      and their 'mean_' of [], of score's minus other's.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 8.4.
    """
    arrays = [np.asarray(a, np.float32) for a in (score, other, label, weight)]
    chex.assert_equal_shape(arrays)
    chex.assert_shape(np.asarray(patient), arrays[0].shape[:1])
    for each in arrays[:2]:
        check_arrays(each, *arrays[2:])
    rows, index, patients = bootstrap.numbered(weight, patient)
    data = *(a[rows] for a in arrays), index
    base = bootstrap.resample(_differences, data, patients, **draws)
    defined = {name: ~np.isnan(x) for name, x in base.whole.items()}
    both = [
        values | {f"mean_{k}": metrics.macro(v, defined[k]) for k, v in values.items()}
        for values in base
    ]
    return bootstrap.normal(Resampled(*both), level)


def _differences(data, counts) -> dict[str, Array]:
    """A statistic: the first model's areas minus the second's."""
    score, other, *rest = data
    first, second = (areas.of_tasks(each, *rest, counts) for each in (score, other))
    return {name: a - b for name, a, b in zip(areas.AREAS, first, second, strict=True)}


def class_intervals(
    probability, label, weight, patient, **draws
) -> tuple[np.ndarray, dict[str, Interval]]:
    """The classes' confusion matrix [K, K], and its rates with intervals.

    Arguments are as in metrics.class_cells.
    """
    rows, index, patients = bootstrap.numbered(weight, patient)
    cells = _class_cells(*(x[rows] for x in (probability, label, weight)))
    cells = jax.ops.segment_sum(cells, index, patients)  # [P, K, K]
    matrix = np.asarray(cells.sum(axis=0))
    data = cells, matrix.sum(axis=1) > 0
    resampled = bootstrap.resample(_class_rates, data, patients, **draws)
    in_unit = (  # Kappas are from -1 to 1.
        {name: (1 + x) / 2 if "kappa" in name else x for name, x in rates.items()}
        for rates in resampled
    )
    intervals = bootstrap.wilson(Resampled(*in_unit))
    for name in ("kappa", "weighted_kappa"):
        *numbers, undefined, why = intervals[name]
        intervals[name] = Interval(*(2 * x - 1 for x in numbers), undefined, why)
    return matrix, intervals


_class_cells = jax.jit(metrics.class_cells)


def _class_rates(data: tuple, counts: Array) -> dict[str, Array]:
    """A statistic: the rates of classes; data: cells [P, K, K], classes present [K]."""
    cells, present = data
    return metrics.class_rates(bootstrap.reweigh(cells, counts), present)


def check_arrays(score, label, weight) -> None:
    """Raises InputError for numbers from which no interval can come."""
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise InputError("weight: negative or not finite; give 0 to an unknown label")
    undefined = (np.isnan(score) & (weight > 0)).any(axis=0)
    if undefined.any():
        raise InputError(
            f"score: NaN for a known label of task {int(undefined.argmax())}; look for a "
            "run that diverged, or give the image weight 0"
        )
    known = label[weight > 0]
    if not ((known >= 0) & (known <= 1)).all():
        raise InputError("label: outside [0, 1]; give weight 0 to an unknown label")


def patients(score, label, weight, patient, threshold) -> dict[str, np.ndarray]:
    """Counts the patients with an image in each metric's denominator.

    Returns {metric: [T + 1] int}, the last of all labels as if of one task. Without a
    threshold, rates have none.
    """
    flags = {k: x > 0 for k, x in kinds(score, label, weight, threshold).items()}
    cut = ~np.isnan(threshold)

    @functools.cache
    def count(kind: str, of_rates: bool) -> np.ndarray:
        flag = flags[kind] & cut if of_rates else flags[kind]
        return bootstrap.count(flag, patient)

    return {
        name: np.min([count(k, metric.kind == "confusion") for k in metric.counted], 0)
        for name, metric in METRICS.items()
        if metric.kind in ("ranking", "confusion")
    }


def kinds(score, label, weight, threshold) -> dict[str, np.ndarray]:
    """{one of metrics.DENOMINATORS: [N, T]}, by how much each image counts as it."""
    label, weight = (np.where(weight > 0, x, 0) for x in (label, weight))
    positive, negative, called = (
        weight * label,
        weight * (1 - label),
        score >= threshold,
    )
    return {
        "known": weight,
        "positive": positive,
        "negative": negative,
        "called": weight * called,
        "passed": weight * ~called,
        "positive or called": np.where(called, weight, positive),
        "false positive": negative * called,
        "true negative": negative * ~called,
    }


def confusion(score, label, weight, patient, threshold, counts) -> metrics.Confusion:
    """The confusion matrix of many reweightings, [R, T].

    A patient's cells do not change, so the counts of all replicates are one product.
    """
    cells = jax.vmap(metrics.confusion_shares, in_axes=-1, out_axes=-1)
    cells = jnp.stack(cells(score, label, weight, threshold), axis=1)  # [N, 4, T]
    cells = bootstrap.reweigh(cells, counts, patient)
    return metrics.Confusion(*jnp.moveaxis(cells, -2, 0))

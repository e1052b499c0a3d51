"""Predictions -> every number of the report, as plain data."""

import math

import jax
import numpy as np
from chex import Array

from medjax.evaluation import intervals, metrics, multiclass
from medjax.evaluation.inference import Predictions

RANKED = {
    metric.__name__: jax.jit(jax.vmap(metric, in_axes=1))
    for metric in (metrics.auroc, metrics.average_precision)
}


def thresholds(predictions: Predictions) -> np.ndarray:
    """Youden's threshold of each task, [T]; NaN where a class is missing.

    Args:
      predictions: of the validation split: chosen on the test split, a threshold
        would flatter every rate at it.
    """
    choose = jax.jit(jax.vmap(metrics.youden_threshold, in_axes=1))
    return np.asarray(
        choose(predictions.probability, predictions.label, predictions.weight)
    )


def means(predictions: Predictions) -> dict[str, float]:
    """Mean AUROC and average precision over the tasks that have both classes."""
    score, label, weight = predictions[2:]
    found = {}
    for name, of_each in RANKED.items():
        values = np.asarray(of_each(score, label, weight))
        both = ~np.isnan(values)
        found[name] = float(values[both].mean()) if both.any() else math.nan
    return found


def summarise(
    predictions: Predictions,
    *,
    tasks: tuple[str, ...],
    exclusive: bool,
    threshold: np.ndarray,
    key: Array,
    replicates: int,
) -> dict:
    """Every metric of every task with its interval.

    Args:
      predictions: of the split that is judged.
      tasks: T names.
      exclusive: whether an image has exactly one of them, as a class; each is then
        judged against the rest, and all of them together.
      threshold: [T], chosen on validation; NaN leaves a task's rates empty.
      key: of the bootstrap.
      replicates: of the bootstrap, clustered by patient.

    Returns:
      films, patients, replicates; mean: {metric: interval}; tasks: {name: {positives,
      negatives, unknown, threshold, note, confusion: {tp, fp, fn, tn}, roc: {fpr,
      tpr}, metrics: {metric: interval}}}. An interval is {estimate, low, high,
      undefined}; what is undefined is None, and the note says why. Exclusive tasks
      add classes: {matrix: [T][T] counts, row true, column said; rates: {rate:
      interval}}.
    """
    score, label, weight = predictions[2:]
    threshold = np.asarray(threshold, np.float32)
    found = intervals.bootstrap(
        score,
        label,
        weight,
        predictions.patient,
        threshold,
        key=key,
        replicates=replicates,
    )
    confusion = jax.jit(metrics.confusion)
    results: dict = {
        "films": len(predictions.id),
        "patients": len(np.unique(predictions.patient)),
        "replicates": replicates,
        "mean": {
            name.removeprefix("mean_"): _interval(interval)
            for name, interval in found.items()
            if name.startswith("mean_")
        },
        "tasks": {},
    }
    for t, task in enumerate(tasks):
        one = score[:, t], label[:, t], weight[:, t]
        positives = float((one[1] * one[2]).sum())
        negatives = float(one[2].sum()) - positives
        matrix = confusion(*one, threshold[t])
        fpr, tpr, _ = metrics.roc(*one)
        results["tasks"][task] = {
            "positives": positives,
            "negatives": negatives,
            "unknown": int((one[2] == 0).sum()),
            "threshold": _number(threshold[t]),
            "note": _note(
                positives, negatives, threshold[t], int(found["auroc"].undefined[t])
            ),
            "confusion": {k: _number(v) for k, v in matrix._asdict().items()},
            "roc": {"fpr": _numbers(fpr), "tpr": _numbers(tpr)},
            "metrics": {
                name: _interval(intervals.Interval(*(part[t] for part in interval)))
                for name, interval in found.items()
                if not name.startswith("mean_")
            },
        }
    if exclusive:
        matrix, rates = multiclass.summarise(
            *predictions[2:], predictions.patient, key=key, replicates=replicates
        )
        results["classes"] = {
            "matrix": matrix.tolist(),
            "rates": {name: _interval(found) for name, found in rates.items()},
        }
    return results


def _note(positives: float, negatives: float, threshold: float, lacking: int) -> str:
    """Why cells of a task's row are empty or weak; '' if none is."""
    if positives == 0:
        return "no positive image"
    if negatives == 0:
        return "no negative image"
    if math.isnan(threshold):
        return "no threshold: validation lacks a positive or a negative image"
    if lacking:
        return f"too few: a class is missing from {lacking} of the replicates"
    return ""


def _interval(interval: intervals.Interval) -> dict:
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value) -> float | None:
    value = float(value)
    return None if math.isnan(value) else value


def _numbers(values: np.ndarray) -> list:
    return [_number(round(value, 6)) for value in values]

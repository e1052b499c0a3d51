"""Predictions -> every number of the report, as plain data."""

import math

import jax
import numpy as np
from chex import Array

from medjax.evaluation import averaging, curves, intervals, metrics, multiclass
from medjax.evaluation.inference import Predictions

RANKED = {
    metric.__name__: jax.jit(jax.vmap(metric, in_axes=1))
    for metric in (metrics.auroc, metrics.average_precision)
}
CONFUSION = jax.jit(metrics.confusion)
MEANS = ("mean", "weighted", "micro")


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
    chosen: str = "Youden's index",
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
      chosen: how the thresholds were, see operating.describe.

    Returns:
      films, patients, replicates, chosen; mean, weighted, micro: {metric: interval},
      see averaging.py; tasks: {name: {positives, negatives, unknown, threshold, note,
      confusion: {tp, fp, fn, tn}, roc: {fpr, tpr}, precision_recall: {recall,
      precision}, metrics: {metric: interval}}}. An interval is {estimate, low, high,
      undefined, why}; what is undefined is None, and why says why. Exclusive tasks
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
    # A threshold of NaN: those of the tasks don't hold for a label of any of them.
    pooled = intervals.bootstrap(
        *averaging.pooled(score, label, weight, predictions.patient),
        np.full(1, np.nan),
        key=key,
        replicates=replicates,
    )
    found |= {f"micro_{name}": pooled[f"mean_{name}"] for name in intervals.AREAS}
    results: dict = {
        "films": len(predictions.id),
        "patients": len(np.unique(predictions.patient)),
        "replicates": replicates,
        "chosen": chosen,
        **{kind: _means(found, kind) for kind in MEANS},
        "tasks": {
            task: _task(
                *(x[:, t] for x in (score, label, weight)),
                threshold[t],
                {
                    name: intervals.Interval(*(part[t] for part in interval))
                    for name, interval in found.items()
                    if interval.estimate.ndim
                },
            )
            for t, task in enumerate(tasks)
        },
    }
    if exclusive:
        matrix, rates = multiclass.summarise(
            *predictions[2:], predictions.patient, key=key, replicates=replicates
        )
        results["classes"] = {
            "matrix": matrix.tolist(),
            "rates": {
                name: _interval(found, "undefined") for name, found in rates.items()
            },
        }
    return results


def _means(found: dict, kind: str) -> dict:
    """{metric: interval} of one kind of mean."""
    return {
        name.removeprefix(f"{kind}_"): _interval(interval, "undefined in every task")
        for name, interval in found.items()
        if name.startswith(f"{kind}_")
    }


def _task(score, label, weight, threshold, found: dict) -> dict:
    """Everything of one task; vectors [N]."""
    positives = float((label * weight).sum(where=weight > 0))
    negatives = float(weight.sum()) - positives
    matrix = CONFUSION(score, label, weight, threshold)
    matrix = {name: _number(cell) for name, cell in matrix._asdict().items()}
    fpr, tpr, _ = curves.roc(score, label, weight)
    bends = curves.corners(fpr, tpr)
    precision, recall, _ = curves.precision_recall(score, label, weight)
    why = _reasons(positives, negatives, **matrix)
    return {
        "positives": positives,
        "negatives": negatives,
        "unknown": int((weight == 0).sum()),
        "threshold": _number(threshold),
        "note": _note(positives, negatives, threshold, int(found["auroc"].undefined)),
        "confusion": matrix,
        "roc": {"fpr": _numbers(fpr[bends]), "tpr": _numbers(tpr[bends])},
        "precision_recall": {
            "recall": _numbers(recall[bends[1:] - 1]),
            "precision": _numbers(precision[bends[1:] - 1]),
        },
        "metrics": {name: _interval(one, why[name]) for name, one in found.items()},
    }


def _reasons(positives: float, negatives: float, *, tp, fp, fn, tn) -> dict[str, str]:
    """Why each metric of a task is undefined, if it is; cells None: no threshold."""
    ill = "" if positives else "no positive image"
    well = "" if negatives else "no negative image"
    anyone = "" if positives or negatives else "no known label"
    areas = {"auroc": anyone or ill or well, "average_precision": anyone or ill}
    cut = tp is not None
    called = "" if cut and tp + fp else "none called positive"
    passed = "" if cut and tn + fn else "none called negative"
    rates = {
        "sensitivity": ill,
        "specificity": well,
        "ppv": called,
        "npv": passed,
        "accuracy": anyone,
        "prevalence": anyone,
        "f1": anyone or "none positive or called so",
        "lr_positive": ill or well or "no false positive",
        "lr_negative": ill or well or "no true negative",
    }
    return areas | (rates if cut else dict.fromkeys(rates, "no threshold"))


def _note(positives: float, negatives: float, threshold: float, lacking: int) -> str:
    """Why cells of a task's row are empty or weak; '' if none is."""
    if positives == negatives == 0:
        return "no known label"
    if positives == 0:
        return "no positive image"
    if negatives == 0:
        return "no negative image"
    if math.isnan(threshold):
        return "no threshold: validation lacks a positive or a negative image"
    if lacking:
        return f"too few: a class is missing from {lacking} of the replicates"
    return ""


def _interval(interval: intervals.Interval, why: str) -> dict:
    """As plain data; why it has no estimate, where it has none."""
    numbers = {name: _number(value) for name, value in interval._asdict().items()}
    return numbers | {"why": why if numbers["estimate"] is None else ""}


def _number(value) -> float | None:
    value = float(value)
    return None if math.isnan(value) else value


def _numbers(values: np.ndarray) -> list:
    return [_number(round(value, 6)) for value in values]

"""Predictions -> every number of a classification report."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from medjax.evaluation import (
    areas,
    bootstrap,
    discrimination,
    metrics,
    reliability,
    thresholds,
)
from medjax.evaluation.bootstrap import Interval
from medjax.evaluation.inference import Predictions
from medjax.evaluation.metrics import Confusion
from medjax.evaluation.reliability import TaskCalibration

MAX_FPR = 0.1  # The partial AUROC is of specificities of 90 % and more.
CONFUSION = jax.jit(metrics.confusion)
AVERAGES = ("mean", "weighted", "micro")
SATURATED = 10  # Log-odds beyond which float32 probabilities are few.
Metrics = dict[str, Interval]  # By the names of metrics.METRICS.


class AtPrevalence(NamedTuple):
    """The predictive values of a task at another prevalence."""

    prevalence: float
    ppv: Interval
    npv: Interval


class OperatingPoint(NamedTuple):
    """A threshold that was chosen for a rate, and the rates there."""

    threshold: float
    sensitivity: Interval
    specificity: Interval


class Finding(NamedTuple):
    """One task."""

    positives: float  # Sums of weights, as `negatives`.
    negatives: float
    unknown: int  # Images without a label.
    threshold: float  # NaN if there is none.
    note: str  # Why some numbers are undefined or weak; '' if none is.
    confusion: Confusion
    roc: dict[str, np.ndarray]  # fpr and tpr where the curve bends.
    precision_recall: dict[str, np.ndarray]  # recall and precision, likewise.
    metrics: Metrics
    calibration: TaskCalibration
    at_prevalence: AtPrevalence | None = None
    operating: dict[str, OperatingPoint] | None = None  # By thresholds.name.


class Classes(NamedTuple):
    """All classes together; matrix: [K, K] counts, row true, column predicted."""

    matrix: np.ndarray
    rates: Metrics


class ClassificationResults(NamedTuple):
    """A classification report."""

    films: int  # How many there are.
    patients: int
    replicates: int  # Of the bootstrap.
    chosen: str  # How the thresholds were, see thresholds.describe.
    mean: Metrics  # The macro, weighted and micro averages, see metrics.py.
    weighted: Metrics
    micro: Metrics
    tasks: dict[str, Finding]  # By name.
    calibration: dict[str, dict]  # 'mean': over the tasks, of the calibration errors.
    classes: Classes | None = None  # Of exclusive tasks.


def mean_areas(predictions: Predictions) -> dict[str, float]:
    """Mean AUROC and average precision over the tasks that have both classes."""
    of_tasks = areas.of_images(predictions.ranking, *predictions[3:5])
    averages = (float(bootstrap.mean_of_defined(x, axis=0)) for x in of_tasks)
    return dict(zip(areas.AREAS, averages, strict=True))


def summarise(
    predictions: Predictions,
    *,
    tasks: tuple[str, ...],
    exclusive: bool,
    threshold: np.ndarray,
    chosen: str = "Youden's index",
    uncalibrated: np.ndarray | None = None,
    prevalence: np.ndarray | None = None,
    operating: dict[str, np.ndarray] | None = None,
    ordered: bool = False,
    **draws,
) -> dict:
    """Every metric of every task with its interval.

    Args:
      predictions: of the split that is evaluated. Each task's areas and curves are of
        `Predictions.ranking`; the micro averages are of the probabilities.
      exclusive: whether an image has exactly one of them, as a class; each is then
        evaluated against the rest, and all of them together.
      threshold: [T], chosen on validation; NaN leaves a task's rates empty.
      chosen: how the thresholds were, see thresholds.describe.
      uncalibrated: [N, T], the probabilities before calibration; None: there is no
        calibration.
      prevalence: [T], adds the predictive values there.
      operating: {name: [T]}, thresholds of operating points, chosen on validation.
      ordered: whether the classes are grades, in this order: adds their weighted kappa.

    Returns a `ClassificationResults` as JSON, see bootstrap.as_json.
    """
    score, label, weight = predictions[2:5]
    threshold = np.asarray(threshold, np.float32)
    ranked = predictions.ranking
    data = score, label, weight, predictions.patient, threshold
    judge = functools.partial(bootstrap.interval, replicates=draws["replicates"])
    intervals = discrimination.intervals(
        *data, ranked=ranked, prevalence=prevalence, max_fpr=MAX_FPR, **draws
    ) | _micro_areas(predictions, **draws)
    patients = discrimination.patients(*data)
    mean_errors, errors = reliability.summarise(
        score, label, weight, predictions.patient, uncalibrated=uncalibrated, **draws
    )
    operating, rates = operating or {}, {}
    if operating:
        points = np.stack([*operating.values()])
        rates = discrimination.at_thresholds(*data[:4], points, **draws)
    of_tasks = {}
    for t, task in enumerate(tasks):
        of_tasks[task] = _task(
            *(x[:, t] for x in (score, ranked, label, weight)),
            threshold=threshold[t],
            intervals={
                name: bootstrap.at(interval, t)
                for name, interval in intervals.items()
                if interval.estimate.ndim
            },
            patients={name: each[t] for name, each in patients.items()},
            prevalence=None if prevalence is None else float(prevalence[t]),
            calibration=errors[t],
            operating={
                point: OperatingPoint(at[t], **bootstrap.at(rates, (k, t)))
                for k, (point, at) in enumerate(operating.items())
            },
            judge=judge,
        )
    summary = ClassificationResults(
        films=len(predictions.id),
        patients=len(np.unique(predictions.patient)),
        replicates=draws["replicates"],
        chosen=chosen,
        **{
            kind: _averages(intervals, kind, patients, judge, exclusive)
            for kind in AVERAGES
        },
        tasks=of_tasks,
        calibration={"mean": mean_errors},
        classes=_classes(predictions, judge, ordered, **draws) if exclusive else None,
    )
    return bootstrap.as_json(summary)


def _micro_areas(predictions: Predictions, **draws) -> Metrics:
    """The areas of all labels as one task, in the order of their probabilities.

    The tasks' thresholds don't hold for it. Where float32 rounds probabilities to 0 or
    1, the log-odds tell them apart.
    """
    ranked = predictions.ranking.ravel()
    extreme = np.where(np.abs(ranked) > SATURATED, ranked, 0)
    keys = np.stack([extreme, predictions.probability.ravel()])
    order = np.lexsort(keys)
    place = np.empty(order.size)
    new = (np.diff(keys[:, order]) != 0).any(axis=0)
    place[order] = np.cumsum(np.append(0, new))
    tasks = predictions.label.shape[1]
    intervals = discrimination.intervals(
        *(x.reshape(-1, 1) for x in predictions[2:5]),
        *(predictions.patient.repeat(tasks), None),
        ranked=place[:, None],
        max_fpr=MAX_FPR,
        **draws,
    )
    return {
        f"micro_{name}": bootstrap.at(interval, 0)
        for name, interval in intervals.items()
        if interval.estimate.ndim  # No average.
    }


def _averages(
    intervals: Metrics, kind: str, patients: dict, judge: Callable, exclusive: bool
) -> Metrics:
    """One kind of average; patients: as of discrimination.patients."""
    averages = {}
    for name, counts in patients.items():
        if f"{kind}_{name}" not in intervals or name.endswith("_at"):
            continue
        if name == "prevalence" and exclusive:
            continue  # The classes' prevalences add up to 1.
        average, why = intervals[f"{kind}_{name}"], "undefined in every task"
        if kind == "micro":
            averages[name] = judge(average, why, patients=counts[-1], name=name)
            continue
        of_tasks = counts[:-1][~np.isnan(intervals[name].estimate)]
        # The task with most patients has enough, or none has.
        average = judge(average, why, patients=of_tasks.max(initial=0))
        few = np.count_nonzero(of_tasks < bootstrap.MIN_PATIENTS)
        if few and not (math.isnan(average.low) or average.why):
            why = f"{few} of {len(of_tasks)} have few patients"
            average = average._replace(why=why)
        averages[name] = average
    return averages


def _task(
    score: np.ndarray,
    ranked: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    *,
    threshold: float,
    intervals: Metrics,
    patients: dict[str, int],
    prevalence: float | None,
    calibration: TaskCalibration,
    operating: dict[str, OperatingPoint],
    judge: Callable,
) -> Finding:
    """Computes all of one task from arrays [N]; patients: see discrimination.patients.

    The intervals, and those of operating points, aren't judged yet.
    """
    kinds = discrimination.kinds(score, label, weight, threshold)
    images = {kind: float(x.sum()) for kind, x in kinds.items()}
    matrix = Confusion(*map(float, CONFUSION(score, label, weight, threshold)))
    cut = not math.isnan(threshold)
    note = metrics.why("auroc", images)
    if not note and not cut:
        note = "no threshold: validation lacks a positive or a negative image"
    if not note and (undefined := int(intervals["auroc"].undefined)):
        note = f"too few: a class is missing from {undefined} of the replicates"

    def judged_at(threshold: float, name: str, interval: Interval) -> Interval:
        why = metrics.why(name, images, threshold=not math.isnan(threshold))
        return judge(interval, why, patients=patients[name], name=name)

    judged = {name: judged_at(threshold, name, x) for name, x in intervals.items()}
    points = {
        point: OperatingPoint(
            float(at.threshold),
            *(judged_at(at.threshold, n, getattr(at, n)) for n in at._fields[1:]),
        )
        for point, at in operating.items()
    }
    at = [judged.pop(name, None) for name in ("ppv_at", "npv_at")]
    fpr, tpr, precision, _ = thresholds.curves(ranked, label, weight)
    bends = thresholds.corners(fpr, tpr)
    return Finding(
        positives=images["positive"],
        negatives=images["negative"],
        unknown=int((weight == 0).sum()),
        threshold=float(threshold),
        note=note,
        confusion=matrix,
        # Six decimals: enough to draw.
        roc={"fpr": np.round(fpr[bends], 6), "tpr": np.round(tpr[bends], 6)},
        precision_recall={
            "recall": np.round(tpr[bends[1:]], 6),
            "precision": np.round(precision[bends[1:]], 6),
        },
        metrics=judged,
        calibration=calibration,
        at_prevalence=None if prevalence is None else AtPrevalence(prevalence, *at),
        operating=points or None,
    )


def _classes(
    predictions: Predictions, judge: Callable, ordered: bool, **draws
) -> Classes:
    """The classes' confusion matrix and its rates, with intervals."""
    data = *predictions[2:5], predictions.patient
    matrix, intervals = discrimination.class_intervals(*data, **draws)
    if not ordered:
        del intervals["weighted_kappa"]
    has = (predictions.weight > 0) & (predictions.label > 0)
    *of_classes, patients = bootstrap.count(has, predictions.patient)
    # A mean over the classes is as uncertain as that of the rarest class.
    rarest = min(n for n, images in zip(of_classes, matrix.sum(axis=1)) if images)
    fewer = {"balanced_accuracy": rarest, "macro_f1": rarest}
    images = {"known": matrix.sum(), "two classes": 0}
    rates = {
        name: judge(
            interval,
            metrics.why(name, images),
            patients=fewer.get(name, patients),
            name=name,
        )
        for name, interval in intervals.items()
    }
    return Classes(matrix, rates)

"""Predictions -> every number of the report, as plain data.

Which images to look at: those that a model is surest and least sure of.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from chex import Array

from medjax.evaluation import bootstrap, metrics, multiclass, reliability, thresholds
from medjax.evaluation import metrics as averaging
from medjax.evaluation.bootstrap import interval, number, numbers, of_task
from medjax.evaluation.predict import Predictions

RANKED = {
    metric.__name__: jax.jit(jax.vmap(metric, in_axes=1))
    for metric in (metrics.auroc, metrics.average_precision)
}
MAX_FPR = 0.1  # The partial AUROC is of specificities from 90 % on.
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
    uncalibrated: np.ndarray | None = None,
    prevalence: np.ndarray | None = None,
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
      uncalibrated: [N, T], the probabilities before they were mended; None: they are
        as the model said them. Each finding's own areas and curves are of these: a
        calibration that ties scores would move them. Those of classes, whose order a
        softmax changes, and of all labels as one are of what is said.
      prevalence: [T], at which the predictive values are asked for too.

    Returns:
      films, patients, replicates, chosen; mean, weighted, micro: {metric: interval},
      see averaging.py; tasks: {name: {positives, negatives, unknown, threshold, note,
      confusion: {tp, fp, fn, tn}, roc: {fpr, tpr}, precision_recall: {recall,
      precision}, metrics: {metric: interval}, calibration: {prevalence: interval,
      before: side, after: side}, at_prevalence: {prevalence, ppv: interval, npv:
      interval} if it is asked for}}; calibration: {mean: {before, after}}. An interval
      is {estimate, low, high, undefined, why}, see cells.interval. A side is {brier,
      calibration_error, predicted: interval, reliability: {predicted, observed, low,
      high, count}}, and `after` is None if nothing was mended. Exclusive tasks add classes: {matrix: [T][T] counts, row true, column
      said; rates: {rate: interval}}.
    """
    score, label, weight = predictions[2:]
    threshold = np.asarray(threshold, np.float32)
    ranked = score if uncalibrated is None or exclusive else uncalibrated
    data = score, label, weight, predictions.patient, threshold
    found = bootstrap.bootstrap(
        *data,
        ranked=ranked,
        key=key,
        replicates=replicates,
        prevalence=prevalence,
        max_fpr=MAX_FPR,
    )
    elsewhere = {k: found.get(k) for k in ("ppv_at", "npv_at")}
    found = {k: v for k, v in found.items() if not k.endswith("_at")}
    # A threshold of NaN: those of the tasks don't hold for a label of any of them.
    pooled = bootstrap.bootstrap(
        *averaging.pooled(score, label, weight, predictions.patient),
        np.full(1, np.nan),
        key=key,
        replicates=replicates,
        max_fpr=MAX_FPR,
    )
    found |= {
        f"micro_{name}": pooled[f"mean_{name}"] for name in bootstrap.AREAS_SUPPORT
    }
    patients = bootstrap.patients(*data)
    results: dict = {
        "films": len(predictions.id),
        "patients": len(np.unique(predictions.patient)),
        "replicates": replicates,
        "chosen": chosen,
        **{kind: _means(found, kind, patients, replicates) for kind in MEANS},
        "tasks": {
            task: _task(
                *(x[:, t] for x in (score, ranked, label, weight)),
                threshold[t],
                {
                    name: of_task(one, t)
                    for name, one in found.items()
                    if one.estimate.ndim
                },
                {name: each[t] for name, each in patients.items()},
                replicates,
            )
            for t, task in enumerate(tasks)
        },
    }
    mean, each = reliability.summarise(
        score,
        *(label, weight, predictions.patient),
        uncalibrated=uncalibrated,
        key=key,
        replicates=replicates,
    )
    results["calibration"] = {"mean": mean}
    for t, one in enumerate(results["tasks"].values()):
        one["calibration"] = each[t]
        if prevalence is not None:
            at = {name: of_task(each, t) for name, each in elsewhere.items()}
            behind = {"patients": patients["ppv_at"][t], "replicates": replicates}
            one["at_prevalence"] = _elsewhere(one, at, float(prevalence[t]), behind)
    if exclusive:
        matrix, rates = multiclass.summarise(
            *predictions[2:], predictions.patient, key=key, replicates=replicates
        )
        results["classes"] = {
            "matrix": matrix.tolist(),
            "rates": _rates(matrix, rates, patients["accuracy"][-1], replicates),
        }
    return results


def _rates(matrix: np.ndarray, found: dict, patients: int, replicates: int) -> dict:
    """{rate: interval} of the classes' confusion matrix."""
    why = {"kappa": "all are of one class, and called so"}
    behind = {"patients": patients, "replicates": replicates}
    return {
        name: interval(one, why.get(name, "no known label"), kind=name, **behind)
        for name, one in found.items()
    }


def _elsewhere(task: dict, found: dict, prevalence: float, behind: dict) -> dict:
    """A task's predictive values at another prevalence; behind: see cells.interval."""
    cells = {"prevalence": prevalence}
    for name in ("ppv", "npv"):
        parts = [
            task["metrics"][n]["why"] for n in ("sensitivity", "specificity", name)
        ]
        why = next(filter(None, parts), "")
        cells[name] = interval(found[f"{name}_at"], why, **behind)
    return cells


def _means(found: dict, kind: str, patients: dict, replicates: int) -> dict:
    """{metric: interval} of one kind of mean; patients: as of support.patients."""
    cells = {}
    for name, each in patients.items():
        if f"{kind}_{name}" not in found:
            continue
        *of_tasks, of_all = each
        if kind != "micro":  # The best known of them has enough, or none has.
            of_tasks = each[:-1][~np.isnan(found[name].estimate)]
            of_all = of_tasks.max(initial=0)
        cells[name] = cell = interval(
            found[f"{kind}_{name}"],
            "undefined in every task",
            patients=of_all,
            replicates=replicates,
            kind=name if kind == "micro" else "",
        )
        few = np.count_nonzero(np.less(of_tasks, bootstrap.LEAST))
        if kind != "micro" and cell["low"] is not None and few and not cell["why"]:
            cell["why"] = f"{few} of {len(of_tasks)} have few patients"
    return cells


def _task(
    score, ranked, label, weight, threshold, found: dict, patients: dict, replicates
) -> dict:
    """Everything of one task; vectors [N]."""
    positives = float((label * weight).sum(where=weight > 0))
    negatives = float(weight.sum()) - positives
    matrix = CONFUSION(score, label, weight, threshold)
    matrix = {name: number(cell) for name, cell in matrix._asdict().items()}
    fpr, tpr, _ = thresholds.roc(ranked, label, weight)
    bends = thresholds.corners(fpr, tpr)
    precision, recall, _ = thresholds.precision_recall(ranked, label, weight)
    why = _reasons(positives, negatives, **matrix)
    return {
        "positives": positives,
        "negatives": negatives,
        "unknown": int((weight == 0).sum()),
        "threshold": number(threshold),
        "note": _note(positives, negatives, threshold, int(found["auroc"].undefined)),
        "confusion": matrix,
        "roc": {"fpr": numbers(fpr[bends]), "tpr": numbers(tpr[bends])},
        "precision_recall": {
            "recall": numbers(recall[bends[1:] - 1]),
            "precision": numbers(precision[bends[1:] - 1]),
        },
        "metrics": {
            name: interval(
                *(one, why[name]),
                patients=patients[name],
                replicates=replicates,
                kind=name,
            )
            for name, one in found.items()
        },
    }


def _reasons(positives: float, negatives: float, *, tp, fp, fn, tn) -> dict[str, str]:
    """Why each metric of a task is undefined, if it is; cells None: no threshold."""
    anyone = "" if positives or negatives else "no known label"
    ill = anyone or ("" if positives else "no positive image")
    well = anyone or ("" if negatives else "no negative image")
    areas = dict.fromkeys(bootstrap.AREAS_SUPPORT, ill or well) | {
        "average_precision": ill
    }
    cut = tp is not None
    called = anyone or ("" if cut and tp + fp else "none called positive")
    passed = anyone or ("" if cut and tn + fn else "none called negative")
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
    return areas | (rates if cut else dict.fromkeys(rates, anyone or "no threshold"))


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


KINDS = ("true_positive", "false_positive", "true_negative", "false_negative")
CERTAIN = ("most", "least")


class Example(NamedTuple):
    """An image, as row of the predictions, and why it was chosen for a task.

    task: the task's number; kind: one of KINDS; certain: one of CERTAIN.
    """

    row: int
    task: int
    kind: str
    certain: str


def choose(predictions: Predictions, threshold, *, each: int) -> list[Example]:
    """Takes of every task and kind the most certain images, and the least in turn.

    Certain is a probability far on its side of the threshold. Nothing is drawn at
    random: of equal probabilities the lower id comes first.

    Args:
      predictions: of the split that is judged.
      threshold: [T]; a task whose threshold is NaN has no kinds, and no images.
      each: images of a kind, of which it takes ceil(each / 2) certain ones.

    Returns:
      The examples by task, kind, and certainty; no image twice in one kind.
    """
    found = []
    for t, point in enumerate(np.asarray(threshold, np.float32)):
        if np.isnan(point):
            continue
        score, label, weight = (x[:, t] for x in predictions[2:])
        called, ill = score >= point, label >= 0.5
        for kind in KINDS:
            of_kind = (called == kind.endswith("positive")) & (weight > 0)
            of_kind &= (called == ill) == kind.startswith("true")
            rows = np.flatnonzero(of_kind)
            sure = score[rows] if kind.endswith("positive") else -score[rows]
            rows = rows[np.lexsort((predictions.id[rows], -sure))].tolist()
            most = (each + 1) // 2
            last = rows[most:][: -(each // 2) - 1 : -1]
            for certain, chosen in zip(CERTAIN, (rows[:most], last), strict=True):
                found += [Example(row, t, kind, certain) for row in chosen]
    return found

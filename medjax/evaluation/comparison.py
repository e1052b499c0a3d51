"""Is one model better than another? On the same images, with every doubt counted."""

import jax
import numpy as np
from chex import Array

from medjax.evaluation import delong, intervals, results, support
from medjax.evaluation.inference import Predictions


def holm(p) -> np.ndarray:
    """p values [T], adjusted so that all T tests together err as often as one.

    A task whose adjusted p is below 0.05 differs, and with 95 % certainty none of the
    tasks so named doesn't. An undefined p (NaN) stays so, and isn't counted as a test.

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


def compare(
    one: Predictions,
    other: Predictions,
    *,
    tasks: tuple[str, ...],
    key: Array,
    replicates: int,
) -> dict:
    """How much better `one` is, paired by image, with intervals and p values.

    Args:
      one, other: of the same images, in the same order, with the same labels.
      tasks: T names.
      key: of the bootstrap.
      replicates: of the bootstrap, clustered by patient.

    Returns:
      films, patients, replicates; mean: {metric: compared}; tasks: {name: {positives,
      negatives, p, holm, why, metrics: {metric: compared}}}. The metrics are auroc and
      average_precision; compared is {one, other, difference: {estimate, low, high,
      undefined}}; p is delong.paired's of the AUROC. What is undefined is None, and so
      are interval and p of fewer than support.LEAST patients of either class; why says
      why the AUROC or its p is.
    """
    rest = one.label, one.weight, one.patient
    scores = one.probability, other.probability
    found = intervals.difference(*scores, *rest, key=key, replicates=replicates)
    nowhere = np.full(len(tasks), np.nan)  # No threshold: areas alone.
    patients = support.patients(scores[0], *rest, nowhere)["auroc"][:-1]
    few = patients < support.LEAST
    p = np.where(few, np.nan, delong.paired(*scores, *rest).p)
    adjusted = holm(p)
    weak = {"low": np.append(few, few.all()), "high": np.append(few, few.all())}
    columns = {
        name: {
            "one": _with_mean(one, name),
            "other": _with_mean(other, name),
            "difference": {
                field: np.where(weak.get(field, False), np.nan, np.append(each, mean))
                for field, each, mean in zip(
                    intervals.Interval._fields,
                    *(found[name], found[f"mean_{name}"]),
                    strict=True,
                )
            },
        }
        for name in intervals.AREAS
    }

    def row(t: int) -> dict:  # -1: the mean.
        return jax.tree.map(lambda column: _number(column[t]), columns)

    positives = np.sum(one.label * one.weight, axis=0, where=one.weight > 0)
    negatives = one.weight.sum(axis=0) - positives
    return {
        "films": len(one.id),
        "patients": len(np.unique(one.patient)),
        "replicates": replicates,
        "mean": row(-1),
        "tasks": {
            task: {
                "positives": float(positives[t]),
                "negatives": float(negatives[t]),
                "p": _number(p[t]),
                "holm": _number(adjusted[t]),
                "why": _why(positives[t], negatives[t], p[t], few[t]),
                "metrics": row(t),
            }
            for t, task in enumerate(tasks)
        },
    }


def _with_mean(predictions: Predictions, name: str) -> np.ndarray:
    """[T + 1], a metric of each task, and its mean over those that have it."""
    each = results.RANKED[name](*predictions[2:])
    return np.append(each, results.means(predictions)[name])


def _why(positives: float, negatives: float, p: float, few: bool) -> str:
    """Why a task has no area, or no interval or p; '' if it has all."""
    if positives == 0 or negatives == 0:
        return f"no {'negative' if positives else 'positive'} image"
    if few:
        return f"{support.FEW}, no test"
    return "nothing varies: no test" if np.isnan(p) else ""


def _number(value) -> float | None:
    return None if np.isnan(value) else float(value)

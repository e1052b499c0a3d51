"""Some two hundred thresholds a task that tell its whole curve, and what each counts."""

from collections.abc import Sequence

import numpy as np

from medjax.evaluation import curves
from medjax.evaluation.inference import Predictions

MOST = 200


def knots(score, label, weight, *, most: int = MOST) -> np.ndarray:
    """Observed scores between which the ROC curve moves by even steps.

    Quantiles of all images would spend themselves on a rare finding's negatives; here
    sensitivity and false positive rate together change by 2 / (most - 1) from one to
    the next, more only where that many images have one score.

    Args:
      score: [N]; label: [N] in [0, 1]; weight: [N] >= 0, 0 where unknown.
      most: of them, >= 2.

    Returns:
      [K] float64 descending, K <= most: all distinct scores if there are no more, and
      the lowest always; [0] where nothing is known.
    """
    tp, fp, thresholds = curves.counts(score, label, weight)
    if len(thresholds) - 1 <= most:
        return thresholds[1:]
    way = sum(part / part[-1] for part in (tp, fp) if part[-1] > 0)
    levels = np.linspace(0, way[-1], most)
    at = np.searchsorted(way, levels * (1 - 1e-12))  # Rounding may pass the end.
    return thresholds[np.unique(np.maximum(at, 1))]


def explorer(
    predictions: Predictions, *, tasks: Sequence[str], threshold, most: int = MOST
) -> dict[str, dict[str, list[float]]]:
    """The confusion matrix at many thresholds, for whoever moves one.

    Args:
      predictions: of the split that is judged.
      tasks: T names.
      threshold: [T], the frozen ones, each of which is among its task's; NaN is none.
      most: thresholds a task, >= 3.

    Returns:
      {task: {threshold, tp, fp, fn, tn}}, lists of equal length by descending
      threshold; positive is score >= threshold. Tasks without a known label are
      left out.
    """
    found = {}
    for t, task in enumerate(tasks):
        one = [x[:, t] for x in predictions[2:]]
        tp, fp, observed = curves.counts(*one)
        if len(observed) == 1:
            continue
        chosen = knots(*one, most=most - 1)
        frozen = np.float64(np.float32(threshold[t]))
        if not np.isnan(frozen):
            chosen = np.unique(np.append(chosen, frozen))[::-1]
        at = np.searchsorted(-observed, -chosen, side="right") - 1
        cells = {
            "tp": tp[at],
            "fp": fp[at],
            "fn": tp[-1] - tp[at],
            "tn": fp[-1] - fp[at],
        }
        cells = {name: np.round(cell, 6).tolist() for name, cell in cells.items()}
        found[task] = {"threshold": chosen.tolist(), **cells}
    return found

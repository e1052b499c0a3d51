"""The curves of one task, in float64 on the host: to draw, and to choose a point on.

Arguments are as in metrics.py: score [N], label [N] in [0, 1], weight [N] >= 0. A row
of weight 0 counts for nothing.

Some two hundred thresholds a task that tell its whole curve, and what each counts.

Where to cut: operating points, chosen on validation and nowhere else.

A threshold that is chosen on the images it is judged on flatters every rate. So
`choose` asks which split its predictions are of, and takes one answer only; what it
returns is frozen in the run's folder before the test split is predicted.
"""

from collections.abc import Sequence

import numpy as np

from medjax.errors import InputError
from medjax.evaluation.predict import Predictions


def roc(score, label, weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every point of the ROC curve.

    Returns:
      fpr, tpr: [K + 1] float64, from (0, 0) to (1, 1); NaN for a missing class.
      thresholds: [K + 1], inf and then the K distinct scores, descending.

    Source: as scikit-learn's `roc_curve(drop_intermediate=False)`.
    """
    tp, fp, thresholds = counts(score, label, weight)
    return _share(fp), _share(tp), thresholds


def precision_recall(score, label, weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every point of the precision-recall curve.

    Returns:
      precision, recall: [K] float64, recall rising; recall is NaN without positives.
      thresholds: [K], the distinct scores, descending.

    Source: as scikit-learn's `precision_recall_curve`, whose last point, precision 1
    at recall 0, is no threshold's and is left out.
    """
    tp, fp, thresholds = counts(score, label, weight)
    return tp[1:] / (tp[1:] + fp[1:]), _share(tp)[1:], thresholds[1:]


def counts(score, label, weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives [K + 1] at inf and at each distinct score, descending.

    Raises:
      InputError: a known score or label is NaN, which has no place on a curve.
    """
    score, label, weight = (np.asarray(a, np.float64) for a in (score, label, weight))
    score, label, weight = (a[weight > 0] for a in (score, label, weight))
    if np.isnan(score).any() or np.isnan(label).any():
        raise InputError("score or label: NaN where the weight isn't 0; mute it by 0")
    thresholds, run = np.unique(-score, return_inverse=True)
    sums = (
        np.append(0.0, np.cumsum(np.bincount(run, share, thresholds.size)))
        for share in (weight * label, weight * (1.0 - label))
    )
    return *sums, np.append(np.inf, -thresholds)


def corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the points of a curve [K] at which it bends, and of its ends.

    Straight lines between them are the whole curve: of a hundred thousand images a
    rare finding's ROC curve keeps two points a positive.
    """
    before, after = (np.diff(a)[:-1] for a in (x, y)), (np.diff(a)[1:] for a in (x, y))
    (x0, y0), (x1, y1) = before, after
    bends = np.abs(x0 * y1 - x1 * y0) > 1e-15  # NaN never does.
    return np.unique([0, *np.flatnonzero(bends) + 1, len(x) - 1])


def _share(below: np.ndarray) -> np.ndarray:
    return below / below[-1] if below[-1] > 0 else np.full_like(below, np.nan)


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
    tp, fp, thresholds = counts(score, label, weight)
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
        tp, fp, observed = counts(*one)
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


RULES = ("youden", "sensitivity", "specificity", "cost")
TIE = 1e-9  # Two points differ by rounding alone below it.


def choose(
    predictions: Predictions,
    *,
    split: str,
    rule: str = "youden",
    value: float | None = None,
) -> np.ndarray:
    """The threshold of each task; positive is score >= threshold.

    It is an observed score, or just above the highest where nothing may be called
    positive. Of points that the rule finds equally good, the one with the larger
    sensitivity + specificity is taken, and of those the lowest: a missed finding costs
    more than a second look.

    Args:
      predictions: of the validation split.
      split: what they are of; anything but 'validation' is refused.
      rule: 'youden', the largest sensitivity + specificity; 'sensitivity', of at least
        the value, with the largest specificity; 'specificity', the other way round;
        'cost', the least expected cost at the prevalence of the validation split.
      value: of the rate, in (0, 1]; or how many false positives are as bad as one
        false negative, > 0. None for 'youden'.

    Returns:
      [T] float32 in the unit of the score; NaN where a class is missing.

    Raises:
      InputError: another split, an unknown rule, or a value out of its range.

    Source: Youden, Cancer 3 (1950) 32; costs: Metz, Semin. Nucl. Med. 8 (1978) 283;
    Zweig & Campbell, Clin. Chem. 39 (1993) 561.
    """
    if split != "validation":
        raise InputError(
            f"split={split!r}: a threshold is chosen on 'validation' alone; on the "
            "images that it is judged on, it flatters every rate"
        )
    check(rule, value)
    tasks = zip(*(x.T for x in predictions[2:]), strict=True)
    return np.array([_point(*task, rule, value) for task in tasks], np.float32)


def check(rule: str, value: float | None) -> None:
    """Raises InputError unless the rule is known and its value in range."""
    if rule not in RULES:
        raise InputError(f"operating rule {rule!r}: use one of {', '.join(RULES)}")
    if rule == "youden":
        if value is not None:
            raise InputError(f"operating value {value}: Youden's index takes none")
    elif value is None:
        raise InputError(f"operating rule {rule!r}: needs a value")
    elif not 0 < value < (np.inf if rule == "cost" else 1 + TIE):
        bound = "above 0" if rule == "cost" else "in (0, 1]"
        raise InputError(f"operating value {value}: of {rule!r} it is {bound}")


def describe(rule: str, value: float | None) -> str:
    """The rule as a report says it."""
    if rule == "youden":
        return "Youden's index"
    if rule == "cost":
        return f"a false negative costs {value:g} times a false positive"
    return f"{rule} of {value:g} or more"


def _point(score, label, weight, rule: str, value: float | None) -> np.float32:
    """The threshold of one task."""
    tp, fp, thresholds = counts(score, label, weight)
    positives, negatives = tp[-1], fp[-1]
    if positives == 0 or negatives == 0:
        return np.float32(np.nan)
    sensitivity, specificity = tp / positives, 1 - fp / negatives
    youden = sensitivity + specificity - 1
    merit = youden
    if rule == "sensitivity":
        merit = np.where(sensitivity >= value - TIE, specificity, -np.inf)
    elif rule == "specificity":
        merit = np.where(specificity >= value - TIE, sensitivity, -np.inf)
    elif rule == "cost":
        merit = -(value * (positives - tp) + fp) / (value * positives + negatives)
    best = merit >= merit.max() - TIE
    best &= youden >= youden[best].max() - TIE
    last = np.flatnonzero(best)[-1]  # The lowest threshold.
    if last == 0:
        return np.nextafter(np.float32(thresholds[1]), np.float32(np.inf))
    return np.float32(thresholds[last])

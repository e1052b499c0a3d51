"""The curves of one task, in float64 on the host: to draw, and to choose a point on.

Arguments are as in metrics.py: score [N], label [N] in [0, 1], weight [N] >= 0. A row
of weight 0 counts for nothing.
"""

import numpy as np

from medjax.errors import InputError


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

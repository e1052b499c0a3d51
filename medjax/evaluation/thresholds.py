"""Curves of one task and their bands, and thresholds, chosen on validation alone.

A threshold that is chosen on the images it is evaluated on flatters every rate. What
`choose` returns is fixed in the run's folder before the test split is predicted.

Curves are in float64 on the host. Their arguments are as in metrics.py: score [N],
label [N] in [0, 1], weight [N] >= 0; a row of weight 0 counts for nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.errors import InputError, check_choice
from medjax.evaluation import bootstrap, discrimination
from medjax.evaluation.inference import Predictions

MAX_THRESHOLDS = 200  # Thresholds a task that a page holds.
GRID = np.linspace(0, 1, 101)  # Of the bands' false positive rate and recall.
RULES = ("youden", "sensitivity", "specificity", "cost")
OPERATING_POINTS = tuple(
    (rule, value) for rule in ("specificity", "sensitivity") for value in (0.9, 0.95)
)  # Operating points that every report has.
TIE = 1e-9  # Two points differ by rounding alone below it.


def curves(
    score, label, weight
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The ROC and precision-recall curve at every threshold, as scikit-learn's functions.

    Returns:
      fpr, tpr: [K + 1], from (0, 0) to (1, 1); tpr is the recall. NaN for a missing class.
      precision: [K + 1], beginning with 1, which is no threshold's.
      thresholds: [K + 1], inf and then the K distinct scores, descending.
    """
    tp, fp, thresholds = positive_counts(score, label, weight)
    precision = np.append(1.0, tp[1:] / (tp[1:] + fp[1:]))
    return _share(fp), _share(tp), precision, thresholds


def positive_counts(score, label, weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def knots(score, label, weight, *, most: int) -> np.ndarray:
    """[K <= most], descending: scores between which the ROC curve moves by even steps.

    Quantiles of a rare finding's images would be negatives almost all. Here sensitivity
    and false positive rate together change by 2 / (most - 1) from one knot to the next,
    and more only where that many images have the same score. If there are no more than
    `most` distinct scores it is all of them, and always the lowest; [0] where nothing is
    known.
    """
    tp, fp, thresholds = positive_counts(score, label, weight)
    if len(thresholds) - 1 <= most:
        return thresholds[1:]
    way = sum(part / part[-1] for part in (tp, fp) if part[-1] > 0)
    levels = np.linspace(0, way[-1], most)
    at = np.searchsorted(way, levels * (1 - 1e-12))  # Rounding may pass the end.
    return thresholds[np.unique(np.maximum(at, 1))]


def explorer(
    predictions: Predictions, *, tasks: Sequence[str], threshold
) -> dict[str, dict[str, list[float]]]:
    """The confusion matrix at many thresholds, for a page on which one can be moved.

    Each task's fixed threshold, of [T], is among them; NaN is none.

    Returns:
      {task: {threshold, tp, fp, fn, tn}}, lists of equal length by descending
      threshold; positive is score >= threshold. Tasks without a known label are
      left out.
    """
    tables = {}
    for t, task in enumerate(tasks):
        columns = [x[:, t] for x in predictions[2:5]]
        tp, fp, observed = positive_counts(*columns)
        if len(observed) == 1:
            continue
        chosen = knots(*columns, most=MAX_THRESHOLDS - 1)
        fixed = np.float64(np.float32(threshold[t]))
        if not np.isnan(fixed):
            chosen = np.unique(np.append(chosen, fixed))[::-1]
        at = np.searchsorted(-observed, -chosen, side="right") - 1
        cells = {"tp": tp, "fp": fp, "fn": tp[-1] - tp, "tn": fp[-1] - fp}
        cells = {name: np.round(cell[at], 6).tolist() for name, cell in cells.items()}
        tables[task] = {"threshold": chosen.tolist(), **cells}
    return tables


def bands(
    predictions: Predictions, *, tasks: Sequence[str], **draws
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Bands about the ROC and precision-recall curves: bootstrap.wilson at each point.

    Each replicate's curve is read at one grid. It isn't sorted: each patient's images
    are counted once between `knots`, and the counts of all replicates are one product
    of matrices. So its ROC curve is straight between two knots.

    Returns:
      {task: {roc: {fpr, low, high}, precision_recall: {recall, low, high}}}, lists of
      equal length: sensitivity at each false positive rate, and precision at the
      highest threshold that reaches each recall but 0. A task with fewer than
      bootstrap.MIN_PATIENTS patients of either class is left out.
    """
    columns = predictions.ranking, *predictions[3:5]
    score, label, weight = (np.asarray(x, np.float32) for x in columns)
    label = np.where(weight > 0, label, 0)
    positive, negative = weight * label, weight * (1 - label)
    rarer = discrimination.rarer_patients(label, weight, predictions.patient)
    columns = np.flatnonzero(rarer >= bootstrap.MIN_PATIENTS).tolist()
    if not columns:
        return {}
    people = bootstrap.count(positive > 0, predictions.patient)
    rows, patient, patients = bootstrap.numbered(weight, predictions.patient)
    score, label, weight, positive, negative = (
        x[rows][:, columns] for x in (score, label, weight, positive, negative)
    )
    place = np.full(score.shape, MAX_THRESHOLDS, np.int32)  # Unknown: beyond the last.
    for t in range(len(columns)):
        known = weight[:, t] > 0
        cuts = knots(score[:, t], label[:, t], weight[:, t], most=MAX_THRESHOLDS)
        place[known, t] = np.searchsorted(-cuts, -score[known, t])
    data = place.T, positive.T, negative.T, patient
    curves = bootstrap.resample(_curves, data, patients, most=MAX_THRESHOLDS, **draws)
    # Patients behind a sensitivity of 1, and at least behind a precision of 1.
    ones = np.multiply.outer(people[columns], [np.ones_like(GRID), GRID])
    _, low, high, _, _ = bootstrap.exact(bootstrap.wilson(curves), ones)  # [T, 2, G]
    low, high = (np.round(np.asarray(end, float), 5) for end in (low, high))
    return {
        tasks[column]: {
            curve: {
                axis: np.round(GRID[first:], 2).tolist(),
                "low": low[t, number, first:].tolist(),
                "high": high[t, number, first:].tolist(),
            }
            for number, (curve, axis, first) in enumerate(
                (("roc", "fpr", 0), ("precision_recall", "recall", 1))
            )
        }
        for t, column in enumerate(columns)
    }


def _curves(data: tuple, drawn: Array, *, most: int) -> Array:
    """A statistic: sensitivity and precision along the grid, [R, T, 2, G].

    data: place [T, N] int, the first knot that calls an image positive; its weight as
    positive and as negative [T, N]; its patient [N].
    """
    *tasks, patient = data
    weights = drawn.astype(jnp.float32)

    def task(columns):  # One at a time: of 25,000 patients a table takes 40 MB.
        place, positive, negative = columns
        both = jnp.stack([positive, negative], axis=1)
        table = jnp.zeros((len(weights), most, 2))
        table = table.at[patient, place].add(both, mode="drop")
        cells = jnp.einsum("pr,pkc->rkc", weights, table, precision="highest")
        return jax.vmap(_read)(jnp.cumsum(cells, axis=1))

    return jnp.moveaxis(jax.lax.map(task, tuple(tasks)), 1, 0)


def _read(counts: Array) -> Array:
    """Sensitivity and precision [2, G] of one replicate along the grid.

    counts: [K, 2], true and false positives at each knot.
    """
    tp, fp = jnp.pad(counts, ((1, 0), (0, 0))).T
    both = (tp[-1] > 0) & (fp[-1] > 0)
    grid = jnp.asarray(GRID, jnp.float32)
    tpr, fpr = tp / jnp.maximum(tp[-1], 1e-30), fp / jnp.maximum(fp[-1], 1e-30)
    first = jnp.searchsorted(tpr, grid * (1 - 1e-5))
    precision = tp[first] / jnp.maximum(tp[first] + fp[first], 1e-30)
    sensitivity = jnp.interp(grid, fpr, tpr)
    return jnp.where(both, jnp.stack([sensitivity, precision]), jnp.nan)


def choose(
    predictions: Predictions, *, rule: str = "youden", value: float | None = None
) -> np.ndarray:
    """The threshold of each task; positive is score >= threshold.

    An observed score, or just above the highest one where no image may be called
    positive. Of points that are equally good by the rule it is the one with the larger
    sensitivity + specificity, and of these the lowest: a missed finding costs more than
    a second look.

    Args:
      predictions: of the validation split.
      rule, value: 'youden', the largest sensitivity + specificity, without a value;
        'sensitivity' of at least the value in (0, 1], with the largest specificity;
        'specificity', the other way round; 'cost', the least expected cost at the
        prevalence of the validation split, one false negative being as bad as so many
        false positives, > 0.

    Returns:
      [T] float32 in the unit of the score; NaN where a class is missing.

    Raises:
      InputError: an unknown rule, or a value out of its range.

    Source: Youden, Cancer 3 (1950) 32; costs: Metz, Semin. Nucl. Med. 8 (1978) 283;
    Zweig & Campbell, Clin. Chem. 39 (1993) 561.
    """
    check_rule(rule, value)
    tasks = zip(*(x.T for x in predictions[2:5]), strict=True)
    return np.array([_point(*task, rule, value) for task in tasks], np.float32)


def check_rule(rule: str, value: float | None) -> None:
    """Raises InputError unless the rule is known and its value in range."""
    check_choice("evaluation.rule", rule, RULES)
    if rule == "youden":
        return
    if value is None:
        raise InputError(f"evaluation.rule={rule!r}: needs a value")
    if not 0 < value < (np.inf if rule == "cost" else 1 + TIE):
        bound = "above 0" if rule == "cost" else "in (0, 1]"
        raise InputError(f"evaluation.value={value}: of {rule!r} it is {bound}")


def describe(rule: str, value: float | None) -> str:
    """The rule as a report says it."""
    if rule == "youden":
        return "Youden's index"
    if rule == "cost":
        return f"a false negative costs {value:g} times a false positive"
    return f"{rule} of {value:g} or more"


def operating(predictions: Predictions) -> dict[str, np.ndarray]:
    """{as `name` says it: the thresholds [T]} of OPERATING_POINTS, see `choose`."""
    return {
        name(rule, value): choose(predictions, rule=rule, value=value)
        for rule, value in OPERATING_POINTS
    }


def name(rule: str, value: float) -> str:
    """An operating point's name in files: 'specificity 0.9'."""
    return f"{rule} {value:g}"


def _point(score, label, weight, rule: str, value: float | None) -> np.float32:
    """The threshold of one task."""
    tp, fp, thresholds = positive_counts(score, label, weight)
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

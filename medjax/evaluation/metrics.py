"""The table of all metrics, and the rates of confusion matrices.

Every function of scores here reads one task as vectors over images, [N]: score (a
probability or logit), label in [0, 1] and weight >= 0, where 2 counts an image twice; the
caller maps it over tasks. Three conventions hold in all of them, and in areas.py:

- A row of weight 0 (unknown label, padding) counts for nothing; its score and its
  label may be anything, NaN included.
- A soft label y counts as y of a positive and 1 - y of a negative.
- NaN means undefined: a ratio without a denominator, or a NaN score or label with
  a weight, which would otherwise pass for a low score.

Counts are sums of float32 weights: exact for whole weights up to 2^24 images.

Three averages over tasks say different things:

macro: every task counts alike, a rare finding as much as a common one.
weighted: a task counts by its positives, so that common findings decide.
micro: every label of every image counts alike, as if all were of one task. It also
  depends on whether a score means the same in all tasks: a model that knows nothing but
  the prevalences ranks the labels of common findings first, and scores high.

Source: scikit-learn's `average=` of roc_auc_score, average_precision_score and f1_score.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


class Confusion(NamedTuple):
    """Weighted counts of true and false positives and negatives, [] or [...]."""

    tp: Array
    fp: Array
    fn: Array
    tn: Array


def confusion_shares(
    score: Array, label: Array, weight: Array, threshold: Array
) -> Confusion:
    """Each image's share in the confusion matrix: four vectors [N].

    Positive is score >= threshold. A threshold of NaN (there is none) makes every cell
    NaN, because it would otherwise call every image negative.
    """
    score, positive, negative = known(score, label, weight)
    called = jnp.where(jnp.isnan(threshold), jnp.nan, score >= threshold)
    return Confusion(
        tp=positive * called,
        fp=negative * called,
        fn=positive * (1.0 - called),
        tn=negative * (1.0 - called),
    )


def confusion(score: Array, label: Array, weight: Array, threshold: Array) -> Confusion:
    """Counts the confusion matrix at one threshold, see `confusion_shares`."""
    return jax.tree.map(jnp.sum, confusion_shares(score, label, weight, threshold))


def rates(confusion: Confusion) -> dict[str, Array]:
    """Every rate of METRICS, each of the shape of the confusion matrix's cells.

    All are in [0, 1] but the likelihood ratios, by which a call multiplies the odds
    of the finding: lr_positive >= 1 and lr_negative <= 1 in a useful model.

    Source: Altman & Bland, BMJ 308 (1994) 1552 and 309 (1994) 102; likelihood ratios:
    Deeks & Altman, BMJ 329 (2004) 168; F1: van Rijsbergen, Information Retrieval
    (1979), the harmonic mean of PPV and sensitivity.
    """
    return {
        name: ratio(*metric.rate(confusion))
        for name, metric in METRICS.items()
        if metric.rate
    }


def predictive_values(
    sensitivity: Array, specificity: Array, prevalence: Array
) -> tuple[Array, Array]:
    """PPV and NPV in a population with another prevalence.

    Sensitivity and specificity hold in another population, predictive values don't:
    those of a hospital's test split say little about a screening. All arguments are
    in [0, 1], of one shape; NaN where nothing is called positive, or negative.

    Source: Bayes' theorem; Altman & Bland, BMJ 309 (1994) 102.
    """
    hit, miss = sensitivity * prevalence, (1 - sensitivity) * prevalence
    alarm, clear = (1 - specificity) * (1 - prevalence), specificity * (1 - prevalence)
    return ratio(hit, hit + alarm), ratio(clear, clear + miss)


def known(score: Array, label: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Score, weight as positive, weight as negative; 0 where unknown."""
    chex.assert_rank([score, label, weight], 1)
    chex.assert_equal_shape([score, label, weight])
    weight = jnp.asarray(weight, jnp.float32)
    known = weight > 0
    score = jnp.where(known, jnp.asarray(score, jnp.float32), -jnp.inf)
    label = jnp.where(known, jnp.asarray(label, jnp.float32), 0.0)
    weight = jnp.where(jnp.isnan(score), jnp.nan, weight)
    return score, weight * label, weight * (1.0 - label)


def ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, and NaN where there is nothing to divide by."""
    empty = denominator == 0
    return jnp.where(empty, jnp.nan, numerator / jnp.where(empty, 1.0, denominator))


def macro(value: Array, defined: Array) -> Array:
    """[...], the mean of [..., T] over the tasks that are defined; NaN without one."""
    return jnp.mean(value, axis=-1, where=defined)


def micro(matrix: Confusion, defined: Array) -> Confusion:
    """The confusion matrix of all tasks together: cells [..., T] -> [...]."""
    return jax.tree.map(lambda cell: cell.sum(axis=-1, where=defined), matrix)


def class_cells(probability: Array, label: Array, weight: Array) -> Array:
    """Each image's place in the classes' confusion matrix, [N, true, predicted].

    Args:
      probability: [N, K]; the likeliest class is predicted, the first of tied ones.
      label: [N, K] one-hot, or shares of classes that sum to 1.
      weight: [N, K]; an image counts as its largest one, 0 where it is unknown.
    """
    predicted = jax.nn.one_hot(jnp.argmax(probability, axis=1), probability.shape[1])
    known = jnp.max(weight, axis=1)
    true = jnp.where(known[:, None] > 0, label, 0.0) * known[:, None]
    return true[:, :, None] * predicted[:, None, :]


def class_rates(matrix: Array, present: Array | None = None) -> dict[str, Array]:
    """The rates of classes' confusion matrices [..., K, K], [...] each.

    accuracy is the share of images called right. balanced_accuracy is the mean
    sensitivity and macro_f1 the mean F1, over the classes that are `present`; weighted_f1
    weights F1 by prevalence. kappa is the agreement beyond that of two independent
    readers with these margins; NaN where these must agree. weighted_kappa, of classes in
    the order of grades, counts a disagreement by the square of its distance.

    Args:
      matrix: row true, column predicted.
      present: [K], the classes that the means are over; a mean is NaN where one of
        them has no image. None: the classes that have an image.

    Source: Cohen, Educ. Psychol. Meas. 20 (1960) 37, and Psychol. Bull. 70 (1968) 213;
    scikit-learn's names, but its macro F1 counts a class that is never true as 0.
    """
    total = matrix.sum((-2, -1))
    right = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    true, predicted = matrix.sum(-1), matrix.sum(-2)
    seen = true > 0
    present = seen if present is None else present

    def mean(values):
        return jnp.mean(jnp.where(seen, values, jnp.nan), axis=-1, where=present)

    f1 = 2 * right / jnp.where(seen, true + predicted, 1)
    # Margins are divided before they are multiplied: a product passes 2^24.
    prevalence = true / total[..., None]
    share = jnp.sum(right, -1) / total
    called = predicted / total[..., None]
    chance = jnp.sum(prevalence * called, -1)
    grade = jnp.arange(matrix.shape[-1])
    distance = jnp.square(grade[:, None] - grade)
    apart = jnp.sum(distance * matrix, (-2, -1)) / total
    together = prevalence[..., :, None] * called[..., None, :]
    by_chance = jnp.sum(distance * together, (-2, -1))
    return {
        "accuracy": share,
        "balanced_accuracy": mean(right / jnp.where(seen, true, 1)),
        "macro_f1": mean(f1),
        "weighted_f1": jnp.sum(prevalence * f1, -1),
        "kappa": jnp.where(chance < 1, (share - chance) / (1 - chance), jnp.nan),
        "weighted_kappa": 1 - ratio(apart, by_chance),
    }


# Kinds of images, and the reason why a metric that divides by their number is undefined
# where there is none.
DIVISORS = {
    "known": "no known label",
    "positive": "no positive image",
    "negative": "no negative image",
    "called": "none called positive",
    "passed": "none called negative",
    "positive or called": "none positive or called so",
    "false positive": "no false positive",
    "true negative": "no true negative",
    "two classes": "all are of one class, and called so",
}


class Metric(NamedTuple):
    """A row of the table of metrics: to add a rate, add a row."""

    label: str  # The name on pages.
    # What it is computed from: 'ranking', 'confusion', 'classes', 'probabilities', or
    # pairs of 'predictions' or 'heatmaps'.
    kind: str
    divisors: tuple[str, ...] = ("known",)  # DIVISORS without which it is undefined.
    # The DIVISORS of images whose patients an interval needs, the fewest deciding.
    counted: tuple[str, ...] = ("known",)
    # Of a Confusion, numerator and denominator; None: it has its own function.
    rate: Callable[[Confusion], tuple[Array, Array]] | None = None
    share: bool = False  # Whether, as of a proportion, its interval at 0 or 1 is exact.
    better: int = 1  # 1 where higher is better, -1 where lower is, 0 where neither is.


def _proportion(label: str, images: str, rate: Callable, better: int = 1) -> Metric:
    return Metric(label, "confusion", (images,), (images,), rate, True, better)


BOTH = ("positive", "negative")
METRICS = {
    "auroc": Metric("AUROC", "ranking", BOTH, BOTH),
    "partial_auroc": Metric("Partial AUROC", "ranking", BOTH, BOTH),
    "average_precision": Metric("Average precision", "ranking", BOTH, BOTH),
    "sensitivity": _proportion(
        "Sensitivity", "positive", lambda m: (m.tp, m.tp + m.fn)
    ),
    "specificity": _proportion(
        "Specificity", "negative", lambda m: (m.tn, m.tn + m.fp)
    ),
    "ppv": _proportion("PPV", "called", lambda m: (m.tp, m.tp + m.fp)),
    "npv": _proportion("NPV", "passed", lambda m: (m.tn, m.tn + m.fn)),
    "accuracy": _proportion("Accuracy", "known", lambda m: (m.tp + m.tn, sum(m))),
    "f1": Metric(
        "F1",
        "confusion",
        ("positive or called",),
        ("positive or called",),
        lambda m: (2 * m.tp, 2 * m.tp + m.fp + m.fn),
    ),
    "prevalence": _proportion(
        "Prevalence", "known", lambda m: (m.tp + m.fn, sum(m)), 0
    ),
    "lr_positive": Metric(
        "LR+",
        "confusion",
        (*BOTH, "false positive"),
        BOTH,
        lambda m: (ratio(m.tp, m.tp + m.fn), ratio(m.fp, m.fp + m.tn)),
    ),
    "lr_negative": Metric(
        "LR\N{MINUS SIGN}",
        "confusion",
        (*BOTH, "true negative"),
        BOTH,
        lambda m: (ratio(m.fn, m.tp + m.fn), ratio(m.tn, m.fp + m.tn)),
        better=-1,
    ),
    # The predictive values at another prevalence than that of the data.
    "ppv_at": Metric("PPV", "confusion", (*BOTH, "called"), BOTH),
    "npv_at": Metric("NPV", "confusion", (*BOTH, "passed"), BOTH),
    "balanced_accuracy": Metric("Balanced accuracy", "classes"),
    "macro_f1": Metric("Macro F1", "classes"),
    "weighted_f1": Metric("Weighted F1", "classes"),
    "kappa": Metric("Cohen's kappa", "classes", ("known", "two classes")),
    "weighted_kappa": Metric(
        "Quadratic-weighted kappa", "classes", ("known", "two classes")
    ),
    "brier": Metric("Brier score", "probabilities", better=-1),
    "calibration_error": Metric("Calibration error", "probabilities", better=-1),
    "calibration_slope": Metric(
        "Calibration slope", "probabilities", BOTH, BOTH, better=0
    ),
    "calibration_intercept": Metric(
        "Calibration intercept", "probabilities", BOTH, BOTH, better=0
    ),
    "calibration_in_the_large": Metric(
        "Calibration-in-the-large", "probabilities", BOTH, BOTH, better=0
    ),
    "predicted": Metric("Mean probability", "probabilities", better=0),
    "agreement": Metric("Calls that stay", "predictions", share=True),
    "pointing": Metric("Pointing game", "heatmaps", share=True),
    "iou": Metric("IoU", "heatmaps"),
}


def why(name: str, images: Mapping[str, float], *, threshold: bool = True) -> str:
    """Why a metric of one task is undefined; '' if it isn't.

    Args:
      name: of METRICS.
      images: how many there are of each of the DIVISORS; what lacks isn't asked
      for.
      threshold: whether the task has one.
    """
    metric = METRICS[name]
    if not images["known"]:
        return DIVISORS["known"]
    if metric.kind == "confusion" and not threshold:
        return "no threshold"
    return next((DIVISORS[kind] for kind in metric.divisors if not images[kind]), "")

"""Where to cut: operating points, chosen on validation and nowhere else.

A threshold that is chosen on the images it is judged on flatters every rate. So
`choose` asks which split its predictions are of, and takes one answer only; what it
returns is frozen in the run's folder before the test split is predicted.
"""

import numpy as np

from medjax.errors import InputError
from medjax.evaluation import curves
from medjax.evaluation.inference import Predictions

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
    tp, fp, thresholds = curves.counts(score, label, weight)
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

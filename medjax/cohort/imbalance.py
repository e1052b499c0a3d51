"""How much each class of each task counts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.errors import InputError


class ClassWeights(NamedTuple):
    """Weights of the two classes of each task, [T] float32 each."""

    w_pos: np.ndarray
    w_neg: np.ndarray


def frequencies(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the known labels of each task.

    Args:
      label: [N, T] float in [0, 1]; NaN is unknown and not counted. A soft label
        counts as that share of a positive.

    Returns:
      positives, negatives: [T] float64.
    """
    known = ~np.isnan(label)
    positives = np.where(known, label, 0).sum(axis=0, dtype=np.float64)
    return positives, known.sum(axis=0) - positives


def class_weights(
    label: np.ndarray, *, tasks: Sequence[str], scheme: str = "ratio"
) -> ClassWeights:
    """Turns the training labels into loss weights.

    Args:
      label: [N, T] float in [0, 1], NaN = unknown, of the training split alone.
      tasks: T names, for the errors.
      scheme: 'ratio': w_pos = negatives / total and w_neg = positives / total, so
        that both classes contribute equally; 'balanced': total / (2 count), the
        same balance with a mean weight of 1 an image; 'uniform': 1 and 1.

    Raises:
      InputError: an unknown scheme, or a task without a positive or without a
        negative: no weight can balance it.
    """
    positives, negatives = frequencies(label)
    total = positives + negatives
    if scheme == "uniform":
        w_pos = w_neg = np.ones_like(total)
    elif scheme in ("ratio", "balanced"):
        for count, what in ((positives, "positive"), (negatives, "negative")):
            missing = [task for task, n in zip(tasks, count, strict=True) if n == 0]
            if missing:
                raise InputError(
                    f"no {what} training film for {', '.join(missing)}: leave the "
                    "task out with data.tasks, or set loss.weights='uniform'"
                )
        if scheme == "ratio":
            w_pos, w_neg = negatives / total, positives / total
        else:
            w_pos, w_neg = total / (2 * positives), total / (2 * negatives)
    else:
        raise InputError(
            f"loss.weights={scheme!r} is unknown: use 'ratio', 'balanced' or 'uniform'"
        )
    return ClassWeights(w_pos.astype(np.float32), w_neg.astype(np.float32))

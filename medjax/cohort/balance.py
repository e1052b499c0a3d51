"""How much each class counts: in the loss, in an epoch, or by synthetic points.

Weights for the loss are here; which films an epoch shows is `resampling`, points
between the embeddings of a minority are `synthetic`, and all have their names here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.cohort.resample import (
    Plan,
    both,
    known,
    over_sample,
    repeat_factor,
    under_sample,
)
from medjax.cohort.synthetic import Synthetic, adasyn, nearest, points, smote
from medjax.errors import InputError

__all__ = [
    "ClassWeights",
    "Plan",
    "Synthetic",
    "adasyn",
    "both",
    "class_weights",
    "frequencies",
    "known",
    "multiclass_weights",
    "nearest",
    "over_sample",
    "points",
    "repeat_factor",
    "smote",
    "under_sample",
]

SCHEMES = ("ratio", "balanced", "uniform", "effective")
REMEDY = "leave the task out with data.tasks, or set resampling.drop=True"


class ClassWeights(NamedTuple):
    """Weights of the two classes of each task, [T] float32 each."""

    w_pos: np.ndarray
    w_neg: np.ndarray


def frequencies(label, weight=None) -> tuple[np.ndarray, np.ndarray]:
    """Counts the known labels of each task.

    Args:
      label: [N, T] float in [0, 1]; NaN is unknown and not counted. A soft label
        counts as that share of a positive.
      weight: [N, T] or None, >= 0: how much a label counts, as in the losses; 0 is
        unknown, None counts each once.

    Returns:
      positives, negatives: [T] float64.
    """
    there, label = known(label, weight), np.asarray(label, np.float64)
    weight = np.where(there, 1.0 if weight is None else weight, 0.0)
    label = np.where(there, label, 0)
    return np.sum(weight * label, axis=0), np.sum(weight * (1 - label), axis=0)


def class_weights(
    label,
    weight=None,
    *,
    scheme: str = "ratio",
    tasks: Sequence[str] | None = None,
    drop: bool = False,
    beta: float = 0.999,
) -> ClassWeights:
    """Turns the training labels into loss weights, for each task on its own.

    Args:
      label: [N, T] float in [0, 1], NaN = unknown, of the training split alone.
      weight: [N, T] or None, see `frequencies`.
      scheme: 'ratio': w_pos = negatives / total and w_neg = positives / total, so
        that both classes contribute equally; 'balanced': total / (2 count), the
        same balance with a mean weight of 1 an image; 'uniform': 1 and 1;
        'effective': 1 / effective number, (1 - beta) / (1 - beta^count), the two
        scaled to a sum of 2.
      tasks: T names for the errors; None numbers them.
      drop: gives the two weights of a task that has one class alone the value 0,
        so that it counts for nothing, in place of the error.
      beta: of 'effective', in (0, 1): further films of a class add little after
        1 / (1 - beta) of them. Near 0 this is 'uniform', near 1 'balanced'.

    Raises:
      InputError: an unknown scheme, no task left, or, except for 'uniform', which
        balances nothing, a task without a positive or without a negative.

    Source: 'effective': Cui, Jia, Lin, Song, Belongie, CVPR 2019, proposition 1.
    """
    counts = np.stack(frequencies(label, weight), axis=-1)  # [T, 2]
    names = range(len(counts)) if tasks is None else tasks
    for column, what in enumerate(("positive", "negative")):
        missing = [n for n, c in zip(names, counts[:, column], strict=True) if c == 0]
        _refuse(missing, f"no {what} training film for", scheme, drop)
    if drop:
        counts[(counts == 0).any(axis=1)] = 0
    weights = _weights(counts, scheme, beta)
    return ClassWeights(*weights.T.astype(np.float32))


def multiclass_weights(
    label,
    weight=None,
    *,
    scheme: str,
    classes: Sequence[str] | None = None,
    drop: bool = False,
    beta: float = 0.999,
) -> np.ndarray:
    """Turns one-hot training labels into a loss weight for each class.

    Args:
      label: [N, K] float; each known row sums to 1.
      weight: [N, K] or None, see `frequencies`; a row is known or not as a whole.
      scheme: of n films of a class and `total` in all, 'ratio': (total - n) / total;
        'balanced': total / (K n); 'uniform': 1; 'effective': as in `class_weights`,
        scaled to a sum of K.
      classes: K names for the errors; None numbers them.
      drop: gives a class that no image has the weight 0, in place of the error; K
        is then the number of the others.
      beta: as in `class_weights`.

    Returns:
      [K] float32.
    """
    there, label = known(label, weight), np.asarray(label, np.float64)
    rows = np.where(there, label, 0).sum(axis=1)
    whole = there.all(axis=1) & np.isclose(rows, 1)
    if wrong := np.sum(there.any(axis=1) & ~whole):
        raise InputError(
            f"label: {wrong} films have not exactly one class; give one-hot labels, "
            "or weigh the tasks on their own"
        )
    counts, _ = frequencies(label, weight)
    names = range(len(counts)) if classes is None else classes
    missing = [name for name, n in zip(names, counts, strict=True) if n == 0]
    _refuse(missing, "no training film of class", scheme, drop)
    present = counts > 0
    weights = _weights(counts[None, present | (not drop)], scheme, beta)
    out = np.zeros(len(counts), np.float32)
    out[present | (not drop)] = weights[0]
    return out


def _refuse(missing, what, scheme, drop):
    if scheme not in SCHEMES:
        options = ", ".join(map(repr, SCHEMES))
        raise InputError(f"imbalance={scheme!r} is no class weight: use {options}")
    if missing and scheme != "uniform" and not drop:
        raise InputError(f"{what} {', '.join(map(str, missing))}: {REMEDY}")


def _weights(counts, scheme, beta):
    """Weights of K classes that share an image's label, [..., K]; 0 where all are 0."""
    if not 0 < beta < 1:
        raise InputError(f"beta: {beta!r} is not between 0 and 1; give 0.999")
    total = counts.sum(axis=-1, keepdims=True)
    if not total.any():
        raise InputError("label: no task has two classes; give more training films")
    counted = np.where(total > 0, counts, 1)  # A dropped task's weights become 0.
    if scheme == "uniform":
        weights = np.ones_like(counts)
    elif scheme == "ratio":
        weights = (total - counted) / np.where(total > 0, total, 1)
    elif scheme == "balanced":
        weights = total / (counts.shape[-1] * counted)
    else:  # 1 - beta^n by expm1: exact for a beta close to 1.
        weights = 1 / -np.expm1(counted * math.log(beta))
        weights *= counts.shape[-1] / weights.sum(axis=-1, keepdims=True)
    return np.where(total > 0, weights, 0)

"""Class weights for the loss, and over- and under-sampling of an epoch's images.

Both are computed from `label` alone, [N, T] in [0, 1], of the training images (films
or volumes): positive from 0.5 on, NaN where unknown.

A task's rarer class is the one with fewer known images before sampling. Its share
is its images over the known ones, and `target` is the lowest share wanted, in (0, 0.5],
one for all tasks or [T]. One-hot labels of K classes are K tasks, each class against
the rest: a target of 1 / K makes the classes equally frequent. `any_positive` samples
for a single task instead, 'any finding is present', which is unknown where no label is
positive and one is unknown. `most`, >= 1, is how often an image may appear.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.cohort import stratify
from medjax.errors import InputError

BETA = 0.999  # Of 'effective': beyond 1 / (1 - beta) images of a class add little.
# A task gets its copies in this many portions, so that no task gets far ahead of the
# others, and a hundred thousand copies still take a few hundred steps.
PORTIONS = 16


class ClassWeights(NamedTuple):
    """Weights of the two classes of each task, [T] float32 each."""

    w_pos: np.ndarray
    w_neg: np.ndarray


def frequencies(label) -> tuple[np.ndarray, np.ndarray]:
    """Counts positives and negatives, [T] float64 each.

    A soft label counts as that share of a positive, an unknown one not at all.
    """
    label = np.asarray(label, np.float64)
    return np.nansum(label, axis=0), np.nansum(1 - label, axis=0)


def class_weights(
    label,
    *,
    scheme: str = "ratio",
    tasks: Sequence[str] | None = None,
    drop: bool = False,
) -> ClassWeights:
    """Loss weights for the two classes of each task.

    Args:
      scheme: 'ratio': w_pos = negatives / total and w_neg = positives / total, so
        that both classes contribute equally; 'balanced': total / (2 count), the
        same balance with a mean weight of 1 per image; 'uniform': 1 and 1;
        'effective': 1 / effective number, (1 - BETA) / (1 - BETA^count), the two
        scaled to a sum of 2.
      tasks: T names for the errors; None: their numbers.
      drop: gives a task with one class alone two weights of 0, instead of the error
        that all schemes but 'uniform' raise.

    Source: 'effective': Cui, Jia, Lin, Song, Belongie, CVPR 2019, proposition 1.
    """
    counts = np.stack(frequencies(label), axis=-1)  # [T, 2]
    if drop:
        counts[(counts == 0).any(axis=1)] = 0
    elif scheme != "uniform":
        for column, what in enumerate(("positive", "negative")):
            _refuse(counts[:, column] == 0, tasks, f"no {what} training image for")
    return ClassWeights(*_weights(counts, scheme).T.astype(np.float32))


def multiclass_weights(
    label, *, scheme: str, classes: Sequence[str] | None = None, drop: bool = False
) -> np.ndarray:
    """Loss weights for classes that exclude each other, [K] float32.

    Args:
      label: [N, K]; a row sums to 1, or is NaN as a whole.
      scheme: of n images of a class and `total` in all, 'ratio': (total - n) / total;
        'balanced': total / (K n); 'uniform': 1; 'effective': as in `class_weights`,
        scaled to a sum of K.
      classes: K names for the errors; None: their numbers.
      drop: gives a class without images the weight 0, instead of the error; K is
        then the number of the other classes.
    """
    counts, _ = frequencies(label)
    if not drop and scheme != "uniform":
        _refuse(counts == 0, classes, "no training image of class")
    kept = (counts > 0) | (not drop)
    weights = np.zeros(len(counts), np.float32)
    weights[kept] = _weights(counts[None, kept], scheme)[0]
    return weights


def _refuse(empty, names, what):
    """Raises for tasks or classes without images, [T] bool."""
    names = range(len(empty)) if names is None else names
    if missing := [str(name) for name, e in zip(names, empty, strict=True) if e]:
        raise InputError(
            f"{what} {', '.join(missing)}: leave the task out with data.tasks, or set "
            "resampling.drop=True"
        )


def _weights(counts, scheme):
    """Weights of K classes that share an image's label, [..., K]; 0 where all are 0."""
    total = counts.sum(axis=-1, keepdims=True)
    if not total.any():
        raise InputError("label: no task has two classes; give more training images")
    counted = np.where(total > 0, counts, 1)  # A dropped task's weights become 0.
    if scheme == "uniform":
        weights = np.ones_like(counts)
    elif scheme == "ratio":
        weights = (total - counted) / np.where(total > 0, total, 1)
    elif scheme == "balanced":
        weights = total / (counts.shape[-1] * counted)
    else:  # 1 - beta^n by expm1: exact for a BETA close to 1.
        weights = 1 / -np.expm1(counted * math.log(BETA))
        weights *= counts.shape[-1] / weights.sum(axis=-1, keepdims=True)
    return np.where(total > 0, weights, 0)


class Epoch(NamedTuple):
    """How often an epoch shows each training image."""

    copies: np.ndarray  # [N] int64; 0 where the image is left out.
    # [T] bool, the tasks whose target was out of reach; [1] for `any_positive`.
    missed: np.ndarray

    @property
    def index(self) -> np.ndarray:
        """[M] int64, the images' numbers, ascending: one for each copy.

        The loader shuffles them in each epoch.
        """
        return np.repeat(np.arange(len(self.copies)), self.copies)

    def describe(self, tasks: Sequence[str], label) -> str:
        """One line about how sampling changes the images: T names, [N, T] labels."""
        known, positive, copies = ~np.isnan(label), label >= 0.5, self.copies
        changes = [
            f"{task} {_share(p, k):.4f} -> {_share(p * copies, k * copies):.4f}"
            for task, p, k in zip(tasks, positive.T, known.T, strict=True)
        ]
        names = tasks if len(self.missed) == len(tasks) else ["any finding"]
        missed = [name for name, m in zip(names, self.missed, strict=True) if m]
        return (
            f"{len(copies)} -> {copies.sum()} images, {np.sum(copies == 0)} left out, "
            f"the most repeated image appears {copies.max()} times; prevalence "
            + ", ".join(changes)
            + (f"; target out of reach for {', '.join(missed)}" if missed else "")
        )


def over_sample(label, *, seed, target=0.5, any_positive=False, most=10) -> Epoch:
    """Repeats images of the rarer classes; every image stays.

    The task furthest below its target (the smallest share / target) gets copies of its
    rarer-class images, the least repeated first and ties by the seed, until every task
    reaches its target or its images all appear `most` times. A copy counts for every
    task of the image: if T findings hardly occur together, not all can exceed 1 / T.
    """
    tasks, copies = _tasks(label, seed, target, any_positive)
    _add(copies, tasks, tasks.target, most)
    return Epoch(copies, tasks.missed(copies))


def under_sample(label, *, seed, target=0.5, any_positive=False) -> Epoch:
    """Leaves out random images that are not in any task's rarer class.

    Stops when every target is reached, or when no such image is left that helps. All
    images of a rarer class stay, so with many tasks a target may be out of reach.
    """
    tasks, copies = _tasks(label, seed, target, any_positive)
    _remove(copies, tasks)
    return Epoch(copies, tasks.missed(copies))


def both(label, *, seed, target=0.5, any_positive=False, most=10) -> Epoch:
    """Over-samples half of the way to the target, then under-samples the rest.

    Half-way is the geometric mean of share and target: from 0.01 to 0.25 it is 0.05.
    """
    tasks, copies = _tasks(label, seed, target, any_positive)
    count, total = tasks.counts(copies)
    half = np.sqrt(count / np.maximum(total, 1) * tasks.target)
    _add(copies, tasks, np.minimum(half, tasks.target), most)
    _remove(copies, tasks)
    return Epoch(copies, tasks.missed(copies))


def repeat_factor(label, *, seed, target) -> Epoch:
    """Repeats an image sqrt(target / prevalence) times for its rarest finding.

    A finding's factor is max(1, sqrt(t / f)), f its prevalence among the known
    labels. An image's factor is the largest of its findings', 1 if it has none. The
    fractional part is the probability of one more copy, drawn by the seed. The target
    t isn't a share to be reached, so no task counts as missed.

    Source: Gupta, Dollar, Girshick, LVIS, CVPR 2019, repeat factor sampling.
    """
    known, positive = ~np.isnan(label), label >= 0.5
    prevalence = positive.sum(0) / np.maximum(known.sum(0), 1)
    target = _target(target, known.shape[1])
    # A finding without positives has a huge factor, which no image takes.
    factor = np.sqrt(target / np.maximum(prevalence, 1e-12))
    factor = np.where(positive, np.maximum(factor, 1), 1).max(axis=1, initial=1)
    chance = stratify.generator(seed).random(len(factor))
    copies = np.floor(factor + chance).astype(np.int64)
    return Epoch(copies, np.zeros(known.shape[1], bool))


class _Tasks(NamedTuple):
    """What sampling is computed from."""

    rng: np.random.Generator  # Draws the order of the images.
    rarer: np.ndarray  # [N, T] bool, images of the task's rarer class.
    known: np.ndarray  # [N, T] bool, images whose label is known.
    target: np.ndarray  # [T]

    def counts(self, copies):
        """Images of the rarer class and known images, [T] float64 each."""
        return copies @ self.rarer.astype(float), copies @ self.known.astype(float)

    def missed(self, copies):
        """Which tasks are below their target, [T] bool."""
        return _below(*self.counts(copies), self.target)


def _tasks(label, seed, target, any_positive):
    """The Tasks, and one copy of each image, [N] int64."""
    known, positive = ~np.isnan(label), label >= 0.5
    if any_positive:
        present = positive.any(axis=1, keepdims=True)
        known, positive = present | known.all(axis=1, keepdims=True), present
    few = 2 * positive.sum(0) <= known.sum(0)
    rarer, rng = known & (positive == few), stratify.generator(seed)
    tasks = _Tasks(rng, rarer, known, _target(target, known.shape[1]))
    return tasks, np.ones(len(known), np.int64)


def _target(target, tasks):
    """The target of each task, [T]."""
    target = np.asarray(target, float)
    if target.shape not in ((), (tasks,)):
        raise InputError(f"target: shape {target.shape}; give one share or {tasks}")
    if not ((target > 0) & (target <= 0.5)).all():
        raise InputError(f"target: {target.tolist()} is not in (0, 0.5]; give a share")
    return np.broadcast_to(target, tasks)


def _share(part, whole):
    return part.sum() / whole.sum() if whole.any() else np.nan


def _below(count, total, target):
    """Which tasks are below their target, or have one class or no known label."""
    return (count == 0) | (count < target * total - 1e-9 * total)  # Rounding: 1e-9.


def _add(copies, tasks, target, most):
    """Adds copies to [N] in place; every step adds one or closes a task."""
    order = tasks.rng.permutation(len(copies))
    images = [order[mine[order]] for mine in tasks.rarer.T]
    count, total = tasks.counts(copies)
    room = (count > 0) & (most > 1)  # [T]: some image may have another copy.
    while (short := np.flatnonzero(room & _below(count, total, target))).size:
        ratio = count[short] / total[short] / target[short]
        task = short[np.argmin(ratio)]
        so_far = copies[images[task]]
        least = so_far.min()
        if least >= most:
            room[task] = False
            continue
        lacking = target[task] * total[task] - count[task]
        step = int(np.ceil(lacking / (1 - target[task]) / PORTIONS - 1e-9))
        chosen = images[task][so_far == least][: max(step, 1)]
        copies[chosen] += 1
        count += tasks.rarer[chosen].sum(0)
        total += tasks.known[chosen].sum(0)


def _remove(copies, tasks):
    """Sets images without a rarer class to 0 copies in place."""
    order = tasks.rng.permutation(len(copies))
    order = order[~tasks.rarer[order].any(axis=1)]
    for task, target in enumerate(tasks.target):
        count, total = tasks.counts(copies)
        if count[task]:  # Otherwise no image of the task would be left.
            surplus = int(np.ceil(total[task] - count[task] / target - 1e-9))
            helpful = order[tasks.known[order, task] & (copies[order] > 0)]
            copies[helpful[: max(surplus, 0)]] = 0

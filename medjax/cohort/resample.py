"""Which training films an epoch shows, and how often: over- and under-sampling.

A plan lists positions among the N films it was given, the training films. It knows
no other film and no patient, so it can't move anybody to another split.

A task's label is positive from 0.5 on, and unknown, thus not counted, where it is
NaN or where its weight is 0. The rarer class of a task is the one with fewer known
films before resampling; its share is its films over the known ones, and `target`
is the least share it shall have. One-hot labels of K classes are K tasks, each class
against the rest: a target of 1 / K makes the classes equally frequent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.cohort import stratify
from medjax.errors import InputError

# A task gets its copies in this many pieces, so that no task runs ahead of the
# others and a hundred thousand copies are yet a few hundred steps.
PIECES = 16


class Plan(NamedTuple):
    """The films of one epoch.

    index: [M] int64, positions among the N films, ascending; a film appears once
      for each copy. The loader shuffles anew in each epoch.
    films: N.
    missed: [T] bool, the tasks whose target was out of reach; [1] where any finding
      was the one task.
    """

    index: np.ndarray
    films: int
    missed: np.ndarray

    @property
    def copies(self) -> np.ndarray:
        """How often each film appears, [N] int64; 0 where it is left out."""
        return np.bincount(self.index, minlength=self.films)

    @property
    def most(self) -> int:
        """How often the most repeated film appears."""
        return int(self.copies.max())

    def describe(self, tasks: Sequence[str], label, weight=None) -> str:
        """Says in one line what the plan does to the films it was made for.

        Args:
          tasks: T names.
          label, weight: [N, T], as the plan was made from.
        """
        there, copies = known(label, weight), self.copies
        positive = there & (np.asarray(label, float) >= 0.5)
        changes = [
            f"{task} {_share(p, k):.4f} -> {_share(p * copies, k * copies):.4f}"
            for task, p, k in zip(tasks, positive.T, there.T, strict=True)
        ]
        names = tasks if len(self.missed) == len(tasks) else ["any finding"]
        missed = [name for name, m in zip(names, self.missed, strict=True) if m]
        return (
            f"{self.films} -> {len(self.index)} films, {np.sum(copies == 0)} left out, "
            f"the most repeated film appears {self.most} times; prevalence "
            + ", ".join(changes)
            + (f"; target out of reach for {', '.join(missed)}" if missed else "")
        )


def over_sample(
    label, weight=None, *, seed, target=0.5, any_positive=False, most=10
) -> Plan:
    """Repeats films of the rarer classes, and leaves no film out.

    Again and again the task furthest below its target (the least share / target)
    gets copies of its rarer-class films, the least repeated first and ties by the
    seed, until every task is there or its films all appear `most` times. A copy
    counts for every task of the film, so one task's copies may help another, or
    set it back: of T findings that hardly meet in a film, not all can have more than
    1 / T. Asking for more brings each finding's films to `most`, and leaves the
    rarest finding less than a lower target would.

    Args:
      label: [N, T] float in [0, 1], NaN = unknown, of the training films alone.
      weight: [N, T] or None, >= 0; 0 where the label is unknown.
      seed: an integer >= 0.
      target: in (0, 0.5], one for all or [T].
      any_positive: resample for one task instead, 'any finding is present'; it is
        unknown where no label is positive and one is unknown.
      most: how often a film may appear, >= 1: the more, the sooner the network
        knows it by heart.
    """
    rng, rarer, there = _tasks(label, weight, seed, any_positive)
    target = _target(target, rarer.shape[1])
    copies = np.ones(len(rarer), np.int64)
    _add(copies, rarer, there, target, most, rng)
    return _plan(copies, rarer, there, target)


def under_sample(label, weight=None, *, seed, target=0.5, any_positive=False) -> Plan:
    """Leaves out films that are of no task's rarer class, at random.

    It stops as soon as every target is reached, or when no such film is left to
    help. A film of any rarer class always stays, so with many tasks a target may
    be out of reach; the plan says so. Arguments as in `over_sample`.
    """
    rng, rarer, there = _tasks(label, weight, seed, any_positive)
    target = _target(target, rarer.shape[1])
    copies = np.ones(len(rarer), np.int64)
    _remove(copies, rarer, there, target, rng)
    return _plan(copies, rarer, there, target)


def both(label, weight=None, *, seed, target=0.5, any_positive=False, most=10) -> Plan:
    """Over-samples half of the way to the target, then under-samples the rest.

    Half-way is the geometric mean of share and target: from 0.01 to 0.25 it is
    0.05. Arguments as in `over_sample`.
    """
    rng, rarer, there = _tasks(label, weight, seed, any_positive)
    target = _target(target, rarer.shape[1])
    copies = np.ones(len(rarer), np.int64)
    count, total = _counts(copies, rarer, there)
    half = np.sqrt(count / np.maximum(total, 1) * target)
    _add(copies, rarer, there, np.minimum(half, target), most, rng)
    _remove(copies, rarer, there, target, rng)
    return _plan(copies, rarer, there, target)


def repeat_factor(label, weight=None, *, seed, target) -> Plan:
    """Repeats a film sqrt(target / prevalence) times for its rarest finding.

    A finding's factor is max(1, sqrt(t / f)), f its prevalence among the known
    labels; a film's is the largest of its findings', 1 where it has none. The
    fractional part is rounded up with its own probability, by the seed. Here the
    target t is the prevalence from which on nothing is repeated, not one that is
    promised: nothing counts as missed.

    Args:
      label, weight, seed: as in `over_sample`.
      target: t in (0, 0.5], one for all or [T].

    Source: Gupta, Dollar, Girshick, LVIS, CVPR 2019, repeat factor sampling.
    """
    there = known(label, weight)
    positive = there & (np.asarray(label, float) >= 0.5)
    prevalence = positive.sum(0) / np.maximum(there.sum(0), 1)
    target = _target(target, there.shape[1])
    # The smallest divisor is for a finding that nobody has: no film takes its factor.
    factor = np.sqrt(target / np.maximum(prevalence, 1e-12))
    factor = np.where(positive, np.maximum(factor, 1), 1).max(axis=1, initial=1)
    chance = stratify.generator(seed).random(len(factor))
    copies = np.floor(factor + chance).astype(np.int64)
    index = np.repeat(np.arange(len(copies)), copies)
    return Plan(index, len(copies), np.zeros(there.shape[1], bool))


def known(label, weight=None) -> np.ndarray:
    """Says which labels are known: not NaN, and of a weight above 0.

    Args:
      label: [N, T], in [0, 1] where known.
      weight: [N, T], >= 0, or None: all 1.

    Returns:
      [N, T] bool.

    Raises:
      InputError: no film, a shape, a known label or a weight is wrong.
    """
    label = np.asarray(label, float)
    if label.ndim != 2 or not len(label):
        raise InputError(f"label: shape {label.shape}; give [films, tasks], 1 or more")
    there = ~np.isnan(label)
    if weight is not None:
        weight = np.asarray(weight, float)
        if weight.shape != label.shape:
            raise InputError(f"weight: shape {weight.shape}; give that of the labels")
        if not (np.isfinite(weight) & (weight >= 0)).all():
            raise InputError("weight: negative or not finite; give 0 if unknown")
        there &= weight > 0
    if not ((label[there] >= 0) & (label[there] <= 1)).all():
        raise InputError("label: outside [0, 1]; give NaN to an uncertain label")
    return there


def _share(part, whole):
    return part.sum() / whole.sum() if whole.any() else np.nan


def _tasks(label, weight, seed, any_positive):
    """Returns the generator, and who is of the rarer class and known, [N, T] bool."""
    there = known(label, weight)
    positive = there & (np.asarray(label, float) >= 0.5)
    if any_positive:
        present = positive.any(axis=1, keepdims=True)
        there, positive = present | there.all(axis=1, keepdims=True), present
    few = 2 * positive.sum(0) <= there.sum(0)
    return stratify.generator(seed), there & (positive == few), there


def _target(target, tasks):
    target = np.asarray(target, float)
    if target.shape not in ((), (tasks,)):
        raise InputError(f"target: shape {target.shape}; give one share or {tasks}")
    if not ((target > 0) & (target <= 0.5)).all():
        raise InputError(f"target: {target.tolist()} is not in (0, 0.5]; give a share")
    return np.broadcast_to(target, tasks)


def _counts(copies, rarer, there):
    """Returns the films of the rarer class and the known ones, [T] float64 each."""
    return copies @ rarer.astype(float), copies @ there.astype(float)


def _missed(count, total, target):
    # A task of one class, or with nothing known, is not there; 1e-9: 0.07 * 100.
    return (count == 0) | (count < target * total - 1e-9 * total)


def _plan(copies, rarer, there, target):
    missed = _missed(*_counts(copies, rarer, there), target)
    return Plan(np.repeat(np.arange(len(copies)), copies), len(copies), missed)


def _add(copies, rarer, there, target, most, rng):
    """Adds copies to [N] in place; each step adds one, so `most` ends them all."""
    if not most >= 1:
        raise InputError(f"most: {most!r} is below 1; give the copies a film may have")
    order = rng.permutation(len(copies))
    films = [order[mine[order]] for mine in rarer.T]
    count, total = _counts(copies, rarer, there)
    room = (count > 0) & (most > 1)  # [T]: some film may have another copy.
    while (short := np.flatnonzero(room & _missed(count, total, target))).size:
        ratio = count[short] / total[short] / target[short]
        task = short[np.argmin(ratio)]
        so_far = copies[films[task]]
        least = so_far.min()
        if least >= most:
            room[task] = False
            continue
        lacking = target[task] * total[task] - count[task]
        step = int(np.ceil(lacking / (1 - target[task]) / PIECES - 1e-9))
        chosen = films[task][so_far == least][: max(step, 1)]
        copies[chosen] += 1
        count += rarer[chosen].sum(0)
        total += there[chosen].sum(0)


def _remove(copies, rarer, there, target, rng):
    """Sets films of no rarer class to 0 copies in place."""
    order = rng.permutation(len(copies))
    order = order[~rarer[order].any(axis=1)]
    for task in range(rarer.shape[1]):
        count, total = _counts(copies, rarer, there)
        if count[task]:  # Nothing would be left of a task of one class.
            surplus = int(np.ceil(total[task] - count[task] / target[task] - 1e-9))
            helpful = order[there[order, task] & (copies[order] > 0)]
            copies[helpful[: max(surplus, 0)]] = 0

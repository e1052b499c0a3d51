"""Samples patients so that every side gets its share of every task.

Patients are numbers from 0 to U - 1, tasks from 0 to T - 1; this module knows
neither tables nor files. A side takes one patient at a time: first patients that
are positive for the rarest task, then those that a task still needs for its minimum
share, then others until the side has its number of images.

`share` is the share of the images to take, in (0, 1); `minority`, X, the least share of
every task's positive images, in [0, 0.5); `rng` draws the order of the patients.

Source: Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data,
ECML PKDD 2011 (rarest task first), with patients as examples, images as weights.
"""

from typing import NamedTuple

import numpy as np

from medjax.errors import InputError


class Cohort(NamedTuple):
    """What each of U patients adds to the side that takes it."""

    images: np.ndarray  # [U] number of images; a patient without any is never taken.
    positives: np.ndarray  # [U, T] positive images among them.


def gather(
    unit: np.ndarray, positive: list[np.ndarray], among: np.ndarray | None = None
) -> Cohort:
    """Counts the images and positives of each patient, among all or [N] bool images.

    `unit` is [N] each image's patient, where every number from 0 to U - 1 occurs, and
    `positive` T times [N] bool, the images with the finding.
    """
    among = np.ones(len(unit), bool) if among is None else among
    patients = unit.max() + 1
    images, *counts = [
        np.bincount(unit[here & among], minlength=patients)
        for here in (among, *positive)
    ]
    return Cohort(images, np.array(counts, np.int64).reshape(-1, patients).T)


def held_out(
    cohort: Cohort,
    rng: np.random.Generator,
    *,
    share: float,
    minority: float,
    tested: np.ndarray | None = None,
    elsewhere: Cohort | None = None,
) -> np.ndarray:
    """Samples the patients of test or, once these are known, of validation.

    Args:
      cohort: everyone, at least 3 patients.
      tested: [U] bool, the patients in test, to sample validation; None: sample test.
      elsewhere: what the patients would add to the sides sampled later, if that
        differs from what they add to this one.

    Returns:
      [U] bool: at least one patient, and never all that the other sides need.
    """
    free = np.ones(len(cohort.images), bool) if tested is None else ~tested
    here = _has(cohort, free)
    later = here if elsewhere is None else _has(elsewhere, free)
    keep = later.sum(0)
    if tested is None:
        # A task's only positive patient is tested, the second trains, the third
        # validates. A patient who adds nothing to those two may always be taken.
        keep -= here.any(0) & ~(here & ~later).any(0)
    keep = np.minimum(keep, 2 if tested is None else 1)
    total = cohort.positives.sum(0)
    side = _Side(cohort, free, rng, floor=_ceil(minority * total), later=later)
    goal, size = max(minority, share) * total, share * cohort.images.sum()
    return side.fill(goal, size, keep=keep)


def sides(
    cohort: Cohort,
    rng: np.random.Generator,
    tested: np.ndarray,
    *,
    share: float,
    minority: float,
) -> np.ndarray:
    """Samples validation: [U] 0 for train, 1 for validation, 2 for those tested."""
    if np.sum(cohort.images[~tested] > 0) < 2:
        raise InputError(
            "test: holds all patients but one, or all; choose another seed, more "
            "folds or another list"
        )
    validated = held_out(cohort, rng, share=share, minority=minority, tested=tested)
    return 2 * tested + validated


def parts(
    cohort: Cohort, rng: np.random.Generator, *, folds: int, minority: float
) -> np.ndarray:
    """Divides the patients into parts with equal numbers of images and positives.

    There are at least `folds` patients, and 2 folds. X is for every part; at most
    1 / folds is reached.

    Returns:
      [U] the part of each patient, 0 to folds - 1; no part is empty.
    """
    part = np.full(len(cohort.images), folds - 1)
    least = _ceil(minority * cohort.positives.sum(0))
    for i in range(folds - 1):
        free, others = part == folds - 1, folds - 1 - i
        even = cohort.positives[free].sum(0) / (others + 1)
        size = cohort.images[free].sum() / (others + 1)
        later = _has(cohort, free)
        keep = np.minimum(later.sum(0) - 1, others)
        floor = np.minimum(least, np.floor(even))
        side = _Side(cohort, free, rng, floor=floor, later=later)
        part[side.fill(even, size, keep=keep)] = i
    return part


def generator(seed: int) -> np.random.Generator:
    """A random generator; refuses a wrong seed."""
    if seed < 0:
        raise InputError(f"seed: {seed!r} is not an integer from 0 on; give one")
    return np.random.default_rng(seed)


def check_shares(minority: float, **shares: float) -> None:
    """Refuses a share outside (0, 1), shares that leave nobody to train, a wrong X."""
    for name, share in shares.items():
        if not 0 < share < 1:
            raise InputError(f"{name}: {share!r} is no share; give one in (0, 1)")
    if sum(shares.values()) >= 1:
        text = " + ".join(f"{name} {share:g}" for name, share in shares.items())
        raise InputError(f"{text}: leaves nobody to train on; ask for less")
    if not 0 <= minority < 0.5:
        raise InputError(f"minority: {minority!r} is no share in [0, 0.5); give one")


def _ceil(x):
    return np.ceil(x - 1e-9)  # 0.07 * 100 is 7.000000000000001.


def _has(cohort, free):
    """Which free patients have an image, and a positive one per task: [U, 1 + T]."""
    return np.column_stack([cohort.images, cohort.positives]) * free[:, None] > 0


class _Side:
    """One side while it is filled from the free patients.

    `later` says what these could add to the other sides, [U, 1 + T] as from `_has`.
    """

    def __init__(self, cohort, free, rng, *, floor, later):
        self.images, self.positives = cohort
        self.has = self.positives > 0  # [U, T]
        order = rng.permutation(len(free))
        here = free & (self.images > 0)
        self.order = order[here[order]]  # The free patients, shuffled.
        self.taken = np.zeros(len(free), bool)
        self.got = np.zeros_like(self.positives[0])  # [T] positive images taken.
        self.floor = floor  # [T] the fewest positive images to take.
        self.later = later
        self.left = later.sum(0)  # [1 + T] patients of `later` who aren't taken.

    def fill(self, goal, size, *, keep):
        """Takes patients, [U] bool, for a `goal` of [T] positives and `size` images.

        `keep`, [1 + T], are the patients to leave to the other sides: any, then positive.
        """
        self.keep = keep
        self.reach_goals(goal)
        self.keep = np.minimum(keep, 1)  # For X a side may take all but one positive,
        self.keep[0] = keep[0]  # but not more patients.
        rarest = np.argsort(self.has[self.order].sum(0), kind="stable")
        for task in rarest:
            self.reach_floor(task)
        self.hand_back()
        for task in rarest:
            self.reach_floor(task)
        self.keep = keep
        self.reach_size(size)
        return self.taken

    def reach_goals(self, goal):
        """Takes positive patients, those of the rarest remaining task first."""
        remaining, tasks = self.order, list(range(len(goal)))
        while tasks:
            task = tasks.pop(int(np.argmin(self.has[remaining][:, tasks].sum(0))))
            here = self.has[remaining, task]
            lacking = goal[task] - self.got[task]
            self.move_nearest(remaining[here], lacking, self.positives[:, task])
            remaining = remaining[~here]

    def reach_floor(self, task):
        """Takes the smallest patient that closes the gap, or else the largest."""
        while (gap := self.floor[task] - self.got[task]) > 0:
            free = self.order[~self.taken[self.order] & self.has[self.order, task]]
            free = free[self.may_move(free)]
            if not free.size:
                return
            positives = self.positives[free, task]
            closing = positives[positives >= gap]
            best = closing.min() if closing.size else positives.max()
            self.move(free[positives == best][0])

    def hand_back(self):
        """Drops positive patients of tasks below their floor, if there are any.

        Patients with fewer images may then reach the floor in the same space.
        """
        short, floor = self.got < self.floor, self.floor
        self.floor = np.where(short, 0, floor)  # The other tasks keep theirs.
        here = self.taken[self.order] & self.has[self.order][:, short].any(1)
        self.move_nearest(self.order[here], np.inf, self.images, -1)
        self.floor = floor

    def reach_size(self, size):
        """Drops patients that no floor needs, or adds some, to the nearest count."""
        taken = self.order[self.taken[self.order]]
        self.move_nearest(taken, self.images[taken].sum() - size, self.images, -1)
        free = self.order[~self.taken[self.order]]
        # Patients without a finding first: they don't change the positives.
        free = free[np.argsort(self.has[free].any(1), kind="stable")]
        lacking = size - self.images[self.taken].sum()
        self.move_nearest(free, lacking, self.images)
        if not self.taken.any():  # All have more than twice the images wanted.
            self.move(free[np.lexsort((self.images[free], ~self.may_move(free)))[0]])

    def move_nearest(self, units, amount, weight, sign=1):
        """Moves patients in this order until the moved weight is nearest to amount."""
        for unit in units:
            if amount < 0.5:
                break
            # The nearest count, not the first above it, which would be biased.
            if 2 * amount >= weight[unit] and self.may_move(unit, sign):
                self.move(unit, sign)
                amount -= weight[unit]

    def may_move(self, unit, sign=1):
        """Whether a patient, or each of several, may be taken (1) or dropped (-1)."""
        if sign < 0:
            needed = self.got - self.positives[unit] < self.floor
            return ~(self.has[unit] & needed).any(-1)
        return ~(self.later[unit] & (self.left <= self.keep)).any(-1)

    def move(self, unit, sign=1):
        """Takes a patient, or drops one."""
        self.taken[unit] = sign > 0
        self.got += sign * self.positives[unit]
        self.left -= sign * self.later[unit]

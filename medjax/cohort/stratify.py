"""Which patients to sample, so that every side gets its share of every task.

Patients are numbers from 0 to U - 1, tasks from 0 to T - 1; nothing is known here
of tables or files. A side is filled one patient at a time: those positive
for the rarest task first, then whom a task's least share still lacks, then whom
the number of films asks for.

Source: Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data,
ECML PKDD 2011 (rarest task first), with patients as examples, films as weights.
"""

import numbers
from typing import NamedTuple

import numpy as np

from medjax.errors import InputError


class Cohort(NamedTuple):
    """What each of U patients brings to the side that takes it.

    films: [U] films; who has none is never asked.
    positives: [U, T] positive films among them.
    """

    films: np.ndarray
    positives: np.ndarray


def gather(
    unit: np.ndarray, positive: list[np.ndarray], among: np.ndarray | None = None
) -> Cohort:
    """Counts what each patient has.

    Args:
      unit: [N] each film's patient, 0 to U - 1, nobody left out.
      positive: T times [N] bool, the films with the finding.
      among: [N] bool, the films to count; None counts all.
    """
    among = np.ones(len(unit), bool) if among is None else among
    patients = unit.max() + 1
    films, *counts = [
        np.bincount(unit[here & among], minlength=patients)
        for here in (among, *positive)
    ]
    return Cohort(films, np.array(counts, np.int64).reshape(-1, patients).T)


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
      rng: decides who is asked first.
      share: the share of the films to take, in (0, 1).
      minority: X, the least share of every task's positive films, in [0, 0.5).
      tested: [U] bool, who is in test, to sample validation; None samples test.
      elsewhere: what everyone would bring to the sides sampled later, where that
        is something else than to this one; None: the same.

    Returns:
      [U] bool: never everyone whom the other sides can use, and never nobody.
    """
    free = np.ones(len(cohort.films), bool) if tested is None else ~tested
    here = _has(cohort, free)
    later = here if elsewhere is None else _has(elsewhere, free)
    keep = later.sum(0)
    if tested is None:
        # A task's only positive patient is tested, the second trains, then
        # validates. Who has nothing for those two costs them nothing.
        keep -= here.any(0) & ~(here & ~later).any(0)
    keep = np.minimum(keep, 2 if tested is None else 1)
    total = cohort.positives.sum(0)
    side = _Side(cohort, free, rng, floor=_ceil(minority * total), later=later)
    goal, size = max(minority, share) * total, share * cohort.films.sum()
    return side.fill(goal, size, keep=keep)


def sides(
    cohort: Cohort,
    rng: np.random.Generator,
    tested: np.ndarray,
    *,
    share: float,
    minority: float,
) -> np.ndarray:
    """Samples validation as `held_out` does and says where everyone is.

    Returns:
      [U] 0 where the patient trains, 1 where it validates, 2 where it is tested.

    Raises:
      InputError: test leaves one patient or none, who can't do both.
    """
    if np.sum(cohort.films[~tested] > 0) < 2:
        raise InputError(
            "test: holds all patients but one, or all; choose another seed, more "
            "folds or another list"
        )
    validated = held_out(cohort, rng, share=share, minority=minority, tested=tested)
    return 2 * tested + validated


def parts(
    cohort: Cohort, rng: np.random.Generator, *, folds: int, minority: float
) -> np.ndarray:
    """Deals the patients into parts that are even in films and in positives.

    Args:
      cohort: everyone, at least `folds` patients.
      rng: decides who is asked first.
      folds: the number of parts, >= 2.
      minority: X, for every part as far as an even one holds it.

    Returns:
      [U] the part of each patient, 0 to folds - 1; no part is empty.
    """
    part = np.full(len(cohort.films), folds - 1)
    least = _ceil(minority * cohort.positives.sum(0))
    for i in range(folds - 1):
        free, others = part == folds - 1, folds - 1 - i
        even = cohort.positives[free].sum(0) / (others + 1)
        size = cohort.films[free].sum() / (others + 1)
        later = _has(cohort, free)
        keep = np.minimum(later.sum(0) - 1, others)
        floor = np.minimum(least, np.floor(even))
        side = _Side(cohort, free, rng, floor=floor, later=later)
        part[side.fill(even, size, keep=keep)] = i
    return part


def generator(seed: int) -> np.random.Generator:
    """Makes the source of randomness, or refuses the seed."""
    if not (isinstance(seed, numbers.Integral) and seed >= 0):
        raise InputError(f"seed: {seed!r} is not an integer from 0 on; give one")
    return np.random.default_rng(seed)


def check_shares(minority: float, **shares: float) -> None:
    """Refuses shares outside (0, 1) or that leave nobody to train, and a wrong X."""
    for name, share in shares.items():
        if not (isinstance(share, numbers.Real) and 0 < share < 1):
            raise InputError(f"{name}: {share!r} is no share; give one in (0, 1)")
    if sum(shares.values()) >= 1:
        text = " + ".join(f"{name} {share:g}" for name, share in shares.items())
        raise InputError(f"{text}: leaves nobody to train on; ask for less")
    if not (isinstance(minority, numbers.Real) and 0 <= minority < 0.5):
        raise InputError(f"minority: {minority!r} is no share in [0, 0.5); give one")


def _ceil(x):
    return np.ceil(x - 1e-9)  # 0.07 * 100 is 7.000000000000001.


def _has(cohort, free):
    """Says who has a film, and who a positive one of each task: [U, 1 + T] bool.

    Nobody but the free patients has anything.
    """
    return np.column_stack([cohort.films, cohort.positives]) * free[:, None] > 0


class _Side:
    """One side while it is filled from the free patients.

    `later` is what these could bring to the other sides, [U, 1 + T] as of `_has`.
    """

    def __init__(self, cohort, free, rng, *, floor, later):
        self.films, self.positives = cohort
        self.has = self.positives > 0  # [U, T]
        order = rng.permutation(len(free))
        here = free & (self.films > 0)
        self.order = order[here[order]]  # The free patients, shuffled.
        self.taken = np.zeros(len(free), bool)
        self.got = np.zeros_like(self.positives[0])  # [T] positive films taken,
        self.floor = floor  # [T] and those wanted at the least.
        self.later = later
        self.left = later.sum(0)  # [1 + T] those of them who aren't taken.

    def fill(self, goal, size, *, keep):
        """Returns whom to take, [U] bool.

        Args:
          goal: [T] positive films to aim at.
          size: films to aim at.
          keep: [1 + T] patients to leave to the other sides: any, then positive.
        """
        self.keep = keep
        self.reach_goals(goal)
        self.keep = np.minimum(keep, 1)  # X may ask for more,
        self.keep[0] = keep[0]  # but not for everyone.
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
        """Takes positive patients, those of the rarest undecided task first."""
        undecided, tasks = self.order, list(range(len(goal)))
        while tasks:
            task = tasks.pop(int(np.argmin(self.has[undecided][:, tasks].sum(0))))
            here = self.has[undecided, task]
            lacking = goal[task] - self.got[task]
            self.move_nearest(undecided[here], lacking, self.positives[:, task])
            undecided = undecided[~here]

    def reach_floor(self, task):
        """Takes the least patient that closes the gap, or the most there is."""
        while (gap := self.floor[task] - self.got[task]) > 0:
            free = self.order[~self.taken[self.order] & self.has[self.order, task]]
            free = free[self.may_move(free)]
            if not free.size:
                return
            films = self.positives[free, task]
            closing = films[films >= gap]
            best = closing.min() if closing.size else films.max()
            self.move(free[films == best][0])

    def hand_back(self):
        """Drops what short tasks have: light patients may fill the room of heavy ones.

        Where every task has its floor, nothing is dropped.
        """
        short, floor = self.got < self.floor, self.floor
        self.floor = np.where(short, 0, floor)  # The other tasks keep theirs.
        here = self.taken[self.order] & self.has[self.order][:, short].any(1)
        self.move_nearest(self.order[here], np.inf, self.films, -1)
        self.floor = floor

    def reach_size(self, size):
        """Drops patients that no X needs, or adds some, to the nearest count."""
        taken = self.order[self.taken[self.order]]
        self.move_nearest(taken, self.films[taken].sum() - size, self.films, -1)
        free = self.order[~self.taken[self.order]]
        # Without a finding first: they leave the positives as they are.
        free = free[np.argsort(self.has[free].any(1), kind="stable")]
        lacking = size - self.films[self.taken].sum()
        self.move_nearest(free, lacking, self.films)
        if not self.taken.any():  # All have more than twice the films asked for.
            self.move(free[np.lexsort((self.films[free], ~self.may_move(free)))[0]])

    def move_nearest(self, units, amount, weight, sign=1):
        """Moves patients in this order until what moved is nearest to the amount."""
        for unit in units:
            if amount < 0.5:
                break
            # The nearest count, not the first past it: without drift.
            if 2 * amount >= weight[unit] and self.may_move(unit, sign):
                self.move(unit, sign)
                amount -= weight[unit]

    def may_move(self, unit, sign=1):
        """Says if a patient, or each of several, may be taken (1) or dropped (-1)."""
        if sign < 0:
            needed = self.got - self.positives[unit] < self.floor
            return ~(self.has[unit] & needed).any(-1)
        return ~(self.later[unit] & (self.left <= self.keep)).any(-1)

    def move(self, unit, sign=1):
        """Takes a patient, or drops one."""
        self.taken[unit] = sign > 0
        self.got += sign * self.positives[unit]
        self.left -= sign * self.later[unit]

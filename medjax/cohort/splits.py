"""Who trains, who validates, who tests: by patient, written down, audited.

A manifest is a DataFrame with one row a film: `id`, `image`, `patient` and
`split`, one of SPLITS. A table has at least `id`, `image`, `patient` and one
float column a task: positive from 0.5 on, NaN where unknown.

Test is sampled first, then validation in the same way; everyone left trains.
`test` and `validation` are shares of the films; `minority` is X, the least share
of every task's positive films that goes to test, and again to validation. Where
the patients do not allow it: a task's only positive patient is in test, the
second trains, the third validates, and a warning names what missed its X.

Source: Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data,
ECML PKDD 2011 (rarest task first), with patients as examples, films as weights.
"""

import logging
import numbers
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medjax.errors import InputError

SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "image", "patient", "split")
log = logging.getLogger("medjax")


class _Cohort(NamedTuple):
    unit: np.ndarray  # [N] the number of each film's patient, by ascending patient.
    films: np.ndarray  # [U] films of each.
    positives: np.ndarray  # [U, T] positive films of each.


def split(
    table, tasks, *, seed, test=0.2, validation=0.1, minority=0.1, by="patient"
) -> pd.DataFrame:
    """Samples test, then validation, by patient; the rest trains.

    A side takes the share max(minority, asked share) of every task's positives,
    so with minority < share its prevalence stays close to the whole cohort's
    and its films within one patient of the share; from there on X wins over the
    size, and the positives over the prevalence.

    Args:
      table: N films, in any order: the same patients land on the same side.
      tasks: names of the table's label columns; () for a plain random split.
      seed: an integer >= 0.
      test, validation: shares of the films, in (0, 1), together below 1.
      minority: X, in [0, 0.5).
      by: 'patient', or 'image' to demonstrate leakage, and only for that.

    Returns:
      The manifest, [N] rows in the table's order.

    Raises:
      InputError: an argument or a column is wrong, or there are under 3 patients.
    """
    _check_shares(minority, test=test, validation=validation)
    cohort = _cohort(table, tasks, by)
    _check_patients(cohort, 3)
    if by == "image":
        log.warning(
            "split: by='image' puts a patient's films on two sides; scores will be "
            "too good. It is for demonstrating leakage only."
        )
    rng = _generator(seed)
    tested = _held_out(cohort, None, rng, test, minority)
    validated = _held_out(cohort, tested, rng, validation, minority)
    side = tested * 2 + validated
    return _finish(table, tasks, side[cohort.unit], minority, by)


def fold(
    table, tasks, *, seed, folds, fold, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Tests on one part of a stratified k-fold by patient, validates as `split`.

    Args:
      table, tasks, validation, minority: as in `split`. X above 1 / folds cannot
        be had in every fold; test then gets its even part.
      seed: one seed is one partition, whichever fold is asked for.
      folds: the number of parts, >= 2.
      fold: the part to test on, 0 to folds - 1.

    Returns:
      The manifest, [N] rows in the table's order.

    Raises:
      InputError: as `split`, or fewer patients than folds.
    """
    if not (_whole(folds) and folds >= 2):
        raise InputError(f"folds: {folds!r} is not a number of parts; give 2 or more")
    if not (_whole(fold) and 0 <= fold < folds):
        raise InputError(f"fold: {fold!r} is not one of 0 to {folds - 1}")
    _check_shares(minority, folds=1 / folds, validation=validation)
    cohort = _cohort(table, tasks, "patient")
    _check_patients(cohort, max(folds, 3))
    rng = _generator(seed)
    part = np.full(len(cohort.films), folds - 1)
    total = cohort.positives.sum(0)
    for i in range(folds - 1):
        free = part == folds - 1
        rest = cohort.positives[free]
        even = rest.sum(0) / (folds - i)
        floor = np.minimum(_ceil(minority * total), np.floor(even))
        keep = np.clip((rest > 0).sum(0) - 1, 0, folds - 1 - i)
        size = cohort.films[free].sum() / (folds - i)
        side = _Side(cohort, free, rng, keep, spare=folds - 1 - i)
        part[side.fill(even, floor, size)] = i
    tested = part == fold
    if np.sum(~tested) < 2:
        raise InputError(
            f"fold: fold {fold} holds all but one patient; choose another seed or "
            "more folds"
        )
    rng = np.random.default_rng([seed, fold + 1])
    validated = _held_out(cohort, tested, rng, validation, minority)
    side = tested * 2 + validated
    return _finish(table, tasks, side[cohort.unit], minority, "patient")


def official(
    table, tasks, *, train_val, test=None, seed, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Takes test from an official list; samples validation from the other list.

    Args:
      table, tasks, seed, validation, minority: as in `split`.
      train_val, test: image names, or the path of a text file with one a line
        (NIH's train_val_list.txt, test_list.txt), matched on the file name.
        Lists may cover more images than the table: the log counts those. Without
        `test`, every film outside `train_val` is tested on.

    Returns:
      The manifest, [N] rows in the table's order.

    Raises:
      InputError: as `split`; a list that cannot be read or matches no film, a film
        in no list or in both, or lists that put a patient on two sides.
    """
    _check_shares(minority, validation=validation)
    cohort = _cohort(table, tasks, "patient")
    name = table["image"].astype(str).str.rsplit("/", n=1).str[-1]
    twice = "file names repeat, so no list can tell them apart"
    _refuse(name.duplicated(), name, "image", twice, "rename them or use split")
    kept = _listed(name, train_val, "train_val")
    tested = ~kept if test is None else _listed(name, test, "test")
    for wrong, what in ((kept & tested, "both lists"), (~kept & ~tested, "no list")):
        what = f"of {len(name)} films are in {what}"
        _refuse(wrong, name, "test", what, "correct train_val or test")
    units = np.zeros(len(cohort.films), bool)
    units[cohort.unit[tested]] = True
    _refuse_two_sides(table["patient"], tested)
    if np.sum(~units) < 2:
        raise InputError("train_val: under 2 patients to validate and train on")
    validated = _held_out(cohort, units, _generator(seed), validation, minority)
    side = units * 2 + validated
    return _finish(table, tasks, side[cohort.unit], minority, "patient")


def audit(manifest, table=None, tasks=(), by="patient") -> None:
    """Refuses a manifest that leaks, or that is not one of this table.

    Args:
      manifest: M rows with COLUMNS, in any order.
      table: the N films that it must cover exactly; None checks it by itself.
      tasks: columns of the table; those with no positive or no negative film on
        a side, where no curve can be drawn, are named in the log.
      by: 'image' lets a patient be on two sides (a demonstration of leakage).

    Raises:
      InputError: a missing column, a repeated or unknown id, a film left out, an
        unknown split name, an empty split, a patient on two sides, an image or a
        patient other than the table's.
    """
    _check_by(by)
    _check_columns(manifest, COLUMNS, "manifest")
    ids, side = manifest["id"], manifest["split"]
    _refuse(ids.duplicated(), ids, "id", "rows repeat an id", "split again")
    unknown = f"rows name a split not in {SPLITS}"
    _refuse(~side.isin(SPLITS), side, "split", unknown, "correct the name")
    for name in SPLITS:
        if not (side == name).any():
            raise InputError(f"split: {name} is empty; add patients or split again")
    if by == "patient":
        _refuse_two_sides(manifest["patient"], side)
    if table is None:
        return
    _check_columns(table, (*COLUMNS[:3], *tasks), "table")
    row = _rows(manifest, table)
    left_out = ~table["id"].isin(ids)
    what = "films of the table are missing from the manifest"
    _refuse(left_out, table["id"], "id", what, "split this table again")
    for name in ("patient", "image"):
        other = manifest[name].to_numpy() != table[name].to_numpy()[row]
        what = f"ids have another {name} in the table"
        _refuse(other, ids, name, what, "split this table again")
    for r in reached(table, manifest, tasks).itertuples():
        for what in ("positives", "negatives"):
            if not getattr(r, what):
                log.warning("audit: %s has no %s in %s", r.task, what, r.split)


def reached(table, manifest, tasks) -> pd.DataFrame:
    """Counts what every side got of every task.

    Args:
      table: the films with their labels.
      manifest: M rows, all of them in the table.
      tasks: names of the table's label columns, T of them.

    Returns:
      [3 T] rows, `task` x `split`: `films` and `patients` of the side; the
      `positives`, `negatives` and `unknown` films among them; `prevalence`,
      positives over known films; `share`, the side's share of the task's
      positives (NaN where there are none to share).

    Raises:
      InputError: a missing column or an id that the table does not hold.
    """
    _check_columns(manifest, COLUMNS, "manifest")
    _check_columns(table, ("id", *tasks), "table")
    row = _rows(manifest, table)
    side = pd.Index(SPLITS).get_indexer(manifest["split"])
    films = [int(np.sum(side == s)) for s in range(3)]
    patients = [manifest["patient"][side == s].nunique() for s in range(3)]
    out = []
    for task in tasks:
        label = table[task].to_numpy(float)[row]
        positive, unknown = label >= 0.5, np.isnan(label)
        for s, name in enumerate(SPLITS):
            here = side == s
            p, u = int(np.sum(positive & here)), int(np.sum(unknown & here))
            known, total = films[s] - u, int(np.sum(positive))
            prevalence = p / known if known else np.nan
            share = p / total if total else np.nan
            counts = (films[s], patients[s], p, known - p, u)
            out.append((task, name, *counts, prevalence, share))
    counts = ["films", "patients", "positives", "negatives", "unknown"]
    return pd.DataFrame(out, columns=["task", "split", *counts, "prevalence", "share"])


def write(manifest, path) -> None:
    """Writes the manifest as CSV: COLUMNS, one row a film, in its order."""
    manifest.to_csv(path, columns=list(COLUMNS), index=False, lineterminator="\n")


def read(path) -> pd.DataFrame:
    """Reads a manifest back as `write` wrote it.

    Raises:
      InputError: no such file, no CSV, a missing column, an id or a patient that
        is no integer. What it says is `audit`'s business.
    """
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as e:  # pandas' parser raises ValueErrors.
        why = str(e).strip().splitlines()[0]
        raise InputError(f"{path}: not a CSV ({why}); write it again") from None
    _check_columns(text, COLUMNS, str(path))
    for name in ("id", "patient"):
        wrong = ~text[name].str.fullmatch(r"-?\d{1,18}")
        field = f"{path}: {name}"
        _refuse(wrong, text[name], field, "are no integers", "write it again")
    return text[list(COLUMNS)].astype({"id": np.int64, "patient": np.int64})


class _Side:
    """One side of a split, while it is filled from the free patients."""

    def __init__(self, cohort, free, rng, keep, spare):
        self.films, self.positives = cohort.films, cohort.positives
        self.has = self.positives > 0  # [U, T]
        order = rng.permutation(len(self.films))
        self.order = order[free[order]]  # The free patients, shuffled.
        self.taken = np.zeros(len(free), bool)
        self.count, self.size = 0, 0
        self.got = np.zeros(self.positives.shape[1], np.int64)
        self.left = self.has[free].sum(0)  # [T] positive patients not taken,
        self.keep = keep  # [T] and how many of them others need.
        self.most = len(self.order) - spare

    def move(self, unit, sign=1):
        """Takes a patient; with sign -1 hands one back."""
        self.taken[unit] = sign > 0
        self.count += sign
        self.size += sign * self.films[unit]
        self.got += sign * self.positives[unit]
        self.left -= sign * self.has[unit]

    def may_take(self, unit):
        scarce = self.has[unit] & (self.left <= self.keep)
        return self.count < self.most and not scarce.any()

    def may_drop(self, unit, floor):
        short = self.has[unit] & (self.got - self.positives[unit] < floor)
        return self.count > 1 and not short.any()

    def fill(self, goal, floor, size):
        """Returns whom to take, [U] bool.

        Args:
          goal, floor: [T] positive films to aim at, and to have at the least.
          size: films to aim at.
        """
        self.reach_goals(goal)
        keep, self.keep = self.keep, np.minimum(self.keep, 1)  # X may ask for more.
        for task in np.argsort(self.has[self.order].sum(0), kind="stable"):
            while self.got[task] < floor[task] and self.close_gap(task, floor):
                pass
        self.keep = keep
        self.reach_size(size, floor)
        return self.taken

    def reach_goals(self, goal):
        """Takes positive patients, those of the rarest undecided task first."""
        open_, tasks = self.order, list(range(len(goal)))
        while tasks:
            task = tasks.pop(int(np.argmin(self.has[open_][:, tasks].sum(0))))
            here = self.has[open_, task]
            for unit in open_[here]:
                need = goal[task] - self.got[task]
                if need < 0.5:
                    break
                # The nearest count, not the first past the goal: without drift.
                if 2 * need >= self.positives[unit, task] and self.may_take(unit):
                    self.move(unit)
            open_ = open_[~here]

    def close_gap(self, task, floor):
        """Takes a positive patient, or swaps one for more; False if none may be."""
        free = self.order[~self.taken[self.order] & self.has[self.order, task]]
        films = self.positives[free, task]
        enough = films >= floor[task] - self.got[task]
        # The least that closes the gap; where none does, the most there is.
        free = free[np.lexsort((np.where(enough, films, -films), ~enough))]
        for unit in free:
            if self.may_take(unit):
                self.move(unit)
                return True
        held, had = np.minimum(self.got, floor), self.positives[:, task]
        for unit in free:
            for other in np.flatnonzero(self.taken & (had > 0) & (had < had[unit])):
                self.move(other, -1)
                after = self.got + self.positives[unit]
                if self.may_take(unit) and np.all(after >= held):
                    self.move(unit)
                    return True
                self.move(other)
        return False

    def reach_size(self, size, floor):
        """Drops patients that no X needs, or adds some, to the nearest count."""
        for unit in self.order[self.taken[self.order]]:
            if self.size - size < 0.5:
                break
            over = 2 * (self.size - size) >= self.films[unit]
            if over and self.may_drop(unit, floor):
                self.move(unit, -1)
        free = self.order[~self.taken[self.order]]
        # Without a finding first: they leave the positives as they are.
        for unit in free[np.argsort(self.has[free].any(1), kind="stable")]:
            if size - self.size < 0.5:
                break
            if 2 * (size - self.size) >= self.films[unit] and self.may_take(unit):
                self.move(unit)
        if not self.count:  # Every patient has more than twice the films asked for.
            self.move(min(free, key=lambda u: (not self.may_take(u), self.films[u])))


def _held_out(cohort, tested, rng, share, minority):
    """Samples test (tested is None) or validation (not from tested), [U] bool."""
    first = tested is None
    free = np.ones(len(cohort.films), bool) if first else ~tested
    total = cohort.positives.sum(0)
    patients = (cohort.positives[free] > 0).sum(0)
    keep = np.clip(patients - 1, 0, 2) if first else np.minimum(patients, 1)
    side = _Side(cohort, free, rng, keep, spare=2 if first else 1)
    goal, floor = max(minority, share) * total, _ceil(minority * total)
    return side.fill(goal, floor, share * cohort.films.sum())


def _ceil(x):
    return np.ceil(x - 1e-9)  # 0.07 * 100 is 7.000000000000001.


def _finish(table, tasks, side, minority, by):
    """Writes the sides down, audits them, and says who missed the X."""
    manifest = table[["id", "image", "patient"]].reset_index(drop=True)
    manifest["split"] = np.array(SPLITS)[side]
    audit(manifest, table, by=by)
    for r in reached(table, manifest, tasks).itertuples():
        if r.split != "train" and not r.share >= minority - 1e-9:
            log.warning(
                "split: %s has %d positive films of %s (share %.3f), below minority=%g",
                *(r.split, r.positives, r.task, r.share, minority),
            )
    return manifest


def _cohort(table, tasks, by):
    _check_by(by)
    _check_columns(table, (*COLUMNS[:3], *tasks), "table")
    if not pd.api.types.is_integer_dtype(table["patient"]):
        raise InputError("patient: not integers; number the patients, blanks too")
    image = table["image"]
    _refuse(image.isna(), table["id"], "image", "ids have none", "name every film")
    unit, names = pd.factorize(table[by], sort=True)
    positives = np.zeros((len(names), len(tasks)), np.int64)
    for t, task in enumerate(tasks):
        if not pd.api.types.is_numeric_dtype(table[task]):
            raise InputError(f"{task}: not numbers; give 1, 0 or NaN (unknown)")
        positive = table[task].to_numpy(float) >= 0.5
        positives[:, t] = np.bincount(unit[positive], minlength=len(names))
    return _Cohort(unit, np.bincount(unit, minlength=len(names)), positives)


def _listed(name, source, field):
    """Says which film names are in a list, [N] bool."""
    if isinstance(source, (str, Path)):
        try:
            source = Path(source).read_text().splitlines()
        except (OSError, ValueError) as e:
            raise InputError(f"{field}: no list to read ({e})") from None
    listed = {str(line).strip().rsplit("/", 1)[-1] for line in source} - {""}
    here = name.isin(listed).to_numpy()
    if not here.any():
        raise InputError(
            f"{field}: none of its {len(listed)} names is an image of the table; "
            "give the list that belongs to these images"
        )
    if here.sum() < len(listed):
        absent = len(listed) - here.sum()
        log.warning("%s: %d of %d not in the table", field, absent, len(listed))
    return here


def _rows(manifest, table):
    ids = table["id"]
    _refuse(ids.duplicated(), ids, "id", "rows of the table repeat one", "renumber")
    row = pd.Index(ids).get_indexer(manifest["id"])
    what = "ids of the manifest are not in the table"
    _refuse(row < 0, manifest["id"], "id", what, "split this table again")
    return row


def _refuse(wrong, values, field, what, remedy):
    """Raises for the rows that are wrong: how many, and one of them."""
    found = np.asarray(values)[np.asarray(wrong)].tolist()
    if found:
        raise InputError(f"{field}: {len(found)} {what}, e.g. {found[0]!r}; {remedy}")


def _refuse_two_sides(patient, side):
    pair = pd.DataFrame({"patient": np.asarray(patient), "side": np.asarray(side)})
    patient = pair.drop_duplicates()["patient"]
    patient = patient[patient.duplicated()].drop_duplicates()
    wrong = np.ones(len(patient), bool)
    _refuse(wrong, patient, "patient", "are on two sides", "split by patient")


def _check_by(by):
    if by not in ("patient", "image"):
        raise InputError(f"by: {by!r} is unknown; give 'patient' or 'image'")


def _check_columns(frame, columns, what):
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(f"{what}: no column {missing[0]!r}; add it or correct it")


def _check_shares(minority, **shares):
    for name, share in shares.items():
        if not (isinstance(share, numbers.Real) and 0 < share < 1):
            raise InputError(f"{name}: {share!r} is no share; give one in (0, 1)")
    if sum(shares.values()) >= 1:
        text = " + ".join(f"{name} {share:g}" for name, share in shares.items())
        raise InputError(f"{text}: leaves nobody to train on; ask for less")
    if not (isinstance(minority, numbers.Real) and 0 <= minority < 0.5):
        raise InputError(f"minority: {minority!r} is no share in [0, 0.5); give one")


def _check_patients(cohort, least):
    if len(cohort.films) < least:
        raise InputError(f"patient: {len(cohort.films)} in all; give {least} or more")


def _whole(x):
    return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def _generator(seed):
    if not (_whole(seed) and seed >= 0):
        raise InputError(f"seed: {seed!r} is not an integer from 0 on; give one")
    return np.random.default_rng(seed)

"""Ways to split a cohort by patient into train, validation and test.

Test is sampled first, then validation in the same way; all other patients train.
Where there are too few patients, a task's only positive patient is in test, the
second trains, the third validates, and a warning names the tasks below `minority`.

Each way returns a manifest, not yet audited, [N] rows in the table's order (see
manifests.py). Wrong arguments and too few patients are an InputError. Common arguments:
  table: N images in any order: a patient's side doesn't depend on it.
  tasks: names of the table's label columns; () for a plain random split.
  test, validation: shares of the images, in (0, 1), together below 1.
  minority: X, in [0, 0.5): the least share of every task's positive images that
    goes to test, and again to validation.
"""

import logging

import numpy as np
import pandas as pd

from medjax.cohort import stratify
from medjax.cohort.manifests import (
    MANIFEST,
    SPLIT_UNITS,
    SPLITS,
    UNUSED,
    reached,
    refuse,
    refuse_two_sides,
)
from medjax.errors import InputError, check_choice

HALF = ", half "  # Between a volume's name and the hemisphere, see `halves`.
log = logging.getLogger("medjax")


def split(
    table, tasks, *, seed, test=0.2, validation=0.1, minority=0.1, by="patient"
) -> pd.DataFrame:
    """Samples test, then validation; by='image' is only to demonstrate leakage.

    A side takes the share max(minority, its share) of every task's positives. A
    minority above the share has priority over the side's size and prevalence.
    """
    stratify.check_shares(minority, test=test, validation=validation)
    unit, cohort = _cohort(table, tasks, by)
    if by == "image":
        log.warning("split: by='image' leaks, and is for demonstrating only that")
    rng = stratify.generator(seed)
    tested = stratify.held_out(cohort, rng, share=test, minority=minority)
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, side[unit], minority)


def fold(
    table, tasks, *, seed, folds, fold, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Tests on one part of a stratified k-fold; samples validation as `split`.

    The partition depends on the seed, not on `fold`, the part to test on, 0 to
    folds - 1. If `minority` exceeds 1 / folds, test gets the share 1 / folds.
    """
    if folds < 2:
        raise InputError(f"folds: {folds!r} is not a number of parts; give 2 or more")
    if not 0 <= fold < folds:
        raise InputError(f"fold: {fold!r} is not one of 0 to {folds - 1}")
    stratify.check_shares(minority, folds=1 / folds, validation=validation)
    unit, cohort = _cohort(table, tasks, least=max(folds, 3))
    rng = stratify.generator(seed)
    tested = stratify.parts(cohort, rng, folds=folds, minority=minority) == fold
    rng = np.random.default_rng([seed, fold + 1])
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, side[unit], minority)


def official(table, tasks, *, seed, validation=0.1, minority=0.1) -> pd.DataFrame:
    """Takes the sides of the table's column `official`, each image's one of SPLITS.

    If it names no image for validation, that is sampled among those that train.
    """
    stratify.check_shares(minority, validation=validation)
    unit, cohort = _cohort(table, tasks)
    listed = table["official"]
    what = f"of {len(table)} images are on no official list"
    refuse(~listed.isin(SPLITS), table["image"], "official", what, "correct the lists")
    side = listed.map(SPLITS.index).to_numpy()
    remedy = "correct the official lists, or set split.folds, which doesn't use them"
    refuse_two_sides(table["patient"], side, remedy)
    if not (listed == "validation").any():
        tested = np.bincount(unit[listed == "test"], minlength=len(cohort.images)) > 0
        rng = stratify.generator(seed)
        side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
        side = side[unit]
    return _manifest(table, tasks, side, minority)


def temporal(
    table, tasks, *, seed, cut, test=0.2, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Trains on early images (a follow_up below `cut`), tests on others' late images.

    Test's patients are sampled as in `split` among those with a late image, and
    validation's among the others with an early image; the shares are of these late and
    early images. Test keeps the late images of its patients; train and validation keep
    the early ones of theirs. All others are UNUSED, and counted in the log.
    """
    stratify.check_shares(minority, test=test)
    stratify.check_shares(minority, validation=validation)  # Of other images.
    unit, _ = _cohort(table, tasks)
    early, late = _follow_up(table, cut)
    past, future = (
        stratify.gather(unit, _positive(table, tasks), among) for among in (early, late)
    )
    rng = stratify.generator(seed)
    tested = stratify.held_out(
        future, rng, share=test, minority=minority, elsewhere=past
    )
    early_left = early & ~tested[unit]
    rest = stratify.gather(unit, _positive(table, tasks), early_left)
    if np.sum(rest.images > 0) < 2:
        raise InputError(
            f"cut: with {cut:g}, test leaves one patient or none with an early image; "
            "give a higher one"
        )
    side = stratify.sides(rest, rng, tested, share=validation, minority=minority)
    used = early_left | late & tested[unit]
    log.warning(
        "temporal: %d images are unused: %d early ones of tested patients, %d late "
        "ones of others, %d without a follow_up",
        *map(np.sum, (~used, early & ~early_left, late & ~used, ~(early | late))),
    )
    side = np.where(used, side[unit], len(SPLITS))
    among = {"test": late, "validation": early_left}
    return _manifest(table, tasks, side, minority, among)


def leave_one_out(table, fold) -> pd.DataFrame:
    """Tests on one patient, trains on all others and validates on nobody.

    `fold` is the patient's place among the sorted ids, from 0.
    """
    patients = np.unique(table["patient"])
    if len(patients) < 2 or not 0 <= fold < len(patients):
        raise InputError(
            f"split.fold={fold}: the number of the patient to test, 0 to "
            f"{len(patients) - 1}; leave_one_out needs two patients at least"
        )
    tested = table["patient"] == patients[fold]
    return table[list(MANIFEST[:3])].assign(split=np.where(tested, "test", "train"))


def halves(table) -> pd.DataFrame:
    """Trains on the left hemispheres and tests on the right ones of the same people.

    The results flatter, because every patient is on both sides. The manifest has [2 N]
    rows with their own ids, and a row's `image` is the volume's name, HALF and 'left'
    or 'right'.
    """
    sides = [
        table[list(MANIFEST[:3])].assign(
            image=table["image"] + HALF + half, split=split
        )
        for half, split in (("left", "train"), ("right", "test"))
    ]
    manifest = pd.concat(sides, ignore_index=True)
    return manifest.assign(id=np.arange(len(manifest)))


def everyone(table) -> pd.DataFrame:
    """Trains on everyone, for a model that is tested on other data."""
    return table[list(MANIFEST[:3])].assign(split="train")


def _manifest(table, tasks, side, minority, among=None):
    """Makes the manifest; warns if a task's share is below `minority`.

    Args:
      side: [N] 0 train, 1 validation, 2 test, 3 unused.
      among: split -> the images, [N] bool, of whose positives it has a share; None: all.
    """
    manifest = table[list(MANIFEST[:3])].reset_index(drop=True)
    manifest["split"] = np.array([*SPLITS, UNUSED], object)[side]
    for name in ("validation", "test"):
        here = slice(None) if among is None else among[name]
        for row in reached(table[here], manifest[here], tasks).itertuples():
            if row.split == name and not row.share >= minority - 1e-9:
                log.warning(
                    "split: %s has %d positive images of %s (share %.3f), below "
                    "minority=%g",
                    *(row.split, row.positives, row.task, row.share, minority),
                )
    return manifest


def _cohort(table, tasks, by="patient", least=3):
    """The number of each image's patient, [N], by ascending name; and the Cohort."""
    check_choice("split.by", by, SPLIT_UNITS)
    unit, names = pd.factorize(table[by], sort=True)
    if len(names) < least:
        raise InputError(f"{by}: {len(names)} in all; give {least} or more")
    return unit, stratify.gather(unit, _positive(table, tasks))


def _positive(table, tasks):
    return [table[task].to_numpy(float) >= 0.5 for task in tasks]


def _follow_up(table, cut):
    """The images before the cut and those from it on, [N] bool each."""
    number = table["follow_up"].to_numpy(float)
    known = np.unique(number[~np.isnan(number)])
    if len(known) < 2:
        raise InputError(
            "follow_up: unknown, or the same, for every image; split another way"
        )
    early, late = number < cut, number >= cut  # NaN is neither.
    if not (early.any() and late.any()):
        raise InputError(
            f"cut: {cut:g} has every follow_up on one side; give one above "
            f"{known[0]:g}, up to {known[-1]:g}"
        )
    return early, late

"""Ways to split a cohort by patient into train, validation and test.

Test is sampled first, then validation in the same way; all other patients train.
Where there are too few patients, a task's only positive patient is in test, the
second trains, the third validates, and a warning names the tasks below `minority`.

Each way returns an audited manifest, [N] rows in the table's order (see
manifest.py). The common arguments are:
  table: N images in any order: a patient's side doesn't depend on it.
  tasks: names of the table's label columns; () for a plain random split.
  seed: an integer >= 0.
  test, validation: shares of the images, in (0, 1), together below 1.
  minority: X, in [0, 0.5): the least share of every task's positive images that
    goes to test, and again to validation.

All raise an InputError for a wrong argument, column or list, for a side without
patients, and for fewer than 3 patients (2 for leave_one_out).
"""

import logging
import numbers
from pathlib import Path

import numpy as np
import pandas as pd

from medjax.cohort import stratify
from medjax.cohort.manifest import (
    COLUMNS,
    SPLITS,
    UNUSED,
    audit,
    check_by,
    check_columns,
    reached,
    refuse,
    refuse_two_sides,
)
from medjax.errors import InputError

HALF = ", half "  # Between a volume's name and the hemisphere, see `halves`.
log = logging.getLogger("medjax")


def split(
    table, tasks, *, seed, test=0.2, validation=0.1, minority=0.1, by="patient"
) -> pd.DataFrame:
    """Samples test, then validation.

    A side takes the share max(minority, its share) of every task's positives. With
    minority < share its prevalence stays close to the cohort's, and its size within
    one patient of the share. With a larger minority, X has priority over the size,
    and the positives over the prevalence.

    Args:
      by: 'patient', or 'image', only to demonstrate leakage.
    """
    stratify.check_shares(minority, test=test, validation=validation)
    unit, cohort = _cohort(table, tasks, by)
    if by == "image":
        log.warning("split: by='image' leaks, and is for demonstrating only that")
    rng = stratify.generator(seed)
    tested = stratify.held_out(cohort, rng, share=test, minority=minority)
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, side[unit], minority, by)


def fold(
    table, tasks, *, seed, folds, fold, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Tests on one part of a stratified k-fold; samples validation as `split`.

    Args:
      seed: the partition depends on it alone, not on `fold`.
      folds: the number of parts, >= 2.
      fold: the part to test on, 0 to folds - 1.
      minority: if it exceeds 1 / folds, test gets the share 1 / folds.
    """
    if not (isinstance(folds, numbers.Integral) and folds >= 2):
        raise InputError(f"folds: {folds!r} is not a number of parts; give 2 or more")
    if not (isinstance(fold, numbers.Integral) and 0 <= fold < folds):
        raise InputError(f"fold: {fold!r} is not one of 0 to {folds - 1}")
    stratify.check_shares(minority, folds=1 / folds, validation=validation)
    unit, cohort = _cohort(table, tasks, least=max(folds, 3))
    rng = stratify.generator(seed)
    tested = stratify.parts(cohort, rng, folds=folds, minority=minority) == fold
    rng = np.random.default_rng([seed, fold + 1])
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, side[unit], minority)


def official(
    table,
    tasks,
    *,
    train_val,
    test=None,
    validation_list=None,
    seed,
    validation=0.1,
    minority=0.1,
) -> pd.DataFrame:
    """Takes test from an official list; samples validation, or takes its own list.

    Args:
      train_val, test, validation_list: image names, or the path of a text file with
        one per line (NIH's train_val_list.txt, test_list.txt). Whole names are
        matched, or file names if the list or the table has no folders. Lists may
        hold more images than the table: the log counts those. Without `test`, every
        image that is in no other list is tested. With `validation_list`, whose
        images may be in `train_val` or not, nothing is sampled.

    """
    stratify.check_shares(minority, validation=validation)
    unit, cohort = _cohort(table, tasks)
    image = table["image"].astype(str)
    kept = _listed(image, train_val, "train_val")
    validated = np.zeros(len(image), bool)
    if validation_list is not None:
        validated = _listed(image, validation_list, "validation_list")
        kept = kept | validated
    listed = ~kept if test is None else _listed(image, test, "test")
    for wrong, what in ((kept & listed, "both lists"), (~kept & ~listed, "no list")):
        what = f"of {len(image)} images are in {what}"
        refuse(wrong, image, "test", what, "correct train_val or test")
    given = 2 * listed + validated
    refuse_two_sides(table["patient"], given)
    if validation_list is not None:
        return _manifest(table, tasks, given, minority)
    tested = np.bincount(unit[listed], minlength=len(cohort.images)) > 0
    rng = stratify.generator(seed)
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, side[unit], minority)


def temporal(
    table, tasks, *, seed, cut, test=0.2, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Trains on early images, and tests on late images of other patients.

    Test's patients are sampled as in `split` among those with a late image, and
    validation's among the others with an early image. Test keeps the late images of
    its patients; train and validation keep the early ones of theirs. All others are
    UNUSED, and counted in the log: early images of tested patients, late ones of
    the others, and those without a follow-up number.

    Args:
      table: has the column `follow_up`, the image's number in its patient's
        history: 0 first, NaN unknown.
      cut: images with a follow_up below it are early, the others late.
      test, minority: of the late images and their positives.
      validation, minority: of the early images of patients who aren't tested.

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
    return _manifest(
        table,
        tasks,
        np.where(used, side[unit], len(SPLITS)),
        minority,
        among={"test": late, "validation": early_left},
    )


def leave_one_out(table, fold) -> pd.DataFrame:
    """Tests on one patient, trains on all others and validates on nobody.

    Args:
      fold: the number of the patient to test, in the order of `table["patient"]`.
    """
    patients = np.unique(table["patient"])
    if len(patients) < 2 or not 0 <= fold < len(patients):
        raise InputError(
            f"split.fold={fold}: the number of the patient to test, 0 to "
            f"{len(patients) - 1}; leave_one_out needs two patients at least"
        )
    tested = table["patient"] == patients[fold]
    manifest = table[list(COLUMNS[:3])].assign(split=np.where(tested, "test", "train"))
    audit(manifest, table, needed=("train", "test"))
    return manifest


def halves(table) -> pd.DataFrame:
    """Trains on the left hemispheres and tests on the right ones of the same people.

    The results flatter, because every patient is on both sides.

    Returns:
      The manifest, [2 N] rows with their own ids. A row's `image` is the volume's
      name, HALF and 'left' or 'right'.
    """
    sides = [
        table[list(COLUMNS[:3])].assign(image=table["image"] + HALF + half, split=split)
        for half, split in (("left", "train"), ("right", "test"))
    ]
    manifest = pd.concat(sides, ignore_index=True)
    manifest["id"] = np.arange(len(manifest))
    audit(manifest, by="image", needed=("train", "test"))
    return manifest


def everyone(table) -> pd.DataFrame:
    """Trains on everyone, for a model that is tested on other data."""
    manifest = table[list(COLUMNS[:3])].assign(split="train")
    audit(manifest, table, needed=("train",))
    return manifest


def _manifest(table, tasks, side, minority, by="patient", among=None):
    """Makes and audits the manifest; warns if a task's share is below `minority`.

    Args:
      side: [N] 0 train, 1 validation, 2 test, 3 unused.
      among: split -> the images, [N] bool, of whose positives it has a share; None: all.
    """
    manifest = table[list(COLUMNS[:3])].reset_index(drop=True)
    manifest["split"] = np.array([*SPLITS, UNUSED], object)[side]
    audit(manifest, table, by=by)
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
    check_by(by)
    check_columns(table, (*COLUMNS[:3], *tasks), "table")
    if not pd.api.types.is_integer_dtype(table["patient"]):
        raise InputError("patient: not integers; number the patients, blanks too")
    refuse(table["image"].isna(), table["id"], "image", "ids have none", "name them")
    unit, names = pd.factorize(table[by], sort=True)
    if len(names) < least:
        raise InputError(f"{by}: {len(names)} in all; give {least} or more")
    for task in tasks:
        if not pd.api.types.is_numeric_dtype(table[task]):
            raise InputError(f"{task}: not numbers; give 1, 0 or NaN (unknown)")
    return unit, stratify.gather(unit, _positive(table, tasks))


def _positive(table, tasks):
    return [table[task].to_numpy(float) >= 0.5 for task in tasks]


def _follow_up(table, cut):
    """The images before the cut and those from it on, [N] bool each."""
    check_columns(table, ("follow_up",), "table")
    if not pd.api.types.is_numeric_dtype(table["follow_up"]):
        raise InputError("follow_up: not numbers; give 0, 1, ... or NaN (unknown)")
    number = table["follow_up"].to_numpy(float)
    known = np.unique(number[~np.isnan(number)])
    if len(known) < 2:
        raise InputError(
            "follow_up: unknown, or the same, for every image; split another way"
        )
    if not isinstance(cut, numbers.Real) or np.isnan(cut):
        raise InputError(f"cut: {cut!r} is no follow-up number; give one, such as 1")
    early, late = number < cut, number >= cut  # NaN is neither.
    if not (early.any() and late.any()):
        raise InputError(
            f"cut: {cut:g} has every follow_up on one side; give one above "
            f"{known[0]:g}, up to {known[-1]:g}"
        )
    return early, late


def _listed(image, source, field):
    """Which of N image names are in a list, [N] bool."""
    if isinstance(source, (str, Path)):
        try:
            source = Path(source).read_text().splitlines()
        except (OSError, ValueError) as e:
            raise InputError(f"{field}: no list to read ({e})") from None
    listed = {str(line).strip() for line in source} - {""}
    whole = image.isin(listed)
    # A file name has no slash, so each test matches names without a folder.
    name = image.str.rsplit("/", n=1).str[-1]
    other = listed - set(image)
    here = whole | name.isin(other) | image.isin({x.rsplit("/", 1)[-1] for x in other})
    if not here.any():
        why = f"{field}: none of its {len(listed)} names is an image of the table"
        raise InputError(f"{why}; give the list that belongs to these images")
    name = image.where(whole, name)[here]
    what = "images share their name in the list with another"
    refuse(name.duplicated(), name, field, what, "list images with their folders")
    if (absent := len(listed) - here.sum()) > 0:
        log.warning("%s: %d of %d not in the table", field, absent, len(listed))
    return here.to_numpy()

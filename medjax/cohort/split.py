"""Who trains, who validates, who tests: by patient, into an audited manifest.

Test is sampled first, then validation in the same way; everyone left trains.
`test` and `validation` are shares of the films; `minority` is X, the least share
of every task's positive films that goes to test, and again to validation. Where
the patients do not allow it: a task's only positive patient is in test, the
second trains, the third validates, and a warning names what missed its X.
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
    read,
    refuse,
    refuse_two_sides,
    write,
)
from medjax.errors import InputError

__all__ = [
    "COLUMNS",
    "SPLITS",
    "UNUSED",
    "audit",
    "fold",
    "official",
    "reached",
    "read",
    "split",
    "temporal",
    "write",
]
log = logging.getLogger("medjax")


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
    stratify.check_shares(minority, test=test, validation=validation)
    unit, cohort = _cohort(table, tasks, by)
    if by == "image":
        log.warning("split: by='image' leaks, and is for demonstrating only that")
    rng = stratify.generator(seed)
    tested = stratify.held_out(cohort, rng, share=test, minority=minority)
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, np.array(SPLITS)[side[unit]], minority, by)


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
    return _manifest(table, tasks, np.array(SPLITS)[side[unit]], minority)


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
      table, tasks, seed, validation, minority: as in `split`.
      train_val, test, validation_list: image names, or the path of a text file
        with one a line (NIH's train_val_list.txt, test_list.txt). Whole names are
        matched, or file names where the list or the table has no folder. Lists
        may cover more images than the table: the log counts those. Without
        `test`, every film that no other list has is tested on. With
        `validation_list`, of films in `train_val` or beside it, nothing is sampled.

    Returns:
      The manifest, [N] rows in the table's order.

    Raises:
      InputError: as `split`; a list that cannot be read or matches no film, a name
        of several films, a film in no list, or in `test` and another, or lists that
        put a patient on two sides.
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
        what = f"of {len(image)} films are in {what}"
        refuse(wrong, image, "test", what, "correct train_val or test")
    given = 2 * listed + validated
    refuse_two_sides(table["patient"], given)
    if validation_list is not None:
        return _manifest(table, tasks, np.array(SPLITS)[given], minority)
    tested = np.bincount(unit[listed], minlength=len(cohort.films)) > 0
    rng = stratify.generator(seed)
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, np.array(SPLITS)[side[unit]], minority)


def temporal(
    table, tasks, *, seed, cut, test=0.2, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Learns from the past, tests on the future of other patients.

    Test's patients are sampled as in `split` among those with a late film, and
    validation's among the others with an early one. Test keeps its patients' late
    films, train and validation keep the early ones of theirs; every other film is
    written down as UNUSED, and counted in the log: the past of who is tested, the
    future of who is not, and the films whose follow-up number is unknown. So who
    has no early film is in test or nowhere, and who has no late one never in test.

    Args:
      table: as in `split`, and `follow_up`: the film's number in its patient's
        history, 0 first, NaN unknown.
      tasks, seed: as in `split`.
      cut: films are early with a follow_up below it, and late from it on.
      test, minority: of the late films and their positives.
      validation, minority: of the early films of who is not tested.

    Returns:
      The manifest, [N] rows in the table's order.

    Raises:
      InputError: as `split`; no follow_up, or a cut that leaves a side empty.
    """
    stratify.check_shares(minority, test=test)
    stratify.check_shares(minority, validation=validation)  # Of other films.
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
    if np.sum(rest.films > 0) < 2:
        raise InputError(
            f"cut: with {cut:g}, test leaves one patient or none with an early film; "
            "give a higher one"
        )
    side = stratify.sides(rest, rng, tested, share=validation, minority=minority)
    used = early_left | late & tested[unit]
    log.warning(
        "temporal: %d films are unused: %d early ones of tested patients, %d late "
        "ones of others, %d without a follow_up",
        *map(np.sum, (~used, early & ~early_left, late & ~used, ~(early | late))),
    )
    return _manifest(
        table,
        tasks,
        np.where(used, np.array(SPLITS)[side[unit]], UNUSED),
        minority,
        among={"test": late, "validation": early_left},
    )


def _manifest(table, tasks, side, minority, by="patient", among=None):
    """Writes the sides down, audits them, and says who missed the X.

    X is a share of the positives of all films, or of those that `among` gives for
    test and for validation, [N] bool each.
    """
    manifest = table[["id", "image", "patient"]].reset_index(drop=True)
    manifest["split"] = side
    audit(manifest, table, by=by)
    for name in ("validation", "test"):
        here = slice(None) if among is None else among[name]
        for r in reached(table[here], manifest[here], tasks).itertuples():
            if r.split == name and not r.share >= minority - 1e-9:
                log.warning(
                    "split: %s has %d positive films of %s (share %.3f), below "
                    "minority=%g",
                    *(r.split, r.positives, r.task, r.share, minority),
                )
    return manifest


def _cohort(table, tasks, by="patient", least=3):
    """Returns the number of each film's patient, [N] by ascending name, and these."""
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
    """Returns the films before the cut and those from it on, [N] bool each."""
    check_columns(table, ("follow_up",), "table")
    if not pd.api.types.is_numeric_dtype(table["follow_up"]):
        raise InputError("follow_up: not numbers; give 0, 1, ... or NaN (unknown)")
    number = table["follow_up"].to_numpy(float)
    known = np.unique(number[~np.isnan(number)])
    if len(known) < 2:
        raise InputError(
            "follow_up: unknown, or the same, for every film; split by another kind"
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
    """Says which of N image names are in a list, [N] bool."""
    if isinstance(source, (str, Path)):
        try:
            source = Path(source).read_text().splitlines()
        except (OSError, ValueError) as e:
            raise InputError(f"{field}: no list to read ({e})") from None
    listed = {str(line).strip() for line in source} - {""}
    whole = image.isin(listed)
    # A file name holds no slash, so each test finds the names that have no folder.
    name = image.str.rsplit("/", n=1).str[-1]
    other = listed - set(image)
    here = whole | name.isin(other) | image.isin({x.rsplit("/", 1)[-1] for x in other})
    if not here.any():
        why = f"{field}: none of its {len(listed)} names is an image of the table"
        raise InputError(f"{why}; give the list that belongs to these images")
    name = image.where(whole, name)[here]
    what = "films share their name in the list with another"
    refuse(name.duplicated(), name, field, what, "list images with their folders")
    if (absent := len(listed) - here.sum()) > 0:
        log.warning("%s: %d of %d not in the table", field, absent, len(listed))
    return here.to_numpy()

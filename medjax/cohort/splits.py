"""Who trains, who validates, who tests: by patient, written down, audited.

A manifest is a DataFrame with one row a film: `id`, `image`, `patient` and
`split`, one of SPLITS. A table has at least `id`, `image`, `patient` and one
float column a task: positive from 0.5 on, NaN where unknown.

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
from medjax.errors import InputError

SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "image", "patient", "split")
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
    return _manifest(table, tasks, side[unit], minority, by)


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
    return _manifest(table, tasks, side[unit], minority)


def official(
    table, tasks, *, train_val, test=None, seed, validation=0.1, minority=0.1
) -> pd.DataFrame:
    """Takes test from an official list; samples validation from the other list.

    Args:
      table, tasks, seed, validation, minority: as in `split`.
      train_val, test: image names, or the path of a text file with one a line
        (NIH's train_val_list.txt, test_list.txt). Whole names are matched, or
        file names where the list or the table has no folder. Lists may cover
        more images than the table: the log counts those. Without `test`, every
        film outside `train_val` is tested on.

    Returns:
      The manifest, [N] rows in the table's order.

    Raises:
      InputError: as `split`; a list that cannot be read or matches no film, a name
        of several films, a film in no list or in both, or lists that put a
        patient on two sides.
    """
    stratify.check_shares(minority, validation=validation)
    unit, cohort = _cohort(table, tasks)
    image = table["image"].astype(str)
    kept = _listed(image, train_val, "train_val")
    listed = ~kept if test is None else _listed(image, test, "test")
    for wrong, what in ((kept & listed, "both lists"), (~kept & ~listed, "no list")):
        what = f"of {len(image)} films are in {what}"
        _refuse(wrong, image, "test", what, "correct train_val or test")
    _refuse_two_sides(table["patient"], listed)
    tested = np.bincount(unit[listed], minlength=len(cohort.films)) > 0
    rng = stratify.generator(seed)
    side = stratify.sides(cohort, rng, tested, share=validation, minority=minority)
    return _manifest(table, tasks, side[unit], minority)


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
    sides = {name: (manifest["split"] == name).to_numpy() for name in SPLITS}
    patients = {s: manifest["patient"][here].nunique() for s, here in sides.items()}
    out = []
    for task in tasks:
        label = table[task].to_numpy(float)[row]
        total = np.sum(label >= 0.5)
        for name, here in sides.items():
            positives = np.sum(label[here] >= 0.5)
            negatives = np.sum(label[here] < 0.5)
            films, known = np.sum(here), positives + negatives
            counts = (films, patients[name], positives, negatives, films - known)
            ratios = [positives / n if n else np.nan for n in (known, total)]
            out.append((task, name, *counts, *ratios))
    counts = ("films", "patients", "positives", "negatives", "unknown")
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
        _refuse(wrong, text[name], f"{path}: {name}", "are no integers", "mend them")
    return text[list(COLUMNS)].astype({"id": np.int64, "patient": np.int64})


def _manifest(table, tasks, side, minority, by="patient"):
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


def _cohort(table, tasks, by="patient", least=3):
    """Returns the number of each film's patient, [N] by ascending name, and these."""
    _check_by(by)
    _check_columns(table, (*COLUMNS[:3], *tasks), "table")
    if not pd.api.types.is_integer_dtype(table["patient"]):
        raise InputError("patient: not integers; number the patients, blanks too")
    _refuse(table["image"].isna(), table["id"], "image", "ids have none", "name them")
    unit, names = pd.factorize(table[by], sort=True)
    if len(names) < least:
        raise InputError(f"{by}: {len(names)} in all; give {least} or more")
    for task in tasks:
        if not pd.api.types.is_numeric_dtype(table[task]):
            raise InputError(f"{task}: not numbers; give 1, 0 or NaN (unknown)")
    positive = [table[task].to_numpy(float) >= 0.5 for task in tasks]
    return unit, stratify.gather(unit, positive)


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
    _refuse(name.duplicated(), name, field, what, "list images with their folders")
    if (absent := len(listed) - here.sum()) > 0:
        log.warning("%s: %d of %d not in the table", field, absent, len(listed))
    return here.to_numpy()


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
    sides = pd.Series(np.asarray(side)).groupby(np.asarray(patient)).nunique()
    _refuse(sides > 1, sides.index, "patient", "are on two sides", "split by patient")


def _check_by(by):
    if by not in ("patient", "image"):
        raise InputError(f"by: {by!r} is unknown; give 'patient' or 'image'")


def _check_columns(frame, columns, what):
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(f"{what}: no column {missing[0]!r}; add it or correct it")

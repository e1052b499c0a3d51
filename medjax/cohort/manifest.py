"""The manifest: who trains, validates and tests, written down and audited.

A manifest is a DataFrame with one row a film: `id`, `image`, `patient` and
`split`, one of SPLITS, or UNUSED for a film that no side takes. A table has at
least `id`, `image`, `patient` and one float column a task: positive from 0.5 on,
NaN where unknown.
"""

import logging

import numpy as np
import pandas as pd

from medjax.errors import InputError

SPLITS = ("train", "validation", "test")
UNUSED = "unused"
COLUMNS = ("id", "image", "patient", "split")
SHOWN = 3  # Pairs of duplicates that an error names.
log = logging.getLogger("medjax")


def audit(
    manifest,
    table=None,
    tasks=(),
    by="patient",
    duplicates=None,
    on_duplicates="refuse",
) -> None:
    """Refuses a manifest that leaks, or that is not one of this table.

    Args:
      manifest: M rows with COLUMNS, in any order.
      table: the N films that it must cover exactly; None checks it by itself.
      tasks: columns of the table; those with no positive or no negative film on
        a side, where no curve can be drawn, are named in the log.
      by: 'image' lets a patient be on two sides (a demonstration of leakage).
      duplicates: pairs of films that show the same picture, by `id` and `other`,
        as `duplicates.confirm` finds them; None looks for none.
      on_duplicates: 'refuse' a pair on two sides, or 'warn' of it in the log.

    Raises:
      InputError: a missing column, a repeated or unknown id, a film left out, an
        unknown split name, an empty split, a patient on two sides (UNUSED is no
        side), a picture on two sides, an image or a patient other than the
        table's.
    """
    check_by(by)
    if on_duplicates not in ("refuse", "warn"):
        raise InputError(
            f"split.duplicates={on_duplicates!r} is unknown: use 'refuse' or 'warn'"
        )
    check_columns(manifest, COLUMNS, "manifest")
    ids, side = manifest["id"], manifest["split"]
    refuse(ids.duplicated(), ids, "id", "rows repeat an id", "split again")
    names = (*SPLITS, UNUSED)
    unknown = f"rows name a split not in {names}"
    refuse(~side.isin(names), side, "split", unknown, "correct the name")
    for name in SPLITS:
        if not (side == name).any():
            raise InputError(f"split: {name} is empty; add patients or split again")
    if by == "patient":
        used = side != UNUSED
        refuse_two_sides(manifest["patient"][used], side[used])
    if duplicates is not None:
        _check_duplicates(manifest, duplicates, on_duplicates)
    if table is not None:
        _check_table(manifest, table, tasks)


def _check_table(manifest, table, tasks):
    """Refuses a manifest of other films; logs the tasks without a curve on a side."""
    ids = manifest["id"]
    check_columns(table, (*COLUMNS[:3], *tasks), "table")
    row = _rows(manifest, table)
    left_out = ~table["id"].isin(ids)
    what = "films of the table are missing from the manifest"
    refuse(left_out, table["id"], "id", what, "split this table again")
    for name in ("patient", "image"):
        other = manifest[name].to_numpy() != table[name].to_numpy()[row]
        what = f"ids have another {name} in the table"
        refuse(other, ids, name, what, "split this table again")
    for r in reached(table, manifest, tasks).itertuples():
        for what in ("positives", "negatives"):
            if r.split in SPLITS and not getattr(r, what):
                log.warning("audit: %s has no %s in %s", r.task, what, r.split)


def _check_duplicates(manifest, duplicates, on_duplicates):
    """Refuses pictures that are on two of SPLITS, or warns of them."""
    check_columns(duplicates, ("id", "other"), "duplicates")
    index, sides, images = pd.Index(manifest["id"]), [], []
    for name in ("id", "other"):
        row = index.get_indexer(duplicates[name])
        what = "are not in the manifest"
        refuse(row < 0, duplicates[name], "duplicates", what, "search these films")
        sides.append(manifest["split"].to_numpy()[row])
        images.append(manifest["image"].to_numpy()[row])
    leaks = [
        f"{one} ({here}) = {other} ({there})"
        for one, here, other, there in zip(images[0], sides[0], images[1], sides[1])
        if here != there and UNUSED not in (here, there)
    ]
    if not leaks:
        return
    found = (
        f"duplicates: {len(leaks)} pairs of films show the same picture on two "
        f"sides, e.g. {', '.join(leaks[:SHOWN])}"
    )
    if on_duplicates == "refuse":
        raise InputError(
            f"{found}; give both the same patient, remove one, or set "
            "split.duplicates='warn'"
        )
    log.warning("%s", found)


def reached(table, manifest, tasks) -> pd.DataFrame:
    """Counts what every side got of every task.

    Args:
      table: the films with their labels.
      manifest: M rows, all of them in the table.
      tasks: names of the table's label columns, T of them.

    Returns:
      [3 T] rows, `task` x `split`, or [4 T] where films are UNUSED: `films` and
      `patients` of the side; the `positives`, `negatives` and `unknown` films
      among them; `prevalence`, positives over known films; `share`, the side's
      share of the task's positives (NaN where there are none to share).

    Raises:
      InputError: a missing column or an id that the table does not hold.
    """
    check_columns(manifest, COLUMNS, "manifest")
    check_columns(table, ("id", *tasks), "table")
    row = _rows(manifest, table)
    names = (*SPLITS, UNUSED) if (manifest["split"] == UNUSED).any() else SPLITS
    sides = {name: (manifest["split"] == name).to_numpy() for name in names}
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
    check_columns(text, COLUMNS, str(path))
    for name in ("id", "patient"):
        wrong = ~text[name].str.fullmatch(r"-?\d{1,18}")
        refuse(wrong, text[name], f"{path}: {name}", "are no integers", "mend them")
    return text[list(COLUMNS)].astype({"id": np.int64, "patient": np.int64})


def _rows(manifest, table):
    ids = table["id"]
    refuse(ids.duplicated(), ids, "id", "rows of the table repeat one", "renumber")
    row = pd.Index(ids).get_indexer(manifest["id"])
    what = "ids of the manifest are not in the table"
    refuse(row < 0, manifest["id"], "id", what, "split this table again")
    return row


def refuse(wrong, values, field, what, remedy):
    """Raises for the rows that are wrong: how many, and one of them."""
    found = np.asarray(values)[np.asarray(wrong)].tolist()
    if found:
        raise InputError(f"{field}: {len(found)} {what}, e.g. {found[0]!r}; {remedy}")


def refuse_two_sides(patient, side):
    """Raises for patients who are on more than one side; [N] each."""
    sides = pd.Series(np.asarray(side)).groupby(np.asarray(patient)).nunique()
    refuse(sides > 1, sides.index, "patient", "are on two sides", "split by patient")


def check_by(by):
    """Raises for a unit of the split that is none."""
    if by not in ("patient", "image"):
        raise InputError(f"by: {by!r} is unknown; give 'patient' or 'image'")


def check_columns(frame, columns, what):
    """Raises for the first of the columns that the frame lacks."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(f"{what}: no column {missing[0]!r}; add it or correct it")

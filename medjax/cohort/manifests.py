"""The manifest: which patients train, validate and test, written down and audited.

A manifest is a DataFrame with one row per image: `id`, `image`, `patient` and
`split`, which is one of SPLITS, or UNUSED for an image on no side. A table has at
least `id`, `image`, `patient` and one float column per task, the label: positive from
0.5 on, NaN where unknown. An image is a film or a volume. `duplicates` are the pairs of
images that show the same picture, by `id` and `other`, see duplicates.py.
"""

import logging

import numpy as np
import pandas as pd

from medjax.cohort import identity
from medjax.errors import InputError, check_choice, reading
from medjax.files import write_table

SPLITS = ("train", "validation", "test")
UNUSED = "unused"
SPLIT_UNITS = ("patient", "image")  # What a split may divide.
MANIFEST = ("id", "image", "patient", "split")
LABELS = ("positives", "negatives", "unknown")
log = logging.getLogger("medjax")


def audit(
    manifest,
    table=None,
    tasks=(),
    by="patient",
    duplicates=None,
    on_duplicates="refuse",
    needed=SPLITS,
) -> None:
    """Refuses a manifest that leaks, or that doesn't belong to this table.

    Args:
      manifest: in any order.
      table: the images that it must cover exactly; None: not compared.
      tasks: the log names those without a positive or without a negative image on a
        side, because no ROC curve exists there.
      by: 'image' lets a patient be on two sides (a demonstration of leakage).
      duplicates: None: not checked.
      on_duplicates: 'refuse' a pair on two sides, or 'warn' about it in the log.
      needed: the splits that must not be empty.

    Raises:
      InputError: a repeated or unknown id, a missing image, an
        unknown split name, an empty split, a patient on two sides (UNUSED is not a
        side), a picture on two sides, or another image or patient than the table's.
    """
    check_choice("split.by", by, SPLIT_UNITS)
    check_choice("split.duplicates", on_duplicates, ("refuse", "warn"))
    ids, side = manifest["id"], manifest["split"]
    refuse(ids.duplicated(), ids, "id", "rows repeat an id", "split again")
    names = (*SPLITS, UNUSED)
    unknown = f"rows name a split not in {names}"
    refuse(~side.isin(names), side, "split", unknown, "correct the name")
    for name in needed:
        if not (side == name).any():
            raise InputError(f"split: {name} is empty; add patients or split again")
    if by == "patient":
        used = side != UNUSED
        refuse_two_sides(manifest["patient"][used], side[used])
    if table is not None:
        _check_table(manifest, table, tasks)
    if duplicates is not None and (leaks := _leaks(manifest, duplicates)):
        message = (
            f"duplicates: {len(leaks)} pairs of images show the same picture on two "
            f"sides, e.g. {', '.join(leaks[:3])}"
        )
        if on_duplicates == "refuse":
            raise InputError(
                f"{message}; give both the same patient, remove one, or set "
                "split.duplicates='warn'"
            )
        log.warning("%s", message)


def _check_table(manifest, table, tasks):
    """Refuses a manifest of other images; logs tasks with one class on a side."""
    ids = manifest["id"]
    row = _rows(manifest, table)
    missing = ~table["id"].isin(ids)
    what = "images of the table are missing from the manifest"
    refuse(missing, table["id"], "id", what, "split this table again")
    for name in ("patient", "image"):
        differs = manifest[name].to_numpy() != table[name].to_numpy()[row]
        what = f"ids have another {name} in the table"
        refuse(differs, ids, name, what, "split this table again")
    for counts in reached(table, manifest, tasks).itertuples():
        for what in ("positives", "negatives"):
            side = counts.split in SPLITS and counts.films
            if side and not getattr(counts, what):
                log.warning(
                    "audit: %s has no %s in %s", counts.task, what, counts.split
                )


def _leaks(manifest, duplicates) -> list[str]:
    """The pairs of one picture on two of SPLITS: 'a.png (train) = b.png (test)'."""
    rows = manifest.set_index("id")[["image", "split"]]
    ends = (rows.loc[duplicates[end]].values.tolist() for end in ("id", "other"))
    return [
        f"{first} ({side}) = {second} ({other_side})"
        for (first, side), (second, other_side) in zip(*ends, strict=True)
        if side != other_side and UNUSED not in (side, other_side)
    ]


def reached(table, manifest, tasks) -> pd.DataFrame:
    """Counts each task's labels on each side; the table may hold more images.

    Returns:
      [3 T] rows, `task` x `split`, or [4 T] if some images are UNUSED: the side's
      images (`films`) and `patients`; `positives`, `negatives` and `unknown` images;
      `prevalence`, positives over known images; `share`, the side's share of the
      task's positives (NaN if it has none).
    """
    sides, rows = _sides(table, manifest, tasks), []
    for task in tasks:
        total = sum(facts["tasks"][task]["positives"] for facts in sides.values())
        for name, facts in sides.items():
            counts = facts["tasks"][task]
            positives, known = counts["positives"], facts["films"] - counts["unknown"]
            ratios = [positives / n if n else np.nan for n in (known, total)]
            who = task, name, facts["films"], facts["patients"]
            rows.append((*who, *counts.values(), *ratios))
    columns = ("task", "split", "films", "patients", *LABELS, "prevalence", "share")
    return pd.DataFrame(rows, columns=columns)


def account(table, manifest, tasks, duplicates) -> dict:
    """The participant numbers of a report: who is on each side, and what may leak.

    Returns:
      sides: {split: `side`}.
      shared: patients on two sides.
      pairs: duplicates; leaks: those on two sides.
    """
    used = manifest[manifest["split"] != UNUSED]
    return {
        "sides": _sides(table, manifest, tasks),
        "shared": int((used.groupby("patient")["split"].nunique() > 1).sum()),
        "pairs": len(duplicates),
        "leaks": len(_leaks(manifest, duplicates)),
    }


def _sides(table, manifest, tasks) -> dict[str, dict]:
    """Split -> `side`, of SPLITS and, if some images are on none, UNUSED."""
    split = manifest["split"].to_numpy()
    images = table.iloc[_rows(manifest, table)]
    names = (*SPLITS, UNUSED) if UNUSED in split else SPLITS
    return {name: side(images[split == name], tasks) for name in names}


def side(images, tasks) -> dict:
    """Counts the images and patients of one side.

    Returns:
      films, patients: counts. tasks: {task: {positives, negatives, unknown}}.
      age: {median, low, high (quartiles), unknown} of the patients; sex: {value:
      patients}; view: {value: images}. Each is left out where no image has it. A
      patient's age and sex are those of the first image.
    """
    people = images.drop_duplicates("patient")
    counts = {}
    for task in tasks:
        label = images[task].to_numpy(float)
        flags = label >= 0.5, label < 0.5, np.isnan(label)
        numbers = (int(flag.sum()) for flag in flags)
        counts[task] = dict(zip(LABELS, numbers, strict=True))
    facts = {"films": len(images), "patients": len(people), "tasks": counts}
    if "age" in people and people["age"].notna().any():
        ends = people["age"].quantile([0.5, 0.25, 0.75]).tolist()
        facts["age"] = dict(zip(("median", "low", "high"), ends, strict=True))
        facts["age"]["unknown"] = int(people["age"].isna().sum())
    for name, rows in (("sex", people), ("view", images)):
        if name in rows and (rows[name] != "").any():
            values = rows[name].replace("", "unknown").value_counts()
            facts[name] = values.to_dict()
    return facts


def overlap(table, manifest, copies, *, other_hospital: bool) -> dict:
    """Finds images of other data that a run has seen: an external test's leakage audit.

    Args:
      table: the other images; manifest: the run's.
      copies: pairs that show one picture, `id` of the manifest and `other` of the table.
      other_hospital: equal ids are of other people; only pictures are compared.

    Returns:
      ids: those of the table's images that were seen in training or validation;
      patients: ids that occur in both, in any spelling; pictures: how many images show
      a seen picture; examples; tested: how many other images the run's own test has
      too; also other_hospital.
    """
    names, rows = table.set_index("id")["image"], manifest.set_index("id")
    copies = copies.assign(split=rows["split"].loc[copies["id"]].to_numpy())

    def found(splits: tuple[str, ...]) -> tuple[list[str], pd.Series, pd.DataFrame]:
        """Patient ids, and flags of images by patient or picture; pairs of pictures."""
        people = manifest["patient"][manifest["split"].isin(splits)]
        both = [] if other_hospital else identity.shared(table["patient"], people)
        pairs = copies[copies["split"].isin(splits)]
        known = table["patient"].astype(str).isin(both)
        return both, known | table["id"].isin(pairs["other"]), pairs

    both, seen, pairs = found(("train", "validation"))
    _, tested, _ = found(("test",))
    shown = [
        f"{names[pair.other]} = {rows['image'][pair.id]} ({pair.split})"
        for pair in pairs.head(3).itertuples()
    ]
    return {
        "ids": table["id"][seen].tolist(),
        "patients": both,
        "pictures": int(table["id"].isin(pairs["other"]).sum()),
        "tested": int((tested & ~seen).sum()),
        "examples": [*(f"patient {id!r}" for id in both[:3]), *shown],
        "other_hospital": other_hospital,
    }


def write(manifest, path) -> None:
    """Writes the manifest as CSV: MANIFEST, one row per image, in its order."""
    write_table(path, manifest[list(MANIFEST)])


def read(path) -> pd.DataFrame:
    """Reads a manifest that `write` wrote; `audit` checks its content.

    Raises:
      InputError: no such file, not a CSV, a missing column, an id that isn't an
        integer, or an image without a patient.
    """
    with reading(path, "write it again"):
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in MANIFEST if name not in text]:
        raise InputError(f"{path}: no column {missing[0]!r}; add it or correct it")
    wrong = ~text["id"].str.fullmatch(r"-?\d{1,18}")
    refuse(wrong, text["id"], f"{path}: id", "are no integers", "correct them")
    nobody = text["patient"] == ""
    refuse(nobody, text["image"], f"{path}: patient", "are empty", "fill them in")
    manifest = text[list(MANIFEST)].astype({"id": np.int64})
    return manifest.assign(patient=identity.column(text["patient"]))


def _rows(manifest, table):
    """The table's row of each row of the manifest, [M]."""
    row = pd.Index(table["id"]).get_indexer(manifest["id"])
    what = "ids of the manifest are not in the table"
    refuse(row < 0, manifest["id"], "id", what, "split this table again")
    return row


def refuse(wrong, values, field, what, remedy):
    """Raises if any row is wrong, with the number of wrong rows and one of them."""
    examples = np.asarray(values)[np.asarray(wrong)].tolist()
    if examples:
        raise InputError(
            f"{field}: {len(examples)} {what}, e.g. {examples[0]!r}; {remedy}"
        )


def refuse_two_sides(patient, side, remedy="split by patient"):
    """Raises if a patient is on more than one side; [N] each."""
    sides = pd.Series(np.asarray(side)).groupby(np.asarray(patient)).nunique()
    refuse(sides > 1, sides.index, "patient", "are on two sides", remedy)

"""Who is on which side of a split, in numbers that a report can hold."""

import pandas as pd

from medjax.cohort import manifest as manifests


def account(
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    tasks: tuple[str, ...],
    duplicates: pd.DataFrame,
) -> dict:
    """Counts the sides, and what may leak between them.

    Args:
      table: the films with their labels.
      manifest: rows with manifest.COLUMNS.
      tasks: names of the table's label columns.
      duplicates: pairs of films that show one picture, by `id` and `other`.

    Returns:
      sides: {split: {films, patients, tasks: {T: {positives, negatives, unknown}}}};
      shared: patients on two sides; pairs: of one picture; leaks: those on two sides.
      The side manifest.UNUSED is none.
    """
    sides: dict = {}
    for row in manifests.reached(table, manifest, tasks).to_dict("records"):
        side = {"films": row["films"], "patients": row["patients"], "tasks": {}}
        side = sides.setdefault(row["split"], side)
        names = ("positives", "negatives", "unknown")
        side["tasks"][row["task"]] = {name: int(row[name]) for name in names}
    for side in sides.values():
        side |= {name: int(side[name]) for name in ("films", "patients")}
    split = manifest.set_index("id")["split"]
    used = manifest[manifest["split"] != manifests.UNUSED]
    here, there = (split.loc[duplicates[end]].to_numpy() for end in ("id", "other"))
    unused = (here == manifests.UNUSED) | (there == manifests.UNUSED)
    return {
        "sides": sides,
        "shared": int((used.groupby("patient")["split"].nunique() > 1).sum()),
        "pairs": len(duplicates),
        "leaks": int(((here != there) & ~unused).sum()),
    }

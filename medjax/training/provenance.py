"""Which data and which split a run was made of, written down and held to."""

import hashlib
import json
from pathlib import Path

import pandas as pd

from medjax.cohort import splits
from medjax.errors import InputError

RECORDS = ("*.array_record*", "*.npy")  # Of images, and of volumes.


def hold(folder: Path, records: Path, manifest: pd.DataFrame) -> None:
    """Writes provenance.json of a run, or finds the same data and split there.

    Args:
      folder: the run's; its splits.csv, if there is one, is what it was split by.
      records: the folder of the prepared data.
      manifest: who is on which side now.

    Raises:
      InputError: a run that was begun with other data, or another split.
    """
    found = {"data": of_data(records), "split": of_split(manifest)}
    path = folder / "provenance.json"
    if path.exists():
        old = json.loads(path.read_text())
        if old["data"] != found["data"]:
            raise InputError(
                f"{folder}: the data under {records} changed since the run began "
                f"({_apart(old['data'], found['data'])}): use another --workdir, or "
                "bring the old data back"
            )
        if old["split"] != found["split"]:
            raise InputError(
                f"{folder}: the split changed since the run began "
                f"({_moved(splits.read(folder / 'splits.csv'), manifest)}): use another "
                "--workdir"
            )
    path.write_text(json.dumps(found, indent=2))


def of_data(records: Path) -> dict:
    """What tells prepared data from other data, without reading them.

    Their table and, of images, the perceptual hashes are read; of the records
    themselves only the names and sizes.
    """
    files = sorted(path for kind in RECORDS for path in records.glob(kind))
    sizes = {path.name: path.stat().st_size for path in files}
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for name in ("table.csv", "hashes.bin"):
        if (records / name).exists():
            digest.update((records / name).read_bytes())
    table = pd.read_csv(records / "table.csv", usecols=["patient"])
    return {
        "images": len(table),
        "patients": int(table["patient"].nunique()),
        "bytes": sum(sizes.values()),
        "sha256": digest.hexdigest(),
    }


def of_split(manifest: pd.DataFrame) -> dict:
    """How many images each side has, and a digest of which."""
    rows = manifest.sort_values("id")
    text = rows[["id", "patient", "split"]].to_csv(index=False, lineterminator="\n")
    counts = manifest["split"].value_counts().sort_index()
    counts = {name: int(n) for name, n in counts.items()}
    return {**counts, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _apart(old: dict, new: dict) -> str:
    """The facts that differ, of which the digest is the last resort."""
    names = [name for name in new if old.get(name) != new[name]]
    told = [name for name in names if name != "sha256"] or names
    return ", ".join(f"{name}: {old.get(name)} then, {new[name]} now" for name in told)


def _moved(old: pd.DataFrame, new: pd.DataFrame) -> str:
    """How many images changed sides, and the first of them."""
    both = old.merge(new, on="id", how="outer", suffixes=("_old", "_new"))
    moved = both[both["split_old"] != both["split_new"]]
    if moved.empty:
        return "other patients"
    first = moved.iloc[0]
    sides = (first[f"split_{which}"] for which in ("old", "new"))
    was, now = ("absent" if pd.isna(side) else side for side in sides)
    image = first["image_old"] if was != "absent" else first["image_new"]
    return f"{len(moved)} images are on another side, such as {image}: {was} then, {now} now"

"""The files of a run's folder, but for checkpoints and reports.

provenance.json says which data, split and weights the run was made of; a run that is
resumed must have the same.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from chex import ArrayTree

from medjax.cohort import manifests
from medjax.config import flatten
from medjax.data import prepared, records, volumes
from medjax.data.records import HASHES
from medjax.errors import InputError, some
from medjax.evaluation.inference import Predictions
from medjax.files import read_json, write_json, write_table

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Of a task's columns in predictions.
SUFFIXES = ("_label", "_log_odds", "_raw", "_threshold", "_call", "_answer", "_spread")
BEGUN = ("metrics.jsonl", "checkpoints", "report.json")  # Of a run that began to learn.
NOTES = (  # What precedes the first step.
    *("config.json", "provenance.json", "splits.csv", "target.csv", "task.json"),
    "novelty.json",
)


def forget_unbegun(folder: Path) -> bool:
    """Removes the notes of a run that was refused or killed before its first step.

    Returns whether there was one. Other folders stay as they are: only a run has an
    environment.json, and a page of `explore` may be older than the run.
    """
    begun = any((folder / name).exists() for name in BEGUN)
    if begun or not (folder / "environment.json").exists():
        return False
    for name in NOTES:
        (folder / name).unlink(missing_ok=True)
    return True


def claim(folder: Path, config: dict) -> None:
    """Writes config.json and environment.json, or checks that the config is the same.

    Raises:
      InputError: the folder holds a run of another config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if path.exists():
        refuse_other(folder, read_json(path), config)
    write_json(path, config)
    _write_environment(folder / "environment.json")


def refuse_other(
    folder: Path, old: dict, config: dict, remedy: str = "use another --workdir"
) -> None:
    """Raises if the folder's config is another, and names the first fields that are."""
    old, new = flatten(old), flatten(config)
    # As text: NaN doesn't equal itself.
    apart = [
        f"config.{k} is {old.get(k)}, not {new.get(k)}"
        for k in old | new
        if json.dumps(old.get(k)) != json.dumps(new.get(k))
    ]
    if apart:
        raise InputError(f"{folder}: holds a run whose {some(apart)}: {remedy}")


def environment() -> dict:
    """What the numbers depend on besides the config.

    revision is git's commit and dirty whether files differ from it; both are None if
    the code is no checkout.
    """
    here = Path(__file__)
    tracked = _git("ls-files", here.name) == here.name  # Not of a checkout around us.
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "devices": [str(device) for device in jax.devices()],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "revision": _git("rev-parse", "HEAD") or None if tracked else None,
        "dirty": bool(_git("status", "--porcelain")) if tracked else None,
    }


def _write_environment(path: Path) -> None:
    """Writes environment.json; earlier environments of the run stay under `before`."""
    now, before = environment(), []
    if path.exists():
        old = read_json(path)
        before = old.pop("before", [])
        if old != now:
            before.append(old)
    write_json(path, now | {"before": before})


def _git(*arguments: str) -> str:
    """git's answer in this file's folder; '' without git, or outside a checkout."""
    command = ["git", "-C", os.fspath(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def write_task(folder: Path, output: tuple) -> None:
    """Writes task.json: what the model says, films.FindingsOutput or scans.MasksOutput."""
    write_json(folder / "task.json", output._asdict())


def read_task(folder: Path) -> dict:
    """Reads task.json back.

    Raises:
      InputError: the folder's training hasn't begun.
    """
    path = folder / "task.json"
    if not path.exists():
        raise InputError(f"{folder}: no task.json: train the run first")
    task = read_json(path)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in task.items()}


def write_predictions(
    path: Path,
    tasks: tuple[str, ...],
    table: pd.DataFrame,
    predictions: Predictions,
    raw: np.ndarray | None = None,
    threshold: np.ndarray | None = None,
    more: dict[str, np.ndarray] | None = None,
) -> None:
    """Writes predictions/<split>.csv: image, patient, and three to six columns a task.

    An unknown label is left empty.

    Args:
      table: has the columns `image` and `patient`, a row for each id, its index.
      raw: [N, T], the probabilities before calibration: a column T_raw each.
      threshold: [T], see `with_calls`.
      more: columns [N] beside these.
    """
    path.parent.mkdir(exist_ok=True)
    rows = table[["image", "patient"]].loc[predictions.id]
    columns = {name: rows[name].to_numpy() for name in rows}
    known = np.where(predictions.weight > 0, predictions.label, np.nan)
    for t, task in enumerate(tasks):
        columns[task] = predictions.probability[:, t]
        columns[f"{task}_label"] = known[:, t]
        columns[f"{task}_log_odds"] = predictions.ranking[:, t]
        if raw is not None:
            columns[f"{task}_raw"] = raw[:, t]
    written = pd.DataFrame(columns)
    if threshold is not None:
        written = with_calls(written, tasks, threshold)
    write_table(path, written.assign(**(more or {})))


def with_calls(
    table: pd.DataFrame, tasks: Sequence[str], threshold: np.ndarray
) -> pd.DataFrame:
    """The table with T_threshold and T_call beside each probability T.

    The call is 1 from the threshold on, else 0; both are empty without a threshold.
    """
    columns = {}
    for name in table:
        columns[name] = table[name]
        if name in tasks:
            point = np.float32(threshold[tasks.index(name)])
            call = (table[name].astype(np.float32) >= point).astype("Int64")
            columns[f"{name}_threshold"] = point
            columns[f"{name}_call"] = pd.NA if np.isnan(point) else call
    return pd.DataFrame(columns, index=table.index)


def hold(
    folder: Path,
    records: Path,
    manifest: pd.DataFrame,
    *,
    target: tuple[Path, pd.DataFrame] | None = None,
    weights: ArrayTree | None = None,
) -> None:
    """Writes provenance.json of a run, or checks that the run is made of the same.

    Args:
      records: the folder of the prepared data.
      manifest: of the split now; the folder's splits.csv, if any, holds the old one.
      target: the same of the data that the run is adapted to, with target.csv.
      weights: the first weights, if they are given.

    Raises:
      InputError: a run that was begun with other data, another split or other weights,
        or whose splits.csv or target.csv were changed.
    """
    old = _provenance(folder)
    now = _checked(folder, old, records, manifest, "splits.csv")
    if target is not None:
        now["target"] = _checked(folder, old.get("target"), *target, "target.csv")
    if weights is not None:
        now["weights"] = of_weights(weights)
        if old and old["weights"] != now["weights"]:
            raise InputError(
                f"{folder}: the weights of transfer.init changed since the run began: "
                "use another --workdir, or bring the old weights back"
            )
    write_json(folder / "provenance.json", now)


def _provenance(folder: Path) -> dict:
    """The folder's provenance.json; {} before the run begins."""
    path = folder / "provenance.json"
    return read_json(path) if path.exists() else {}


def _checked(
    folder: Path, old: dict | None, records: Path, manifest: pd.DataFrame, name: str
) -> dict:
    """{data, split} now, which must equal the old ones, if any; `name`: of the split."""
    now = {"data": of_data(records), "split": of_split(manifest)}
    if not old:
        return now
    if old["data"] != now["data"]:
        raise InputError(
            f"{folder}: the data under {records} changed since the run began "
            f"({_apart(old['data'], now['data'])}): use another --workdir, or "
            "bring the old data back"
        )
    written = sides(folder, name) if (folder / name).exists() else None
    if old["split"] != now["split"]:
        who = f"and {name} is gone" if written is None else _moved(written, manifest)
        raise InputError(
            f"{folder}: the split changed since the run began ({who}): use another "
            "--workdir"
        )
    return now


def sides(folder: Path, name: str = "splits.csv") -> pd.DataFrame:
    """The split of a run, as it was written when the run began.

    `name` is of the file; target.csv: of the data that the run is adapted to.

    Raises:
      InputError: the file was changed since.
    """
    manifest = manifests.read(folder / name)
    old = _provenance(folder)
    if name == "target.csv":
        old = old.get("target", {})
    if "split" in old and of_split(manifest) != old["split"]:
        raise InputError(
            f"{folder / name}: was changed after the run began, which trained by "
            "another: bring it back, or delete it and give `train` again"
        )
    return manifest


def write_held_out(folder: Path, rows: pd.DataFrame) -> None:
    """Writes held_out.csv of joined runs: `id` and `run`, see commands/join.py."""
    write_table(folder / "held_out.csv", rows)


def read_held_out(folder: Path) -> dict[int, np.ndarray] | None:
    """{run: ids}, what `write_held_out` wrote; None of a run that isn't joined."""
    if not (folder / "held_out.csv").exists():
        return None
    rows = pd.read_csv(folder / "held_out.csv")
    return {int(run): ids.to_numpy() for run, ids in rows.groupby("run")["id"]}


def of_data(records: Path) -> dict:
    """Counts and a digest of prepared data, computed without reading all of them.

    The digest covers the table, the perceptual hashes of images or the digests of
    volumes, and the names and sizes of the arrays.
    """
    files = sorted(records.glob("*.npy"))
    sizes = {path.name: path.stat().st_size for path in files}
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for name in ("table.csv", HASHES, volumes.DIGESTS):
        if (records / name).exists():
            digest.update((records / name).read_bytes())
    table = prepared.read_table(records)
    return {
        "images": len(table),
        "patients": int(table["patient"].nunique()),
        "bytes": sum(sizes.values()),
        "sha256": digest.hexdigest(),
    }


def of_pictures(folder: Path, rows: pd.DataFrame) -> str:
    """A digest of the images of some rows of a prepared folder's table, by their names.

    It covers the same as that of `of_data`: hashes of images, digests of volumes.
    """
    rows = rows.sort_values("image")
    if (folder / volumes.DIGESTS).exists():
        files = read_json(folder / volumes.DIGESTS)
        content = "".join(files[f"{n}.image.npy"] for n in rows["volume"]).encode()
    else:
        content = records.read_hashes(folder)[rows["id"]].tobytes()
    return hashlib.sha256(content).hexdigest()


def of_weights(tree: ArrayTree) -> str:
    """A digest of arrays, their names and types."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def of_split(manifest: pd.DataFrame) -> dict:
    """The number of images in each split, and a digest of the manifest."""
    rows = manifest.sort_values("id")
    text = rows[["id", "patient", "split"]].to_csv(index=False, lineterminator="\n")
    counts = manifest["split"].value_counts().sort_index().to_dict()
    return {**counts, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _apart(old: dict, new: dict) -> str:
    """The facts that differ; the digest only if nothing else does."""
    names = [name for name in new if old.get(name) != new[name]]
    shown = [name for name in names if name != "sha256"] or names
    return ", ".join(f"{name}: {old.get(name)} then, {new[name]} now" for name in shown)


def _moved(old: pd.DataFrame, new: pd.DataFrame) -> str:
    """The number of images that changed splits, and the first of them."""
    both = old.merge(new, on="id", how="outer", suffixes=("_old", "_new"))
    both = both.fillna({"split_old": "absent", "split_new": "absent"})
    moved = both[both["split_old"] != both["split_new"]]
    if moved.empty:
        return "other patients"
    first = moved.iloc[0]
    was, now = first["split_old"], first["split_new"]
    image = first["image_new" if was == "absent" else "image_old"]
    return f"{len(moved)} images are in another split, such as {image}: {was} then, {now} now"

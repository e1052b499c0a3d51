"""The sides of a run: who trains, validates and tests; audited, and in batches."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd

from medjax.cohort import manifests, splits
from medjax.config import Config
from medjax.data import loader
from medjax.errors import InputError
from medjax.evaluation import conformal


def split(config: Config, data: Any) -> pd.DataFrame:
    """The split that `config.split` asks for, of images or scans, not yet audited.

    A fold or a split in time comes first, as it is asked for by name; then the
    official lists, where the data have a test list; else a sample. `split.patients` of
    those who would train do; a larger number keeps the same patients and adds others,
    so learning curves are of nested sets. With `split.seed`, runs of several seeds are
    tested on the same patients.

    Raises:
      InputError: there aren't so many patients, or an official split has no test.
    """
    c, table = config.split, data.table
    official = set(table.get("official", ())) - {""}
    if "test" not in official:
        if column := config.data.get("official", ""):
            raise InputError(
                f"data.official={column!r}: no image says 'test', so the column can't be "
                "used: name some, or set data.official='' to sample all splits"
            )
        sampled = c.by == "patient" and not c.folds and not c.get("cut", 0)
        if "validation" in official and sampled:
            raise InputError(
                "the data's own split has validation images and no test images, and a "
                "sample would train on its validation images: add the test images, or set "
                "split.folds, which doesn't use that split"
            )
    seed = config.seed if c.seed < 0 else c.seed
    options = {"seed": seed, "validation": c.validation}
    options["minority"] = c.get("minority", 0.0)
    arguments = table, data.output.stratified
    if c.folds:
        manifest = splits.fold(*arguments, folds=c.folds, fold=c.fold, **options)
    elif c.get("cut", 0):
        manifest = splits.temporal(*arguments, cut=c.cut, test=c.test, **options)
    elif c.by == "patient" and "test" in official:
        manifest = splits.official(*arguments, **options)
    else:
        manifest = splits.split(*arguments, test=c.test, by=c.by, **options)
    if c.patients == 0:
        return manifest
    trains = manifest["split"] == "train"
    names = np.unique(manifest["patient"][trains])
    if not 0 < c.patients <= len(names):
        raise InputError(
            f"split.patients={c.patients}: {len(names)} train in all: give 1 to "
            f"{len(names)}, or 0 for all of them"
        )
    kept = np.random.default_rng(seed).permutation(names)[: c.patients]
    left_out = trains & ~manifest["patient"].isin(kept)
    return manifest.assign(split=manifest["split"].mask(left_out, manifests.UNUSED))


def audit(
    config: Config,
    data: Any,
    manifest: pd.DataFrame,
    *,
    by: str = "",
    needed: tuple[str, ...] = manifests.SPLITS,
) -> None:
    """Refuses a manifest that leaks or belongs to other data, see manifests.audit.

    A split `by` image (without it: as `config.split` says) leaks on purpose: pairs of
    one image are only warned of then. The splits that are `needed` must not be empty.
    """
    c = config.split
    by = by or c.by
    manifests.audit(
        manifest,
        data.table,
        data.output.stratified,
        by=by,
        duplicates=data.pairs(),
        on_duplicates="warn" if by == "image" else c.get("duplicates", "refuse"),
        needed=needed,
    )


def check_labels(data: Any, manifest: pd.DataFrame) -> None:
    """Refuses a side without a known label: nothing could be learnt or measured."""
    for side in manifests.SPLITS:
        ids = ids_in(manifest, side)
        if len(ids) and np.isnan(data.label(ids)).all():
            raise InputError(
                f"split: no label of {side} is known: add some, or patients"
            )


def check_answers(config: Config, data: Any, manifest: pd.DataFrame) -> None:
    """Refuses an error rate that needs more validation patients with an answer.

    And names of classes that can't be told from several ones, see conformal.columns.
    """
    if not (error := config.evaluation.get("error_rate", 0.0)):  # Masks have none.
        return
    for name in data.output.names if data.output.exclusive else ():
        if ";" in name:
            raise InputError(
                f"evaluation.error_rate={error:g} lists plausible classes by ';', and "
                f"{name!r} holds one: rename it"
            )
    rows = manifest[manifest["split"] == "validation"]
    label = data.label(rows["id"].to_numpy())
    names, exclusive = data.output.names, data.output.exclusive
    right = conformal.answers(label, ~np.isnan(label), exclusive)
    choices = names if exclusive else conformal.ANSWERS
    number = conformal.patients(right, rows["patient"].to_numpy(), len(choices))
    if number.min() < (needed := conformal.needed(error)):
        q, a = np.unravel_index(number.argmin(), number.shape)
        answer = choices[a] if exclusive else f"{names[q]} {choices[a]}"
        raise InputError(
            f"evaluation.error_rate={error:g} needs {needed} validation patients with "
            f"each answer, and {number.min()} have {answer}: give a larger rate, more "
            "patients in validation, or leave this out of data.tasks"
        )


def train_batches(
    config: Config,
    images: Any,
    target: loader.Images | None = None,
    *,
    each: int = 1,
    on_host: bool = False,
) -> Any:
    """Device batches without end; `config.train.batch` counts all devices.

    Args:
      images: films or volumes.
      target: films of another domain; a batch holds as many of them besides.
      each: rows of the batch that one image gives, the patches of a volume.
      on_host: whether they stay there, [1, B, ...], for several runs to share.
    """
    shards = 1 if on_host else jax.device_count()
    return loader.train_batches(
        images,
        seed=config.seed,
        batch=config.train.batch // (shards * each),
        devices=1 if on_host else jax.local_device_count(),
        threads=config.train.threads,
        target=target,
        on_host=on_host,
    )


def ids_in(manifest: pd.DataFrame, split: str) -> np.ndarray:
    """[N], the numbers of the images in a split."""
    return manifest["id"][manifest["split"] == split].to_numpy()


def shape(config: Config) -> dict[str, int]:
    """Rows a device (rounded up) and devices of an evaluation batch."""
    devices = jax.local_device_count()
    return {"batch": -(-config.evaluation.batch // devices), "devices": devices}


def evaluation_batches(config: Config, films: loader.Images) -> Iterator[loader.Batch]:
    """Every image once."""
    return loader.evaluation_batches(films, **shape(config))

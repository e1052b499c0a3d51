"""The study: which images, which tasks, who is on which side, how often each counts."""

import hashlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
from rich.progress import Progress

from medjax.cohort import balance, duplicates
from medjax.cohort import split as splits
from medjax.config import Config, shape
from medjax.data import loader, prepared, sources
from medjax.errors import InputError

NOT_FOR_THE_SOURCE = ("source", "records", "max_quarantined", "tasks")
# What `imbalance` may say: how the loss weighs the classes, how often the loader
# shows an image, or what the classifier is fitted to again.
WEIGHTS = {"none": "uniform", **{s: s for s in ("ratio", "balanced", "effective")}}
PLANS = ("over_sample", "under_sample", "both", "repeat_factor")
SYNTHETIC = ("smote", "adasyn")


class Task(NamedTuple):
    """What a model says of an image.

    names: T findings or classes.
    exclusive: whether an image has exactly one of them.
    shape: of the image, (H, W, C) or (D, H, W, C).
    """

    names: tuple[str, ...]
    exclusive: bool
    shape: tuple[int, ...]


class Data(NamedTuple):
    """Prepared images: where their records are, their table, and the task."""

    path: Path
    table: pd.DataFrame
    task: Task

    def films(self, ids: np.ndarray) -> loader.Images:
        """The images of these numbers, in this order."""
        known = prepared.tasks_of(self.table)
        return loader.Images(
            self.path, ids, [known.index(name) for name in self.task.names]
        )

    def side(self, manifest: pd.DataFrame, split: str) -> loader.Images:
        """The images of one split of the manifest."""
        return self.films(manifest["id"][manifest["split"] == split].to_numpy())

    def label(self, ids: np.ndarray) -> np.ndarray:
        """[N, T] labels of these images, NaN where unknown."""
        label = self.table.set_index("id").loc[ids, list(self.task.names)]
        return label.to_numpy(float)


def data(config: Config) -> Data:
    """The records of `config.data`; they are made where they are missing.

    Raises:
      InputError: an unknown source or task, files that are refused, or tables that
        have changed since the records were made.
    """
    options = config.data.to_dict()
    options = {k: v for k, v in options.items() if k not in NOT_FOR_THE_SOURCE}
    if config.data.source not in sources.IMAGES:
        names = ", ".join(map(repr, sources.IMAGES))
        raise InputError(f"data.source={config.data.source!r} is unknown: use {names}")
    make = sources.IMAGES[config.data.source]
    if "task" in inspect.signature(make).parameters:  # The labels' meaning.
        options["task"] = config.task
    text = json.dumps(options, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{config.data.source}-{config.data.side}px-{digest}"
    root = Path(config.data.records).expanduser()
    path = prepared.folder(root, name)
    if not prepared.is_prepared(path):
        source = make(**options)
        with Progress() as progress:
            bar = progress.add_task(f"prepare {name}", total=source.total)
            prepared.prepare(
                source,
                records=root,
                name=name,
                max_quarantined=config.data.max_quarantined,
                progress=lambda: progress.advance(bar),
            )
    prepared.check_source(
        path, prepared.digest_tables(options["folder"]) if "folder" in options else {}
    )
    table = prepared.read_table(path)
    known = prepared.tasks_of(table)
    names = tuple(config.data.tasks) or known
    # The phantom says 'mass', NIH 'Mass': a finding is called as it is asked for.
    asked = {name.lower(): name for name in names if name not in known}
    table = table.rename(columns={k: asked.get(k.lower(), k) for k in known})
    known = prepared.tasks_of(table)
    for name in names:
        if name not in known:
            raise InputError(f"data.tasks: {name!r} is none of {', '.join(known)}")
    if config.task not in ("multilabel", "multiclass"):
        raise InputError(f"task={config.task!r}: use 'multilabel' or 'multiclass'")
    exclusive = config.task == "multiclass"
    if exclusive:
        check_classes(table, names)
    return Data(path, table, Task(names, exclusive, prepared.shape_of(path)))


def check_classes(table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Refuses an image of several classes, or of none.

    Raises:
      InputError: that, or a class alone.
    """
    label = table[list(classes)].to_numpy(float)
    unknown = np.isnan(label).all(axis=1)
    wrong = ~unknown & ~np.isclose(label.sum(axis=1), 1)  # NaN is wrong too.
    if wrong.any() or len(classes) < 2:
        image = [*table["image"][wrong], "every image"][0]
        raise InputError(
            f"task='multiclass': {image} has not exactly one of the classes "
            f"{', '.join(classes)}: set task='multilabel', or correct data.tasks"
        )


def manifest(config: Config, data: Data) -> pd.DataFrame:
    """Who is on which side, audited."""
    found = sides(config, data)
    audit(config, found, data)
    return found


def sides(config: Config, data: Data) -> pd.DataFrame:
    """Who is on which side, not yet audited.

    A fold or a split in time comes first, as it is asked for by name; then the
    official lists, where the data have them; else a sample. Of those who would train
    then, `config.split.patients` do. The split has the run's seed, or one of its own,
    `split.seed`: runs of several seeds are then tested on the same patients.
    """
    seed = config.seed if config.split.seed < 0 else config.split.seed
    return _fewer(_all_sides(config, data, seed=seed), config.split.patients, seed=seed)


def _all_sides(config: Config, data: Data, *, seed: int) -> pd.DataFrame:
    """`sides` with all patients who can train."""
    c, table, tasks = config.split, data.table, data.task.names
    common = {"seed": seed, "validation": c.validation, "minority": c.minority}
    listed = {
        name: table["image"][table["official"] == name]
        for name in ("train", "validation", "test")
    }
    if c.folds:
        return splits.fold(table, tasks, folds=c.folds, fold=c.fold, **common)
    if c.cut:
        return splits.temporal(table, tasks, cut=c.cut, test=c.test, **common)
    if c.by == "patient" and len(listed["test"]):
        validation = listed["validation"]
        return splits.official(
            table,
            tasks,
            train_val=pd.concat([listed["train"], validation]),
            test=listed["test"],
            validation_list=validation if len(validation) else None,
            **common,
        )
    return splits.split(table, tasks, test=c.test, by=c.by, **common)


def _fewer(manifest: pd.DataFrame, patients: int, *, seed: int) -> pd.DataFrame:
    """Leaves out all but so many training patients; 0 keeps all.

    More patients are the fewer ones and others: curves of them are of nested sets.

    Raises:
      InputError: there aren't so many.
    """
    if patients == 0:
        return manifest
    trains = manifest["split"] == "train"
    names = np.unique(manifest["patient"][trains])
    if not 0 < patients <= len(names):
        raise InputError(
            f"split.patients={patients}: {len(names)} train in all: give 1 to "
            f"{len(names)}, or 0 for all of them"
        )
    kept = np.random.default_rng(seed).permutation(names)[:patients]
    left_out = trains & ~manifest["patient"].isin(kept)
    return manifest.assign(split=manifest["split"].mask(left_out, splits.UNUSED))


def audit(config: Config, manifest: pd.DataFrame, data: Data) -> None:
    """Refuses a manifest that leaks or belongs to other data.

    A split by image leaks on purpose: what looks the same in it is only said.
    """
    leaks = config.split.by == "image"
    splits.audit(
        manifest,
        data.table,
        data.task.names,
        by=config.split.by,
        duplicates=same_images(data),
        on_duplicates="warn" if leaks else config.split.duplicates,
    )


def same_images(data: Data) -> pd.DataFrame:
    """The pairs of records that show one image, see cohort/duplicates.py.

    They are looked for once, and kept beside the records as duplicates.csv.
    """
    path = data.path / "duplicates.csv"
    if not path.exists():
        films = data.films(data.table["id"].to_numpy())
        found = duplicates.candidates(prepared.read_hashes(data.path))
        found = duplicates.confirm(found, lambda id: films[id]["image"])
        unfinished = path.with_suffix(f".{os.getpid()}")
        found.to_csv(unfinished, index=False)
        unfinished.rename(path)  # Two runs may look at the same time.
    return pd.read_csv(path, keep_default_na=False)


def treats(config: Config, kind) -> bool:
    """Whether `config.imbalance` is one of WEIGHTS, PLANS or SYNTHETIC."""
    known = (*WEIGHTS, *PLANS, *SYNTHETIC)
    if config.imbalance not in known:
        options = ", ".join(map(repr, known))
        raise InputError(f"imbalance={config.imbalance!r} is unknown: use {options}")
    return config.imbalance in kind


def plan(config: Config, label: np.ndarray) -> balance.Epoch | None:
    """How often each training image is shown, where `config.imbalance` says it.

    Args:
      label: [N, T] of the training images, NaN where unknown.

    Returns:
      Positions among the N; None where each is shown once an epoch.
    """
    if not treats(config, PLANS):
        return None
    c = config.resampling
    options = {"seed": config.seed, "target": c.target}
    if config.imbalance != "repeat_factor":
        options["any_positive"] = c.any_positive
    if config.imbalance in ("over_sample", "both"):
        options["most"] = c.most
    return getattr(balance, config.imbalance)(label, **options)


def train_batches(
    config: Config,
    films: loader.Images,
    target: loader.Unlabelled | None = None,
    *,
    on_host: bool = False,
) -> loader.TrainBatches:
    """Device batches without end; `config.train.batch` counts all devices.

    Args:
      target: films of another domain; a batch holds as many of them besides.
      on_host: whether they stay there, [1, B, ...], for others to share.
    """
    shards = 1 if on_host else jax.device_count()
    if config.train.batch % shards:
        raise InputError(
            f"train.batch={config.train.batch} can't be shared by {shards} devices"
        )
    return loader.TrainBatches(
        films,
        seed=config.seed,
        batch=config.train.batch // shards,
        devices=1 if on_host else jax.local_device_count(),
        threads=config.train.threads,
        target=target,
        on_host=on_host,
    )


def evaluation_batches(config: Config, films: loader.Images) -> Iterator[loader.Batch]:
    """Every image once."""
    return loader.evaluation_batches(films, **shape(config))

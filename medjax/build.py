"""Config -> functions: the only module that reads a config or turns a name into code."""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from rich.progress import Progress

from medjax import losses
from medjax.augment import intensity, policy
from medjax.cohort import imbalance, splits
from medjax.data import chest, loader, modality, reading, records, schema
from medjax.errors import InputError
from medjax.evaluation import inference, results
from medjax.geometry import warp
from medjax.models import densenet
from medjax.reports import page
from medjax.training import journal, loop, optim, step, workdir
from medjax.training.checkpoint import Checkpoints

NOT_FOR_THE_SOURCE = ("source", "records", "max_quarantined", "tasks")


class Data(NamedTuple):
    """Prepared films: where they are, their table, and the tasks to learn."""

    path: Path
    table: pd.DataFrame
    tasks: tuple[str, ...]

    def films(self, manifest: pd.DataFrame, split: str) -> loader.Films:
        """The films of one split of the manifest."""
        ids = manifest["id"][manifest["split"] == split]
        columns = [schema.tasks_of(self.table).index(task) for task in self.tasks]
        return loader.Films(self.path, ids.to_numpy(), columns)


# ------------------------------------------------------------------- commands


def prepare(config: ConfigDict) -> Data:
    """Makes the records of `config.data`, unless they are there."""
    options = config.data.to_dict()
    options = {k: v for k, v in options.items() if k not in NOT_FOR_THE_SOURCE}
    text = json.dumps(options, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"{config.data.source}-{config.data.side}px-{digest}"
    root = Path(config.data.records).expanduser()
    path = records.folder(root, name)
    if not records.is_prepared(path):
        source = _named(chest, config.data.source, "data.source")(**options)
        with Progress() as progress:
            bar = progress.add_task(f"prepare {name}", total=source.films)
            records.prepare(
                source,
                records=root,
                name=name,
                side=config.data.side,
                max_quarantined=config.data.max_quarantined,
                progress=lambda: progress.advance(bar),
            )
        left_out = len(pd.read_csv(path / "quarantine.csv"))
        print(f"prepared: {path} ({left_out} of {source.films} files quarantined)")
    table = records.read_table(path)
    known = schema.tasks_of(table)
    tasks = tuple(config.data.tasks) or known
    for task in tasks:
        if task not in known:
            raise InputError(f"data.tasks: {task!r} is none of {', '.join(known)}")
    return Data(path, table, tasks)


def train(config: ConfigDict, folder: Path) -> None:
    """Trains, or goes on training, and reports the test split.

    Args:
      config: of the run.
      folder: the run's; holds everything that comes out.

    Raises:
      InputError: a mistake in the config or the data, or a diverged training.
    """
    folder = Path(folder)
    workdir.claim(folder, json.loads(config.to_json()))
    data = prepare(config)
    manifest = split(config, data)
    splits.audit(manifest, data.table, data.tasks, by=config.split.by)
    splits.write(manifest, folder / "splits.csv")
    films = data.films(manifest, "train")
    devices = jax.local_device_count()
    shards = devices * jax.process_count()
    if config.train.batch % shards:
        raise InputError(
            f"train.batch={config.train.batch} can't be shared by {shards} devices"
        )
    model, optimizer = network(config, len(data.tasks)), descent(config)
    label = data.table.set_index("id").loc[films.ids, list(data.tasks)]
    weights = imbalance.class_weights(
        label.to_numpy(float), tasks=data.tasks, scheme=config.loss.weights
    )
    state = initial_state(config, model, weights)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sides = ", ".join(f"{n} {s}" for s, n in manifest["split"].value_counts().items())
    print(f"{config.model.name}: {size:,} parameters; films: {sides}")

    batches = loader.TrainBatches(
        films,
        seed=config.seed,
        batch=config.train.batch // shards,
        devices=devices,
        threads=config.train.threads,
    )
    validation = data.films(manifest, "validation")
    with Checkpoints(folder / "checkpoints", keep=config.train.keep) as checkpoints:
        complete = loop.fit(
            state,
            workdir=folder,
            steps=config.train.steps,
            step=step.compile_step(
                apply=model.apply,
                augment=augmentation(config),
                loss=_named(losses, config.loss.name, "loss.name"),
                optimizer=optimizer,
            ),
            batches=batches,
            evaluate=lambda state: results.means(
                predictions(config, model, state, validation)
            ),
            checkpoints=checkpoints,
            key=jax.random.key(config.seed + 1),
            log_every=config.train.log_every,
            evaluate_every=config.train.evaluate_every,
        )
    batches.close()
    if complete:
        evaluate(folder)


def evaluate(
    folder: Path, *, split: str = "test", other: ConfigDict | None = None
) -> dict:
    """Reports a run on one of its splits, or on all films of other data.

    Args:
      folder: of the run.
      split: 'test', 'validation' or 'train'.
      other: a config whose data are evaluated as a whole instead; `split` then
        only names the report.

    Returns:
      The results, see evaluation/results.py; also written as `report.*` (for
      another split than test `report-<split>.*`) and `predictions/<split>.csv`.
    """
    folder = Path(folder)
    config = ConfigDict(workdir.read_config(folder))
    data = prepare(config)
    manifest = splits.read(folder / "splits.csv")
    splits.audit(manifest, data.table, by=config.split.by)
    model = network(config, len(data.tasks))
    number, state = restore(config, folder, model, len(data.tasks))
    threshold = thresholds(config, folder, data, manifest, number, state)
    if other is not None:
        trained = set(manifest["patient"][manifest["split"] == "train"])
        config.data = other.data
        data = prepare(config)._replace(tasks=data.tasks)
        shared = len(trained & set(data.table["patient"]))
        if shared:
            print(
                f"note: {shared} patient numbers occur in training too: other people?"
            )
        manifest = data.table.assign(split=split)
    elif split not in splits.SPLITS:
        raise InputError(f"--split={split}: use one of {', '.join(splits.SPLITS)}")
    found = predictions(config, model, state, data.films(manifest, split))
    path = folder / "predictions" / f"{split}.csv"
    workdir.write_predictions(path, data.tasks, data.table["image"], found)
    summary = {
        "split": split,
        "source": config.data.source,
        "model": config.model.name,
        "split_by": config.split.by,
        "checkpoint": number,
        "steps": config.train.steps,
        **results.summarise(
            found,
            tasks=data.tasks,
            threshold=threshold,
            key=jax.random.key(config.seed + 2),
            replicates=config.evaluation.replicates,
        ),
    }
    name = "report" if split == "test" else f"report-{split}"
    written = page.write(summary, journal.read(folder / "metrics.jsonl"), folder, name)
    page.show(summary)
    print(f"report: {written}")
    return summary


def predict(folder: Path, *, images: list[str], out: Path) -> list[str]:
    """Writes a run's probabilities for new image files.

    Args:
      folder: of a finished run.
      images: files or folders.
      out: CSV: image, then a column a task, in the run's order.

    Returns:
      One line for each file that could not be read; they have no row.
    """
    folder = Path(folder)
    config = ConfigDict(workdir.read_config(folder))
    frozen = workdir.read_thresholds(folder)
    if frozen is None:
        raise InputError(f"{folder}: the run isn't finished: train it to its end first")
    tasks = tuple(frozen[1])
    model = network(config, len(tasks))
    _, state = restore(config, folder, model, len(tasks))
    paths = [path for image in images for path in reading.film_paths(image)]
    batch, devices = _share(config.evaluation.batch)
    rows, unread = [], []
    with Progress() as progress:
        for path, found in progress.track(
            inference.predict_files(
                paths,
                functools.partial(model.predict, state),
                side=config.data.side,
                batch=batch,
                devices=devices,
            ),
            total=len(paths),
            description="predict",
        ):
            if isinstance(found, str):
                unread.append(found)
            else:
                rows.append([path, *found])
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["image", *tasks]).to_csv(out, index=False)
    print(f"predictions: {out} ({len(rows)} films, {len(unread)} unreadable files)")
    return unread


# ---------------------------------------------------------------------- parts


class Network(NamedTuple):
    """A model with its parts bound.

    init: key -> fresh variables.
    apply: Linen's.
    predict: (state, image [D, B, H, W, C]) -> probability [D, B, T].
    """

    init: Callable
    apply: Callable
    predict: Callable


def network(config: ConfigDict, tasks: int) -> Network:
    """The model of `config.model`, computing in `config.train.dtype`."""
    options = config.model.to_dict()
    make = _named(densenet, options.pop("name"), "model.name")
    dtype = jnp.dtype(config.train.dtype)
    model = make(tasks=tasks, dtype=dtype, axis_name=step.AXIS, **options)
    blank = jnp.zeros((1, config.data.side, config.data.side, 1))
    views = functools.partial(
        modality.views, prepare=preparation(config), flip=config.evaluation.flip
    )
    return Network(
        init=lambda key: model.init(key, blank, train=False),
        apply=model.apply,
        predict=step.compile_eval(apply=model.apply, views=views),
    )


def split(config: ConfigDict, data: Data) -> pd.DataFrame:
    """Assigns every patient to a split: a fold, the official lists, or a sample."""
    c = config.split
    common = {k: c[k] for k in ("validation", "minority")} | {"seed": config.seed}
    official = data.table["official"]
    if c.folds:
        return splits.fold(data.table, data.tasks, folds=c.folds, fold=c.fold, **common)
    if c.by == "patient" and (official == "test").any():
        return splits.official(
            data.table,
            data.tasks,
            train_val=data.table["image"][official == "train"],
            test=data.table["image"][official == "test"],
            **common,
        )
    return splits.split(data.table, data.tasks, test=c.test, by=c.by, **common)


def augmentation(config: ConfigDict) -> Callable:
    """The function of (key, batch) that `config.augment` lists, in its order."""
    ops = []
    for name in config.augment.ops:
        module = warp if hasattr(warp, name) else intensity
        options = config.augment.get(name, {})
        ops.append(functools.partial(_named(module, name, "augment.ops"), **options))
    return functools.partial(policy.augment, ops=ops, prepare=preparation(config))


def preparation(config: ConfigDict) -> Callable:
    """The intensity preparation that `config.intensity` names."""
    options = config.intensity.to_dict()
    return functools.partial(
        _named(modality, options.pop("name"), "intensity.name"), **options
    )


def descent(config: ConfigDict):
    """AdamW over the run's steps."""
    return optim.adamw(
        steps=config.train.steps, warmup=config.optim.warmup, clip=config.optim.clip
    )


def initial_state(
    config: ConfigDict, model: Network, weights: imbalance.ClassWeights
) -> step.State:
    """The state before the first update."""
    hyper = optim.Hyper(
        learning_rate=config.optim.learning_rate,
        weight_decay=config.optim.weight_decay,
        ema=config.optim.ema,
        loss=weights._asdict(),
    )
    variables = jax.jit(model.init)(jax.random.key(config.seed))
    return step.init_state(variables, optimizer=descent(config), hyper=hyper)


def restore(
    config: ConfigDict, folder: Path, model: Network, tasks: int
) -> tuple[int, step.State]:
    """Reads the checkpoint that `config.evaluation.checkpoint` names, and its step."""
    wanted = config.evaluation.checkpoint
    if wanted not in ("best", "last"):
        raise InputError(f"evaluation.checkpoint={wanted!r}: use 'best' or 'last'")
    weights = imbalance.ClassWeights(np.zeros(tasks), np.zeros(tasks))
    shapes = jax.eval_shape(lambda: initial_state(config, model, weights))
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with Checkpoints(folder / "checkpoints", keep=config.train.keep) as checkpoints:
        best = checkpoints.best if wanted == "best" else None
        found = checkpoints.restore(template, step=best)
    return found.step, found.state


def predictions(
    config: ConfigDict, model: Network, state: step.State, films: loader.Films
) -> inference.Predictions:
    """What the model says of every film, once."""
    batch, devices = _share(config.evaluation.batch)
    batches = loader.evaluation_batches(films, batch=batch, devices=devices)
    return inference.predict(batches, functools.partial(model.predict, state))


def thresholds(
    config: ConfigDict,
    folder: Path,
    data: Data,
    manifest: pd.DataFrame,
    checkpoint: int,
    state: step.State,
) -> np.ndarray:
    """[T] operating points: the run's frozen ones, or chosen now on validation."""
    frozen = workdir.read_thresholds(folder)
    if frozen and frozen[0] == checkpoint:
        return np.array(list(frozen[1].values()))
    model = network(config, len(data.tasks))
    found = predictions(config, model, state, data.films(manifest, "validation"))
    chosen = results.thresholds(found)
    workdir.write_thresholds(folder, data.tasks, chosen, checkpoint)
    return chosen


def _share(batch: int) -> tuple[int, int]:
    """Rows a device, rounded up, and devices."""
    devices = jax.local_device_count()
    return math.ceil(batch / devices), devices


def _named(module: Any, name: str, field: str) -> Callable:
    """The public function of that name."""
    found = getattr(module, name, None)
    if name.startswith("_") or not callable(found):
        raise InputError(f"{field}={name!r}: {module.__name__} has none of that name")
    return found

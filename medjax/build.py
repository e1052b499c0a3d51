"""Config -> parts: the only module that reads a config or turns a name into code."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator
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
from medjax.data import chest, loader, modality, records, schema
from medjax.errors import InputError
from medjax.geometry import warp
from medjax.models import densenet
from medjax.training import optim, step, workdir
from medjax.training.checkpoint import Checkpoints

Config = ConfigDict
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


class Network(NamedTuple):
    """A model with its parts bound.

    init: key -> fresh variables.
    apply: Linen's.
    predict: (state, image [D, B, H, W, C]) -> probability [D, B, T].
    """

    init: Callable
    apply: Callable
    predict: Callable


# ----------------------------------------------------------------------- data


def data(config: Config) -> Data:
    """The records of `config.data`; they are made where they are missing."""
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
    table = records.read_table(path)
    known = schema.tasks_of(table)
    tasks = tuple(config.data.tasks) or known
    for task in tasks:
        if task not in known:
            raise InputError(f"data.tasks: {task!r} is none of {', '.join(known)}")
    return Data(path, table, tasks)


def manifest(config: Config, data: Data) -> pd.DataFrame:
    """Who is on which side: a fold, the official lists, or a sample; audited."""
    c = config.split
    common = {"seed": config.seed, "validation": c.validation, "minority": c.minority}
    official = data.table["official"]
    if c.folds:
        found = splits.fold(
            data.table, data.tasks, folds=c.folds, fold=c.fold, **common
        )
    elif c.by == "patient" and (official == "test").any():
        found = splits.official(
            data.table,
            data.tasks,
            train_val=data.table["image"][official == "train"],
            test=data.table["image"][official == "test"],
            **common,
        )
    else:
        found = splits.split(data.table, data.tasks, test=c.test, by=c.by, **common)
    audit(config, found, data)
    return found


def audit(config: Config, manifest: pd.DataFrame, data: Data) -> None:
    """Refuses a manifest that leaks or belongs to other data."""
    splits.audit(manifest, data.table, data.tasks, by=config.split.by)


def class_weights(
    config: Config, data: Data, films: loader.Films
) -> imbalance.ClassWeights:
    """The loss weights of the training films."""
    label = data.table.set_index("id").loc[films.ids, list(data.tasks)]
    return imbalance.class_weights(
        label.to_numpy(float), tasks=data.tasks, scheme=config.loss.weights
    )


def train_batches(config: Config, films: loader.Films) -> loader.TrainBatches:
    """Device batches without end; `config.train.batch` counts all devices."""
    shards = jax.device_count()
    if config.train.batch % shards:
        raise InputError(
            f"train.batch={config.train.batch} can't be shared by {shards} devices"
        )
    return loader.TrainBatches(
        films,
        seed=config.seed,
        batch=config.train.batch // shards,
        devices=jax.local_device_count(),
        threads=config.train.threads,
    )


def evaluation_batches(config: Config, films: loader.Films) -> Iterator[loader.Batch]:
    """Every film once."""
    options = shape(config)
    return loader.evaluation_batches(
        films, batch=options["batch"], devices=options["devices"]
    )


def shape(config: Config) -> dict[str, int]:
    """side, rows a device (rounded up) and devices of an evaluation batch."""
    devices = jax.local_device_count()
    rows = math.ceil(config.evaluation.batch / devices)
    return {"side": config.data.side, "batch": rows, "devices": devices}


# ------------------------------------------------------------ model and steps


def network(config: Config, tasks: int) -> Network:
    """The model of `config.model`, computing in `config.train.dtype`."""
    options = config.model.to_dict()
    make = _named(densenet, options.pop("name"), "model.name")
    dtype = jnp.dtype(config.train.dtype)
    model = make(tasks=tasks, dtype=dtype, axis_name=step.AXIS, **options)
    blank = jnp.zeros((1, config.data.side, config.data.side, 1))
    views = functools.partial(
        modality.views, prepare=_preparation(config), flip=config.evaluation.flip
    )
    return Network(
        init=lambda key: model.init(key, blank, train=False),
        apply=model.apply,
        predict=step.compile_eval(apply=model.apply, views=views),
    )


def train_step(config: Config, network: Network) -> Callable:
    """The compiled step: `config.augment`'s ops, the loss and the optimiser bound."""
    ops = []
    for name in config.augment.ops:
        module = warp if hasattr(warp, name) else intensity
        options = config.augment.get(name, {})
        ops.append(functools.partial(_named(module, name, "augment.ops"), **options))
    return step.compile_step(
        apply=network.apply,
        augment=functools.partial(
            policy.augment, ops=ops, prepare=_preparation(config)
        ),
        loss=_named(losses, config.loss.name, "loss.name"),
        optimizer=_optimizer(config),
    )


def initial_state(
    config: Config, network: Network, weights: imbalance.ClassWeights
) -> step.State:
    """The state before the first update."""
    hyper = optim.Hyper(
        learning_rate=config.optim.learning_rate,
        weight_decay=config.optim.weight_decay,
        ema=config.optim.ema,
        loss=weights._asdict(),
    )
    variables = jax.jit(network.init)(jax.random.key(config.seed))
    return step.init_state(variables, optimizer=_optimizer(config), hyper=hyper)


def checkpoints(config: Config, folder: Path) -> Checkpoints:
    """The run's checkpoints, as many as `config.train.keep` says."""
    return Checkpoints(folder / "checkpoints", keep=config.train.keep)


def restore(
    config: Config, folder: Path, network: Network, tasks: int
) -> tuple[int, step.State]:
    """Reads the checkpoint that `config.evaluation.checkpoint` names, and its step."""
    wanted = config.evaluation.checkpoint
    if wanted not in ("best", "last"):
        raise InputError(f"evaluation.checkpoint={wanted!r}: use 'best' or 'last'")
    weights = imbalance.ClassWeights(np.zeros(tasks), np.zeros(tasks))
    shapes = jax.eval_shape(lambda: initial_state(config, network, weights))
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with checkpoints(config, folder) as kept:
        found = kept.restore(template, step=kept.best if wanted == "best" else None)
    return found.step, found.state


# ---------------------------------------------------------------- plain values


def schedule(config: Config) -> dict[str, Any]:
    """When the loop logs, evaluates and ends, and the key of its random choices."""
    names = ("steps", "log_every", "evaluate_every")
    key = jax.random.key(config.seed + 1)
    return {"key": key, **{name: config.train[name] for name in names}}


def bootstrap(config: Config) -> dict[str, Any]:
    """The key and the number of replicates of the intervals."""
    key = jax.random.key(config.seed + 2)
    return {"key": key, "replicates": config.evaluation.replicates}


def about(config: Config) -> dict[str, Any]:
    """What a report says of its run."""
    return {
        "source": config.data.source,
        "model": config.model.name,
        "split_by": config.split.by,
        "steps": config.train.steps,
    }


def as_json(config: Config) -> dict:
    """The config as JSON holds it: tuples are lists."""
    return json.loads(config.to_json())


def read_config(folder: Path) -> Config:
    """The config of a run."""
    return ConfigDict(workdir.read_config(folder))


def _preparation(config: Config) -> Callable:
    options = config.intensity.to_dict()
    return functools.partial(
        _named(modality, options.pop("name"), "intensity.name"), **options
    )


def _optimizer(config: Config):
    return optim.adamw(
        steps=config.train.steps, warmup=config.optim.warmup, clip=config.optim.clip
    )


def _named(module: Any, name: str, field: str) -> Callable:
    """The public function of that name."""
    found = getattr(module, name, None)
    if name.startswith("_") or not callable(found):
        raise InputError(f"{field}={name!r}: {module.__name__} has none of that name")
    return found

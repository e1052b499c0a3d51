"""The classifier alone, fitted to embeddings that are computed once."""

import functools
import hashlib
import json
import os

import jax
import numpy as np

from medjax import config as plain
from medjax.cohort import balance, synthetic
from medjax.config import Config
from medjax.evaluation import predict
from medjax.tasks import study
from medjax.tasks.parts import Network
from medjax.tasks.study import SYNTHETIC, WEIGHTS, Data, Task, treats
from medjax.training import head
from medjax.training.step import State


def embeddings(
    config: Config, network: Network, state: State, data: Data
) -> np.ndarray:
    """[N, F] of all images of the data, by their id, computed once.

    They are kept beside the records, under a digest of all that they depend on but
    the pixels, so that a run with other labels or weights finds them there.
    """
    below = {
        part: {stage: leaves for stage, leaves in tree.items() if stage != "classifier"}
        for part, tree in state.averaged.items()
    }
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(below)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    asked = plain.as_json(config)
    text = json.dumps([asked["intensity"], asked["model"], asked["train"]["dtype"]])
    digest.update(text.encode())
    path = data.path / "embeddings" / f"{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        films = data.films(data.table["id"].to_numpy())
        found = predict.embed(
            study.evaluation_batches(config, films),
            functools.partial(network.embed, state),
        )
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npy")
        np.save(unfinished, found)
        unfinished.rename(path)  # Two runs may compute the same.
    return np.load(path, mmap_mode="r")


def fitted(
    config: Config, task: Task, feature: np.ndarray, label: np.ndarray
) -> tuple[dict[str, jax.Array], int]:
    """The classifier fitted to embeddings, as `config.imbalance` asks for it.

    Classes are weighed, or points between embeddings stand beside them. (What the
    loader does about the imbalance, the caller has done: it repeats the rows.)

    Args:
      feature: [N, F], of the training images.
      label: [N, T], NaN where unknown.

    Returns:
      kernel [F, T] and bias [T], and the number of synthetic points.
    """
    label = label.astype(np.float32)
    between = _between(config, task, feature, label)
    weight = np.nan_to_num(_weight(config, task, label))
    fit = jax.jit(functools.partial(head.refit, exclusive=task.exclusive))
    layer = fit(feature, label, weight, between=between)
    return layer, int(between.weight.sum())


def _weight(config: Config, task: Task, label: np.ndarray) -> np.ndarray:
    """[N, T], the weight of each label by `config.imbalance`; NaN where unknown."""
    scheme = WEIGHTS.get(config.imbalance, "uniform")
    common = {"scheme": scheme, "drop": config.resampling.drop}
    if task.exclusive:
        w = balance.multiclass_weights(label, classes=task.names, **common)
        return np.broadcast_to(np.sum(label * w, axis=1, keepdims=True), label.shape)
    w = balance.class_weights(label, tasks=task.names, **common)
    return label * w.w_pos + (1 - label) * w.w_neg


def _between(
    config: Config, task: Task, feature: np.ndarray, label: np.ndarray
) -> synthetic.Synthetic:
    """`config.imbalance`'s points between embeddings; one of weight 0 for none."""
    tasks = len(task.names)
    if not treats(config, SYNTHETIC):
        none = np.zeros((tasks, 1), np.int32)
        return synthetic.Synthetic(none, none, none * 0.0, none * 0.0, none[:, 0] * 0.0)
    positives, negatives = balance.frequencies(label)
    # A class is filled up to the largest class, a finding to those without it.
    wanted = positives.max() - positives
    if not task.exclusive:
        wanted = np.abs(positives - negatives)
    wanted = np.rint(wanted).astype(np.int32)
    make = functools.partial(
        getattr(synthetic, config.imbalance),
        size=max(1, int(wanted.max())),
        neighbours=config.resampling.neighbours,
    )
    return jax.vmap(
        lambda key, label, wanted: make(key, feature, label, wanted=wanted),
        in_axes=(0, 1, 0),
    )(jax.random.split(jax.random.key(config.seed), tasks), label, wanted)

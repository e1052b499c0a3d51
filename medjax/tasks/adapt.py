"""Images of another hospital without labels, and what `config.adapt` makes of them.

'coral' and 'dann' add to the loss how far the two embeddings are apart. A batch then
holds as many target rows as `train.batch` says source rows, and batch normalisation
takes its statistics over both. 'adabn' leaves the training as it is, and gives the
trained model the target's batch statistics.

Only the training side of the target's own split is read for it, and no label. The
checkpoint and the operating points are chosen on the source's validation images.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from chex import Array, ArrayTree

from medjax.config import Config
from medjax.data import loader
from medjax.data.normalisation import unit_range
from medjax.errors import InputError
from medjax.models import statistics
from medjax.tasks import study
from medjax.training import adaptation, step
from medjax.training.step import State

SPLIT = "target"  # What evaluate calls the target's test images.
BY_LOSS = ("coral", "dann")


class Target(NamedTuple):
    """The target's images, under the run's task, and who of them is on which side."""

    data: study.Data
    manifest: pd.DataFrame

    @property
    def ids(self) -> np.ndarray:
        """[N] of the images that may be seen, without their labels."""
        return self.manifest["id"][self.manifest["split"] == "train"].to_numpy()


def method(config: Config) -> str:
    """What `config.adapt.name` asks for.

    Raises:
      InputError: that is unknown, or nothing in the training would follow from it.
    """
    name = config.adapt.name
    if name not in ("none", "adabn", *BY_LOSS):
        raise InputError(f"adapt.name={name!r}: use 'none', 'adabn', 'coral' or 'dann'")
    if name in BY_LOSS and config.transfer.mode in ("head", "features"):
        raise InputError(
            f"adapt.name={name!r} moves the embedding, and transfer.mode="
            f"{config.transfer.mode!r} keeps it: use 'adabn' or another mode"
        )
    if name in BY_LOSS and not config.adapt.get("weight", 1.0) > 0:
        raise InputError(
            f"adapt.weight={config.adapt.weight}: give a number above 0, or "
            "adapt.name='none'"
        )
    return name


def target(config: Config, source: study.Data) -> Target | None:
    """The images of `config.adapt.data`, split as the source is; None without them.

    Raises:
      InputError: there are none, they lack a finding, have another shape, or are the
        source's own.
    """
    if method(config) == "none":
        return None
    given = config.adapt.get("data", {})
    if not given:
        raise InputError(
            f"adapt.data: missing, and adapt.name={config.adapt.name!r} needs images: "
            "give it the fields of data"
        )
    other = config.copy_and_resolve_references().unlock()
    common = {name: config.data[name] for name in ("records", "max_quarantined")}
    other.data = {**common, **given, "tasks": source.task.names}
    other.split.patients = 0  # Of those with labels.
    try:
        found = study.data(other)
    except InputError as error:
        raise InputError(f"adapt.data: {error}") from None
    if found.task.shape != source.task.shape:
        raise InputError(
            f"adapt.data: its images are {found.task.shape}, the source's "
            f"{source.task.shape}: set adapt.data.side to the source's"
        )
    if found.path == source.path:
        raise InputError("adapt.data: the same images as data: give another set")
    return Target(found, study.manifest(other, found))


def unlabelled(target: Target) -> loader.Unlabelled:
    """The target's training images."""
    return loader.Unlabelled(target.data.films(target.ids))


def loss(config: Config) -> Callable | None:
    """What `config.adapt` adds to the loss, see `step.train_step`."""
    name = method(config)
    if name not in BY_LOSS:
        return None

    def coral(params: ArrayTree, feature: Array, domain: Array, *, weight, step):
        # Every shard knows the whole distance: their mean is that.
        return weight * adaptation.coral(feature, domain, total=_over_shards), 1.0

    def dann(params: ArrayTree, feature: Array, domain: Array, *, weight, step):
        strength = weight * adaptation.ramp(step / config.train.steps)
        feature = adaptation.reverse(feature, strength)
        return adaptation.domain_cross_entropy(params["domain"], feature, domain)

    return {"coral": coral, "dann": dann}[name]


_over_shards = functools.partial(jax.lax.psum, axis_name=step.AXIS)


def variables(config: Config, begin: ArrayTree) -> ArrayTree:
    """A model's variables, and with 'dann' the domain classifier's beside them.

    Raises:
      InputError: 'adabn' for a network without batch statistics.
    """
    if method(config) == "adabn" and not begin.get("batch_stats"):
        raise InputError(
            f"adapt.name='adabn': {config.model.name} has no batch normalisation: use "
            "'coral' or 'dann'"
        )
    if method(config) != "dann":
        return begin
    features = begin["params"]["classifier"]["kernel"].shape[0]
    key = jax.random.key(config.seed + 3)
    domain = adaptation.domain_classifier(key, features)
    return {**begin, "params": {**begin["params"], "domain": domain}}


def whole(config: Config) -> Config:
    """The config of the same network, every layer of which can be looked at."""
    found = config.copy_and_resolve_references()
    found.transfer.mode = "all"
    if "remat" in found.model:
        found.model.remat = False
    return found


def restated(
    config: Config, state: State, target: Target, *, apply: Callable, prepare: Callable
) -> State:
    """The state whose averaged model has the target's batch statistics.

    Each mean and variance is that over all of the target's training images, once
    each, as they are, without augmentation. The layers below see each batch
    normalised by its own statistics, as in training: those of the first layer don't
    depend on the batches, and further up they hardly do where the batches are large.
    A batch is a random sample of them all, of about `evaluation.batch` images.

    Args:
      apply: of the network that `whole` asks for.
      prepare: the modality's intensity preparation, image [B, *S, C] -> standardised.

    Source: Li et al., Revisiting Batch Normalization for Practical Domain Adaptation
    (2016), algorithm 1.
    """

    def of_batch(model: ArrayTree, image: Array) -> ArrayTree:
        return statistics.of_batch(apply, model, prepare(unit_range(image)))

    of_shards = jax.jit(jax.vmap(of_batch, (None, 0), axis_name=step.AXIS))
    order = np.random.default_rng(config.seed).permutation(target.ids)
    parts = []
    # Batches of equal size, or one image less: padding would be in the mean.
    for ids in np.array_split(order, -(-len(order) // config.evaluation.batch)):
        (batch,) = loader.evaluation_batches(
            target.data.films(ids), batch=len(ids), devices=1
        )
        found = jax.device_get(of_shards(state.averaged, batch["image"]))
        parts.append((len(ids), jax.tree.map(lambda leaf: leaf[0], found)))
    stats = jax.tree.map(jnp.asarray, statistics.together(parts))
    return state._replace(averaged={**state.averaged, "batch_stats": stats})

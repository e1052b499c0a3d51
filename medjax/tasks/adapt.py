"""Domain adaptation to unlabelled images of another hospital, `config.adapt`.

'coral' and 'dann' add the distance between the two embeddings to the loss. A batch then
holds as many target rows as source rows, and batch normalisation takes its statistics
over both. 'adabn' doesn't change the training: afterwards refit.py gives the model the
target's batch statistics.

Only the training images of the target's own split are read, and none of their labels.
The checkpoint and the thresholds are chosen on the source's validation images.

The losses compare embeddings [B, F] of a batch; `domain` [B] is 0 for source and 1 for
target.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from chex import Array, ArrayTree

from medjax.cohort import manifests
from medjax.config import Config
from medjax.data import loader
from medjax.errors import InputError, check_choice
from medjax.tasks import data_fields, films, splitting
from medjax.training.step import AXIS

SPLIT = "target"  # What evaluate calls the target's test images.
BY_LOSS = ("coral", "dann")


class Target(NamedTuple):
    """The target's images, with the findings of the run, and their split."""

    data: films.FilmData
    manifest: pd.DataFrame

    @property
    def ids(self) -> np.ndarray:
        """[N] of the images that training may use, without their labels."""
        return splitting.ids_in(self.manifest, "train")

    def images(self) -> loader.Images:
        """These images; of their batches the loader removes the labels."""
        return self.data.films(self.ids)


def method(config: Config) -> str:
    """The value of `config.adapt.name`; refuses one that would change nothing."""
    name = config.adapt.name
    check_choice("adapt.name", name, ("none", "adabn", *BY_LOSS))
    if name in BY_LOSS and config.transfer.mode in ("head", "features"):
        raise InputError(
            f"adapt.name={name!r} moves the embedding, and transfer.mode="
            f"{config.transfer.mode!r} keeps it: use 'adabn' or another mode"
        )
    if name in BY_LOSS and config.train.accumulate > 1:
        raise InputError(
            f"adapt.name={name!r}: compares the whole batch: set train.accumulate=1"
        )
    if name in BY_LOSS and not config.adapt.get("weight", 1.0) > 0:
        raise InputError(
            f"adapt.weight={config.adapt.weight}: give a number above 0, or "
            "adapt.name='none'"
        )
    return name


def target(config: Config, source: films.FilmData) -> Target | None:
    """The images of `config.adapt.data`, split as the source is; None without them.

    Raises:
      InputError: there are none, they lack a finding, have another shape, or are the
        source's.
    """
    if method(config) == "none":
        return None
    fields = config.adapt.get("data", {})
    if not fields:
        raise InputError(
            f"adapt.data: missing, and adapt.name={config.adapt.name!r} needs images: "
            "give it the fields of data"
        )
    other = config.copy_and_resolve_references().unlock()
    common = {name: config.data[name] for name in ("records", "max_quarantined")}
    other.data = {**common, **fields, "tasks": source.output.names}
    other.split.patients = 0  # Of those with labels.
    data_fields.check_alike(config, other, "adapt.data")
    try:
        data = films.data(other)
    except InputError as error:
        raise InputError(f"adapt.data: {error}") from None
    ours, theirs = ((o.shape, o.bits) for o in (source.output, data.output))
    if theirs != ours:
        raise InputError(
            "adapt.data: its images are {} of {} bits, the source's {} of {}: set "
            "adapt.data.side and .bits to the source's".format(*theirs, *ours)
        )
    if data.path == source.path:
        raise InputError("adapt.data: the same images as data: give another set")
    manifest = splitting.split(other, data)
    splitting.audit(other, data, manifest)
    return Target(data, manifest)


def splits_of(config: Config) -> tuple[str, ...]:
    """The splits of a run that can be evaluated."""
    return (*manifests.SPLITS, *[SPLIT] * (config.adapt.name != "none"))


def source_of(config: Config, split: str, other: Config | None) -> str:
    """Where the images of a split, or of the other config's data, come from."""
    return (other or (config.adapt if split == SPLIT else config)).data.source


def loss(config: Config) -> Callable | None:
    """The term that `config.adapt` adds to the loss, see `step.train_step`."""
    name = method(config)
    if name not in BY_LOSS:
        return None

    def coral(params: ArrayTree, feature: Array, domain: Array, *, weight, step):
        # Every shard computes the distance of the whole batch: the mean is the same.
        total = functools.partial(jax.lax.psum, axis_name=AXIS)
        return weight * coral_distance(feature, domain, total=total), 1.0

    def dann(params: ArrayTree, feature: Array, domain: Array, *, weight, step):
        strength = weight * ramp(step / config.train.steps)
        feature = reverse(feature, strength)
        return domain_cross_entropy(params["domain"], feature, domain)

    return {"coral": coral, "dann": dann}[name]


def variables(config: Config, begin: ArrayTree) -> ArrayTree:
    """A model's variables, and with 'dann' the domain classifier's beside them.

    Raises:
      InputError: 'adabn' for a network without batch statistics.
    """
    name = method(config)
    if name == "adabn" and not begin.get("batch_stats"):
        raise InputError(
            f"adapt.name='adabn': {config.model.name} has no batch normalisation: use "
            "'coral' or 'dann'"
        )
    if name != "dann":
        return begin
    features = begin["params"]["classifier"]["kernel"].shape[0]
    key = jax.random.key(config.seed + 3)
    domain = domain_classifier(key, features)
    return {**begin, "params": {**begin["params"], "domain": domain}}


def unfrozen(config: Config) -> Config:
    """The config of the same network with gradients and outputs at every layer."""
    config = config.copy_and_resolve_references()
    config.transfer.mode = "all"
    if "remat" in config.model:
        config.model.remat = False
    return config


HIDDEN_UNITS = 100  # Units of the domain classifier, as in the paper's small networks.


def coral_distance(
    feature: Array, domain: Array, *, total: Callable[[Array], Array] = lambda x: x
) -> Array:
    """The distance between the covariances of two domains, [] float32.

    |C_S - C_T|^2 / (4 F^2), the squared Frobenius norm, where C_S and C_T are the
    unbiased covariances [F, F] of the source and target rows. `total` sums over all
    shards, such as a psum: covariances can't be added, but sums over rows can.

    Source: Sun & Saenko, Deep CORAL (ECCV workshops 2016), eq. 1 to 3.
    """
    feature = jnp.asarray(feature, jnp.float32)

    def covariance(inside: Array) -> Array:
        count = total(jnp.sum(inside))
        rows = jnp.matmul(inside, feature, precision="highest")
        mean = total(rows) / jnp.maximum(count, 1)
        centred = inside[:, None] * (feature - mean)  # First: sums cancel digits.
        squares = jnp.matmul(centred.T, centred, precision="highest")
        return total(squares) / jnp.maximum(count - 1, 1)

    source = (domain == 0).astype(jnp.float32)
    difference = covariance(source) - covariance(1 - source)
    return jnp.sum(difference**2) / (4 * feature.shape[1] ** 2)


def domain_cross_entropy(
    params: ArrayTree, feature: Array, domain: Array
) -> tuple[Array, Array]:
    """Cross-entropy of `domain_classifier`, in nats, as (total, count) over rows.

    With `reverse` before it, its gradient trains the classifier to separate the
    domains, and the embedding to make them equal: domain-adversarial training.

    Source: Ganin et al., Domain-Adversarial Training of Neural Networks (JMLR 2016),
    eq. 9 to 15.
    """
    hidden, logit = params["hidden"], params["logit"]
    x = jax.nn.relu(feature.astype(jnp.float32) @ hidden["kernel"] + hidden["bias"])
    z = (x @ logit["kernel"] + logit["bias"])[:, 0]
    loss = jax.nn.softplus(z) - domain * z
    return jnp.sum(loss), jnp.float32(loss.size)


def domain_classifier(key: Array, features: int) -> ArrayTree:
    """Random parameters: [F] -> HIDDEN_UNITS rectified units -> one logit of the target."""
    make = jax.nn.initializers.he_normal()
    keys = jax.random.split(key)
    sizes = {"hidden": (features, HIDDEN_UNITS), "logit": (HIDDEN_UNITS, 1)}
    return {
        name: {"kernel": make(key, size), "bias": jnp.zeros(size[1])}
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


@jax.custom_vjp
def reverse(x: Array, strength: Array) -> Array:
    """x itself; its gradient is multiplied by -strength (Ganin et al., eq. 16, 17)."""
    return x


reverse.defvjp(
    lambda x, strength: (x, strength),
    lambda strength, gradient: (-strength * gradient, jnp.zeros_like(strength)),
)


def ramp(progress: Array) -> Array:
    """The share of the reversal, from 0 to almost 1, after a share of the training.

    2 / (1 + exp(-10 progress)) - 1, so that the classifier learns something before
    the embedding hides it (Ganin et al., section 5.2.2).
    """
    return jnp.tanh(5 * progress)  # The same.

"""Segmentation: the network, its loss and its step on patches, and whole volumes."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree

from medjax import losses
from medjax.augment import patches
from medjax.config import Config, named
from medjax.data.volumes import Prepared
from medjax.errors import InputError
from medjax.evaluation import sliding
from medjax.models import architectures
from medjax.models.classifier import Classifier
from medjax.tasks import augmentation
from medjax.tasks import parts as model
from medjax.training import optim, step

NOT_OF_MASKS = ("softmax_cross_entropy", "auc_margin")  # One class a row; its ranks.


class Network(NamedTuple):
    """A model with its parts bound.

    init: key -> fresh variables.
    apply: Linen's.
    probability: (variables, patches [B, *S, C]) -> [B, *S, K].
    """

    init: Callable
    apply: Callable
    probability: Callable[[ArrayTree, Array], Array]


def network(config: Config, channels: int, regions: int) -> Network:
    """The model of `config.model`, computing in `config.train.dtype`.

    Args:
      channels: C of an image.
      regions: K of a mask.
    """
    options = config.model.to_dict()
    make = named(architectures, options.pop("name"), "model.name")
    dtype = jnp.dtype(config.train.dtype)
    net = make(tasks=regions, dtype=dtype, axis_name=step.AXIS, **options)
    if isinstance(net, Classifier):
        raise InputError(
            f"model.name={config.model.name!r} makes no masks: take 'unet', or another "
            "task than 'segmentation'"
        )
    size = tuple(config.patch.size)
    if config.patch.slices:
        if size[0] % 2 == 0:
            raise InputError(
                f"patch.size={size}: an even number of slices has no middle one: give "
                "an odd one first"
            )
        size, channels = size[1:], size[0] * channels

    def init(key: Array) -> ArrayTree:
        return net.init(key, jnp.zeros((1, *size, channels)), train=False)

    def probability(variables: ArrayTree, image: Array) -> Array:
        return jax.nn.sigmoid(net.apply(variables, image, train=False))

    return Network(init, net.apply, probability)


def network_of(config: Config, prepared: Prepared) -> Network:
    """The network for these volumes."""
    return network(config, len(prepared.sequences), len(prepared.regions))


def train_step(config: Config, network: Network) -> Callable:
    """The compiled step: patches drawn and augmented, the loss and the optimiser."""
    loss = named(losses, config.loss.name, "loss.name")
    return step.compile_step(
        apply=network.apply,
        augment=functools.partial(
            patches.augment,
            ops=tuple(augmentation.ops(config).values()),
            **config.patch.to_dict(),
        ),
        loss=losses.deep(loss) if config.model.get("deep", 0) else loss,
        optimizer=model.optimizer(config),
    )


def initial_state(config: Config, variables: ArrayTree, regions: int) -> step.State:
    """The state before the first update."""
    hyper = optim.Hyper(
        learning_rate=config.optim.learning_rate,
        weight_decay=config.optim.weight_decay,
        ema=config.optim.ema,
        dual_rate=0.0,
        loss=loss_arguments(config, regions),
    )
    return step.init_state(
        variables, optimizer=model.optimizer(config), dual={}, hyper=hyper
    )


def loss_arguments(config: Config, regions: int) -> dict:
    """The numbers of the loss, or of each part of a compound one.

    Class weights are 1 where the config gives none: patches about the foreground
    take their place.

    Raises:
      InputError: a number that the loss doesn't take, or a loss that isn't of masks.
    """

    def of(name: str, options: dict) -> dict:
        if name in NOT_OF_MASKS:
            raise InputError(
                f"loss.name={name!r}: is not of masks that may overlap: take "
                "'soft_dice', 'tversky', 'weighted_bce', 'focal' or a 'compound' of them"
            )
        takes = inspect.signature(named(losses, name, "loss.name")).parameters
        for option in options.keys() - takes.keys():
            raise InputError(f"loss.{option}: {name} has no such number: leave it out")
        ones = {w: np.ones(regions) for w in ("w_pos", "w_neg") if w in takes}
        return ones | options

    options = config.loss.to_dict()
    name = options.pop("name")
    if name != "compound":
        return of(name, options)
    parts = {}
    for part, own in options["parts"].items():
        share = own.pop("share", 1.0)
        parts[part] = {"share": share, **of(part, own)}
    return {"parts": parts}


def probability(
    config: Config, network: Network, state: step.State, image: np.ndarray
) -> np.ndarray:
    """What the averaged model says of a volume [D, H, W, C]: [D, H, W, K] float32."""
    c, size, slices = config.evaluation, tuple(config.patch.size), config.patch.slices
    return sliding.volume_probability(
        network.probability,
        state.averaged,
        image,
        patch=size[1:] if slices else size,
        slices=size[0] if slices else 1,
        overlap=c.overlap,
        flips=tuple(c.flips),
        batch=c.batch,
    )


def restore(
    config: Config, folder: Path, network: Network, regions: int
) -> tuple[int, step.State]:
    """Reads the checkpoint that `config.evaluation.checkpoint` names, and its step."""
    shapes = jax.eval_shape(
        lambda key: initial_state(config, network.init(key), regions),
        jax.random.key(0),
    )
    return model.read_state(config, folder, shapes)

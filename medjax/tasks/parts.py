"""The network, its loss and its step, and the states that they go through."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import ArrayTree

from medjax import config as plain
from medjax import losses
from medjax.cohort import balance
from medjax.config import Config, named
from medjax.data import normalisation
from medjax.errors import InputError
from medjax.models import architectures
from medjax.models.classifier import Classifier, stage_names
from medjax.tasks import adapt, augmentation
from medjax.tasks.study import WEIGHTS, Task
from medjax.training import optim, step
from medjax.training.checkpoint import Checkpoints

NOT_FOR_THE_OPTIMISER = ("name", "learning_rate", "weight_decay", "ema")


class Network(NamedTuple):
    """A model with its parts bound.

    init: key -> fresh variables.
    apply: Linen's.
    look: image [B, H, W, C] -> [1, B, H, W, C], as the model sees it.
    stages: their names, from the image on; `frozen`, those of them that stay.
    predict: (state, image [D, B, ...]) -> probability [D, B, T].
    embed: (state, image [D, B, ...]) -> what the classifier sees, [D, B, F].
    """

    init: Callable
    apply: Callable
    look: Callable
    stages: tuple[str, ...]
    frozen: tuple[str, ...]
    predict: Callable
    embed: Callable


def network(config: Config, task: Task) -> Network:
    """The model of `config.model`, computing in `config.train.dtype`.

    Runs that agree in it share one network, and what was compiled of it.
    """
    asked = plain.as_json(config)
    parts = {name: asked[name] for name in ("model", "intensity")}
    parts["transfer"] = {"mode": config.transfer.mode}
    parts["train"] = {"dtype": config.train.dtype}
    parts["evaluation"] = {"flip": config.evaluation.flip}
    return _network(json.dumps(parts), task)


@functools.lru_cache(maxsize=4)
def _network(parts: str, task: Task) -> Network:
    config = Config(json.loads(parts))
    options = config.model.to_dict()
    make = named(architectures, options.pop("name"), "model.name")
    dtype = jnp.dtype(config.train.dtype)
    model = make(tasks=len(task.names), dtype=dtype, axis_name=step.AXIS, **options)
    if not isinstance(model, Classifier):
        raise InputError(
            f"model.name={config.model.name!r} makes masks: it is for "
            "task='segmentation'; take densenet121, say"
        )
    stages = stage_names(len(model.stages))
    frozen = _frozen(config, stages)
    model = model.clone(frozen=len(frozen))
    blank = jnp.zeros((1, *task.shape))
    views = functools.partial(normalisation.views, prepare=preparation(config))
    parts = {
        "apply": model.apply,
        "views": functools.partial(views, flip=config.evaluation.flip),
    }
    probability = jax.nn.softmax if task.exclusive else jax.nn.sigmoid
    return Network(
        init=lambda key: model.init(key, blank, train=False),
        apply=model.apply,
        look=functools.partial(views, flip=False),
        stages=stages,
        frozen=frozen,
        predict=step.compile_eval(step.eval_step, probability=probability, **parts),
        embed=step.compile_eval(step.embed_step, **parts),
    )


def preparation(config: Config) -> Callable:
    """The modality's intensity preparation, with its numbers bound."""
    options = config.intensity.to_dict()
    return functools.partial(
        named(normalisation, options.pop("name"), "intensity.name"), **options
    )


def train_step(config: Config, network: Network) -> Callable:
    """The compiled step: `config.augment`'s ops, the losses and the optimiser bound."""
    return step.compile_step(**step_parts(config, network))


def step_parts(config: Config, network: Network) -> dict:
    """What `step.train_step` is bound to."""
    return {
        "apply": network.apply,
        "augment": augmentation.augment(config, preparation(config)),
        "loss": named(losses, config.loss.name, "loss.name"),
        "optimizer": optimizer(config),
        "frozen": network.frozen,
        "adapt": adapt.loss(config),
    }


def fresh(config: Config, network: Network) -> ArrayTree:
    """Random variables of the network, by `config.seed`."""
    # What runs once needn't run fast: it compiles in a fifth of the time.
    options = {"xla_backend_optimization_level": 0}
    on_cpu = jax.default_backend() == "cpu"
    init = jax.jit(network.init, compiler_options=options if on_cpu else None)
    return init(jax.random.key(config.seed))


def initial_state(
    config: Config,
    network: Network,
    task: Task,
    label: np.ndarray,
    *,
    variables: ArrayTree | None = None,
) -> step.State:
    """The state before the first update.

    Args:
      variables: of the network, to begin with; None: fresh ones.
      label: [N, T] of the training images, NaN where unknown, as they are and not
        as a plan shows them: what the loss weighs the classes by.
    """
    hyper = optim.Hyper(
        learning_rate=config.optim.learning_rate,
        weight_decay=config.optim.weight_decay,
        ema=config.optim.ema,
        dual_rate=config.loss.get("rate", 0.0),
        loss=loss_arguments(config, task, label),
        adapt=config.adapt.get("weight", 1.0) if adapt.loss(config) else None,
        augment={"strengths": augmentation.strengths(config)},
        **_pace(config, network.stages),
    )
    dual = {}
    if config.loss.name == "auc_margin":
        dual = losses.auc_margin_variables(len(task.names))
        if not hyper.dual_rate > 0:
            raise InputError("loss.rate: auc_margin learns too: give 0.1, say")
    if variables is None:
        variables = fresh(config, network)
    return step.init_state(
        adapt.variables(config, variables),
        optimizer=optimizer(config),
        dual=dual,
        hyper=hyper,
        frozen=network.frozen,
    )


def loss_arguments(config: Config, task: Task, label: np.ndarray) -> dict:
    """The keyword arguments of the loss: the config's numbers and the class weights.

    Args:
      label: [N, T] of the training images, NaN where unknown.

    Raises:
      InputError: the loss takes no such number or no weights, or isn't for this task.
    """
    options = config.loss.to_dict()
    name = options.pop("name")
    if name == "auc_margin":  # The only loss that learns; see initial_state.
        options.pop("rate", None)
    return _arguments(config, task, label, name, options)


def checkpoints(config: Config, folder: Path) -> Checkpoints:
    """The checkpoints of a folder, as many as `config.train.keep` says."""
    return Checkpoints(folder, keep=config.train.keep)


def restore(
    config: Config, folder: Path, network: Network, task: Task
) -> tuple[int, step.State]:
    """Reads the checkpoint that `config.evaluation.checkpoint` names, and its step."""
    # Only shapes are wanted of this state, so any labels with both classes do.
    label = np.eye(max(2, len(task.names)))[:, : len(task.names)]
    shapes = jax.eval_shape(
        lambda key: initial_state(
            config, network, task, label, variables=network.init(key)
        ),
        jax.random.key(0),
    )
    return read_state(config, folder, shapes)


def read_state(
    config: Config, folder: Path, shapes: step.State
) -> tuple[int, step.State]:
    """`restore` of a state of these shapes."""
    wanted = config.evaluation.checkpoint
    if wanted not in ("best", "last"):
        raise InputError(f"evaluation.checkpoint={wanted!r}: use 'best' or 'last'")
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with checkpoints(config, folder) as kept:
        found = kept.restore(template, step=kept.best if wanted == "best" else None)
    return found.step, found.state


def _frozen(config: Config, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The first stages, as far as `config.transfer.mode` freezes them.

    Raises:
      InputError: it is neither a mode nor a stage.
    """
    mode = config.transfer.mode
    if mode in ("head", "features"):
        return stages
    if mode in ("all", "layerwise", "gradual"):
        return ()
    if mode not in stages:
        raise InputError(
            f"transfer.mode={mode!r}: use 'all', 'head', 'features', 'layerwise', "
            f"'gradual', or freeze up to one of {', '.join(stages)}"
        )
    return stages[: stages.index(mode) + 1]


def _pace(config: Config, stages: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Each stage's share of the learning rate, and the update at which it starts.

    The classifier, which they don't name, has the whole rate from the start.

    Raises:
      InputError: the first stage would never start, or a number makes no sense.
    """
    c = config.transfer
    below = dict(zip(stages, range(len(stages), 0, -1), strict=True))
    if c.mode == "layerwise":
        if not 0 < c.decay <= 1:
            raise InputError(f"transfer.decay={c.decay}: give a share, 0.75 say")
        return {"share": {stage: c.decay**depth for stage, depth in below.items()}}
    if c.mode == "gradual":
        if c.every < 1:
            raise InputError(f"transfer.every={c.every}: give a number of updates")
        if len(stages) * c.every >= config.train.steps:
            raise InputError(
                f"transfer.every={c.every}: the stem would start at step "
                f"{len(stages) * c.every} of {config.train.steps}: take a smaller number"
            )
        return {"start": {stage: c.every * depth for stage, depth in below.items()}}
    return {}


def _arguments(
    config: Config, task: Task, label: np.ndarray, name: str, options: dict
) -> dict:
    """loss_arguments of one loss, or of each part of a compound one."""
    takes = inspect.signature(named(losses, name, "loss.name")).parameters
    for option in options:
        if option not in takes:
            raise InputError(f"loss.{option}: {name} has no such number: leave it out")
    if "parts" in takes:
        parts = {}
        for part, own in options.get("parts", {}).items():
            if part == "auc_margin":
                raise InputError("loss.parts: auc_margin can only stand alone")
            numbers = {k: v for k, v in own.items() if k != "share"}
            numbers = _arguments(config, task, label, part, numbers)
            parts[part] = {"share": own.get("share", 1.0), **numbers}
        return {"parts": parts}
    if (name == "softmax_cross_entropy") != task.exclusive:
        right = "softmax_cross_entropy" if task.exclusive else "weighted_bce"
        kind = "multiclass" if task.exclusive else "multilabel"
        raise InputError(f"loss.name={name!r} is not for task={kind!r}: use {right!r}")
    scheme = WEIGHTS.get(config.imbalance, "uniform")
    common = {"scheme": scheme, "drop": config.resampling.drop}
    found = {}
    if "w_pos" in takes:
        found = balance.class_weights(label, tasks=task.names, **common)._asdict()
    elif "w" in takes:
        found = {"w": balance.multiclass_weights(label, classes=task.names, **common)}
    elif scheme != "uniform":
        raise InputError(
            f"imbalance={config.imbalance!r} weighs classes, and loss.name={name!r} "
            "takes no weights: set imbalance='none' or another loss"
        )
    if "prevalence" in takes:
        positives, negatives = balance.frequencies(label)
        found["prevalence"] = positives / np.maximum(positives + negatives, 1)
    return found | options


def optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """The optimiser of `config.optim`; its rates are arguments of its update."""
    options = config.optim.to_dict()
    make = named(optim, options["name"], "optim.name")
    options = {k: v for k, v in options.items() if k not in NOT_FOR_THE_OPTIMISER}
    return make(steps=config.train.steps, **options)

"""From a config to its parts: network, loss, augmentation, optimiser, step, state.

`output` is what the model says of an image: films.FindingsOutput or scans.MasksOutput.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array, ArrayTree

from medjax import losses
from medjax.augment import patches, pixel_ops, policy, safety
from medjax.config import Config, affecting, config_as_json, named
from medjax.data import normalisation
from medjax.errors import InputError
from medjax.geometry import warp
from medjax.models import architectures
from medjax.models.classifier import Classifier
from medjax.tasks import adapt, imbalance
from medjax.training import optim, step
from medjax.training.checkpoint import Checkpoints

# An op's numbers that set a shape, or are checked when the op is traced.
STATIC = {
    "blur": ("max_sigma",),
    "clahe": ("clip",),
    "crop_pad": ("shift",),
    "elastic": ("strength", "distance"),
    "low_resolution": ("strength",),
}


class Network(NamedTuple):
    """A model with its parts bound."""

    init: Callable  # key -> fresh variables.
    apply: Callable  # Linen's.
    stages: tuple[str, ...]  # Their names, from the image on.
    frozen: tuple[str, ...]  # Those that don't train.
    random: bool  # Whether training draws values or blocks to drop.
    # (state, image [D, B, ...]) -> log-odds [D, B, T]; of a segmentation
    # (variables, patches [B, *S, C]) -> probability [B, *S, K].
    predict: Callable
    # Of a classifier: image [B, H, W, C] -> [1, B, H, W, C], as it sees them, and
    # (state, image [D, B, ...]) -> what its last layer sees, [D, B, F].
    look: Callable | None = None
    embed: Callable | None = None
    attention: bool = False  # Whether it is a ViT; whether its class token is read.
    token: bool = False
    # Of a classifier: (state, image [B, H, W, C]) -> log-odds [B, T], not compiled.
    rows: Callable | None = None
    # Of one that draws masks: as `predict`, log-odds [D, B, ..., K], and as `rows`.
    masks: Callable | None = None
    rows_of_masks: Callable | None = None


def classifier(config: Config, output: Any) -> Network:
    """The network of a classification; equal ones are compiled once."""
    fields = affecting(config, "network")
    if config.evaluation.copies:
        fields["augment"] = config_as_json(config)["augment"]
        fields["data"] = {"spacing": output.spacing}
    return _classifier(json.dumps(fields), output)


@functools.lru_cache(maxsize=4)
def _classifier(fields: str, output: Any) -> Network:
    config = Config(json.loads(fields))
    drawn = len(output.masks)
    model, frozen = _model(config, len(output.names), masks=False, drawn=drawn)
    blank = jnp.zeros((1, *output.shape))
    parts = {"apply": model.apply, "views": views(config)}
    rows = functools.partial(step.eval_step, exclusive=output.exclusive, **parts)
    of_masks = {}
    if drawn:
        of_masks["rows_of_masks"] = functools.partial(step.mask_step, **parts)
        compiled = step.compile_eval(of_masks["rows_of_masks"])
        of_masks["masks"] = step.mean_of_members(compiled)
    return Network(
        init=lambda key: model.init(key, blank, train=False),
        apply=model.apply,
        stages=model.stage_names,
        frozen=frozen,
        random=model.random or model.dropout > 0,
        predict=step.mean_of_members(step.compile_eval(rows)),
        look=functools.partial(
            normalisation.flipped_views, prepare=preparation(config)
        ),
        embed=step.compile_eval(step.embed_step, **parts),
        attention=model.tokens > 0,
        token=model.pool == "token",
        rows=rows,
        **of_masks,
    )


def views(config: Config) -> Callable:
    """image [B, H, W, C] -> [V, B, H, W, C]: the image first, its mirror image, copies.

    The copies of all images are augmented by the same draws, so that no prediction
    depends on the batch that the image is in.
    """
    options = {"prepare": preparation(config), "flip": config.evaluation.flip}
    whole = functools.partial(normalisation.flipped_views, **options)
    number = config.evaluation.copies
    if not number:
        return whole
    if not config.augment.ops:
        raise InputError(f"evaluation.copies={number}: name ops in augment.ops")
    augment, numbers = augmentation(config), strengths(config)

    def with_copies(image: Array) -> Array:
        rows = number * len(image)
        batch = {"image": jnp.tile(image, (number, *[1] * (image.ndim - 1)))}
        batch |= dict.fromkeys(("id", "epoch"), jnp.zeros(rows, jnp.int32))
        batch["occurrence"] = jnp.repeat(jnp.arange(number), len(image))
        copies = augment(jax.random.key(0), batch, numbers)["image"]
        return jnp.concatenate([whole(image), copies.reshape(number, *image.shape)])

    return with_copies


def segmenter(config: Config, output: Any) -> Network:
    """The network of a segmentation; equal ones are compiled once."""
    fields = affecting(config, "network")
    if copies := config.evaluation.copies:
        if not config.augment.ops or "elastic" in config.augment.ops:
            raise InputError(
                f"evaluation.copies={copies}: what is predicted of a copy is moved back, "
                "and an elastic move has no inverse: name other ops in augment.ops"
            )
        fields["augment"] = config_as_json(config)["augment"]
        fields["data"] = {"spacing": output.spacing}
    channels, regions = output.inputs, len(output.regions)
    return _segmenter(json.dumps(fields), channels, regions, output.exclusive)


@functools.lru_cache(maxsize=4)
def _segmenter(fields: str, channels: int, regions: int, exclusive: bool) -> Network:
    config = Config(json.loads(fields))
    net, frozen = _model(config, regions, masks=True)
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
        logits = net.apply(variables, image, train=False)
        if exclusive:
            return jax.nn.softmax(losses.with_background(logits))[..., :-1]
        return jax.nn.sigmoid(logits)

    if number := config.evaluation.copies:
        given = {"number": number, "ops": [*ops(config).values()]}
        given["spacing"] = (config.data.spacing or [1.0] * 3)[-len(size) :]
        probability = functools.partial(patches.mean_of_copies, probability, **given)
    return Network(init, net.apply, net.stage_names, frozen, False, probability)


def _model(
    config: Config, tasks: int, *, masks: bool, drawn: int = 0
) -> tuple[Any, tuple[str, ...]]:
    """The Linen module of `config.model`, and the names of its frozen stages.

    masks: whether they are what it says; `drawn`: how many it draws beside its answer.
    """
    options = config.model.to_dict()
    name = options.pop("name")
    if drawn and name != "unet_encoder":
        raise InputError(
            f"data.mask: model.name={name!r} draws no masks beside its answer: take "
            "'unet_encoder'"
        )
    options |= {"masks": drawn} if drawn else {}
    if config.train.dtype not in ("float32", "bfloat16"):
        raise InputError(
            f"train.dtype={config.train.dtype!r}: use 'float32' or 'bfloat16'; float16 "
            "would need a scaled loss"
        )
    options |= {"dtype": jnp.dtype(config.train.dtype), "axis_name": step.AXIS}
    try:
        model = named(architectures, name, "model.name", tasks=tasks, **options)()
    except (TypeError, ValueError) as error:  # Networks pass their options on.
        raise InputError(f"model.name={name!r}: {error}") from None
    if masks and isinstance(model, Classifier):
        raise InputError(
            f"model.name={name!r} makes no masks: take 'unet', or another task than "
            "'segmentation'"
        )
    if not masks and not isinstance(model, Classifier):
        raise InputError(
            f"model.name={name!r} makes masks: it is for task='segmentation'; take "
            "densenet121, say"
        )
    frozen = _frozen_stages(config, model.stage_names)
    return model.clone(frozen=len(frozen)), frozen


def _frozen_stages(config: Config, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The first stages, as far as `config.transfer.mode` freezes them."""
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


def preparation(config: Config) -> Callable:
    """The modality's intensity normalisation, with its numbers bound."""
    options = config.intensity.to_dict()
    name = options.pop("name")
    return named(normalisation, name, "intensity.name", "image", **options)


def ops(config: Config, *, strength: float = 1.0) -> dict[str, Callable]:
    """The ops of `config.augment` by name, with their floats times `strength`."""
    bound = {}
    for name in config.augment.ops:
        options = {
            option: value * strength if isinstance(value, float) else value
            for option, value in config.augment.get(name, {}).items()
        }
        if name in warp.MOVES:
            bound[name] = functools.partial(warp.MOVES[name], **options)
        else:
            bound[name] = named(
                pixel_ops, name, "augment.ops", "key", "image", **options
            )
    return bound


def strengths(config: Config) -> dict[str, dict[str, np.float32]]:
    """The floats of every op that may be arrays: no shape depends on them."""
    return {
        name: {
            option: np.float32(value)
            for option, value in config.augment.get(name, {}).items()
            if isinstance(value, float) and option not in STATIC.get(name, ())
        }
        for name in config.augment.ops
    }


def augmentation(config: Config) -> Callable:
    """(key, batch, `strengths` as arrays) -> the batch as the network takes it."""
    bound = ops(config)
    if "patch" in config:
        change = functools.partial(patches.augment, **config.patch.to_dict())
    elif spacing := config.get("data", {}).get("spacing", ()):
        options = {"prepare": preparation(config), "spacing": spacing}
        change = functools.partial(patches.prepare_whole, **options)
    else:
        change = functools.partial(policy.augment_batch, prepare=preparation(config))

    def apply(key: Array, batch: dict, strengths: dict[str, dict]) -> dict:
        given = [functools.partial(op, **strengths[name]) for name, op in bound.items()]
        return change(key, batch, ops=given)

    return apply


def caveats(config: Config) -> tuple[str, ...]:
    """Lists what speaks against ops of `config.augment`, a sentence each.

    Raises:
      InputError: an op that can change the label, without augment.allow_unsafe.
    """
    if not config.modality:
        return ()
    return safety.check_ops(
        [(name, config.augment.get(name, {})) for name in config.augment.ops],
        modality=config.modality,
        sided=config.augment.sided,
        allow_unsafe=config.augment.allow_unsafe,
    )


def step_parts(config: Config, network: Network) -> dict:
    """Builds the arguments that `step.train_step` is bound to."""
    loss = named(losses, config.loss.name, "loss.name")
    if config.data.get("exclusive", False):
        loss = losses.exclusive(loss)
    if network.masks is not None:
        loss = losses.beside(loss)
    return {
        "apply": network.apply,
        "augment": augmentation(config),
        "loss": losses.deep(loss) if config.model.get("deep", 0) else loss,
        "optimizer": optimizer(config),
        "frozen": network.frozen,
        "random": network.random,
        "adapt": adapt.loss(config),
        "accumulate": config.train.accumulate,
    }


def optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """The optimiser of `config.optim`; its rates are arguments of its update."""
    options = config.optim.to_dict() | {"steps": config.train.steps}
    name = options.pop("name")
    options = {k: v for k, v in options.items() if k not in optim.Hyper._fields}
    return named(optim, name, "optim.name", **options)()


def fresh(config: Config, network: Network, member: int = 0) -> ArrayTree:
    """Random variables of the network, by `config.seed` and the member of an ensemble."""
    # What runs once needn't run fast: it compiles in a fifth of the time.
    options = {"xla_backend_optimization_level": 0}
    on_cpu = jax.default_backend() == "cpu"
    init = jax.jit(network.init, compiler_options=options if on_cpu else None)
    key = jax.random.key(config.seed)
    return init(jax.random.fold_in(key, member) if member else key)


def initial_state(
    config: Config,
    network: Network,
    output: Any,
    label: np.ndarray,
    *,
    variables: ArrayTree | None = None,
) -> step.State:
    """The state before the first update, of these variables (None: fresh ones)."""
    hyper = optim.Hyper(
        learning_rate=config.optim.learning_rate,
        weight_decay=config.optim.weight_decay,
        ema=config.optim.ema,
        dual_rate=config.loss.get("rate", 0.0),
        loss=imbalance.loss_arguments(config, output, label),
        adapt=config.adapt.get("weight", 1.0) if adapt.loss(config) else None,
        augment={"strengths": strengths(config)},
        defer=config.resampling.defer,
        **pace(config, network.stages),
    )
    dual = {}
    if config.loss.name == "auc_margin":
        dual = losses.auc_margin_variables(len(output.names))
        if not hyper.dual_rate > 0:
            raise InputError("loss.rate: auc_margin learns too: give 0.1, say")
    return step.init_state(
        adapt.variables(config, variables or fresh(config, network)),
        optimizer=optimizer(config),
        dual=dual,
        hyper=hyper,
        frozen=network.frozen,
    )


def ensemble(states: Sequence[step.State]) -> step.Trained:
    """The members as a run keeps them: one alone is its state."""
    return states[0] if len(states) == 1 else tuple(states)


def pace(config: Config, stages: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Each stage's share of the learning rate, or the update at which it starts.

    The head, which isn't among them, has the whole rate from the start.
    """
    c = config.transfer
    below = dict(zip(stages, range(len(stages), 0, -1), strict=True))
    if c.mode == "layerwise":
        return {"share": {stage: c.decay**depth for stage, depth in below.items()}}
    if c.mode == "gradual":
        if len(stages) * c.every >= config.train.steps:
            raise InputError(
                f"transfer.every={c.every}: the stem would start at step "
                f"{len(stages) * c.every} of {config.train.steps}: take a smaller number"
            )
        return {"start": {stage: c.every * depth for stage, depth in below.items()}}
    return {}


def checkpoints(config: Config, folder: Path) -> Checkpoints:
    """The checkpoints of a folder, as many as `config.train.keep` says."""
    return Checkpoints(folder, keep=config.train.keep)


def restore(
    config: Config, folder: Path, network: Network, output: Any
) -> tuple[int, step.State]:
    """The checkpoint that `config.evaluation.checkpoint` names: its step and state."""

    def begin(key: Array) -> step.State:
        label, variables = imbalance.any_label(output), network.init(key)
        state = initial_state(config, network, output, label, variables=variables)
        return ensemble([state] * config.ensemble)

    template = blank(jax.eval_shape(begin, jax.random.key(0)))
    best = config.evaluation.checkpoint == "best"
    with checkpoints(config, folder) as kept:
        restored = kept.restore(template, step=kept.best if best else None)
    return restored.step, restored.state


def blank(shapes: ArrayTree) -> ArrayTree:
    """Zeros of these shapes, on the host."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def has_steps(config: Config) -> bool:
    """Whether the network trains step by step; else a head is fitted to embeddings."""
    return config.transfer.mode != "features"


def apart(config: Config) -> str:
    """Why a run can't share a program with others; '' where it can."""
    if not has_steps(config):
        return "it has no steps"
    return "it is an ensemble" if config.ensemble > 1 else ""


def schedule(config: Config) -> dict[str, Any]:
    """When the loop logs, evaluates and ends, and the key of its random choices."""
    names = ("steps", "log_every", "evaluate_every", "save_minutes")
    key = jax.random.key(config.seed + 1)
    return {"key": key, **{name: config.train[name] for name in names}}


def bootstrap(config: Config) -> dict[str, Any]:
    """The key and the number of replicates of the intervals."""
    key = jax.random.key(config.seed + 2)
    return {"key": key, "replicates": config.evaluation.replicates}


def batch(config: Config) -> int:
    """Images or patches of a step, on all devices together."""
    return config.train.batch


def about(config: Config) -> dict[str, Any]:
    """What a report says of its run."""
    return {
        "source": config.data.source,
        "model": config.model.name,
        "imbalance": config.imbalance,
        "split_by": config.split.by,
        "steps": config.train.steps,
    }


def recipe(config: Config) -> dict[str, Any]:
    """What a model card says of how the run was trained."""
    return {
        "source": config.data.source,
        "modality": config.modality,
        "init": config.transfer.init,
        "loss": config.loss.name,
        "optimiser": config.optim.name,
        "imbalance": config.imbalance,
        "seed": config.seed,
    }

"""One training step, pure; pmap and shard_map are here and nowhere else."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array, ArrayTree
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.training import devices as compiled
from medjax.training import optim
from medjax.training.optim import Hyper

AXIS, ARMS = "batch", "arms"


class State(NamedTuple):
    """All that an update reads and writes; what a checkpoint holds.

    step: [] int32, updates done.
    params: float32 weights.
    batch_stats: running means and variances of the batch normalisation.
    averaged: exponential moving average of params and batch_stats, for evaluation.
    opt_state: the optimiser's, of the stages that aren't frozen.
    dual: what the loss itself learns, by name; {} for most losses.
    hyper: rates and class weights, as arrays.
    """

    step: Array
    params: ArrayTree
    batch_stats: ArrayTree
    averaged: ArrayTree
    opt_state: ArrayTree
    dual: dict[str, Array]
    hyper: Hyper


def init_state(
    variables: ArrayTree,
    *,
    optimizer: Any,
    dual: dict[str, Array],
    hyper: Hyper,
    frozen: tuple[str, ...] = (),
) -> State:
    """Makes the state before the first update from a model's variables."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    same = {"params": params, "batch_stats": batch_stats}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        averaged=jax.tree.map(jnp.copy, same),  # One buffer can't be donated twice.
        opt_state=optimizer.init(optim.moving(params, frozen)),
        dual=jax.tree.map(jnp.copy, dual),
        hyper=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper),
    )


def train_step(
    state: State,
    batch: dict[str, Array],
    key: Array,
    *,
    apply: Callable,
    augment: Callable,
    loss: Callable,
    optimizer: optax.GradientTransformationExtraArgs,
    frozen: tuple[str, ...] = (),
    adapt: Callable | None = None,
) -> tuple[State, dict[str, Array]]:
    """One update from one shard's batch, collective over AXIS.

    Runs under pmap, vmap(axis_name=AXIS) and shard_map(check_vma=False), and gives
    the update of the whole batch whatever the number of shards.

    Args:
      state: replicated.
      batch: this shard's rows, see data/loader.py.
      key: the run's key, the same at every step: the batch says the epoch.
      apply: (variables, image, train=True, mutable=[...]) -> (logits, updates), its
        batch statistics shared over AXIS.
      augment: (key, batch, **hyper.augment) -> the batch with its image standardised,
        [B, H, W, C] float32, and with its masks, where it has some, moved as it is.
      loss: (logits, label, weight, **dual, **hyper.loss) -> (total, count).
      optimizer: takes the learning rate and the weight decay as extra arguments.
      frozen: stages of params that stay what they are, to the bit, with their batch
        statistics; `apply` doesn't change those either. No gradient is computed for
        them, and the optimiser doesn't know them.
      adapt: (params, embedding [B, F], domain [B], weight=hyper.adapt, step=...) ->
        (total, count), what is added to the loss because of rows of another domain;
        the batch then has the field domain. None: nothing is.

    Returns:
      The new state, and scalars: loss (nats an image), grad_norm, and with `adapt`
      gap, its part of the loss.
    """
    batch = augment(key, batch, **(state.hyper.augment or {}))
    moving = optim.moving(state.params, frozen)

    def shard_loss(moving: ArrayTree, dual: dict) -> tuple[Array, tuple]:
        params = state.params | moving
        logits, updates = apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats", *["intermediates"] * (adapt is not None)],
        )
        total, count = loss(
            logits, batch["label"], batch["weight"], **dual, **state.hyper.loss
        )
        # The count has no gradient; the sum of these shares is the batch's mean.
        share = total / jnp.maximum(lax.psum(count, AXIS), 1)
        if adapt is None:
            return share, (updates, {})
        embedding = updates["intermediates"]["embedding"][0]
        total, count = adapt(
            params,
            embedding,
            batch["domain"],
            weight=state.hyper.adapt,
            step=state.step,
        )
        gap = total / lax.psum(count, AXIS)
        return share + gap, (updates, {"gap": gap})

    descend = jax.value_and_grad(shard_loss, argnums=(0, 1), has_aux=True)
    (value, (updates, gap)), grads = descend(moving, state.dual)
    value, (grads, dual_grads) = lax.psum((value, grads), AXIS)

    change, opt_state = optimizer.update(
        grads,
        state.opt_state,
        moving,
        learning_rate=state.hyper.learning_rate,
        weight_decay=state.hyper.weight_decay,
    )
    change = optim.by_stage(change, state.step, state.hyper)
    params = state.params | optax.apply_updates(moving, change)
    # A young average would remember the random start: (1 + t) / (10 + t) bounds it.
    decay = jnp.minimum(state.hyper.ema, (1 + state.step) / (10 + state.step))
    batch_stats = updates.get("batch_stats", {})
    averaged = {}
    for part, new in {"params": params, "batch_stats": batch_stats}.items():
        old = state.averaged[part]  # decay x + (1 - decay) x may not be x: left out.
        followed = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new,
            optim.moving(old, frozen),
            optim.moving(new, frozen),
        )
        averaged[part] = old | followed
    new = State(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        averaged=averaged,
        opt_state=opt_state,
        dual=optim.saddle_step(state.dual, dual_grads, rate=state.hyper.dual_rate),
        hyper=state.hyper,
    )
    scalars = {"loss": value, "grad_norm": optax.tree.norm(grads)}
    return new, scalars | lax.psum(gap, AXIS)


def eval_step(
    state: State,
    image: Array,
    *,
    apply: Callable,
    views: Callable,
    probability: Callable,
) -> Array:
    """Probabilities of one shard's rows, by the averaged model.

    Args:
      state: replicated.
      image: [B, H, W, C], this shard's rows as loaded.
      apply: (variables, image, train=False) -> logits [B, T].
      views: image -> [V, B, H, W, C], standardised: one view, or several whose
        probabilities are averaged.
      probability: of logits [..., T]: jax.nn.sigmoid or jax.nn.softmax.

    Returns:
      [B, T] float32 in [0, 1].
    """
    seen = views(image)
    flat = seen.reshape(-1, *seen.shape[2:])  # [V B, H, W, C]
    logits = apply(state.averaged, flat, train=False).astype(jnp.float32)
    return probability(logits).reshape(*seen.shape[:2], -1).mean(axis=0)


def embed_step(
    state: State, image: Array, *, apply: Callable, views: Callable
) -> Array:
    """What the averaged model's classifier sees of one shard's rows, [B, F].

    Of several views only the first, the image as it is, is embedded. Arguments as in
    `eval_step`.
    """
    _, sown = apply(
        state.averaged, views(image)[0], train=False, mutable=["intermediates"]
    )
    return sown["intermediates"]["embedding"][0]


def compile_step(**parts: Any) -> Callable:
    """Binds AXIS to the devices; the state goes in and comes out replicated."""
    mapped = jax.pmap(
        functools.partial(train_step, **parts),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=0,
    )
    return compiled.uncollected(mapped)


def compile_arms(*, devices: int, **parts: Any) -> Callable:
    """train_step of many arms at once, (state, batch, key) [A, ...] each.

    Every device of this host, up to `devices`, has as many arms, which vmap makes one;
    each arm has the whole of its batch there, so that no arm waits for another.
    """
    step = functools.partial(train_step, **parts)

    def on_one_device(*arms: ArrayTree) -> tuple[State, dict[str, Array]]:
        if len(jax.tree.leaves(arms)[0]) > 1:
            return jax.vmap(step)(*arms)
        # A batch of one product is another operation, which XLA has no library for.
        alone = step(*jax.tree.map(lambda x: x[0], arms))
        return jax.tree.map(lambda x: x[None], alone)

    places = by_arm(devices)
    mapped = jax.shard_map(
        on_one_device,
        mesh=places.mesh,
        in_specs=places.spec,
        out_specs=places.spec,
        check_vma=False,
    )
    return compiled.uncollected(jax.jit(mapped, donate_argnums=0))


def by_arm(devices: int) -> NamedSharding:
    """Where the arms are that compile_arms maps: spread over their first axis."""
    found = np.array(jax.local_devices()[:devices]).reshape(-1, 1)
    return NamedSharding(Mesh(found, (ARMS, AXIS)), PartitionSpec(ARMS))


def replicated(state: ArrayTree) -> ArrayTree:
    """The state on every device of this host, as compile_eval's functions take it."""
    mesh = Mesh(jax.local_devices(), (AXIS,))
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def on_one_device(state: ArrayTree) -> ArrayTree:
    """A replicated state's copy on one device, for what all needn't compute."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), state)


def compile_eval(of_rows: Callable, **parts: Any) -> Callable:
    """eval_step or embed_step on each device of this host; [D, B, ...] comes out.

    No row needs another, so the hosts needn't take as many steps as each other.
    """
    mapped = jax.pmap(
        functools.partial(of_rows, **parts),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=0,
        devices=jax.local_devices(),
    )
    return compiled.uncollected(mapped)

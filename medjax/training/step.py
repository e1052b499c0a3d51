"""The training step and evaluation, pure; the only user of pmap."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array, ArrayTree
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.augment import policy
from medjax.training import optim
from medjax.training.devices import first, uncollected
from medjax.training.optim import Hyper

AXIS, ARMS = "batch", "arms"
PROFILED = range(4, 14)
NETWORK = 2**31 - 2  # Folded into an image's key, as the number of no augmentation op.
REPLICATED = PartitionSpec()  # Whole, on every device.


class State(NamedTuple):
    """Everything that an update reads and writes, and that a checkpoint holds."""

    step: Array  # [] int32, updates done.
    params: ArrayTree  # float32 weights.
    batch_stats: ArrayTree  # Running means and variances of the batch normalisation.
    averaged: ArrayTree  # Exponential moving average of both, for evaluation.
    opt_state: ArrayTree  # Of the optimiser, for the stages that aren't frozen.
    dual: dict[str, Array]  # The loss's own variables, by name; {} for most losses.
    hyper: Hyper  # Rates and class weights, as arrays.


Trained = State | tuple[State, ...]  # One network, or the members of an ensemble.


def members(state: Trained) -> tuple[State, ...]:
    """The networks whose probabilities are averaged; most runs have one."""
    return (state,) if isinstance(state, State) else tuple(state)


def init_state(
    variables: ArrayTree,
    *,
    optimizer: Any,
    dual: dict[str, Array],
    hyper: Hyper,
    frozen: tuple[str, ...] = (),
) -> State:
    """The state before the first update, from a model's variables."""
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
    optimizer: optax.GradientTransformationExtraArgs,
    frozen: tuple[str, ...] = (),
    **parts: Any,
) -> tuple[State, dict[str, Array]]:
    """One update from one shard's batch, collective over AXIS.

    Runs under pmap, vmap(axis_name=AXIS) and shard_map(check_vma=False). The update is
    that of the whole batch, for any number of shards.

    Args:
      state: replicated.
      batch: this shard's rows, see data/loader.py.
      key: the run's key, the same at every step: the batch holds the epoch.
      optimizer: takes the learning rate and the weight decay as extra arguments.
      frozen: stages whose params and batch statistics don't change, to the bit. They
        have no gradient and no state in the optimiser.
      parts: of `_gradient`; its `apply` must not change statistics of frozen stages.

    Returns:
      The new state, and scalars: loss (nats per image), grad_norm, and with `adapt`
      gap, the part of the loss that it adds.
    """
    moving = optim.moving(state.params, frozen)
    (value, gap), (grads, dual_grads), batch_stats = _gradient(
        state, batch, key, moving, **parts
    )
    change, opt_state = optimizer.update(
        grads,
        state.opt_state,
        moving,
        learning_rate=state.hyper.learning_rate,
        weight_decay=state.hyper.weight_decay,
    )
    change = optim.by_stage(change, state.step, state.hyper)
    params = state.params | optax.apply_updates(moving, change)
    # At first a long average would be that of the random start: hence the bound.
    decay = jnp.minimum(state.hyper.ema, (1 + state.step) / (10 + state.step))
    averaged = {}
    for part, new in {"params": params, "batch_stats": batch_stats}.items():
        old = state.averaged[part]  # Frozen stages stay: decay x + (1 - decay) x may
        # round to something else than x.
        moved = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new,
            optim.moving(old, frozen),
            optim.moving(new, frozen),
        )
        averaged[part] = old | moved
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
    return new, scalars | gap


def _gradient(
    state: State,
    batch: dict[str, Array],
    key: Array,
    moving: ArrayTree,
    *,
    apply: Callable,
    augment: Callable,
    loss: Callable,
    adapt: Callable | None = None,
    accumulate: int = 1,
    random: bool = False,
) -> tuple[tuple, tuple[ArrayTree, dict], ArrayTree]:
    """Computes the batch's mean loss over all shards, and its gradients.

    Args:
      state, batch, key: as of `train_step`.
      apply: (variables, image, train=True, mutable=[...]) -> (logits, updates), with
        batch statistics shared over AXIS.
      augment: (key, batch, **hyper.augment) -> the batch with augmented images,
        standardised, [B, (D,) H, W, C] float32, and with masks warped alike.
      loss: (logits, label, weight, **dual, **optim.loss_arguments) -> (total, count).
      adapt: (params, embedding [B, F], domain [B], weight=hyper.adapt, step=...) ->
        (total, count), added to the loss for domain adaptation; the batch then has the
        field domain.
      accumulate: parts of the rows, which go through the network one after the other;
        their gradients are added up. Batch normalisation sees each part alone; all else
        is as with the rows at once. Without `adapt`.
      random: the network drops values or blocks, drawn by an argument `keys` [B] of
        `apply`: a key for each image, as for its augmentation.

    Returns (loss, {"gap": gap} or {}), both gradients, and the new batch statistics.
    """
    arguments = optim.loss_arguments(state.hyper, state.step)

    def shard_loss(
        moving: ArrayTree, dual: dict, batch_stats: ArrayTree, batch: dict
    ) -> tuple[Array, tuple]:
        batch = augment(key, batch, **(state.hyper.augment or {}))
        params = state.params | moving
        draws = {"keys": policy.sample_keys(key, batch, NETWORK)} if random else {}
        logits, updates = apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats", *["intermediates"] * (adapt is not None)],
            **draws,
        )
        total, count = loss(
            logits, batch["label"], batch["weight"], **dual, **arguments
        )
        # The count has no gradient; these shares add up to the batch's mean.
        count = lax.psum(count, AXIS)
        share = total / jnp.maximum(count, 1)
        batch_stats = updates.get("batch_stats", {})
        if adapt is None:
            return share, (batch_stats, count, {})
        embedding = updates["intermediates"]["embedding"][0]
        options = {"weight": state.hyper.adapt, "step": state.step}
        total, rows = adapt(params, embedding, batch["domain"], **options)
        gap = total / lax.psum(rows, AXIS)
        return share + gap, (batch_stats, count, {"gap": gap})

    descend = jax.value_and_grad(shard_loss, argnums=(0, 1), has_aux=True)

    def add(sums: tuple, part: dict) -> tuple[tuple, None]:
        (value, aux), grads = descend(moving, state.dual, sums[0], part)
        batch_stats, count, _ = aux
        new = jax.tree.map(lambda x: count * x, (jnp.ones(()), value, grads))
        return (batch_stats, optax.tree.add(sums[1], new)), None

    if accumulate == 1:
        (value, aux), grads = descend(moving, state.dual, state.batch_stats, batch)
        batch_stats, _, gap = aux
    else:
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        zero = jnp.zeros(())
        zeros = zero, zero, optax.tree.zeros_like((moving, state.dual))
        (batch_stats, sums), _ = lax.scan(add, (state.batch_stats, zeros), parts)
        count, value, grads = sums
        value, grads = optax.tree.scale(1 / jnp.maximum(count, 1), (value, grads))
        gap = {}
    value, gap, grads = lax.psum((value, gap, grads), AXIS)
    return (value, gap), grads, batch_stats


def update_members(update: Callable) -> Callable:
    """The update of an ensemble: each member sees the same images, by a key of its own.

    One after the other, by one program: vmap over members makes grouped convolutions.
    """

    def step(state: Trained, batch: dict, key: Array) -> tuple[Trained, dict]:
        if isinstance(state, State):
            return update(state, batch, key)
        keys = jax.random.split(key, len(state))
        done = [update(member, batch, k) for member, k in zip(state, keys, strict=True)]
        states, scalars = zip(*done, strict=True)
        mean = jax.tree.map(lambda *values: sum(values) / len(values), *scalars)
        return states, mean

    return step


def mean_of_members(predict: Callable) -> Callable:
    """(state, ...) -> log-odds of the members' mean probability.

    Nothing is fetched, so that the caller can begin the next batch before that.
    """

    def mean(state: Trained, *rest: Any) -> Array:
        each = [predict(member, *rest) for member in members(state)]
        return each[0] if len(each) == 1 else log_odds_of_mean(jnp.stack(each))

    return mean


def log_odds_of_mean(log_odds: Array) -> Array:
    """[V, ...] -> [...], of the mean probability of V views or members."""
    present, absent = (
        jax.nn.logsumexp(jax.nn.log_sigmoid(z), axis=0) for z in (log_odds, -log_odds)
    )
    return present - absent


def eval_step(
    state: State,
    image: Array,
    *,
    apply: Callable,
    views: Callable,
    exclusive: bool,
) -> Array:
    """Log-odds [B, T] float32 of one shard's rows, by the averaged model.

    Not probabilities: float32 has none between 1 - 6e-8 and 1, and would tie images
    that the model tells apart.

    Args:
      image: [B, H, W, C], this shard's rows as loaded.
      apply: (variables, image, train=False) -> logits [B, T].
      views: image -> [V, B, H, W, C], standardised; the probabilities of the V views
        are averaged.
      exclusive: whether the T are classes, one of which each image has.
    """
    each = views(image)
    flat = each.reshape(-1, *each.shape[2:])  # [V B, H, W, C]
    logits = apply(state.averaged, flat, train=False).astype(jnp.float32)
    if exclusive:  # log p - log (1 - p) of a softmax.
        others = jnp.where(
            jnp.eye(logits.shape[-1], dtype=bool), -jnp.inf, logits[:, None]
        )
        logits -= jax.nn.logsumexp(others, axis=-1)
    logits = logits.reshape(*each.shape[:2], -1)
    return logits[0] if len(logits) == 1 else log_odds_of_mean(logits)


def embed_step(
    state: State, image: Array, *, apply: Callable, views: Callable
) -> Array:
    """The averaged model's embeddings of one shard's rows, the classifier's input [B, F].

    Only the first view, the image itself, is embedded. Arguments as in `eval_step`.
    """
    _, sown = apply(
        state.averaged, views(image)[0], train=False, mutable=["intermediates"]
    )
    return sown["intermediates"]["embedding"][0]


def mask_step(state: State, image: Array, *, apply: Callable, views: Callable) -> Array:
    """Log-odds [B, D, H, W, K] of the masks that the averaged model draws beside.

    Only of the first view, the image itself. Arguments as in `eval_step`.
    """
    both = apply(state.averaged, views(image)[0], train=False, masks=True)
    return both[1]


def compile_step(**parts: Any) -> Callable:
    """Compiles train_step over all devices of all hosts: (state, batch, key).

    state: as `everywhere` places it; it is donated.
    batch: [D, B, ...], as loader.to_device places it.

    One host maps by pmap. Several would wrap every leaf of the state in Python at each
    step, and the devices would wait for that: they have one array for all hosts.
    """
    step = functools.partial(train_step, **parts)
    if jax.process_count() == 1:
        axes = {"in_axes": (None, 0, None), "out_axes": None}
        mapped = jax.pmap(step, axis_name=AXIS, donate_argnums=0, **axes)
        return uncollected(mapped)

    def per_device(state: State, batch: dict, key: Array) -> tuple[State, dict]:
        return step(state, jax.tree.map(lambda x: x[0], batch), key)

    mapped = jax.shard_map(
        per_device,
        mesh=Mesh(jax.devices(), (AXIS,)),
        in_specs=(REPLICATED, PartitionSpec(AXIS), REPLICATED),
        out_specs=REPLICATED,
        check_vma=False,
    )
    return uncollected(jax.jit(mapped, donate_argnums=0))


@contextlib.contextmanager
def profiled(step: Callable, folder: str) -> Iterator[Callable]:
    """Yields the step; the folder gets a trace for TensorBoard or Perfetto.

    The trace begins after the calls that compile and fill the pipeline. It holds the
    calls PROFILED, or those of them that come. Of several processes only the first
    traces: JAX expects a single trace in the folder.
    """
    if not first():
        yield step
        return
    calls, trace = itertools.count(1), contextlib.ExitStack()

    def call(*arguments: Any) -> Any:
        number = next(calls)
        if number == PROFILED[0]:
            trace.enter_context(jax.profiler.trace(folder, create_perfetto_trace=True))
        done = step(*arguments)
        if number == PROFILED[-1]:
            jax.block_until_ready(done)
            trace.close()
        return done

    with trace:
        yield call


def compile_arms(*, devices: int, **parts: Any) -> Callable:
    """Compiles train_step for many runs at once, (state, batch, key) [A, ...] each.

    Each of up to `devices` devices of this host has equally many runs, under vmap. A
    run has its whole batch on one device, so that it doesn't wait for the others.
    """
    step = functools.partial(train_step, **parts)

    def per_device(*arms: ArrayTree) -> tuple[State, dict[str, Array]]:
        if len(jax.tree.leaves(arms)[0]) > 1:
            return jax.vmap(step)(*arms)
        # vmap over one run makes batched products, for which XLA has no library.
        alone = step(*jax.tree.map(lambda x: x[0], arms))
        return jax.tree.map(lambda x: x[None], alone)

    places = by_arm(devices)
    mapped = jax.shard_map(
        per_device,
        mesh=places.mesh,
        in_specs=places.spec,
        out_specs=places.spec,
        check_vma=False,
    )
    return uncollected(jax.jit(mapped, donate_argnums=0))


def by_arm(devices: int) -> NamedSharding:
    """The sharding of compile_arms: the runs' axis over the devices."""
    grid = np.array(jax.local_devices()[:devices]).reshape(-1, 1)
    return NamedSharding(Mesh(grid, (ARMS, AXIS)), PartitionSpec(ARMS))


def everywhere(state: ArrayTree) -> ArrayTree:
    """Places a state, which is equal on all hosts, on all devices, for compile_step."""
    place = NamedSharding(Mesh(jax.devices(), (AXIS,)), REPLICATED)
    put = functools.partial(jax.make_array_from_process_local_data, place)
    return jax.tree.map(put, jax.device_get(state))


def replicated(state: ArrayTree) -> ArrayTree:
    """The state on every device of this host, as compile_eval's functions need it.

    A state that is on the devices of all hosts isn't copied.
    """
    place = NamedSharding(Mesh(jax.local_devices(), (AXIS,)), REPLICATED)

    def put(leaf: Any) -> Array:
        if getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, place)
        mine = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, place, mine)

    return jax.tree.map(put, state)


def compile_eval(of_rows: Callable, **parts: Any) -> Callable:
    """Compiles eval_step or embed_step over this host's devices: [D, B, ...] -> same.

    Rows are independent, so the hosts may take different numbers of steps. As in
    `compile_step` one host maps by pmap, which takes fewer rows than devices, too; of
    several, what of the state isn't read stays where it is.
    """
    of_rows = functools.partial(of_rows, **parts)
    if jax.process_count() == 1:
        axes = {"in_axes": (None, 0), "out_axes": 0, "devices": jax.local_devices()}
        return uncollected(jax.pmap(of_rows, axis_name=AXIS, **axes))

    def per_device(state: State, image: Array) -> ArrayTree:
        return jax.tree.map(lambda x: x[None], of_rows(state, image[0]))

    rows = NamedSharding(Mesh(jax.local_devices(), (AXIS,)), PartitionSpec(AXIS))
    mapped = jax.jit(
        jax.shard_map(
            per_device,
            mesh=rows.mesh,
            in_specs=(REPLICATED, rows.spec),
            out_specs=rows.spec,
            check_vma=False,
        )
    )
    return uncollected(lambda state, image: mapped(state, jax.device_put(image, rows)))

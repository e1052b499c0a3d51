"""Optimisers whose learning rate and weight decay are arguments, not constants."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from chex import Array, ArrayTree


class Hyper(NamedTuple):
    """The numbers that may differ between runs of one program; part of the state."""

    learning_rate: Array  # [] float32, the peak of the schedule.
    weight_decay: Array  # [] float32, decoupled, relative to the learning rate.
    ema: Array  # [] float32, the decay of the averaged weights; 0: no averaging.
    dual_rate: Array  # [] float32, of the loss's own variables, see saddle_step.
    loss: dict[str, Array]  # Of the loss, by keyword: w_pos and w_neg [T], gamma [].
    # [] float32 by stage: the factor of its learning rate, None: 1 everywhere; and the
    # update at which it starts, None: 0 everywhere.
    share: dict[str, Array] | None = None
    start: dict[str, Array] | None = None
    adapt: Array | None = None  # [] float32, the weight of an adaptation's loss.
    augment: dict[str, ArrayTree] | None = None  # Of the augmentation, by keyword.
    defer: Array | float = 0.0  # [] float32, from which update on classes are weighted.


def loss_arguments(hyper: Hyper, step: Array) -> dict[str, ArrayTree]:
    """`hyper.loss` at a step: class weights are 1, or 0 as before, until `hyper.defer`.

    Source: Cao et al. (NeurIPS 2019), algorithm 1, deferred re-weighting.
    """

    def at_step(path: tuple, value: Array) -> Array:
        if path[-1].key not in ("w", "w_pos", "w_neg"):
            return value
        return jnp.where(step < hyper.defer, jnp.sign(value), value)

    return jax.tree_util.tree_map_with_path(at_step, hyper.loss)


def warmup_cosine(step: Array, *, steps: int, warmup: int) -> Array:
    """The share of the peak learning rate at a step, in [0, 1].

    Rises linearly over `warmup` steps, then falls as half a cosine to 0 after
    `steps` of them.

    Source: Loshchilov & Hutter, SGDR (ICLR 2017), eq. 5, without restarts.
    """
    rise = (step + 1) / max(warmup, 1)
    share = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
    return jnp.where(step < warmup, rise, 0.5 * (1 + jnp.cos(jnp.pi * share)))


Optimizer = optax.GradientTransformationExtraArgs


def adamw(*, steps: int, warmup: int, clip: float) -> Optimizer:
    """AdamW with a clipped global gradient norm, warm-up and cosine decay.

    `update` takes `learning_rate` and `weight_decay` as extra arguments. Vectors, such
    as biases and normalisation scales, aren't decayed.

    Args:
      steps: length of the schedule, in updates.
      warmup: updates until the peak.
      clip: largest global norm of a gradient.

    Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization (ICLR 2019).
    """
    return _chain(optax.scale_by_adam(), clip, _descend(steps, warmup))


def sgd(*, steps: int, warmup: int, clip: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov's momentum, 0.9; otherwise as `adamw`.

    Source: Sutskever et al., On the importance of initialization and momentum in deep
    learning (ICML 2013), as optax.trace.
    """
    momentum = optax.trace(0.9, nesterov=True)
    return _chain(momentum, clip, _descend(steps, warmup))


def lamb(*, steps: int, warmup: int, clip: float) -> Optimizer:
    """Adam whose change of each array is as long as the array, for large batches.

    Arguments and `update` as in `adamw`.

    Source: You et al., Large Batch Optimization for Deep Learning (ICLR 2020),
    algorithm 2, with optax's epsilon.
    """
    ends = optax.scale_by_trust_ratio(), _descend(steps, warmup)
    return _chain(optax.scale_by_adam(eps=1e-6), clip, *ends)


def pesg(
    *, steps: int, warmup: int, clip: float, stage: int, proximity: float
) -> Optimizer:
    """Proximal epoch stochastic gradient: the model's side of the AUC-M loss.

    w <- w - rate (gradient + proximity (w - reference) + weight_decay w), where the
    reference is the mean of the previous stage's iterates, or in the first stage the
    first weights. Clipping, schedule, decay and `update` are as in `adamw`;
    `saddle_step` updates the loss's own variables.

    LibAUC's PESG starts from a random reference, clips each element, and by default
    averages the gradient over steps.

    Args:
      stage: updates in a stage; the paper's stages are several epochs.
      proximity: >= 0, the pull towards the reference; 0 is plain gradient descent.

    Source: Yuan et al., Large-scale Robust Deep AUC Maximization (ICCV 2021),
    algorithm 1; Guo et al., Fast Objective and Duality Gap Convergence for
    Non-Convex Strongly-Concave Min-Max Problems (2020).
    """
    pull = _proximal(stage=stage, proximity=proximity)
    return _chain(pull, clip, _descend(steps, warmup))


def moving(tree: dict[str, ArrayTree], frozen: tuple[str, ...]) -> dict[str, ArrayTree]:
    """The stages of params or batch_stats that aren't frozen."""
    return {stage: leaves for stage, leaves in tree.items() if stage not in frozen}


def by_stage(
    change: dict[str, ArrayTree], step: Array, hyper: Hyper
) -> dict[str, ArrayTree]:
    """Scales the change of each stage's weights by its share of the learning rate.

    A stage before its start doesn't change, to the bit. Its moments are updated, so
    that it starts with a settled rate, and so are its batch statistics. `step` counts
    the updates done; of `hyper`, `share` and `start` are used.

    Source: Howard & Ruder, ULMFiT (ACL 2018): discriminative rates, and gradual
    unfreezing.
    """
    if hyper.share is None and hyper.start is None:
        return change
    share, start = hyper.share or {}, hyper.start or {}
    scaled = {}
    for stage, leaves in change.items():
        factor = jnp.where(step >= start.get(stage, 0), share.get(stage, 1.0), 0.0)
        scaled[stage] = optax.tree.scale(factor, leaves)
    return scaled


def saddle_step(
    variables: dict[str, Array], gradient: dict[str, Array], *, rate: Array
) -> dict[str, Array]:
    """One step on the loss's own variables: 'alpha' >= 0 ascends, the others descend.

    `variables` are by name, such as losses.auc_margin_variables, and `gradient` is that
    of the mean loss by them.

    Source: Yuan et al. (ICCV 2021), algorithm 1. LibAUC ascends along
    2 (margin + b - a - alpha) instead: b - a for the difference of the mean scores,
    and without the factor p (1 - p).
    """
    new = {name: value - rate * gradient[name] for name, value in variables.items()}
    if "alpha" in variables:
        ascent = variables["alpha"] + rate * gradient["alpha"]
        new["alpha"] = jnp.maximum(ascent, 0)
    return new


def _chain(
    direction: optax.GradientTransformation,
    clip: float,
    *ends: optax.GradientTransformation,
) -> Optimizer:
    """Clips the gradient, takes its direction, adds the decay, and goes on to the ends."""
    return optax.chain(optax.clip_by_global_norm(clip), direction, _decay(), *ends)


def _decay() -> Optimizer:
    """Adds weight_decay w to the direction of all weights but vectors."""

    def update(updates, state, params, *, weight_decay, **_):
        def decayed(direction: Array, param: Array) -> Array:
            return direction + weight_decay * param if param.ndim > 1 else direction

        return jax.tree.map(decayed, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _descend(steps: int, warmup: int) -> Optimizer:
    """The last part of every optimiser: -rate x direction."""

    def update(updates, state, params=None, *, learning_rate, **_):
        rate = learning_rate * warmup_cosine(state.count, steps=steps, warmup=warmup)
        updates = jax.tree.map(lambda direction: -rate * direction, updates)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    def init(_):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)


class Proximal(NamedTuple):
    """The state of `_proximal`."""

    count: Array  # [] int32, updates done.
    reference: ArrayTree  # As params, the mean of the previous stage's iterates.
    # As params, the sum over this stage's iterates of their distance from it. It is
    # more precise in float32 than the sum of the iterates.
    drift: ArrayTree


def _proximal(*, stage: int, proximity: float) -> optax.GradientTransformation:
    """Adds proximity (w - reference) to the gradient."""

    def update(updates, state, params):
        # An update sees the iterate of the previous update, so the last iterate of a
        # stage is added at the start of the next. The first weights drift by 0.
        count, reference, drift = state
        drift = jax.tree.map(lambda d, w, r: d + (w - r), drift, params, reference)
        turn = count % stage == 0
        reference = jax.tree.map(
            lambda r, d: r + jnp.where(turn, d / stage, 0), reference, drift
        )
        drift = jax.tree.map(lambda d: jnp.where(turn, 0, d), drift)
        updates = jax.tree.map(
            lambda g, w, r: g + proximity * (w - r), updates, params, reference
        )
        return updates, Proximal(count + 1, reference, drift)

    def init(params):
        copy = jax.tree.map(jnp.copy, params)  # One buffer can't be donated twice.
        count = jnp.zeros((), jnp.int32)
        return Proximal(count, copy, jax.tree.map(jnp.zeros_like, params))

    return optax.GradientTransformation(init, update)

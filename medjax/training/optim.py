"""AdamW whose learning rate and weight decay are arrays, not closures."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from chex import Array


class Hyper(NamedTuple):
    """What may differ between arms of one program; travels in the state.

    learning_rate: [] float32, the peak of the schedule.
    weight_decay: [] float32, decoupled, relative to the learning rate.
    ema: [] float32, the decay of the averaged weights; 0 follows the weights.
    loss: keyword arrays of the loss, e.g. w_pos and w_neg [T].
    """

    learning_rate: Array
    weight_decay: Array
    ema: Array
    loss: dict[str, Array]


def warmup_cosine(step: Array, *, steps: int, warmup: int) -> Array:
    """The share of the peak learning rate at a step, in [0, 1].

    Rises linearly over `warmup` steps, then falls as half a cosine to 0 after
    `steps` of them.

    Source: Loshchilov & Hutter, SGDR (ICLR 2017), eq. 5, without restarts.
    """
    rise = (step + 1) / max(warmup, 1)
    share = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
    return jnp.where(step < warmup, rise, 0.5 * (1 + jnp.cos(jnp.pi * share)))


def adamw(
    *, steps: int, warmup: int, clip: float, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformationExtraArgs:
    """AdamW with a clipped global gradient norm, warm-up and cosine decay.

    `update` takes `learning_rate` and `weight_decay` as extra arguments. Decay
    spares vectors: biases and normalisation scales have no scale to shrink.

    Args:
      steps: length of the schedule, in updates.
      warmup: updates until the peak.
      clip: largest global norm of a gradient.
      b1: decay of the gradient's mean.
      b2: decay of its square's mean.

    Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization (ICLR 2019).
    """

    def update(updates, state, params, *, learning_rate, weight_decay, **_):
        rate = learning_rate * warmup_cosine(state.count, steps=steps, warmup=warmup)

        def descend(direction: Array, param: Array) -> Array:
            decay = weight_decay * param if param.ndim > 1 else 0.0
            return -rate * (direction + decay)

        updates = jax.tree.map(descend, updates, params)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    def init(_):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1, b2),
        optax.GradientTransformationExtraArgs(init, update),
    )

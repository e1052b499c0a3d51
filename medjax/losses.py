"""Losses as pure functions, each returning a (total, count) pair.

Shards know different numbers of labels, so a mean of shard means is wrong: the
caller sums both parts over every shard and divides once.
"""

import chex
import jax
import jax.numpy as jnp
from chex import Array


def weighted_bce(
    logits: Array, label: Array, weight: Array, *, w_pos: Array, w_neg: Array
) -> tuple[Array, Array]:
    """Multi-label cross-entropy with a weight for each class of each task.

    -(w_pos y log p + w_neg (1 - y) log(1 - p)), summed over the tasks. With the
    'ratio' weights both classes of a task contribute equally.

    Args:
      logits: [B, T] log-odds that each finding is present.
      label: [B, T] in [0, 1]; anything, NaN included, where the weight is 0.
      weight: [B, T], >= 0; 0 where the label is unknown or the row is padding.
      w_pos: [T], >= 0, the weight of a present finding.
      w_neg: [T], >= 0, the weight of an absent one.

    Returns:
      total: [] float32, nats, weighted and summed over B and T.
      count: [] float32, the images that know at least one label: the mean over
        them of the sum over tasks is the loss.

    Source: Rajpurkar et al., CheXNet (2017), section 2; written with softplus, as
    log p = -softplus(-z) and log(1 - p) = -softplus(z).
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, label, weight])
    z = logits.astype(jnp.float32)  # bf16 keeps 8 bits: too few for a long sum.
    y = jnp.where(weight > 0, label, 0).astype(jnp.float32)  # First: NaN * 0 is NaN.
    weight = weight.astype(jnp.float32)
    present = w_pos * y * jax.nn.softplus(-z)
    absent = w_neg * (1 - y) * jax.nn.softplus(z)
    count = jnp.sum(jnp.any(weight > 0, axis=1), dtype=jnp.float32)
    return jnp.sum(weight * (present + absent)), count

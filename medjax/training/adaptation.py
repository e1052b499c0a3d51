"""Losses between the embeddings of labelled source and unlabelled target images.

A batch holds rows of both; `domain` says which, [B]: 0 source, 1 target. Labels have
no part in either loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree

HIDDEN = 100  # Units of the domain classifier, as in the paper's small networks.


def coral(
    feature: Array, domain: Array, *, total: Callable[[Array], Array] = lambda x: x
) -> Array:
    """How far the covariances of two domains are apart.

    |C_S - C_T|^2 / (4 F^2), the squared Frobenius norm, where C_S and C_T are the
    unbiased covariances [F, F] of the source and of the target rows.

    Args:
      feature: [B, F].
      domain: [B], 0 or 1; at least two rows of each.
      total: sums over all shards, such as a psum: covariances of shards can't be
        added, but sums of rows can.

    Returns:
      [] float32, the same on every shard.

    Source: Sun & Saenko, Deep CORAL (ECCV workshops 2016), eq. 1 to 3.
    """
    feature = jnp.asarray(feature, jnp.float32)

    def covariance(inside: Array) -> Array:
        count = total(jnp.sum(inside))
        mean = total(inside @ feature) / jnp.maximum(count, 1)
        centred = inside[:, None] * (feature - mean)  # First: sums cancel digits.
        squares = jnp.matmul(centred.T, centred, precision="highest")
        return total(squares) / jnp.maximum(count - 1, 1)

    source = (domain == 0).astype(jnp.float32)
    apart = covariance(source) - covariance(1 - source)
    return jnp.sum(apart**2) / (4 * feature.shape[1] ** 2)


def domain_cross_entropy(
    params: ArrayTree, feature: Array, domain: Array
) -> tuple[Array, Array]:
    """The domain classifier's cross-entropy, in nats, as (total, count) over rows.

    Behind `reverse` its gradient trains the classifier to tell the domains apart,
    and what made the embedding to hide them: the domain-adversarial training.

    Args:
      params: see domain_classifier.
      feature: [B, F].
      domain: [B], 0 or 1.

    Source: Ganin et al., Domain-Adversarial Training of Neural Networks (JMLR 2016),
    eq. 9 to 15.
    """
    hidden, logit = params["hidden"], params["logit"]
    x = jax.nn.relu(feature.astype(jnp.float32) @ hidden["kernel"] + hidden["bias"])
    z = (x @ logit["kernel"] + logit["bias"])[:, 0]
    loss = jax.nn.softplus(z) - domain * z
    return jnp.sum(loss), jnp.float32(loss.size)


def domain_classifier(key: Array, features: int) -> ArrayTree:
    """Fresh parameters: [F] -> HIDDEN rectified units -> one logit of the target."""
    make = jax.nn.initializers.he_normal()
    keys = jax.random.split(key)
    sizes = {"hidden": (features, HIDDEN), "logit": (HIDDEN, 1)}
    return {
        name: {"kernel": make(key, size), "bias": jnp.zeros(size[1])}
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


@jax.custom_vjp
def reverse(x: Array, strength: Array) -> Array:
    """x itself, whose gradient is multiplied by -strength on its way back.

    Source: Ganin et al. (JMLR 2016), eq. 16 and 17.
    """
    return x


reverse.defvjp(
    lambda x, strength: (x, strength),
    lambda strength, gradient: (-strength * gradient, jnp.zeros_like(strength)),
)


def ramp(progress: Array) -> Array:
    """How much of the reversal a share of the training has, from 0 to almost 1.

    2 / (1 + exp(-10 progress)) - 1, so that the classifier learns something before
    the embedding hides it.

    Source: Ganin et al. (JMLR 2016), section 5.2.2.
    """
    return jnp.tanh(5 * progress)  # The same.

"""Losses of domain adaptation, which compare the embeddings of two domains.

Embeddings [B, F] are of labelled source images and unlabelled target images in one
batch; `domain` [B] is 0 for source and 1 for target. No label is used.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from chex import Array, ArrayTree

HIDDEN = 100  # Units of the domain classifier, as in the paper's small networks.


def coral(
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
    """Random parameters: [F] -> HIDDEN rectified units -> one logit of the target."""
    make = jax.nn.initializers.he_normal()
    keys = jax.random.split(key)
    sizes = {"hidden": (features, HIDDEN), "logit": (HIDDEN, 1)}
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

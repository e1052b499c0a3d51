"""Mean and variance of what reaches each batch normalisation."""

from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from flax.traverse_util import unflatten_dict


def of_batch(apply: Callable, variables: ArrayTree, image: Array) -> ArrayTree:
    """One batch's own statistics, float32, laid out as the model's batch_stats.

    The model runs in training mode: what reaches a layer was normalised below by
    this batch's statistics, not by running ones.

    Args:
      apply: Linen's, of a model without remat, which would hide its layers.
      variables: params and batch_stats; only the names of the latter matter.
      image: [B, *S, C], standardised.
    """
    found = {}

    def look(layer, args, kwargs, context):
        module = context.module
        normalises = module.has_variable("batch_stats", "mean")
        if normalises and context.method_name == "__call__":
            x = args[0].astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            found[(*module.path, "mean")] = jnp.mean(x, axes)
            found[(*module.path, "var")] = jnp.var(x, axes)
        return layer(*args, **kwargs)

    with nn.intercept_methods(look):
        apply(variables, image, train=True, mutable=["batch_stats"])
    return unflatten_dict(found)


def together(parts: Iterable[tuple[int, ArrayTree]]) -> ArrayTree:
    """The statistics of all images from those of their batches, summed in float64.

    The mean is the batches' mean, and the variance the mean of their variances plus
    the variance of their means, each batch counted by its images.

    Args:
      parts: (images, statistics) of each batch.
    """
    sizes, trees = zip(*parts, strict=True)
    share = np.array(sizes, np.float64) / sum(sizes)

    def layer(*stats: ArrayTree) -> ArrayTree:
        mean, var = (np.stack([s[k] for s in stats]) for k in ("mean", "var"))
        centre = share @ mean
        spread = share @ (var + (mean - centre) ** 2)
        return {"mean": jnp.float32(centre), "var": jnp.float32(spread)}

    return jax.tree.map(layer, *trees, is_leaf=lambda tree: "mean" in tree)

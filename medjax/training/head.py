"""Refits the classifier on embeddings, with synthetic minority points among them.

The layers below the classifier keep their weights. The classifier alone is a small
convex problem, which is solved to convergence. (Treating imbalance in the classifier
alone: Kang et al., ICLR 2020.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from chex import Array

from medjax.cohort.synthetic import Synthetic

DECAY = 1e-3
ITERATIONS = 200  # Of L-BFGS at most; a few dozen are usually enough.


@jax.default_matmul_precision("highest")  # An accelerator would round products.
def refit(
    feature: Array,
    label: Array,
    weight: Array,
    *,
    between: Synthetic,
    exclusive: bool,
    decay: float = DECAY,
) -> dict[str, Array]:
    """Fits a linear classifier to embeddings and to points between them.

    The classifier is linear, so a synthetic point's logits are the same mixture of two
    images' logits as the point is of them, and no synthetic embedding is computed.

    Args:
      feature: [N, F] embeddings.
      label: [N, T] in [0, 1]; anything where the weight is 0.
      weight: [N, T], >= 0; 0 where the label is unknown.
      between: the synthetic points of each task, [T, M].
      exclusive: whether an image has exactly one of the tasks (softmax).
      decay: of the sum of squared weights, for standardised features.

    Returns:
      kernel [F, T] and bias [T] of the layer.
    """
    mean = jnp.mean(feature, axis=0)
    std = jnp.std(feature, axis=0)
    scale = jnp.where(std > 1e-6, 1 / jnp.maximum(std, 1e-6), 0.0)
    x = (feature - mean) * scale
    # In the principal axes, each scaled by the curvature there, L-BFGS needs a tenth of
    # the iterations. A cross-entropy's is at most 1/4 of the variance.
    variance, axes = jnp.linalg.eigh(x.T @ x / len(x))
    axes *= jax.lax.rsqrt(jnp.maximum(variance, 0) / 4 + 2 * decay)
    x = x @ axes
    y = jnp.where(weight > 0, label, 0.0)

    def cross_entropy(logits: Array, target: Array) -> Array:
        return jax.nn.softplus(logits) - target * logits

    def objective(layer: dict[str, Array]) -> Array:
        z = x @ layer["kernel"] + layer["bias"]  # [N, T]
        gap = between.gap
        if exclusive:
            total = -jnp.sum(weight * y * jax.nn.log_softmax(z))
            count = jnp.sum(weight * y) + jnp.sum(between.weight)
            gap = gap[..., None]
            mixed = (1 - gap) * z[between.seed] + gap * z[between.neighbour]
            # Task t's points are of class t.
            points = jnp.diagonal(jax.nn.log_softmax(mixed), axis1=0, axis2=2)  # [M, T]
            total -= jnp.sum(between.weight * points.T)
        else:
            total = jnp.sum(weight * cross_entropy(z, y), axis=0)  # [T]
            count = jnp.sum(weight, axis=0) + jnp.sum(between.weight, axis=1)
            start = jnp.take_along_axis(z.T, between.seed, axis=1)
            end = jnp.take_along_axis(z.T, between.neighbour, axis=1)
            mixed = (1 - gap) * start + gap * end  # [T, M]
            points = cross_entropy(mixed, between.label[:, None])
            total += jnp.sum(between.weight * points, axis=1)
        fit = jnp.sum(total / jnp.maximum(count, 1))
        return fit + decay * jnp.sum((axes @ layer["kernel"]) ** 2)

    shape = feature.shape[1], label.shape[1]
    layer = _minimise(
        objective, {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])}
    )
    kernel = axes @ layer["kernel"] * scale[:, None]
    return {"kernel": kernel, "bias": layer["bias"] - mean @ kernel}


def normalised(layer: dict[str, Array], *, tau: float) -> dict[str, Array]:
    """Each class's weights w_k / |w_k|^tau, and no bias.

    Frequent classes have larger norms. With tau = 1 all classes have the same.

    Source: Kang et al. (ICLR 2020), section 4, tau-normalised classifier.
    """
    norm = jnp.linalg.norm(layer["kernel"], axis=0)
    kernel = layer["kernel"] / jnp.where(norm > 0, norm, 1) ** tau
    return {"kernel": kernel, "bias": jnp.zeros_like(layer["bias"])}


def _minimise(objective: Callable, start: dict) -> dict:
    """Minimises by L-BFGS until the gradient is small, at most ITERATIONS times."""
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def unfinished(carry):
        count, gradient = (optax.tree.get(carry[1], k) for k in ("count", "grad"))
        large = optax.tree.norm(gradient) > 1e-5
        return (count == 0) | ((count < ITERATIONS) & large)

    def iterate(carry):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(params, updates), state

    carry = (start, optimizer.init(start))
    return jax.lax.while_loop(unfinished, iterate, carry)[0]

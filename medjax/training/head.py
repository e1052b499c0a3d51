"""Refits the classifier on embeddings, with SMOTE's or ADASYN's points among them.

The layers below the classifier keep their weights. The classifier alone is a small
convex problem, which is solved to convergence. (Treating imbalance in the classifier
alone: Kang et al., ICLR 2020.)

A synthetic point of the rarer class lies between two embeddings of it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

# Distances are computed in blocks: images that ask, and images that may be neighbours.
ASKED, AMONG = 128, 2048
# The candidates beyond K: distances from a matrix product are rounded, so the exact
# distances of a few more are computed.
SPARE = 16
ITERATIONS = 200  # Of L-BFGS at most; a few dozen are usually enough.


class Synthetic(NamedTuple):
    """M synthetic points of one task, (1 - gap) seed + gap neighbour."""

    seed: Array  # [M] int32, as `neighbour` a row that a point lies between.
    neighbour: Array
    gap: Array  # [M] float32 in [0, 1).
    weight: Array  # [M] float32, 1 for a point, 0 for padding; the points come first.
    label: Array  # [] float32, the class of all points: 0 where negatives are rarer.


def no_points(tasks: int) -> Synthetic:
    """No points, of each task."""
    rows, gap = np.zeros((tasks, 1), np.int32), np.zeros((tasks, 1), np.float32)
    return Synthetic(rows, rows, gap, gap, gap[:, 0])


def smote(
    key: Array, feature: Array, label: Array, *, size, wanted, neighbours=5
) -> Synthetic:
    """Puts points between each image of the rarer class and its nearest of that class.

    Each such image starts equally many points, and the remainder goes to some at
    random, as in Chawla et al.; imbalanced-learn draws each point's seed at random
    instead. A class with at most `neighbours` images uses those it has; a class with
    fewer than two gets no points.

    Args:
      feature: [N, F] embeddings; anything where the label is NaN.
      label: [N] in [0, 1], positive from 0.5 on; NaN, which is unknown, is neither a
        seed nor a neighbour.
      size: M, int, the largest number of points.
      wanted: [] int, how many points; at most `size` are made.
      neighbours: K, int >= 1, of which each point draws one.

    Source: Chawla, Bowyer, Hall, Kegelmeyer, SMOTE, JAIR 16 (2002), section 4.2.
    """
    return _synthetic(_even, key, feature, label, size, neighbours, wanted)


def adasyn(
    key: Array, feature: Array, label: Array, *, size, wanted, neighbours=5
) -> Synthetic:
    """SMOTE with more points where the other class is near.

    An image of the rarer class starts rint(wanted r / sum r) points, where r is the
    share of the other class among its K nearest of all known images. So the sum may
    differ a little from `wanted`; what exceeds `size` is cut off at random seeds. If no
    image has a neighbour of the other class, He et al. divide by 0: here all start
    equally many. Arguments as in `smote`.

    Source: He, Bai, Garcia, Li, ADASYN, IJCNN 2008.
    """
    return _synthetic(_by_difficulty, key, feature, label, size, neighbours, wanted)


def nearest(feature: Array, asked: Array, among: Array, *, neighbours: int) -> Array:
    """Finds each image's K nearest others by Euclidean distance, of [N, F] features.

    Computed in blocks: the time is proportional to the product of the two numbers of
    images, and no [N, N] array is ever in memory. `asked`, [N] bool, are the images
    whose neighbours are wanted; `among`, [N] bool, those that may be neighbours. The
    features of others may be anything.

    Returns:
      [N, K] int32 rows, nearest first, ties by the lower row; -1 where there are
      fewer, and for images that didn't ask.
    """
    images, wide = len(feature), neighbours + SPARE
    asking, n_asking = jnp.argsort(~asked, stable=True), jnp.sum(asked)
    others, n_others = jnp.argsort(~among, stable=True), jnp.sum(among)
    feature = jnp.asarray(feature, jnp.float32)

    def block(i, rows):
        here = asking[(i * ASKED + jnp.arange(ASKED)) % n_asking]  # The last one wraps.
        x = feature[here]
        centre = x.mean(axis=0)  # A common offset would cost the product its digits.

        def merge(j, best):
            position = j * AMONG + jnp.arange(AMONG)
            there = others[jnp.minimum(position, images - 1)]
            y = feature[there] - centre
            product = jnp.matmul(x - centre, y.T, precision="highest")
            far = jnp.sum(y**2, axis=1) - 2 * product  # |x|^2 is in all of a row.
            valid = (position < n_others) & (there != here[:, None])
            row = jnp.where(valid, there, -1).astype(jnp.int32)
            row = jnp.concatenate([best[1], row], axis=1)
            far = jnp.concatenate([best[0], jnp.where(valid, far, jnp.inf)], axis=1)
            close, which = jax.lax.top_k(-far, wide)
            return -close, jnp.take_along_axis(row, which, axis=1)

        none = jnp.full((ASKED, wide), jnp.inf), jnp.full((ASKED, wide), -1, jnp.int32)
        _, row = jax.lax.fori_loop(0, -(-n_others // AMONG), merge, none)
        row = jnp.sort(row, axis=1)  # top_k takes the first of equals.
        exact = jnp.sum((feature[row] - x[:, None]) ** 2, axis=-1)
        exact = jnp.where(row >= 0, exact, jnp.inf)
        _, which = jax.lax.top_k(-exact, neighbours)
        return rows.at[here].set(jnp.take_along_axis(row, which, axis=1))

    rows = jnp.full((images, neighbours), -1, jnp.int32)
    return jax.lax.fori_loop(0, -(-n_asking // ASKED), block, rows)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _synthetic(starts, key, feature, label, size, neighbours, wanted):
    """Both methods; `starts` says how many points each seed starts."""
    chex.assert_rank([feature, label], [2, 1])
    chex.assert_equal_shape_prefix([feature, label], 1)
    present, absent = label >= 0.5, label < 0.5  # NaN is neither.
    positive = jnp.sum(present) <= jnp.sum(absent)
    rarer = jnp.where(positive, present, absent)
    other = jnp.where(positive, absent, present)
    wanted = jnp.clip(wanted, 0, size).astype(jnp.int32)
    shuffle, draw = jax.random.split(key)
    random = jax.random.uniform(shuffle, rarer.shape)
    order = jnp.argsort(jnp.where(rarer, random, 2.0))  # The rarer class comes first.
    counts = starts(wanted, order, rarer, other, feature, neighbours)
    return _between(draw, feature, rarer, positive, order, counts, size, neighbours)


def _even(wanted, order, rarer, *_):
    """Points of each row of `order`, [N]: the rarer class's differ by at most one."""
    images = jnp.maximum(jnp.sum(rarer), 1)
    rank = jnp.arange(len(order))
    counts = wanted // images + (rank < wanted % images)
    return jnp.where(rank < jnp.sum(rarer), counts, 0)


def _by_difficulty(wanted, order, rarer, other, feature, neighbours):
    """Points of each row of `order`, [N], by its neighbours of the other class."""
    near = nearest(feature, rarer, rarer | other, neighbours=neighbours)
    foes = jnp.sum((near >= 0) & other[near], axis=1)
    foes = jnp.where(rarer, foes, 0)[order].astype(jnp.float32)
    total = jnp.sum(foes)
    # One division, of whole numbers: ties round to even as in exact arithmetic.
    counts = jnp.rint(wanted * foes / jnp.maximum(total, 1)).astype(jnp.int32)
    return jnp.where(total > 0, counts, _even(wanted, order, rarer))


def _between(key, feature, rarer, positive, order, counts, size, neighbours):
    """Draws a neighbour and a gap for each point; `order`: the seeds of `counts`."""
    which, gap = jax.random.split(key)
    starts = jnp.zeros_like(rarer).at[order].set(counts > 0)
    near = nearest(feature, starts, rarer, neighbours=neighbours)
    point, end = jnp.arange(size), jnp.cumsum(counts)
    turn = jnp.searchsorted(end, point, side="right", method="sort")
    seed = order[jnp.minimum(turn, len(order) - 1)]
    count = jnp.sum(near[seed] >= 0, axis=1)
    drawn = jax.random.randint(which, (size,), 0, jnp.maximum(count, 1))
    real = (point < end[-1]) & (count > 0)
    return Synthetic(
        seed=jnp.where(real, seed, 0).astype(jnp.int32),
        neighbour=jnp.where(real, near[seed, drawn], 0).astype(jnp.int32),
        gap=jax.random.uniform(gap, (size,)),
        weight=real.astype(jnp.float32),
        label=positive.astype(jnp.float32),
    )


@jax.default_matmul_precision("highest")  # An accelerator would round products.
def refit(
    feature: Array,
    label: Array,
    weight: Array,
    *,
    between: Synthetic,
    exclusive: bool,
    decay: float,
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

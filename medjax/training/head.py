"""Refits the classifier on embeddings, with SMOTE's or ADASYN's points among them.

The layers below the classifier keep their weights. The classifier alone is a small
convex problem, which is solved to convergence. (Treating imbalance in the classifier
alone: Kang et al., ICLR 2020.)

A synthetic point of the rarer class lies between two embeddings of it.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from scipy.optimize import minimize

DISTANCE_ROWS = 256  # Images whose distances to all others are in memory at once.
# The candidates beyond K: distances from a matrix product are rounded, so the exact
# distances of a few more are computed.
SPARE = 16
ITERATIONS = 200  # Of L-BFGS at most; a few dozen are usually enough.


class Synthetic(NamedTuple):
    """M synthetic points of one task, (1 - gap) seed + gap neighbour."""

    seed: np.ndarray  # [M] int32, as `neighbour` a row that a point lies between.
    neighbour: np.ndarray
    gap: np.ndarray  # [M] float32 in [0, 1).
    weight: np.ndarray  # [M] float32, 1 for a point, 0 for padding, which comes last.
    # [] float32, the class of all points: 0 where negatives are rarer.
    label: np.ndarray


def no_points(tasks: int) -> Synthetic:
    """No points, of each task."""
    rows, gap = np.zeros((tasks, 1), np.int32), np.zeros((tasks, 1), np.float32)
    return Synthetic(rows, rows, gap, gap, gap[:, 0])


def smote(key: Array, feature: np.ndarray, label: np.ndarray, **how: int) -> Synthetic:
    """Puts points between each image of the rarer class and its nearest of that class.

    Each such image starts equally many points, and the remainder goes to some at
    random, as in Chawla et al.; imbalanced-learn draws each point's seed at random
    instead. A class with at most `neighbours` images uses those it has; a class with
    fewer than two gets no points.

    Args:
      feature: [N, F] embeddings; anything where the label is NaN.
      label: [N] in [0, 1], positive from 0.5 on; NaN, which is unknown, is neither a
        seed nor a neighbour.
      how: `size`, M, the largest number of points; `wanted`, how many points, of which
        at most M are made; `neighbours`, K >= 1, of which each point draws one.

    Source: Chawla, Bowyer, Hall, Kegelmeyer, SMOTE, JAIR 16 (2002), section 4.2.
    """
    return _synthetic(key, feature, label, by_foes=False, **how)


def adasyn(key: Array, feature: np.ndarray, label: np.ndarray, **how: int) -> Synthetic:
    """SMOTE with more points where the other class is near.

    An image of the rarer class starts rint(wanted r / sum r) points, where r is the
    share of the other class among its K nearest of all known images. So the sum may
    differ a little from `wanted`; what exceeds `size` is cut off at random seeds. If no
    image has a neighbour of the other class, He et al. divide by 0: here all start
    equally many. Arguments as in `smote`.

    Source: He, Bai, Garcia, Li, ADASYN, IJCNN 2008.
    """
    return _synthetic(key, feature, label, by_foes=True, **how)


def nearest_neighbours(
    feature: np.ndarray, asked: np.ndarray, among: np.ndarray, *, neighbours: int
) -> np.ndarray:
    """Finds each asked image's K nearest others by Euclidean distance, [A, K] rows.

    Nearest first, ties by the lower row; -1 where there are fewer. Of the features
    [N, F] only the rows `asked` [A] and `among` [M], ascending, are read; `among` may be
    neighbours.
    """
    others = feature[among]
    centre = others.mean(axis=0)  # A common offset would cost the product its digits.
    centred = others - centre
    squares = np.sum(centred**2, axis=1)
    last = min(neighbours + SPARE, len(among)) - 1
    near = np.full((len(asked), neighbours), -1)
    for start in range(0, len(asked), DISTANCE_ROWS):
        rows = asked[start : start + DISTANCE_ROWS]
        # |x|^2 is in all of a row.
        far = squares - 2 * (feature[rows] - centre) @ centred.T
        far[rows[:, None] == among] = np.inf
        most = np.partition(far, last)[:, last]
        for n, row in enumerate(rows):
            close = np.flatnonzero((far[n] <= most[n]) & (far[n] < np.inf))
            exact = np.sum((others[close] - feature[row]) ** 2, axis=1)
            chosen = among[close[np.argsort(exact, stable=True)]][:neighbours]
            near[start + n, : len(chosen)] = chosen
    return near


def _synthetic(
    key: Array,
    feature: np.ndarray,
    label: np.ndarray,
    *,
    by_foes: bool,
    size: int,
    wanted: int,
    neighbours: int = 5,
) -> Synthetic:
    """Both methods; `by_foes`: an image starts the more points, the more are near."""
    present, absent = label >= 0.5, label < 0.5  # NaN is neither.
    positive = present.sum() <= absent.sum()
    rarer, other = (present, absent) if positive else (absent, present)
    images, blank = np.flatnonzero(rarer), np.zeros(size, np.int32)
    gap, weight = np.zeros((2, size), np.float32)
    made = Synthetic(blank, blank.copy(), gap, weight, np.float32(positive))
    wanted = min(wanted, size)
    if len(images) < 2 or wanted < 1:
        return made
    shuffle, draw = jax.random.split(key)
    which, between = jax.random.split(draw)
    random = np.asarray(jax.random.uniform(shuffle, label.shape))
    seeds = images[np.argsort(random[images], stable=True)]
    counts = np.full(len(seeds), wanted // len(seeds))
    counts[: wanted % len(seeds)] += 1
    if by_foes:
        known = np.flatnonzero(rarer | other)
        near = nearest_neighbours(feature, seeds, known, neighbours=neighbours)
        foes = np.sum((near >= 0) & other[near], axis=1)
        if foes.any():
            counts = np.rint(wanted * foes / foes.sum()).astype(int)
    near = nearest_neighbours(feature, seeds, images, neighbours=neighbours)
    turn = np.repeat(np.arange(len(seeds)), counts)[:size]
    choices = np.ones(size, int)
    choices[: len(turn)] = np.sum(near[turn] >= 0, axis=1)
    drawn = np.asarray(jax.random.randint(which, (size,), 0, choices))[: len(turn)]
    made.seed[: len(turn)], made.neighbour[: len(turn)] = seeds[turn], near[turn, drawn]
    made.gap[:] = jax.random.uniform(between, (size,))
    made.weight[: len(turn)] = 1
    return made


def refit(
    feature: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    *,
    between: Synthetic,
    exclusive: bool,
    decay: float,
) -> dict[str, np.ndarray]:
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
    mean, std = np.mean(feature, axis=0), np.std(feature, axis=0)
    scale = np.where(std > 1e-6, 1 / np.maximum(std, 1e-6), 0.0)
    x = (feature - mean) * scale
    # In the principal axes, each scaled by the curvature there, L-BFGS needs a tenth of
    # the iterations. A cross-entropy's is at most 1/4 of the variance.
    variance, axes = np.linalg.eigh(x.T @ x / len(x))
    axes /= np.sqrt(np.maximum(variance, 0) / 4 + 2 * decay)
    y, shape = np.where(weight > 0, label, 0.0), (x.shape[1] + 1, label.shape[1])
    data = jax.device_put((x @ axes, y, weight, between, axes))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = np.float32(flat.reshape(shape))
        value, slope = _loss(layer, *data, decay, exclusive=exclusive)
        return float(value), np.ravel(slope).astype(float)

    tight = {"maxiter": ITERATIONS, "ftol": 0, "gtol": 1e-6}
    start = np.zeros(math.prod(shape))
    layer = minimize(loss, start, jac=True, method="L-BFGS-B", options=tight).x
    *kernel, bias = np.float32(layer.reshape(shape))
    kernel = axes @ kernel * scale[:, None]
    return {"kernel": kernel, "bias": bias - mean @ kernel}


@functools.partial(jax.jit, static_argnames="exclusive")
@jax.default_matmul_precision("highest")  # An accelerator would round products.
@jax.value_and_grad
def _loss(layer, x, y, weight, between, axes, decay, *, exclusive) -> Array:
    """The penalised cross-entropy of a layer [F + 1, T], its bias in the last row."""

    def cross_entropy(logits: Array, target: Array) -> Array:
        return jax.nn.softplus(logits) - target * logits

    z = x @ layer[:-1] + layer[-1]  # [N, T]
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
    return fit + decay * jnp.sum((axes @ layer[:-1]) ** 2)


def normalised(layer: dict[str, Array], *, tau: float) -> dict[str, Array]:
    """Each class's weights w_k / |w_k|^tau, and no bias.

    Frequent classes have larger norms. With tau = 1 all classes have the same.

    Source: Kang et al. (ICLR 2020), section 4, tau-normalised classifier.
    """
    norm = jnp.linalg.norm(layer["kernel"], axis=0)
    kernel = layer["kernel"] / jnp.where(norm > 0, norm, 1) ** tau
    return {"kernel": kernel, "bias": jnp.zeros_like(layer["bias"])}

"""Synthetic minorities: points between embeddings that are neighbours.

Written for one task and pure, so that `jax.vmap` does all tasks: feature and size are
shared, label and weight have a column and the key an entry for each. What differs
between tasks (which class is rarer, how many films it has) is a mask or a bound of a
loop, never a shape.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from medjax.errors import InputError

Array = jax.Array

# Distances computed at once: films that ask, and films that may be their neighbours.
ASKED, AMONG = 128, 2048
# More neighbours are looked up than asked for, by distances as a matrix product; its
# rounding is then undone for these few.
SPARE = 16


class Synthetic(NamedTuple):
    """M synthetic points of one task, (1 - gap) seed + gap neighbour; see `points`.

    seed, neighbour: [M] int32, the rows that a point lies between; 0 in filling.
    gap: [M] float32 in [0, 1).
    weight: [M] float32, 1 for a point, 0 for filling; the points come first.
    label: [] float32, the class of all points: 1, or 0 where negatives are rarer.
    """

    seed: Array
    neighbour: Array
    gap: Array
    weight: Array
    label: Array


@functools.partial(jax.jit, static_argnames=("size", "neighbours"))
def smote(
    key: Array,
    feature: Array,
    label: Array,
    weight: Array,
    *,
    size: int,
    neighbours: int = 5,
    wanted: Array | None = None,
) -> Synthetic:
    """Puts points between each film of the rarer class and its nearest of that class.

    Each such film starts as many points as any other, and the remainder goes to some
    at random, as Chawla et al. have it; imbalanced-learn draws each point's seed at
    random instead. A class with fewer than `neighbours` + 1 films uses those it has;
    of a single film, or none, nothing is made, because one film has no between.

    Args:
      key: one key.
      feature: [N, F] embeddings; anything where the weight is 0.
      label: [N] in [0, 1], positive from 0.5 on; NaN is unknown.
      weight: [N], >= 0; an unknown label (0) is no seed and no neighbour.
      size: M, the most points that there is room for.
      neighbours: K, of which each point draws one.
      wanted: [] int, how many points; None fills up to the other class. What is
        beyond `size` is not made.

    Source: Chawla, Bowyer, Hall, Kegelmeyer, SMOTE, JAIR 16 (2002), section 4.2.
    """
    _check(feature, label, weight, size, neighbours)
    rarer, other, positive = _classes(label, weight)
    keys = jax.random.split(key)
    order = _shuffled(keys[0], rarer)
    wanted = _room(wanted, rarer, other, size)
    counts = _even(wanted, rarer)
    return _between(
        *(keys[1], feature, rarer, positive, order, counts), size, neighbours
    )


@functools.partial(jax.jit, static_argnames=("size", "neighbours"))
def adasyn(
    key: Array,
    feature: Array,
    label: Array,
    weight: Array,
    *,
    size: int,
    neighbours: int = 5,
    wanted: Array | None = None,
) -> Synthetic:
    """SMOTE with more points where the other class is near.

    A film of the rarer class starts rint(wanted r / sum r) points, r the share of the
    other class among its K nearest of all known films; so their sum may differ a
    little from `wanted`, and random seeds go short if it exceeds `size`. Where no film
    has a neighbour of the other class, He et al. divide by 0: here each film starts as
    many as any other. Arguments as in `smote`.

    Source: He, Bai, Garcia, Li, ADASYN, IJCNN 2008.
    """
    _check(feature, label, weight, size, neighbours)
    rarer, other, positive = _classes(label, weight)
    keys = jax.random.split(key)
    order = _shuffled(keys[0], rarer)
    wanted = _room(wanted, rarer, other, size)
    near = nearest(feature, rarer, rarer | other, neighbours=neighbours)
    foes = jnp.sum((near >= 0) & other[near], axis=1)
    foes = jnp.where(rarer, foes, 0)[order].astype(jnp.float32)
    total = jnp.sum(foes)
    # One division, of whole numbers: ties round to even as in exact arithmetic.
    hard = jnp.rint(wanted * foes / jnp.maximum(total, 1)).astype(jnp.int32)
    counts = jnp.where(total > 0, hard, _even(wanted, rarer))
    return _between(
        *(keys[1], feature, rarer, positive, order, counts), size, neighbours
    )


def points(synthetic: Synthetic, feature: Array) -> Array:
    """The points of one task themselves, [M, F]; 0 in filling.

    A linear classifier doesn't need them: its logits mix as the embeddings do.

    Args:
      synthetic: M points.
      feature: [N, F], as they were made from.
    """
    feature = jnp.asarray(feature, jnp.float32)
    start, end = feature[synthetic.seed], feature[synthetic.neighbour]
    mixed = start + synthetic.gap[:, None] * (end - start)
    return jnp.where(synthetic.weight[:, None] > 0, mixed, 0)


def nearest(feature: Array, asked: Array, among: Array, *, neighbours: int) -> Array:
    """Finds each film's nearest others by Euclidean distance.

    Blocks of films that ask meet blocks of those they may find, as many of either as
    there are: time goes with their product, and no [N, N] is ever in memory.

    Args:
      feature: [N, F]; anything in rows that neither ask nor may be found.
      asked: [N] bool, the films that ask.
      among: [N] bool, the films that may be found; a film never finds itself, though
        it may find a copy of itself.
      neighbours: K.

    Returns:
      [N, K] int32 rows, nearest first and of equals the lower row; -1 where there
      are fewer, and in all rows that did not ask.
    """
    films, wide = len(feature), neighbours + SPARE
    asking, n_asking = jnp.argsort(~asked, stable=True), jnp.sum(asked)
    others, n_others = jnp.argsort(~among, stable=True), jnp.sum(among)
    feature = jnp.asarray(feature, jnp.float32)

    def block(i, found):
        here = asking[(i * ASKED + jnp.arange(ASKED)) % n_asking]  # The last one wraps.
        x = feature[here]
        centre = x.mean(axis=0)  # A common offset would cost the product its digits.

        def merge(j, best):
            position = j * AMONG + jnp.arange(AMONG)
            there = others[jnp.minimum(position, films - 1)]
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
        return found.at[here].set(jnp.take_along_axis(row, which, axis=1))

    found = jnp.full((films, neighbours), -1, jnp.int32)
    return jax.lax.fori_loop(0, -(-n_asking // ASKED), block, found)


def _check(feature, label, weight, size, neighbours):
    chex.assert_rank([feature, label, weight], [2, 1, 1])
    chex.assert_equal_shape_prefix([feature, label, weight], 1)
    for name, value in (("size", size), ("neighbours", neighbours)):
        if value < 1:
            raise InputError(f"{name}: {value} is below 1; give 1 or more")


def _classes(label, weight):
    """Returns the rarer class and the other, [N] bool, and if the rarer is positive."""
    there = (weight > 0) & ~jnp.isnan(label)
    present, absent = there & (label >= 0.5), there & ~(label >= 0.5)
    positive = jnp.sum(present) <= jnp.sum(absent)
    rarer = jnp.where(positive, present, absent)
    return rarer, jnp.where(positive, absent, present), positive


def _room(wanted, rarer, other, size):
    """How many points to make, [] int32."""
    if wanted is None:
        wanted = jnp.sum(other) - jnp.sum(rarer)
    return jnp.clip(wanted, 0, size).astype(jnp.int32)


def _shuffled(key, rarer):
    """The rarer class' rows in random order, then the other rows, [N]."""
    return jnp.argsort(jnp.where(rarer, jax.random.uniform(key, rarer.shape), 2.0))


def _even(wanted, rarer):
    """How many points each row of `_shuffled` starts, [N]: none more than one extra."""
    films = jnp.maximum(jnp.sum(rarer), 1)
    rank = jnp.arange(len(rarer))
    counts = wanted // films + (rank < wanted % films)
    return jnp.where(rank < jnp.sum(rarer), counts, 0)


def _between(key, feature, rarer, positive, order, counts, size, neighbours):
    """Draws a neighbour and a gap for each of the points that seeds start.

    Args:
      key, feature, size, neighbours: as in `smote`.
      rarer: [N] bool, the class to fill up.
      positive: [] bool, whether it is the positive one.
      order, counts: [N] seeds, and how many points each starts.
    """
    which, gap = jax.random.split(key)
    starts = jnp.zeros_like(rarer).at[order].set(counts > 0)
    near = nearest(feature, starts, rarer, neighbours=neighbours)
    point, end = jnp.arange(size), jnp.cumsum(counts)
    turn = jnp.searchsorted(end, point, side="right", method="sort")
    seed = order[jnp.minimum(turn, len(order) - 1)]
    found = jnp.sum(near[seed] >= 0, axis=1)
    drawn = jax.random.randint(which, (size,), 0, jnp.maximum(found, 1))
    real = (point < end[-1]) & (found > 0)
    return Synthetic(
        seed=jnp.where(real, seed, 0).astype(jnp.int32),
        neighbour=jnp.where(real, near[seed, drawn], 0).astype(jnp.int32),
        gap=jax.random.uniform(gap, (size,)),
        weight=real.astype(jnp.float32),
        label=positive.astype(jnp.float32),
    )

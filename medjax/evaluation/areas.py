"""What a bootstrap over patients computes many times over, many times at once.

A replicate is a vector of weights: an image counts as often as its patient was drawn,
and no image is copied.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medjax.evaluation import metrics

Array = jax.Array

# Replicates computed at once: the multiplicities are the largest array, 5 bytes a
# patient and replicate.
CHUNK = 500
# Images swept before their areas join the compensated total: a short float32 sum
# rounds little, and compensating each image would double the work. UNROLL of them
# are compiled into one step.
BLOCK = 64
UNROLL = 4


def multiplicities(key: Array, replicate: Array, patients: int) -> Array:
    """How often each replicate draws each patient, P draws with replacement from P.

    Args:
      key: one key.
      replicate: [R] int, the replicates' numbers: each has a key of its own, so
        that it draws the same in any chunk.
      patients: P.

    Returns:
      [P, R] uint8. A patient drawn 256 times is beyond any chance (P^-255).
    """

    def draw(number):
        bits = jax.random.bits(jax.random.fold_in(key, number), (patients,))
        # The remainder favours no patient by more than P / 2^32, and costs a third
        # of `randint`, which was half the time of the whole bootstrap.
        chosen = (bits % jnp.uint32(patients)).astype(jnp.int32)
        return jnp.zeros(patients, jnp.uint8).at[chosen].add(1)

    return jax.lax.map(draw, replicate).T


def replicate_areas(
    score, label, weight, patient, counts, *, max_fpr: float | None = None
) -> tuple[Array, ...]:
    """AUROC and average precision of many reweightings of the same images.

    `metrics.auroc` for each would sort and sum N x T x R numbers in memory. Here
    every task is sorted once and swept from its highest score down, all tasks and
    replicates abreast; what is kept is six numbers for each of them.

    Args:
      score, label, weight: [N, T], as in `bootstrap`.
      patient: [N] int, 0 to P - 1.
      counts: [P, R], how often each replicate counts a patient.
      max_fpr: asks for metrics.partial_auroc too, half as much work again.

    Returns:
      AUROC, average precision and, if asked for, the partial AUROC, [R, T] float32, to
      1e-6; NaN where undefined.
    """
    ranking = jax.vmap(metrics.rank, in_axes=-1, out_axes=-1)(score, label, weight)
    rows = (patient[ranking.order], ranking.positive, ranking.negative, ranking.end)
    most = None
    if max_fpr is not None:
        negative = jnp.where(weight > 0, 1 - label, 0.0) * weight
        of_patient = jax.ops.segment_sum(negative, patient, num_segments=len(counts))
        drawn = counts.astype(jnp.float32)
        most = max_fpr * jnp.einsum("pt,pr->tr", of_patient, drawn, precision="highest")
    areas = _sweep(_padded(rows), counts, 0, score.shape[0], most)
    if max_fpr is not None:
        chance = max_fpr / 2
        areas = (*areas[:2], 0.5 * (1 + (areas[2] - chance) / (1 - chance)))
    return tuple(area.T for area in areas)


def replicate_group_areas(
    score, label, weight, patient, group, counts, *, groups: int
) -> tuple[Array, Array]:
    """`replicate_areas` of each group of images alone, at the cost of one of them all.

    Args:
      group: [N] int, 0 to G - 1, which group an image is in.
      groups: G; one of them may be empty.
      The rest: as above.

    Returns:
      AUROC and average precision, [R, G, T].
    """

    def ranked(score, label, weight):  # [N]: group after group, each as by `rank`.
        ranking = metrics.rank(score, label, weight)
        by_group = jnp.argsort(group[ranking.order], stable=True)
        order, score, positive, negative, _ = (x[by_group] for x in ranking)
        own = group[order]
        end = (score[1:] != score[:-1]) | (own[1:] != own[:-1])
        return patient[order], positive, negative, jnp.append(end, True)

    rows = jax.vmap(ranked, in_axes=-1, out_axes=-1)(score, label, weight)
    rows = _padded(rows)
    size = jnp.bincount(group, length=groups)
    of_group = functools.partial(_sweep, rows, counts)
    areas = jax.lax.map(lambda at: of_group(*at), (jnp.cumsum(size) - size, size))
    return jax.tree.map(lambda area: jnp.moveaxis(area, -1, 0), areas)


def _padded(rows):
    """BLOCK more rows at the end, so that a block may begin at any of them."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, BLOCK), (0, 0))), rows)


def _sweep(rows, counts, first, size, most=None) -> tuple[Array, ...]:
    """The areas of `size` ranked rows from `first` on, [T, R] each.

    Args:
      rows: patient, positive, negative, end, [N + BLOCK, T] each.
      counts: [P, R].
      most: [T, R], adds the mean sensitivity up to so many false positives; None: no.
    """
    total = jnp.zeros((rows[0].shape[1], counts.shape[1]))  # [T, R], as all below
    kinds = 2 if most is None else 3

    def image(carry, row):
        tp, fp, last_tp, last_fp, area, precision, *partial = carry
        who, positive, negative, end = row  # [T] each: every task has its own order
        count = counts[who].astype(jnp.float32)
        tp, fp = tp + count * positive[:, None], fp + count * negative[:, None]
        end = end[:, None]
        step = (fp - last_fp) * (tp + last_tp)
        area += jnp.where(end, step, 0.0)
        # The smallest divisor is a guard against 0 / 0 before the first count.
        step = (tp - last_tp) * (tp / jnp.maximum(tp + fp, 1e-30))
        precision += jnp.where(end, step, 0.0)
        if most is not None:  # Of ties across the limit the part below it counts.
            inside = jnp.minimum(fp, most) - jnp.minimum(last_fp, most)
            share = inside / jnp.maximum(fp - last_fp, 1e-30)
            step = inside * (2 * last_tp + share * (tp - last_tp))
            partial = [partial[0] + jnp.where(end, step, 0.0)]
        last_tp, last_fp = jnp.where(end, tp, last_tp), jnp.where(end, fp, last_fp)
        return (tp, fp, last_tp, last_fp, area, precision, *partial), None

    def block(number, carry):
        *state, sums, lost = carry
        start = number * BLOCK
        who, *parts = (
            jax.lax.dynamic_slice_in_dim(x, first + start, BLOCK) for x in rows
        )
        inside = (start + jnp.arange(BLOCK) < size)[:, None]  # The rest count nothing.
        parts = [jnp.where(inside, x, jnp.zeros_like(x)) for x in parts]
        found, _ = jax.lax.scan(
            image, (*state, *[total] * kinds), (who, *parts), unroll=UNROLL
        )
        state, more = found[:4], jnp.stack(found[4:]) - lost
        after = sums + more
        return (*state, after, (after - sums) - more)  # Kahan's summation

    start = (*(total,) * 4, *(jnp.stack([total] * kinds),) * 2)
    carry = jax.lax.fori_loop(0, -(-size // BLOCK), block, start)
    tp, fp, _, _, (area, precision, *partial), _ = carry
    both = (tp > 0) & (fp > 0)
    auroc = jnp.where(both, area / tp / fp / 2, jnp.nan)
    partial = [jnp.where(both, each / tp / most / 2, jnp.nan) for each in partial]
    return auroc, jnp.where(tp == 0, jnp.nan, precision / tp), *partial


def replicate_confusion(
    score, label, weight, patient, threshold, counts
) -> tuple[metrics.Confusion, Array]:
    """The confusion matrix of many reweightings; arguments as above.

    A patient's cells do not change, so the counts of all replicates are one product.

    Returns:
      the matrix's cells, and the positives whether or not there is a threshold: [R, T].
    """
    cells = jax.vmap(metrics.cells, in_axes=-1, out_axes=-1)
    cells = cells(score, label, weight, threshold)
    positive = jnp.where(weight > 0, label, 0.0) * weight
    cells = jnp.stack([*cells, positive], axis=1)  # [N, 5, T]
    cells = jax.ops.segment_sum(cells, patient, num_segments=counts.shape[0])
    cells = jnp.einsum(  # HIGHEST: an accelerator's default rounds counts to 8 bits.
        "pr,pct->crt", counts.astype(jnp.float32), cells, precision="highest"
    )
    return metrics.Confusion(*cells[:4]), cells[4]


def in_chunks(values: Callable, replicates: int):
    """Calls a function of replicates' numbers, CHUNK at a time.

    Args:
      values: int [C] -> a tree of [C, ...].
      replicates: R.

    Returns:
      The tree of [R, ...].
    """
    size = min(CHUNK, replicates)
    numbers = jnp.arange(-(-replicates // size) * size).reshape(-1, size)
    found = jax.lax.map(values, numbers)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:replicates], found)

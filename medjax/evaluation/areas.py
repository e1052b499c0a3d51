"""AUROC and average precision of many reweightings of images at once.

Score, label and weight are [N, T], see metrics.py; patient is [N] int, 0 to P - 1, and
counts are [P, R], how often each replicate counts each patient.

AUROC is how often a positive outranks a negative; a tied pair counts one half. It is NaN
without positives or negatives.

Average precision is the precision at every threshold, weighted by recall's step, without
interpolation. It is NaN without positives (scikit-learn says 0), and without negatives
(scikit-learn says 1, which a mean over findings would take for skill). Under chance it
equals the prevalence, not 1/2.

The partial AUROC is of the thresholds at which the specificity is 1 - max_fpr or more,
linear between the curve's points, and standardised: 1/2 is chance, 1 perfect, whatever
max_fpr in (0, 1] is.

Source: Mann & Whitney, Ann. Math. Stat. 18 (1947); Hanley & McNeil, Radiology 143 (1982):
the trapezoid over runs of tied scores; scikit-learn's `average_precision_score`, sum
(R_n - R_n-1) P_n; McClish, Med. Decis. Making 9 (1989) 190, as `roc_auc_score(max_fpr=)`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation import metrics

AREAS = ("auroc", "average_precision")
WORTH = {"average_precision": 1}  # See bootstrap.wilson.
# Images swept before their areas join the compensated total: a short float32 sum
# rounds little, and compensating each image would double the work. UNROLL of them
# are compiled into one step.
BLOCK = 64
UNROLL = 4


class Ranking(NamedTuple):
    """The images of one task from the highest score to the lowest, all [N]."""

    order: Array  # int32, where the image of this rank was before.
    score: Array  # float32, -inf where the weight is 0.
    positive: Array  # float32, as `negative` the image's weight as this class.
    negative: Array
    # bool, whether this is the last of a run of equal scores. A threshold can only be
    # put there, so only there are the curves read: ties get their due.
    end: Array


def rank(score: Array, label: Array, weight: Array) -> Ranking:
    """Sorts one task by descending score."""
    score, positive, negative = metrics.known(score, label, weight)
    _, order = jax.lax.sort_key_val(-score, jnp.arange(score.size))
    score = score[order]
    end = jnp.append(score[1:] != score[:-1], True)
    return Ranking(order, score, positive[order], negative[order], end)


def of_tasks(
    score, label, weight, patient, counts, *, max_fpr: float | None = None
) -> tuple[Array, ...]:
    """AUROC, average precision and, with max_fpr, the partial AUROC, [R, T] float32.

    To sort each replicate would take N x T x R numbers. Here every task is sorted once
    and swept from its highest score down, all tasks and replicates together, which keeps
    six numbers for each of them. The partial AUROC takes half as much time again.

    They are right to 1e-6 where counts times weights are whole; with fractions, as of
    soft labels, to 1e-5 in a million images.
    """
    ranking = jax.vmap(rank, in_axes=-1, out_axes=-1)(score, label, weight)
    rows = (patient[ranking.order], ranking.positive, ranking.negative, ranking.end)
    most = None
    if max_fpr is not None:
        negative = jnp.where(weight > 0, 1 - label, 0.0) * weight
        of_patient = jax.ops.segment_sum(negative, patient, num_segments=len(counts))
        drawn = counts.astype(jnp.float32)
        most = max_fpr * jnp.einsum("pt,pr->tr", of_patient, drawn, precision="highest")
    area, precision, *partial = _sweep(_padded(rows), counts, 0, len(score), most)
    if max_fpr is not None:
        chance = max_fpr / 2
        partial = [0.5 * (1 + (partial[0] - chance) / (1 - chance))]
    return tuple(each.T for each in (area, precision, *partial))


@functools.partial(jax.jit, static_argnames="max_fpr")
def of_images(score, label, weight, *, max_fpr: float | None = None) -> tuple:
    """Computes `of_tasks` of the images as they are, [T] each."""
    patient, once = jnp.zeros(len(score), jnp.int32), jnp.ones((1, 1))
    areas = of_tasks(score, label, weight, patient, once, max_fpr=max_fpr)
    return tuple(each[0] for each in areas)


def of_groups(
    score, label, weight, patient, group, counts, *, groups: int
) -> tuple[Array, Array]:
    """Computes `of_tasks` of each group alone, in the time of one sweep of all images.

    The group of each image is [N] int, 0 to G - 1; a group may be empty. Returns AUROC
    and average precision, [R, G, T].
    """

    def ranked(score, label, weight):  # [N]: group after group, each as by `rank`.
        ranking = rank(score, label, weight)
        by_group = jnp.argsort(group[ranking.order], stable=True)
        order, score, positive, negative, _ = (x[by_group] for x in ranking)
        sorted_group = group[order]
        end = (score[1:] != score[:-1]) | (sorted_group[1:] != sorted_group[:-1])
        return patient[order], positive, negative, jnp.append(end, True)

    rows = jax.vmap(ranked, in_axes=-1, out_axes=-1)(score, label, weight)
    rows = _padded(rows)
    size = jnp.bincount(group, length=groups)
    of_group = functools.partial(_sweep, rows, counts)
    both = jax.lax.map(lambda at: of_group(*at), (jnp.cumsum(size) - size, size))
    return jax.tree.map(lambda area: jnp.moveaxis(area, -1, 0), both)


def _padded(rows):
    """Appends BLOCK rows, so that a block may begin at any row."""
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
        state, _ = jax.lax.scan(
            image, (*state, *[total] * kinds), (who, *parts), unroll=UNROLL
        )
        state, more = state[:4], jnp.stack(state[4:]) - lost
        after = sums + more
        return (*state, after, (after - sums) - more)  # Kahan's summation

    start = (*(total,) * 4, *(jnp.stack([total] * kinds),) * 2)
    carry = jax.lax.fori_loop(0, -(-size // BLOCK), block, start)
    tp, fp, _, _, (area, precision, *partial), _ = carry
    both = (tp > 0) & (fp > 0)
    auroc = jnp.where(both, area / tp / fp / 2, jnp.nan)
    partial = [jnp.where(both, each / tp / most / 2, jnp.nan) for each in partial]
    return auroc, jnp.where(both, precision / tp, jnp.nan), *partial


def of_other_patients(score, label, weight, patient) -> np.ndarray:
    """Estimates the average precision [T] with little bias, also from few positives.

    Average precision is the mean, over the positive images, of the precision at each
    one's score. As that image itself is called positive there, the precision is too
    high: of 13 positives among 60 images with random scores it is 0.27 in the mean, and
    not 0.22. Here the precision at an image's score is that of the other patients, at
    the prevalence of all; 1 where none of them is called. NaN where no other patient is
    positive, or negative.
    """
    areas = []
    for s, y, w in zip(score.T, label.T, weight.T, strict=True):
        y, w, known = y.astype(float), w.astype(float), w > 0
        _, place = np.unique(-s[known], return_inverse=True)
        amount = (w * [y, 1 - y])[:, known]  # [2, N], as positive and as negative.
        both = (np.zeros_like(place), patient[known].astype(int))
        (called, all_), (own, mine) = (_called(amount, place, x) for x in both)
        positive = amount[0] > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            true, false = ((called - own) * all_ / (all_ - mine))[:, positive]
            precision = np.where(true + false == 0, 1, true / (true + false))
            areas.append(amount[0, positive] @ precision / np.sum(amount[0]))
    return np.array(areas)


def _called(amount, place, group) -> tuple[np.ndarray, np.ndarray]:
    """Sums each image's group up to its rank, ties too, and in all: [2, N] each."""
    size = place.max(initial=0) + 1
    at = group * size + place
    order = np.argsort(at, kind="stable")
    total = np.pad(np.cumsum(amount[:, order], axis=1), ((0, 0), (1, 0)))
    first, here, last = (
        total[:, np.searchsorted(at[order], where)]
        for where in (group * size, at + 1, (group + 1) * size)
    )
    return here - first, last - first

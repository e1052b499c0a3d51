"""AUROC and average precision: of one task, and of many reweightings of images at once.

Of one task, score, label and weight are [N], see metrics.py. Of several they are [N, T],
patient is [N] int, 0 to P - 1, and counts are [P, R], how often each replicate counts
each patient.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation import metrics

NAMES = ("auroc", "average_precision")
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


def auroc(score: Array, label: Array, weight: Array) -> Array:
    """[]: area under the ROC curve, how often a positive outranks a negative.

    A tied pair counts one half. NaN without positives or negatives.

    Source: Mann & Whitney, Ann. Math. Stat. 18 (1947); Hanley & McNeil,
    Radiology 143 (1982): the trapezoid over runs of tied scores.
    """
    tp, fp, end = _cumulative(score, label, weight)
    # Counts are subtracted while they are exact, and divided before they are
    # multiplied: tp * fp passes 2^24, where float32 loses units.
    step = metrics.ratio(fp - _previous(fp, end), fp[-1])
    height = metrics.ratio(tp + _previous(tp, end), 2 * tp[-1])
    return jnp.sum(jnp.where(end, step * height, 0.0))


def average_precision(score: Array, label: Array, weight: Array) -> Array:
    """[]: average precision, precision at every threshold, weighted by recall's step.

    No interpolation. NaN without positives (scikit-learn says 0), 1 without negatives.
    Under chance it equals the prevalence, not 1/2.

    Source: scikit-learn's `average_precision_score`, sum (R_n - R_n-1) P_n.
    """
    tp, fp, end = _cumulative(score, label, weight)
    step = metrics.ratio(tp - _previous(tp, end), tp[-1])
    # Leading rows of weight 0 have no precision, and take no step.
    precision = jnp.where(tp + fp > 0, metrics.ratio(tp, tp + fp), 0.0)
    return jnp.sum(jnp.where(end, step * precision, 0.0))


def partial_auroc(
    score: Array, label: Array, weight: Array, *, max_fpr: float
) -> Array:
    """[]: AUROC of the thresholds at which the specificity is 1 - max_fpr or more.

    Standardised: 1/2 is chance, 1 perfect, whatever max_fpr in (0, 1] is.

    Source: McClish, Med. Decis. Making 9 (1989) 190; as scikit-learn's
    `roc_auc_score(max_fpr=)`, linear between the curve's points.
    """
    tp, fp, end = _cumulative(score, label, weight)
    before_tp, before_fp = _previous(tp, end), _previous(fp, end)
    most = max_fpr * fp[-1]
    left, right = jnp.minimum(before_fp, most), jnp.minimum(fp, most)
    # Of a run of ties that crosses the limit, the part below it counts.
    part = jnp.where(fp > before_fp, (right - left) / (fp - before_fp), 0.0)
    height = before_tp + part * (tp - before_tp) / 2
    step = metrics.ratio(right - left, fp[-1])
    area = jnp.sum(jnp.where(end, step * metrics.ratio(height, tp[-1]), 0.0))
    chance = max_fpr**2 / 2
    return 0.5 * (1 + (area - chance) / (max_fpr - chance))


def _cumulative(score: Array, label: Array, weight: Array) -> tuple[Array, ...]:
    """tp and fp [N], counted down to each rank, and the ends of runs."""
    ranking = rank(score, label, weight)
    return _running(ranking.positive), _running(ranking.negative), ranking.end


def _previous(curve: Array, end: Array) -> Array:
    """[N]: the curve's value at the last end above each rank, or 0."""
    last = jax.lax.cummax(jnp.where(end, jnp.arange(end.size), -1))
    last = jnp.append(-1, last[:-1])
    return jnp.where(last < 0, 0.0, curve[last])


def _running(terms: Array) -> Array:
    """The running sum of [N], in rows of about sqrt(N).

    XLA adds one by one on a CPU. Whole counts are exact either way; with fractions,
    such as soft labels, a million images would cost an area its fourth digit.
    """
    width = max(1, math.isqrt(terms.size))
    rows = jnp.pad(terms, (0, -terms.size % width)).reshape(-1, width)
    within = jnp.cumsum(rows, axis=1)
    before = jnp.cumsum(within[:, -1]) - within[:, -1]
    return (before[:, None] + within).reshape(-1)[: terms.size]


def of_tasks(
    score, label, weight, patient, counts, *, max_fpr: float | None = None
) -> tuple[Array, ...]:
    """AUROC and average precision of many reweightings of the same images.

    `auroc` for each would sort and sum N x T x R numbers in memory. Here
    every task is sorted once and swept from its highest score down, all tasks and
    replicates together, which keeps six numbers for each of them. max_fpr adds
    partial_auroc, which takes half as much time again.

    Returns:
      AUROC, average precision and, with max_fpr, the partial AUROC, [R, T] float32, to
      1e-6, or [T] where counts is None; NaN where undefined.
    """
    if counts is None:
        partial = functools.partial(partial_auroc, max_fpr=max_fpr)
        each = [auroc, average_precision, *[partial] * bool(max_fpr)]
        return tuple(jax.vmap(f, in_axes=-1)(score, label, weight) for f in each)
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


def of_groups(
    score, label, weight, patient, group, counts, *, groups: int
) -> tuple[Array, Array]:
    """`of_tasks` of each group of images alone, in the time of one sweep of all images.

    The group of each image is [N] int, 0 to G - 1; a group may be empty, and counts
    isn't None. Returns AUROC and average precision, [R, G, T].
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
    return auroc, jnp.where(tp == 0, jnp.nan, precision / tp), *partial


def of_other_patients(score, label, weight, patient) -> np.ndarray:
    """[T]: an average precision that is nearly right in the mean, also of few positives.

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
    """[2, N] each: of an image's group, the sums up to its place, ties too, and of all."""
    size = place.max(initial=0) + 1
    at = group * size + place
    order = np.argsort(at, kind="stable")
    total = np.pad(np.cumsum(amount[:, order], axis=1), ((0, 0), (1, 0)))
    first, here, last = (
        total[:, np.searchsorted(at[order], where)]
        for where in (group * size, at + 1, (group + 1) * size)
    )
    return here - first, last - first

"""Images of which each has exactly one of K classes: who is taken for whom.

The metrics of one class against the rest are metrics.py's; here is what only the
whole matrix says.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation.areas import in_chunks, multiplicities
from medjax.evaluation.bootstrap import Interval


def cells(probability: Array, label: Array, weight: Array) -> Array:
    """Each image's place in the confusion matrix, [N, K, K]: row true, column said.

    Args:
      probability: [N, K]; the likeliest class is said, the first of tied ones.
      label: [N, K] one-hot, or shares of classes that sum to 1.
      weight: [N, K]; an image counts as its largest one, 0 where it is unknown.
    """
    said = jax.nn.one_hot(jnp.argmax(probability, axis=1), probability.shape[1])
    known = jnp.max(weight, axis=1)
    true = jnp.where(known[:, None] > 0, label, 0.0) * known[:, None]
    return true[:, :, None] * said[:, None, :]


def rates(matrix: Array, there: Array | None = None) -> dict[str, Array]:
    """What confusion matrices [..., K, K] say, [...] each.

    accuracy is the share of images called right; it is also the micro mean of
    sensitivity, PPV and F1, and the prevalence-weighted mean of sensitivity.
    balanced_accuracy is the mean sensitivity and macro_f1 the mean F1, over the classes
    that are `there`; weighted_f1 weighs F1 by prevalence. kappa is the agreement
    beyond that of two independent readers with these margins; NaN where they agree by
    necessity. All are NaN without an image.

    Args:
      matrix: row true, column said.
      there: [K], which classes the means are over, NaN where one has no image: a mean
        over other classes is another quantity. None: those that have an image.

    Source: Cohen, Educ. Psychol. Meas. 20 (1960) 37; scikit-learn's names, but its
    macro F1 counts a class that is only said, not true, as 0, and here it is left out.
    """
    total = matrix.sum((-2, -1))
    right = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    true, said = matrix.sum(-1), matrix.sum(-2)
    seen = true > 0
    there = seen if there is None else there

    def mean(values):
        return jnp.mean(jnp.where(seen, values, jnp.nan), axis=-1, where=there)

    f1 = 2 * right / jnp.where(seen, true + said, 1)
    # Margins are divided before they are multiplied: a product passes 2^24.
    prevalence = true / total[..., None]
    share = jnp.sum(right, -1) / total
    chance = jnp.sum(prevalence * said / total[..., None], -1)
    return {
        "accuracy": share,
        "balanced_accuracy": mean(right / jnp.where(seen, true, 1)),
        "macro_f1": mean(f1),
        "weighted_f1": jnp.sum(prevalence * f1, -1),
        "kappa": jnp.where(chance < 1, (share - chance) / (1 - chance), jnp.nan),
    }


def summarise(
    probability, label, weight, patient, *, key: Array, replicates: int
) -> tuple[np.ndarray, dict[str, Interval]]:
    """The confusion matrix [K, K], and its rates with intervals clustered by patient.

    Args:
      probability, label, weight: [N, K], see `cells`.
      patient: [N] integers.
      key: of the bootstrap, as intervals.bootstrap's: the same key draws the same.
      replicates: of the bootstrap.
    """
    rows = (np.asarray(weight) > 0).any(axis=1)
    names, index = np.unique(np.asarray(patient)[rows], return_inverse=True)
    found = _intervals(
        *(jnp.asarray(x)[rows] for x in (probability, label, weight)),
        index.astype(np.int32),
        key,
        patients=names.size,
        replicates=replicates,
    )
    return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnames=("patients", "replicates"))
def _intervals(probability, label, weight, patient, key, *, patients, replicates):
    """The compiled part of `summarise`: a patient's cells are summed only once."""
    each = cells(probability, label, weight)
    each = jax.ops.segment_sum(each, patient, num_segments=patients)  # [P, K, K]

    def chunk(numbers):
        counts = multiplicities(key, numbers, patients).astype(jnp.float32)
        drawn = jnp.einsum("pr,ptc->rtc", counts, each, precision="highest")
        return rates(drawn, there)

    matrix = each.sum(axis=0)
    there = matrix.sum(axis=-1) > 0
    values = in_chunks(chunk, replicates)
    found = {}
    for name, estimate in rates(matrix).items():
        low, high = jnp.nanquantile(values[name], jnp.array([0.025, 0.975]))
        undefined = jnp.isnan(values[name]).sum()
        found[name] = Interval(estimate, low, high, undefined)
    return matrix, found

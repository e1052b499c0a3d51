"""Differences of metrics between groups of the same study: shown, or noise?"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from medjax.evaluation.comparison import holm
from medjax.evaluation.support import LEAST

METRICS = ("auroc", "sensitivity", "specificity", "ppv", "npv")


class Measured(NamedTuple):
    """G groups' metrics of T tasks; M stands for METRICS.

    value: [M, G, T], NaN where undefined.
    replicate: [R, M, G, T], of the same draws of patients for all.
    films, patients: [4, G, T], how many are positive, negative, called positive and
      called negative.
    """

    value: np.ndarray
    replicate: np.ndarray
    films: np.ndarray
    patients: np.ndarray


class Differences(NamedTuple):
    """How much higher the metrics of one group are than another's, [M, K, T + 1] each.

    The last column is the mean over the tasks, of auroc alone. All are NaN where a
    group is too small, or a metric undefined.

    estimate: on the films as they are.
    low, high: the percentile interval of 95 %, of this pair alone.
    p: of no difference, of this pair alone; p_holm: of all that are here together.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray


def differences(measured: Measured, pairs: np.ndarray) -> Differences:
    """Compares groups two by two.

    The test's standard error is the bootstrap's, and at least what `least_variance`
    says: ten patients who were all found would else claim to be sure of it.

    Args:
      measured: of G groups; a patient may be in several.
      pairs: [K, 2] numbers of groups, the first minus the second.
    """
    one, other = pairs.T
    estimate = measured.value[:, one] - measured.value[:, other]
    drawn = measured.replicate[:, :, one] - measured.replicate[:, :, other]
    enough = denominators(measured.patients) >= LEAST
    tested = enough[:, one] & enough[:, other] & ~np.isnan(estimate)
    variance = np.asarray(jnp.nanvar(drawn, axis=0))
    variance = np.maximum(variance, least_variance(measured, pairs))
    mean, mean_drawn = (
        np.where(tested[:1], x[..., :1, :, :], 0).sum(axis=-1, keepdims=True)
        / np.maximum(tested[:1].sum(axis=-1, keepdims=True), 1)
        for x in (estimate, drawn)
    )
    rates = ((0, len(METRICS) - 1), (0, 0), (0, 0))  # Which have no mean.
    of_mean = np.asarray(jnp.nanvar(mean_drawn, axis=0))
    estimate, variance, tested = (
        np.concatenate([x, np.pad(last, rates)], axis=-1)
        for x, last in (
            (estimate, mean),
            (variance, of_mean),
            (tested, tested[:1].any(axis=-1, keepdims=True)),
        )
    )
    drawn = np.concatenate([drawn, np.pad(mean_drawn, ((0, 0), *rates))], axis=-1)
    low, high = np.asarray(jnp.nanquantile(drawn, jnp.array([0.025, 0.975]), axis=0))
    spread = np.sqrt(np.where(variance > 0, variance, 1))
    # Two groups in which nobody, or everybody, is right don't vary nor differ.
    p = np.where(estimate == 0, 1, 2 * ndtr(-np.abs(estimate) / spread))
    found = [np.where(tested, x, np.nan) for x in (estimate, low, high, p)]
    return Differences(*found, holm(found[-1].ravel()).reshape(p.shape))


def least_variance(measured: Measured, pairs: np.ndarray) -> np.ndarray:
    """The variance of differences if the groups were alike and films independent.

    Args:
      measured, pairs: as in `differences`.

    Returns:
      [M, K, T].

    Source: of rates, Pearson's chi-squared test: that of both groups' common rate; of
    AUROC, Hanley & McNeil, Radiology 143 (1982) 29, eq. 1, likewise at their common
    AUROC.
    """
    sizes = np.maximum(denominators(measured.films), 1)[:, pairs.T]  # [M, 2, K, T]
    value = measured.value[:, pairs.T]
    common = (value * sizes).sum(axis=1) / sizes.sum(axis=1)
    variance = common * (1 - common) * (1 / sizes).sum(axis=1)
    a = common[0]
    m, n = np.maximum(measured.films[:2], 1)[:, pairs.T]
    one, two = a / (2 - a) - a**2, 2 * a**2 / (1 + a) - a**2
    area = (a * (1 - a) + (m - 1) * one + (n - 1) * two) / (m * n)
    variance[0] = area.sum(axis=0)
    return variance


def denominators(counts: np.ndarray) -> np.ndarray:
    """[4, ...] -> [M, ...]: what each metric is a share of; the rarer class of auroc."""
    return np.concatenate([counts[:2].min(axis=0, keepdims=True), counts])

"""The AUROC's variance without a resample, and whether two models differ.

DeLong's formulas take every image for independent. Images of one patient aren't, so
these are Obuchowski's: the components of a patient are added up first. With one image
a patient they are DeLong's, number for number. A soft label counts as a share of both
classes, a weight as that many images; everything is float64 on the host.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from medjax.errors import InputError

ROUNDING = 1e-12  # What is smaller is 0.


class Paired(NamedTuple):
    """[T] each: one AUROC minus the other, its standard error, and a two-sided p."""

    difference: np.ndarray
    error: np.ndarray
    p: np.ndarray


def paired(score, other, label, weight, patient) -> Paired:
    """Tests whether two models' AUROCs differ on the same images.

    Args:
      score, other: [N, T], what the two models say; only the order matters.
      label: [N, T] in [0, 1].
      weight: [N, T], >= 0; 0 where the label is unknown.
      patient: [N] integers.

    Returns:
      p is 1 where the two order every pair alike, and NaN where they don't but
      nothing varies; all are NaN where a class is missing, and the error and p where
      only one patient has it: there is nothing that varies.

    Source: DeLong et al., Biometrics 44 (1988) 837; its components from ranks: Sun &
    Xu, IEEE Signal Process. Lett. 21 (2014) 1389; clusters: Obuchowski, Biometrics 53
    (1997) 567. The difference's variance is that of the components' differences.
    """
    found = _tasks(score, other, label, weight, patient)
    difference, error = (np.array(column) for column in zip(*found, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * norm.sf(np.abs(difference) / error)
    same = np.where(np.abs(difference) < ROUNDING, 1.0, np.nan)
    p = np.where(error < ROUNDING, same, p)
    return Paired(difference, error, p)


def _tasks(score, other, label, weight, patient) -> list[tuple]:
    arrays = [np.asarray(a, np.float64) for a in (score, other, label, weight)]
    patient = np.asarray(patient)
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1 or arrays[0].ndim != 2 or patient.shape != arrays[0].shape[:1]:
        raise InputError("score, label, weight: give [N, T] each, and patient [N]")
    return [_task(*(a[:, t] for a in arrays), patient) for t in range(len(score[0]))]


def _task(score, other, label, weight, patient) -> tuple[float, float]:
    """The difference of the AUROCs, and its standard error."""
    known = weight > 0
    score, other, label, weight = (a[known] for a in (score, other, label, weight))
    if np.isnan(score).any() or np.isnan(other).any():
        raise InputError("score: NaN where the weight isn't 0; mute it by 0")
    positive, negative = weight * label, weight * (1 - label)
    if positive.sum() == 0 or negative.sum() == 0:
        return np.nan, np.nan
    _, who = np.unique(patient[known], return_inverse=True)
    people = who.max() + 1
    areas, sums = [], []
    for one in (score, other):
        # A positive's component: how many negatives it outranks; and the reverse.
        above, below = _outranked(one, negative), 1 - _outranked(one, positive)
        area = (positive * above).sum() / positive.sum()
        areas.append(area)
        sums.append(
            [
                np.bincount(who, mass * (part - area), people) / mass.sum()
                for mass, part in ((positive, above), (negative, below))
            ]
        )
    has = [np.bincount(who, mass, people) > 0 for mass in (positive, negative)]
    apart = [one - two for one, two in zip(*sums, strict=True)]
    return areas[0] - areas[1], _error(*apart, *has)


def _outranked(score: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """[N]: the share of the mass at lower scores, and half of that at the same."""
    _, run = np.unique(score, return_inverse=True)
    each = np.bincount(run, mass)
    return ((np.cumsum(each) - each / 2) / mass.sum())[run]


def _error(ill, well, has_ill, has_well) -> float:
    """The standard error, from each patient's sums [P] and who has such an image."""

    def corrected(product: np.ndarray, patients: int) -> float:
        return product.sum() * patients / (patients - 1)

    several = has_ill.sum(), has_well.sum()
    if min(several) < 2:
        return np.nan
    variance = corrected(ill**2, several[0]) + corrected(well**2, several[1])
    variance += 2 * corrected(ill * well, len(ill))
    return float(np.sqrt(max(variance, 0.0)))

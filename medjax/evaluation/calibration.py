"""Whether a probability of 20 % means that two in ten have it.

All arrays are [N, T], images and tasks, and go into float64. A weight of 0 is an
unknown label: it counts nothing, and its label and probability may be anything. How
to mend what is wrong is in recalibration.py.
"""

from typing import NamedTuple

import numpy as np

from medjax.errors import InputError


class Reliability(NamedTuple):
    """The reliability diagram: [T, B] each, NaN in a bin without an image.

    predicted: mean probability of the bin's images.
    observed: the share of them that are positive.
    weight: their sum of weights.
    """

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray


def brier(probability, label, weight) -> np.ndarray:
    """The mean squared error of the probabilities, [T]; NaN for an unknown task.

    Source: Brier, Monthly Weather Review 78 (1950) 1, for one of two classes: half of
    its eq. 2.
    """
    p, y, w = known(probability, label, weight)
    return ratio((w * (p - y) ** 2).sum(axis=0), w.sum(axis=0))


def reliability(probability, label, weight, *, bins: int = 10) -> Reliability:
    """Means in bins of equal mass: of as many images each, if all weigh the same.

    Bins of equal width would leave most of a rare finding's images in the first one.
    Equal probabilities share a bin, so that some bins may be empty.

    Source: Nixon et al., Measuring Calibration in Deep Learning (CVPR workshops 2019)
    for equal mass; edges at quantiles as numpy interpolates them.
    """
    p, y, w = known(probability, label, weight)
    home = homes(p, w, bins)
    predicted, observed, total = (
        np.stack(
            [np.bincount(*part, bins) for part in zip(home.T, (w * x).T, strict=True)]
        )
        for x in (p, y, np.ones_like(p))
    )
    return Reliability(ratio(predicted, total), ratio(observed, total), total)


def calibration_error(probability, label, weight, *, bins: int = 10) -> np.ndarray:
    """Expected calibration error, [T]: the diagram's mean distance from the diagonal.

    Of a perfect model it isn't 0 but falls with the number of images: compare models
    on the same images alone. NaN for an unknown task.

    Source: Naeini et al. (AAAI 2015), with bins of equal mass.
    """
    diagram = reliability(probability, label, weight, bins=bins)
    apart = np.abs(diagram.predicted - diagram.observed) * diagram.weight
    return ratio(np.nansum(apart, axis=1), diagram.weight.sum(axis=1))


def known(probability, label, weight) -> list[np.ndarray]:
    """Checks [N, T] each; float64, with 0 where the weight is 0."""
    arrays = [np.asarray(x, float) for x in (probability, label, weight)]
    p, y, w = arrays
    if p.ndim != 2 or not p.shape == y.shape == w.shape:
        shapes = ", ".join(str(x.shape) for x in arrays)
        raise InputError(f"probability, label, weight: {shapes}; give [N, T] each")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise InputError("weight: negative or not finite; give 0 to an unknown label")
    for name, x in (("probability", p), ("label", y)):
        if not ((x >= 0) & (x <= 1))[w > 0].all():
            raise InputError(f"{name}: outside [0, 1] where the weight isn't 0")
    return [np.where(w > 0, x, 0.0) for x in arrays]


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def homes(p: np.ndarray, w: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each image of each task, [N, T] int; 0 of an unknown label.

    Args:
      p, w: probabilities and weights as `known` returns them.
      bins: how many.
    """
    if bins < 1:
        raise InputError(f"bins: {bins}; give 1 or more, 10 as a rule")
    found = np.zeros(p.shape, int)
    for t in range(p.shape[1]):
        there = w[:, t] > 0
        found[there, t] = _bins(p[there, t], w[there, t], bins)
    return found


def _bins(p: np.ndarray, mass: np.ndarray, bins: int) -> np.ndarray:
    """Each image's bin [N], by the mass below it; equal probabilities share theirs."""
    values, where = np.unique(p, return_inverse=True)
    each = np.bincount(where, mass, len(values))
    below = np.cumsum(each) - each
    last = mass.sum() * (1 - 1 / max(len(mass), 1))  # Below the last image.
    edges = np.arange(1, bins) * last / bins
    return np.searchsorted(edges, below * (1 - 1e-12))[where]  # On an edge: below.

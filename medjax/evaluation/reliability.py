"""Whether a probability of 20 % means that two in ten have it.

All arrays are [N, T], images and tasks, and go into float64. A weight of 0 is an
unknown label: it counts nothing, and its label and probability may be anything. How
to mend what is wrong is in recalibration.py.

How far probabilities can be trusted: calibration.py's numbers with intervals.

The bins are drawn once, on the images as they are. A patient's share in every sum
over images is then fixed, and all replicates of a bootstrap are one product.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.errors import InputError
from medjax.evaluation import bootstrap as intervals
from medjax.evaluation import bootstrap as support
from medjax.evaluation import metrics
from medjax.evaluation.areas import in_chunks, multiplicities
from medjax.evaluation.bootstrap import Interval, interval, numbers, of_task


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


UNKNOWN = "no known label"


class Trust(NamedTuple):
    """What `measure` finds of T tasks.

    brier, calibration_error: [T], see calibration.py; predicted, prevalence: [T], the
    mean probability and the share of positives; mean_brier, mean_calibration_error:
    [], over the tasks that know a label; observed: [T, B], the share of positives in
    each bin of `diagram`.

    The calibration error of a sample is too high, and that of a replicate once more, so
    that its percentiles would lie above the truth. Its intervals are reflected about
    the estimate, and end at 0. Of a model without any error they still miss the 0 in
    two of five samples; from an error of 0.05 on they cover it as often as they say.

    Source: the basic bootstrap interval: Davison & Hinkley, Bootstrap Methods (1997),
    eq. 5.6.
    """

    brier: Interval
    calibration_error: Interval
    predicted: Interval
    prevalence: Interval
    mean_brier: Interval
    mean_calibration_error: Interval
    observed: Interval
    diagram: Reliability


def summarise(
    probability, label, weight, patient, *, uncalibrated, **bootstrap
) -> tuple[dict, list[dict]]:
    """`measure` before and after calibration, as plain data.

    Args:
      probability: [N, T] as they are said.
      label, weight, patient: see `measure`.
      uncalibrated: [N, T], as the model said them; None if these are the same.
      bootstrap: key and replicates.

    Returns:
      The errors' means {before, after}, and for each task {prevalence, before, after},
      see results.summarise.
    """
    rest = {"label": label, "weight": weight, "patient": patient, **bootstrap}
    before = measure(probability if uncalibrated is None else uncalibrated, **rest)
    after = None if uncalibrated is None else measure(probability, **rest)
    sides = {"before": before, "after": after}
    *of_tasks, of_all = support.count(weight > 0, patient)
    cell = functools.partial(interval, why=UNKNOWN, replicates=bootstrap["replicates"])
    mean = {
        name: side and _mean(side, functools.partial(cell, patients=of_all))
        for name, side in sides.items()
    }
    each = []
    for t, patients in enumerate(of_tasks):
        own = functools.partial(cell, patients=patients)
        prevalence = own(of_task(before.prevalence, t), kind="prevalence")
        of_side = {name: side and _side(side, t, own) for name, side in sides.items()}
        each.append({"prevalence": prevalence, **of_side})
    return mean, each


def _mean(trust: Trust, cell: Callable) -> dict:
    return {
        "brier": cell(trust.mean_brier),
        "calibration_error": cell(trust.mean_calibration_error),
    }


def _side(trust: Trust, t: int, cell: Callable) -> dict:
    """One task's errors and diagram; cell: Interval -> as `cells.interval` has it."""
    names = ("brier", "calibration_error", "predicted")
    full = trust.diagram.weight[t] > 0
    diagram = {
        "predicted": trust.diagram.predicted,
        "observed": trust.diagram.observed,
        "low": trust.observed.low,
        "high": trust.observed.high,
        "count": trust.diagram.weight,
    }
    return {
        **{name: cell(of_task(getattr(trust, name), t)) for name in names},
        "reliability": {k: numbers(part[t][full]) for k, part in diagram.items()},
    }


def measure(
    probability,
    label,
    weight,
    patient,
    *,
    key: Array,
    replicates: int = 1000,
    level: float = 0.95,
    bins: int = 10,
) -> Trust:
    """Brier score, calibration error and diagram with intervals clustered by patient.

    Args:
      probability, label, weight: [N, T], see calibration.py.
      patient: [N] integers.
      key: of the bootstrap, as intervals.bootstrap's: the same key draws the same
        patients, where all of them have a known label.
      replicates: how many.
      level: the intervals' nominal coverage.
      bins: B, of equal mass.
    """
    p, y, w = known(probability, label, weight)
    rows = (w > 0).any(axis=1)
    _, index = np.unique(np.asarray(patient)[rows], return_inverse=True)
    sums = _sums(p[rows], y[rows], w[rows], index, bins)
    found = _intervals(sums, key, level, replicates=replicates)
    found = jax.tree.map(np.asarray, found)
    for name in ("calibration_error", "mean_calibration_error"):
        found[name] = _reflected(found[name])
    return Trust(**found, diagram=reliability(p, y, w, bins=bins))


def _sums(p, y, w, patient: np.ndarray, bins: int) -> np.ndarray:
    """[P, T, 1 + 3 B] float32: each patient's squared errors, then of each bin the
    weights, and with these the probabilities and labels."""
    patients, tasks = patient.max() + 1, p.shape[1]
    place = patient[:, None] * bins + homes(p, w, bins)
    found = np.zeros((patients, tasks, 1 + 3 * bins), np.float32)
    for t in range(tasks):
        error = w[:, t] * (p[:, t] - y[:, t]) ** 2
        found[:, t, 0] = np.bincount(patient, error, patients)
        for part, x in enumerate((np.ones_like(p), p, y)):
            cells = np.bincount(place[:, t], w[:, t] * x[:, t], patients * bins)
            here = slice(1 + part * bins, 1 + (part + 1) * bins)
            found[:, t, here] = cells.reshape(patients, bins)
    return found


@functools.partial(jax.jit, static_argnames="replicates")
def _intervals(sums: Array, key: Array, level: float, *, replicates: int) -> dict:
    """The compiled part of `measure`."""

    def chunk(numbers):
        counts = multiplicities(key, numbers, len(sums)).astype(jnp.float32)
        drawn = jnp.einsum("pr,ptc->rtc", counts, sums, precision="highest")
        return _measures(drawn, defined)

    total = sums.sum(axis=0)
    bins = sums.shape[-1] // 3
    defined = total[:, 1 : 1 + bins].sum(axis=-1) > 0
    return intervals.percentiles(
        _measures(total, defined), in_chunks(chunk, replicates), level
    )


def _reflected(found: Interval) -> Interval:
    """The basic interval of a percentile interval; of a number >= 0."""
    estimate, low, high, _ = found
    return found._replace(
        low=np.clip(2 * estimate - high, 0, estimate),
        high=np.maximum(2 * estimate - low, estimate),
    )


def _measures(sums: Array, defined: Array) -> dict[str, Array]:
    """Trust's numbers of sums [..., T, 1 + 3 B]; defined: [T], for the means."""
    mass, predicted, positive = jnp.split(sums[..., 1:], 3, axis=-1)
    total = mass.sum(axis=-1)
    errors = {
        "brier": sums[..., 0] / total,  # NaN without a label: 0 / 0.
        "calibration_error": jnp.abs(predicted - positive).sum(axis=-1) / total,
    }
    return {
        **errors,
        "predicted": predicted.sum(axis=-1) / total,
        "prevalence": positive.sum(axis=-1) / total,
        **{f"mean_{k}": metrics.macro(v, defined) for k, v in errors.items()},
        "observed": positive / mass,
    }

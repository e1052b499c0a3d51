"""Whether a probability of 20 % means that two in ten have the finding.

Arrays are [N, T], images and tasks, and go into float64. A weight of 0 is an unknown
label: it counts nothing, and its label and probability may be anything. Calibration
is in calibration.py.

The bins are computed once, on the images as they are. A patient's share in every sum
over images is then fixed, and all replicates of a bootstrap are one product.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.errors import InputError
from medjax.evaluation import bootstrap, metrics
from medjax.evaluation.bootstrap import Interval


class Reliability(NamedTuple):
    """The reliability diagram: [T, B] each, NaN in a bin without an image.

    predicted: mean probability of the bin's images.
    observed: the share of them that are positive.
    weight: their sum of weights.
    """

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray


class Measured(NamedTuple):
    """What `measure` says of T tasks.

    brier, calibration_error: [T].
    predicted, prevalence: [T], the mean probability and the share of positives.
    mean_brier, mean_calibration_error: [], over the tasks with a known label.
    observed: [T, B], the share of positives in each bin of the diagram.

    The calibration error of a sample is too high, and that of a replicate once more, so
    that its percentiles would lie above the truth: its intervals are the reflected ones.
    For a model without any error they still miss the 0 in two of five samples; from an
    error of 0.05 on they cover it as often as they say.
    """

    brier: Interval
    calibration_error: Interval
    predicted: Interval
    prevalence: Interval
    mean_brier: Interval
    mean_calibration_error: Interval
    observed: Interval
    diagram: Reliability


class Diagram(NamedTuple):
    """A task's reliability diagram, of the bins that hold images: [B] each.

    predicted: mean probability; observed: share of positives, and its interval's low
    and high; count: the sum of weights.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray


class Side(NamedTuple):
    """The errors of a task's probabilities, before or after calibration."""

    brier: Interval
    calibration_error: Interval
    predicted: Interval
    reliability: Diagram


class TaskCalibration(NamedTuple):
    """A task's prevalence, and its errors; after: None if nothing was calibrated."""

    prevalence: Interval
    before: Side
    after: Side | None


def brier(probability, label, weight) -> np.ndarray:
    """The mean squared error of the probabilities, [T]; NaN without a known label.

    Source: Brier, Monthly Weather Review 78 (1950) 1, for one of two classes: half of
    its eq. 2.
    """
    p, y, w = known(probability, label, weight)
    return ratio((w * (p - y) ** 2).sum(axis=0), w.sum(axis=0))


def reliability(probability, label, weight, *, bins: int = 10) -> Reliability:
    """Means in bins of equal mass: with equal weights, of equally many images.

    With bins of equal width most of a rare finding's images would be in the first one.
    Equal probabilities share a bin, so that some bins may be empty.

    Source: Nixon et al., Measuring Calibration in Deep Learning (CVPR workshops 2019)
    for equal mass; edges at quantiles as numpy interpolates them.
    """
    p, y, w = known(probability, label, weight)
    bin_of = bin_numbers(p, w, bins)
    predicted, observed, total = (
        np.stack(
            [np.bincount(*part, bins) for part in zip(bin_of.T, (w * x).T, strict=True)]
        )
        for x in (p, y, np.ones_like(p))
    )
    return Reliability(ratio(predicted, total), ratio(observed, total), total)


def calibration_error(probability, label, weight, *, bins: int = 10) -> np.ndarray:
    """Expected calibration error, [T]: the diagram's mean distance from the diagonal.

    For a perfect model it isn't 0, but falls with the number of images: compare models
    only on the same images. NaN without a known label.

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


def bin_numbers(p: np.ndarray, w: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each image of each task, [N, T] int; 0 of an unknown label.

    Args:
      p, w: probabilities and weights as `known` returns them.
      bins: how many.
    """
    if bins < 1:
        raise InputError(f"bins: {bins}; give 1 or more, 10 as a rule")
    number = np.zeros(p.shape, int)
    for t in range(p.shape[1]):
        use = w[:, t] > 0
        number[use, t] = _bins(p[use, t], w[use, t], bins)
    return number


def _bins(p: np.ndarray, mass: np.ndarray, bins: int) -> np.ndarray:
    """Each image's bin [N], by the mass below it; equal probabilities share theirs."""
    values, where = np.unique(p, return_inverse=True)
    each = np.bincount(where, mass, len(values))
    below = np.cumsum(each) - each
    last = mass.sum() * (1 - 1 / max(len(mass), 1))  # Below the last image.
    edges = np.arange(1, bins) * last / bins
    return np.searchsorted(edges, below * (1 - 1e-12))[where]  # On an edge: below.


def summarise(
    probability, label, weight, patient, *, uncalibrated, key: Array, replicates: int
) -> tuple[dict[str, dict[str, Interval] | None], list[TaskCalibration]]:
    """`measure` before and after calibration.

    Args:
      probability: [N, T], after calibration.
      label, weight, patient, key, replicates: as in `measure`.
      uncalibrated: [N, T], before; None if there is no calibration.

    Returns:
      The errors' means over the tasks, {'before', 'after'}, and each task's numbers.
    """
    data = {"label": label, "weight": weight, "patient": patient}
    options = data | {"key": key, "replicates": replicates}
    before = measure(probability if uncalibrated is None else uncalibrated, **options)
    after = None if uncalibrated is None else measure(probability, **options)
    sides = {"before": before, "after": after}
    *of_tasks, of_all = bootstrap.count(weight > 0, patient)

    def judged(patients: int) -> Callable[[Interval, str], Interval]:
        behind = {"patients": patients, "replicates": replicates}
        why = metrics.KINDS["known"]
        return lambda found, name: bootstrap.interval(found, why, name=name, **behind)

    mean = {
        name: side
        and {
            error: judged(of_all)(getattr(side, f"mean_{error}"), "")
            for error in ("brier", "calibration_error")
        }
        for name, side in sides.items()
    }
    each = []
    for t, patients in enumerate(of_tasks):
        judge = judged(patients)
        prevalence = judge(bootstrap.at(before.prevalence, t), "prevalence")
        each.append(
            TaskCalibration(
                prevalence, *(side and _side(side, t, judge) for side in sides.values())
            )
        )
    return mean, each


def _side(measured: Measured, t: int, judge: Callable) -> Side:
    """One task's errors and diagram, six decimals of it: enough to draw."""
    names = ("brier", "calibration_error", "predicted")
    diagram, observed = measured.diagram, measured.observed
    full = diagram.weight[t] > 0
    columns = (diagram.predicted, diagram.observed, observed.low, observed.high)
    return Side(
        *(judge(bootstrap.at(getattr(measured, name), t), name) for name in names),
        Diagram(*(np.round(x[t][full], 6) for x in (*columns, diagram.weight))),
    )


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
) -> Measured:
    """Brier score, calibration error and diagram with intervals clustered by patient.

    Args:
      probability, label, weight: [N, T].
      patient: [N] integers.
      key, replicates: as in bootstrap.resample.
      level: the intervals' nominal coverage.
      bins: B, of equal mass.
    """
    p, y, w = known(probability, label, weight)
    rows, index, patients = bootstrap.numbered(w, patient)
    sums = _sums(p[rows], y[rows], w[rows], index, bins)
    data = sums, (w > 0).any(axis=0)
    options = {"key": key, "replicates": replicates}
    resampled = bootstrap.resample(_measures, data, patients, **options)
    intervals = bootstrap.percentiles(resampled, level)
    for name in ("calibration_error", "mean_calibration_error"):
        intervals[name] = bootstrap.reflected(intervals[name])
    return Measured(**intervals, diagram=reliability(p, y, w, bins=bins))


def _sums(p, y, w, patient: np.ndarray, bins: int) -> np.ndarray:
    """[P, T, 1 + 3 B] float32: each patient's squared errors, then of each bin the
    weights, and with these the probabilities and labels."""
    patients, tasks = patient.max() + 1, p.shape[1]
    place = patient[:, None] * bins + bin_numbers(p, w, bins)
    sums = np.zeros((patients, tasks, 1 + 3 * bins), np.float32)
    for t in range(tasks):
        error = w[:, t] * (p[:, t] - y[:, t]) ** 2
        sums[:, t, 0] = np.bincount(patient, error, patients)
        for part, x in enumerate((np.ones_like(p), p, y)):
            cells = np.bincount(place[:, t], w[:, t] * x[:, t], patients * bins)
            columns = slice(1 + part * bins, 1 + (part + 1) * bins)
            sums[:, t, columns] = cells.reshape(patients, bins)
    return sums


def _measures(data: tuple[Array, Array], counts: Array | None) -> dict[str, Array]:
    """A statistic; data: sums [P, T, 1 + 3 B], and which tasks [T] have known labels."""
    sums, defined = data
    sums = bootstrap.reweigh(sums, counts)
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

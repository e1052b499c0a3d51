"""Calibration: whether 20 % means that two in ten have the finding, and how to reach it.

Arrays are [N, T], images and tasks, and go into float64. A weight of 0 is an unknown
label: it counts nothing, and its label and probability may be anything.

`measure` puts the images into bins once, as they are. A patient's share in every sum is
then fixed, and all replicates of a bootstrap are one product.

The fits (temperature, Platt scaling, isotonic regression, prior shift) are made on
validation predictions and applied to those of the test split. A fit holds numbers
alone: `fit._asdict()` goes into JSON and comes back by `Logistic(**...)`,
`Isotonic(**...)` or `Softmax(**...)`. A task that can't be fitted keeps its
probabilities.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from chex import Array
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import expit, log_expit, log_softmax, logit, logsumexp, softmax

from medjax.evaluation import bootstrap, discrimination, metrics
from medjax.evaluation.bootstrap import Interval

BINS = 10
ERRORS = ("brier", "calibration_error")
SMALLEST = 1e-7  # Probabilities are clipped to it: so log-odds are finite.
FLATTEST, STEEPEST = 1e-3, 1e3  # Bounds of the inverse of a temperature.


class Diagram(NamedTuple):
    """A reliability diagram: [T, B], NaN in a bin without an image; or of one task, [B].

    predicted: mean probability of the bin's images.
    observed: the share of them that are positive, and its interval's low and high.
    count: their sum of weights.
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


def summarise(
    probability, label, weight, patient, *, uncalibrated, key: Array, replicates: int
) -> tuple[dict[str, dict[str, Interval] | None], list[TaskCalibration]]:
    """`measure` before and after calibration.

    Args:
      probability: after calibration.
      uncalibrated: [N, T], before; None if there is no calibration.

    Returns:
      The errors' means over the tasks, {'before', 'after'}, and each task's numbers.
    """
    data = label, weight, patient
    options = {"key": key, "replicates": replicates}
    before = measure(
        probability if uncalibrated is None else uncalibrated, *data, **options
    )
    after = None if uncalibrated is None else measure(probability, *data, **options)
    sides = {"before": before, "after": after}
    *of_tasks, of_all = bootstrap.count(weight > 0, patient)

    def judged(interval: Interval, patients: int, name: str = "") -> Interval:
        behind = {"patients": patients, "replicates": replicates, "name": name}
        return bootstrap.interval(interval, metrics.KINDS["known"], **behind)

    def of_task(side: tuple[dict, Diagram], t: int) -> Side:
        intervals, diagram = side
        full = diagram.count[t] > 0
        return Side(
            *(
                judged(bootstrap.at(intervals[name], t), of_tasks[t], name)
                for name in (*ERRORS, "predicted")
            ),
            # Six decimals: enough to draw.
            Diagram(*(np.round(column[t][full], 6) for column in diagram)),
        )

    mean = {
        name: side and {e: judged(side[0][f"mean_{e}"], of_all) for e in ERRORS}
        for name, side in sides.items()
    }
    prevalence = before[0]["prevalence"]
    return mean, [
        TaskCalibration(
            judged(bootstrap.at(prevalence, t), patients, "prevalence"),
            *(side and of_task(side, t) for side in sides.values()),
        )
        for t, patients in enumerate(of_tasks)
    ]


def measure(
    probability, label, weight, patient, *, key: Array, replicates: int
) -> tuple[dict[str, Interval], Diagram]:
    """Brier score, calibration error and diagram with intervals clustered by patient.

    The calibration error is the diagram's mean distance from the diagonal. For a perfect
    model it isn't 0, but falls with the number of images: compare models only on the same
    images. That of a sample is too high, and that of a replicate once more, so that
    percentiles would lie above the truth: its intervals are the reflected ones. For a
    model without any error they still miss the 0 in two of five samples; from an error
    of 0.05 on they cover it as often as they say.

    Returns:
      The diagram, and Intervals: brier, calibration_error, predicted (the mean
      probability) and prevalence, [T]; mean_brier and mean_calibration_error, [], over
      the tasks with a known label; observed, [T, B]. NaN without a known label.

    Source: Brier, Monthly Weather Review 78 (1950) 1, for one of two classes: half of
    its eq. 2; the calibration error: Naeini et al. (AAAI 2015), with bins of equal mass.
    """
    p, y, w = checked(probability, label, weight)
    rows, index, patients = bootstrap.numbered(w, patient)
    sums = bin_sums(p[rows], y[rows], w[rows], index, BINS)
    data = sums.astype(np.float32), (w > 0).any(axis=0)
    options = {"key": key, "replicates": replicates}
    resampled = bootstrap.resample(_measures, data, patients, **options)
    intervals = bootstrap.percentiles(resampled)
    for name in ("calibration_error", "mean_calibration_error"):
        intervals[name] = bootstrap.reflected(intervals[name])
    mass, predicted, positive = np.split(sums.sum(axis=0)[:, 1:], 3, axis=-1)
    _, low, high, *_ = intervals["observed"]
    return intervals, Diagram(
        ratio(predicted, mass), ratio(positive, mass), low, high, mass
    )


def checked(probability, label, weight) -> list[np.ndarray]:
    """Checks [N, T] each; float64, with 0 where the weight is 0."""
    p, y, w = (np.asarray(x, float) for x in (probability, label, weight))
    chex.assert_rank(p, 2)
    chex.assert_equal_shape([p, y, w])
    discrimination.check(p, y, w)
    return [np.where(w > 0, x, 0.0) for x in (p, y, w)]


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def bin_sums(p, y, w, patient: np.ndarray, bins: int) -> np.ndarray:
    """Each patient's squared errors, and the sums over the images of each bin.

    Bins have equal mass: with equal weights, equally many images. With bins of equal
    width most of a rare finding's images would be in the first one. Equal probabilities
    share a bin, so that some bins may be empty.

    Args:
      p, y, w: as `checked` returns them.
      patient: [N] int, 0 to P - 1.

    Returns:
      [P, T, 1 + 3 B] float64: the squared errors, then of each bin the weights, and
      with these the probabilities and labels.

    Source: Nixon et al., Measuring Calibration in Deep Learning (CVPR workshops 2019)
    for equal mass; edges at quantiles as numpy interpolates them.
    """
    patients, tasks = patient.max() + 1, p.shape[1]
    sums = np.zeros((patients, tasks, 1 + 3 * bins))
    for t in range(tasks):
        error = w[:, t] * (p[:, t] - y[:, t]) ** 2
        sums[:, t, 0] = np.bincount(patient, error, patients)
        place = patient * bins + bin_numbers(p[:, t], w[:, t], bins)
        for part, x in enumerate((np.ones_like(p), p, y)):
            cells = np.bincount(place, w[:, t] * x[:, t], patients * bins)
            columns = slice(1 + part * bins, 1 + (part + 1) * bins)
            sums[:, t, columns] = cells.reshape(patients, bins)
    return sums


def bin_numbers(p: np.ndarray, w: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each image [N] of a task, by the mass below it; 0 if it is unknown."""
    known = w > 0
    values, where = np.unique(p[known], return_inverse=True)
    mass = w[known]
    each = np.bincount(where, mass, len(values))
    below = np.cumsum(each) - each
    last = mass.sum() * (1 - 1 / max(len(mass), 1))  # Below the last image.
    edges = np.arange(1, bins) * last / bins
    number = np.zeros(len(p), int)
    # An image on an edge is in the bin below.
    number[known] = np.searchsorted(edges, below * (1 - 1e-12))[where]
    return number


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


class Logistic(NamedTuple):
    """log-odds -> slope * log-odds + intercept; T numbers each."""

    slope: Sequence[float]
    intercept: Sequence[float]


class Isotonic(NamedTuple):
    """A rising function of the probability for each of T tasks, linear between knots.

    probability, calibrated: T sequences; both are empty where a task wasn't fitted.
    """

    probability: Sequence[Sequence[float]]
    calibrated: Sequence[Sequence[float]]


class Softmax(NamedTuple):
    """log p -> softmax(slope * log p + intercept), of K classes; K numbers each."""

    slope: Sequence[float]
    intercept: Sequence[float]


Fit = Logistic | Isotonic | Softmax


def fit_temperature(probability, label, weight) -> Logistic:
    """One temperature for all tasks, by maximum likelihood: slope = 1 / temperature.

    It corrects overconfidence, and with one number it can't overfit. Without a finite
    optimum (no error, or no better than chance) the slope is 1.

    Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), sec. 4.2.
    """
    p, y, w = checked(probability, label, weight)
    z = _log_odds(p)

    def slope_of_loss(slope: float) -> float:
        return float((w * (expit(slope * z) - y) * z).sum())

    slope = 1.0
    if slope_of_loss(FLATTEST) < 0 < slope_of_loss(STEEPEST):
        slope = brentq(slope_of_loss, FLATTEST, STEEPEST, xtol=1e-12)
    return Logistic((slope,) * p.shape[1], (0.0,) * p.shape[1])


def fit_platt(probability, label, weight) -> Logistic:
    """Slope and intercept for each task: logistic regression on the log-odds.

    No penalty and no smoothed labels. A task with one class, or whose classes a
    threshold separates, has no finite optimum and stays as it is. So does a task whose
    slope would not be positive: by a few unlucky images its order would be reversed.

    Source: Platt, Probabilistic Outputs for Support Vector Machines (1999).
    """
    return Logistic(*_each(_platt, probability, label, weight))


def fit_isotonic(probability, label, weight) -> Isotonic:
    """For each task the rising function with the smallest squared error.

    It fits any shape, and so needs more images: a thousand, say. It makes ties. A task
    with one class stays as it is.

    Source: Zadrozny & Elkan, Transforming Classifier Scores (KDD 2002), section 3.
    """
    return Isotonic(*_each(_isotonic, probability, label, weight))


def _each(fit: Callable, probability, label, weight) -> Iterable[tuple]:
    """What `fit` returns for the known images of each task: its parts, T of each."""
    tasks = zip(*(x.T for x in checked(probability, label, weight)), strict=True)
    return zip(*(fit(p[w > 0], y[w > 0], w[w > 0]) for p, y, w in tasks), strict=True)


def fit_softmax(probability, label, weight, *, offsets: bool) -> Softmax:
    """One temperature for K classes, and with `offsets` an intercept for each.

    With two classes and offsets this is Platt scaling. Without a finite optimum all
    stays as it is; the intercept of a class without an image has none.

    Args:
      probability, label: [N, K], rows sum to 1.
      weight: [N, K]; an image counts as its largest one, 0 where it is unknown.

    Source: Guo et al. (ICML 2017), sec. 4.2; with intercepts: Alexandari et al.,
    Maximum Likelihood with Bias-Corrected Calibration (ICML 2020), section 3.
    """
    p, y, w = checked(probability, label, weight)
    identity = Softmax((1.0,) * p.shape[1], (0.0,) * p.shape[1])
    w = w.max(axis=1, keepdims=True)
    if not w.any() or offsets and not (w * y).sum(axis=0).all():
        return identity
    z, w = _log(p), w / w.sum()

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(fit[0] * z + fit[1:], axis=1)
        error = w * (np.exp(log_p) - y)
        gradient = np.append((error * z).sum(), error.sum(axis=0) * offsets)
        return -(w * y * log_p).sum(), gradient

    start = np.append(1.0, np.zeros(p.shape[1]))
    bounds = [(FLATTEST, STEEPEST), *[(None, None)] * p.shape[1]]
    tight = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    slope, *intercept = minimize(
        loss, start, jac=True, bounds=bounds, options=tight
    ).x.tolist()
    # Where each image's true class is the likeliest, the likelihood has no maximum.
    calls = (slope * z + intercept).argmax(axis=1)
    right = y[np.arange(len(y)), calls] == 1
    if right[w[:, 0] > 0].all() or not FLATTEST < slope < STEEPEST:
        return identity
    return Softmax((slope,) * p.shape[1], tuple(intercept))


def prior_shift(
    trained: np.ndarray, true: np.ndarray, *, exclusive: bool = False
) -> Logistic | Softmax:
    """Corrects probabilities from the prevalence seen in training to the true one.

    With loss weights or over-sampling a model learns another prevalence: its odds are
    too high by the ratio of the two. After this shift the mean probability is the true
    prevalence, if the model was calibrated on the data as weighted or sampled.

    Args:
      trained: [T] in (0, 1), the share of the positives in the training loss.
      true: [T] in (0, 1), in the population.
      exclusive: whether the tasks are classes of which an image has exactly one.

    Source: Saerens et al., Neural Computation 14 (2002) 21, section 2; King & Zeng,
    Political Analysis 9 (2001) 137, for the log-odds.
    """
    kind, scale = (Softmax, np.log) if exclusive else (Logistic, logit)
    shift = scale(true) - scale(trained)
    return kind((1.0,) * len(shift), tuple(shift.tolist()))


def calibrate(fit: Fit | None, probability) -> np.ndarray:
    """The calibrated probabilities, [N, T] float64.

    fit: of T tasks; None leaves all as they are.
    """
    p = np.asarray(probability, float)
    if fit is None:
        return p
    if isinstance(fit, Isotonic):
        tasks = zip(p.T, *fit, strict=True)
        columns = [np.interp(x, *knots) if len(knots[0]) else x for x, *knots in tasks]
        return np.stack(columns, axis=1)
    slope, intercept = map(np.array, fit)
    identity = (slope == 1) & (intercept == 0)  # Without clipping.
    if isinstance(fit, Logistic):
        return np.where(identity, p, expit(slope * _log_odds(p) + intercept))
    return p if identity.all() else softmax(slope * _log(p) + intercept, axis=1)


def ranking(fit: Fit | None, log_odds):
    """The log-odds [N, T] by which calibrated predictions are ranked.

    Those of a finding stay as they are: its calibration rises, but may tie images.
    """
    if log_odds is None or not isinstance(fit, Softmax):
        return log_odds
    slope, intercept = map(np.array, fit)
    z = slope * log_expit(np.asarray(log_odds, float)) + intercept
    others = [logsumexp(np.delete(z, k, axis=1), axis=1) for k in range(z.shape[1])]
    return (z - np.stack(others, axis=1)).astype(np.float32)


def moves(fit: Fit, task: int) -> bool:
    """Whether a fit changes the probabilities of a task, by its number."""
    first, second = (part[task] for part in fit)
    if isinstance(fit, Isotonic):
        return len(first) > 0
    return (first, second) != (1.0, 0.0)


def _platt(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Newton's method with halved steps: the loss is convex."""
    z = _log_odds(p)
    positive, negative = z[y > 0], z[y < 1]
    if not positive.size or not negative.size:
        return 1.0, 0.0
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        return 1.0, 0.0  # A threshold separates the two.
    x = np.stack([z, np.ones_like(z)])
    w = w / w.sum()

    def loss(fit):
        return (w * (np.logaddexp(0, fit @ x) - y * (fit @ x))).sum()

    fit = np.zeros(2)
    for _ in range(100):
        q = expit(fit @ x)
        gradient = x @ (w * (q - y))
        hessian = (x * (w * q * (1 - q))) @ x.T
        hessian += (1e-13 * np.trace(hessian) + 1e-300) * np.eye(2)  # For the singular.
        step = np.linalg.solve(hessian, gradient)
        while loss(fit - step) > loss(fit) + 1e-15 and np.abs(step).max() > 1e-12:
            step = step / 2
        fit = fit - step
        if np.abs(step).max() < 1e-10:
            break
    return (float(fit[0]), float(fit[1])) if fit[0] > 0 else (1.0, 0.0)


def _isotonic(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[tuple, tuple]:
    if not (y > 0).any() or not (y < 1).any():
        return (), ()
    values, where = np.unique(p, return_inverse=True)
    mass = np.bincount(where, w)
    rising = isotonic_regression(np.bincount(where, w * y) / mass, weights=mass).x
    ends = np.diff(rising, prepend=-1) + np.diff(rising, append=2) > 0
    return tuple(values[ends].tolist()), tuple(rising[ends].tolist())


def _log_odds(p: np.ndarray) -> np.ndarray:
    return logit(np.clip(p, SMALLEST, 1 - SMALLEST))


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, SMALLEST))

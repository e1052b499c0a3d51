"""Mends probabilities: temperature, Platt scaling, isotonic regression, prior shift.

Fit on validation predictions, and apply to the test's. Arrays are as in
calibration.py. A fit is numbers alone: `fit._asdict()` goes into JSON and comes back
by `Logistic(**...)`, `Isotonic(**...)` or `Softmax(**...)`. A task that can't be fitted
keeps its probabilities.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import expit, log_softmax, logit, softmax

from medjax.errors import InputError
from medjax.evaluation.reliability import known

LEAST = 1e-7  # What float32 tells from 0 and from 1: log-odds are finite beyond it.
FLATTEST, STEEPEST = 1e-3, 1e3  # Bounds of the inverse of a temperature.


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
    """One temperature for all tasks, of the highest likelihood: slope = 1 / it.

    It mends overconfidence, and with one number it can't overfit. Without a finite
    optimum (no error, or no better than chance) the slope is 1.

    Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), sec. 4.2.
    """
    p, y, w = known(probability, label, weight)
    z = _log_odds(p)

    def slope_of_loss(slope: float) -> float:
        return float((w * (expit(slope * z) - y) * z).sum())

    slope = 1.0
    if slope_of_loss(FLATTEST) < 0 < slope_of_loss(STEEPEST):
        slope = brentq(slope_of_loss, FLATTEST, STEEPEST, xtol=1e-12)
    return Logistic((slope,) * p.shape[1], (0.0,) * p.shape[1])


def fit_platt(probability, label, weight) -> Logistic:
    """Slope and intercept for each task: logistic regression on the log-odds.

    No penalty and no smoothed labels. A task of one class, or one that a threshold
    separates without an error, has no finite optimum and stays as it is. So does one
    whose slope would not be positive: a few unlucky images could turn it upside down.

    Source: Platt, Probabilistic Outputs for Support Vector Machines (1999).
    """
    fits = _each(_platt, *known(probability, label, weight))
    slope, intercept = zip(*fits, strict=True)
    return Logistic(slope, intercept)


def fit_isotonic(probability, label, weight) -> Isotonic:
    """For each task the rising function with the smallest squared error.

    It follows any shape, and so needs more images: a thousand, say. It makes ties. A
    task of one class stays as it is.

    Source: Zadrozny & Elkan, Transforming Classifier Scores (KDD 2002), section 3.
    """
    fits = _each(_isotonic, *known(probability, label, weight))
    knots, calibrated = zip(*fits, strict=True)
    return Isotonic(knots, calibrated)


def fit_softmax(probability, label, weight, *, offsets: bool) -> Softmax:
    """One temperature for K classes, and with `offsets` an intercept for each.

    Of two classes, the latter is Platt scaling. Without a finite optimum all stays as
    it is; a class without an image has none for its intercept.

    Args:
      probability, label: [N, K], rows sum to 1.
      weight: [N, K]; an image counts as its largest one, 0 where it is unknown.
      offsets: whether to fit intercepts.

    Source: Guo et al. (ICML 2017), sec. 4.2; with intercepts: Alexandari et al.,
    Maximum Likelihood with Bias-Corrected Calibration (ICML 2020), section 3.
    """
    p, y, w = known(probability, label, weight)
    identity = Softmax((1.0,) * p.shape[1], (0.0,) * p.shape[1])
    w = w.max(axis=1, keepdims=True)
    if not w.any() or offsets and not (w * y).sum(axis=0).all():
        return identity
    z, w = _log(p), w / w.sum()

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        said = log_softmax(fit[0] * z + fit[1:], axis=1)
        wrong = w * (np.exp(said) - y)
        slopes = np.append((wrong * z).sum(), wrong.sum(axis=0) * offsets)
        return -(w * y * said).sum(), slopes

    start = np.append(1.0, np.zeros(p.shape[1]))
    bounds = [(FLATTEST, STEEPEST), *[(None, None)] * p.shape[1]]
    tight = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    found = minimize(loss, start, jac=True, bounds=bounds, options=tight).x
    # Where each image's own class is the likeliest, steeper is better without end.
    calls = (found[0] * z + found[1:]).argmax(axis=1)
    right = y[np.arange(len(y)), calls] == 1
    if right[w[:, 0] > 0].all() or not FLATTEST < found[0] < STEEPEST:
        return identity
    return Softmax((float(found[0]),) * p.shape[1], tuple(found[1:].tolist()))


def prior_shift(trained, true, *, exclusive: bool = False) -> Logistic | Softmax:
    """From the prevalence that training saw to the true one.

    Loss weights or resampling teach a model another prevalence, and its probabilities
    follow: the odds are too high by the ratio of the two. After this shift, the mean
    probability is the true prevalence, if the model was calibrated in training.

    Args:
      trained: [T] in (0, 1), the share of the positives in the loss, as sampled.
      true: [T] in (0, 1), of the population in question.
      exclusive: whether the tasks are classes of which an image has exactly one.

    Source: Saerens et al., Neural Computation 14 (2002) 21, section 2; King & Zeng,
    Political Analysis 9 (2001) 137, for the log-odds.
    """
    trained, true = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, float)) for x in (trained, true))
    )
    for name, value in (("trained", trained), ("true", true)):
        if not ((value > 0) & (value < 1)).all():
            raise InputError(f"{name}: {value}; give prevalences between 0 and 1")
    kind, scale = (Softmax, np.log) if exclusive else (Logistic, logit)
    shift = scale(true) - scale(trained)
    return kind((1.0,) * len(shift), tuple(shift.tolist()))


def calibrate(fit: Fit | None, probability) -> np.ndarray:
    """The calibrated probabilities, [N, T] float64.

    Args:
      fit: of T tasks; None leaves all as they are.
      probability: [N, T] in [0, 1].
    """
    p = np.asarray(probability, float)
    if fit is None:
        return p
    if len(fit[0]) != p.shape[1]:
        raise InputError(
            f"fit: of {len(fit[0])} tasks, and the probabilities of {p.shape[1]}; fit "
            "on predictions of the same tasks"
        )
    if not isinstance(fit, Isotonic):
        slope, intercept = map(np.array, fit)
        still = (slope == 1) & (intercept == 0)  # To the bit, also beyond LEAST.
    if isinstance(fit, Logistic):
        return np.where(still, p, expit(slope * _log_odds(p) + intercept))
    if isinstance(fit, Softmax):
        return p if still.all() else softmax(slope * _log(p) + intercept, axis=1)
    tasks = zip(p.T, *fit, strict=True)
    return np.stack([np.interp(x, *k) if len(k[0]) else x for x, *k in tasks], axis=1)


def moves(fit: Fit, task: int) -> bool:
    """Whether a fit changes the probabilities of a task, by its number."""
    one, other = (part[task] for part in fit)
    return len(one) > 0 if isinstance(fit, Isotonic) else (one, other) != (1.0, 0.0)


def _platt(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Newton's method with halved steps: the loss is convex."""
    z = _log_odds(p)
    if _separated(z, y):
        return 1.0, 0.0
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


def _separated(z: np.ndarray, y: np.ndarray) -> bool:
    """Whether one class is missing, or a threshold on z parts the two."""
    positive, negative = z[y > 0], z[y < 1]
    if not len(positive) or not len(negative):
        return True
    return positive.min() >= negative.max() or positive.max() <= negative.min()


def _each(fit: Callable, p: np.ndarray, y: np.ndarray, w: np.ndarray) -> list:
    """A fit to the known images of each task."""
    tasks = zip(p.T, y.T, w.T, strict=True)
    return [fit(*(x[w > 0] for x in (p, y, w))) for p, y, w in tasks]


def _log_odds(p: np.ndarray) -> np.ndarray:
    return logit(np.clip(p, LEAST, 1 - LEAST))


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, LEAST))

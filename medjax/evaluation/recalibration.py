"""Recalibration of probabilities: temperature, Platt, isotonic and prior shift.

Arrays are [N, T], images and tasks, and go into float64. A weight of 0 is an unknown
label: it counts nothing, and its label and probability may be anything.

The fits (temperature, Platt scaling, isotonic regression, prior shift) are made on
validation predictions and applied to those of the test split. A fit holds numbers
alone: `fit._asdict()` goes into JSON and comes back by `Logistic(**...)`,
`Isotonic(**...)` or `Softmax(**...)`. A task that can't be fitted keeps its
probabilities. reliability.py measures what they are worth.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import chex
import numpy as np
from scipy import special as special_functions
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import expit, log_expit, log_softmax, logit, logsumexp

from medjax.evaluation import discrimination

SMALLEST = 1e-7  # Probabilities are clipped to it: so log-odds are finite.
FLATTEST, STEEPEST = 1e-3, 1e3  # Bounds of the inverse of a temperature.
RISING = 100  # Images of either class, below which isotonic regression overfits.


def checked(probability, label, weight) -> list[np.ndarray]:
    """Checks [N, T] each; float64, with 0 where the weight is 0."""
    p, y, w = (np.asarray(x, float) for x in (probability, label, weight))
    chex.assert_rank(p, 2)
    chex.assert_equal_shape([p, y, w])
    discrimination.check_arrays(p, y, w)
    return [np.where(w > 0, x, 0.0) for x in (p, y, w)]


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


class Logistic(NamedTuple):
    """log-odds -> slope * log-odds + intercept; T numbers each."""

    slope: Sequence[float]
    intercept: Sequence[float]


class Isotonic(NamedTuple):
    """A rising function of the probability of T tasks each, linear between knots."""

    # T sequences, as `calibrated`; both are empty where there are too few images.
    probability: Sequence[Sequence[float]]
    calibrated: Sequence[Sequence[float]]
    slope: Sequence[float]  # T numbers, as `intercept`: of Logistic, applied there.
    intercept: Sequence[float]


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
    z = log_odds(p)

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

    It fits any shape, and so needs more images: with fewer than RISING of either class it
    turns many probabilities into 0 or 1, and the task gets Platt scaling instead. It makes
    ties.

    Source: Zadrozny & Elkan, Transforming Classifier Scores (KDD 2002), section 3.
    """
    return Isotonic(*_each(_isotonic, probability, label, weight))


def few(label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[T]: which tasks have fewer than RISING images of either class, [N, T]."""
    known = weight > 0
    positives = np.sum(label * weight, axis=0, where=known)
    negatives = np.sum((1 - label) * weight, axis=0, where=known)
    return np.minimum(positives, negatives) < RISING


def _each(fit: Callable, probability, label, weight) -> Iterable[tuple]:
    """Fits each task on its known images; returns the fit's parts, T of each."""
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
    too high by the ratio of the two.

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


def calibrate(
    fit: Fit | None, probability, xp: Any = np, special: Any = special_functions
) -> np.ndarray:
    """The calibrated probabilities, [N, T] float64.

    fit: of T tasks; None leaves all as they are.
    xp, special: NumPy and scipy.special; with JAX's, which it may be traced with, the
      result is float32.
    """
    p = xp.asarray(probability, float)
    if fit is None:
        return p
    if isinstance(fit, Isotonic):
        scaled = calibrate(Logistic(fit.slope, fit.intercept), p, xp, special)
        tasks = zip(p.T, scaled.T, fit.probability, fit.calibrated, strict=True)
        columns = [
            xp.interp(x, *map(xp.asarray, knots)) if knots[0] else y
            for x, y, *knots in tasks
        ]
        return xp.stack(columns, axis=1)
    slope, intercept = map(np.array, fit)
    identity = (slope == 1) & (intercept == 0)  # Without clipping.
    if isinstance(fit, Logistic):
        z = slope * log_odds(p, special) + intercept
        return xp.where(identity, p, special.expit(z))
    z = slope * _log(p, xp) + intercept
    odds = xp.exp(z - z.max(axis=1, keepdims=True))
    return p if identity.all() else odds / odds.sum(axis=1, keepdims=True)


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
    if isinstance(fit, Isotonic) and fit.probability[task]:
        return True
    return (fit.slope[task], fit.intercept[task]) != (1.0, 0.0)


def _platt(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    z = log_odds(p)
    if not separable(z, y):
        slope, intercept = logistic(np.stack([z, np.ones_like(z)]), y, w)
        if slope > 0:
            return float(slope), float(intercept)
    return 1.0, 0.0


def separable(z: np.ndarray, y: np.ndarray) -> bool:
    """Whether a threshold separates the classes, or one is missing: there is no fit."""
    positive, negative = z[y > 0], z[y < 1]
    if not positive.size or not negative.size:
        return True
    return positive.min() >= negative.max() or positive.max() <= negative.min()


def logistic(x: np.ndarray, y: np.ndarray, w: np.ndarray, offset=0.0) -> np.ndarray:
    """[K], the logistic regression of y [N] on x [K, N], the offset having slope 1."""
    w = w / w.sum()

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        z = fit @ x + offset
        value = (w * (np.logaddexp(0, z) - y * (fit @ x))).sum()
        return value, x @ (w * (expit(z) - y))

    def hessian(fit: np.ndarray) -> np.ndarray:
        q = expit(fit @ x + offset)
        return (x * (w * q * (1 - q))) @ x.T

    start, tight = np.zeros(len(x)), {"gtol": 1e-10}
    options = {"method": "trust-exact", "hess": hessian, "options": tight}
    return minimize(loss, start, jac=True, **options).x


def _isotonic(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple:
    if few(y[:, None], w[:, None])[0]:
        return (), (), *_platt(p, y, w)
    values, where = np.unique(p, return_inverse=True)
    mass = np.bincount(where, w)
    rising = isotonic_regression(np.bincount(where, w * y) / mass, weights=mass).x
    ends = np.diff(rising, prepend=-1) + np.diff(rising, append=2) > 0
    return tuple(values[ends].tolist()), tuple(rising[ends].tolist()), 1.0, 0.0


def log_odds(p: np.ndarray, special: Any = special_functions) -> np.ndarray:
    """Clipped where the probability is SMALLEST and 1 - SMALLEST, so that it is finite."""
    return special.logit(p).clip(logit(SMALLEST), logit(1 - SMALLEST))


def _log(p: np.ndarray, xp: Any = np) -> np.ndarray:
    return xp.log(xp.maximum(p, SMALLEST))

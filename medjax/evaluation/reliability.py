"""Measures calibration: of images given 20 %, do two in ten have the finding?

Three numbers lead, of the logistic regression of the labels on the log-odds. The slope is
1 if they are spread rightly, and below 1 if they are too extreme; the intercept beside it
is 0. Calibration-in-the-large is the intercept beside a slope of 1: above 0 the
probabilities are too low on the whole.

Arrays are as in recalibration.py. Images of a patient resemble each other: every interval
is clustered by patient.

Source: Cox, Biometrika 45 (1958) 562; Van Calster et al., BMC Medicine 17 (2019) 230.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy.special import betaincinv, chndtr, expit, stdtrit

from medjax.evaluation import bootstrap, discrimination, metrics, recalibration
from medjax.evaluation.bootstrap import Interval
from medjax.evaluation.recalibration import checked, ratio

MAX_BINS, MIN_BINS = 10, 3  # Bins of a diagram.
A_BIN = 20  # Patients: with less there are fewer bins.
COX = ("calibration_slope", "calibration_intercept", "calibration_in_the_large")
ERRORS = ("brier", "calibration_error")
MEASURES = (*COX, *ERRORS, "predicted")


class Diagram(NamedTuple):
    """A reliability diagram: [T, B], NaN in a bin without images; of one task [B]."""

    predicted: np.ndarray  # Mean probability of the bin's images.
    # The share of them that are positive, and its exact interval, as if each patient
    # had one image in the bin.
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray  # Their sum of weights.


class TaskCalibration(NamedTuple):
    """A task's prevalence, its Intervals of MEASURES and its `reliability`, a Diagram."""

    prevalence: Interval
    before: dict[str, Interval | Diagram]
    after: dict[str, Interval | Diagram] | None  # None if nothing was calibrated.


def summarise(
    probability, label, weight, patient, *, uncalibrated, **draws
) -> tuple[dict[str, dict[str, Interval] | None], list[TaskCalibration]]:
    """`measure` before and after calibration.

    Args:
      probability: after calibration.
      uncalibrated: [N, T], before; None if there is no calibration.

    Returns:
      The errors' means over the tasks, {'before', 'after'}, and each task's numbers.
    """
    data = label, weight, patient
    before = measure(
        probability if uncalibrated is None else uncalibrated, *data, **draws
    )
    after = None if uncalibrated is None else measure(probability, *data, **draws)
    sides = {"before": before, "after": after}
    kinds = discrimination.kinds(probability, label, weight, np.nan)
    patients = {
        kind: bootstrap.count(kinds[kind] > 0, patient)
        for kind in ("known", "positive", "negative")
    }

    def judged(interval: Interval, t: int, name: str = "") -> Interval:
        counted = metrics.METRICS[name].counted if name else ("known",)
        missing = [kind for kind in ("known", *counted) if not patients[kind][t]]
        return bootstrap.interval(
            interval,
            metrics.DIVISORS[missing[0]]
            if missing
            else "a threshold separates the classes",
            patients=min(int(patients[kind][t]) for kind in counted),
            replicates=draws["replicates"],
            name=name,
        )

    def of_task(side: tuple[dict, Diagram], t: int) -> dict:
        intervals, diagram = side
        full = diagram.count[t] > 0
        measures = {
            name: judged(bootstrap.at(intervals[name], t), t, name) for name in MEASURES
        }
        # Six decimals: enough to draw.
        drawn = Diagram(*(np.round(column[t][full], 6) for column in diagram))
        return measures | {"reliability": drawn}

    mean = {
        name: side and {e: judged(side[0][f"mean_{e}"], -1) for e in ERRORS}
        for name, side in sides.items()
    }
    prevalence = before[0]["prevalence"]
    return mean, [
        TaskCalibration(
            judged(bootstrap.at(prevalence, t), t, "prevalence"),
            *(side and of_task(side, t) for side in sides.values()),
        )
        for t in range(weight.shape[1])
    ]


def measure(
    probability, label, weight, patient, **draws
) -> tuple[dict[str, Interval], Diagram]:
    """All MEASURES and the diagram.

    Returns:
      Intervals [T] of MEASURES and prevalence, and of mean_brier and
      mean_calibration_error, [], over the tasks with a known label, NaN where undefined;
      the diagram.

    Source: Brier, Monthly Weather Review 78 (1950) 1, for one of two classes: half of
    its eq. 2.
    """
    p, y, w = checked(probability, label, weight)
    rows, patient, patients = bootstrap.numbered(w, patient)
    p, y, w = p[rows], y[rows], w[rows]
    intervals = _averages(p, y, w, patient, patients, **draws)
    columns = zip(p.T, y.T, w.T, strict=True)
    cox = np.stack([_cox(*column, patient) for column in columns], axis=-1)
    for name, ends in zip(COX, cox, strict=True):  # [3, T]: estimate, low, high.
        intervals[name] = Interval(*ends, np.zeros(len(ends.T)))
    mass, predicted, positive = bin_sums(p, y, w, patient, bins(patients))
    gap = positive - predicted  # [P, T, B], as mass is.
    ends = [debiased(gap[:, [t]], mass[:, [t]]) for t in range(len(p.T))]
    intervals["calibration_error"] = Interval(*np.transpose(ends), np.zeros(len(ends)))
    known = mass.any(axis=(0, 2))
    mean = debiased(gap[:, known], mass[:, known])
    intervals["mean_calibration_error"] = Interval(*mean, 0)
    people = (mass > 0).sum(axis=0)
    mass, predicted, positive = (x.sum(axis=0) for x in (mass, predicted, positive))
    share = ratio(positive, mass)
    diagram = Diagram(ratio(predicted, mass), share, *exact(share, people), mass)
    return intervals, diagram


def error_of_runs(probability, label, weight, patient) -> Interval:
    """The mean calibration error of S runs and T tasks, by patients.

    Args:
      probability, weight: [S, N, T]; the weight is 0 where a run wasn't tested.
      label: [N, T].
    """
    tested = (len(np.unique(patient[w.any(axis=1)])) for w in weight)
    number = bins(min(each for each in tested if each))
    data = np.broadcast_arrays(probability, label, weight)
    p, y, w = checked(*(np.moveaxis(x, 1, 0).reshape(len(patient), -1) for x in data))
    rows, patient, _ = bootstrap.numbered(w, patient)
    mass, predicted, positive = bin_sums(p[rows], y[rows], w[rows], patient, number)
    known = mass.any(axis=(0, 2))
    return Interval(*debiased((positive - predicted)[:, known], mass[:, known]), 0)


def bins(patients: int) -> int:
    """Returns the number of bins of a diagram."""
    return int(np.clip(patients // A_BIN, MIN_BINS, MAX_BINS))


def _averages(p, y, w, patient, patients: int, **options) -> dict[str, Interval]:
    """The numbers in [0, 1] that are means over images, and the Brier score's mean."""
    sums = np.zeros((patients, 4, p.shape[1]))
    np.add.at(sums, patient, np.stack([w * (p - y) ** 2, w * p, w * y, w], axis=1))
    sums = sums.astype(np.float32)
    parts = sums[:, :3], sums[:, 3:]
    means = bootstrap.resample(bootstrap.quotient, parts, patients, **options)
    names = ("brier", "predicted", "prevalence")
    intervals = bootstrap.wilson(means)  # [3, T]
    each = {name: bootstrap.at(intervals, n) for n, name in enumerate(names)}
    brier, drawn = means.whole[0], np.asarray(means.drawn[:, 0])
    each["mean_brier"] = bootstrap.mean_of(each["brier"], drawn, ~np.isnan(brier))
    return each


def _cox(p, y, w, patient) -> np.ndarray:
    """[3, 3], the estimate, low and high of COX, of one task's arrays [N].

    The standard error is that of patients as clusters (Huber and White). Of few patients
    it is itself uncertain, so the quantile is Student's, for those of the rarer class.
    """
    known = w > 0
    p, y, w, patient = (x[known] for x in (p, y, w, patient))
    z, one = recalibration.log_odds(p), np.ones_like(p)
    numbers = np.full((3, 3), np.nan)
    if (y == 0).all() or (y == 1).all():  # Also without an image.
        return numbers
    _, patient = np.unique(patient, return_inverse=True)
    people = min(len(np.unique(patient[flag])) for flag in (y > 0, y < 1))
    reach = stdtrit(max(people - 1, 1), (1 + bootstrap.LEVEL) / 2)

    def fitted(x: np.ndarray, offset) -> np.ndarray:  # [3, K]
        fit = recalibration.logistic(x, y, w, offset)
        q = expit(fit @ x + offset)
        inverse = np.linalg.inv((x * (w * q * (1 - q))) @ x.T)
        scores = np.stack([np.bincount(patient, w * (y - q) * row) for row in x])
        patients = scores.shape[1]
        variance = np.diag(inverse @ scores @ scores.T @ inverse)
        error = reach * np.sqrt(variance * patients / max(patients - 1, 1))
        return np.stack([fit, fit - error, fit + error])

    if not recalibration.separable(z, y):
        numbers[:2] = fitted(np.stack([z, one]), 0.0).T
    numbers[2] = fitted(one[None], z)[:, 0]
    return numbers


def debiased(gap: np.ndarray, mass: np.ndarray) -> tuple[float, float, float]:
    """The calibration error: the root of the mean squared gap of the bins; and its ends.

    A bin's gap is its share of positives minus its mean probability. The square of a
    sample's gap is too large by its variance, which is subtracted.

    Args:
      gap: [P, T, B], each patient's sum of labels minus probabilities in each bin.
      mass: [P, T, B], of weights. Tasks count alike.

    The ends are the errors with which so small or so large a square has a chance of
    2.5 %, if the gaps are normal: it is then near a multiple of a noncentral chi-squared.

    Source: Kumar et al., Verified Uncertainty Calibration (NeurIPS 2019), section 4, for
    clusters; Satterthwaite, Biometrics Bull. 2 (1946) 110, for the multiple.
    """
    with np.errstate(invalid="ignore"):
        share = mass.sum(axis=0) / mass.sum(axis=(0, 2))[:, None] / mass.shape[1]
    people = (mass > 0).sum(axis=0)
    use = people > 1  # One patient's gap has no variance.
    if not use.any():
        return np.nan, np.nan, np.nan
    gap, mass, people = gap[:, use], mass[:, use], people[use]
    share = share[use] / share[use].sum()
    total = mass.sum(axis=0)
    mean = gap.sum(axis=0) / total
    apart = (gap - mass * mean) / total * np.sqrt(people / (people - 1))
    covariance = apart.T @ apart
    square, noise = share @ mean**2, share @ np.diag(covariance)
    estimate = float(np.sqrt(max(square - noise, 0.0)))
    if noise <= 0:  # Nothing varies.
        return estimate, estimate, estimate
    scale = share @ covariance**2 @ share / noise
    freedom = noise / scale

    def chance(noncentrality: float) -> float:
        return chndtr(square / scale, freedom, noncentrality)

    def error(tail: float) -> float:  # With which so small a square has this chance.
        if chance(0) <= tail:
            return 0.0
        most = square / scale + 20 * np.sqrt(freedom + 2 * square / scale)
        root = optimize.brentq(lambda x: chance(x) - tail, 0, most)
        return float(np.sqrt(scale * root))

    missed = (1 - bootstrap.LEVEL) / 2
    # A square below nearly all that no error would give must not end at 0.
    return estimate, error(1 - missed), error(min(missed, chance(0) / 2))


def exact(share: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the exact interval of a share of so many; NaN of none.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404, by the beta distribution.
    """
    tail = (1 - bootstrap.LEVEL) / 2
    hits = share * number
    low = betaincinv(np.where(hits > 0, hits, 1), number - hits + 1, tail)
    high = betaincinv(hits + 1, np.where(share < 1, number - hits, 1), 1 - tail)
    none = np.isnan(share)
    low, high = np.where(hits > 0, low, 0), np.where(share < 1, high, 1)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def bin_sums(p, y, w, patient: np.ndarray, bins: int) -> np.ndarray:
    """Each patient's sums over the images of each bin.

    Bins have equal mass: of equal width the first would hold most of a rare finding's
    images. Equal probabilities share a bin, so that some may be empty.

    Args:
      p, y, w: [N, T], as `checked` returns them.
      patient: [N] int, 0 to P - 1.

    Returns:
      [3, P, T, B] float64: the weights, and with these the probabilities and labels.

    Source: Nixon et al., Measuring Calibration in Deep Learning (CVPR workshops 2019)
    for equal mass; edges at quantiles as numpy interpolates them.
    """
    patients, tasks = patient.max() + 1, p.shape[1]
    sums = np.zeros((3, patients, tasks, bins))
    for t in range(tasks):
        place = patient * bins + bin_numbers(p[:, t], w[:, t], bins)
        for part, x in enumerate((np.ones_like(p), p, y)):
            cells = np.bincount(place, w[:, t] * x[:, t], patients * bins)
            sums[part, :, t] = cells.reshape(patients, bins)
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

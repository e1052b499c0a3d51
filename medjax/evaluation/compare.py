"""Compare two models on the same images, with intervals and tests clustered by patient.

DeLong's formulas take every image as independent. Images of one patient aren't, so the
components of a patient are added up first (Obuchowski). With one image a patient the
numbers are DeLong's. A soft label counts as a share of both classes, a weight as that
many images; everything is float64 on the host.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from medjax.evaluation import areas, bootstrap, discrimination, means, outlines, results
from medjax.evaluation.bootstrap import Interval
from medjax.evaluation.predict import Predictions

ROUNDING = 1e-12  # Anything smaller is 0.


def holm(p) -> np.ndarray:
    """p values [T], adjusted so that all T tests together err as often as one test.

    An undefined p (NaN) stays undefined, and isn't counted as a test.

    Source: Holm, Scand. J. Stat. 6 (1979) 65, as adjusted values: the running maximum
    of (T - i) p_(i) over the ascending p_(0), p_(1), ..., at most 1.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)  # NaN comes last.
    tests = np.count_nonzero(~np.isnan(p))
    steps = np.maximum(tests - np.arange(p.size), 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps * p[order]), 1)
    return adjusted


def compare(
    first: Predictions, second: Predictions, *, tasks: tuple[str, ...], **draws
) -> dict:
    """How much better the first model is, paired by image.

    Both are of the same images in the same order, with the same labels.

    Returns:
      films, patients, replicates; mean: {metric: pair}, and p, that of the difference of
      the mean AUROC: the primary test; tasks: {name: {positives, negatives, p, holm,
      why, metrics: {metric: pair}}}. The metrics are auroc and average_precision; a pair
      is {one, other, difference: an Interval}; a task's p is that of `delong`. Undefined
      numbers are None. Fewer than bootstrap.LEAST patients of either class have neither
      interval nor p; `why` gives the reason.
    """
    rest = first.label, first.weight, first.patient
    scores = first.ranking, second.ranking
    intervals = discrimination.difference(*scores, *rest, **draws)
    few = discrimination.rarer_patients(*rest) < bootstrap.LEAST
    p = np.where(few, np.nan, delong(*scores, *rest).p)
    adjusted = holm(p)
    hidden = np.append(few, few.all())

    def column(name: str) -> dict:  # [T + 1], the mean last.
        estimate, low, high, undefined = map(
            np.append, intervals[name][:4], intervals[f"mean_{name}"][:4]
        )
        return {
            "one": _with_mean(first, name),
            "other": _with_mean(second, name),
            "difference": {
                "estimate": estimate,
                "low": np.where(hidden, np.nan, low),
                "high": np.where(hidden, np.nan, high),
                "undefined": undefined.astype(float),
            },
        }

    columns = {name: column(name) for name in areas.NAMES}
    positives = np.sum(first.label * first.weight, axis=0, where=first.weight > 0)
    negatives = first.weight.sum(axis=0) - positives
    summary = {
        "films": len(first.id),
        "patients": len(np.unique(first.patient)),
        "replicates": draws["replicates"],
        "mean": bootstrap.at(columns, -1),
        "p": normal_p(intervals["mean_auroc"]) if not hidden[-1] else np.nan,
        "tasks": {
            task: {
                "positives": positives[t],
                "negatives": negatives[t],
                "p": p[t],
                "holm": adjusted[t],
                "why": _why(positives[t], negatives[t], p[t], few[t]),
                "metrics": bootstrap.at(columns, t),
            }
            for t, task in enumerate(tasks)
        },
    }
    return bootstrap.as_json(summary)


def gain(mean: Predictions, members: Sequence[Predictions], **options) -> dict:
    """An ensemble against a single member on average: `compare`'s mean, and members.

    The findings of all members are compared as if they were those of one model, so
    that the mean over them is the mean over members too, with its interval.
    """
    names = ("probability", "label", "weight", "log_odds")
    alone, both = (
        mean._replace(
            **{k: np.concatenate([getattr(p, k) for p in each], axis=1) for k in names}
        )
        for each in (members, [mean] * len(members))
    )
    tasks = tuple(map(str, range(both.label.shape[1])))
    paired = compare(both, alone, tasks=tasks, **options)
    return {"members": len(members)} | paired["mean"]


def of_members(
    mask: np.ndarray, label: np.ndarray, members: Sequence[np.ndarray]
) -> dict[str, float]:
    """One region of an ensemble's volume: its members' mean Dice, and `disagreement`;
    {} without members."""
    if not members:
        return {}
    truth = 1 - disagreement(label, members)
    return {"member_dice": truth, "disagreement": disagreement(mask, members)}


def disagreement(mask: np.ndarray, members: Sequence[np.ndarray]) -> float:
    """How far an ensemble's members are apart: 1 minus their mean Dice with its mask."""
    return 1 - float(np.mean([outlines.dice(m != 0, mask != 0) for m in members]))


def gain_of_masks(rows: Sequence[Mapping], other="member_dice", **draws) -> dict:
    """How much higher the mean Dice is than another one of the same volumes.

    rows: by volume and region: name, patient, dice, and `other`, by default an
      ensemble's member_dice, see `of_members`.
    """
    table = pd.DataFrame(list(rows)).assign(gain=lambda t: t["dice"] - t[other])
    volumes = table.groupby("name", sort=False)
    mean = volumes[["dice", other, "gain"]].mean()
    linear = means.over_rows(
        mean["gain"].to_numpy(), volumes["patient"].first().to_numpy()
    )
    difference = means.studentised(linear, **draws)
    difference = bootstrap.interval(
        difference, "", patients=int(linear.patients), replicates=draws["replicates"]
    )
    one, other = (float(mean[name].mean()) for name in ("dice", other))
    pair = {"one": one, "other": other, "difference": difference}
    return bootstrap.as_json({"dice": pair})


def normal_p(difference: Interval) -> float:
    """The two-sided p that an interval of bootstrap.normal belongs to."""
    estimate, low, high = map(float, difference[:3])
    if estimate == 0:
        return 1.0
    error = (high - low) / 2 / ndtri((1 + bootstrap.LEVEL) / 2)
    return 2 * ndtr(-abs(estimate) / error) if error > 0 else np.nan


def _with_mean(predictions: Predictions, name: str) -> np.ndarray:
    """[T + 1]: a metric of each task, and its mean over the tasks that have it."""
    each = areas.of_images(predictions.ranking, *predictions[3:5])
    each = each[areas.NAMES.index(name)]
    return np.append(each, results.means(predictions)[name])


def _why(positives: float, negatives: float, p: float, few: bool) -> str:
    """Why a task has no area, or no interval or p; '' if it has all."""
    if positives == 0 or negatives == 0:
        return f"no {'negative' if positives else 'positive'} image"
    if few:
        return f"{bootstrap.FEW}, no test"
    return "zero variance: no test" if np.isnan(p) else ""


class Paired(NamedTuple):
    """[T] each: one AUROC minus the other, its standard error, and a two-sided p."""

    difference: np.ndarray
    error: np.ndarray
    p: np.ndarray


def delong(score, other, label, weight, patient) -> Paired:
    """Tests whether two models' AUROCs differ on the same images.

    p is 1 where both models order every pair alike, and NaN where they don't and the
    variance is 0. All are NaN where a class is missing; error and p are NaN where only
    one patient has a class, because then there is no variance.

    Args:
      score, other: [N, T], of the two models; only their order matters.
      label, weight: [N, T]; patient: [N]; as in discrimination.difference.

    Source: DeLong et al., Biometrics 44 (1988) 837; its components from ranks: Sun &
    Xu, IEEE Signal Process. Lett. 21 (2014) 1389; clusters: Obuchowski, Biometrics 53
    (1997) 567. The difference's variance is that of the components' differences.
    """
    arrays = [np.asarray(a, np.float64) for a in (score, other, label, weight)]
    columns = zip(*(a.T for a in arrays), strict=True)
    tasks = [_of_task(*each, patient) for each in columns]
    difference, error = map(np.array, zip(*tasks, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * ndtr(-np.abs(difference) / error)
    same = np.where(np.abs(difference) < ROUNDING, 1.0, np.nan)
    return Paired(difference, error, np.where(error < ROUNDING, same, p))


def _of_task(score, other, label, weight, patient) -> tuple[float, float]:
    """The difference of the AUROCs, and its standard error; vectors [N]."""
    known = weight > 0
    score, other, label, weight = (a[known] for a in (score, other, label, weight))
    positive, negative = weight * label, weight * (1 - label)
    if positive.sum() == 0 or negative.sum() == 0:
        return np.nan, np.nan
    _, patient = np.unique(patient[known], return_inverse=True)
    patients = patient.max() + 1
    aurocs, sums = [], []
    for each in (score, other):
        # A positive's component: how many negatives it outranks; and the reverse.
        above, below = _outranked(each, negative), 1 - _outranked(each, positive)
        area = (positive * above).sum() / positive.sum()
        aurocs.append(area)
        sums.append(
            [
                np.bincount(patient, mass * (part - area), patients) / mass.sum()
                for mass, part in ((positive, above), (negative, below))
            ]
        )
    has = [np.bincount(patient, mass, patients) > 0 for mass in (positive, negative)]
    differences = [first - second for first, second in zip(*sums, strict=True)]
    return aurocs[0] - aurocs[1], _error(*differences, *has)


def _outranked(score: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """[N]: the share of the mass at lower scores, and half of that at the same."""
    _, run = np.unique(score, return_inverse=True)
    each = np.bincount(run, mass)
    return ((np.cumsum(each) - each / 2) / mass.sum())[run]


def _error(positive, negative, has_positive, has_negative) -> float:
    """The standard error from each patient's sums [P] over positives and negatives."""

    def corrected(product: np.ndarray, patients: int) -> float:
        return product.sum() * patients / (patients - 1)

    number = has_positive.sum(), has_negative.sum()
    if min(number) < 2:
        return np.nan
    variance = corrected(positive**2, number[0]) + corrected(negative**2, number[1])
    variance += 2 * corrected(positive * negative, len(positive))
    return float(np.sqrt(max(variance, 0.0)))

"""Compare two models on the same images, with intervals and tests clustered by patient.

Interval and p of a difference have one standard error, of a paired bootstrap over
patients, so that they can't contradict each other. With one image a patient p is near
that of DeLong's test (Biometrics 44, 1988, 837), with several that of Obuchowski's.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medjax.evaluation import areas, bootstrap, discrimination, means, outlines, results
from medjax.evaluation.inference import Predictions


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
      is {one, other, difference: an Interval}. Undefined numbers are None. Fewer than
      bootstrap.MIN_PATIENTS patients of either class have neither interval nor p; `why`
      gives the reason.
    """
    rest = first.label, first.weight, first.patient
    scores = first.ranking, second.ranking
    intervals = discrimination.difference(*scores, *rest, **draws)
    few = discrimination.rarer_patients(*rest) < bootstrap.MIN_PATIENTS
    p = np.where(few, np.nan, bootstrap.p_value(intervals["auroc"]))
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

    columns = {name: column(name) for name in areas.AREAS}
    positives = np.sum(first.label * first.weight, axis=0, where=first.weight > 0)
    negatives = first.weight.sum(axis=0) - positives
    summary = {
        "films": len(first.id),
        "patients": len(np.unique(first.patient)),
        "replicates": draws["replicates"],
        "mean": bootstrap.at(columns, -1),
        "p": np.where(hidden[-1], np.nan, bootstrap.p_value(intervals["mean_auroc"])),
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


def _with_mean(predictions: Predictions, name: str) -> np.ndarray:
    """[T + 1]: a metric of each task, and its mean over the tasks that have it."""
    each = areas.of_images(predictions.ranking, *predictions[3:5])
    each = each[areas.AREAS.index(name)]
    return np.append(each, results.means(predictions)[name])


def _why(positives: float, negatives: float, p: float, few: bool) -> str:
    """Why a task has no area, or no interval or p; '' if it has all."""
    if positives == 0 or negatives == 0:
        return f"no {'negative' if positives else 'positive'} image"
    if few:
        return f"{bootstrap.NO_INTERVAL}, no test"
    return "zero variance: no test" if np.isnan(p) else ""

"""What changed images cost: AUROC that falls, and calls that change.

`summarise` is of a suite of corruptions, from mild to severe; `compare` of any change,
such as an augmentation: does it keep the label? A reader would have to say so, and a
model that has learnt the findings stands in, which reads a thousand images in a second.
It can't miss what it can't see, so look at the pictures too.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation import bootstrap, discrimination, metrics
from medjax.evaluation.areas import of_tasks
from medjax.evaluation.bootstrap import Interval, Resampled
from medjax.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from medjax.evaluation.inference import Predictions

DROP_MEASURES = ("auroc", "drop", "agreement")
STRENGTHS = (0.5, 1.0, 2.0, 4.0)  # Of the config's augmentation, for `compare`.


class Severity(NamedTuple):
    """A corruption at one severity."""

    severity: int
    auroc: Interval  # The mean over the tasks that have one on the clean images.
    drop: Interval  # How much lower it is than theirs.
    agreement: Interval  # The share of calls that stay.
    # Its strength, in the corruption's unit, and {name of a task: AUROC}. Both are
    # absent from the mean over the corruptions.
    value: float | None = None
    tasks: dict[str, float] | None = None


class Robustness(NamedTuple):
    """What `summarise` says."""

    films: int
    patients: int
    replicates: int
    clean: dict[str, Interval]
    # {name: {parameter: what its values mean, severities: of Severity}}.
    corruptions: dict[str, dict]
    mean: list[Severity]  # Over the corruptions, at each severity.


def compare(
    plain: Predictions,
    changed: Predictions,
    *,
    tasks: tuple[str, ...],
    threshold: np.ndarray,
    **draws,
) -> dict:
    """Compares predictions of changed images with those of the images as they are.

    Both are of the same images in the same order. A probability of the threshold [T] or
    more is called positive; NaN calls none.

    Returns:
      mean_drop, an Interval as JSON, of the mean AUROC, and tasks: {name: moved, the mean
      absolute change of the probability; flipped, the share of calls that change, None
      without a threshold; drop}. A drop is the AUROC of the plain images minus that of
      the changed ones, paired. The intervals are of 95 % for all T + 1 together.
    """
    known = plain.weight > 0
    calls = [p.probability >= threshold for p in (plain, changed)]
    flipped = np.where(np.isnan(threshold), np.nan, calls[0] != calls[1])
    moved = np.abs(changed.probability - plain.probability)
    moved, flipped = (
        bootstrap.mean_of_defined(np.where(known, x, np.nan), axis=0)
        for x in (moved, flipped)
    )
    difference = discrimination.difference(
        *(plain.ranking, changed.ranking),
        *(plain.label, plain.weight, plain.patient),
        level=1 - 0.05 / (len(threshold) + 1),
        **draws,
    )
    of_tasks = {
        task: {
            "moved": moved[t],
            "flipped": flipped[t],
            "drop": bootstrap.at(difference["auroc"], t),
        }
        for t, task in enumerate(tasks)
    }
    return bootstrap.as_json({"mean_drop": difference["mean_auroc"], "tasks": of_tasks})


def summarise(
    clean: Predictions,
    corrupted: dict[str, np.ndarray],
    *,
    tasks: tuple[str, ...],
    exclusive: bool,
    threshold: np.ndarray,
    calibrate: Callable[[np.ndarray], np.ndarray],
    **draws,
) -> dict:
    """Compares a run's predictions of corrupted images with those of the clean ones.

    Args:
      clean: of N images as they are.
      corrupted: {name of CORRUPTIONS: [5, N, T] ranking}, of the same images in the
        same order, at each severity.
      exclusive: whether an image has exactly one of them, as a class: it is then
        called the likeliest, whatever the thresholds.
      threshold: [T], fixed; a task of NaN has no calls.
      calibrate: ranking [N, T] -> the probabilities [N, T] by which calls are made.

    Returns a `Robustness` as JSON, see bootstrap.as_json.
    """
    known, patient, patients = bootstrap.numbered(clean.weight, clean.patient)
    labels = clean.label[known], clean.weight[known]
    reference = calibrate(clean.ranking[known])
    threshold = np.asarray(threshold, np.float32)
    options = {"exclusive": exclusive, **draws}
    areas, agreement = [], []  # Whole, then drawn: [1 + R, T] and [1 + R].
    for ranking in (clean.ranking, *itertools.chain(*corrupted.values())):
        score = ranking[known]
        data = score, calibrate(score), reference, *labels, patient, threshold
        whole, drawn = bootstrap.resample(_areas_and_calls, data, patients, **options)
        areas.append(np.concatenate([whole[0][None], drawn[0]]))
        agreement.append(np.append(whole[1], drawn[1]))
    rarer = discrimination.rarer_patients(*labels, patient)
    intervals = _intervals(areas, agreement, rarer)

    def interval(n: int, name: str) -> Interval:
        return bootstrap.interval(
            bootstrap.at(intervals[name], n),
            "no threshold" if name == "agreement" else "undefined in every task",
            patients=patients,
            replicates=draws["replicates"],
            name=name,
        )

    def at_severities(first: int) -> list[Severity]:
        return [
            Severity(severity, **{name: interval(n, name) for name in DROP_MEASURES})
            for n, severity in enumerate(SEVERITIES, start=first)
        ]

    corruptions = {}
    for c, name in enumerate(corrupted):
        first, corruption = 1 + c * len(SEVERITIES), CORRUPTIONS[name]
        rows = zip(at_severities(first), corruption.values, areas[first:])
        severities = [
            row._replace(value=value, tasks=dict(zip(tasks, each[0], strict=True)))
            for row, value, each in rows
        ]
        corruptions[name] = {
            "parameter": corruption.parameter,
            "severities": severities,
        }
    robustness = Robustness(
        films=len(clean.id),
        patients=len(np.unique(clean.patient)),
        replicates=draws["replicates"],
        clean={"auroc": interval(0, "auroc")},
        corruptions=corruptions,
        mean=at_severities(len(areas)),
    )
    return bootstrap.as_json(robustness)


def _intervals(
    areas: list[np.ndarray], agreement: list[np.ndarray], rarer: np.ndarray
) -> dict[str, Interval]:
    """Of each of DROP_MEASURES: the clean images, each corruption at each severity, and the
    means over the corruptions at each severity.

    Args:
      areas: [1 + R, T] each, whole and drawn, of all but the means.
      agreement: [1 + R] each, likewise.
      rarer: [T], patients of each task's rarer class.
    """
    every = len(SEVERITIES)
    rows = [[each] for each in areas]
    rows += [areas[1 + severity :: every] for severity in range(every)]
    defined = ~np.isnan(areas[0][0])
    ends = [_mean_area(row, defined, rarer[defined]) for row in rows]
    auroc, low, high = (np.stack(part) for part in zip(*ends, strict=True))
    means = [np.mean(agreement[1 + n :: every], axis=0) for n in range(every)]
    agreement, drop = np.stack([*agreement, *means]), auroc[0] - auroc
    return {
        "auroc": Interval(auroc[:, 0], low, high, np.isnan(auroc[:, 1:]).sum(axis=1)),
        "drop": bootstrap.normal(Resampled(drop[:, 0], drop[:, 1:].T)),
        "agreement": bootstrap.wilson(Resampled(agreement[:, 0], agreement[:, 1:].T)),
    }


def _mean_area(runs: list, defined: np.ndarray, rarer: np.ndarray) -> tuple:
    """The mean AUROC of [1 + R, T] each, [1 + R], whole and drawn; and its ends."""
    columns = np.concatenate([areas[:, defined] for areas in runs], axis=1)
    each = bootstrap.wilson(
        Resampled(columns[0], columns[1:]), np.tile(rarer, len(runs))
    )
    mean = bootstrap.mean_of(each, columns[1:], np.ones(len(columns.T)))
    return np.asarray(metrics.macro(columns, True)), mean.low, mean.high


def _areas_and_calls(data: tuple, counts: Array, *, exclusive: bool):
    """A statistic: AUROC [R, T] and agreement of the calls [R]."""
    score, called, reference, label, weight, patient, threshold = data
    judged = ~jnp.isnan(threshold)
    same = ((called >= threshold) == (reference >= threshold)) & judged
    if exclusive:
        judged = jnp.array([True])
        same = (called.argmax(axis=1) == reference.argmax(axis=1))[:, None]
    calls = jnp.stack([same.sum(axis=1), jnp.full(len(score), judged.sum())], axis=1)
    calls = bootstrap.reweigh(calls.astype(jnp.float32), counts, patient)
    stay, of_all = jnp.moveaxis(calls, -1, 0)
    area, _ = of_tasks(score, label, weight, patient, counts)
    return area, jnp.where(of_all > 0, stay / jnp.maximum(of_all, 1), jnp.nan)

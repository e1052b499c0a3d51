"""A metric of runs that were repeated: by other seeds, and on other patients.

An arm was trained by S seeds, and its metric is the mean over them. Two things make it
uncertain. Other patients would give another number: that is what a bootstrap over
patients shows, with the same draws for every arm and seed. Another training would too:
that is the standard deviation over the seeds. Arms are compared seed by seed, on the
same images, and a difference is tested against both doubts:

    error^2 = patients^2 + sd^2 / S.

S is small, so the test is a t test with Satterthwaite's degrees of freedom. What a seed
does to some patients only is in both parts: the test errs on the careful side.

Source: the sum of both variances of a crossed design, Owen, Ann. Appl. Stat. 1 (2007)
386; Satterthwaite, Biometrics Bull. 2 (1946) 110.

Which arm of a sweep is better, if any: differences to one arm, and the best.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from medjax.errors import InputError
from medjax.evaluation import bootstrap, discrimination, results
from medjax.evaluation.compare import holm

METRICS = ("auroc", "average_precision", "brier")
ALPHA = 0.05


class Runs(NamedTuple):
    """What A arms of S seeds each say of N images that some of them tested.

    probability: [A, S, N, T]; anything where the weight is 0.
    label: [N, T] in [0, 1]; anything where the weight is 0.
    weight: [A, S, N, T], >= 0; 0 where a label is unknown, where the image isn't one
      that this seed was tested on, and where the run isn't there.
    patient: [N] integers.
    """

    probability: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    patient: np.ndarray


class Values(NamedTuple):
    """One metric: [A, S, T], and of patients drawn anew [R, A, S, T]; NaN: undefined.

    The last T is T + 1: the mean over the tasks comes after them.
    """

    whole: np.ndarray
    drawn: np.ndarray


def measure(runs: Runs, *, key: jax.Array, replicates: int) -> dict[str, Values]:
    """The METRICS of every run, on the images as they are and in each replicate."""
    arms, seeds, films, tasks = runs.probability.shape
    shape = (arms, seeds, tasks)

    def columns(array):  # [A, S, N, T] -> [N, A S T]
        array = np.broadcast_to(array, runs.probability.shape)
        return np.moveaxis(array, 2, 0).reshape(films, -1).astype(np.float32)

    score, label, weight = map(columns, (runs.probability, runs.label, runs.weight))
    label, score = (np.where(weight > 0, x, 0) for x in (label, score))
    names, patient = np.unique(runs.patient, return_inverse=True)
    data = score, label, weight, patient.astype(np.int32)
    found = bootstrap.resample(
        _areas_and_brier, data, len(names), key=key, replicates=replicates
    )
    areas, lost = found.drawn
    whole = [area(score, label, weight) for area in results.RANKED.values()]
    mass = weight.sum(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        whole.append((weight * (score - label) ** 2).sum(axis=0) / mass)
    found = {}
    for name, one, drawn in zip(METRICS, whole, (*areas, lost), strict=True):
        drawn = np.asarray(drawn, np.float64).reshape(-1, *shape)
        found[name] = _with_mean(np.asarray(one, np.float64).reshape(shape), drawn)
    return found


def _areas_and_brier(data: tuple, counts):
    """A statistic: ((AUROC, average precision), Brier score) of all columns [R, K]."""
    score, label, weight, patient = data
    squares = jnp.stack([weight * (score - label) ** 2, weight], axis=1)  # [N, 2, K]
    if counts is not None:
        squares = jax.ops.segment_sum(squares, patient, num_segments=len(counts))
    error, mass = jnp.moveaxis(bootstrap.reweigh(squares, counts), -2, 0)
    return discrimination.areas(score, label, weight, patient, counts), error / mass


def _with_mean(whole: np.ndarray, drawn: np.ndarray) -> Values:
    """Adds the mean over each run's defined tasks.

    A replicate in which one of these is undefined has no mean: one over other tasks
    is another quantity.
    """
    there = ~np.isnan(whole)
    with np.errstate(invalid="ignore"):
        means = [
            np.where(there, x, 0).sum(axis=-1, keepdims=True)
            / there.sum(axis=-1, keepdims=True)
            for x in (whole, drawn)
        ]
    return Values(
        np.concatenate([whole, means[0]], axis=-1),
        np.concatenate([drawn, means[1]], axis=-1),
    )


def spread(value: Values, arm: int) -> list[dict]:
    """An arm's metric of every task and of their mean.

    Returns:
      {estimate, low, high, undefined, sd, each}: the mean over the seeds, the
      bootstrap's percentile interval and how many replicates it lacks, the seeds'
      standard deviation (None of one seed), and what each seed has.
    """
    found = []
    for t in range(value.whole.shape[-1]):
        each, drawn = value.whole[arm, :, t], value.drawn[:, arm, :, t]
        there = ~np.isnan(each)
        mean, drawn = _means(each, drawn)
        found.append(
            {
                "estimate": number(mean),
                **_percentiles(drawn),
                "sd": number(np.std(each[there], ddof=1)) if there.sum() > 1 else None,
                "each": [number(x) for x in each],
            }
        )
    return found


def gap(value: Values, one: int, other: int, *, patients: int) -> list[dict]:
    """How much higher arm `one` is than `other`, of every task and of their mean.

    Only seeds that both arms have count.

    Returns:
      {estimate, low, high, undefined, patients, sd, seeds, p}: the mean difference
      with the 95 % interval that p belongs to; how many replicates are left out;
      the standard error by patients, the standard deviation over the seeds and their
      number; p is two-sided. Of one seed the interval and p are about other patients
      alone, and sd is None.
    """
    found = []
    for t in range(value.whole.shape[-1]):
        each = value.whole[one, :, t] - value.whole[other, :, t]
        drawn = value.drawn[:, one, :, t] - value.drawn[:, other, :, t]
        seeds = int((~np.isnan(each)).sum())
        mean, drawn = _means(each, drawn)
        undefined = int(np.isnan(drawn).sum())
        drawn = drawn[~np.isnan(drawn)]
        # Drawing P of P patients anew gives (P - 1) / P of the variance.
        error = np.std(drawn, ddof=1) if len(drawn) > 1 else np.nan
        error *= np.sqrt(patients / (patients - 1))
        sd = np.std(each[~np.isnan(each)], ddof=1) if seeds > 1 else np.nan
        freedom = 1 / (1 / (patients - 1) + 1 / max(len(drawn) - 1, 1))
        reach, p = _test(mean, error, sd, seeds=seeds, freedom=freedom)
        found.append(
            {
                "estimate": number(mean),
                "low": number(mean - reach),
                "high": number(mean + reach),
                "undefined": undefined,
                "patients": number(error),
                "sd": number(sd),
                "seeds": seeds,
                "p": number(p),
            }
        )
    return found


def _test(
    mean: float, error: float, sd: float, *, seeds: int, freedom: float
) -> tuple[float, float]:
    """Half the interval's width and p of a mean with both doubts.

    Args:
      error: by patients, known with this freedom; sd: over the seeds.
    """
    by_seed = sd**2 / seeds if seeds > 1 else 0.0
    variance = error**2 + by_seed
    if np.isnan(variance) or np.isnan(mean):
        return np.nan, np.nan
    if variance == 0:  # The same numbers, or nothing that varies.
        return 0.0, 1.0 if mean == 0 else np.nan
    spent = error**4 / freedom + by_seed**2 / max(seeds - 1, 1)
    freedom = variance**2 / spent
    root = np.sqrt(variance)
    p = 2 * stats.t.sf(abs(mean) / root, freedom)
    return stats.t.ppf(1 - ALPHA / 2, freedom) * root, p


def _means(each: np.ndarray, drawn: np.ndarray) -> tuple[float, np.ndarray]:
    """Means over the seeds that there are, [S] and [R, S] -> [] and [R].

    A replicate in which one of these is undefined is NaN.
    """
    there = ~np.isnan(each)
    if not there.any():
        return np.nan, np.full(len(drawn), np.nan)
    return each[there].mean(), drawn[:, there].mean(axis=1)


def _percentiles(drawn: np.ndarray) -> dict:
    """low and high of the replicates [R] that are defined, and how many aren't."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.nan, np.nan
    if len(known):
        low, high = np.quantile(known, [ALPHA / 2, 1 - ALPHA / 2])
    undefined = len(drawn) - len(known)
    return {"low": number(low), "high": number(high), "undefined": undefined}


def number(value) -> float | None:
    """A float, or None where undefined."""
    return None if np.isnan(value) else float(value)


LEAST = 3  # Seeds without which no arm is named the best.


def compare(
    runs: Runs,
    *,
    arms: tuple[str, ...],
    tasks: tuple[str, ...],
    baseline: int = 0,
    key: jax.Array,
    replicates: int,
) -> dict:
    """Every arm's metrics, their differences to the baseline's, and the best arm.

    Args:
      runs: of the arms.
      arms: A names; tasks: T names.
      baseline: the arm that the others are compared with.
      key, replicates: of the bootstrap, clustered by patient.

    Returns:
      films, patients, replicates, baseline; arms: {arm: {seeds, mean: {metric:
      `spread`}, tasks: {task: {metric: spread}}, difference: None for the baseline,
      else {mean: {metric: `gap`}, tasks: {task: {metric: gap}}}}}; best: see `best`.
      Gaps of the AUROC have `holm`: those of the mean adjusted over the arms, those of
      the tasks over arms and tasks.

    Raises:
      InputError: fewer than two patients.
    """
    people = len(np.unique(runs.patient))
    if people < 2:
        raise InputError(f"{people} patient(s) were tested: a comparison needs two")
    values = measure(runs, key=key, replicates=replicates)
    found = {
        "films": len(runs.label),
        "patients": people,
        "replicates": replicates,
        "baseline": arms[baseline],
        "arms": {},
    }
    for a, arm in enumerate(arms):
        spreads = {name: spread(value, a) for name, value in values.items()}
        row = {"seeds": _seeds(values, a), **_by_task(spreads, tasks)}
        row["difference"] = None
        if a != baseline:
            gaps = {
                name: gap(value, a, baseline, patients=people)
                for name, value in values.items()
            }
            row["difference"] = _by_task(gaps, tasks)
        found["arms"][arm] = row
    differences = [row["difference"] for row in found["arms"].values()]
    differences = [each for each in differences if each]
    _adjust([each["mean"]["auroc"] for each in differences])
    _adjust(
        [each["tasks"][task]["auroc"] for each in differences for task in tasks],
    )
    found["best"] = best(values["auroc"], arms, patients=people)
    return found


def best(value: Values, arms: tuple[str, ...], *, patients: int) -> dict:
    """The arm with the highest mean AUROC, if the data allow to call it the best.

    The mean is over the seeds that all arms have, for an arm that lacks a hard seed
    would lead by that alone; an arm without any result takes no part. The data allow
    it if there are LEAST seeds, and the leader's difference to every other arm has
    a p below ALPHA / 2 (for the same data chose the leader), adjusted after Holm over
    these A - 1 comparisons, and is larger than its own standard deviation over the
    seeds, so that one more training wouldn't as soon turn it round. Of equal arms that
    names one in 5 % of the sweeps at most.

    Returns:
      {arm, leader, second, p, why}: arm is None where no difference is shown; second
      is the arm nearest to the leader, and p its adjusted one.
    """
    seeds = value.whole[:, :, -1]
    there = ~np.isnan(seeds)
    known = there.any(axis=1)
    if known.sum() < 2:
        return _verdict(None, None, None, None, "fewer than two arms have a result")
    shared = there[known].all(axis=0)
    if not shared.any():
        return _verdict(None, None, None, None, "no seed has a result of every arm")
    means = seeds[:, shared].mean(axis=1)
    order = [int(a) for a in np.argsort(-means) if known[a]]
    leader, others = order[0], order[1:]
    gaps = [gap(value, leader, other, patients=patients)[-1] for other in others]
    adjusted = holm([np.nan if one["p"] is None else one["p"] for one in gaps])
    names = arms[leader], arms[others[0]]
    second = names[1], number(adjusted[0])
    if min(one["seeds"] for one in gaps) < LEAST:
        why = f"fewer than {LEAST} seeds say nothing about another training"
        return _verdict(None, names[0], *second, why)
    for other, one, p in zip(others, gaps, adjusted, strict=True):
        if not p < ALPHA / 2:
            why = f"{names[0]} leads, and its difference to {arms[other]} may be chance"
            return _verdict(None, names[0], *second, why)
        if not one["estimate"] > one["sd"]:
            why = (
                f"{names[0]} leads {arms[other]} by less than one seed differs from "
                "another"
            )
            return _verdict(None, names[0], *second, why)
    why = "it differs from every other arm beyond other patients and other seeds"
    absent = [arm for arm, one in zip(arms, known, strict=True) if not one]
    if absent:
        why += f", but for {', '.join(absent)}, without a result"
    return _verdict(names[0], names[0], *second, why)


def _verdict(arm, leader, second, p, why: str) -> dict:
    return {"arm": arm, "leader": leader, "second": second, "p": p, "why": why}


def _adjust(gaps: list[dict]) -> None:
    """Adds `holm` to these gaps, one family of tests."""
    adjusted = holm([np.nan if one["p"] is None else one["p"] for one in gaps])
    for one, p in zip(gaps, adjusted, strict=True):
        one["holm"] = number(p)


def _by_task(found: dict[str, list[dict]], tasks: tuple[str, ...]) -> dict:
    """{metric: [T + 1]} -> {mean: {metric: one}, tasks: {task: {metric: one}}}."""
    return {
        "mean": {name: each[-1] for name, each in found.items()},
        "tasks": {
            task: {name: each[t] for name, each in found.items()}
            for t, task in enumerate(tasks)
        },
    }


def _seeds(values: dict[str, Values], arm: int) -> int:
    """How many seeds have a result."""
    return int((~np.isnan(values["auroc"].whole[arm, :, -1])).sum())

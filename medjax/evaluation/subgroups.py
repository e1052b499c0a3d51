"""Differences of metrics between groups of the same study: shown, or noise?

Does a run serve women as men, old as young? Its metrics by group, and the gaps.

One bootstrap over patients serves all groups: a patient with films in two of them is
drawn in both, and what makes a draw easy or hard for both cancels in the gap.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from chex import Array
from scipy.special import ndtr

from medjax.evaluation import bootstrap, metrics
from medjax.evaluation import metrics as averaging
from medjax.evaluation.areas import (
    in_chunks,
    multiplicities,
    replicate_confusion,
    replicate_group_areas,
)
from medjax.evaluation.bootstrap import LEAST, Interval
from medjax.evaluation.compare import holm
from medjax.evaluation.predict import Predictions

METRICS = ("auroc", "sensitivity", "specificity", "ppv", "npv")


class Measured(NamedTuple):
    """G groups' metrics of T tasks; M stands for METRICS.

    value: [M, G, T], NaN where undefined.
    replicate: [R, M, G, T], of the same draws of patients for all.
    films, patients: [4, G, T], how many are positive, negative, called positive and
      called negative.
    """

    value: np.ndarray
    replicate: np.ndarray
    films: np.ndarray
    patients: np.ndarray


class Differences(NamedTuple):
    """How much higher the metrics of one group are than another's, [M, K, T + 1] each.

    The last column is the mean over the tasks, of auroc alone. All are NaN where a
    group is too small, or a metric undefined.

    estimate: on the films as they are.
    low, high: the percentile interval of 95 %, of this pair alone.
    p: of no difference, of this pair alone; p_holm: of all that are here together.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray


def differences(measured: Measured, pairs: np.ndarray) -> Differences:
    """Compares groups two by two.

    The test's standard error is the bootstrap's, and at least what `least_variance`
    says: ten patients who were all found would else claim to be sure of it.

    Args:
      measured: of G groups; a patient may be in several.
      pairs: [K, 2] numbers of groups, the first minus the second.
    """
    one, other = pairs.T
    estimate = measured.value[:, one] - measured.value[:, other]
    drawn = measured.replicate[:, :, one] - measured.replicate[:, :, other]
    enough = denominators(measured.patients) >= LEAST
    tested = enough[:, one] & enough[:, other] & ~np.isnan(estimate)
    variance = np.asarray(jnp.nanvar(drawn, axis=0))
    variance = np.maximum(variance, least_variance(measured, pairs))
    mean, mean_drawn = (
        np.where(tested[:1], x[..., :1, :, :], 0).sum(axis=-1, keepdims=True)
        / np.maximum(tested[:1].sum(axis=-1, keepdims=True), 1)
        for x in (estimate, drawn)
    )
    rates = ((0, len(METRICS) - 1), (0, 0), (0, 0))  # Which have no mean.
    of_mean = np.asarray(jnp.nanvar(mean_drawn, axis=0))
    estimate, variance, tested = (
        np.concatenate([x, np.pad(last, rates)], axis=-1)
        for x, last in (
            (estimate, mean),
            (variance, of_mean),
            (tested, tested[:1].any(axis=-1, keepdims=True)),
        )
    )
    drawn = np.concatenate([drawn, np.pad(mean_drawn, ((0, 0), *rates))], axis=-1)
    low, high = np.asarray(jnp.nanquantile(drawn, jnp.array([0.025, 0.975]), axis=0))
    spread = np.sqrt(np.where(variance > 0, variance, 1))
    # Two groups in which nobody, or everybody, is right don't vary nor differ.
    p = np.where(estimate == 0, 1, 2 * ndtr(-np.abs(estimate) / spread))
    found = [np.where(tested, x, np.nan) for x in (estimate, low, high, p)]
    return Differences(*found, holm(found[-1].ravel()).reshape(p.shape))


def least_variance(measured: Measured, pairs: np.ndarray) -> np.ndarray:
    """The variance of differences if the groups were alike and films independent.

    Args:
      measured, pairs: as in `differences`.

    Returns:
      [M, K, T].

    Source: of rates, Pearson's chi-squared test: that of both groups' common rate; of
    AUROC, Hanley & McNeil, Radiology 143 (1982) 29, eq. 1, likewise at their common
    AUROC.
    """
    sizes = np.maximum(denominators(measured.films), 1)[:, pairs.T]  # [M, 2, K, T]
    value = measured.value[:, pairs.T]
    common = (value * sizes).sum(axis=1) / sizes.sum(axis=1)
    variance = common * (1 - common) * (1 / sizes).sum(axis=1)
    a = common[0]
    m, n = np.maximum(measured.films[:2], 1)[:, pairs.T]
    one, two = a / (2 - a) - a**2, 2 * a**2 / (1 + a) - a**2
    area = (a * (1 - a) + (m - 1) * one + (n - 1) * two) / (m * n)
    variance[0] = area.sum(axis=0)
    return variance


def denominators(counts: np.ndarray) -> np.ndarray:
    """[4, ...] -> [M, ...]: what each metric is a share of; the rarer class of auroc."""
    return np.concatenate([counts[:2].min(axis=0, keepdims=True), counts])


AGES = (18, 40, 60, 75)  # Years.
UNKNOWN = "unknown"
SHOWN = 0.05
EMPTY = ("no positive image", "no negative image", "none called positive")
EMPTY += ("none called negative",)


def by_metadata(table: pd.DataFrame, *, ages: Sequence[int] = AGES) -> pd.DataFrame:
    """Sex, band of age and view of every image.

    Args:
      table: N rows with the columns of data/prepared.py.
      ages: years at which a band begins, ascending; the first one begins at 0.

    Returns:
      N rows with sex, age and view, empty where the table doesn't say.
    """
    edges = [0, *ages]
    names = [f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)]
    bands = pd.cut(
        table["age"],
        [*edges, math.inf],
        right=False,
        labels=[*names, f"{edges[-1]}+"],
    )
    return pd.DataFrame({"sex": table["sex"], "age": bands, "view": table["view"]})


def summarise(
    predictions: Predictions,
    groups: pd.DataFrame,
    *,
    tasks: tuple[str, ...],
    threshold: np.ndarray,
    key: Array,
    replicates: int,
    ranked: np.ndarray | None = None,
) -> dict:
    """Every group's metrics with intervals, and the differences between groups.

    Args:
      predictions: N images.
      groups: N rows in their order, a column an attribute, as of `by_metadata`; what
        is empty is UNKNOWN, a group as any other.
      tasks: T names.
      threshold: [T], frozen, the same for every group; NaN leaves the rates empty.
      key, replicates: of the bootstrap over patients.
      ranked: [N, T], what the AUROC is of, as of intervals.bootstrap.

    Returns:
      {attribute: {groups: {group: {films, patients, tasks: {T: {positives, negatives,
      metrics: {metric: interval}}}, mean: {auroc: interval}, averaged}}, gaps: {T:
      {metric: gap}}, mean: {auroc: gap}, shown, tests}}.
      An interval is {estimate, low, high, undefined, why}, see cells.interval; a group's
      mean is over the tasks
      that have as many, `averaged` in number.
      A gap is the largest difference between two groups with LEAST patients, {estimate,
      low, high, between: [higher, lower], p, p_holm, why}; shown lists all pairs whose
      p_holm is below SHOWN, [{task, metric, **gap}], the surest first. tests is how
      many differences were tested, of all attributes together, which p_holm is adjusted
      for: in 95 of 100 reports no gap is shown that is none.
    """
    threshold = np.asarray(threshold, np.float32)
    columns = {name: _category(groups[name]) for name in groups}
    first = np.cumsum([0, *(len(column.categories) for column in columns.values())])
    member = np.stack(
        [c.codes + start for c, start in zip(columns.values(), first, strict=False)]
    )
    names = [group for column in columns.values() for group in column.categories]
    ranked = predictions.probability if ranked is None else ranked
    measured = _measure(
        *(predictions, ranked, member, len(names), threshold, key, replicates)
    )
    pairs = [
        pair
        for start, stop in itertools.pairwise(first)
        for pair in itertools.combinations(range(start, stop), 2)
    ]
    found = differences(measured, np.array(pairs, int).reshape(-1, 2))
    intervals, averaged = _intervals(measured)
    results = {}
    for row, (attribute, column) in enumerate(columns.items()):
        own = range(first[row], first[row + 1])
        of_own = [
            _Pair(k, names[one], names[other])
            for k, (one, other) in enumerate(pairs)
            if one in own
        ]
        largest = [_largest(found, of_own, t) for t in range(len(tasks) + 1)]
        results[attribute] = {
            "groups": {
                names[g]: {
                    "films": int((member[row] == g).sum()),
                    "patients": np.unique(predictions.patient[member[row] == g]).size,
                    **_group(measured, intervals, g, tasks, np.isnan(threshold)),
                    "averaged": int(averaged[g]),
                }
                for g in own
            },
            "gaps": dict(zip(tasks, largest, strict=False)),
            "mean": {"auroc": largest[-1]["auroc"]},
            "shown": _shown(found, of_own, (*tasks, "mean")),
            "tests": int((~np.isnan(found.p)).sum()),
        }
    return results


def _category(column: pd.Series) -> pd.Categorical:
    """A column's names that occur, in order; what is empty is UNKNOWN, the last."""
    values = pd.Categorical(column)
    known = [name for name in values.categories if str(name) not in ("", UNKNOWN)]
    values = values.set_categories(known).add_categories([UNKNOWN]).fillna(UNKNOWN)
    return values.remove_unused_categories().rename_categories(str)


def _measure(
    predictions, ranked, member, groups, threshold, key, replicates
) -> Measured:
    """All groups' metrics; member: [A, N], the group an attribute puts each image in."""
    rows = (predictions.weight > 0).any(axis=1)  # As in intervals.bootstrap.
    score, label, weight = (np.asarray(x, np.float32)[rows] for x in predictions[2:])
    ranked = np.asarray(ranked, np.float32)[rows]
    patients, patient = np.unique(predictions.patient[rows], return_inverse=True)
    member = member[:, rows].astype(np.int32)
    found = _replicates(
        *(score, ranked, label, weight, patient.astype(np.int32)),
        *(threshold, member, key),
        patients=patients.size,
        groups=groups,
        replicates=replicates,
    )
    value, replicate = jax.device_get(found)
    positive, said = np.where(weight > 0, label, 0), score >= threshold
    flags = weight * np.stack([positive, 1 - positive, said, ~said])  # [4, N, T]
    films, people = np.zeros((2, 4, groups, score.shape[1]))
    order = np.argsort(patient, kind="stable")
    for attribute in member:
        for g in np.unique(attribute):
            own = order[attribute[order] == g]
            starts = np.flatnonzero(np.diff(patient[own], prepend=-1))
            of_patient = np.add.reduceat(flags[:, own], starts, axis=1)
            films[:, g], people[:, g] = of_patient.sum(1), (of_patient > 0).sum(1)
    return Measured(value[0], replicate, films, people)


@functools.partial(jax.jit, static_argnames=("patients", "groups", "replicates"))
def _replicates(
    score,
    ranked,
    label,
    weight,
    patient,
    threshold,
    member,
    key,
    *,
    patients,
    groups,
    replicates,
):
    """METRICS [1, M, G, T] of the films as they are, and [R, M, G, T] of the draws."""
    attributes, (films, tasks) = len(member), score.shape
    # For areas the films stand there once an attribute, for rates once a group.
    tiled = [
        jnp.concatenate([x] * attributes) for x in (ranked, label, weight, patient)
    ]
    inside = (member[..., None] == jnp.arange(groups)).any(axis=0)  # [N, G]
    wide = [jnp.tile(x, groups) for x in (score, label)]
    wide += [(inside[..., None] * weight[:, None]).reshape(films, -1)]

    def chunk(numbers):
        counts = multiplicities(key, numbers, patients)
        counts = jnp.concatenate([jnp.ones_like(counts[:, :1]), counts], axis=1)
        area, _ = replicate_group_areas(
            *tiled, member.reshape(-1), counts, groups=groups
        )
        matrix, _ = replicate_confusion(
            *wide, patient, jnp.tile(threshold, groups), counts
        )
        rates = metrics.rates(matrix)
        rates = [rates[name].reshape(-1, groups, tasks) for name in METRICS[1:]]
        found = jnp.stack([area, *rates], axis=1)
        return found[:1], found[1:]

    return in_chunks(chunk, replicates)


def _intervals(measured: Measured) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ends of intervals by name, and the number of tasks in a group's mean of auroc.

    Returns:
      {end: [M, G, T + 1]}, whose last column is the mean over tasks of enough patients;
      [G].
    """
    enough = denominators(measured.patients) >= LEAST
    tasks = enough[:1] & ~np.isnan(measured.value[:1])
    value, drawn = (
        np.concatenate([x, np.asarray(averaging.macro(x, tasks))[..., None]], axis=-1)
        for x in (measured.value, measured.replicate)
    )
    enough = np.concatenate([enough, np.ones_like(enough[..., :1])], axis=-1)
    ends = np.asarray(jnp.nanquantile(drawn, jnp.array([0.025, 0.975]), axis=0))
    low, high = np.where(enough, ends, np.nan)
    undefined = np.isnan(drawn).sum(axis=0)
    ends = {"estimate": value, "low": low, "high": high, "undefined": undefined}
    return ends, tasks[0].sum(axis=-1)


def _group(measured, intervals, g: int, tasks, uncut: np.ndarray) -> dict:
    """One group's part of the report; uncut: [T], whether a task has no threshold."""

    patients = denominators(measured.patients)[:, g]
    patients = np.pad(patients, ((0, 0), (0, 1)), constant_values=LEAST)  # The mean.

    def interval(m: int, t: int, why: str) -> dict:
        found = Interval(*(intervals[end][m, g, t] for end in Interval._fields))
        behind = {"patients": patients[m, t], "replicates": len(measured.replicate)}
        return bootstrap.interval(found, why, kind=METRICS[m], **behind)

    def of_task(t: int) -> dict:
        lacks = [
            why if n == 0 else "" for why, n in zip(EMPTY, measured.films[:, g, t])
        ]
        why = [lacks[0] or lacks[1], *(["no threshold"] * 4 if uncut[t] else lacks)]
        return {
            "positives": float(measured.films[0, g, t]),
            "negatives": float(measured.films[1, g, t]),
            "metrics": {m: interval(i, t, why[i]) for i, m in enumerate(METRICS)},
        }

    mean = interval(0, len(tasks), f"no task with {LEAST} patients of either class")
    of_tasks = {task: of_task(t) for t, task in enumerate(tasks)}
    return {"tasks": of_tasks, "mean": {"auroc": mean}}


class _Pair(NamedTuple):
    """Two groups of an attribute, and where their differences stand."""

    number: int
    one: str
    other: str


def _largest(found: Differences, pairs: list[_Pair], t: int) -> dict[str, dict]:
    """Of each metric of one task, the largest difference that could be tested."""
    largest = {}
    for m, metric in enumerate(METRICS):
        tested = [pair for pair in pairs if not np.isnan(found.p[m, pair.number, t])]
        size = [abs(found.estimate[m, pair.number, t]) for pair in tested]
        chosen = tested[int(np.argmax(size))] if tested else None
        largest[metric] = _gap(found, chosen, m, t, alone=not pairs)
    return largest


def _shown(found: Differences, pairs: list[_Pair], tasks) -> list[dict]:
    """Every difference that isn't noise, the surest first."""
    places = np.argwhere(found.p_holm[:, [pair.number for pair in pairs]] < SHOWN)
    shown = [
        {"task": tasks[t], "metric": METRICS[m], **_gap(found, pairs[k], m, t)}
        for m, k, t in places
    ]
    return sorted(shown, key=lambda gap: gap["p"])


def _gap(found: Differences, pair: _Pair | None, m, t, alone=False) -> dict:
    """One difference, from the higher group to the lower."""
    if pair is None:
        why = "one group only" if alone else f"no two groups of {LEAST} such patients"
        return dict.fromkeys(("estimate", "low", "high", "between", "p", "p_holm")) | {
            "why": why
        }
    estimate, low, high, p, p_holm = (float(x[m, pair.number, t]) for x in found)
    between = [pair.one, pair.other]
    if estimate < 0:
        estimate, low, high, between = -estimate, -high, -low, between[::-1]
    ends = {"estimate": estimate, "low": _number(low), "high": _number(high)}
    return {**ends, "between": between, "p": p, "p_holm": p_holm, "why": ""}


def _number(value) -> float | None:
    value = float(value)
    return None if math.isnan(value) else value

"""Does a model serve women as men, old as young? Metrics by group, and their gaps.

Each attribute has one test, of the mean AUROC over the findings that all compared groups
have. All other differences are exploratory: of many intervals some miss 0 by chance.

One bootstrap over patients serves all groups: a patient with images in two of them is
drawn in both, and patients that are easy for both groups cancel in the gap.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from chex import Array
from scipy.special import ndtr, ndtri

from medjax.evaluation import areas, bootstrap, discrimination, metrics
from medjax.evaluation.bootstrap import MIN_PATIENTS, Interval, Resampled
from medjax.evaluation.inference import Predictions

COMPARED = ("auroc", "sensitivity", "specificity", "ppv", "npv")
COUNTED = ("positive", "negative", "called", "passed")
AGES = (18, 40, 60, 75)  # Years at which an age group begins; the first one at 0.
UNKNOWN = "unknown"


class Measured(NamedTuple):
    """G groups' metrics of T tasks; M stands for COMPARED."""

    value: np.ndarray  # [M, G, T], NaN where undefined.
    replicate: np.ndarray  # [R, M, G, T], of the same draws of patients for all.
    images: np.ndarray  # [4, G, T], the weights of those that are COUNTED.
    patients: np.ndarray  # [M, G, T], in the metric's denominator.


class Differences(NamedTuple):
    """How much higher the metrics of one group are than another's, [M, K, T + 1] each.

    The last column is the mean over the tasks, of auroc alone. All are NaN where a
    group is too small, or a metric undefined.
    """

    estimate: np.ndarray  # On the images as they are.
    low: np.ndarray  # The interval of 95 % that p belongs to.
    high: np.ndarray
    # Of no difference. That of a task is of this pair alone; that of the mean, and its
    # interval, are corrected for the pairs of the attribute (Bonferroni).
    p: np.ndarray


class GroupTask(NamedTuple):
    """A task in one group; positives, negatives: sums of weights."""

    positives: float
    negatives: float
    metrics: dict[str, Interval]


class Group(NamedTuple):
    """One group; mean: the macro average of the AUROC over Attribute.averaged."""

    films: int
    patients: int
    tasks: dict[str, GroupTask]
    mean: dict[str, Interval]


class Gap(NamedTuple):
    """A difference between two groups with MIN_PATIENTS patients, see Differences."""

    estimate: float
    low: float
    high: float
    between: list[str] | None  # The groups, the one with the higher value first.
    p: float
    why: str  # Why there is none; '' if there is.


class Attribute(NamedTuple):
    """The groups of one attribute, sex say."""

    groups: dict[str, Group]
    averaged: list[str]  # Tasks of the mean AUROC, those that all compared groups have.
    mean: dict[str, Gap]  # The largest gap of the mean AUROC.
    clearest: Gap  # That with the smallest p.
    # This p, adjusted for the attributes that were tested, `tests` in number: the only
    # test of the attribute.
    p_holm: float
    tests: int
    gaps: dict[str, dict[str, Gap]]  # {task: {metric: the largest gap}}, exploratory.
    explored: int  # How many differences of tasks were looked at.
    # Those whose own intervals miss 0, {task, metric} and the gap, by p.
    apart: list[dict]


def by_metadata(table: pd.DataFrame) -> pd.DataFrame:
    """Sex, age group and view of images, from a table with the columns of
    data/prepared.py; empty where it doesn't say."""
    labels = [f"{low}-{high - 1}" for low, high in itertools.pairwise((0, *AGES))]
    labels.append(f"{AGES[-1]}+")
    bands = pd.cut(table["age"], [0, *AGES, math.inf], right=False, labels=labels)
    return pd.DataFrame({"sex": table["sex"], "age": bands, "view": table["view"]})


def summarise(
    predictions: Predictions,
    groups: pd.DataFrame,
    *,
    tasks: tuple[str, ...],
    threshold: np.ndarray,
    **draws,
) -> dict:
    """Every group's metrics with intervals, and the differences between groups.

    Args:
      groups: a row an image, in the order of the predictions, a column an attribute, as
        of `by_metadata`; what is empty is UNKNOWN, a group like any other. An attribute
        that all images have in common, or none has, is left out.
      threshold: [T], fixed, the same for every group; NaN leaves the rates empty.

    Returns:
      {attribute: `Attribute`} as JSON, see bootstrap.as_json.
    """
    threshold = np.asarray(threshold, np.float32)
    columns = {name: _category(groups[name]) for name in groups}
    columns = {name: x for name, x in columns.items() if len(x.categories) > 1}
    if not columns:
        return {}
    first = np.cumsum([0, *(len(column.categories) for column in columns.values())])
    member = np.stack(
        [c.codes + start for c, start in zip(columns.values(), first, strict=False)]
    )
    measured = _measure(predictions, member, threshold, groups=int(first[-1]), **draws)
    attributes = {
        name: _attribute(
            Measured(*(x[..., start:stop, :] for x in measured)),
            *(column, predictions.patient, tasks, ~np.isnan(threshold)),
        )
        for (name, column), (start, stop) in zip(
            columns.items(), itertools.pairwise(first), strict=True
        )
    }
    adjusted = bootstrap.holm([each.clearest.p for each in attributes.values()])
    tests = int((~np.isnan(adjusted)).sum())
    return bootstrap.as_json(
        {
            name: each._replace(p_holm=p, tests=tests)
            for (name, each), p in zip(attributes.items(), adjusted, strict=True)
        }
    )


def _attribute(
    measured: Measured,
    column: pd.Categorical,
    patient: np.ndarray,
    tasks: tuple[str, ...],
    cut: np.ndarray,
) -> Attribute:
    """Compares the groups of one attribute; its p isn't adjusted yet.

    Args:
      measured: its groups; column: [N], the group of each image.
      cut: [T], whether a task has a threshold.
    """
    names = list(column.categories)
    compared, shared = _compared(measured)
    pairs = np.array([*itertools.combinations(range(len(names)), 2)])
    apart = differences(measured, pairs, compared[pairs].all(axis=1), shared)
    sides = [(names[one], names[other]) for one, other in pairs]
    *gaps, mean = [_gaps(apart, sides, t) for t in range(len(tasks) + 1)]
    clearest, of_tasks = mean["auroc"], apart.p[..., :-1]
    if not clearest.why:
        clearest = _gap(apart, sides, 0, int(np.nanargmin(apart.p[0, :, -1])), -1)
    missing = [
        {"task": tasks[t], "metric": COMPARED[m]}
        | _gap(apart, sides, m, k, t)._asdict()
        for m, k, t in np.argwhere(of_tasks < 0.05)
    ]
    groups = _groups(measured, column, patient, tasks, cut, compared, shared)
    return Attribute(
        groups=dict(zip(names, groups, strict=True)),
        averaged=[task for task, use in zip(tasks, shared, strict=True) if use],
        mean={"auroc": mean["auroc"]},
        clearest=clearest,
        p_holm=math.nan,
        tests=0,
        gaps=dict(zip(tasks, gaps, strict=True)),
        explored=int((~np.isnan(of_tasks)).sum()),
        apart=sorted(missing, key=lambda gap: gap["p"]),
    )


def _compared(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Selects the groups that can be compared, and their common tasks.

    Returns:
      [G], the groups with at least half as many measured tasks as another one: a small
        group with one finding alone would else leave one to the others too.
      [T], the tasks that are measured in all these groups: their means are over these.
    """
    enough = measured.patients[0] >= MIN_PATIENTS
    has = enough & ~np.isnan(measured.value[0])  # [G, T], which AUROCs.
    number = has.sum(axis=1)
    groups = (number > 0) & (2 * number >= number.max())
    return groups, has[groups].all(axis=0) & groups.any()


def _category(column: pd.Series) -> pd.Categorical:
    """A column's names that occur, in order; what is empty is UNKNOWN, the last."""
    values = pd.Categorical(column)
    known = [name for name in values.categories if str(name) not in ("", UNKNOWN)]
    values = values.set_categories(known).add_categories([UNKNOWN]).fillna(UNKNOWN)
    return values.remove_unused_categories().rename_categories(str)


def _measure(predictions, member, threshold, *, groups: int, **draws) -> Measured:
    """All groups' metrics; member: [A, N], the group an attribute puts each image in."""
    rows, patient, patients = bootstrap.numbered(
        predictions.weight, predictions.patient
    )
    score, label, weight = (np.asarray(x, np.float32)[rows] for x in predictions[2:5])
    ranked = np.asarray(predictions.ranking, np.float32)[rows]
    member = member[:, rows].astype(np.int32)
    data = score, ranked, label, weight, patient, threshold, member
    value, replicate = jax.device_get(
        bootstrap.resample(_by_group, data, patients, groups=groups, **draws)
    )
    kinds = discrimination.kinds(score, label, weight, threshold)
    flags = np.stack([kinds[name] for name in COUNTED])  # [4, N, T]
    images, people = (
        np.zeros((len(kinds), *value.shape[1:])) for kinds in (COUNTED, COMPARED)
    )
    for g in np.unique(member):
        inside = (member == g).any(axis=0)
        images[:, g] = flags[:, inside].sum(axis=1)
        counted = discrimination.patients(
            *(x[inside] for x in (score, label, weight, patient)), threshold
        )
        people[:, g] = [counted[name][:-1] for name in COMPARED]
    return Measured(value, replicate, images, people)


def _by_group(data: tuple, counts: Array, *, groups: int) -> Array:
    """A statistic: COMPARED of every group, [R, M, G, T]."""
    score, ranked, label, weight, patient, threshold, member = data
    images, tasks = score.shape
    # For areas the images stand there once an attribute, for rates once a group.
    tiled = [
        jnp.concatenate([x] * len(member)) for x in (ranked, label, weight, patient)
    ]
    inside = (member[..., None] == jnp.arange(groups)).any(axis=0)  # [N, G]
    wide = [jnp.tile(x, groups) for x in (score, label)]
    wide += [(inside[..., None] * weight[:, None]).reshape(images, -1), patient]
    area, _ = areas.of_groups(*tiled, member.reshape(-1), counts, groups=groups)
    matrix = discrimination.confusion(*wide, jnp.tile(threshold, groups), counts)
    rates = metrics.rates(matrix)
    rates = [rates[name].reshape(-1, groups, tasks) for name in COMPARED[1:]]
    return jnp.stack([area, *rates], axis=1)


def intervals(measured: Measured) -> Interval:
    """[M, G, T] of each group alone, of bootstrap.wilson and exact."""
    value, drawn, patients = measured.value, measured.replicate, measured.patients
    area = bootstrap.wilson(Resampled(value[:1], drawn[:, :1]), patients[:1])
    rates = bootstrap.wilson(Resampled(value[1:], drawn[:, 1:]))
    rates = bootstrap.exact(rates, patients[1:])
    return jax.tree.map(lambda *x: np.concatenate(x), area, rates)


def differences(
    measured: Measured, pairs: np.ndarray, compared: np.ndarray, shared: np.ndarray
) -> Differences:
    """Compares groups two by two, the first minus the second of K pairs [K, 2].

    A patient may be in several groups. The intervals are those of bootstrap.combined, and
    p is that of the standard error that the end next to 0 stands for.

    Args:
      compared: [K], the pairs whose means are compared; the test is corrected for them.
      shared: [T], the tasks of the mean.
    """
    each, factors = intervals(measured), np.array([1.0, -1.0])
    # [2, M, K, T]
    sides = jax.tree.map(lambda x: np.moveaxis(x[:, pairs], 2, 0), each)
    drawn = np.moveaxis(measured.replicate[:, :, pairs], 3, 1)  # [R, 2, M, K, T]
    of_tasks = bootstrap.combined(sides, drawn, factors[:, None, None, None])
    numbers = np.pad(of_tasks, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=np.nan)
    for k in np.flatnonzero(compared & shared.any()):
        wide = jax.tree.map(lambda x, k=k: x[:, 0, k][:, shared].ravel(), sides)
        draws = drawn[:, :, 0, k][:, :, shared].reshape(len(drawn), -1)
        share = np.repeat(factors, shared.sum()) / shared.sum()
        numbers[:, 0, k, -1] = bootstrap.combined(wide, draws, share)
    estimate, low, high = numbers
    enough = measured.patients[:, pairs].min(axis=2) >= MIN_PATIENTS
    tested = np.pad(enough, ((0, 0), (0, 0), (0, 1)), constant_values=True)
    reach = ndtri((1 + bootstrap.LEVEL) / 2)
    towards_0 = np.where(estimate > 0, estimate - low, high - estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * ndtr(-np.abs(estimate) / towards_0 * reach)
    p = np.where(estimate == 0, 1, p)
    family = np.append(np.ones(len(shared)), max(compared.sum(), 1))
    wider = ndtri(1 - (1 - bootstrap.LEVEL) / 2 / family) / reach
    low, high = (estimate + wider * (end - estimate) for end in (low, high))
    columns = estimate, low, high, np.minimum(family * p, 1)
    return Differences(*(np.where(tested & ~np.isnan(low), x, np.nan) for x in columns))


def _groups(
    measured: Measured,
    column: pd.Categorical,
    patient: np.ndarray,
    tasks: Sequence[str],
    cut: np.ndarray,
    compared: np.ndarray,
    shared: np.ndarray,
) -> list[Group]:
    """The groups' parts of the report, see `_attribute` and `_compared`."""
    each = intervals(measured)

    def interval(m: int, g: int, t: int, why: str) -> Interval:
        return bootstrap.interval(
            bootstrap.at(each, (m, g, t)),
            why,
            patients=measured.patients[m, g, t],
            replicates=len(measured.replicate),
            name=COMPARED[m],
        )

    def mean(g: int, why: str) -> Interval:
        drawn = measured.replicate[:, 0, g]
        weights = compared[g] * shared
        area = bootstrap.mean_of(bootstrap.at(each, (0, g)), drawn, weights)
        # All tasks of the mean have enough patients.
        number = len(measured.replicate)
        return bootstrap.interval(area, why, patients=MIN_PATIENTS, replicates=number)

    def task(g: int, t: int) -> GroupTask:
        images = dict(zip(COUNTED, measured.images[:, g, t].tolist(), strict=True))
        images["known"] = images["positive"] + images["negative"]
        judged = {
            name: interval(m, g, t, metrics.why(name, images, threshold=cut[t]))
            for m, name in enumerate(COMPARED)
        }
        return GroupTask(images["positive"], images["negative"], judged)

    def group(g: int) -> Group:
        inside = column.codes == g
        none = f"no finding with {MIN_PATIENTS} patients of either class in all groups"
        if not compared[g]:
            none = f"{MIN_PATIENTS} patients of either class in too few findings: not compared"
        return Group(
            films=int(inside.sum()),
            patients=np.unique(patient[inside]).size,
            tasks={name: task(g, t) for t, name in enumerate(tasks)},
            mean={"auroc": mean(g, none)},
        )

    return [group(g) for g in range(len(compared))]


def _gaps(apart: Differences, pairs: list[tuple[str, str]], t: int) -> dict[str, Gap]:
    """Of each metric of one task, the largest difference that could be tested."""
    why = f"no two groups of {MIN_PATIENTS} such patients"
    gaps = {}
    for m, metric in enumerate(COMPARED):
        tested = np.flatnonzero(~np.isnan(apart.p[m, :, t]))
        if tested.size:
            largest = np.abs(apart.estimate[m, tested, t]).argmax()
            gaps[metric] = _gap(apart, pairs, m, tested[largest], t)
        else:
            gaps[metric] = Gap(*[math.nan] * 3, None, math.nan, why=why)
    return gaps


def _gap(
    apart: Differences, pairs: list[tuple[str, str]], m: int, k: int, t: int
) -> Gap:
    """One difference, from the higher group to the lower."""
    estimate, low, high, p = (float(x[m, k, t]) for x in apart)
    if estimate < 0:
        return Gap(-estimate, -high, -low, [*pairs[k]][::-1], p, "")
    return Gap(estimate, low, high, [*pairs[k]], p, "")

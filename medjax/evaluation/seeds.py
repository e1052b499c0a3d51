"""Compare the arms of a sweep: each trained by several seeds, tested on the same patients.

An arm's metric is the mean over its S seeds. Two things make it uncertain. Other
patients would give another number: a bootstrap over patients shows that, with the same
draws for every arm and seed. Another training would give another number too: the
standard deviation (SD) over the seeds shows that. Arms are compared seed by seed on the
same images, and a difference is tested against both:

    error^2 = patients^2 + SD^2 / S.

S is small, so the test is a t test with Satterthwaite's degrees of freedom. An effect of
a seed on some patients only is in both terms, which makes the test conservative.

Scores are of one metric, [A, S, T + 1]: of A arms, S seeds, T tasks and, last, the mean
over them. NaN where undefined.

Source: the sum of both variances of a crossed design, Owen, Ann. Appl. Stat. 1 (2007)
386; Satterthwaite, Biometrics Bull. 2 (1946) 110.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array
from scipy.special import stdtr, stdtrit

from medjax.errors import InputError
from medjax.evaluation import areas, bootstrap, discrimination
from medjax.evaluation.bootstrap import ROUNDING, Resampled, holm

ALPHA = 0.05
MIN_SEEDS = 3  # Seeds without which no arm is called the best.
LONG = 10  # Times as many images as the rarest task: from there on there is a tail.
GROUPS = ("tail", "medium", "head")


class Scores(NamedTuple):
    """A metric of all runs."""

    whole: np.ndarray  # [A, S, T + 1].
    drawn: np.ndarray  # [R, A, S, T + 1], its replicates.
    rarer: np.ndarray | None = None  # [T], of areas, see bootstrap.wilson.
    # [A, S, T], of average precisions, see discrimination.around.
    centre: np.ndarray | None = None


class ArmMetric(NamedTuple):
    """An arm's metric."""

    estimate: float  # The mean over the seeds.
    # Its interval by patients, as of discrimination.intervals; NaN of fewer than
    # bootstrap.MIN_PATIENTS, as a Difference's are and its p.
    low: float
    high: float
    undefined: int  # Replicates in which the metric is undefined.
    sd: float  # Over the seeds; NaN of one seed.
    each: np.ndarray  # [S], the metric of every seed.


class Difference(NamedTuple):
    """How much higher a metric of one arm is than that of another."""

    estimate: float  # The mean difference over the seeds that both arms have.
    low: float  # The 95 % interval that p belongs to.
    high: float
    undefined: int  # Replicates in which it is undefined.
    patients: float  # The standard error by patients.
    # Over the seeds, NaN of one seed: the interval and p then say nothing of another
    # training.
    sd: float
    seeds: int  # How many both arms have.
    p: float  # Two-sided.
    holm: float = np.nan  # Adjusted p, for its family of tests; NaN: isn't tested.


class Best(NamedTuple):
    """The best arm, if the data show one."""

    arm: str | None  # Its name, None if no difference is shown.
    leader: str | None  # As `second` one of the arms with the highest means.
    second: str | None
    p: float | None  # Of their difference, after Holm over all arms but the leader.
    why: str  # The reason, as a clause.


def measure_predictions(
    probability: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    patient: np.ndarray,
    *,
    ranking: np.ndarray,
    call: np.ndarray,
    **draws,
) -> dict[str, Scores]:
    """AUROC, average precision, Brier score and balanced accuracy of every run.

    Args:
      probability: [A, S, N, T].
      label: [N, T] in [0, 1].
      ranking: [A, S, N, T], the scores by which images are ranked.
      call: [A, S, N, T], 1 where the run says that the finding is present, else 0. Of a
        class it is NaN in the images of others: the balanced accuracy of all classes is
        the mean of their sensitivities.
      weight: [A, S, N, T], >= 0; 0 where a label is unknown, where this seed wasn't
        tested on the image, and where the run is missing. Probability and label may be
        anything there.
    """
    arms, seeds, images, tasks = probability.shape
    columns = [  # [N, A S T]
        np.moveaxis(np.broadcast_to(x, probability.shape), 2, 0).reshape(images, -1)
        for x in (probability, ranking, label, call, weight)
    ]
    columns = [np.where(columns[-1] > 0, x, 0).astype(np.float32) for x in columns]
    names, patient = np.unique(patient, return_inverse=True)
    data = *columns, patient.astype(np.int32)
    resampled = bootstrap.resample(_scores, data, len(names), **draws)
    shape = arms, seeds, tasks
    scores = {
        name: _with_mean(whole.reshape(shape), drawn.reshape(-1, *shape))
        for (name, whole), drawn in zip(
            resampled.whole.items(), resampled.drawn.values(), strict=True
        )
    }
    known = (weight > 0).any(axis=(0, 1))
    rarer = discrimination.rarer_patients(np.where(known, label, 0), known, patient)
    ranked = {name: scores[name]._replace(rarer=rarer) for name in areas.AREAS}
    _, order, positive, _, mass, _ = data
    centre = areas.of_other_patients(order, positive, mass, patient)
    precision = ranked["average_precision"]._replace(centre=centre.reshape(shape))
    return scores | ranked | {"average_precision": precision}


def _scores(data: tuple, counts: Array) -> dict[str, Array]:
    """A statistic: `measure_predictions`' metrics of all columns, [R, K]."""
    score, ranking, label, call, weight, patient = data
    absent = jnp.isnan(call)
    positive, negative = weight * label, weight * (1 - label)
    sums = [weight * (score - label) ** 2, weight]
    for mass, right in ((positive, call), (negative, 1 - call)):
        sums += [jnp.where(absent, 0, mass * right), jnp.where(absent, 0, mass)]
    sums = bootstrap.reweigh(jnp.stack(sums, axis=1), counts, patient)  # [N, 6, K]
    error, mass, *rates = jnp.moveaxis(sums, -2, 0)
    sensitivity, specificity = rates[0] / rates[1], rates[2] / rates[3]
    both = areas.of_tasks(ranking, label, weight, patient, counts)
    return dict(zip(areas.AREAS, both, strict=True)) | {
        "brier": error / mass,
        "balanced_accuracy": jnp.where(
            absent.any(axis=0), sensitivity, (sensitivity + specificity) / 2
        ),
    }


def measure_cases(
    values: dict[str, np.ndarray], patient: np.ndarray, **draws
) -> dict[str, Scores]:
    """The mean over cases of each metric, [A, S, N, T]; NaN where undefined."""
    scores = {}
    for metric, value in values.items():
        value = np.moveaxis(value, 2, 0).astype(np.float32)  # [N, A, S, T]
        means = bootstrap.means(value, patient, **draws)
        scores[metric] = _with_mean(*means)
    return scores


def _with_mean(whole, drawn) -> Scores:
    """[A, S, T] and [R, A, S, T] with the mean over each run's defined tasks.

    A replicate in which one of these tasks is undefined has no mean: a mean over other
    tasks is another quantity.
    """
    whole, drawn = np.asarray(whole, np.float64), np.asarray(drawn, np.float64)
    over = {"axis": -1, "keepdims": True, "where": ~np.isnan(whole)}
    with warnings.catch_warnings(action="ignore"):  # Where no task is defined.
        return Scores(*(np.append(x, np.mean(x, **over), -1) for x in (whole, drawn)))


def compare(
    scores: dict[str, Scores],
    *,
    arms: tuple[str, ...],
    tasks: tuple[str, ...],
    primary: str,
    patients: int,
    baseline: int = 0,
    images: np.ndarray | None = None,
) -> dict:
    """Every arm's metrics, their differences to the baseline's, and the best arm.

    Args:
      scores: of A arms, by metric.
      arms: A names; tasks: T names.
      primary: the metric whose differences are tested: those of the mean as one family
        over the arms, those of the tasks as one over arms and tasks.
      patients: how many were tested.
      baseline: the arm that the others are compared with.
      images: [T] positive ones of each task that trained, for the groups.

    Returns, as JSON:
      baseline; arms: {arm: {seeds, mean: {metric: ArmMetric}, tasks and groups: {name:
      as mean}, difference: these three of Difference, None for the baseline}}; groups:
      {group: its tasks}, see `by_frequency`; best: a Best.

    Raises:
      InputError: fewer than two patients.
    """
    if patients < 2:
        raise InputError(f"{patients} patient(s) were tested: a comparison needs two")
    groups = {} if images is None else by_frequency(images)
    parts = {
        group: {name: _part(metric, chosen) for name, metric in scores.items()}
        for group, chosen in groups.items()
    }

    def by_column(of: Callable[[str, Scores], list[NamedTuple]]) -> dict:
        """What `of` says of every metric's tasks, their mean and that of each group."""
        lists = {name: of(name, metric) for name, metric in scores.items()}
        *each, mean = (dict(zip(lists, row)) for row in zip(*lists.values()))
        return {
            "mean": mean,
            "tasks": dict(zip(tasks, each, strict=True)),
            "groups": {
                group: {name: of(name, metric)[-1] for name, metric in part.items()}
                for group, part in parts.items()
            },
        }

    def row(a: int) -> dict:
        def summaries(name: str, metric: Scores) -> list[ArmMetric]:
            worth = areas.WORTH.get(name, 2)
            return summarise(metric, a, patients=patients, worth=worth)

        def differences(_: str, metric: Scores) -> list[Difference]:
            columns = range(metric.whole.shape[-1])
            return [difference(metric, a, baseline, t, patients) for t in columns]

        seeds = ~np.isnan(scores[primary].whole[a, :, -1])
        return {
            "seeds": int(seeds.sum()),
            **by_column(summaries),
            "difference": by_column(differences) if a != baseline else None,
        }

    rows = {arm: row(a) for a, arm in enumerate(arms)}
    gaps = [each["difference"] for each in rows.values() if each["difference"]]
    _adjust([gap["mean"] for gap in gaps], primary)
    _adjust([row for gap in gaps for row in gap["tasks"].values()], primary)
    comparison = {
        "baseline": arms[baseline],
        "arms": rows,
        "groups": {
            group: [task for task, its in zip(tasks, chosen, strict=True) if its]
            for group, chosen in groups.items()
        },
        "best": best(scores[primary], arms, patients=patients),
    }
    return bootstrap.as_json(comparison)


def _adjust(family: list[dict[str, Difference]], primary: str) -> None:
    """Adds Holm's p to the differences of the primary metric."""
    adjusted = holm([row[primary].p for row in family])
    for row, p in zip(family, adjusted, strict=True):
        row[primary] = row[primary]._replace(holm=p)


def by_frequency(images: np.ndarray) -> dict[str, np.ndarray]:
    """{group: [T] bool}: the tasks with many, some and few positive images, [T] > 0.

    The way from the fewest to the most is cut in three, whose ends have equal ratios.
    {} where the most are fewer than LONG times the fewest; a group may be missing.
    """
    if len(images) < 2 or images.min() <= 0 or images.max() < LONG * images.min():
        return {}
    place = np.log(images / images.min()) / np.log(images.max() / images.min())
    number = np.minimum((place * len(GROUPS)).astype(int), len(GROUPS) - 1)
    groups = {name: number == n for n, name in enumerate(GROUPS)}
    return {name: groups[name] for name in reversed(GROUPS) if groups[name].any()}


def _part(scores: Scores, chosen: np.ndarray) -> Scores:
    """The metric of some tasks, [T] bool, and of their mean."""
    each = _with_mean(*(x[..., :-1][..., chosen] for x in scores[:2]))
    rest = (x if x is None else x[..., chosen] for x in scores[2:])
    return Scores(*each[:2], *rest)


def summarise(
    scores: Scores, arm: int, *, patients: int, worth: float = 2
) -> list[ArmMetric]:
    """An arm's metric of each task, and last of their mean; worth: see bootstrap.wilson."""
    columns = zip(scores.whole[arm].T, np.moveaxis(scores.drawn[:, arm], 2, 0))
    numbers = [(*_over_seeds(*column), column[0]) for column in columns]
    estimate, sd, drawn, undefined, each = zip(*numbers, strict=True)
    used = Resampled(np.array(estimate[:-1]), np.stack(drawn[:-1], axis=1))
    if scores.centre is not None:
        centre, whole = scores.centre[arm], scores.whole[arm, :, :-1]
        centre = np.where(np.isnan(centre), whole, centre)
        mean = bootstrap.mean_of_defined(centre, axis=0)
        used = discrimination.around(mean, used, scores.rarer)
    tasks = bootstrap.wilson(used, scores.rarer, worth)
    mean = bootstrap.mean_of(tasks, used.drawn, ~np.isnan(estimate[:-1]))
    ends = bootstrap.Interval(*(np.append(*x) for x in zip(tasks[:4], mean[:4])))
    estimate, low, high = discrimination.holding(np.array(estimate), ends)[:3]
    if patients < bootstrap.MIN_PATIENTS:
        low = high = np.full(len(sd), np.nan)
    columns = zip(estimate, low, high, undefined, sd, each, strict=True)
    return [ArmMetric(*column) for column in columns]


def difference(
    scores: Scores, arm: int, other: int, task: int, patients: int
) -> Difference:
    """Compares `arm` with `other` in one task; -1 is the mean over tasks."""
    whole, drawn = scores.whole[..., task], scores.drawn[..., task]
    each = whole[arm] - whole[other]
    seeds = int((~np.isnan(each)).sum())
    drawn = drawn[:, arm] - drawn[:, other]
    mean, sd, replicates, undefined = _over_seeds(each, drawn)
    error = float(bootstrap.deviation(replicates))
    # Drawing P of P patients has (P - 1) / P of the variance.
    error *= np.sqrt(patients / (patients - 1))
    if patients < bootstrap.MIN_PATIENTS:  # No interval, and no test.
        error = np.nan
    defined = len(replicates) - undefined
    freedom = 1 / (1 / (patients - 1) + 1 / max(defined - 1, 1))
    reach, p = _t_test(mean, error, sd, seeds=seeds, freedom=freedom)
    return Difference(
        *(mean, mean - reach, mean + reach, undefined),
        patients=error,
        sd=sd,
        seeds=seeds,
        p=p,
    )


def _t_test(
    mean: float, error: float, sd: float, *, seeds: int, freedom: float
) -> tuple[float, float]:
    """Returns the half-width of a mean difference's interval, and its p.

    error: the standard error by patients, with this freedom; sd: over the seeds.
    """
    by_seed = sd**2 / seeds if seeds > 1 else 0.0
    variance = error**2 + by_seed
    root = np.sqrt(variance)
    if np.isnan(root) or np.isnan(mean):
        return np.nan, np.nan
    if root < ROUNDING:  # The same numbers, or nothing that varies.
        return 0.0, 1.0 if abs(mean) < ROUNDING else np.nan
    freedom = variance**2 / (error**4 / freedom + by_seed**2 / max(seeds - 1, 1))
    p = 2 * stdtr(freedom, -abs(mean) / root)
    return stdtrit(freedom, 1 - ALPHA / 2) * root, p


def _over_seeds(
    each: np.ndarray, drawn: np.ndarray
) -> tuple[float, float, np.ndarray, int]:
    """Over the seeds that are defined, of [S] and [R, S]: mean, SD, and the replicates'
    means [R], NaN where one of these is undefined; and how many of them are."""
    defined = ~np.isnan(each)
    if not defined.any():
        return np.nan, np.nan, np.full(len(drawn), np.nan), len(drawn)
    sd = np.std(each[defined], ddof=1) if defined.sum() > 1 else np.nan
    means = drawn[:, defined].mean(axis=1)
    return each[defined].mean(), sd, means, int(np.isnan(means).sum())


def best(scores: Scores, arms: tuple[str, ...], *, patients: int) -> Best:
    """The arm with the highest mean, if the data allow to call it the best.

    The mean is over the seeds that all arms have, because an arm that lacks a hard seed
    would lead by that alone; an arm without any result takes no part. The leader is the
    best if there are MIN_SEEDS seeds and its difference to every other arm has a p
    below ALPHA / 2 (the same data chose the leader), adjusted after Holm over these A -
    1 tests, and is larger than its own SD over the seeds, so that one more training
    would hardly reverse it. Of equal arms one is called the best in at most 5 % of
    sweeps.
    """
    seeds = scores.whole[:, :, -1]
    defined = ~np.isnan(seeds)
    has_result = defined.any(axis=1)
    if has_result.sum() < 2:
        return Best(None, None, None, None, "fewer than two arms have a result")
    shared = defined[has_result].all(axis=0)
    if not shared.any():
        return Best(None, None, None, None, "no seed has a result of every arm")
    means = seeds[:, shared].mean(axis=1)
    leader, *others = [int(a) for a in np.argsort(-means) if has_result[a]]
    differences = [difference(scores, leader, a, -1, patients) for a in others]
    adjusted = holm([each.p for each in differences])
    verdict = functools.partial(
        Best, leader=arms[leader], second=arms[others[0]], p=adjusted[0]
    )
    if min(each.seeds for each in differences) < MIN_SEEDS:
        why = f"fewer than {MIN_SEEDS} seeds say nothing about another training"
        return verdict(None, why=why)
    for other, each, p in zip(others, differences, adjusted, strict=True):
        lead = f"{arms[leader]} leads"
        if not p < ALPHA / 2:  # Or NaN.
            why = f"{lead}, and its difference to {arms[other]} may be chance"
            return verdict(None, why=why)
        if each.estimate <= each.sd:
            why = f"{lead} {arms[other]} by less than one seed differs from another"
            return verdict(None, why=why)
    why = "it differs from every other arm beyond other patients and other seeds"
    if absent := [arm for arm, has in zip(arms, has_result, strict=True) if not has]:
        why += f", but for {', '.join(absent)}, without a result"
    return verdict(arms[leader], why=why)

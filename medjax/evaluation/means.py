"""Means over volumes, and their intervals by patient: each by the kind of its numbers.

Numbers in [0, 1] are `shares`, false lesions are `counts`, distances and differences are
`studentised`. `by_group` is of women and men, or of small lesions and large ones.

Where nearly all volumes have one value, such as a sensitivity of 1, most resamples have
no spread, and a bootstrap's interval ends at the mean itself. How often each kind holds
the truth: tests/README.md.

Between groups nothing is tested: each attribute has the largest difference between two
of its groups, with its interval.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from chex import Array
from scipy.special import stdtrit

from medjax.cohort.describe import wilson_ends
from medjax.evaluation import bootstrap
from medjax.evaluation.bootstrap import (
    LEVEL,
    MIN_PATIENTS,
    ROUNDING,
    Interval,
    resample,
    reweigh,
)


class Linear(NamedTuple):
    """Statistics that are sums over patients, or near it."""

    estimate: np.ndarray  # [...].
    # [P, ...], how far each patient moves it from a common mean; sums to 0.
    influence: np.ndarray
    patients: np.ndarray  # [...], who take part.


def over_rows(values: np.ndarray, patient: np.ndarray) -> Linear:
    """Averages each column over the rows of [N, ...] in which it isn't NaN."""
    total, number = bootstrap.patient_sums(values, patient)
    rows = number.sum(axis=0)
    mean = total.sum(axis=0) / np.maximum(rows, 1)
    influence = (total - mean * number) / np.maximum(rows, 1)
    patients = (number > 0).sum(axis=0)
    return Linear(np.where(rows > 0, mean, np.nan), influence, patients)


def _spread(linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """[...]: the variance of the means, and the quantile of Student's t."""
    n = np.maximum(linear.patients, 2)
    variance = (linear.influence**2).sum(axis=0) * n / (n - 1)
    return variance, stdtrit(n - 1, (1 + LEVEL) / 2)


def shares(linear: Linear) -> Interval:
    """Gives a mean share Wilson's interval, at the effective sample size.

    Student's quantile counts, as the variance is of few patients. Means of 0 and 1 have
    the exact interval, as if each patient had one volume.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927) 209; see also bootstrap.wilson.
    """
    variance, t = _spread(linear)
    spread = linear.estimate * (1 - linear.estimate)
    z2 = t**2 * variance / np.where(spread > ROUNDING, spread, 1)
    ends = wilson_ends(linear.estimate, z2)
    interval = Interval(linear.estimate, *ends, np.zeros(variance.shape))
    return bootstrap.exact(interval, linear.patients)


def counts(linear: Linear) -> Interval:
    """Gives a mean count the Poisson score interval, at the effective sample size.

    Student's quantile counts. A mean of 0 has the exact interval, as if each patient
    had one volume.

    Source: Rao's score test of a rate; Garwood, Biometrika 28 (1936) 437 for 0.
    """
    variance, t = _spread(linear)
    mean = linear.estimate
    shift = t**2 * variance / np.where(mean > 0, mean, 1) / 2
    reach = np.sqrt(t**2 * variance + shift**2)
    none = -np.log((1 - LEVEL) / 2) / np.maximum(linear.patients, 1)
    low = np.maximum(mean + shift - reach, 0)
    high = np.where(mean > 0, mean + shift + reach, none)
    return Interval(mean, low, high, np.zeros(variance.shape))


def studentised(linear: Linear, **draws) -> Interval:
    """The bootstrap-t interval: for skewed numbers, such as distances.

    In units of its own standard error a replicate is as far from the estimate as that is
    from the truth. Of few patients the quantiles of that are noisy: they are at least
    Student's, and at most twice those.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 12.5.
    """
    variance, t = _spread(linear)
    error = np.sqrt((linear.influence**2).sum(axis=0))
    scaled = linear.influence / np.where(error > 0, error, 1)
    drawn = resample(_student, scaled.astype(np.float32), len(scaled), **draws)
    with warnings.catch_warnings(action="ignore"):  # Where nothing varies.
        below, above = np.nanquantile(
            drawn.drawn, [(1 + LEVEL) / 2, (1 - LEVEL) / 2], axis=0
        )
    least = t * np.sqrt(variance)
    below, above = (
        np.fmin(np.fmax(end * error, least), 2 * least) for end in (below, -above)
    )
    ends = linear.estimate - below, linear.estimate + above
    return Interval(linear.estimate, *ends, np.zeros(error.shape))


def _student(influence: Array, counts: Array) -> Array:
    """A statistic: the t of each replicate; NaN where all drawn patients are alike."""
    moved, square = (reweigh(x, counts) for x in (influence, influence**2))
    variance = square - moved**2 / len(influence)
    alike = variance <= ROUNDING
    return jnp.where(alike, jnp.nan, moved / jnp.sqrt(jnp.where(alike, 1, variance)))


SIZE_GROUPS = ("small", "medium", "large")  # Thirds, by the first region's volume.
MEAN = "mean"


class VolumeGroup(NamedTuple):
    """One group; dice: by region, and MEAN, of each volume's mean over the regions."""

    volumes: int
    patients: int
    dice: dict[str, Interval]


class DiceGap(NamedTuple):
    """How much higher the mean Dice of one group is than that of another."""

    estimate: float
    # By Student's t with the freedom of the smaller group, clustered by patient and
    # corrected for the pairs that were compared (Bonferroni).
    low: float
    high: float
    # The groups, the better one first; None if no two have MIN_PATIENTS patients.
    between: list[str] | None


class VolumeAttribute(NamedTuple):
    """The groups of one attribute, and the largest difference between two of them."""

    groups: dict[str, VolumeGroup]
    gap: DiceGap


def by_size(rows: Sequence[Mapping]) -> pd.Series:
    """{volume: the third that its true first region is in, or 'empty'}."""
    first = rows[0]["region"]
    true = pd.Series({r["name"]: r["true_ml"] for r in rows if r["region"] == first})
    some = true[true > 0]
    ends = some.quantile([1 / 3, 2 / 3]).tolist() if len(some) else [0, 0]
    ranges = (f"below {ends[0]:.3g} ml", f"to {ends[1]:.3g} ml", "above")
    names = [f"{size}, {text}" for size, text in zip(SIZE_GROUPS, ranges, strict=True)]
    place = np.searchsorted(ends, true, side="right")
    groups = pd.Categorical.from_codes(place, names).add_categories("empty")
    return pd.Series(groups, true.index).where(true > 0, "empty")


def by_group(rows: Sequence[Mapping], groups: pd.DataFrame) -> dict:
    """Measures every group's Dice with intervals, and the largest differences.

    Args:
      rows: see mask_metrics.SegmentationResults.
      groups: a row a volume, by its name; a column an attribute, of categories. A
        volume without a category is in no group.

    Returns:
      {attribute: `VolumeAttribute`} as JSON, see bootstrap.as_json.
    """
    table = pd.DataFrame(list(rows))
    dice = table.pivot(index="name", columns="region", values="dice")
    regions = list(table["region"].unique())
    dice = dice[regions].assign(**{MEAN: dice.mean(axis=1)})
    patient = table.groupby("name")["patient"].first().loc[dice.index].to_numpy()
    attributes = {
        name: _attribute(dice, patient, groups[name].loc[dice.index]) for name in groups
    }
    return bootstrap.as_json(attributes)


def _attribute(
    dice: pd.DataFrame, patient: np.ndarray, group: pd.Series
) -> VolumeAttribute:
    """The groups of one attribute, by each volume's: a row of `dice`."""
    column = pd.Categorical(group).remove_unused_categories()
    inside = column.codes[:, None] == np.arange(len(column.categories))  # [V, G]
    values = np.where(inside[..., None], dice.to_numpy(float)[:, None], np.nan)
    linear = over_rows(values, patient)  # [G, K + 1]
    intervals = shares(linear)
    people = linear.patients[:, -1].tolist()

    def judged(g: int) -> dict[str, Interval]:
        return {
            region: bootstrap.interval(
                bootstrap.at(intervals, (g, k)), "no volume", patients=people[g]
            )
            for k, region in enumerate(dice.columns)
        }

    names = [*map(str, column.categories)]
    return VolumeAttribute(
        {
            name: VolumeGroup(int(inside[:, g].sum()), people[g], judged(g))
            for g, name in enumerate(names)
        },
        _gap(linear, names),
    )


def _gap(linear: Linear, names: list[str]) -> DiceGap:
    """The largest difference of the mean Dice, of groups with MIN_PATIENTS patients."""
    mean, influence, people = (x[..., -1] for x in linear)
    pairs = [
        pair
        for pair in itertools.combinations(range(len(names)), 2)
        if min(people[g] for g in pair) >= MIN_PATIENTS
    ]
    if not pairs:
        return DiceGap(*[math.nan] * 3, None)
    higher, lower = max(pairs, key=lambda pair: abs(mean[pair[0]] - mean[pair[1]]))
    if mean[higher] < mean[lower]:
        higher, lower = lower, higher
    estimate, n = mean[higher] - mean[lower], min(people[higher], people[lower])
    missed = (1 - bootstrap.LEVEL) / len(pairs)  # 5 % for all pairs together.
    error = math.sqrt(((influence[:, higher] - influence[:, lower]) ** 2).sum())
    reach = stdtrit(n - 1, 1 - missed / 2) * error * math.sqrt(n / (n - 1))
    ends = float(estimate - reach), float(estimate + reach)
    return DiceGap(float(estimate), *ends, [names[higher], names[lower]])

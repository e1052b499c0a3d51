"""Are masks as good for women as for men, for small lesions as for large ones?

The Dice of each group of volumes, and how far groups are apart. Nothing is tested: each attribute has the
largest difference between two of its groups, with its interval.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medjax.evaluation import bootstrap, means
from medjax.evaluation.bootstrap import LEAST, Interval
from medjax.evaluation.means import Linear

SIZES = ("small", "medium", "large")  # Thirds of the volumes, by the first region.
MEAN = "mean"


class Group(NamedTuple):
    """One group; dice: by region, and MEAN, of each volume's mean over the regions."""

    volumes: int
    patients: int
    dice: dict[str, Interval]


class Gap(NamedTuple):
    """How much higher the mean Dice of one group is than that of another."""

    estimate: float
    # By Student's t with the freedom of the smaller group, clustered by patient and
    # corrected for the pairs that were compared (Bonferroni).
    low: float
    high: float
    # The groups, the better one first; None if no two have LEAST patients.
    between: list[str] | None


class Attribute(NamedTuple):
    """The groups of one attribute, and the largest difference between two of them."""

    groups: dict[str, Group]
    gap: Gap


def by_size(rows: Sequence[Mapping]) -> pd.Series:
    """{volume: the third that its true first region is in, or 'empty'}."""
    first = rows[0]["region"]
    true = pd.Series({r["name"]: r["true_ml"] for r in rows if r["region"] == first})
    some = true[true > 0]
    ends = some.quantile([1 / 3, 2 / 3]).tolist() if len(some) else [0, 0]
    ranges = (f"below {ends[0]:.3g} ml", f"to {ends[1]:.3g} ml", "above")
    names = [f"{size}, {text}" for size, text in zip(SIZES, ranges, strict=True)]
    place = np.searchsorted(ends, true, side="right")
    groups = pd.Categorical.from_codes(place, names).add_categories("empty")
    return pd.Series(groups, true.index).where(true > 0, "empty")


def summarise(rows: Sequence[Mapping], groups: pd.DataFrame) -> dict:
    """Every group's Dice with intervals, and the largest differences.

    Args:
      rows: see segmentation.Summary.
      groups: a row a volume, by its name; a column an attribute, of categories. A
        volume without a category is in no group.

    Returns:
      {attribute: `Attribute`} as JSON, see bootstrap.as_json.
    """
    table = pd.DataFrame(list(rows))
    dice = table.pivot(index="name", columns="region", values="dice")
    regions = list(table["region"].unique())
    dice = dice[regions].assign(**{MEAN: dice.mean(axis=1)})
    patient = table.groupby("name")["patient"].first().loc[dice.index].to_numpy()
    columns = {
        name: groups[name].loc[dice.index].astype("category").cat for name in groups
    }
    members = {
        (name, group): (column.codes == n).to_numpy()
        for name, column in columns.items()
        for n, group in enumerate(column.categories)
        if (column.codes == n).any()
    }
    if not members:
        return {}
    inside = np.stack([*members.values()], axis=1)[..., None]  # [V, G, 1]
    values = np.where(inside, dice.to_numpy(float)[:, None], np.nan)
    linear = means.over_rows(values, patient)  # [G, K + 1]
    intervals = means.shares(linear)
    people = linear.patients[:, -1].tolist()

    def group(g: int) -> Group:
        judged = {
            region: bootstrap.interval(
                bootstrap.at(intervals, (g, k)),
                "no volume",
                patients=people[g],
            )
            for k, region in enumerate(dice.columns)
        }
        return Group(int(inside[:, g].sum()), people[g], judged)

    attributes = {}
    for name in columns:
        here = [g for g, (attribute, _) in enumerate(members) if attribute == name]
        attributes[name] = Attribute(
            {str(list(members)[g][1]): group(g) for g in here},
            _gap(linear, here, [str(group) for _, group in members]),
        )
    return bootstrap.as_json(attributes)


def _gap(linear: Linear, here: list[int], names: list[str]) -> Gap:
    """The largest difference of the mean Dice, of groups with LEAST patients."""
    mean, influence, people = (x[..., -1] for x in linear)
    pairs = [
        pair
        for pair in itertools.combinations(here, 2)
        if min(people[g] for g in pair) >= LEAST
    ]
    if not pairs:
        return Gap(*[math.nan] * 3, None)
    one, other = max(pairs, key=lambda pair: abs(mean[pair[0]] - mean[pair[1]]))
    if mean[one] < mean[other]:
        one, other = other, one
    estimate, n = mean[one] - mean[other], min(people[one], people[other])
    missed = (1 - bootstrap.LEVEL) / len(pairs)  # 5 % for all pairs together.
    error = math.sqrt(((influence[:, one] - influence[:, other]) ** 2).sum())
    reach = stats.t.ppf(1 - missed / 2, n - 1) * error * math.sqrt(n / (n - 1))
    ends = float(estimate - reach), float(estimate + reach)
    return Gap(float(estimate), *ends, [names[one], names[other]])

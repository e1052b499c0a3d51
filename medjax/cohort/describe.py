"""Describes a data set: its table and its labels.

The results are dicts of plain and NumPy values, NaN where undefined, which
reports/explore_page.py writes as JSON. A label is positive from 0.5 on and unknown
where it is NaN. For multi-class data every class has its column, and an image is 1 in one of
them. Tables have a row per image and the columns of data/prepared.py; `tasks` names
T of them, the labels.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

CATEGORIES = ("view", "sex")
OLDEST = 100  # Years; the last bin of ages is open.


def describe(table, tasks, manifest=None, *, task="multilabel") -> dict[str, Any]:
    """Counts everything in the table, and on each side of the split, if there is one.

    `task` is 'multiclass' if an image has exactly one class, else 'multilabel'.
    """
    tasks = list(tasks)
    label = table[tasks].to_numpy(float)
    labelled = (~np.isnan(label)).any(axis=1)
    images = np.unique(table["patient"], return_counts=True)[1]
    return {
        "task": task,
        "tasks": tasks,
        "images": len(table),
        "patients": len(images),
        "columns": {name: _column(table[name]) for name in table.columns},
        "images_a_patient": _tally(images),
        "findings_an_image": _tally((label >= 0.5)[labelled].sum(axis=1)),
        "labels": {
            name: _label(values, table["patient"])
            for name, values in zip(tasks, label.T, strict=True)
        },
        # Classes exclude each other: no pairs.
        "together": together(label, tasks) if task == "multilabel" else None,
        "age": _ages(table),
        **{name: _categories(table[name]) for name in CATEGORIES},
        "by": _by(table, tasks),
        "sizes": _kinds(table[["width", "height"]]),
        "spacings": _kinds(table[["spacing_x", "spacing_y"]]),
        "sides": {} if manifest is None else _sides(table, manifest),
    }


def prevalence(label, patient) -> dict[str, float]:
    """The share of positive images and its 95 % interval, clustered by patient.

    Images of a patient resemble each other, so Wilson's interval is computed for the
    effective sample size. With one image per patient it is the ordinary interval.
    Without a known label of the [N] it is NaN.

    Source: Wilson, JASA 22 (1927) 209; the design effect: Kish, Survey Sampling
    (1965); both together: Dean & Pagano, J. Surv. Stat. Methodol. 3 (2015) 484.
    """
    known = ~np.isnan(label)
    if not known.any():
        return dict.fromkeys(("estimate", "low", "high"), math.nan)
    positive = label[known] >= 0.5
    _, unit = np.unique(np.asarray(patient)[known], return_inverse=True)
    share = positive.mean()
    size = float(unit.max() + 1)  # If all images agree, each patient counts once.
    if 0 < share < 1:
        residual = np.bincount(unit, positive - share)
        effect = (residual**2).sum() / (positive.size * share * (1 - share))
        size = positive.size / max(effect, 1.0)
    low, high = wilson_ends(share, NormalDist().inv_cdf(0.975) ** 2 / size)
    return {"estimate": share, "low": float(low), "high": float(high)}


def wilson_ends(share: np.ndarray, z2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of Wilson's interval; z2: z^2 / n, of the effective sample size n."""
    spread = np.maximum(share * (1 - share), 0)
    middle = (share + z2 / 2) / (1 + z2)
    reach = np.sqrt(z2 * (spread + z2 / 4)) / (1 + z2)
    low, high = (np.clip(end, 0, 1) for end in (middle - reach, middle + reach))
    return np.minimum(low, share), np.maximum(high, share)


def together(label, tasks) -> dict[str, Any]:
    """Counts which findings occur together, from [N, T] labels and T names.

    Returns:
      both: [T, T] images with the finding of the row and that of the column.
      share: [T, T], both / images with the row's finding that know the column's.
      pairs: {first, second, both, expected (if they were independent), surprise},
        by descending surprise: Pearson's residual, (both - expected) / sqrt(expected).
        It is for sorting, not a test.
    """
    known, positive = (~np.isnan(label)).astype(int), (label >= 0.5).astype(int)
    both, first, images = positive.T @ positive, positive.T @ known, known.T @ known
    share = np.divide(both, first, where=first > 0, out=np.full(both.shape, np.nan))
    i, j = np.nonzero(np.triu(first * first.T, 1))
    expected = first[i, j] * first[j, i] / images[i, j]
    pairs = pd.DataFrame(
        {
            "first": np.array(tasks, object)[i],
            "second": np.array(tasks, object)[j],
            "both": both[i, j],
            "expected": expected,
            "surprise": (both[i, j] - expected) / np.sqrt(expected),
        }
    ).sort_values("surprise", ascending=False, kind="stable")
    return {"both": both, "share": share, "pairs": pairs.to_dict("records")}


def confounders(table) -> dict[str, np.ndarray]:
    """Scores that may predict a finding without the image: {name: [N] float}.

    They are 'view PA' and so on for every category (of two only the rarer, as the other
    one mirrors it), 'age' and 'image size' (pixels of the original), without those that
    are equal for all images. A category is 1 for its images and 0 for the others: by the
    prevalence among the other patients every positive image would rank below the
    negatives of its category, and a useless one would have an AUROC near 0.
    """
    scores = {}
    for name in CATEGORIES:
        images = _categories(table[name])
        rarest_first = sorted(images, key=lambda category: (images[category], category))
        for category in rarest_first[: 1 if len(images) == 2 else len(images)]:
            here = _named(table[name]) == category
            scores[f"{name} {category}"] = here.to_numpy(float)
    scores["age"] = table["age"].to_numpy(float)
    scores["image size"] = (table["width"] * table["height"]).to_numpy(float)
    return {
        name: score
        for name, score in scores.items()
        if np.unique(score[~np.isnan(score)]).size > 1
    }


def pick(table, tasks, *, boxes) -> list[dict]:
    """Draws images to look at: two per finding, the rarest first, and four without.

    Images with `boxes`, of columns id, task, x0, y0, x1, y1, go first.

    Returns:
      One dict per image, all different: the table's metadata; `shows`, the finding
      that it was drawn for ('' for none); `positive`, `unknown`: names; `boxes`:
      [task, x0, y0, x1, y1] in pixels of the prepared image.
    """
    table = table.sample(frac=1, random_state=0).reset_index(drop=True)
    label = table[list(tasks)].to_numpy(float)
    boxed = table["id"].isin(boxes["id"]).to_numpy()
    positive = label >= 0.5
    free, drawn = np.ones(len(table), bool), []
    for t in [*np.argsort(positive.sum(axis=0), kind="stable"), None]:
        wanted = (label < 0.5).all(axis=1) if t is None else positive[:, t]
        rows = np.flatnonzero(wanted & free)
        rows = rows[np.argsort(~boxed[rows], kind="stable")]
        rows = rows[: 4 if t is None else 2]
        free[rows] = False
        drawn += [(row, "" if t is None else tasks[t]) for row in rows]
    rows = [row for row, _ in drawn]
    metadata = table.drop(columns=list(tasks)).iloc[rows].to_dict("records")
    names, columns = np.array(tasks, object), ["task", "x0", "y0", "x1", "y1"]
    return [
        {
            **facts,
            "shows": shows,
            "positive": names[positive[row]],
            "unknown": names[np.isnan(label[row])],
            "boxes": boxes.loc[boxes["id"] == facts["id"], columns].values.tolist(),
        }
        for facts, (row, shows) in zip(metadata, drawn, strict=True)
    ]


def _label(label: np.ndarray, patient: pd.Series) -> dict[str, Any]:
    """Counts of one label column, [N]; soft: strictly between 0 and 1."""
    positive, negative = label >= 0.5, label < 0.5
    return {
        "positives": positive.sum(),
        "negatives": negative.sum(),
        "unknown": np.isnan(label).sum(),
        "soft": ((label > 0) & (label < 1)).sum(),
        "patients": patient[positive].nunique(),
        "patients_without": patient[negative].nunique(),
        "prevalence": prevalence(label, patient),
    }


def _column(column: pd.Series) -> dict[str, Any]:
    """Summarises a column; an empty text counts as null."""
    values = column[column.notna() & (column != "")]
    kind, extent = "text", dict.fromkeys(("min", "median", "max"), math.nan)
    if pd.api.types.is_numeric_dtype(column):
        kind = "whole number" if (values % 1 == 0).all() else "number"
        extent = {name: float(getattr(values, name)()) for name in extent}
    return {
        "type": kind,
        "nulls": len(column) - len(values),
        "distinct": values.nunique(),
        "examples": values.unique()[:3].tolist(),
        **extent,
    }


def _tally(values) -> dict[str, np.ndarray]:
    value, count = np.unique(values, return_counts=True)
    return {"value": value, "count": count}


def _named(column: pd.Series) -> pd.Series:
    return column.replace("", "unknown")


def _categories(column: pd.Series) -> dict[str, int]:
    """Images of each category, the most frequent first."""
    return _named(column).value_counts().to_dict()


def _ages(table) -> dict[str, Any]:
    """Quantiles of the age by percent, and images of each decade by sex."""
    known = table["age"].notna()
    years, sex = table["age"][known], _named(table["sex"][known])
    start = np.arange(0, OLDEST + 1, 10)
    decade = (years.clip(0, OLDEST) // 10).astype(int)
    percents = (0, 5, 25, 50, 75, 95, 100) if known.any() else ()
    return {
        "quantiles": {p: np.percentile(years, p) for p in percents},
        "start": start,
        "images": {
            name: np.bincount(part, minlength=len(start))
            for name, part in decade.groupby(sex)
        },
    }


def _by(table, tasks) -> dict[str, dict]:
    """Each finding's prevalence by view and sex, and the quartiles of the age."""
    groups: dict[str, dict] = {
        name: {
            category: {
                t: prevalence(part[t].to_numpy(float), part["patient"]) for t in tasks
            }
            for category, part in table.groupby(_named(table[name]))
        }
        for name in CATEGORIES
    }

    def quartiles(ages):
        return np.percentile(ages, (25, 50, 75)) if len(ages) else None

    known = table[table["age"].notna()]
    groups["age"] = {
        task: {
            "with": quartiles(known["age"][known[task] >= 0.5]),
            "without": quartiles(known["age"][known[task] < 0.5]),
        }
        for task in tasks
    }
    return groups


def _kinds(pairs: pd.DataFrame) -> list[list]:
    """[first, second, images] of every pair of values, the most frequent first.

    Empty where no value is known.
    """
    if pairs.isna().all(axis=None):
        return []
    kinds = pairs.round(4).value_counts(dropna=False)
    return [[*pair, images] for pair, images in kinds.items()]


def _sides(table, manifest) -> dict[str, dict]:
    """Describes the patients on each side of the split."""
    split = table["id"].map(manifest.set_index("id")["split"])
    return {
        side: {
            "images": len(part),
            "patients": part["patient"].nunique(),
            "age": part["age"].median(),
            **{name: _categories(part[name]) for name in CATEGORIES},
        }
        for side, part in table.groupby(split)
    }

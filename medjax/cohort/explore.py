"""What the data look like, as plain facts that JSON can hold; undefined is None.

A label is positive from 0.5 on and unknown where it is NaN. In a multi-class data set
every class has its column, and an image is 1 in one of them.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from medjax.errors import InputError

CATEGORIES = ("view", "sex")
UNKNOWN = "unknown"
OLDEST = 100  # Years; the last bin of ages is open.


def describe(table, tasks, manifest=None, *, task="multilabel") -> dict[str, Any]:
    """Counts everything that the table says.

    Args:
      table: N images with the columns of data/schema.py.
      tasks: names of the label columns, T of them.
      manifest: who is on which side (splits.py), or None.
      task: 'multilabel', or 'multiclass' where an image is of one class.

    Returns:
      task, tasks; images, patients, their numbers.
      columns: {name: type, nulls, distinct, examples, min, median, max}.
      images_a_patient, findings_an_image: {value: [V], count: [V]}.
      labels: {task: positives, negatives, unknown, soft (images strictly between 0
        and 1), patients (with a positive image), patients_without (with a negative
        one), prevalence (see `prevalence`)}.
      together: see `together`; None for classes, which exclude each other.
      age: {quantiles: {percent: years}, start (of each decade), images: {sex: [V]}}.
      view, sex: {category: images}; '' is 'unknown'.
      by: {'view' or 'sex': {category: {task: prevalence}}}, and as 'age' {task:
        {with, without: [lower quartile, median, upper quartile]}}.
      sizes, spacings: [first, second, images] of each kind, the commonest first.
      sides: {split: images, patients, age (median), view, sex}; {} without manifest.

    Raises:
      InputError: no image, or another `task`.
    """
    if task not in ("multilabel", "multiclass"):
        raise InputError(f"task: {task!r}; give 'multilabel' or 'multiclass'")
    if table.empty:
        raise InputError("table: no image to describe; prepare the data first")
    tasks = list(tasks)
    label = table[tasks].to_numpy(float)
    patient = table["patient"].to_numpy()
    positive = label >= 0.5
    labelled = (~np.isnan(label)).any(axis=1)
    labels = {
        name: {
            "positives": int(positive[:, t].sum()),
            "negatives": int((label[:, t] < 0.5).sum()),
            "unknown": int(np.isnan(label[:, t]).sum()),
            "soft": int(((label[:, t] > 0) & (label[:, t] < 1)).sum()),
            "patients": int(np.unique(patient[positive[:, t]]).size),
            "patients_without": int(np.unique(patient[label[:, t] < 0.5]).size),
            "prevalence": prevalence(label[:, t], patient),
        }
        for t, name in enumerate(tasks)
    }
    images = np.unique(patient, return_counts=True)[1]
    return {
        "task": task,
        "tasks": tasks,
        "images": len(table),
        "patients": len(images),
        "columns": {name: _column(table[name]) for name in table.columns},
        "images_a_patient": _tally(images),
        "findings_an_image": _tally(positive[labelled].sum(axis=1)),
        "labels": labels,
        "together": together(label, tasks) if task == "multilabel" else None,
        "age": _ages(table),
        **{name: _categories(table[name]) for name in CATEGORIES},
        "by": _by(table, label, tasks),
        "sizes": _kinds(table, "width", "height"),
        "spacings": _kinds(table, "spacing_x", "spacing_y"),
        "sides": {} if manifest is None else _sides(table, manifest),
    }


def prevalence(label, patient) -> dict[str, float | None]:
    """The share of positive images and its 95 % interval, clustered by patient.

    Images of a patient resemble each other, so N of them are worth fewer independent
    ones: for so many this is Wilson's interval, and his own with one image a patient.

    Args:
      label: [N] float, positive from 0.5 on, NaN unknown.
      patient: [N].

    Returns:
      estimate, low, high; None without a known label.

    Source: Wilson, JASA 22 (1927) 209; the design effect: Kish, Survey Sampling
    (1965); both together: Dean & Pagano, J. Surv. Stat. Methodol. 3 (2015) 484.
    """
    known = ~np.isnan(label)
    if not known.any():
        return dict.fromkeys(("estimate", "low", "high"))
    positive = label[known] >= 0.5
    _, unit = np.unique(np.asarray(patient)[known], return_inverse=True)
    share = positive.mean()
    worth = float(unit.max() + 1)  # Where all images agree, so may those of a patient.
    if 0 < share < 1:
        residual = np.bincount(unit, positive - share)
        effect = (residual**2).sum() / (positive.size * share * (1 - share))
        worth = positive.size / max(effect, 1.0)
    z = NormalDist().inv_cdf(0.975)
    centre = share + z**2 / (2 * worth)
    half = z * math.sqrt(share * (1 - share) / worth + (z / (2 * worth)) ** 2)
    low, high = ((centre + s * half) / (1 + z**2 / worth) for s in (-1, 1))
    return {"estimate": float(share), "low": max(low, 0.0), "high": min(high, 1.0)}


def together(label, tasks) -> dict[str, list]:
    """Which findings come together.

    Args:
      label: [N, T].
      tasks: T names.

    Returns:
      both: [T, T] images that show the finding of the row and of the column.
      share: [T, T], both / images of the row's finding that know the column's: how
        often who has the one has the other; None where there is none.
      pairs: {first, second, both, expected (if they were independent), surprise},
        from the pair most above its expectation to the one most below. Surprise is
        Pearson's residual, (both - expected) / sqrt(expected): to sort by, no test.
    """
    known, positive = (~np.isnan(label)).astype(int), (label >= 0.5).astype(int)
    both, first, images = positive.T @ positive, positive.T @ known, known.T @ known
    pairs = []
    for i, j in zip(*np.triu_indices(len(tasks), 1), strict=True):
        if first[i, j] and first[j, i]:
            expected = first[i, j] * first[j, i] / images[i, j]
            pairs.append(
                {
                    "first": tasks[i],
                    "second": tasks[j],
                    "both": int(both[i, j]),
                    "expected": float(expected),
                    "surprise": float((both[i, j] - expected) / math.sqrt(expected)),
                }
            )
    return {
        "both": both.tolist(),
        "share": [
            [b / n if n else None for b, n in zip(*row, strict=True)]
            for row in zip(both.tolist(), first.tolist(), strict=True)
        ],
        "pairs": sorted(pairs, key=lambda pair: -pair["surprise"]),
    }


def confounders(table) -> dict[str, np.ndarray]:
    """What could give a finding away without the image, one score an image each.

    Each is scored against each finding by its AUROC. A category is 1 for its images
    and 0 for the others, and nothing is fitted to the labels: encoding it by the
    prevalence among the other patients would rank every positive image below the
    negatives of its category, so that a useless category had an AUROC near 0.

    Returns:
      {name: [N] float, NaN where unknown}: 'view PA' and so on for every category
      (of two only the rarer: the other is its mirror image), 'age', 'image size'
      (pixels of the original). Left out is what is the same for every image.
    """
    scores = {}
    for name in CATEGORIES:
        images = _categories(table[name])
        rarest_first = sorted(images, key=lambda category: (images[category], category))
        for category in rarest_first[: 1 if len(images) == 2 else len(images)]:
            here = table[name].replace("", UNKNOWN) == category
            scores[f"{name} {category}"] = here.to_numpy(float)
    scores["age"] = table["age"].to_numpy(float)
    scores["image size"] = (table["width"] * table["height"]).to_numpy(float)
    return {
        name: score
        for name, score in scores.items()
        if np.unique(score[~np.isnan(score)]).size > 1
    }


def _column(column: pd.Series) -> dict[str, Any]:
    """What a column holds; an empty text is a null."""
    values = column[column.notna() & (column != "")]
    number = pd.api.types.is_numeric_dtype(column)
    whole = number and (values % 1 == 0).all()
    facts = {
        "type": ("whole number" if whole else "number") if number else "text",
        "nulls": len(column) - len(values),
        "distinct": int(values.nunique()),
        "examples": [_plain(value) for value in values.unique()[:3]],
    }
    for name in ("min", "median", "max"):
        seen = number and len(values)
        facts[name] = float(getattr(values, name)()) if seen else None
    return facts


def _tally(values) -> dict[str, list[int]]:
    value, count = np.unique(values, return_counts=True)
    return {"value": value.tolist(), "count": count.tolist()}


def _categories(column: pd.Series) -> dict[str, int]:
    """Images of each category, the commonest first."""
    counts = column.replace("", UNKNOWN).value_counts()
    return {str(name): int(count) for name, count in counts.items()}


def _ages(table) -> dict[str, Any]:
    known = table["age"].notna()
    years, sex = table["age"][known], table["sex"][known].replace("", UNKNOWN)
    start = list(range(0, OLDEST + 1, 10))
    decade = (years.clip(0, OLDEST) // 10).astype(int)
    percents = (0, 5, 25, 50, 75, 95, 100) if known.any() else ()
    return {
        "quantiles": {str(p): float(np.percentile(years, p)) for p in percents},
        "start": start,
        "images": {
            str(name): np.bincount(part, minlength=len(start)).tolist()
            for name, part in decade.groupby(sex)
        },
    }


def _by(table, label, tasks) -> dict[str, dict]:
    """Each finding by view, sex and age."""
    out: dict[str, dict] = {}
    for name in CATEGORIES:
        column = table[name].replace("", UNKNOWN)
        out[name] = {
            category: {
                task: prevalence(label[rows, t], table["patient"][rows])
                for t, task in enumerate(tasks)
            }
            for category in _categories(table[name])
            for rows in [(column == category).to_numpy()]
        }
    age = table["age"].to_numpy(float)

    def quartiles(rows):
        rows = rows & ~np.isnan(age)
        return np.percentile(age[rows], (25, 50, 75)).tolist() if rows.any() else None

    out["age"] = {
        task: {"with": quartiles(y >= 0.5), "without": quartiles(y < 0.5)}
        for task, y in zip(tasks, label.T, strict=True)
    }
    return out


def _kinds(table, first: str, second: str) -> list[list]:
    """Every pair of values and its images, the commonest first; NaN pairs too."""
    pairs = table[[first, second]].round(4)
    kinds = pairs.value_counts(dropna=False)
    return [[_plain(a), _plain(b), int(n)] for (a, b), n in kinds.items()]


def _sides(table, manifest) -> dict[str, dict]:
    """Who is on each side of the split."""
    split = table["id"].map(manifest.set_index("id")["split"])
    return {
        str(side): {
            "images": len(part),
            "patients": int(part["patient"].nunique()),
            "age": _plain(part["age"].median()),
            **{name: _categories(part[name]) for name in CATEGORIES},
        }
        for side, part in table.groupby(split)
    }


def _plain(value: Any) -> Any:
    """A numpy scalar as JSON's own; NaN is None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value

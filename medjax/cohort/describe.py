"""What the data look like, as plain facts that JSON can hold; undefined is None.

A label is positive from 0.5 on and unknown where it is NaN. In a multi-class data set
every class has its column, and an image is 1 in one of them.

Which images to look at, and what all pixels look like, raw and prepared.

Grey levels are whole numbers, so a histogram of 256 bins holds all that a mean, a
deviation or a percentile needs, exactly, for any number of images.
"""

import heapq
import math
from collections.abc import Callable, Iterable
from statistics import NormalDist
from typing import Any, NamedTuple

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


LEVELS = 256
PERCENTS = (1, 5, 25, 50, 75, 95, 99)
EXTREMES = 4  # How many of the darkest, brightest and flattest images are named.
FIRST, LAST, BINS = -5.0, 5.0, 50  # Of the prepared intensities' histogram.


class Moments(NamedTuple):
    """Count, mean and sum of squared distances from the mean, float64 each."""

    count: float | np.ndarray
    mean: float | np.ndarray
    m2: float | np.ndarray


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both samples together.

    A running sum of squares would lose its digits once the mean is far from 0 or
    the pixels are billions.

    Source: Chan, Golub & LeVeque, COMPSTAT (1982) 30, eq. 2.1.
    """
    count = a.count + b.count
    shift = b.mean - a.mean
    mean = a.mean + shift * b.count / count
    return Moments(count, mean, a.m2 + b.m2 + shift**2 * a.count * b.count / count)


def statistics(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    prepare: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
    """Reads every image once.

    Args:
      batches: (id [B], image [B, H, W, C] or [B, D, H, W, C] uint8); a row of
        negative id is padding and not counted. Batches may differ in size.
      prepare: [B, ...] float32 in [0, 1] -> the same shape, as training sees it
        before augmentation.

    Returns:
      images; before and after the preparation, a list with one entry a channel:
        histogram (before: of the 256 grey levels; after: of BINS from FIRST to LAST,
        where the ends take what lies beyond), mean, std, min, max; before, all in
        grey levels, also percentiles {percent: level}. The deviation is that of
        the whole set, divided by the number of pixels.
      bins: {start, width} of the histogram after.
      each: {mean, std: {start: left edges, width, images}}, of an image's own mean
        and deviation over all its pixels, in grey levels.
      darkest, brightest, flattest: [id, mean, std] of a few, most extreme first.
    """
    histogram: Any = 0
    after = None
    rows: list[tuple[int, float, float]] = []
    for ids, image in batches:
        real = np.asarray(ids) >= 0
        ready = np.asarray(prepare(image.astype(np.float32) / 255))[real]
        image, ids = image[real], np.asarray(ids)[real]
        if not len(ids):
            continue
        own = np.stack([_levels(one) for one in image])  # [B, C, 256]
        histogram = histogram + own.sum(axis=0)
        _, mean, std = _summary(own.sum(axis=1))
        rows += zip(ids.tolist(), mean.tolist(), std.tolist(), strict=True)
        for one in ready:  # One by one they stay in the cache: twice as fast.
            after = _add(after, one.reshape(-1, one.shape[-1]).T)
    if after is None:
        return {"images": 0, "before": [], "after": []}
    _, mean, std = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "images": len(rows),
        "before": [_before(counts) for counts in histogram],
        "after": _after(after),
        "bins": {"start": FIRST, "width": (LAST - FIRST) / BINS},
        "each": {"mean": _spread(mean), "std": _spread(std)},
        "darkest": _first(rows, lambda row: row[1]),
        "brightest": _first(rows, lambda row: -row[1]),
        "flattest": _first(rows, lambda row: row[2]),
    }


def sample(table, tasks, *, boxes=None, seed=0, each=2, without=4) -> list[dict]:
    """Draws images to look at: `each` a finding, the rarest first, and some without.

    Args:
      table: N images with the columns of data/schema.py.
      tasks: names of the label columns.
      boxes: columns id, task, x0, y0, x1, y1, or None; images with boxes go first.
      seed: of the draw.

    Returns:
      One dict an image, none twice: the table's metadata; `shows`, the finding that it
      was drawn for ('' for none); `positive`, `unknown`: names; `boxes`: [task, x0,
      y0, x1, y1] in pixels of the prepared image.
    """
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    label = table[list(tasks)].to_numpy(float)
    places: dict[int, list] = {}
    if boxes is not None:
        columns = ["task", "x0", "y0", "x1", "y1"]
        for id, *place in zip(boxes["id"], *map(boxes.get, columns), strict=True):
            places.setdefault(id, []).append(place)
    boxed = table["id"].isin(places).to_numpy()
    positive = label >= 0.5
    free, drawn = np.ones(len(table), bool), []
    for t in [*np.argsort(positive.sum(axis=0), kind="stable"), None]:
        wanted = (label < 0.5).all(axis=1) if t is None else positive[:, t]
        rows = np.flatnonzero(wanted & free)
        rows = rows[np.argsort(~boxed[rows], kind="stable")]
        rows = rows[: without if t is None else each]
        free[rows] = False
        drawn += [(row, "" if t is None else tasks[t]) for row in rows]
    metadata = table.drop(columns=list(tasks)).astype(object)
    metadata = metadata.where(metadata.notna(), None).to_dict("records")
    names = np.array(tasks, object)
    return [
        {
            **metadata[row],
            "shows": shows,
            "positive": names[positive[row]].tolist(),
            "unknown": names[np.isnan(label[row])].tolist(),
            "boxes": places.get(metadata[row]["id"], []),
        }
        for row, shows in drawn
    ]


def _levels(image: np.ndarray) -> np.ndarray:
    """Counts the grey levels of one image, [C, 256] int64."""
    channels = image.reshape(-1, image.shape[-1]).T
    return np.stack([np.bincount(pixels, minlength=LEVELS) for pixels in channels])


def _summary(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and deviation of [..., 256] counts, in grey levels."""
    level = np.arange(LEVELS)
    count = histogram.sum(axis=-1)
    mean = histogram @ level / count
    # From whole numbers, exact to the last division: their sum stays below 2^63 up
    # to 10^14 pixels. Centred on the mean, so that no digits cancel.
    distance = (level - mean[..., None]) ** 2
    return count, mean, np.sqrt((histogram * distance).sum(axis=-1) / count)


def _before(counts: np.ndarray) -> dict[str, Any]:
    count, mean, std = _summary(counts)
    seen = np.flatnonzero(counts)
    reached = np.cumsum(counts)
    return {
        "histogram": counts.tolist(),
        "mean": float(mean),
        "std": float(std),
        "min": int(seen[0]),
        "max": int(seen[-1]),
        "percentiles": {
            str(p): int(np.searchsorted(reached, count * p / 100)) for p in PERCENTS
        },
    }


def _add(total, pixels: np.ndarray):
    """Adds prepared pixels [C, P] to (moments, min, max, histogram), [C] each."""
    wide = pixels.astype(np.float64)
    mean = wide.mean(axis=1)
    m2 = ((wide - mean[:, None]) ** 2).sum(axis=1)
    here = Moments(float(pixels.shape[1]), mean, m2)
    place = ((wide - FIRST) * (BINS / (LAST - FIRST))).clip(0, BINS - 1).astype(int)
    counts = np.stack([np.bincount(row, minlength=BINS) for row in place])
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    if total is None:
        return here, low, high, counts
    moments, least, most, histogram = total
    least, most = np.minimum(least, low), np.maximum(most, high)
    return merge(moments, here), least, most, histogram + counts


def _after(total) -> list[dict[str, Any]]:
    moments, low, high, histogram = total
    std = np.sqrt(moments.m2 / moments.count)
    columns = (moments.mean, std, low, high)
    return [
        dict(
            zip(("mean", "std", "min", "max"), map(float, values), strict=True),
            histogram=counts.tolist(),
        )
        for *values, counts in zip(*columns, histogram, strict=True)
    ]


def _spread(values: np.ndarray, bins: int = 40) -> dict[str, Any]:
    """A histogram of one number an image."""
    counts, edges = np.histogram(values, bins)
    return {
        "start": edges[:-1].tolist(),
        "width": float(edges[1] - edges[0]),
        "images": counts.tolist(),
    }


def _first(rows, key) -> list[list]:
    return [list(row) for row in heapq.nsmallest(EXTREMES, rows, key)]

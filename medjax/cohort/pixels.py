"""Which images to look at, and what all pixels look like, raw and prepared.

Grey levels are whole numbers, so a histogram of 256 bins holds all that a mean, a
deviation or a percentile needs, exactly, for any number of images.
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

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

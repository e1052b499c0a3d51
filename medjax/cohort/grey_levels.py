"""Describes the grey levels of a data set, before and after preparation.

The results are dicts of plain and NumPy values, which reports/explore.py writes as JSON.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

LEVELS = 256  # Grey levels that are counted.
PERCENTS = (1, 5, 25, 50, 75, 95, 99)
FIRST, LAST, BINS = -5.0, 5.0, 50  # Of the histogram of prepared intensities.
SPREAD = 40  # Bins of a histogram over images, at most.
DIM = 32  # Grey levels; an image that spans fewer is warned of.


def is_dim(image: np.ndarray) -> bool:
    """Whether an image uses few of its type's levels: 12 bits kept in 8 of 16, say."""
    return bool(np.ptp(image) < DIM)


def dim(count: int, bits: int) -> str:
    """The warning of so many dim images, whose pixels have so many bits; '' of none."""
    if not count:
        return ""
    deeper = "set data.bits=16, or " if bits == 8 else ""
    return (
        f"{count} images keep fewer than {DIM} levels of grey in {bits} bits: {deeper}"
        "stretch them to their range before"
    )


def statistics(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    prepare: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
    """Reads every image once, and summarises its pixels before and after preparation.

    Args:
      batches: (id [B], image [B, H, W, C] or [B, D, H, W, C] uint8 or uint16); a row
        with a negative id is padding.
      prepare: [B, ...] float32 in [0, 1] -> the same shape, as training sees it
        before augmentation.

    Returns:
      images: their number.
      before, after: a dict per channel: of grey levels, and of prepared pixels.
      bins: {start, width} of the latter's histogram, whose ends are open.
      each: {mean, std: a histogram over images of their mean and deviation}.
      dim: a warning of images that are, or ''.
      darkest, brightest, flattest: [id, mean, std], the most extreme first.
    """
    levels: Any = 0
    dark, bits = 0, 8
    rows: list[tuple[int, float, float]] = []
    moments, counts = [], []
    for ids, image in batches:
        dark += sum(map(is_dim, image[ids >= 0]))
        bits = 8 * image.itemsize
        image = image.astype(np.float32) / np.iinfo(image.dtype).max
        prepared = np.asarray(prepare(image))
        grey = np.rint(image * (LEVELS - 1)).astype(np.uint8)
        # One image at a time stays in the cache: twice as fast.
        for id, pixels, ready in zip(ids.tolist(), grey, prepared, strict=True):
            if id < 0:
                continue
            channels = pixels.reshape(-1, pixels.shape[-1]).T
            histogram = np.stack([np.bincount(c, minlength=LEVELS) for c in channels])
            levels = levels + histogram
            rows.append((id, *_mean_and_deviation(histogram.sum(axis=0))))
            ready = ready.reshape(-1, ready.shape[-1]).T.astype(np.float64)  # [C, P]
            moments.append([f(ready, 1) for f in (np.mean, np.var, np.min, np.max)])
            place = (ready - FIRST) * (BINS / (LAST - FIRST))
            place = place.clip(0, BINS - 1).astype(int)
            counts.append([np.bincount(channel, minlength=BINS) for channel in place])
    if not rows:
        return {"images": 0, "before": [], "after": []}
    _, mean, std = (np.array(column) for column in zip(*rows, strict=True))
    extremes = {"darkest": mean, "brightest": -mean, "flattest": std}
    return {
        "images": len(rows),
        "dim": dim(dark, bits),
        "before": [_before(histogram) for histogram in levels],
        "after": _after(np.array(moments), np.array(counts)),
        "bins": {"start": FIRST, "width": (LAST - FIRST) / BINS},
        "each": {"mean": _spread(mean), "std": _spread(std)},
    } | {
        name: [rows[i] for i in np.argsort(key, kind="stable")[:4]]
        for name, key in extremes.items()
    }


def _mean_and_deviation(histogram: np.ndarray) -> tuple[float, float]:
    """Of [256] counts, in grey levels."""
    level = np.arange(LEVELS)
    count = histogram.sum()
    mean = histogram @ level / count
    return mean, np.sqrt(histogram @ (level - mean) ** 2 / count)


def _before(histogram: np.ndarray) -> dict[str, Any]:
    """One channel's [256] counts, in grey levels."""
    mean, std = _mean_and_deviation(histogram)
    present, reached = np.flatnonzero(histogram), np.cumsum(histogram)
    return {
        "histogram": histogram,
        "mean": mean,
        "std": std,
        "min": present[0],
        "max": present[-1],
        "percentiles": {
            p: np.searchsorted(reached, reached[-1] * p / 100) for p in PERCENTS
        },
    }


def _after(moments: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """Per channel, of each image's mean, variance, minimum and maximum, [N, 4, C].

    `counts` are its histogram, [N, C, BINS].
    """
    pixels = counts.sum(axis=2)  # [N, C]
    mean, variance, low, high = moments.swapaxes(0, 1)
    centre = np.average(mean, axis=0, weights=pixels)
    # Centred on the mean: a sum of squares would cancel digits.
    spread = np.average(variance + (mean - centre) ** 2, axis=0, weights=pixels)
    columns = {
        "mean": centre,
        "std": np.sqrt(spread),
        "min": low.min(axis=0),
        "max": high.max(axis=0),
        "histogram": counts.sum(axis=0),
    }
    return [{k: v[c] for k, v in columns.items()} for c in range(len(centre))]


def _spread(values: np.ndarray) -> dict[str, Any]:
    """A histogram of one number per image; of few images it has few bins."""
    bins = int(np.clip(np.sqrt(len(values)), 1, SPREAD))
    counts, edges = np.histogram(values, bins)
    return {"start": edges[:-1], "width": edges[1] - edges[0], "images": counts}

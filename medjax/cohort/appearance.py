"""Describes a data set's grey levels, and warns of new images that are unlike them.

`statistics` are dicts of plain and NumPy values, which reports/explore_page.py writes
as JSON. `reference` and `warning` tell novelty by simple numbers.

What is measured of an image, and how far beyond the range of the training images it may
lie (by SLACK, or by SHARE of that range if this is more):

  brightness   mean grey: a wrong window, or a raw detector's values
  spread       its 99th minus its 1st percentile: an image that is nearly constant
  black, white share of the pixels within 2 % of either end: saturated, or mostly border
  likeness     correlation with the average training image, 16 x 16: negative for an
               inverted film, about 0 for another body part or a photograph; only a low
               one is warned of
  colour       mean difference of the strongest and the weakest channel: a photograph
  aspect       logarithm of width over height: a strip, or a page of several films

The range is from the 0.5th to the 99.5th percentile of the training images. Share of
images warned of, measured on 700 films of ChestX-ray14, 96 x 96, by five-fold
cross-validation over patients:

    films of other patients                           0.9 %
    the same, inverted                              100 %     (99.6 % as inverted)
    with 12 bits in a file of 16                    100 %
    2.5 times as bright                             100 %
    upside down, or turned by a right angle         74 %, 22 %
    150 crops of 3 colour photographs               100 %
    these in grey                                    74 %
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np

GREYS = 256  # Grey levels that are counted.
PERCENTS = (1, 5, 25, 50, 75, 95, 99)
FIRST, LAST, BINS = -5.0, 5.0, 50  # Of the histogram of prepared intensities.
MAX_HISTOGRAM_BINS = 40  # Bins of a histogram over images, at most.
DIM = 8  # An image that spans less than such a part of its type's levels is warned of.


def is_dim(image: np.ndarray) -> bool:
    """Whether an image spans few of its type's levels: 12 bits in a file of 16, say."""
    return bool(np.ptp(image) < 2 ** (8 * image.itemsize) // DIM)


def few(bits: int) -> str:
    """Says how many grey levels a dim image keeps, see `is_dim`."""
    return f"fewer than {2**bits // DIM} levels of grey"


def dim(count: int, bits: int) -> str:
    """The warning of so many dim images, whose pixels have so many bits; '' of none."""
    if not count:
        return ""
    deeper = "set data.bits=16, or " if bits == 8 else ""
    return (
        f"{count} images keep {few(bits)} in {bits} bits: {deeper}stretch them to their "
        "range before, as augmentation changes grey by shares of all levels"
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
        grey = np.rint(image * (GREYS - 1)).astype(np.uint8)
        # One image at a time stays in the cache: twice as fast.
        for id, pixels, ready in zip(ids.tolist(), grey, prepared, strict=True):
            if id < 0:
                continue
            channels = pixels.reshape(-1, pixels.shape[-1]).T
            histogram = np.stack([np.bincount(c, minlength=GREYS) for c in channels])
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
    """Computes mean and deviation from [256] counts, in grey levels."""
    level = np.arange(GREYS)
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
    bins = int(np.clip(np.sqrt(len(values)), 1, MAX_HISTOGRAM_BINS))
    counts, edges = np.histogram(values, bins)
    return {"start": edges[:-1], "width": edges[1] - edges[0], "images": counts}


SLACK = {
    "brightness": 0.05,
    "spread": 0.1,
    "black": 0.1,
    "white": 0.1,
    "likeness": 0.1,
    "colour": 0.05,
    "aspect": math.log(1.5),
}
SHARE = 0.1
QUANTILES = (0.005, 0.05, 0.5, 0.95, 0.995)
SMALL = 16  # Pixels a side of the average image.
END = 0.02


def reference(images: Iterable[np.ndarray], aspect: Sequence[float]) -> dict:
    """The statistics of the training images, as plain data.

    Args:
      images: N of [S, S, C] uint8, as the model reads them.
      aspect: width over height of the originals; NaN where unknown.

    Returns:
      films: N; average: [16, 16], of standardised images; statistics: {name: {quantile:
      value}}.
    """
    images = list(images)
    average = np.mean([_thumbnail(image) for image in images], axis=0)
    rows = [
        {**greys(image), "likeness": likeness(image, average), "colour": colour(image)}
        for image in images
    ]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    known = np.asarray(aspect, float)
    columns["aspect"] = np.log(known[known > 0])
    return {
        "films": len(images),
        "average": np.round(average, 4).tolist(),
        "statistics": {
            name: {str(q): float(np.quantile(values, q)) for q in QUANTILES}
            for name, values in columns.items()
            if values.size
        },
    }


def warning(pixels: np.ndarray, image: np.ndarray, known: dict) -> str:
    """Which statistics of an image are unlike the training images'; '' if none is.

    Args:
      pixels: [H, W] or [H, W, 3] float in [0, 1], as its file has it.
      image: [S, S, C] uint8, as the model reads it.
      known: of `reference`.
    """
    height, width = pixels.shape[:2]
    values = {
        **greys(image),
        "likeness": likeness(image, np.array(known["average"])),
        "colour": colour(pixels),
        "aspect": math.log(width / height),
    }
    ends = {name: limits(q, SLACK[name]) for name, q in known["statistics"].items()}
    low, _ = ends["likeness"]
    ends["likeness"] = (low, 1)  # No image is too much alike.
    warnings = []
    for name, (low, high) in ends.items():
        value = values[name]
        if name == "likeness" and value < low <= -value:
            warnings.append(f"as if inverted, black for white (likeness {value:.2f})")
        elif not low <= value <= high:
            end, side = (low, "below") if value < low else (high, "above")
            shown = np.exp([value, end]) if name == "aspect" else (value, end)
            warnings.append(f"{name} {shown[0]:.2f}, {side} {shown[1]:.2f}")
    if min(height, width) < image.shape[0]:
        warnings.append(
            f"{width} x {height} pixels, and the model reads {image.shape[0]}"
        )
    return "; ".join(warnings)


def limits(quantiles: dict[str, float], slack: float) -> tuple[float, float]:
    """The range of a statistic beyond which an image is warned of."""
    low, *_, high = quantiles.values()
    margin = max(slack, SHARE * (high - low))
    return low - margin, high + margin


def likeness(image: np.ndarray, average: np.ndarray) -> float:
    """Correlation of [S, S, C] with the average image, in [-1, 1]; 0 if one is flat."""
    sizes = np.linalg.norm(average)
    return float((_thumbnail(image) * average).mean() * SMALL / sizes) if sizes else 0.0


def colour(pixels: np.ndarray) -> float:
    """Mean over the pixels of the strongest minus the weakest channel, in [0, 1]."""
    if pixels.ndim == 2 or pixels.shape[-1] != 3:
        return 0.0
    step = max(1, min(pixels.shape[:2]) // 256)  # Colour needs no detail.
    some = pixels[::step, ::step]
    white = 255 if pixels.dtype == np.uint8 else 1
    return float(np.mean(some.max(axis=-1) - some.min(axis=-1)) / white)


def greys(image: np.ndarray) -> dict[str, float]:
    """Statistics of the grey levels of [S, S, C] uint8, all channels together."""
    counts = np.bincount(image.ravel(), minlength=256)
    reached = np.cumsum(counts) / image.size
    low, high = np.searchsorted(reached, (0.01, 0.99))
    level = np.arange(256) / 255
    return {
        "brightness": float(counts @ level / image.size),
        "spread": float(high - low) / 255,
        "black": float(counts[level <= END].sum() / image.size),
        "white": float(counts[level >= 1 - END].sum() / image.size),
    }


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """[16, 16] with mean 0 and standard deviation 1, or 0 if the image is constant."""
    grey = image.mean(axis=-1, dtype=np.float32)
    small = cv2.resize(grey, (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    small = small - small.mean()
    spread = small.std()
    return small / spread if spread > 1e-3 else np.zeros_like(small)

"""Novelty: is an image unlike the training images? Simple statistics tell.

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
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

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

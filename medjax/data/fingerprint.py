"""Measures a segmentation data set: sizes, intensities, regions.

One scan is in memory at a time; only numbers are kept. propose.py derives a network
from them.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, for what to measure.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from medjax.data.scan import Scan, box
from medjax.errors import InputError

PERCENTILES = (0.5, 50.0, 99.5)
SAMPLES = 2000  # Voxels of a scan that enter the percentiles: this bounds the memory.


class Fingerprint(NamedTuple):
    """N scans with C sequences and K regions.

    sequences, regions: their names.
    shape: [N, 3] voxels.
    box: [N, 3] voxels of the smallest box around all nonzero voxels.
    spacing: [N, 3] mm.
    present: [N, C] whether the sequence has a nonzero voxel.
    inside: [C, 5] mean, standard deviation and PERCENTILES of the voxels that are
      nonzero in any sequence, over all scans; NaN if there are none.
    foreground: [C, 5] the same within the regions.
    volume: [N, K] ml of each region; NaN in a scan without a label.
    lesions: [N, K] components connected by faces, edges or corners; NaN likewise.
    """

    sequences: tuple[str, ...]
    regions: tuple[str, ...]
    shape: np.ndarray
    box: np.ndarray
    spacing: np.ndarray
    present: np.ndarray
    inside: np.ndarray
    foreground: np.ndarray
    volume: np.ndarray
    lesions: np.ndarray


def measure(
    scans: Iterable[Scan], *, sequences: Sequence[str], regions: Sequence[str]
) -> Fingerprint:
    """Measures each scan, one after the other.

    Args:
      scans: prepared, or in their files' units; image, label and spacing are used.
      sequences, regions: names of the C channels and K regions.

    Raises:
      InputError: there is no scan, or one with another number of sequences or regions,
        or with intensities or a spacing that are not finite.
    """
    rows, inside, foreground = [], _Pool(), _Pool()
    for number, scan in enumerate(scans):
        image = np.asarray(scan.image)
        spacing = np.asarray(scan.spacing, float)
        label = None if scan.label is None else np.asarray(scan.label) > 0
        _check(number, image, label, spacing, len(sequences), len(regions))
        filled = image != 0
        mask = filled.any(axis=-1)
        inside.add(image, mask)
        volume = lesions = np.full(len(regions), np.nan)
        if label is not None:
            foreground.add(image, label.any(axis=-1))
            volume = label.sum((0, 1, 2)) * (np.prod(spacing) / 1000)
            touching = np.ones((3, 3, 3))
            masks = np.moveaxis(label, -1, 0)
            lesions = [ndimage.label(mask, touching)[1] for mask in masks]
        present = filled.any(axis=(0, 1, 2))
        sizes = mask.shape
        if mask.any():
            sizes = [side.stop - side.start for side in box(mask, np.zeros(3))]
        rows.append((mask.shape, sizes, spacing, present, volume, lesions))
    if not rows:
        raise InputError("scans: there is none; give one or more")
    shape, sizes, spacing, present, volume, lesions = map(np.array, zip(*rows))
    return Fingerprint(
        tuple(sequences),
        tuple(regions),
        shape,
        sizes,
        spacing,
        present,
        inside.summary(len(sequences)),
        foreground.summary(len(sequences)),
        volume.astype(float),
        lesions.astype(float),
    )


def describe(data: Fingerprint) -> list[str]:
    """Lines for the terminal."""
    shape, spacing = (np.median(x, axis=0) for x in (data.shape, data.spacing))
    finest, coarsest = data.spacing.min(axis=0), data.spacing.max(axis=0)
    line = f"{len(data.shape)} scans, median {by(shape)} voxels of {by(spacing)} mm"
    lines = [line + f" (from {by(finest)} to {by(coarsest)})"]
    for c, name in enumerate(data.sequences):
        mean, std, low, _, high = data.inside[c]
        line = f"  {name}: in {data.present[:, c].sum()} scans, "
        line += f"{mean:.4g} +- {std:.4g}, 99 % from {low:.4g} to {high:.4g}"
        if np.isfinite(data.foreground[c]).all():
            mean, std, *_ = data.foreground[c]
            line += f"; in the regions {mean:.4g} +- {std:.4g}"
        lines.append(line)
    labelled = np.isfinite(data.volume).all(axis=1)
    for k, name in enumerate(data.regions):
        shown = labelled & (data.volume[:, k] > 0)
        line = f"  {name}: in {shown.sum()} of {labelled.sum()} labelled scans"
        if shown.any():
            low, median, high = np.percentile(data.volume[shown, k], (0, 50, 100))
            line += f", {median:.3g} ml ({low:.3g} to {high:.3g}), components: "
            line += f"{np.median(data.lesions[shown, k]):.3g}"
        lines.append(line)
    return lines


def as_json(record: NamedTuple) -> dict[str, Any]:
    """Plain values for a JSON file; NaN is None."""

    def plain(value):
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: plain(value) for name, value in record._asdict().items()}


class _Pool:
    """Moments of all voxels and a bounded sample of them, scan by scan."""

    def __init__(self):
        self.moments, self.samples = [], []

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        values = image[mask]
        if len(values):
            mean = values.mean(axis=0, dtype=float)
            variance = ((values - mean) ** 2).mean(axis=0)
            self.moments.append((np.full_like(mean, len(values)), mean, variance))
            at = np.linspace(0, len(values) - 1, min(len(values), SAMPLES)).astype(int)
            self.samples.append(values[at].astype(np.float32))

    def summary(self, channels: int) -> np.ndarray:
        if not self.moments:
            return np.full((channels, 2 + len(PERCENTILES)), np.nan)
        count, mean, variance = np.array(self.moments).swapaxes(0, 1)
        total = np.average(mean, axis=0, weights=count)
        spread = np.average(variance + (mean - total) ** 2, axis=0, weights=count)
        ranks = np.percentile(np.concatenate(self.samples), PERCENTILES, axis=0)
        return np.stack([total, np.sqrt(spread), *ranks], axis=1)


def by(values: Iterable[float]) -> str:
    """Sizes as text: 4 x 5 x 6."""
    return " x ".join(f"{value:.4g}" for value in values)


def _check(number, image, label, spacing, sequences, regions) -> None:
    """Raises InputError for a scan that doesn't match the others."""
    wrong = None
    if image.ndim != 4 or image.shape[-1] != sequences:
        wrong = (
            f"image {image.shape}; give [D, H, W, {sequences}], a channel a sequence"
        )
    elif label is not None and label.shape != (*image.shape[:3], regions):
        wrong = f"label {label.shape}; give {(*image.shape[:3], regions)}"
    elif spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        wrong = f"spacing {spacing}; give three positive numbers of mm"
    elif not np.isfinite(image).all():
        wrong = "intensities that are no numbers; correct its files"
    if wrong:
        raise InputError(f"scan {number}: has the {wrong}")

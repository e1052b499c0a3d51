"""What a segmentation data set is like: sizes, intensities, regions.

One case is in memory at a time, and numbers alone are kept. What network follows from
them is in plan.py.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, for what to measure.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import ndimage

from medjax.errors import InputError

PERCENTILES = (0.5, 50.0, 99.5)
SAMPLES = 2000  # Voxels that a case adds to the percentiles, so that memory is bounded.


class Case(Protocol):
    """image [D, H, W, C], label [D, H, W, K] or None, spacing [3] in mm."""

    image: np.ndarray
    label: np.ndarray | None
    spacing: np.ndarray


class Fingerprint(NamedTuple):
    """N cases with C sequences and K regions.

    sequences, regions: their names.
    shape: [N, 3] voxels.
    box: [N, 3] voxels of the smallest box around all that isn't 0.
    spacing: [N, 3] mm.
    present: [N, C] whether the sequence has anything but 0.
    inside: [C, 5] mean, standard deviation and PERCENTILES of the voxels that aren't
      0 in some sequence; over all cases, NaN without any.
    foreground: [C, 5] the same where some region is.
    volume: [N, K] ml of each region; NaN in a case without a label.
    lesions: [N, K] connected parts, by faces, edges and corners; NaN likewise.
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
    cases: Iterable[Case], *, sequences: Sequence[str], regions: Sequence[str]
) -> Fingerprint:
    """Looks at each case once, and at one at a time.

    Args:
      cases: prepared or raw.
      sequences: C names; regions: K names.

    Raises:
      InputError: there is no case, or one of another number of sequences or regions,
        or with intensities or a spacing that are no numbers.
    """
    rows, inside, foreground = [], _Pool(), _Pool()
    for number, case in enumerate(cases):
        image = np.asarray(case.image)
        spacing = np.asarray(case.spacing, float)
        label = None if case.label is None else np.asarray(case.label) > 0
        _check(number, image, label, spacing, len(sequences), len(regions))
        filled = image != 0
        mask = filled.any(axis=-1)
        inside.add(image, mask)
        volume = lesions = np.full(len(regions), np.nan)
        if label is not None:
            foreground.add(image, label.any(axis=-1))
            volume = label.sum((0, 1, 2)) * (np.prod(spacing) / 1000)
            touching = np.ones((3, 3, 3))
            lesions = [ndimage.label(part, touching)[1] for part in _each(label)]
        present = filled.any(axis=(0, 1, 2))
        rows.append((mask.shape, _box(mask), spacing, present, volume, lesions))
    if not rows:
        raise InputError("cases: there is none; give one or more")
    shape, box, spacing, present, volume, lesions = map(np.array, zip(*rows))
    return Fingerprint(
        tuple(sequences),
        tuple(regions),
        shape,
        box,
        spacing,
        present,
        inside.summary(len(sequences)),
        foreground.summary(len(sequences)),
        volume.astype(float),
        lesions.astype(float),
    )


def describe(found: Fingerprint) -> list[str]:
    """Lines for the terminal."""
    shape, spacing = (np.median(x, axis=0) for x in (found.shape, found.spacing))
    finest, coarsest = found.spacing.min(axis=0), found.spacing.max(axis=0)
    line = f"{len(found.shape)} cases, median {by(shape)} voxels of {by(spacing)} mm"
    lines = [line + f" (from {by(finest)} to {by(coarsest)})"]
    for c, name in enumerate(found.sequences):
        mean, std, low, middle, high = found.inside[c]
        line = f"  {name}: in {found.present[:, c].sum()} cases, "
        line += f"{mean:.4g} +- {std:.4g}, 99 % from {low:.4g} to {high:.4g}"
        if np.isfinite(found.foreground[c]).all():
            line += f"; in the regions {found.foreground[c, 0]:.4g}"
            line += f" +- {found.foreground[c, 1]:.4g}"
        lines.append(line)
    labelled = np.isfinite(found.volume).all(axis=1)
    for k, name in enumerate(found.regions):
        there = labelled & (found.volume[:, k] > 0)
        line = f"  {name}: in {there.sum()} of {labelled.sum()} labelled cases"
        if there.any():
            low, middle, high = np.percentile(found.volume[there, k], (0, 50, 100))
            parts = np.median(found.lesions[there, k])
            line += (
                f", {middle:.3g} ml ({low:.3g} to {high:.3g}), components: {parts:.3g}"
            )
        lines.append(line)
    return lines


def as_json(found: NamedTuple) -> dict[str, Any]:
    """Plain values for a JSON file; what is undefined is None."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return plain(value.tolist())
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: plain(value) for name, value in found._asdict().items()}


class _Pool:
    """Moments of all voxels and a bounded sample of them, case by case."""

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


def _box(mask: np.ndarray) -> list[int]:
    """Sizes of the smallest box around a mask; of the whole where it is empty."""
    if not mask.any():
        return list(mask.shape)
    sides = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    return [int(side[-1] - side[0]) + 1 for side in sides]


def _each(label: np.ndarray) -> np.ndarray:
    return np.moveaxis(label, -1, 0)


def by(values: Iterable[float]) -> str:
    """Sizes as one writes them."""
    return " x ".join(f"{value:.4g}" for value in values)


def _check(number, image, label, spacing, sequences, regions) -> None:
    """Raises InputError for a case that doesn't fit in with the others."""
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
        wrong = "intensities that are no numbers; mend its files"
    if wrong:
        raise InputError(f"case {number}: has the {wrong}")

"""Does a heatmap lie where the finding is? Measured on images with known boxes.

Two measures, of an image and a finding that it shows:
  pointing  whether the heatmap's maximum lies in a box of the finding
  iou       the overlap of the boxes with the pixels of at least half the maximum

A number alone says little: a large box is easily hit, and a heart is always in the
middle. So each stands beside two that need no understanding of the image:
  chance    the same heatmap, moved to a random place (what leaves the image at one edge
            comes back at the other): for pointing the boxes' share of the area
  others    the heatmaps of other patients with the same finding, on this one's boxes
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.evaluation import bootstrap

# Of the image's side: so far from its box the maximum still hits. Source: Zhang et al.,
# IJCV 126 (2018) 1084: 15 pixels; their images have about 500.
TOLERANCE = 0.03
SHARE = 0.5  # Of the maximum, from which on a pixel belongs to the heatmap's region.
MEASURES = ("pointing", "iou")
LEVELS = ("", "_chance", "_others", "_gain")  # The gain is over chance.
COLUMNS = tuple(measure + level for measure in MEASURES for level in LEVELS)


class Marked(NamedTuple):
    """N pairs of an image and a finding that is marked in it.

    heatmap: [N, H, W] or [N, D, H, W], >= 0, of the finding in the image.
    boxes: of each pair one or more boxes, [n, 2, 2] or [n, 2, 3]: the lower and the
      upper corner, in pixels of the heatmap from its first corner, in the order of its
      axes; pixel i reaches from i to i + 1.
    task: [N] int, the finding.
    patient: [N] int.
    """

    heatmap: np.ndarray
    boxes: Sequence[np.ndarray]
    task: np.ndarray
    patient: np.ndarray


def measure(
    marked: Marked, *, tolerance: float = TOLERANCE, share: float = SHARE
) -> np.ndarray:
    """Pointing game and overlap of every pair, and what they are compared with.

    Where several pixels are the maximum, each of them is pointed at equally often: a
    heatmap of one value hits as often as chance does.

    Args:
      marked: what to measure.
      tolerance: of pointing, a share of the image's longest side.
      share: of the heatmap's maximum, from which on a pixel belongs to its region.

    Returns:
      [N, 8] float, see COLUMNS; `others` is NaN where no other patient has the finding.

    Source: pointing game: Zhang et al., IJCV 126 (2018) 1084, section 4.2.
    """
    heat = np.asarray(marked.heatmap)
    shape = heat.shape[1:]
    margin = tolerance * max(shape)
    near = np.stack([inside(boxes, shape, margin=margin) for boxes in marked.boxes])
    box = np.stack([inside(boxes, shape) for boxes in marked.boxes])
    highest = heat.max(axis=tuple(range(1, heat.ndim)), keepdims=True)
    peak = (heat == highest).astype(np.float32)
    peak /= peak.sum(axis=tuple(range(1, heat.ndim)), keepdims=True)
    region = (heat >= share * highest).astype(np.float32)
    found = np.full((len(heat), len(COLUMNS)), np.nan)
    for n in range(len(heat)):
        overlap = _overlap(_moved(region[n], box[n]), region[n].sum(), box[n].sum())
        found[n, COLUMNS.index("pointing")] = (peak[n] * near[n]).sum()
        found[n, COLUMNS.index("pointing_chance")] = near[n].mean()
        found[n, COLUMNS.index("iou")] = overlap.flat[0]
        found[n, COLUMNS.index("iou_chance")] = overlap.mean()
    for task in np.unique(marked.task):
        rows = np.flatnonzero(marked.task == task)
        peaks, nears, regions, boxes = (
            x[rows].reshape(len(rows), -1).astype(np.float32)
            for x in (peak, near, region, box)
        )
        hits = nears @ peaks.T  # [n, n]: the boxes of one, the heatmap of another
        areas = regions.sum(axis=1), boxes.sum(axis=1)[:, None]
        overlaps = _overlap(boxes @ regions.T, *areas)
        other = marked.patient[rows][:, None] != marked.patient[rows]
        for name, values in (("pointing_others", hits), ("iou_others", overlaps)):
            count = other.sum(axis=1)
            total = (values * other).sum(axis=1)
            mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
            found[rows, COLUMNS.index(name)] = mean
    for name in MEASURES:
        value, chance = (found[:, COLUMNS.index(name + x)] for x in ("", "_chance"))
        found[:, COLUMNS.index(f"{name}_gain")] = value - chance
    return found


def inside(
    boxes: np.ndarray, shape: Sequence[int], *, margin: float = 0.0
) -> np.ndarray:
    """Which pixels have their middle in one of the boxes, or so near to it.

    Args:
      boxes: [n, 2, A], see Marked.
      shape: of the image, A axes.
      margin: pixels, by which each box is larger on every side.

    Returns:
      `shape` bool. A box between the middles of pixels gets the one that it is in.
    """
    found = np.zeros(shape, bool)
    for low, high in np.asarray(boxes, float):
        middle = np.clip(np.floor((low + high) / 2), 0, np.subtract(shape, 1))
        first = np.minimum(np.ceil(low - margin - 0.5), middle)
        last = np.maximum(np.floor(high + margin - 0.5), middle)
        first, last = np.maximum(first, 0).astype(int), last.astype(int)
        found[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    return found


def summarise(
    marked: Marked,
    *,
    tasks: Sequence[str],
    key: Array,
    replicates: int,
    level: float = 0.95,
    **options: float,
) -> dict:
    """Means of `measure` over images, with intervals of a bootstrap over patients.

    Args:
      marked: what to measure.
      tasks: names by the numbers of marked.task.
      key, replicates, level: of the bootstrap.
      options: of `measure`.

    Returns:
      replicates, level; all: {pairs, patients, pointing, iou} over all pairs; tasks:
      {name: the same} of those that are marked. A measure is an interval as
      cells.interval has it, and chance, others, gain: interval; the gain is over
      chance. What is undefined is None.
    """
    value = measure(marked, **options)
    people, index = np.unique(marked.patient, return_inverse=True)
    drawn = bootstrap.multiplicities(key, jnp.arange(replicates), len(people))
    weight = np.asarray(drawn, float)[index].T  # [R, N]
    rows = np.concatenate([np.ones((1, len(value))), weight])  # The first: as it is.
    tail = (1 - level) / 2

    def of(chosen: np.ndarray) -> dict:
        who = len(np.unique(marked.patient[chosen]))
        mean = _means(rows[:, chosen], value[chosen])
        counts = {"pairs": int(chosen.sum()), "patients": who}
        return counts | _measures(mean, tail, patients=who)

    return {
        "replicates": replicates,
        "level": level,
        "all": of(np.ones(len(value), bool)),
        "tasks": {tasks[t]: of(marked.task == t) for t in np.unique(marked.task)},
    }


def _moved(region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How many pixels two masks share for every shift of one; the first is none."""
    one, other = np.fft.rfftn(region), np.fft.rfftn(box)
    axes = tuple(range(region.ndim))
    return np.rint(np.fft.irfftn(one * np.conj(other), region.shape, axes))


def _overlap(shared: np.ndarray, region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of areas; neither is empty."""
    return shared / (region + box - shared)


def _means(weight: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[R, n] and [n, M] -> [R, M], over what isn't NaN; NaN where nothing was drawn."""
    known = ~np.isnan(value)
    count = weight @ known.astype(float)
    total = weight @ np.where(known, value, 0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _measures(mean: np.ndarray, tail: float, *, patients: int) -> dict:
    """The measures of [1 + R, 8], of which the first are the estimates."""

    def interval(name: str) -> dict:
        column = mean[:, COLUMNS.index(name)]
        drawn = column[1:][~np.isnan(column[1:])]
        ends = np.quantile(drawn, [tail, 1 - tail]) if drawn.size else (np.nan, np.nan)
        undefined = len(column) - 1 - drawn.size
        found = bootstrap.Interval(column[0], *ends, undefined)
        behind = {"patients": patients, "replicates": len(column) - 1}
        return bootstrap.interval(found, "no other patient", kind=name, **behind)

    return {
        name: interval(name)
        | {
            "chance": interval(f"{name}_chance")["estimate"],
            "others": interval(f"{name}_others")["estimate"],
            "gain": interval(f"{name}_gain"),
        }
        for name in MEASURES
    }

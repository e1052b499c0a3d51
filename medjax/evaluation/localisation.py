"""Whether heatmaps can be trusted: do they lie where findings are, and know the model?

`localise`: whether heatmaps lie where findings are, on images with known boxes:
  pointing  whether the heatmap's maximum lies in a box of the finding
  iou       the overlap of the boxes with the pixels of at least half the maximum
A number alone says little: a large box is easily hit, and a heart is always in the
middle. So each stands beside two baselines that need no understanding of the image:
  chance    the same heatmap, moved to a random place (what leaves the image at one edge
            comes back at the other): for pointing the boxes' share of the area
  others    the heatmaps of other patients with the same finding, on this one's boxes

`randomisation`: whether they depend on what the model has learnt. An edge detector's
pictures look like explanations and know nothing of the model. So the layers get random
weights, one after the other from the classifier down, and the heatmaps are compared with
the trained model's: what stays alike explains the image, not the model.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from chex import Array, ArrayTree

from medjax.evaluation import bootstrap
from medjax.evaluation.bootstrap import Interval

ALIKE = 0.5  # A rank correlation from which on heatmaps count as alike.
# Of the image's longest side: so far from its box the maximum still hits. Source: Zhang
# et al., IJCV 126 (2018) 1084: 15 pixels; their images have about 500.
TOLERANCE = 0.03
REGION_SHARE = 0.5  # Of the maximum: from it on a pixel is in the heatmap's region.
MEASURES = ("pointing", "iou")
VARIANTS = ("", "_chance", "_others", "_gain")  # The gain is over chance.
SCORES = tuple(measure + level for measure in MEASURES for level in VARIANTS)


class Marked(NamedTuple):
    """N pairs of an image and a finding that is marked in it."""

    heatmap: np.ndarray  # [N, H, W] or [N, D, H, W], >= 0, of the finding in the image.
    # Of each pair one or more boxes, [n, 2, 2] or [n, 2, 3]: the lower and the upper
    # corner, in pixels of the heatmap from its first corner, in the order of its axes;
    # pixel i reaches from i to i + 1.
    boxes: Sequence[np.ndarray]
    task: np.ndarray  # [N] int, the finding.
    patient: np.ndarray  # [N] int.


class Pairs(NamedTuple):
    """How many pairs and patients there are, and their measures.

    Of each the Interval of its mean, the means `chance` and `others`, and the Interval
    of its `gain` over chance.
    """

    pairs: int
    patients: int
    pointing: dict
    iou: dict


class Localisation(NamedTuple):
    """What `localise` says; tasks: by name, those that are marked."""

    replicates: int
    level: float
    all: Pairs
    tasks: dict[str, Pairs]


def measure(marked: Marked) -> np.ndarray:
    """Pointing game and overlap of every pair, and what they are compared with.

    If several pixels are the maximum, each of them is pointed at equally often: a
    constant heatmap hits as often as chance does.

    Returns:
      [N, 8] float, see SCORES; `others` is NaN where no other patient has
      the finding.

    Source: pointing game: Zhang et al., IJCV 126 (2018) 1084, section 4.2.
    """
    heat = np.asarray(marked.heatmap)
    shape, space = heat.shape[1:], tuple(range(1, heat.ndim))
    margin = TOLERANCE * max(shape)
    near = np.stack([in_boxes(boxes, shape, margin=margin) for boxes in marked.boxes])
    box = np.stack([in_boxes(boxes, shape) for boxes in marked.boxes])
    highest = heat.max(axis=space, keepdims=True)
    peak = (heat == highest).astype(np.float32)
    peak /= peak.sum(axis=space, keepdims=True)
    region = (heat >= REGION_SHARE * highest).astype(np.float32)
    overlaps = [
        _overlap(_moved(here, there), here.sum(), there.sum())
        for here, there in zip(region, box, strict=True)
    ]
    columns = {
        "pointing": (peak * near).sum(axis=space),
        "pointing_chance": near.mean(axis=space),
        "pointing_others": np.full(len(heat), np.nan),
        "iou": np.array([each.flat[0] for each in overlaps]),
        "iou_chance": np.array([each.mean() for each in overlaps]),
        "iou_others": np.full(len(heat), np.nan),
    }
    for task in np.unique(marked.task):
        rows = np.flatnonzero(marked.task == task)
        peaks, nears, regions, boxes = (
            x[rows].reshape(len(rows), -1).astype(np.float32)
            for x in (peak, near, region, box)
        )
        areas = regions.sum(axis=1), boxes.sum(axis=1)[:, None]
        other = marked.patient[rows][:, None] != marked.patient[rows]
        with np.errstate(invalid="ignore"):  # 0 / 0: no other patient.
            for name, values in (  # [n, n]: the boxes of one, the heatmap of another
                ("pointing_others", nears @ peaks.T),
                ("iou_others", _overlap(boxes @ regions.T, *areas)),
            ):
                mean = (values * other).sum(axis=1) / other.sum(axis=1)
                columns[name][rows] = mean
    for name in MEASURES:
        columns[f"{name}_gain"] = columns[name] - columns[f"{name}_chance"]
    return np.stack([columns[name] for name in SCORES], axis=1)


def in_boxes(
    boxes: np.ndarray, shape: Sequence[int], *, margin: float = 0.0
) -> np.ndarray:
    """Which pixels have their middle in one of the boxes, or within a margin of it.

    Args:
      boxes: [n, 2, A], see Marked.
      shape: of the image, A axes.
      margin: pixels, by which each box is larger on every side.

    Returns:
      `shape` bool. A box that holds no pixel's middle gets the pixel that it is in.
    """
    mask = np.zeros(shape, bool)
    for low, high in np.asarray(boxes, float):
        middle = np.clip(np.floor((low + high) / 2), 0, np.subtract(shape, 1))
        first = np.minimum(np.ceil(low - margin - 0.5), middle)
        last = np.maximum(np.floor(high + margin - 0.5), middle)
        first, last = np.maximum(first, 0).astype(int), last.astype(int)
        mask[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    return mask


def localise(marked: Marked, *, tasks: Sequence[str], **draws) -> dict:
    """Means of `measure` over images, with intervals of a bootstrap over patients.

    Returns a `Localisation` as JSON, see bootstrap.as_json.
    """
    numbers = np.unique(marked.task)
    chosen = np.stack(
        [np.full(len(marked.task), True), *(marked.task == numbers[:, None])]
    )
    value = measure(marked)[:, None]  # [N, 1, 8]
    value = np.where(chosen.T[..., None], value, np.nan)
    resampled = bootstrap.means(value, marked.patient, **draws)
    intervals, gains = bootstrap.wilson(resampled), bootstrap.normal(resampled)

    def pairs(k: int) -> Pairs:
        patients = len(np.unique(marked.patient[chosen[k]]))

        def interval(name: str) -> Interval:
            kind = gains if name.endswith("_gain") else intervals
            return bootstrap.interval(
                bootstrap.at(kind, (k, SCORES.index(name))),
                "no other patient",
                patients=patients,
                replicates=draws["replicates"],
                name=name,
            )

        measures = {
            name: {
                **interval(name)._asdict(),
                "chance": interval(f"{name}_chance").estimate,
                "others": interval(f"{name}_others").estimate,
                "gain": interval(f"{name}_gain"),
            }
            for name in MEASURES
        }
        return Pairs(int(chosen[k].sum()), patients, **measures)

    of_tasks = {tasks[t]: pairs(k) for k, t in enumerate(numbers, start=1)}
    localisation = Localisation(
        draws["replicates"], bootstrap.LEVEL, pairs(0), of_tasks
    )
    return bootstrap.as_json(localisation)


def _moved(region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How many pixels two masks share for every shift of one, first without a shift."""
    spectrum = np.fft.rfftn(region) * np.conj(np.fft.rfftn(box))
    axes = tuple(range(region.ndim))
    return np.rint(np.fft.irfftn(spectrum, region.shape, axes))


def _overlap(shared: np.ndarray, region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of areas; neither is empty."""
    return shared / (region + box - shared)


def randomisation(
    explain: Callable[[ArrayTree], Array],
    variables: ArrayTree,
    fresh: ArrayTree,
    layers: Sequence[str],
) -> dict:
    """Measures how alike heatmaps stay while layers become random from the top down.

    Args:
      explain: variables -> heatmaps [B, T, ...].
      variables: the trained ones: collections, 'params' among them, of layers.
      fresh: random ones, the same tree.
      layers: names, from the last to the first; a collection may lack some.

    Returns:
      correlation: {layer: the mean rank correlation over images and tasks, after it and
      all above it are random}; NaN if every heatmap of the trained model is constant.
      depends: whether the heatmaps depend on the model, by the last layer's.

    Source: Adebayo et al., NeurIPS 2018, section 3, cascading randomisation.
    """
    trained = np.asarray(explain(variables))
    correlation = {}
    for name in layers:
        variables = {
            kind: parts | ({name: fresh[kind][name]} if name in parts else {})
            for kind, parts in variables.items()
        }
        values = rank_correlation(trained, np.asarray(explain(variables)))
        defined = values[~np.isnan(values)]
        correlation[name] = float(defined.mean()) if defined.size else np.nan
    return {"correlation": correlation, "depends": correlation[layers[-1]] < ALIKE}


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation [B, T] of heatmaps [B, T, ...], pixel by pixel.

    NaN where the first is constant; 0 where only the second is, as a heatmap that says
    nothing resembles no other.
    """
    shape = *first.shape[:2], math.prod(first.shape[2:])
    first, second = (
        pd.DataFrame(x.reshape(-1, shape[-1])).rank(axis=1).to_numpy().reshape(shape)
        for x in (first, second)
    )
    first, second = (x - x.mean(axis=-1, keepdims=True) for x in (first, second))
    product = (first * second).sum(axis=-1)
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    correlation = product / np.where(scale > 0, scale, 1)
    return np.where((first != 0).any(axis=-1), correlation, np.nan)

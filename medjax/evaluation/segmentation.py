"""Segmentation: probability maps -> masks, and masks against the truth.

Masks are made by a threshold and a choice of connected components. They are measured
per volume and region, per lesion, and over patients. What empty masks give, so that no
volume is left out in silence and a structure that was missed counts as the worst, not
as absent:

                             nothing true         something true       nothing true
                             nothing predicted    nothing predicted    something predicted
  dice, iou, nsd, lesion_f1       1                    0                    0
  ppv                             1                    0                    0
  sensitivity,
  lesion_sensitivity              1                    0                undefined
  hd95, asd                     0 mm         the image's diagonal, in mm

Undefined is NaN here, and None in a summary, which counts the patients that are left.

The surface of a mask passes between its voxels: it is what marching cubes finds in
every cube of 2 x 2 x 2 neighbours of which some are inside and some outside. Such a
cube is a surface element: a point, the cube's middle, and the area of its triangles.
Elements are weighted by their area, so that neither a slanted surface nor a coarse
axis counts too much. Outside the image is outside the mask.

`spacing` is [3] mm along D, H, W. A mask [D, H, W] is where an array isn't 0.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from chex import Array
from scipy import ndimage
from scipy.spatial import KDTree

from medjax.evaluation import bootstrap
from medjax.evaluation.bootstrap import LEAST

PERFECT = {  # Of a volume where nothing is true and nothing predicted.
    "dice": 1.0,
    "iou": 1.0,
    "sensitivity": 1.0,
    "ppv": 1.0,
    "hd95": 0.0,
    "asd": 0.0,
    "nsd": 1.0,
    "lesion_sensitivity": 1.0,
    "lesion_f1": 1.0,
    "false_positives": 0.0,
    "true_lesions": 0.0,
    "found_lesions": 0.0,
    "true_ml": 0.0,
    "predicted_ml": 0.0,
}
METRICS = tuple(PERFECT)
CONNECTED = np.ones((3, 3, 3))  # Voxels that share a corner are one lesion.
CORNERS = tuple(itertools.product((0, 1), repeat=3))  # Corner i is bit i of a code.


class Post(NamedTuple):
    """How a probability map becomes a mask; the default is a threshold alone.

    threshold: a voxel with this probability or more is inside.
    largest: whether only the largest component stays.
    smallest: components below it are removed, in mm^3.
    """

    threshold: float = 0.5
    largest: bool = False
    smallest: float = 0.0


CANDIDATES = tuple(  # The default first: it wins a tie.
    Post(threshold, largest, smallest)
    for threshold, (largest, smallest) in itertools.product(
        (0.5, 0.3, 0.4, 0.6, 0.7),
        [(False, size) for size in (0, 3, 10, 30, 100, 300)] + [(True, 0)],
    )
)


class Mean(NamedTuple):
    """A metric's mean and median over volumes; the rest is as of bootstrap.Interval.

    patients: for whom the metric is defined.
    """

    estimate: float
    low: float
    high: float
    median: float
    patients: int
    undefined: float
    why: str


class Agreement(NamedTuple):
    """How much larger the predictions are: the mean difference, and its limits, between
    which 95 % of the volumes lie."""

    bias: float
    low: float
    high: float


class Summary(NamedTuple):
    """A segmentation report.

    note: why intervals lack; '' if they don't.
    mean: by metric, of each volume's mean over the regions.
    regions: by region and metric; agreement: by region, of the volumes in ml.
    rows: by volume and region: name, patient, region and the METRICS.
    """

    volumes: int
    patients: int
    replicates: int
    level: float
    note: str
    mean: dict[str, Mean]
    regions: dict[str, dict[str, Mean]]
    agreement: dict[str, Agreement]
    rows: list[dict]


def masks(
    probability: np.ndarray, spacing: Sequence[float], posts: Sequence[Post]
) -> np.ndarray:
    """[D, H, W, K] bool masks of K regions, from [D, H, W, K] and K posts."""
    regions = []
    for k, post in enumerate(posts):
        component, size = components(probability[..., k] >= post.threshold)
        keep = _kept(size * np.prod(spacing), post)
        regions.append(np.append(False, keep)[component])
    return np.stack(regions, axis=-1)


def _kept(size: np.ndarray, post: Post) -> np.ndarray:
    """Which components stay, [N] bool, of their sizes [N] in mm^3."""
    keep = size >= post.smallest
    if post.largest and size.size:
        keep &= np.arange(size.size) == np.argmax(size)
    return keep


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the components from 1, [D, H, W]; and their sizes in voxels, [N]."""
    component, count = ndimage.label(mask, CONNECTED)
    return component, np.bincount(component.ravel(), minlength=count + 1)[1:]


def choose(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]],
) -> list[Post]:
    """The post-processing of each region with the highest mean Dice, of CANDIDATES.

    cases: probability [D, H, W, K], label [D, H, W, K] and spacing of the validation
      volumes, never of those to be evaluated. They are read once. None of them gives [].
    """
    dices = [
        [
            _dices(probability[..., k], label[..., k] != 0, spacing)
            for k in range(label.shape[-1])
        ]
        for probability, label, spacing in cases
    ]
    if not dices:
        return []
    return [CANDIDATES[best] for best in np.mean(dices, axis=0).argmax(axis=1)]


def _dices(probability, label, spacing) -> list[float]:
    """Each candidate's Dice; a threshold's components are counted once."""
    parts = {}
    for threshold in {post.threshold for post in CANDIDATES}:
        component, size = components(probability >= threshold)
        overlap = np.bincount(component[label], minlength=len(size) + 1)[1:]
        parts[threshold] = size, overlap
    values = []
    for post in CANDIDATES:
        size, overlap = parts[post.threshold]
        keep = _kept(size * np.prod(spacing), post)
        whole = size[keep].sum() + label.sum()
        values.append(2 * overlap[keep].sum() / whole if whole else 1.0)
    return values


def measure(
    predicted: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float],
    *,
    tolerance: float,
) -> dict[str, float]:
    """Compares one region's masks of one volume.

    A lesion is a connected component, by faces, edges or corners. It is found if one
    of its voxels is predicted; a false positive has no true voxel. The tolerance of the
    normalised surface Dice is in mm.

    Returns:
      METRICS: shares in [0, 1], hd95 and asd in mm, volumes in ml, lesions counted.

    Source: Dice, Ecology 26 (1945) 297; Jaccard (1912) for iou; the lesion-wise rates
    as in Commowick et al., Sci. Rep. 8 (2018) 13650, with any overlap.
    """
    predicted, label = np.asarray(predicted) != 0, np.asarray(label) != 0
    box = _box(predicted | label)
    if box is None:
        return dict(PERFECT)
    diagonal = float(np.linalg.norm(np.multiply(label.shape, spacing)))
    predicted, label = predicted[box], label[box]
    overlap = predicted & label
    inside, true, both = (int(mask.sum()) for mask in (predicted, label, overlap))
    component, sizes = components(label)
    lesions, detected = len(sizes), len(np.unique(component[overlap]))
    component, sizes = components(predicted)
    false = len(sizes) - len(np.unique(component[overlap]))
    apart = distances(predicted, label, spacing)
    millilitre = float(np.prod(spacing)) / 1000
    return {
        "dice": dice(predicted, label),
        "iou": both / (inside + true - both),
        "sensitivity": both / true if true else np.nan,
        "ppv": both / inside if inside else 0.0,
        # Of an empty mask it is infinite: the diagonal is the largest that may be.
        "hd95": min(hausdorff(apart), diagonal),
        "asd": min(average_distance(apart), diagonal),
        "nsd": surface_dice(apart, tolerance),
        "lesion_sensitivity": detected / lesions if lesions else np.nan,
        "lesion_f1": 2 * detected / (detected + lesions + false),
        "false_positives": float(false),
        "true_lesions": float(lesions),
        "found_lesions": float(detected),
        "true_ml": true * millilitre,
        "predicted_ml": inside * millilitre,
    }


def dice(predicted: np.ndarray, label: np.ndarray) -> float:
    """The Dice overlap of two masks of bool; 1 of two empty ones."""
    whole = int(predicted.sum()) + int(label.sum())
    return 2 * int((predicted & label).sum()) / whole if whole else 1.0


def summarise(rows: Sequence[Mapping], *, key: Array, replicates: int) -> dict:
    """Means over volumes, with intervals of a bootstrap over patients.

    rows: see Summary, one volume's after another's, of the same regions.

    Returns a `Summary` as JSON, see bootstrap.as_json.
    """
    table = pd.DataFrame(list(rows))
    regions = list(table["region"].unique())
    patient = table["patient"].to_numpy()[:: len(regions)]
    value = table[list(METRICS)].to_numpy(float)
    value = value.reshape(len(patient), len(regions), len(METRICS))
    means = value.mean(axis=1, keepdims=True)
    resampled = bootstrap.means(
        np.concatenate([value, means], axis=1), patient, key=key, replicates=replicates
    )
    intervals = bootstrap.percentiles(resampled)

    def mean(values: np.ndarray, k: int) -> dict[str, Mean]:
        """Of each metric; values: [volumes, metrics]; k: their number in intervals."""
        means = {}
        for m, metric in enumerate(METRICS):
            defined = ~np.isnan(values[:, m])
            patients = len(np.unique(patient[defined]))
            interval = bootstrap.interval(
                bootstrap.at(intervals, (k, m)),
                "undefined in every volume",
                patients=patients,
                replicates=replicates,
            )
            median = float(np.median(values[defined, m])) if patients else np.nan
            means[metric] = Mean(median=median, patients=patients, **interval._asdict())
        return means

    patients = len(np.unique(patient))
    note = f"No intervals: they need {LEAST} patients, and there are {patients}."
    volumes = value[..., [METRICS.index(name) for name in ("true_ml", "predicted_ml")]]
    summary = Summary(
        volumes=len(patient),
        patients=patients,
        replicates=replicates,
        level=bootstrap.LEVEL,
        note="" if patients >= LEAST else note,
        mean=mean(means[:, 0], len(regions)),
        regions={region: mean(value[:, k], k) for k, region in enumerate(regions)},
        agreement={
            region: agreement(*volumes[:, k].T) for k, region in enumerate(regions)
        },
        rows=[dict(row) for row in rows],
    )
    return bootstrap.as_json(summary)


def agreement(true: np.ndarray, predicted: np.ndarray) -> Agreement:
    """How much larger predictions [N] are; no limits for fewer than three volumes.

    Source: Bland & Altman, Lancet 327 (1986) 307.
    """
    difference = np.subtract(predicted, true)
    bias = float(difference.mean())
    if difference.size < 3:
        return Agreement(bias, np.nan, np.nan)
    limit = 1.96 * float(difference.std(ddof=1))
    return Agreement(bias, bias - limit, bias + limit)


class Distances(NamedTuple):
    """From each element of one surface to the nearest of the other, ascending, in mm;
    infinite where the other surface is empty.

    true, true_area: [N], from the true surface, and the elements' areas in mm^2.
    predicted, predicted_area: [M], from the predicted one.
    """

    true: np.ndarray
    true_area: np.ndarray
    predicted: np.ndarray
    predicted_area: np.ndarray


def distances(
    predicted: np.ndarray, label: np.ndarray, spacing: Sequence[float]
) -> Distances:
    """Measures from each mask's surface to the other's.

    Source: the definition of Nikolov et al., Clinically applicable segmentation of head
    and neck anatomy (J. Med. Internet Res. 23 (2021) e26151), as in their
    `surface-distance` package, with which all numbers agree.
    """
    other, other_area = elements(predicted, spacing)
    true, true_area = elements(label, spacing)
    there, back = KDTree(other).query(true)[0], KDTree(true).query(other)[0]
    first, second = np.argsort(there), np.argsort(back)
    return Distances(there[first], true_area[first], back[second], other_area[second])


def hausdorff(apart: Distances, percent: float = 95.0) -> float:
    """The distance within which `percent` of each surface lies from the other, in mm.

    The larger one of both directions; percent=100 is the Hausdorff distance. NaN if
    both surfaces are empty.
    """
    reached = []
    for distance, area in (apart[:2], apart[2:]):
        if distance.size:
            share = np.cumsum(area) / area.sum()
            place = np.searchsorted(share, percent / 100)
            reached.append(float(distance[min(place, distance.size - 1)]))
    return max(reached, default=np.nan)


def average_distance(apart: Distances) -> float:
    """The mean distance over the area of both surfaces, in mm; NaN if both are empty.

    Source: Heimann et al., IEEE Trans. Med. Imaging 28 (2009) 1251, average symmetric
    surface distance, here weighted by area.
    """
    distance, area = (np.concatenate(both) for both in (apart[::2], apart[1::2]))
    return float(distance @ area / area.sum()) if area.size else np.nan


def surface_dice(apart: Distances, tolerance: float) -> float:
    """Normalised surface Dice: the share of both surfaces that lies near the other.

    Surfaces up to the tolerance apart, in mm, count as the same. In [0, 1]; NaN if both
    surfaces are empty.
    """
    distance, area = (np.concatenate(both) for both in (apart[::2], apart[1::2]))
    near = distance <= tolerance
    return float(area[near].sum() / area.sum()) if area.size else np.nan


def elements(
    mask: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The surface elements of a mask.

    Returns:
      points: [N, 3] mm, from the middle of the image's first voxel.
      area: [N] mm^2.
    """
    mask = np.asarray(mask) != 0
    box = _box(mask)
    if box is None:
        return np.zeros((0, 3)), np.zeros(0)
    mask = np.pad(mask[box], 1)
    code = np.zeros(np.array(mask.shape) - 1, np.uint8)
    for bit, corner in enumerate(CORNERS):
        cut = (slice(c, c + n) for c, n in zip(corner, code.shape, strict=True))
        code |= mask[tuple(cut)].astype(np.uint8) << bit
    place = np.argwhere((code > 0) & (code < 255))
    spacing = np.asarray(spacing, np.float64)
    # An area's normal along one axis grows with the spacing along the two others.
    normal = triangles() * (spacing.prod() / spacing)
    area = np.linalg.norm(normal, axis=-1).sum(axis=-1)
    first = [side.start for side in box]
    return (place + first - 0.5) * spacing, area[code[tuple(place.T)]]


def _box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask of bool; None if it is empty."""
    return next(iter(ndimage.find_objects(mask.astype(np.uint8))), None)


@functools.cache
def triangles() -> np.ndarray:
    """[256, 4, 3]: of each code the triangles' normals, as long as their areas.

    For voxels of 1 mm; a code with fewer than four triangles is padded with zeros. The
    side with fewer corners is cut off, each group of corners that edges connect for
    itself: so a surface is closed, and the same for a mask and its complement.
    """
    table = np.zeros((256, 4, 3))
    for code in range(1, 255):
        few = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        if few.sum() > 4:
            few = 1 - few
        group, count = ndimage.label(few)
        normals = np.concatenate([_cut(group == n) for n in range(1, count + 1)])
        table[code, : len(normals)] = normals
    return table


def _cut(corners: np.ndarray) -> np.ndarray:
    """The polygon that cuts corners [2, 2, 2] off a cube, as its triangles' normals.

    It passes through the middles of the edges that lead away. One that isn't flat is
    spanned by the fan of triangles with the largest area.
    """
    edges = np.array(
        [
            (corner, end)
            for corner in np.argwhere(corners)
            for end in CORNERS
            if np.abs(corner - end).sum() == 1 and not corners[end]
        ]
    )
    away = (edges[:, 1] - edges[:, 0]).sum(axis=0)
    middle = edges.mean(axis=1)
    spoke = middle - middle.mean(axis=0)
    x = np.cross(away, spoke[0])
    y = np.cross(away, x) / np.linalg.norm(away)
    ring = middle[np.argsort(np.arctan2(spoke @ y, spoke @ x))]
    fans = []
    for turn in range(len(ring)):
        first, *others = np.roll(ring, turn, axis=0)
        fans.append(
            [np.cross(a - first, b - first) / 2 for a, b in itertools.pairwise(others)]
        )
    return np.array(max(fans, key=lambda fan: np.linalg.norm(fan, axis=-1).sum()))

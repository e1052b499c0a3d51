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
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from chex import Array
from scipy import ndimage

from medjax.errors import InputError
from medjax.evaluation import bootstrap, surface
from medjax.evaluation.bootstrap import LEAST

METRICS = (
    "dice",
    "iou",
    "sensitivity",
    "ppv",
    "hd95",
    "asd",
    "nsd",
    "lesion_sensitivity",
    "lesion_f1",
    "false_positives",
    "true_lesions",
    "found_lesions",
    "true_ml",
    "predicted_ml",
)
VOLUMES = METRICS[-2:]
CONNECTED = np.ones((3, 3, 3))  # Voxels that share a corner are one lesion.
SPREAD = 3  # Volumes of which a standard deviation is said.


class Post(NamedTuple):
    """How a probability map becomes a mask; the default is a threshold alone.

    threshold: a voxel with this probability or more is inside.
    largest: whether only the largest component stays.
    smallest: components below it are removed, in mm^3.
    """

    threshold: float = 0.5
    largest: bool = False
    smallest: float = 0.0


THRESHOLDS = (0.5, 0.3, 0.4, 0.6, 0.7)
CANDIDATES = tuple(  # The default first: it wins a tie.
    Post(threshold, largest, smallest)
    for threshold, (largest, smallest) in itertools.product(
        THRESHOLDS, [(False, size) for size in (0, 3, 10, 30, 100, 300)] + [(True, 0)]
    )
)


class Mean(NamedTuple):
    """A metric's mean over volumes and its interval.

    median: over volumes.
    patients: for whom the metric is defined.
    undefined, why: as of bootstrap.Interval.
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
    mean: {metric: Mean} of each volume's mean over the regions.
    regions: {region: {metric: Mean}}.
    agreement: {region: Agreement} of the volumes in ml.
    rows: of `measure_regions`.
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
    """Makes masks from probabilities.

    Args:
      probability: [D, H, W, K].
      spacing: [3] mm.
      posts: K, one a region.

    Returns:
      [D, H, W, K] bool.
    """
    regions = []
    for k, post in enumerate(posts):
        component, size = components(probability[..., k] >= post.threshold)
        keep = kept(size * np.prod(spacing), post)
        regions.append(np.append(False, keep)[component])
    return np.stack(regions, axis=-1)


def kept(size: np.ndarray, post: Post) -> np.ndarray:
    """Which components stay, [N] bool, of their sizes [N] in mm^3."""
    keep = size >= post.smallest
    if post.largest and size.size:
        keep &= np.arange(size.size) == np.argmax(size)
    return keep


def choose(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]],
    *,
    candidates: Sequence[Post] = CANDIDATES,
) -> tuple[Post, ...]:
    """The post-processing of each region with the highest mean Dice.

    Args:
      cases: probability [D, H, W, K], label [D, H, W, K] and spacing [3] mm of the
        validation volumes, never of those to be evaluated. They are read once.
      candidates: of equally good ones the first is taken.

    Returns:
      K of the candidates.

    Raises:
      InputError: there is no case.
    """
    dice = [
        [
            _dices(probability[..., k], label[..., k] != 0, spacing, candidates)
            for k in range(label.shape[-1])
        ]
        for probability, label, spacing in cases
    ]
    if not dice:
        raise InputError(
            "post-processing is chosen on validation volumes, and there is none: "
            "leave it at its default"
        )
    return tuple(candidates[best] for best in np.mean(dice, axis=0).argmax(axis=1))


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the components from 1, [D, H, W]; and their sizes in voxels, [N]."""
    component, count = ndimage.label(mask, CONNECTED)
    return component, np.bincount(component.ravel(), minlength=count + 1)[1:]


def _dices(probability, label, spacing, candidates) -> list[float]:
    """Each candidate's Dice; a threshold's components are found once."""
    parts = {}
    for threshold in {post.threshold for post in candidates}:
        component, size = components(probability >= threshold)
        overlap = np.bincount(component[label], minlength=len(size) + 1)[1:]
        parts[threshold] = size, overlap
    values = []
    for post in candidates:
        size, overlap = parts[post.threshold]
        keep = kept(size * np.prod(spacing), post)
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
    of its voxels is predicted; a false positive has no true voxel.

    Args:
      predicted, label: [D, H, W], inside where they aren't 0.
      spacing: [3] mm.
      tolerance: of the normalised surface Dice, in mm.

    Returns:
      METRICS: shares in [0, 1], hd95 and asd in mm, volumes in ml, lesions counted.

    Source: Dice, Ecology 26 (1945) 297; Jaccard (1912) for iou; the lesion-wise rates
    as in Commowick et al., Sci. Rep. 8 (2018) 13650, with any overlap; for surfaces
    see surface.py.
    """
    diagonal = float(np.linalg.norm(np.multiply(label.shape, spacing)))
    predicted, label = _cropped(np.asarray(predicted) != 0, np.asarray(label) != 0)
    overlap = predicted & label
    inside, true, both = (int(mask.sum()) for mask in (predicted, label, overlap))
    component, sizes = components(label)
    lesions, found = len(sizes), len(np.unique(component[overlap]))
    component, sizes = components(predicted)
    false = len(sizes) - len(np.unique(component[overlap]))
    apart = surface.distances(predicted, label, spacing)
    millilitre = float(np.prod(spacing)) / 1000
    counts = {
        "false_positives": float(false),
        "true_lesions": float(lesions),
        "found_lesions": float(found),
        "true_ml": true * millilitre,
        "predicted_ml": inside * millilitre,
    }
    if not inside and not true:
        shares = dict.fromkeys(METRICS[: METRICS.index("false_positives")], 1.0)
        return shares | {"hd95": 0.0, "asd": 0.0} | counts
    return {
        "dice": dice(predicted, label),
        "iou": both / (inside + true - both),
        "sensitivity": both / true if true else np.nan,
        "ppv": both / inside if inside else 0.0,
        # Of an empty mask it is infinite: the diagonal is the largest that may be.
        "hd95": min(surface.hausdorff(apart), diagonal),
        "asd": min(surface.average(apart), diagonal),
        "nsd": surface.dice(apart, tolerance),
        "lesion_sensitivity": found / lesions if lesions else np.nan,
        "lesion_f1": 2 * found / (found + lesions + false),
    } | counts


def dice(predicted: np.ndarray, label: np.ndarray) -> float:
    """The Dice overlap of two masks of bool; 1 of two empty ones.

    Source: Dice, Ecology 26 (1945) 297.
    """
    whole = int(predicted.sum()) + int(label.sum())
    return 2 * int((predicted & label).sum()) / whole if whole else 1.0


def measure_regions(
    predicted: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float],
    *,
    regions: Sequence[str],
    tolerance: float,
    **about: str | int,
) -> list[dict]:
    """`measure` of every region of a volume.

    Args:
      predicted, label: [D, H, W, K].
      regions: K names.
      about: name, of the volume, and patient, whom it shows.

    Returns:
      K rows: about, region and the METRICS.
    """
    return [
        {
            **about,
            "region": region,
            **measure(predicted[..., k], label[..., k], spacing, tolerance=tolerance),
        }
        for k, region in enumerate(regions)
    ]


def summarise(
    rows: Sequence[Mapping], *, key: Array, replicates: int, level: float = 0.95
) -> dict:
    """Means over volumes, with intervals of a bootstrap over patients.

    Args:
      rows: of `measure_regions`, of all volumes.
      key, replicates: of the bootstrap; level: of its intervals.

    Returns:
      A `Summary` as JSON, see bootstrap.as_json.
    """
    regions = list(dict.fromkeys(row["region"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    value = np.full((len(names), len(regions) + 1, len(METRICS)), np.nan)
    patient = np.array([None] * len(names))
    for row in rows:
        volume = names.index(row["name"])
        patient[volume] = row["patient"]
        value[volume, regions.index(row["region"])] = [row[m] for m in METRICS]
    value[:, -1] = value[:, :-1].mean(axis=1)
    patient = np.array(patient.tolist())
    resampled = bootstrap.means(value, patient, key=key, replicates=replicates)
    intervals = bootstrap.percentiles(resampled, level)

    def mean(k: int, m: int) -> Mean:
        known = ~np.isnan(value[:, k, m])
        patients = len(np.unique(patient[known]))
        interval = bootstrap.interval(
            bootstrap.at(intervals, (k, m)),
            "undefined in every volume",
            patients=patients,
            replicates=replicates,
        )
        median = float(np.median(value[known, k, m])) if known.any() else np.nan
        return Mean(median=median, patients=patients, **interval._asdict())

    *of_regions, of_all = (
        {metric: mean(k, m) for m, metric in enumerate(METRICS)}
        for k in range(len(regions) + 1)
    )
    patients = len(np.unique(patient))
    volumes = [METRICS.index(metric) for metric in VOLUMES]
    summary = Summary(
        volumes=len(names),
        patients=patients,
        replicates=replicates,
        level=level,
        note=_note(patients),
        mean=of_all,
        regions=dict(zip(regions, of_regions, strict=True)),
        agreement={
            region: agreement(*value[:, k, volumes].T)
            for k, region in enumerate(regions)
        },
        rows=[dict(row) for row in rows],
    )
    return bootstrap.as_json(summary)


def agreement(true: np.ndarray, predicted: np.ndarray) -> Agreement:
    """How much larger predictions are; no limits for fewer than three volumes.

    Args:
      true, predicted: [N], of any one unit.

    Source: Bland & Altman, Lancet 327 (1986) 307.
    """
    difference = np.subtract(predicted, true)
    bias = float(difference.mean())
    if difference.size < SPREAD:
        return Agreement(bias, np.nan, np.nan)
    limit = 1.96 * float(difference.std(ddof=1))
    return Agreement(bias, bias - limit, bias + limit)


def _note(patients: int) -> str:
    if patients >= LEAST:
        return ""
    return f"No intervals: they need {LEAST} patients, and there are {patients}."


def _cropped(*both: np.ndarray) -> list[np.ndarray]:
    """Cuts masks to the box that holds them all."""
    box = ndimage.find_objects(np.any(both, axis=0).astype(np.uint8))
    return [mask[box[0]] if box else mask[:1] for mask in both]

"""Segmentation: probability maps -> masks, and masks against the truth.

Masks are made by a threshold and a choice of connected components. They are measured
per volume and region, per lesion, and over patients. What empty masks give, so that no
volume is left out in silence and a structure that was missed counts as the worst, not
as absent:

                             nothing true         something true       nothing true
                             nothing predicted    nothing predicted    something predicted
  dice, iou, nsd,
  lesion_dice, lesion_f1          1                    0                    0
  hd95, asd, lesion_hd95        0 mm         the image's diagonal, in mm
  ppv                         undefined                0                    0
  sensitivity,
  lesion_sensitivity          undefined                0                undefined
  false_alarm                     0                undefined                1

Undefined is NaN here, and None in a summary, which counts the patients that are left.
A model that predicts nothing would else have the sensitivity of one that finds half.

`spacing` is [3] mm along D, H, W. A mask [D, H, W] is where an array isn't 0.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd

from medjax.evaluation import bootstrap, means, outlines
from medjax.evaluation.bootstrap import MIN_PATIENTS, Interval
from medjax.evaluation.means import Linear
from medjax.evaluation.outlines import components, dice


class Pair(NamedTuple):
    """A region's two masks of one volume; at least one of them isn't empty."""

    predicted: np.ndarray  # Both are cut to the box that holds them.
    label: np.ndarray
    predicted_size: int  # Voxels.
    true_size: int
    overlap: int
    apart: outlines.Distances
    detected: int  # Lesions: connected components, by faces, edges or corners.
    missed: int
    false: int  # Predicted ones without a partner, see outlines.matched.
    lesion_dice: float
    lesion_hd95: float
    diagonal: float  # mm, of the image.
    millilitres: float  # Of a voxel.
    tolerance: float  # mm.


class MaskMetric(NamedTuple):
    """A row of the table of metrics of masks."""

    label: str
    kind: str  # "share", in [0, 1], "count", "mm" or "ml".
    empty: float  # Of a volume where nothing is true and nothing predicted.
    of: Callable[[Pair], float]


MASK_METRICS = {
    "dice": MaskMetric("Dice", "share", 1, lambda p: dice(p.predicted, p.label)),
    "lesion_dice": MaskMetric("Lesion Dice", "share", 1, lambda p: p.lesion_dice),
    # Of an empty mask a distance is infinite: the diagonal is the largest that may be.
    "hd95": MaskMetric(
        *("HD95, mm", "mm", 0),
        lambda p: min(outlines.hausdorff(p.apart), p.diagonal),
    ),
    "lesion_hd95": MaskMetric("Lesion HD95, mm", "mm", 0, lambda p: p.lesion_hd95),
    "iou": MaskMetric(
        *("IoU", "share", 1),
        lambda p: p.overlap / (p.predicted_size + p.true_size - p.overlap),
    ),
    "sensitivity": MaskMetric(
        *("Sensitivity", "share", np.nan),
        lambda p: p.overlap / p.true_size if p.true_size else np.nan,
    ),
    "ppv": MaskMetric(
        *("PPV", "share", np.nan),
        lambda p: p.overlap / p.predicted_size if p.predicted_size else 0.0,
    ),
    "asd": MaskMetric(
        *("ASD, mm", "mm", 0),
        lambda p: min(outlines.average_distance(p.apart), p.diagonal),
    ),
    "nsd": MaskMetric(
        "NSD", "share", 1, lambda p: outlines.surface_dice(p.apart, p.tolerance)
    ),
    "lesion_f1": MaskMetric(
        *("Lesion F1", "share", 1),
        lambda p: 2 * p.detected / (2 * p.detected + p.missed + p.false),
    ),
    "lesion_sensitivity": MaskMetric(
        *("Lesion sensitivity", "share", np.nan),
        lambda p: p.detected / (p.detected + p.missed) if p.true_size else np.nan,
    ),
    "false_positives": MaskMetric("False lesions", "count", 0, lambda p: p.false),
    # Whether anything is predicted where nothing is true.
    "false_alarm": MaskMetric(
        "False alarms", "share", 0, lambda p: np.nan if p.true_size else 1.0
    ),
    "true_lesions": MaskMetric(
        "True lesions", "count", 0, lambda p: p.detected + p.missed
    ),
    "found_lesions": MaskMetric("Lesions found", "count", 0, lambda p: p.detected),
    "true_ml": MaskMetric("True, ml", "ml", 0, lambda p: p.true_size * p.millilitres),
    "predicted_ml": MaskMetric(
        "Predicted, ml", "ml", 0, lambda p: p.predicted_size * p.millilitres
    ),
}


class Post(NamedTuple):
    """How a probability map becomes a mask; the default is a threshold alone."""

    threshold: float = 0.5  # A voxel with this probability or more is inside.
    largest: bool = False  # Whether only the largest component stays.
    smallest: float = 0.0  # Components below it are removed, in mm^3.


ENOUGH = 5  # Volumes that can tell false components from second lesions.
CANDIDATES = tuple(  # The default first: it wins a tie.
    Post(threshold, largest, smallest)
    for threshold, (largest, smallest) in itertools.product(
        (0.5, 0.3, 0.4, 0.6, 0.7),
        [(False, size) for size in (0, 3, 10, 30, 100, 300)] + [(True, 0)],
    )
)


class Agreement(NamedTuple):
    """How much larger the predictions are: the mean difference, and its limits, between
    which 95 % of the volumes lie."""

    bias: float
    low: float
    high: float


class SegmentationResults(NamedTuple):
    """A segmentation report."""

    volumes: int
    patients: int
    replicates: int
    level: float
    note: str  # Why intervals lack; '' if they don't.
    # By region and metric: the mean over volumes, an Interval, and beside it the `median`
    # and for how many `patients` the metric is defined.
    regions: dict[str, dict[str, dict]]
    # The same of the mean of the regions in which it is defined; its median is of each
    # volume's mean over its regions, and its patients those of the region with fewest.
    mean: dict[str, dict]
    agreement: dict[str, Agreement]  # By region, of the volumes in ml.
    rows: list[dict]  # By volume and region: name, patient, region and the METRICS.


def likeliest(probability: np.ndarray) -> np.ndarray:
    """1 where a region of [..., K] is likelier than all others and the background, else 0.

    Of regions that exclude each other. The rest of the probability is the background's;
    of equally likely regions it is the first.
    """
    best = np.argmax(probability, axis=-1, keepdims=True)
    rest = 1 - probability.sum(axis=-1, keepdims=True)
    called = np.zeros_like(probability)
    inside = np.take_along_axis(probability, best, -1) > rest
    np.put_along_axis(called, best, inside.astype(called.dtype), -1)
    return called


def masks(
    probability: np.ndarray,
    spacing: Sequence[float],
    posts: Sequence[Post],
    apart: np.ndarray,
) -> np.ndarray:
    """[D, H, W, K] bool masks of K regions, from [D, H, W, K] and K posts.

    `apart` is [K, K] bool: regions in which no voxel lies together, such as two organs.
    Of those that reach their thresholds, a voxel gets the likeliest, or the first.
    """
    limits = np.array([post.threshold for post in posts], probability.dtype)
    reached = probability >= limits
    regions = []
    for k, post in enumerate(posts):
        beaten = np.zeros(reached.shape[:-1], bool)
        for other in np.flatnonzero(apart[k]):
            beats = np.greater_equal if other < k else np.greater
            likelier = beats(probability[..., other], probability[..., k])
            beaten |= reached[..., other] & likelier
        component, size = components(reached[..., k] & ~beaten)
        keep = _kept(size * np.prod(spacing), post)
        regions.append(np.append(False, keep)[component])
    return np.stack(regions, axis=-1)


def _kept(size: np.ndarray, post: Post) -> np.ndarray:
    """Which components stay, [N] bool, of their sizes [N] in mm^3."""
    keep = size >= post.smallest
    if post.largest and size.size:
        keep &= np.arange(size.size) == np.argmax(size)
    return keep


def choose(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]],
) -> list[Post]:
    """The post-processing of each region with the highest mean Dice, of CANDIDATES.

    cases: probability [D, H, W, K], label [D, H, W, K] and spacing of the validation
      volumes, never of those to be evaluated. They are read once. None of them gives
      []; of fewer than ENOUGH only the threshold is chosen.
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
    mean = np.mean(dices, axis=0)  # [K, candidates]
    if len(dices) < ENOUGH:
        mean[:, [post.largest or post.smallest > 0 for post in CANDIDATES]] = -1
    return [CANDIDATES[best] for best in mean.argmax(axis=1)]


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
    """Measures one region's masks of one volume; `tolerance` is the NSD's, in mm.

    Source: Dice, Ecology 26 (1945) 297; Jaccard (1912) for iou; lesion-wise rates:
    Maier-Hein, Reinke et al., Metrics reloaded, Nat. Methods 21 (2024) 195.
    """
    predicted, label = np.asarray(predicted) != 0, np.asarray(label) != 0
    box = outlines.box(predicted | label)
    if box is None:
        return {name: float(metric.empty) for name, metric in MASK_METRICS.items()}
    diagonal = float(np.linalg.norm(np.multiply(label.shape, spacing)))
    predicted, label = predicted[box], label[box]
    parts = components(label), components(predicted)
    detected = outlines.matched(*parts)
    missed, false = (len(sizes) - detected for _, sizes in parts)
    scores = outlines.lesion_scores(predicted, label, spacing, worst=diagonal)
    pair = Pair(
        *(predicted, label),
        *(int(mask.sum()) for mask in (predicted, label, predicted & label)),
        outlines.distances(predicted, label, spacing),
        *(detected, missed, false),
        *scores,
        diagonal=diagonal,
        millilitres=float(np.prod(spacing)) / 1000,
        tolerance=tolerance,
    )
    return {name: float(metric.of(pair)) for name, metric in MASK_METRICS.items()}


def summarise(rows: Sequence[Mapping], **draws) -> dict:
    """Means over volumes, with intervals by patient, see means.py.

    rows: see SegmentationResults, one volume's after another's, of the same regions.

    Returns a `SegmentationResults` as JSON, see bootstrap.as_json.
    """
    table = pd.DataFrame(list(rows))
    regions = list(table["region"].unique())
    patient = table["patient"].to_numpy()[:: len(regions)]
    value = table[list(MASK_METRICS)].to_numpy(float)
    value = value.reshape(len(patient), len(regions), len(MASK_METRICS))
    linear = _with_mean(means.over_rows(value, patient))
    intervals = _intervals(linear, **draws)

    def mean(values: np.ndarray, k: int) -> dict[str, dict]:
        """Of each metric; values: [volumes, metrics]; k: their number in intervals."""
        by_metric = {}
        for m, metric in enumerate(MASK_METRICS):
            patients = int(linear.patients[k, m])
            interval = bootstrap.interval(
                bootstrap.at(intervals, (k, m)),
                "undefined in every volume",
                patients=patients,
                replicates=draws["replicates"],
            )
            column = values[~np.isnan(values[:, m]), m]
            median = float(np.median(column)) if column.size else np.nan
            counted = {"median": median, "patients": patients}
            by_metric[metric] = interval._asdict() | counted
        return by_metric

    patients = len(np.unique(patient))
    note = f"No intervals: they need {MIN_PATIENTS} patients, and there are {patients}."
    places = [[*MASK_METRICS].index(name) for name in ("true_ml", "predicted_ml")]
    volumes = value[..., places]
    summary = SegmentationResults(
        volumes=len(patient),
        patients=patients,
        replicates=draws["replicates"],
        level=bootstrap.LEVEL,
        note="" if patients >= MIN_PATIENTS else note,
        mean=mean(bootstrap.mean_of_defined(value, axis=1), len(regions)),
        regions={region: mean(value[:, k], k) for k, region in enumerate(regions)},
        agreement={
            region: agreement(*volumes[:, k].T, patient)
            for k, region in enumerate(regions)
        },
        rows=[dict(row) for row in rows],
    )
    return bootstrap.as_json(summary)


def _intervals(linear: Linear, **draws) -> Interval:
    """[K + 1, M], each metric's by its kind."""
    distances = means.studentised(linear, **draws)
    distances = distances._replace(low=np.maximum(distances.low, 0))
    kind = np.array([metric.kind for metric in MASK_METRICS.values()])
    flags = [kind == "share", kind == "count"]
    kinds = means.shares(linear), means.counts(linear), distances
    return jax.tree.map(lambda *x: np.select(flags, x[:2], x[2]), *kinds)


def _with_mean(linear: Linear) -> Linear:
    """[K + 1, M]: adds the mean over the K regions in which a metric is defined."""
    use = linear.patients > 0
    estimate = bootstrap.mean_of_defined(linear.estimate, axis=0)
    influence = np.where(use, linear.influence, np.nan)
    influence = bootstrap.mean_of_defined(influence, axis=1)
    fewest = np.where(use, linear.patients, np.iinfo(int).max).min(axis=0)
    return Linear(
        np.append(linear.estimate, estimate[None], axis=0),
        np.append(linear.influence, np.nan_to_num(influence)[:, None], axis=1),
        np.append(linear.patients, np.where(use.any(axis=0), fewest, 0)[None], axis=0),
    )


def agreement(
    true: np.ndarray, predicted: np.ndarray, patient: np.ndarray
) -> Agreement:
    """Computes Bland-Altman's bias and limits; no limits for fewer than three patients.

    The differences of a patient's volumes resemble each other: the limits are of one
    volume of a new patient, whose variance is that between patients and that within.

    Source: Bland & Altman, Lancet 327 (1986) 307; several volumes of a patient: their
    J. Biopharm. Stat. 17 (2007) 571, section 3.
    """
    difference = np.subtract(predicted, true).astype(float)
    bias = float(difference.mean())
    _, who = np.unique(patient, return_inverse=True)
    volumes = np.bincount(who)
    patients, number = len(volumes), len(difference)
    if patients < 3:
        return Agreement(bias, np.nan, np.nan)
    means = np.bincount(who, difference) / volumes
    within = ((difference - means[who]) ** 2).sum() / max(number - patients, 1)
    between = (volumes * (means - bias) ** 2).sum() / (patients - 1)
    each = (number - (volumes**2).sum() / number) / (patients - 1)
    variance = max(between - within, 0) / each + within
    limit = 1.96 * float(np.sqrt(variance))
    return Agreement(bias, bias - limit, bias + limit)

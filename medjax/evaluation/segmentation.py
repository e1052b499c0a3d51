"""Masks against the truth: per volume and region, per lesion, and over patients.

What empty masks give, so that no volume is left out in silence and a structure that
was missed counts as the worst, not as absent:

                             nothing true    something true,   nothing true,
                             nothing said    nothing said      something said
  dice, iou, nsd, lesion_f1       1               0                 0
  ppv                             1               0                 0
  sensitivity,
  lesion_sensitivity              1               0             undefined
  hd95, asd                     0 mm      the image's diagonal, in mm

Undefined is NaN here, and None in a summary, which counts the patients that are left.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from chex import Array
from scipy import ndimage

from medjax.evaluation import bootstrap, surface
from medjax.evaluation.masks import components

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
FEWEST = 3  # Patients for an interval: two have only three different means.


def measure(
    predicted: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float],
    *,
    tolerance: float,
) -> dict[str, float]:
    """Compares one region's masks of one volume.

    A lesion is a connected component, by faces, edges or corners. It is found if one
    of its voxels is; a false positive has none that is true.

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
    said, true, both = (int(mask.sum()) for mask in (predicted, label, overlap))
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
        "predicted_ml": said * millilitre,
    }
    if not said and not true:
        shares = dict.fromkeys(METRICS[: METRICS.index("false_positives")], 1.0)
        return shares | {"hd95": 0.0, "asd": 0.0} | counts
    return {
        "dice": dice(predicted, label),
        "iou": both / (said + true - both),
        "sensitivity": both / true if true else np.nan,
        "ppv": both / said if said else 0.0,
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
      key, replicates, level: of the bootstrap.

    Returns:
      volumes, patients, replicates, level; note, why intervals lack or are weak, or
      ''; regions: {region: {metric: {estimate, low, high, median, patients}}}; mean:
      the same of each volume's mean over the regions; agreement: {region: {bias, low,
      high}}; rows. patients counts those for whom the metric is defined; fewer than
      three have no interval. What is undefined is None.
    """
    regions = list(dict.fromkeys(row["region"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    value = np.full((len(names), len(regions) + 1, len(METRICS)), np.nan)
    patient: list = [None] * len(names)
    for row in rows:
        volume = names.index(row["name"])
        patient[volume] = row["patient"]
        value[volume, regions.index(row["region"])] = [row[m] for m in METRICS]
    value[:, -1] = value[:, :-1].mean(axis=1)
    people, index = np.unique(np.array(patient), return_inverse=True)
    found = _bootstrapped(value, index, key, replicates, level)
    table = dict(zip([*regions, None], found, strict=True))
    return {
        "volumes": len(names),
        "patients": len(people),
        "replicates": replicates,
        "level": level,
        "note": _note(len(people)),
        "mean": table.pop(None),
        "regions": table,
        "agreement": {
            region: agreement(*(value[:, k, METRICS.index(m)] for m in VOLUMES))
            for k, region in enumerate(regions)
        },
        "rows": [
            {k: _number(v) if k in METRICS else v for k, v in row.items()}
            for row in rows
        ],
    }


def agreement(true: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
    """How much larger predictions are: the mean, and where 95 % of volumes lie.

    Args:
      true, predicted: [N], of any one unit.

    Returns:
      bias, low, high in that unit; no limits for fewer than three.

    Source: Bland & Altman, Lancet 327 (1986) 307.
    """
    difference = np.subtract(predicted, true)
    bias = float(difference.mean())
    if difference.size < FEWEST:
        return {"bias": bias, "low": None, "high": None}
    spread = 1.96 * float(difference.std(ddof=1))
    return {"bias": bias, "low": bias - spread, "high": bias + spread}


def _bootstrapped(value, patient, key, replicates, level) -> list[dict]:
    """Of each region, its metrics' means.

    Args:
      value: [V, K, M], NaN where undefined; patient: [V] int, 0 to P - 1.
    """
    people = patient.max() + 1
    drawn = bootstrap.multiplicities(key, jnp.arange(replicates), int(people))
    weight = np.asarray(drawn, np.float64)[patient].T  # [R, V]
    known = ~np.isnan(value)
    flat = known.reshape(len(value), -1).astype(float)
    total = weight @ np.where(known, value, 0).reshape(flat.shape)
    count = weight @ flat
    mean = np.divide(total, count, np.full_like(total, np.nan), where=count > 0)
    mean = mean.reshape(replicates, *value.shape[1:])
    tail = (1 - level) / 2
    results = []
    for k in range(value.shape[1]):
        results.append({})
        for m, metric in enumerate(METRICS):
            real = value[known[:, k, m], k, m]
            who = len(np.unique(patient[known[:, k, m]]))
            ends = (None, None)
            if who >= FEWEST:
                drawn = mean[:, k, m]
                ends = np.quantile(drawn[~np.isnan(drawn)], [tail, 1 - tail])
            results[-1][metric] = {
                "estimate": float(real.mean()) if real.size else None,
                "low": _number(ends[0]),
                "high": _number(ends[1]),
                "median": float(np.median(real)) if real.size else None,
                "patients": who,
            }
    return results


def _note(patients: int) -> str:
    if patients < FEWEST:
        return f"No intervals: they need {FEWEST} patients, and there are {patients}."
    if patients < 10:
        return f"The intervals of so few patients ({patients}) are too narrow."
    return ""


def _cropped(*both: np.ndarray) -> list[np.ndarray]:
    """Cuts masks to the box that holds them all."""
    box = ndimage.find_objects(np.any(both, axis=0).astype(np.uint8))
    return [mask[box[0]] if box else mask[:1] for mask in both]


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)

"""What is special in the report of masks: overlap, volumes, pictures of volumes."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medjax.evaluation.mask_metrics import MASK_METRICS
from medjax.evaluation.outlines import LESION_DILATION, LESION_OVERLAP, components
from medjax.files import write_table
from medjax.reports import charts, pictures
from medjax.reports.page import interval, label, show_table

TEMPLATE = "segmentation.html"
SUMS = ("true_lesions", "found_lesions", "true_ml", "predicted_ml")  # Not averaged.
PICTURE_SIDE = 400  # Pixels of a picture's longest side.
FIELD = 100.0  # mm that a picture shows at least, as far as there is any.
PLANES = ("axial", "coronal", "sagittal")  # Of the planes across D, H and W.


class PicturedVolume(NamedTuple):
    """A volume to be pictured."""

    name: str  # As in the rows of the results.
    image: np.ndarray  # [D, H, W], one sequence, 0 outside the brain; axes S, P, L.
    label: np.ndarray  # [D, H, W, K], inside where it isn't 0; so is `predicted`.
    predicted: np.ndarray
    spacing: np.ndarray  # [3] mm.


def sections(results: dict, cases: Iterable[PicturedVolume] | None) -> dict:
    """What segmentation.html needs beside the results; the cases are pictured."""
    order = worst_first(results)
    pictured = {case.name: planes(case, results) for case in cases or ()}
    colours = (pictures.TRUE, pictures.PREDICTED, pictures.BOTH)
    return {
        "item": "region",
        "averaged": [
            name
            for name in MASK_METRICS
            if name not in SUMS
            and any(
                r[name]["estimate"] is not None for r in results["regions"].values()
            )
        ],
        "distances": [name for name, m in MASK_METRICS.items() if m.kind == "mm"],
        "overlap_least": LESION_OVERLAP,
        "reach": LESION_DILATION,
        "rows": sorted(results["rows"], key=lambda row: order.index(row["name"])),
        "pictures": [(name, pictured[name]) for name in order if name in pictured],
        "keys": [f"#{bytes(colour).hex()}" for colour in colours],
        "agreement": agreement(results),
    }


def show(results: dict) -> None:
    """Prints the overlap and the distance of every region, whole and lesion-wise."""
    metrics = ("dice", "hd95", "lesion_dice", "lesion_hd95")
    regions = dict(results["regions"])
    if len(regions) > 1:
        regions["mean"] = results["mean"]
    show_table(
        f"{results['volumes']} volumes, {results['patients']} patients",
        ("", *map(label, metrics)),
        [
            (label(r), *(interval(row[m]) for m in metrics))
            for r, row in regions.items()
        ],
        caption=results["note"],
    )


def worst_first(results: dict) -> list[str]:
    """The volumes' names, from the lowest mean Dice over the regions."""
    dice = pd.DataFrame(results["rows"]).groupby("name", sort=False)["dice"].mean()
    return [*dice.sort_values(kind="stable").index]


def write_csv(results: dict, path: Path) -> None:
    """Writes one row a volume and region."""
    table = pd.DataFrame(results["rows"])
    members = [name for name in ("member_dice", "disagreement") if name in table]
    columns = ["name", "patient", "region", *MASK_METRICS, *members]
    write_table(path, table, columns=columns)


def planes(case: PicturedVolume, results: dict) -> list[dict]:
    """Draws three planes of every region that is there or was predicted."""
    low, high = _window(case.image)
    grey = np.where(case.image == 0, low, case.image)
    grey = ((grey - low) / (high - low))[..., None]
    rows = {(row["name"], row["region"]): row for row in results["rows"]}
    shown = []
    for k, region in enumerate(results["regions"]):
        masks = case.label[..., k] != 0, case.predicted[..., k] != 0
        if not np.any(masks):
            continue
        at, box = _about(masks[0] | masks[1], case.spacing)
        lengths = [part.stop - part.start for part in box]
        scale = PICTURE_SIDE / max(np.multiply(lengths, case.spacing))
        drawn = pictures.planes(grey, masks, at=at, spacing=case.spacing, box=box)
        row = rows[case.name, region]
        through = [
            {
                "plane": name,
                "picture": pictures.png(pictures.draw(plane, scale)),
                "slice": at[axis] + 1,
                "of": case.image.shape[axis],
            }
            for axis, (name, plane) in enumerate(zip(PLANES, drawn, strict=True))
        ]
        shown.append({"region": region, "row": row, "planes": through})
    return shown


def agreement(results: dict) -> list[tuple[str, dict, list[dict]]]:
    """(region, limits of agreement, charts) of true and predicted volumes.

    Source: Bland & Altman, Lancet 327 (1986) 307.
    """
    pictures = []
    for region, limits in results["agreement"].items():
        rows = [row for row in results["rows"] if row["region"] == region]
        true, predicted = (
            np.array([row[k] for row in rows]) for k in ("true_ml", "predicted_ml")
        )
        end = 1.05 * max(true.max(), predicted.max(), 1e-3)
        frame = charts.Frame(charts.SQUARE_SIZE, x=(0, end), y=(0, end))
        against = charts.chart(
            frame,
            title=f"{label(region)}: predicted against true volumes",
            labels=("true, ml", "predicted, ml"),
            lines=[("chance", charts.line(frame, [0, end], [0, end]))],
            points=[("point s0", *xy) for xy in zip(true, predicted, strict=True)],
        )
        differences = _differences(region, limits, true, predicted)
        pictures.append((region, limits, [against, differences]))
    return pictures


def _differences(
    region: str, limits: dict, true: np.ndarray, predicted: np.ndarray
) -> dict:
    """The Bland-Altman plot of a region, volumes in ml."""
    difference, mean = predicted - true, (predicted + true) / 2
    levels = [limits[k] for k in ("low", "high") if limits[k] is not None]
    ends = [0, limits["bias"], *levels, *difference]
    room = 0.05 * (max(ends) - min(ends)) or 1e-3
    frame = charts.Frame(
        charts.WIDE,
        x=(0, 1.05 * max(mean.max(), 1e-3)),
        y=(min(ends) - room, max(ends) + room),
        left=46,
    )
    kinds = [("chance", 0), ("level", limits["bias"]), *(("limit", v) for v in levels)]
    return charts.chart(
        frame,
        title=f"{label(region)}: difference of the volumes against their mean",
        labels=("mean of true and predicted, ml", "predicted − true, ml"),
        lines=[(kind, charts.line(frame, frame.x, [v, v])) for kind, v in kinds],
        points=[("point s0", *xy) for xy in zip(mean, difference, strict=True)],
    )


def _window(image: np.ndarray) -> tuple[float, float]:
    """Black and white: the brain's lowest and highest half percent."""
    inside = image[image != 0]
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside, (0.5, 99.5))
    return low, max(high, low + 1e-6)


def _about(mask: np.ndarray, spacing: np.ndarray) -> tuple[list[int], tuple]:
    """Finds where to look at a mask's largest component.

    The slice across each axis with most of it, and the box that is shown, [3].
    """
    component, size = components(mask)
    largest = component == np.argmax(size) + 1
    counts = [largest.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    box = []
    for count, step in zip(counts, spacing, strict=True):
        inside = np.flatnonzero(count)
        wide = max(1.3 * (np.ptp(inside) + 1) * step, FIELD) / step
        first = max(0, round((inside[0] + inside[-1] - wide) / 2))
        box.append(slice(first, min(round(first + wide), len(count))))
    return [int(np.argmax(count)) for count in counts], tuple(box)

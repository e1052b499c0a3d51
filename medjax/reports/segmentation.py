"""Results of segmentation -> one self-contained HTML page, JSON and CSV."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medjax.evaluation.segmentation import METRICS, components
from medjax.reports.page import ACCENT, INK, SOFT, interval, label, png, render, svg

NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "sensitivity": "Sensitivity",
    "ppv": "PPV",
    "hd95": "HD95, mm",
    "asd": "ASD, mm",
    "nsd": "NSD",
    "lesion_sensitivity": "Lesion sensitivity",
    "lesion_f1": "Lesion F1",
    "false_positives": "False lesions",
    "true_lesions": "True lesions",
    "found_lesions": "Found lesions",
    "true_ml": "True, ml",
    "predicted_ml": "Predicted, ml",
}
AVERAGED = METRICS[: METRICS.index("true_lesions")]
# Told apart with every kind of colour vision. Source: Okabe & Ito (2008).
TRUE, PREDICTED, BOTH = (230, 159, 0), (86, 180, 233), (255, 255, 255)
SIDE = 400  # Pixels of a picture's longest side.
FIELD = 100.0  # mm that a picture shows at least, as far as there is any.
LINE = 2  # Pixels, of a contour.
PLANES = ("axial", "coronal", "sagittal")  # Across D, H and W.


class Case(NamedTuple):
    """A volume to be pictured.

    name: as in the rows of the results.
    image: [D, H, W], one sequence, 0 outside the brain; axes S, P, L.
    label, predicted: [D, H, W, K], inside where they aren't 0.
    spacing: [3] mm.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    spacing: np.ndarray


def write(
    results: dict, cases: Iterable[Case], curve: list[dict], folder: Path, name: str
) -> Path:
    """Writes NAME.html, NAME.json and NAME.csv.

    Args:
      results: `evaluation.segmentation.summarise`'s, and split, source, model, steps,
        checkpoint; tolerance, in mm; posts, {region: what `postprocessing.Post` has};
        shown, the name of the sequence in the pictures; facts, {name: text} of the
        run; caveat, a sentence on why the results flatter, or ''.
      cases: those to be pictured, such as the first of `worst_first`. They are taken
        one by one.
      curve: the lines of metrics.jsonl.
      folder: where to.
      name: of the files.

    Returns:
      The page's path.
    """
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1))
    _write_csv(results, folder / f"{name}.csv")
    order = worst_first(results)
    pictures = {case.name: _pictures(case, results) for case in cases}
    html = render(
        "segmentation.html",
        results=results,
        names=NAMES,
        averaged=AVERAGED,
        rows=sorted(results["rows"], key=lambda row: order.index(row["name"])),
        pictures=[(one, pictures[one]) for one in order if one in pictures],
        keys=[f"#{bytes(colour).hex()}" for colour in (TRUE, PREDICTED, BOTH)],
        agreement=_agreement(results),
        training=_training(curve, results["checkpoint"]),
    )
    path = folder / f"{name}.html"
    path.write_text(html)
    return path


def show(results: dict) -> None:
    """Prints Dice, HD95 and the lesion-wise F1 of every region."""
    headings = ("dice", "hd95", "lesion_f1")
    title = f"{results['volumes']} volumes, {results['patients']} patients"
    table = Table(title=title, caption=results["note"] or None)
    table.add_column("")
    for metric in headings:
        table.add_column(NAMES[metric], justify="right")
    for region, found in _summaries(results):
        table.add_row(label(region), *(interval(found[m]) for m in headings))
    Console(soft_wrap=True).print(table)


def worst_first(results: dict) -> list[str]:
    """Names of the volumes, from the lowest mean Dice over the regions."""
    dice: dict[str, list] = {}
    for row in results["rows"]:
        dice.setdefault(row["name"], []).append(row["dice"])
    return sorted(dice, key=lambda name: np.mean(dice[name]))


def _summaries(results: dict) -> list[tuple[str, dict]]:
    """(region, its metrics), and the mean's if there are several."""
    found = list(results["regions"].items())
    return [*found, ("mean", results["mean"])] if len(found) > 1 else found


def _write_csv(results: dict, path: Path) -> None:
    """One row a volume and region."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("name", "patient", "region", *METRICS))
        writer.writeheader()
        writer.writerows(results["rows"])


def _pictures(case: Case, results: dict) -> list[dict]:
    """Of every region that is there or was predicted, three planes with contours."""
    low, high = _window(case.image)
    grey = np.where(case.image == 0, low, case.image)
    grey = np.clip((grey - low) / (high - low), 0, 1)
    found = []
    for k, region in enumerate(results["regions"]):
        true, said = case.label[..., k] != 0, case.predicted[..., k] != 0
        if not (true | said).any():
            continue
        through, box = _about(true | said, case.spacing)
        extent = [
            (a.stop - a.start) * s for a, s in zip(box, case.spacing, strict=True)
        ]
        planes = []
        for axis, plane in enumerate(PLANES):
            across = (*box[:axis], through[axis], *box[axis + 1 :])
            layers = (x[across] for x in (grey, true, said))
            picture = _drawn(
                *(x if axis == 0 else x[::-1] for x in layers),  # Up is up.
                np.delete(case.spacing, axis) * SIDE / max(extent),
            )
            place = {"slice": through[axis] + 1, "of": case.image.shape[axis]}
            planes.append({"plane": plane, "picture": png(picture), **place})
        rows = (row for row in results["rows"] if row["name"] == case.name)
        row = next(row for row in rows if row["region"] == region)
        found.append({"region": region, "row": row, "planes": planes})
    return found


def _window(image: np.ndarray) -> tuple[float, float]:
    """Black and white: the brain's lowest and highest half percent."""
    inside = image[image != 0]
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside, (0.5, 99.5))
    return low, max(high, low + 1e-6)


def _about(mask: np.ndarray, spacing: np.ndarray) -> tuple[list[int], tuple]:
    """Where to look at a mask's largest component.

    Returns:
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


def _drawn(
    grey: np.ndarray, true: np.ndarray, said: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """[H, W, 3] uint8: a plane in grey with both masks' contours.

    Args:
      grey: [h, w] in [0, 1]; true, said: [h, w] bool; scale: pixels a voxel.
    """
    height, width = (
        max(1, round(n * s)) for n, s in zip(grey.shape, scale, strict=True)
    )
    large = cv2.resize(grey.astype(np.float32), (width, height))
    picture = np.repeat(np.rint(large * 255).astype(np.uint8)[..., None], 3, axis=-1)
    edges = []
    for mask in (true, said):
        mask = cv2.resize(
            mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
        )
        inner = cv2.erode(mask, np.ones((2 * LINE + 1,) * 2, np.uint8))
        edges.append(mask > inner)
    # A dark seam, because lesions are as bright as the lines.
    seam = np.any(edges, axis=0).astype(np.uint8)
    picture[cv2.dilate(seam, np.ones((3, 3), np.uint8)) > 0] = 0
    picture[edges[0]], picture[edges[1]] = TRUE, PREDICTED
    picture[edges[0] & edges[1]] = BOTH
    return picture


def _agreement(results: dict) -> list[tuple[str, dict, str]]:
    """(region, its limits, picture) of true and predicted volumes."""
    pictures = []
    for region, limits in results["agreement"].items():
        rows = [row for row in results["rows"] if row["region"] == region]
        true = np.array([row["true_ml"] for row in rows])
        said = np.array([row["predicted_ml"] for row in rows])
        figure = Figure(figsize=(7.2, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        end = 1.05 * max(true.max(), said.max(), 1e-3)
        left.plot([0, end], [0, end], color=SOFT, lw=0.8, ls=":")
        left.plot(true, said, "o", color=ACCENT, ms=4, alpha=0.8)
        left.set(xlim=(-0.02 * end, end), ylim=(-0.02 * end, end), aspect="equal")
        left.set_xlabel("true, ml", fontsize=8)
        left.set_ylabel("predicted, ml", fontsize=8)
        right.axhline(0, color=SOFT, lw=0.8, ls=":")
        right.plot((true + said) / 2, said - true, "o", color=ACCENT, ms=4, alpha=0.8)
        right.axhline(limits["bias"], color=INK, lw=1.2)
        for value in (limits["low"], limits["high"]):
            if value is not None:
                right.axhline(value, color=INK, lw=0.8, ls="--")
        right.set_xlabel("mean of true and predicted, ml", fontsize=8)
        right.set_ylabel("predicted − true, ml", fontsize=8)
        pictures.append((region, limits, svg(figure)))
    return pictures


def _training(curve: list[dict], checkpoint: int) -> str:
    """Loss and validation scores over the steps; '' before the first line."""
    loss = [(line["step"], line["loss"]) for line in curve if "loss" in line]
    if not loss:
        return ""
    keys = dict.fromkeys(
        k for line in curve for k in line if k.startswith("validation_")
    )
    figure = Figure(figsize=(7.2 if keys else 3.6, 2.6), layout="constrained")
    axes = figure.subplots(1, 2 if keys else 1, squeeze=False)[0]
    axes[0].plot(*zip(*loss, strict=True), color=ACCENT, lw=1.4)
    axes[0].set_ylabel("training loss", fontsize=8)
    for number, key in enumerate(keys):
        points = [
            (line["step"], line[key]) for line in curve if line.get(key) is not None
        ]
        name = label(key.removeprefix("validation_"))
        style = ("-", "--", ":", "-.")[number % 4]
        axes[1].plot(*zip(*points, strict=True), f"o{style}", ms=3, lw=1.4, label=name)
    for one in axes:
        one.set_xlabel("step", fontsize=8)
    if keys:
        axes[1].axvline(checkpoint, color=INK, lw=0.8, ls="--", label="checkpoint used")
        axes[1].set_ylabel("validation", fontsize=8)
        axes[1].legend(fontsize=7, frameon=False)
    return svg(figure)

"""Heatmaps on the films that they explain, and the table of where they lie."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medjax.reports.drawing import fit, interval, label

MAP = "viridis"  # Its lightness rises evenly, whatever colours the eye tells apart.
OPAQUE = 0.65  # At the heatmap's maximum; where it is 0 the film is as it is.
SIDE = 800  # Pixels that a film is shown with, at most.
WIDE = 4.6  # Inches of a film.


def overlay(
    path: Path,
    pixels: np.ndarray,
    heatmap: np.ndarray,
    *,
    task: str,
    probability: float,
    threshold: float,
    spacing: tuple[float, float] = (math.nan, math.nan),
) -> None:
    """Writes a PNG: the film, and beside it the film under the heatmap.

    Args:
      path: of the PNG.
      pixels: [H, W] or [H, W, 3] in [0, 1].
      heatmap: [h, w] >= 0, of the whole film.
      task: what it speaks for.
      probability: of the task.
      threshold: the task's operating point; NaN if it has none.
      spacing: (x, y), mm a pixel, by which a film has its shape; NaN is square.
    """
    film = fit(pixels.reshape(*pixels.shape[:2], -1), SIDE)
    film = np.clip(np.repeat(film, 3 // film.shape[-1], axis=-1), 0, 1)
    stretch = 1.0 if math.isnan(sum(spacing)) else spacing[1] / spacing[0]
    highest = float(heatmap.max())
    share = np.asarray(heatmap, np.float32) / (highest if highest > 0 else 1)
    share = cv2.resize(share, film.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = colormaps[MAP](share)
    colours[..., 3] = OPAQUE * share
    tall = WIDE * stretch * film.shape[0] / film.shape[1]
    figure = Figure(figsize=(2 * WIDE + 0.9, tall + 0.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for one in axes:
        one.imshow(film, aspect=stretch)
        one.set_axis_off()
    axes[1].imshow(colours, aspect=stretch)
    bar = figure.colorbar(ScalarMappable(cmap=MAP), ax=axes[1], shrink=0.8, pad=0.01)
    bar.set_label("speaks for it, share of the maximum", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2)
    text = title(task, probability, threshold)
    figure.suptitle(text if highest > 0 else f"{text}: nothing speaks for it")
    figure.savefig(path, dpi=100)


def title(task: str, probability: float, threshold: float) -> str:
    """'Mass 0.93, above its operating point 0.41'."""
    text = f"{label(task)} {probability:.2f}"
    if math.isnan(threshold):
        return text
    side = "above" if probability >= threshold else "below"
    return f"{text}, {side} its operating point {threshold:.2f}"


def write(found: dict, path: Path) -> Path:
    """Writes where the heatmaps lie as JSON, and prints it.

    Args:
      found: `explaining.localise`'s.
      path: of the JSON, which is returned.
    """
    path.write_text(json.dumps(found, indent=1))
    console = Console(soft_wrap=True)
    of = f" of {found['stage']}" if found["stage"] else ""
    for measure, name in (("pointing", "Maximum in a box"), ("iou", "IoU with boxes")):
        table = Table(title=f"{name}: {found['method']}{of}")
        table.add_column("")
        for heading in ("marked", name, "chance", "others"):
            table.add_column(heading, justify="right", no_wrap=True)
        for task, one in found["tasks"].items():
            table.add_row(label(task), *_cells(one, measure))
        table.add_section()
        table.add_row("all", *_cells(found["all"], measure))
        console.print(table)
    console.print(
        "chance: the same heatmaps moved at random; others: heatmaps of other patients "
        "with the finding"
    )
    check = found["randomisation"]
    alike = (f"{k} {_number(v)}" for k, v in check["correlation"].items())
    console.print("rank correlation with random weights down to:", ", ".join(alike))
    if not check["depends"]:
        console.print("note: these heatmaps hardly depend on what the model has learnt")
    return path


def _cells(one: dict, measure: str) -> list[str]:
    found = one[measure]
    references = (_number(found[name]) for name in ("chance", "others"))
    return [str(one["pairs"]), interval(found, 2), *references]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"

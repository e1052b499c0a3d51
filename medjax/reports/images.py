"""A film beside itself under its heatmap, small enough for a page of a hundred.

Images before and after augmentation -> one self-contained HTML page.

Heatmaps on the films that they explain, and the table of where they lie.
"""

import base64
import json
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from medjax.reports.page import fit, interval, label, middle, png, render

SIDE = 176  # Pixels of a film's longer side.
GAP = 4  # Pixels between the two.
QUALITY = 70  # Of WebP, in percent.
FRAME = (255, 122, 0)  # Of a box: no colour of the heatmap.


def picture(
    image: np.ndarray, heatmap: np.ndarray, boxes: np.ndarray = ()
) -> tuple[str, tuple[int, int]]:
    """A picture as a data URI, and its width and height in pixels.

    Args:
      image: [H, W, C] or [D, H, W, C] uint8; a volume shows its middle slice.
      heatmap: [h, w] or [d, h, w] >= 0, of the whole image.
      boxes: [n, 2, 2], the lower and the upper corner (y, x) in pixels of the image,
        which are framed on both halves; none for a volume.
    """
    flat = middle(image)
    heatmap = heatmap[len(heatmap) // 2] if heatmap.ndim == 3 else heatmap
    film = fit(flat, SIDE, enlarge=True).astype(np.float32)
    film = np.repeat(film, 3 // film.shape[-1], axis=-1)
    highest = float(heatmap.max())
    share = np.asarray(heatmap, np.float32) / (highest if highest > 0 else 1)
    share = cv2.resize(share, film.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colour = 255 * colormaps[MAP](share)[..., :3]
    opaque = OPAQUE * share[..., None]
    halves = [film, (1 - opaque) * film + opaque * colour]
    scale = film.shape[0] / flat.shape[0], film.shape[1] / flat.shape[1]
    for half in halves:
        for low, high in boxes:
            corners = (np.rint(np.multiply(end, scale)) for end in (low, high))
            first, last = (tuple(int(n) for n in end[::-1]) for end in corners)
            cv2.rectangle(half, first, last, FRAME, 1)
    both = np.full((film.shape[0], 2 * film.shape[1] + GAP, 3), 255, np.float32)
    both[:, : film.shape[1]], both[:, -film.shape[1] :] = halves
    pixels = np.clip(np.rint(both), 0, 255).astype(np.uint8)[..., ::-1]
    _, code = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    data = "data:image/webp;base64," + base64.b64encode(code.tobytes()).decode()
    return data, both.shape[1::-1]


WIDTH = 224  # Pixels of a plane's longest side in a picture.
UNITS = {"rotation": "°", "distance": " pixels", "max_sigma": " pixels"}
GAP_GALLERY = 6  # Pixels between planes.
OUTLINE = (255, 176, 0)


class Plane(NamedTuple):
    """image: [H, W, 1 or 3] in [0, 1]; mask: [H, W] bool or None; spacing: (y, x) mm."""

    image: np.ndarray
    mask: np.ndarray | None
    spacing: tuple[float, float]


def write(gallery: dict, path: Path) -> Path:
    """Writes the page.

    Args:
      gallery: given (a modality or None), draws, seed, notes and policies: {modality:
        {called, takes, volumes, ops: [{name, options, what}], off: [{op, refused, why}],
        rows: [{name, pictures: of `picture`}]}}.
      path: the file; its folder is made.
    """
    pictures = {
        modality: [
            {"name": row["name"], "pictures": [png(p) for p in row["pictures"]]}
            for row in one["rows"]
        ]
        for modality, one in gallery["policies"].items()
    }
    values = {
        "gallery": gallery,
        "pictures": pictures,
        "volumes": any(one["volumes"] for one in gallery["policies"].values()),
        "units": UNITS,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("gallery.html", **values))
    return path


def picture_gallery(planes: list[Plane]) -> np.ndarray:
    """Planes one below another, a millimetre as long in each; a single one as it is.

    Returns:
      [H, W, 1 or 3] uint8, the mask's edge in colour.
    """
    if len(planes) == 1:
        return _drawn(planes[0], 0)
    longest = max(max(np.multiply(p.image.shape[:2], p.spacing)) for p in planes)
    parts = [_drawn(plane, WIDTH / longest) for plane in planes]
    width = max(part.shape[1] for part in parts)
    spare = [width - part.shape[1] for part in parts]
    centred = [
        np.pad(part, ((GAP_GALLERY, 0), (n // 2, n - n // 2), (0, 0)))
        for part, n in zip(parts, spare, strict=True)
    ]
    return np.concatenate(centred)[GAP_GALLERY:]


def _drawn(plane: Plane, scale: float) -> np.ndarray:
    """A plane in bytes, at `scale` pixels a mm; 0 keeps its own pixels."""
    image, mask = plane.image, plane.mask
    if scale:
        height, width = np.multiply(image.shape[:2], plane.spacing) * scale
        size = (max(1, round(width)), max(1, round(height)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    image = image.reshape(*image.shape[:2], -1)
    if mask is None:
        return image
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    inside = cv2.resize(mask.astype(np.float32), image.shape[1::-1]) > 0.5
    edge = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > inside
    image[edge] = OUTLINE
    return image


MAP = "viridis"  # Its lightness rises evenly, whatever colours the eye tells apart.
OPAQUE = 0.65  # At the heatmap's maximum; where it is 0 the film is as it is.
SIDE_HEATMAPS = 800  # Pixels that a film is shown with, at most.
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
    film = fit(pixels.reshape(*pixels.shape[:2], -1), SIDE_HEATMAPS)
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


def write_heatmaps(found: dict, path: Path) -> Path:
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

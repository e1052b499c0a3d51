"""Images before and after augmentation -> one self-contained HTML page."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from medjax.reports.drawing import png, render

WIDTH = 224  # Pixels of a plane's longest side in a picture.
UNITS = {"rotation": "°", "distance": " pixels", "max_sigma": " pixels"}
GAP = 6  # Pixels between planes.
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


def picture(planes: list[Plane]) -> np.ndarray:
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
        np.pad(part, ((GAP, 0), (n // 2, n - n // 2), (0, 0)))
        for part, n in zip(parts, spare, strict=True)
    ]
    return np.concatenate(centred)[GAP:]


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

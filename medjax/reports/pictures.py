"""Pictures of films and volumes: scaled, outlined, and under heatmaps."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medjax.files import whole
from medjax.reports.page import label

SIDE = 176  # Pixels of a film's longer side beside its heatmap.
FILE_WIDTH = 460  # Pixels across a film that has a file of its own.
PICTURE_GAP = 4  # Pixels between two pictures.
QUALITY = 70  # Of WebP, in percent.
COLOURS = cv2.COLORMAP_VIRIDIS  # Its lightness rises evenly, for all colour vision.
OPAQUE = 0.65  # At the heatmap's maximum; where it is 0 the film is as it is.
BOX_COLOUR = (255, 122, 0)  # No colour of the heatmap.
# Of masks, told apart with every kind of colour vision. Source: Okabe & Ito (2008).
TRUE, PREDICTED, BOTH = (230, 159, 0), (86, 180, 233), (255, 255, 255)
LINE = 2  # Pixels, of a contour.


class Plane(NamedTuple):
    """One plane of a volume, or a film."""

    image: np.ndarray  # [H, W, 1 or 3] in [0, 1].
    masks: tuple[np.ndarray, ...] = ()  # One or two of [H, W] bool, drawn as contours.
    spacing: tuple[float, float] = (1.0, 1.0)  # (y, x) mm.


def middle(image: np.ndarray) -> np.ndarray:
    """Selects what is shown of [H, W, C] or [D, H, W, C]: [H, W, 1 or 3].

    Of a volume it is the middle slice; of other than three channels the first, because
    the sequences of an MRI are no colours.
    """
    if image.ndim == 4:
        image = image[len(image) // 2]
    return image if image.shape[-1] in (1, 3) else image[..., :1]


def fit(image: np.ndarray, side: int, *, enlarge: bool = False) -> np.ndarray:
    """Scales [H, W, C] so that its longer side has `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1 and not enlarge:
        return image
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    return resize(image, height, width)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales [H, W, C], with averages of the pixels where it gets smaller."""
    smaller = height < image.shape[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    image = cv2.resize(image, (width, height), interpolation=method)
    return image.reshape(height, width, -1)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """[0, 1] as uint8."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def png(image: np.ndarray) -> str:
    """[H, W, 1 or 3] uint8, red first, as a data URI."""
    return _uri(image, "png")


def planes(
    volume: np.ndarray,
    masks: Sequence[np.ndarray],
    *,
    at: Sequence[int],
    spacing: Sequence[float],
    box: tuple[slice, ...] = (slice(None),) * 3,
) -> list[Plane]:
    """The axial, coronal and sagittal plane of a volume, the head up.

    Args:
      volume: [D, H, W, C] in [0, 1]; axes S, P, L.
      masks: one or two of [D, H, W].
      at: the slice across each axis.
      spacing: [3] mm.
      box: the part of each axis that is shown.
    """
    planes = []
    for axis in range(3):
        across = (*box[:axis], at[axis], *box[axis + 1 :])
        up = slice(None, None, 1 if axis == 0 else -1)
        image, *layers = [layer[across][up] for layer in (volume, *masks)]
        size = tuple(np.delete(spacing, axis))
        planes.append(Plane(image, tuple(layer != 0 for layer in layers), size))
    return planes


def through(
    volume: np.ndarray, heatmap: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The three planes of a volume through its heatmap's maximum in the body.

    Args:
      volume: [D, H, W, C] uint8, 0 outside of the body; shown as by `middle`.
      heatmap: [D, H, W] >= 0.
      spacing: [3] mm.

    Returns the planes below each other, [h, w, 1 or 3] uint8 with stretched contrast, and
    their heatmap [h, w].
    """
    inside = heatmap * volume.any(axis=-1)
    at = np.unravel_index(np.argmax(inside), inside.shape)
    if not inside.max() > 0:
        at = [n // 2 for n in inside.shape]
    grey = volume if volume.shape[-1] == 3 else volume[..., :1]
    low, high = np.percentile(grey[grey > 0], (1, 99.5)) if grey.any() else (0, 1)
    grey = np.clip((grey - low) / max(high - low, 1), 0, 1)
    both = np.concatenate([grey, heatmap[..., None]], axis=-1).astype(np.float32)
    parts = planes(both, (), at=at, spacing=spacing)
    whole = stacked([_scaled(part, 1 / min(spacing)) for part in parts], 1)
    return as_bytes(whole[..., :-1]), whole[..., -1]


def draw(plane: Plane, scale: float | None = None) -> np.ndarray:
    """Draws a plane with the contours of its masks, [h, w, 1 or 3] uint8.

    The first mask is in the colour TRUE, the second in PREDICTED, and what they share
    in BOTH. `scale` is in pixels a mm; None keeps the plane's own pixels.
    """
    picture = as_bytes(plane.image if scale is None else _scaled(plane, scale))
    if not plane.masks:
        return picture
    picture = _coloured(picture)
    edges = []
    for mask in plane.masks:
        size = picture.shape[1::-1]
        large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inner = cv2.erode(large, np.ones((2 * LINE + 1,) * 2, np.uint8))
        edges.append(large > inner)
    # A dark seam sets the lines apart from lesions, which are as bright.
    seam = np.any(edges, axis=0).astype(np.uint8)
    picture[cv2.dilate(seam, np.ones((3, 3), np.uint8)) > 0] = 0
    for edge, colour in zip(edges, (TRUE, PREDICTED), strict=False):
        picture[edge] = colour
    picture[np.all(edges, axis=0) & (len(edges) > 1)] = BOTH
    return picture


def _scaled(plane: Plane, scale: float) -> np.ndarray:
    """A plane's image with so many pixels a mm, [h, w, C] float32."""
    height, width = np.multiply(plane.image.shape[:2], plane.spacing) * scale
    size = max(1, round(width)), max(1, round(height))
    image = plane.image.astype(np.float32)
    large = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return large.reshape(*large.shape[:2], -1)


def stacked(parts: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Pictures [h, w, C] below each other, in the middle, with black pixels between."""
    wide = max(part.shape[1] for part in parts)
    lefts = [(wide - part.shape[1]) // 2 for part in parts]
    rows = [
        np.pad(part, ((0, gap), (left, wide - part.shape[1] - left), (0, 0)))
        for part, left in zip(parts, lefts, strict=True)
    ]
    return np.concatenate(rows)[:-gap]


def picture(
    image: np.ndarray, heatmap: np.ndarray, boxes: np.ndarray = (), *, side: int = SIDE
) -> tuple[str, tuple[int, int]]:
    """Draws a film beside itself under its heatmap, small enough for a long page.

    Args:
      image: [H, W, C] uint8.
      heatmap: [h, w] >= 0, of the whole image.
      boxes: [n, 2, 2], the lower and the upper corner (y, x) in pixels of the image,
        which are framed on both halves.
      side: pixels of the film's longer side.

    Returns a data URI, and the picture's width and height in pixels.
    """
    film = _coloured(fit(image, side, enlarge=True))
    halves = [film.copy(), _under(film, heatmap)]
    scale = np.divide(film.shape[:2], image.shape[:2])
    for half in halves:
        for corners in boxes:
            first, last = np.rint(corners * scale).astype(int)[:, ::-1].tolist()
            cv2.rectangle(half, first, last, BOX_COLOUR, 1)
    gap = np.full((film.shape[0], PICTURE_GAP, 3), 255, np.uint8)
    both = np.concatenate([halves[0], gap, halves[1]], axis=1)
    data = _uri(both, "webp", [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    return data, both.shape[1::-1]


def ramp() -> str:
    """A data URI of the colours of heatmaps, from nothing to the maximum."""
    return _uri(_colours(np.linspace(0, 1, 120)[None].repeat(10, axis=0)), "png")


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
    """Writes a PNG: the film, the film under the heatmap, and what the colours mean.

    Args:
      pixels: [H, W] or [H, W, 3] in [0, 1].
      heatmap: [h, w] >= 0, of the whole film.
      task: the finding, with its `probability` and `threshold`, NaN if it has none.
      spacing: (x, y), mm a pixel, which gives the film its shape; NaN is square.
    """
    stretch = 1.0 if math.isnan(sum(spacing)) else spacing[1] / spacing[0]
    film = pixels.reshape(*pixels.shape[:2], -1)
    tall = max(1, round(FILE_WIDTH * stretch * film.shape[0] / film.shape[1]))
    film = _coloured(as_bytes(resize(film.astype(np.float32), tall, FILE_WIDTH)))
    top, bar = 40, 3 * FILE_WIDTH // 100
    canvas = np.full((top + tall + 10, 2 * FILE_WIDTH + bar + 90, 3), 255, np.uint8)
    left = 10 + np.cumsum([0, FILE_WIDTH + PICTURE_GAP, FILE_WIDTH + 14])
    ramp = _colours(np.repeat(np.linspace(1, 0, tall)[:, None], bar, axis=1))
    for x, part in zip(left, (film, _under(film, heatmap), ramp), strict=True):
        canvas[top : top + tall, x : x + part.shape[1]] = part
    image = Image.fromarray(canvas)
    text = title(task, probability, threshold)
    text = text if heatmap.max() > 0 else f"{text}; the heatmap is empty"
    pen, small = ImageDraw.Draw(image), ImageFont.load_default(12)
    pen.text((left[0], 10), text, "black", ImageFont.load_default(18))
    for y, anchor, value in ((top, "la", "highest"), (top + tall, "ld", "none")):
        pen.text((left[2] + bar + 4, y), value, "black", small, anchor=anchor)
    with whole(path) as partial:
        image.save(partial)


def title(task: str, probability: float, threshold: float) -> str:
    """'Mass 0.93, above its threshold 0.41'."""
    text = f"{label(task)} {probability:.2f}"
    if math.isnan(threshold):
        return text
    side = "above" if probability >= threshold else "below"
    return f"{text}, {side} its threshold {threshold:.2f}"


def _under(film: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """The film [H, W, 3] uint8 under a heatmap [h, w] >= 0."""
    share = np.asarray(heatmap, np.float32) / max(float(heatmap.max()), 1e-30)
    share = cv2.resize(share, film.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    opaque = OPAQUE * share[..., None]
    mixed = (1 - opaque) * film + opaque * _colours(share)
    return np.rint(mixed).astype(np.uint8)


def _colours(share: np.ndarray) -> np.ndarray:
    """[H, W] in [0, 1] as [H, W, 3] uint8, red first."""
    return cv2.applyColorMap(as_bytes(share), COLOURS)[..., ::-1]


def _coloured(image: np.ndarray) -> np.ndarray:
    """[H, W, 1 or 3] with three channels, as an array of its own."""
    return np.repeat(image, 3 // image.shape[-1], axis=-1)


def _uri(image: np.ndarray, kind: str, options: Sequence[int] = ()) -> str:
    _, code = cv2.imencode(f".{kind}", image[..., ::-1], options)
    data = base64.b64encode(code.tobytes()).decode()
    return f"data:image/{kind};base64,{data}"

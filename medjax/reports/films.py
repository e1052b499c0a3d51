"""A film beside itself under its heatmap, small enough for a page of a hundred."""

import base64

import cv2
import numpy as np
from matplotlib import colormaps

from medjax.reports.drawing import fit, middle
from medjax.reports.heatmaps import MAP, OPAQUE

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

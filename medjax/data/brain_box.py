"""Which voxels of an MRI are the patient, and the box that holds them."""

import cv2
import numpy as np
from scipy import ndimage

SMOOTH = 2.0  # mm: what Otsu's threshold looks at is blurred, so that noise is no head.
CLOSED = 10.0  # mm: gaps of twice that between bright parts are closed.
# A stripped image has at least this share of zeros around the brain, at most this
# share of the brain is holes in it or specks beside it, and at its edge it is at least
# so bright, as a share of bright tissue. What a scanner leaves around a head when it
# masks the air fails the last: measured, 0.01 against 0.05 to 0.6.
ZEROS, SPECKS, EDGE = 0.05, 0.02, 0.03


def foreground(image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Marks the brain of a skull-stripped image, or the head of another.

    A stripped image says itself where the brain is: its zeros are the outside, and
    all else is one solid body. Where noise, or what a scanner leaves of it, surrounds
    the head, it is the head that is marked, skull and scalp too: this strips no skull.
    There it is the largest part above Otsu's threshold, closed over gaps of dark bone
    and air, and with the holes of each axial slice filled.

    Args:
      image: [D, H, W, C], C sequences of one patient on one grid, in any units.
      spacing: [3] mm.

    Returns:
      [D, H, W] bool; all False where the image has one value.

    Source: Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62.
    """
    grey, some = _grey(image), np.any(image != 0, axis=-1)
    body = ndimage.binary_fill_holes(_largest(some))
    if _is_stripped(grey, some, body):
        return body
    head = _largest(_closed(_above_otsu(grey, spacing), spacing))
    return np.stack([ndimage.binary_fill_holes(axial) for axial in head])


def box(mask: np.ndarray, margin: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box around a mask, wider by a margin, but within the image.

    Args:
      mask: [D, H, W] bool, not empty.
      margin: [3], in voxels; rounded up.
    """
    sides = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        more = int(np.ceil(margin[axis]))
        start = max(int(found[0]) - more, 0)
        sides.append(slice(start, min(int(found[-1]) + 1 + more, mask.shape[axis])))
    return tuple(sides)


def _is_stripped(grey: np.ndarray, some: np.ndarray, body: np.ndarray) -> bool:
    """Whether what isn't 0 is a brain: one solid body that ends in tissue."""
    if not 0 < np.mean(some) < 1 - ZEROS or np.sum(body ^ some) > SPECKS * some.sum():
        return False
    edge = some & ~ndimage.binary_erosion(some, border_value=1)
    return np.median(grey[edge]) > EDGE * np.percentile(grey[some], 90)


def _grey(image: np.ndarray) -> np.ndarray:
    """[D, H, W] in [0, 1]: the mean of the sequences, each scaled to that."""
    grey = np.zeros(image.shape[:3], np.float32)
    for sequence in np.moveaxis(image, -1, 0):
        low, high = np.percentile(sequence, (0.5, 99.5)).astype(np.float32)
        if high > low:
            grey += np.clip((sequence - low) / (high - low), 0, 1)
    return grey / image.shape[-1]


def _above_otsu(grey: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """[D, H, W] bool, of the blurred image."""
    # The root: else the threshold parts bright tissue from dark, not tissue from air.
    smooth = np.sqrt(ndimage.gaussian_filter(grey, SMOOTH / np.asarray(spacing)))
    levels = np.rint(255 * smooth / max(smooth.max(), 1e-9)).astype(np.uint8)
    kind = cv2.THRESH_BINARY | cv2.THRESH_OTSU
    _, above = cv2.threshold(levels.reshape(len(levels), -1), 0, 1, kind)
    return above.reshape(levels.shape).astype(bool)


def _closed(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Dilates by a ball, and erodes by the same; the image's faces aren't eroded."""
    if not mask.any():
        return mask
    wide = ndimage.distance_transform_edt(~mask, spacing) <= CLOSED
    if wide.all():
        return wide
    return ndimage.distance_transform_edt(wide, spacing) > CLOSED


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest of the parts that touch by their faces."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (parts == sizes.argmax()) & mask

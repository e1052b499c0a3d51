"""Which voxels of an MRI are the patient, and the box that holds them."""

import cv2
import numpy as np
from scipy import ndimage

SMOOTH = 2.0  # mm: what Otsu's threshold looks at is blurred, so that noise is no head.
ZEROS = 0.05  # A stripped image has at least this share of zeros around the brain,
SPECKS = 0.003  # and at most this share of the brain is holes, or specks beside it.


def foreground(image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Marks the brain of a skull-stripped image, or the head of another.

    A stripped image says itself where the brain is: its zeros are the outside, and
    all else is one solid body. Where noise, or what a scanner leaves of it, surrounds
    the head, it is the head that is marked, skull and scalp too: this strips no skull.
    There it is the largest part above Otsu's threshold, with the holes of each axial
    slice filled, as dark bone and air lie in the head.

    Args:
      image: [D, H, W, C], C sequences of one patient on one grid, in any units.
      spacing: [3] mm.

    Returns:
      [D, H, W] bool; all False where the image has one value.

    Source: Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62.
    """
    some = np.any(image != 0, axis=-1)
    body = ndimage.binary_fill_holes(_largest(some))
    solid = np.sum(body ^ some) <= SPECKS * np.sum(some)
    if solid and np.mean(some) < 1 - ZEROS:
        return body
    head = _largest(_above_otsu(image, spacing))
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


def _above_otsu(image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """[D, H, W] bool, on the mean of the sequences, each to [0, 1]."""
    low, high = np.percentile(image, (0.5, 99.5), axis=(0, 1, 2))
    varies = high > low
    if not varies.any():
        return np.zeros(image.shape[:3], bool)
    image, low, high = image[..., varies], low[varies], high[varies]
    mean = np.clip((image - low) / (high - low), 0, 1).mean(axis=-1)
    smooth = ndimage.gaussian_filter(mean, SMOOTH / np.asarray(spacing))
    grey = np.rint(255 * smooth / smooth.max()).astype(np.uint8)
    flat = grey.reshape(len(grey), -1)
    _, above = cv2.threshold(flat, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return above.reshape(grey.shape).astype(bool)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest of the parts that touch by their faces."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (parts == sizes.argmax()) & mask

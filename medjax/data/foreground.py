"""What of a scan is background: air, padding, or what was cut away around a brain.

`data.foreground` names one of KINDS, what stays, see `inside`.
"""

import cv2
import numpy as np
from scipy import ndimage

KINDS = ("head", "body", "nonzero", "none")
CONSTANT_CORNERS = 5  # Of eight: so many have one value where the border is constant.
CONSTANT_TOLERANCE = 1e-5  # Of an interpolated constant: a share of the image's range.
# As shares of the rest's range above its darkest: three quarters of what touches padding
# are air, below AIR; a border above NEAR isn't the darkest.
AIR, NEAR = 0.1, 0.05


def on_zero(voxels: np.ndarray, kind: str = "body") -> tuple[np.ndarray, float]:
    """Makes the background 0, whatever the constant is that surrounds [D, H, W].

    Every other place then asks one thing: whether a voxel is 0. Around a stripped brain
    the constant may be -1024 after a rescaling, or -0.6 after a z-score. Around air it
    is padding, such as CT's -3024, and becomes air. Without a constant, an image with
    negative values starts at its darkest. One without, and with 0 around it, is kept.
    Of the kind 'nonzero' all but the constant is above 0, and of 'none' all is.

    Returns:
      The intensities, float32, and what was subtracted from those inside the border.
    """
    value, border = _border(voxels)
    border &= kind != "none"
    rest = voxels[~border]
    if rest.size == 0:
        return voxels, 0.0
    if kind in ("nonzero", "none"):
        floor = rest.min() - np.ptp(voxels)
        return np.where(border, 0, voxels - floor), float(floor)
    if value in (None, 0) and rest.min() >= 0:
        return voxels, 0.0
    low, high = np.percentile(rest, (0.5, 99.5))
    if value is None:
        return voxels - np.float32(low), float(low)
    edge = voxels[ndimage.binary_dilation(border) & ~border]
    if np.percentile(edge, 75) < low + AIR * (high - low):
        air = np.median(edge)
        return np.where(border, air, voxels) - np.float32(low), float(low)
    floor = np.float32(value if value <= low + NEAR * (high - low) else low)
    return np.where(border, 0, voxels - floor), float(floor)


def _border(voxels: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The value that most corners share, or None; and where it goes on from a face."""
    corners = voxels[np.ix_(*[[0, -1]] * 3)]
    value, most = np.median(corners), CONSTANT_TOLERANCE * np.ptp(voxels)
    if np.sum(np.abs(corners - value) <= most) < CONSTANT_CORNERS:
        return None, np.zeros(voxels.shape, bool)
    same = np.abs(voxels - value) <= most
    if value == 0 and voxels.min() >= 0:
        return 0.0, same
    blank = np.zeros(voxels.shape, bool)
    return float(value), ndimage.binary_propagation(blank, mask=same, border_value=1)


PART_SHARE = 0.05  # Parts of the body are large from this share of the largest on.
SMOOTH = 2.0  # mm: the image is blurred before Otsu's threshold, against noise.
CLOSED = 10.0  # mm: gaps of up to twice that between bright parts are closed.
# A skull-stripped image has at least a share ZEROS of zeros around the brain; holes and
# specks are at most a share SPECKS of the brain; and its edge has at least a share EDGE
# of the brightness of bright tissue. A head whose air the scanner masked fails the
# last: measured, 0.01 against 0.05 to 0.6.
ZEROS, SPECKS, EDGE = 0.05, 0.02, 0.03
# An image lies inside the body if this much of each face does: 0.48 and more of crops to
# a hippocampus, 0 of some face of a whole head.
FACE_SHARE = 0.3


def inside(image: np.ndarray, spacing: np.ndarray, kind: str = "body") -> np.ndarray:
    """[D, H, W] bool: the foreground of an image [D, H, W, C], one of KINDS.

    In a skull-stripped image the zeros are the outside, and the rest is one solid body.
    Where noise surrounds the head, the head is marked with skull and scalp: this does
    no skull-stripping. The head is the largest part above Otsu's threshold, closed
    over gaps of dark bone and air, and with the holes of each axial slice filled. If it
    goes on beyond every face, all is True: a crop has dark tissue and no air. Where the
    image has one value, all is False. A 'body' has all its large parts.

    Source: Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62.
    """
    if kind == "none":
        return np.ones(image.shape[:3], bool)
    nonzero = np.any(image != 0, axis=-1)
    if kind == "nonzero":
        return ndimage.binary_fill_holes(nonzero)
    share = 1.0 if kind == "head" else PART_SHARE
    grey = _grey(image)
    body = ndimage.binary_fill_holes(_large(nonzero, share))
    if _is_stripped(grey, nonzero, body):
        return body
    body = _large(_closed(_above_otsu(grey, spacing), spacing), share)
    body = np.stack([ndimage.binary_fill_holes(axial) for axial in body])
    faces = [np.take(body, end, axis).mean() for axis in range(3) for end in (0, -1)]
    return body | (min(faces) > FACE_SHARE)


def box(mask: np.ndarray, margin: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box around a mask that isn't empty, wider by a margin [3] in voxels.

    It stays within the image.
    """
    sides = []
    wide = np.ceil(margin - 1e-3).astype(int)  # Headers are rounded.
    for axis, more in enumerate(wide.tolist()):
        inside = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))).tolist()
        start, stop = inside[0] - more, inside[-1] + 1 + more
        sides.append(slice(max(start, 0), min(stop, mask.shape[axis])))
    return tuple(sides)


def _is_stripped(grey: np.ndarray, nonzero: np.ndarray, body: np.ndarray) -> bool:
    """Whether the nonzero voxels are a brain: one solid body that ends in tissue."""
    if not 0 < np.mean(nonzero) < 1 - ZEROS:
        return False
    if np.sum(body ^ nonzero) > SPECKS * nonzero.sum():
        return False
    edge = nonzero & ~ndimage.binary_erosion(nonzero, border_value=1)
    return np.median(grey[edge]) > EDGE * np.percentile(grey[nonzero], 90)


def _grey(image: np.ndarray) -> np.ndarray:
    """[D, H, W] in [0, 1]: the mean of the sequences, each scaled to that range."""
    grey = np.zeros(image.shape[:3], np.float32)
    for sequence in np.moveaxis(image, -1, 0):
        low, high = np.percentile(sequence, (0.5, 99.5)).astype(np.float32)
        if high > low:
            grey += np.clip((sequence - low) / (high - low), 0, 1)
    return grey / image.shape[-1]


def _above_otsu(grey: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """[D, H, W] bool, of the blurred image."""
    # Without the root, the threshold divides bright tissue from dark, not from air.
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


def _large(mask: np.ndarray, share: float) -> np.ndarray:
    """The components of this share of the largest or more, connected by their faces."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= max(share * sizes.max(), 1))[parts]

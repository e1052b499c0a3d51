"""Sequences on one grid -> a case, ready for a network and for the way back.

The volume is resampled to the spacing that is asked for, cropped to the head and made
z-scores. What is needed to take a prediction back to the grid of the file stays with
the case; `original.py` does that.

Which voxels of an MRI are the patient, and the box that holds them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from medjax.data.nifti import Grid
from medjax.errors import InputError
from medjax.geometry import grid


class Case(NamedTuple):
    """One patient, prepared.

    image: [D, H, W, C] float32, z-scores inside the brain and 0 outside, unless
      other units were asked for; axes as `nifti.Volume` has them.
    label: [D, H, W, K] uint8, 0 or 1; regions may overlap. None if there is no mask.
    presence: [C] float32, 1, or 0 for a sequence that is missing and 0 everywhere.
    spacing: [3] float64, mm.
    affine: [4, 4] float64, indices of D, H, W to RAS millimetres.
    original: the grid of the first sequence's file, as it is stored there.
    """

    image: np.ndarray
    label: np.ndarray | None
    presence: np.ndarray
    spacing: np.ndarray
    affine: np.ndarray
    original: Grid


def make_case(
    image: np.ndarray,
    label: np.ndarray | None,
    affine: np.ndarray,
    *,
    presence: np.ndarray | None = None,
    original: Grid | None = None,
    spacing: Sequence[float] = (),
    margin: float = 5.0,
    clip: tuple[float, float] = (0.1, 99.9),
    units: str = "z_scores",
) -> Case:
    """Prepares arrays that lie on one grid.

    The head is found before resampling, which would blur its edge. It and the regions
    are interpolated linearly and cut at a half: a region inside another stays inside.
    Of nearest voxels, blurred masks and this, this came back nearest to the original;
    still, a coarser grid costs small lesions. Of 49 and 140 of two patients with
    multiple sclerosis at 1 mm, 38 and 98 came back from 1.5 mm, 20 and 45 from 2 mm.

    Args:
      image: [D, H, W, C] in any units.
      label: [D, H, W, K], 0 or 1, or None.
      affine: [4, 4], indices of D, H, W to RAS millimetres.
      presence: [C], 0 for a channel to leave at 0; None has all of them.
      original: the grid to go back to; None is this one.
      spacing: [3] mm, or () to keep the grid's.
      margin: mm kept around the head; a label outside is never cut off.
      clip: percentiles within the head; what is beyond them is cut to them first, as
        a bright vessel must not set the scale. (0, 100) cuts nothing.
      units: of the case's image; 'own' keeps those of `image`, and cuts nothing.

    Raises:
      InputError: a spacing that isn't three positive numbers, or no head.

    Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, supplement: z-scores
    inside the brain's mask, and crops to it.
    """
    present = np.ones(image.shape[-1]) if presence is None else np.asarray(presence)
    start = Grid(image.shape[:3], np.asarray(affine, np.float64))
    masks = foreground(image[..., present > 0], _spacing(start.affine))
    masks = masks[..., None]
    if label is not None:
        masks = np.concatenate([masks, label > 0], axis=-1)
    target = _target(start, spacing)
    if target is not start:
        image = resample(image, start.affine, target)
        masks = np.asarray(grid.resample(masks, start.affine, *target)) >= 0.5
    if not masks[..., 0].any():
        raise InputError("no head is found: the image has one value, or next to none")
    extent = box(masks.any(axis=-1), margin / _spacing(target.affine))
    moved = target.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ [side.start for side in extent]
    image, masks = image[extent], masks[extent]
    head = masks[..., 0]
    if units == "own":
        image = np.where(head[..., None] & (present > 0), image, 0).astype(np.float32)
    else:
        image = _z_scores(image, head, present, clip)
    return Case(
        image,
        None if label is None else masks[..., 1:].astype(np.uint8),
        present.astype(np.float32),
        _spacing(moved),
        moved,
        original or start,
    )


def resample(
    voxels: np.ndarray, affine: np.ndarray, target: Grid, matrix=None
) -> np.ndarray:
    """Reads an image on another grid, linearly; on a coarser one without aliasing.

    Args:
      voxels: [A, B, C, N], of any kind of number.
      affine: [4, 4], its indices to RAS millimetres.
      target: the other grid.
      matrix: [4, 4], points of the target to points of the image; None: the same.

    Returns:
      [*target.shape, N] float32, 0 outside of the image.

    Source: Cardoso et al., MICCAI 2015, 'Scale factor point spread function matching':
    the blur that turns one voxel's half-width into another's.
    """
    matrix = np.eye(4) if matrix is None else matrix
    steps = np.linalg.solve(affine, matrix @ target.affine)[:3, :3]
    wider = np.maximum(np.abs(steps).max(axis=1), 1)  # Voxels of the image in one.
    sigma = np.sqrt((wider**2 - 1) / (8 * np.log(2)))
    voxels = np.asarray(voxels, np.float32)
    if sigma.any():
        voxels = ndimage.gaussian_filter(voxels, (*sigma, 0), mode="nearest")
    return np.asarray(grid.resample(voxels, affine, *target, matrix))


def _spacing(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)


def _target(start: Grid, spacing: Sequence[float]) -> Grid:
    """The grid of that spacing about the same middle; `start` itself if it has it."""
    if len(spacing) == 0:
        return start
    wanted = np.asarray(spacing, np.float64)
    if wanted.shape != (3,) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise InputError(f"data.spacing={tuple(spacing)}: give three lengths in mm")
    step = wanted / _spacing(start.affine)
    if np.allclose(step, 1, rtol=1e-3):  # What a header's float32 may be off.
        return start
    shape = np.maximum(np.rint(start.shape / step).astype(int), 1)
    scale = np.diag([*step, 1.0])
    scale[:3, 3] = (np.array(start.shape) - 1) / 2 - step * (shape - 1) / 2
    return Grid(tuple(map(int, shape)), start.affine @ scale)


def _z_scores(image, brain, present, clip) -> np.ndarray:
    """Mean 0 and deviation 1 inside the brain, for each channel that is present.

    A voxel of exactly 0 counts nothing: it lies outside of a sequence's field of view.
    """
    out = np.zeros(image.shape, np.float32)
    for channel in np.flatnonzero(present):
        values = image[..., channel][brain]
        seen = values[values != 0]
        if seen.size == 0:
            continue
        low, high = np.percentile(seen, clip)
        seen = np.clip(seen, low, high).astype(np.float64)
        mean, std = seen.mean(), seen.std()
        if std > 1e-5 * abs(mean):  # What is less is float32's rounding.
            out[..., channel][brain] = (np.clip(values, low, high) - mean) / std
    return out


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

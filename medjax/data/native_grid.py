"""Predictions back on the grid of the patient's file, and NIfTI files of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

from medjax.data.nifti import Grid
from medjax.data.scan import Case
from medjax.errors import InputError
from medjax.geometry import grid


def to_original(array: np.ndarray, case: Case, *, order: int = 1) -> np.ndarray:
    """Undoes what preparation did to the grid: crop, spacing, turned axes.

    Args:
      array: [D, H, W, K] on the case's grid.
      case: whose.
      order: 1 for probabilities, 0 for 0/1 masks.

    Returns:
      [*case.original.shape, K], axes as the file has them; 0 outside of the box.
      float32 where order is 1, else of array's dtype. Where nothing was resampled,
      each voxel is its own.
    """
    array = np.asarray(array)
    kind = array.dtype
    array = array.astype(np.uint8) if kind == bool else array
    back = grid.resample(
        array, case.affine, case.original.shape, case.original.affine, order=order
    )
    return np.asarray(back).astype(bool if kind == bool and order == 0 else back.dtype)


def paint(label: np.ndarray, regions: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Overlapping regions -> one value a voxel, as a mask's file has it.

    The regions are painted in their order, later ones over earlier ones, each with its
    first value that no later region has. Regions from the outer to the inner come back
    as the values they were made of: whole (1, 2, 4), core (1, 4), enhancing (4,) are
    painted 2, 1 and 4.

    Args:
      label: [..., K], 0 or 1.
      regions: region -> its values.

    Returns:
      [...] uint8; 0 outside of all regions.

    Raises:
      InputError: a region has no value of its own, or one beyond 255.
    """
    painted = np.zeros(label.shape[:-1], np.uint8)
    values = list(regions.values())
    for channel, name in enumerate(regions):
        later = {value for inner in values[channel + 1 :] for value in inner}
        own = [value for value in values[channel] if value not in later]
        if not own or not 0 < own[0] < 256:
            raise InputError(
                f"data.regions: {name} {tuple(values[channel])} has no value from 1 to "
                "255 that a later region doesn't have; order them from outer to inner"
            )
        painted[label[..., channel] > 0] = own[0]
    return painted


def write_label_map(
    path: Path, label: np.ndarray, where: Grid, *, regions: Mapping[str, Sequence[int]]
) -> None:
    """Writes regions as one NIfTI file of uint8, painted as `paint` says.

    Args:
      path: .nii or .nii.gz.
      label: [A, B, C, K], 0 or 1, on that grid.
      where: the grid of the file, `case.original`.
      regions: region -> its values.
    """
    _write(path, paint(label, regions), where)


def write_probabilities(path: Path, probability: np.ndarray, where: Grid) -> None:
    """Writes [A, B, C, K] as NIfTI of float32, of four axes, or of three if K is 1."""
    probability = np.asarray(probability, np.float32)
    one = probability.shape[-1] == 1
    _write(path, probability[..., 0] if one else probability, where)


def _write(path: Path, voxels: np.ndarray, where: Grid) -> None:
    if voxels.shape[:3] != tuple(where.shape):
        raise ValueError(f"{voxels.shape} is not on the grid of {where.shape}")
    image = nibabel.Nifti1Image(voxels, where.affine)
    image.set_sform(where.affine, code="scanner")
    # A quaternion can't say a shear: viewers then go by the sform.
    image.set_qform(where.affine, code="scanner", strip_shears=True)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)

"""Small scans of known content, in files as scanners and data sets have them."""

import nibabel
import numpy as np
import pytest
from nibabel import orientations
from scipy import ndimage

from medjax.data import brain_phantom
from medjax.geometry.grid import RAS_TO_LPS


def affine_of(axes="RAS", spacing=(1.0, 1.0, 1.0), tilt=0.0, origin=(-20, 11, 5.5)):
    """[4, 4]: indices grow to `axes`, all of it turned by tilt radians about x and z."""
    turn = np.zeros((3, 3))
    for column, (row, sign) in enumerate(orientations.axcodes2ornt(tuple(axes))):
        turn[int(row), column] = sign
    c, s = np.cos(tilt), np.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ turn @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def straight(shape, spacing, middle=(0, 0, 0)):
    """Axes along the world's, the middle voxel at a point."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = middle - np.diag(spacing) @ ((np.array(shape) - 1) / 2)
    return affine


def ball(shape, radius=0.42, middle=(0.5, 0.5, 0.5)):
    """[A, B, C] bool: an ellipsoid, radius and middle as shares of the sides."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    away = (index + 0.5) / shape - middle
    return np.sum(away**2, axis=-1) < radius**2


def brain(shape, seed=0):
    """[A, B, C] float32: smooth tissue from 50 to 150 in a ball, 0 outside of it."""
    rng = np.random.default_rng(seed)
    tissue = ndimage.gaussian_filter(rng.normal(0, 1, shape), 1.5)
    tissue = 100 + 50 * tissue / np.abs(tissue).max()
    return np.where(ball(shape), tissue, 0).astype(np.float32)


def save(path, voxels, affine=None):
    """Writes NIfTI; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = affine_of() if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def save_phantoms(folder, numbers, *, seed, **options):
    """Files named as BraTS' (`brain_007/brain_007_flair.nii.gz`) with axes L, P, S.

    Returns:
      Each patient's folder: int16 files of the sequences, and `seg` in uint8.
    """
    folders = []
    values = brain_phantom.ENHANCING, brain_phantom.NECROSIS, brain_phantom.OEDEMA
    for number in numbers:
        drawn = brain_phantom.patient(number, seed=seed, **options)
        name = f"brain_{number:03d}"
        folders.append(folder / name)
        whole, core, enhancing = np.moveaxis(drawn.label, -1, 0) > 0
        seg = np.select([enhancing, core, whole], values).astype(np.uint8)
        images = np.moveaxis(drawn.image, -1, 0).astype(np.int16)
        affine = drawn.affine[:, [2, 1, 0, 3]]
        for part, voxels in zip((*brain_phantom.SEQUENCES, "seg"), (*images, seg)):
            file = nibabel.Nifti1Image(voxels.T, affine)
            file.header.set_xyzt_units("mm")
            folders[-1].mkdir(parents=True, exist_ok=True)
            nibabel.save(file, folders[-1] / f"{name}_{part}.nii.gz")
    return folders


def itk_matrix(path):
    """ITK's transform file as SimpleITK reads it, [4, 4] between RAS millimetres."""
    transform = pytest.importorskip("SimpleITK").ReadTransform(str(path))
    corners = np.vstack([np.zeros(3), np.eye(3)])
    points = np.array([transform.TransformPoint(corner) for corner in corners])
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = (points[1:] - points[0]).T, points[0]
    return RAS_TO_LPS @ lps @ RAS_TO_LPS


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

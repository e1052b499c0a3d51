"""Grids of voxels, and the affines that place them in the world.

An affine is [4, 4] and maps voxel indices, in the order of the array's axes, to
millimetres; the world is NIfTI's, RAS.
"""

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.errors import InputError
from medjax.geometry import warp

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's world -> DICOM's and ITK's.


def resample(
    moving,
    moving_affine,
    fixed_shape,
    fixed_affine,
    matrix=None,
    *,
    order: int = 1,
    fill: float = 0.0,
) -> Array:
    """Resamples an image to another grid.

    Args:
      moving: [A, B, C] or [A, B, C, N].
      moving_affine, fixed_affine: [4, 4], voxel indices to RAS millimetres.
      fixed_shape: the three sizes of the grid.
      matrix: [4, 4], fixed to moving points; None is the identity.
      order: 1 interpolates linearly, 0 takes the nearest voxel (masks).
      fill: the value outside the image.

    Returns:
      [*fixed_shape] or [*fixed_shape, N]; float32 if order is 1, of moving's dtype if
      it is 0. The same grid returns the same voxels, to the bit.
    """
    moving = jnp.asarray(moving)
    if moving.ndim not in (3, 4) or 0 in moving.shape:
        raise InputError(f"moving: {moving.shape}; give [A, B, C] or [A, B, C, N]")
    if len(fixed_shape) != 3 or min(fixed_shape) < 1:
        raise InputError(f"fixed_shape: {fixed_shape}; give three sizes, 1 or more")
    matrix = np.eye(4) if matrix is None else check_affine("matrix", matrix)
    fixed_affine = check_affine("fixed_affine", fixed_affine)
    moving_affine = check_affine("moving_affine", moving_affine)
    voxels = np.linalg.solve(moving_affine, matrix @ fixed_affine)
    middle = (np.array(fixed_shape) - 1) / 2  # warp's matrices are about the centres.
    voxels[:3, 3] += voxels[:3, :3] @ middle - (np.array(moving.shape[:3]) - 1) / 2
    image = moving if moving.ndim == 4 else moving[..., None]
    image = _resample(
        image.astype(jnp.float32) if order else image,
        voxels[:3].astype(np.float32),
        shape=tuple(map(int, fixed_shape)),
        order=order,
        fill=fill,
    )
    return image if moving.ndim == 4 else image[..., 0]


_resample = jax.jit(warp.affine, static_argnames=("shape", "order", "fill"))


def pool(
    image: np.ndarray, affine: np.ndarray, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Averages blocks of about `size` millimetres; returns them and their affine."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.array(image.shape)
    block = np.clip(np.round(size / spacing).astype(int), 1, np.maximum(shape // 8, 1))
    blocks = shape // block  # What is left over at the end is cut off.
    image = image[tuple(slice(n) for n in blocks * block)]
    parts = np.stack([blocks, block], axis=1).ravel()
    image = image.reshape(parts).mean(axis=(1, 3, 5), dtype=np.float32)
    coarse = np.diag([*block, 1.0])
    coarse[:3, 3] = (block - 1) / 2
    return image, affine @ coarse


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[4, 4] and [..., 3] -> [..., 3]."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def check_affine(name: str, affine) -> np.ndarray:
    """As float64, or an InputError."""
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(f"{name}: {affine.shape}; give a finite [4, 4] matrix")
    if (affine[3] != (0, 0, 0, 1)).any():
        raise InputError(f"{name}: its last row is {affine[3]}; give 0 0 0 1")
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise InputError(f"{name}: can't be inverted; correct the image's header")
    return affine

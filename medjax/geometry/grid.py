"""Reads images between their pixels, and places grids of voxels in the world.

An affine is [4, 4] and maps voxel indices, in the order of the array's axes, to
millimetres; the world is NIfTI's, RAS.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax
from scipy import ndimage

from medjax.errors import InputError

STILL = np.eye(4)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's world -> DICOM's and ITK's.


def affine(
    image: Array,
    matrix: Array,
    *,
    shape: Sequence[int] | None = None,
    order: int = 1,
    padding: str = "constant",
) -> Array:
    """`interpolate` at affinely moved points; differentiable in the matrix.

    The identity, flips and quarter turns return the input's own pixels, to the bit.

    Args:
      image: [*S, C], of n axes and channels.
      matrix: [n, n + 1] output-to-input map in pixels about the two centres:
        input - its centre = matrix[:, :n] @ (output - its centre) + matrix[:, n].
      shape: the output's n sizes; None is the image's own.
    """
    space = image.shape[:-1]
    shape = space if shape is None else tuple(shape)
    chex.assert_shape(matrix, (len(space), len(shape) + 1))
    parts = affine_grid(matrix, shape, space)
    return interpolate(image, parts, order=order, padding=padding)


def affine_grid(
    matrix: Array, shape: tuple[int, ...], space: tuple[int, ...]
) -> list[Array]:
    """Input coordinates of every output point, an array for each axis."""
    steps = [
        jnp.expand_dims(jnp.arange(size) - (size - 1) / 2, range(1, len(shape) - axis))
        for axis, size in enumerate(shape)
    ]
    terms = [[row[axis] * along for axis, along in enumerate(steps)] for row in matrix]
    for row, term, size in zip(matrix, terms, space, strict=True):
        term[-1] = term[-1] + row[-1] + (size - 1) / 2
    return [sum(term[1:], term[0]) for term in terms]


def interpolate(
    image: Array,
    coordinates: Sequence[Array],
    *,
    order: int = 1,
    padding: str = "constant",
) -> Array:
    """Reads an image between its pixels; differentiable in both where order is 1.

    Args:
      image: [*S, C], S of any number of axes; float where order is 1.
      coordinates: an array [...] for each axis, in pixels, 0 is the middle of the first.
      order: 1 interpolates linearly, 0 takes the nearest pixel (masks).
      padding: what stands outside. 'constant': 0, blended in over the pixel beyond
        the edge; 'edge': the pixels of the edge.

    Returns:
      [..., C], of the image's dtype; a whole coordinate returns that pixel to the bit.
    """
    *space, channels = image.shape
    pixel = (channels,) if channels > 1 else ()  # An axis of size 1 halves the speed.
    parts = [_inside(x, n, padding) for x, n in zip(coordinates, space, strict=True)]
    # A border, one pixel wider at the end, so that every neighbour exists.
    border = (1, 2) if padding == "constant" else (0, 1)
    image = jnp.pad(image, [border] * len(space) + [(0, 0)], padding)
    strides = [math.prod(image.shape[axis + 1 : -1]) for axis in range(len(space))]
    flat = image.reshape(-1, *pixel)
    reach = order * sum(strides)
    low = [jnp.floor(x if order else x + 0.5) for x in parts]
    first = sum(n.astype(jnp.int32) * s for n, s in zip(low, strides, strict=True))
    share = [
        jnp.expand_dims(x - n, [x.ndim] * len(pixel))
        for x, n in zip(parts, low, strict=True)
    ]

    def between(axis: int, offset: int) -> Array:
        if axis == len(space) or order == 0:
            # A shifted view, not a shifted index: all corners share one address,
            # which halves the time.
            return _take(flat[offset : len(flat) - reach + offset], first)
        a, b = between(axis + 1, offset), between(axis + 1, offset + strides[axis])
        return a + share[axis] * (b - a)

    values = between(0, 0).reshape(*first.shape, channels)
    return values.astype(image.dtype)


def _inside(x: Array, size: int, padding: str) -> Array:
    """Moves the coordinates of one axis into the (padded) image."""
    low, high = (-1, size) if padding == "constant" else (0, size - 1)
    x = jnp.where(x > low, x, low)  # NaN too: no index may leave the image.
    return jnp.where(x < high, x, high) - low


def _take(flat: Array, index: Array) -> Array:
    """flat[index], without a check for negative indices."""
    pixel = flat.shape[1:]
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(index.ndim, index.ndim + len(pixel))),
        collapsed_slice_dims=(0,),
        start_index_map=(0,),
    )
    return lax.gather(
        flat, index[..., None], numbers, (1, *pixel), mode="promise_in_bounds"
    )


def resample(
    moving, moving_affine, fixed_shape, fixed_affine, matrix=STILL, *, order: int = 1
) -> Array:
    """Resamples an image [A, B, C, N] to another grid, [*fixed_shape, N]; 0 outside.

    The matrix maps fixed to moving points, by default to the same. With order 1 the
    result is float32, with 0 of moving's dtype. The same grid returns the same voxels.
    """
    moving = jnp.asarray(moving)
    voxels = np.linalg.solve(moving_affine, matrix @ fixed_affine)
    middle = (np.array(fixed_shape) - 1) / 2  # affine's matrix is about the centres.
    voxels[:3, 3] += voxels[:3, :3] @ middle - (np.array(moving.shape[:3]) - 1) / 2
    return _resample(
        moving.astype(jnp.float32) if order else moving,
        voxels[:3].astype(np.float32),
        shape=tuple(map(int, fixed_shape)),
        order=order,
    )


_resample = jax.jit(affine, static_argnames=("shape", "order"))


def antialiased(
    moving, moving_affine, fixed_shape, fixed_affine, matrix=STILL
) -> np.ndarray:
    """`resample` in order 1, float32, without aliasing on a coarser grid.

    Source: Cardoso et al., MICCAI 2015, 'Scale factor point spread function matching':
    the blur that turns one voxel's half-width into another's.
    """
    steps = np.linalg.solve(moving_affine, matrix @ fixed_affine)[:3, :3]
    # How many voxels of the image one voxel of the target spans.
    wider = np.maximum(np.abs(steps).max(axis=1), 1)
    sigma = np.sqrt((wider**2 - 1) / (8 * np.log(2)))
    moving = np.asarray(moving, np.float32)
    if sigma.any():
        moving = ndimage.gaussian_filter(moving, (*sigma, 0), mode="nearest")
    return np.asarray(
        resample(moving, moving_affine, fixed_shape, fixed_affine, matrix)
    )


def pool(
    image: np.ndarray, affine: np.ndarray, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Averages blocks of about `size` millimetres; returns them and their affine."""
    spacing = spacing_of(affine)
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


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """[3] mm between voxels along each axis of the indices.

    Of sheared axes, as of a tilted gantry, the first lie apart along their normal: the
    product is a voxel's volume.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    upright = np.abs(np.diag(np.linalg.qr(affine[:3, 2::-1])[1]))[::-1]
    return np.where(np.isclose(upright, lengths, rtol=1e-6), lengths, upright)


def check_affine(name: str, affine: np.ndarray) -> np.ndarray:
    """[4, 4] float64 of a header, or an InputError."""
    if not np.isfinite(affine).all():
        raise InputError(f"{name}: isn't finite; correct the image's header")
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise InputError(f"{name}: can't be inverted; correct the image's header")
    return affine.astype(np.float64)

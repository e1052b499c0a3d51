"""Spatial augmentation: all ops are composed, and the sample is interpolated once.

Coordinates are pixel centres, (y, x) or (z, y, x). Matrices are about the image's
centre, (size - 1) / 2, so that rotations and flips leave the middle in place, and map
*output* points to *input* points, as interpolation needs it.

The ops, MOVES, draw by a key for this sample alone and add to a Motion. `move` then
reads images and masks at the composed map.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.errors import InputError
from medjax.geometry.grid import affine_grid, interpolate

# x + u(x) is invertible if every |c| is below this share of the distance: 1 / K2 in 2-D
# and 1 / K3 in 3-D, with K2 = 2.0464 and K3 = 2.4795. Source: Choi & Lee, Injectivity
# conditions of 2D and 3D uniform cubic B-spline functions, Graphical Models 62 (2000)
# 411.
INVERTIBLE = {2: 0.488, 3: 0.403}


class Motion(NamedTuple):
    """Where each point of a moved sample comes from; exists inside one trace only.

    An output point x, in mm about the centre, comes from matrix @ (x + u(x)). The
    control points of u lie on the *output's* grid, whatever the order of the ops.
    """

    shape: tuple[int, ...]  # n sizes.
    spacing: Array  # [n] mm; 1 is a pixel.
    matrix: Array  # [n, n + 1].
    control: Array | None  # [*G, n] mm, of `on_grid`; None for no elastic.
    distance: tuple[float, ...]  # n distances of the control points, in pixels.


def still(shape: Sequence[int], spacing: Array | None = None) -> Motion:
    """The motion that moves nothing, of (H, W) or (D, H, W); without spacing, 1 mm."""
    n = len(shape)
    spacing = np.ones(n, np.float32) if spacing is None else spacing
    return Motion(tuple(shape), spacing, jnp.eye(n, n + 1), None, ())


def move(motion: Motion, image: Array, *, order: int = 1) -> Array:
    """Reads an image once, at the points of a motion; outside it is 0.

    The image is [*motion.shape, C]; a mask needs order=0. If no op has moved anything
    across slices, a slice has only its own pixels, to the bit.
    """
    chex.assert_shape(image, (*motion.shape, None))
    spacing = jnp.asarray(motion.spacing)
    # In pixels; exact where the spacing is the same along all axes.
    matrix = motion.matrix * (jnp.append(spacing, 1.0) / spacing[:, None])
    parts = affine_grid(matrix, motion.shape, motion.shape)
    if motion.control is not None:
        # The matrix is applied to the few control points, not to every displacement.
        control = _times(motion.control / spacing, matrix[:, :-1].T)
        field = on_grid(control, motion.shape, motion.distance)
        parts = [x + u for x, u in zip(parts, field, strict=True)]
    return interpolate(image, parts, order=order)


def inverse(motion: Motion) -> Motion:
    """The motion that undoes one without elastic, whose inverse has no formula."""
    chex.assert_equal(motion.control, None)
    linear, shift = jnp.split(motion.matrix, [len(motion.shape)], axis=1)
    back = jnp.linalg.inv(linear)
    matrix = jnp.concatenate([back, -_times(back, shift)], axis=1)
    return motion._replace(matrix=matrix)


def affine_matrix(
    *, flip: Array, rotation: Array, zoom: Array, translation: Array
) -> Array:
    """The matrix [n, n + 1]: input = matrix[:, :n] @ output + matrix[:, n].

    Args:
      flip: [] bool, mirrors left and right, the last axis.
      rotation: radians; [] in 2-D, counter-clockwise as the image is displayed; [3] in
        3-D, within the slices, in the plane of depth and width and in that of depth
        and height, applied in this order.
      zoom: [] or [n] > 0; 2 makes everything twice as large.
      translation: [n] by which the content moves, in the unit of the points.
    """
    n = len(translation)
    planes = [(0, 1)] if n == 2 else [(1, 2), (0, 2), (0, 1)]
    linear = jnp.eye(n)
    for plane, angle in zip(planes, jnp.ravel(rotation), strict=True):
        within = np.diag(np.isin(np.arange(n), plane)).astype(np.float32)
        across = np.zeros((n, n), np.float32)
        across[plane] = 1
        turn = np.eye(n) - within + within * jnp.cos(angle)
        turn += (across - across.T) * jnp.sin(angle)
        linear = _times(turn, linear)
    mirror = jnp.where((np.arange(n) == n - 1) & flip, -1.0, 1.0)
    linear = mirror[:, None] * linear / zoom
    return jnp.concatenate([linear, -_times(linear, translation[:, None])], axis=1)


def random_affine(
    key: Array,
    motion: Motion,
    *,
    flip: float = 0.5,
    rotation: float | Sequence[float] = 10.0,
    zoom: float = 0.1,
    translation: float = 0.05,
    in_plane: bool = False,
) -> Motion:
    """Flips, rotates, zooms and shifts, in millimetres, so that nothing is sheared.

    Args:
      flip: probability of a left-right mirror (of the last axis).
      rotation: +- degrees; in 3-D one for all planes, or three, see affine_matrix.
      zoom: the zoom is between 1 - zoom and 1 + zoom, uniform on the log scale.
      translation: +- share of the sample's size on each axis.
      in_plane: in 3-D, leaves every slice where it is: for thick slices.
    """
    n = len(motion.shape)
    k_flip, k_turn, k_zoom, k_shift = jax.random.split(key, 4)
    scale = jnp.exp(
        jax.random.uniform(k_zoom, (), minval=jnp.log1p(-zoom), maxval=jnp.log1p(zoom))
    )
    planes = (3,) if n == 3 else ()
    angle = jnp.radians(jnp.asarray(rotation))
    angle = angle * jax.random.uniform(k_turn, planes, minval=-1)
    extent = jnp.array(motion.shape) * motion.spacing
    shift = translation * extent * jax.random.uniform(k_shift, (n,), minval=-1)
    if in_plane and n == 3:
        within = np.array([False, True, True])
        scale, shift = jnp.where(within, scale, 1.0), jnp.where(within, shift, 0.0)
        angle = angle * np.array([1, 0, 0])
    matrix = affine_matrix(
        flip=jax.random.bernoulli(k_flip, flip),
        rotation=angle,
        zoom=scale,
        translation=shift,
    )
    return _then(motion, matrix)


def flip(
    key: Array, motion: Motion, *, probability: float = 0.5, axis: int = -1
) -> Motion:
    """Mirrors an axis of the sample: 0 is the first of [D,] H, W, -1 left and right."""
    n = len(motion.shape)
    if not -n <= axis < n:
        raise InputError(f"flip.axis: {axis} of {n} axes; use 0 to {n - 1} or -1")
    sign = jnp.where(jax.random.bernoulli(key, probability), -1.0, 1.0)
    mirror = jnp.where(np.arange(n) == axis % n, sign, 1.0)
    matrix = jnp.eye(n, n + 1) * mirror[:, None]
    return _then(motion, matrix)


def elastic(
    key: Array,
    motion: Motion,
    *,
    strength: float,
    distance: float | Sequence[float] = 32.0,
    in_plane: bool = False,
) -> Motion:
    """Bends the sample smoothly and without folding it.

    u(x) = sum over the control points g of c_g times the product over the axes of
    B(x / distance - (g - 1)), with B the cubic B-spline. They reach beyond the image.

    Args:
      strength: the control points move by U(-strength, strength) on each axis, in mm
        (pixels, without a spacing), but at most by the share INVERTIBLE of their
        distance, because a larger displacement may fold.
      distance: between control points, in pixels; one for all axes or one each.
      in_plane: in 3-D, bends all slices alike and leaves each where it is.

    Source: Rueckert et al., Nonrigid registration using free-form deformations, IEEE
    TMI 18 (1999) 712, eq. 1 to 4.
    """
    n = len(motion.shape)
    if motion.control is not None:
        raise InputError("augment.ops: two elastic ops in a row; use a stronger one")
    distance = tuple(float(d) for d in np.broadcast_to(distance, n))
    limit = INVERTIBLE[n] * np.array(distance, np.float32) * motion.spacing
    if isinstance(limit, np.ndarray) and strength > limit.min():
        raise InputError(
            f"elastic.strength: {strength} might fold the image; give at most "
            f"{limit.min():.1f}, or a larger elastic.distance"
        )
    count = control_shape(motion.shape, distance)
    alike = in_plane and n == 3
    drawn = (1, *count[1:], n) if alike else (*count, n)
    control = jax.random.uniform(key, drawn, minval=-1) * jnp.minimum(strength, limit)
    if alike:
        control = jnp.broadcast_to(control * (np.arange(n) > 0), (*count, n))
    return motion._replace(control=control, distance=distance)


def control_shape(shape: tuple[int, ...], distance: tuple[float, ...]) -> tuple:
    """The number of control points on each axis of an image of this shape."""
    return tuple(
        math.ceil((size - 1) / step) + 3
        for size, step in zip(shape, distance, strict=True)
    )


def on_grid(
    control: Array, shape: tuple[int, ...], distance: tuple[float, ...]
) -> Array:
    """u at every pixel, [n, *shape], by one small matrix product for each axis.

    Of `control` [*control_shape, n], points at n distances in pixels.
    """
    field = jnp.moveaxis(control, -1, 0)
    for axis, (size, step) in enumerate(zip(shape, distance, strict=True), start=1):
        points = jnp.arange(field.shape[axis]) - 1
        t = jnp.abs(jnp.arange(size)[:, None] / step - points)
        near, far = 2 / 3 - t**2 + t**3 / 2, jnp.maximum(2 - t, 0) ** 3 / 6
        weight = jnp.where(t < 1, near, far)  # B of the distance to each point.
        field = jnp.tensordot(field, weight, [[axis], [1]], precision="highest")
        field = jnp.moveaxis(field, -1, axis)
    return field


MOVES = {op.__name__: op for op in (random_affine, flip, elastic)}


def _then(motion: Motion, matrix: Array) -> Motion:
    """The motion, and after it that of a matrix in mm."""
    n = len(motion.shape)
    both = _times(motion.matrix[:, :n], matrix)
    both += jnp.pad(motion.matrix[:, n:], ((0, 0), (n, 0)))
    return motion._replace(matrix=both)


def _times(a: Array, b: Array) -> Array:
    """A product of small matrices in full float32, also on a TPU."""
    return jnp.matmul(a, b, precision="highest")

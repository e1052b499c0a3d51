"""Interpolation: reads an image between its pixels."""

import math
from collections.abc import Sequence

import chex
import jax.numpy as jnp
from chex import Array
from jax import lax

from medjax.errors import InputError

PADDINGS = ("constant", "edge", "reflect")


def sample(
    image: Array,
    coordinates: Array,
    *,
    order: int = 1,
    padding: str = "constant",
    fill: float = 0.0,
) -> Array:
    """Reads an image between its pixels; differentiable in both where order is 1.

    Args:
      image: [*S, C], S of any number of axes; float where order is 1.
      coordinates: [..., len(S)], in pixels, 0 is the middle of the first.
      order: 1 interpolates linearly, 0 takes the nearest pixel (masks).
      padding: what stands outside. 'constant': `fill`, blended in over the pixel
        beyond the edge; 'edge': the pixels of the edge; 'reflect': numpy's reflect,
        which doesn't repeat the edge.
      fill: the value outside with 'constant'.

    Returns:
      [..., C], of the image's dtype; a whole coordinate returns that pixel to the bit.
    """
    chex.assert_axis_dimension(coordinates, -1, image.ndim - 1)
    parts = [coordinates[..., axis] for axis in range(image.ndim - 1)]
    return read(image, parts, order, padding, fill)


def affine(
    image: Array,
    matrix: Array,
    *,
    shape: Sequence[int] | None = None,
    order: int = 1,
    padding: str = "constant",
    fill: float = 0.0,
) -> Array:
    """Resamples an image at affinely moved points; differentiable in the matrix.

    Args:
      image: [*S, C], of n axes and channels.
      matrix: [n, n + 1] output-to-input map in pixels about the two centres:
        input - its centre = matrix[:, :n] @ (output - its centre) + matrix[:, n].
      shape: the output's n sizes; None is the image's own.
      order, padding, fill: see `sample`.

    Returns:
      [*shape, C]: the identity, flips and quarter turns return the input's own
      pixels, to the bit.
    """
    space = image.shape[:-1]
    shape = space if shape is None else tuple(shape)
    chex.assert_shape(matrix, (len(space), len(shape) + 1))
    parts = affine_grid(matrix, shape, space)
    return read(image, parts, order, padding, fill)


def affine_grid(matrix, shape, space) -> list[Array]:
    """Input coordinates of every output point, one array an axis."""
    steps = [
        (jnp.arange(size) - (size - 1) / 2).reshape(
            [-1] + [1] * (len(shape) - 1 - axis)
        )
        for axis, size in enumerate(shape)
    ]
    terms = [[row[axis] * along for axis, along in enumerate(steps)] for row in matrix]
    for row, term, size in zip(matrix, terms, space, strict=True):
        term[-1] = term[-1] + row[-1] + (size - 1) / 2
    return [sum(term[1:], term[0]) for term in terms]


def read(image, parts, order, padding, fill) -> Array:
    """`sample` at one array of coordinates an axis."""
    if padding not in PADDINGS:
        options = ", ".join(map(repr, PADDINGS))
        raise InputError(f"padding={padding!r} is unknown: use one of {options}")
    if order not in (0, 1):
        raise InputError(f"order={order!r} is unknown: use 1 for images, 0 for masks")
    *space, channels = image.shape
    pixel = (channels,) if channels > 1 else ()  # An axis of size 1 halves the speed.
    parts = [_inside(x, n, padding) for x, n in zip(parts, space, strict=True)]
    # A border, one pixel wider at the end, so that every neighbour exists.
    if padding == "constant":
        wide = [(1, 2)] * len(space) + [(0, 0)]
        image = jnp.pad(image, wide, constant_values=fill)
    else:
        wide = [(0, 1)] * len(space) + [(0, 0)]
        image = jnp.pad(image, wide, mode="edge")
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


def _inside(x, size, padding) -> Array:
    """Folds the coordinates of one axis into the (padded) image."""
    if padding == "constant":
        return _clip(x, -1, size) + 1
    if padding == "reflect" and size > 1:
        x = jnp.mod(x, 2 * (size - 1))
        x = jnp.minimum(x, 2 * (size - 1) - x)
    return _clip(x, 0, size - 1)


def _clip(x, low, high) -> Array:
    """jnp.clip, but NaN becomes low: no index may leave the image."""
    x = jnp.where(x > low, x, low)
    return jnp.where(x < high, x, high)


def _take(flat, index) -> Array:
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

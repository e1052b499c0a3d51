"""One interpolation moves every pixel or voxel of a sample once.

Coordinates are pixel centres, (y, x) or (z, y, x). Matrices stand about the image's
centre, (size - 1) / 2, so that a rotation or a flip turns about the middle, and map
*output* points to *input* points, as resampling asks for.
"""

import itertools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from chex import Array

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
      image: [*S, C], S of any number of axes.
      coordinates: [..., len(S)], in pixels, 0 is the middle of the first.
      order: 1 interpolates linearly, 0 takes the nearest pixel (masks).
      padding: what stands outside. 'constant': fill, blended in over the pixel
        beyond the edge; 'edge': the edge's own pixels; 'reflect': numpy's reflect,
        the edge itself is not repeated.
      fill: the value outside, of 'constant'.

    Returns:
      [..., C], of the image's dtype; a whole coordinate returns that pixel to the bit.
    """
    space = image.shape[:-1]
    chex.assert_axis_dimension(coordinates, -1, len(space))
    parts = [coordinates[..., axis] for axis in range(len(space))]
    return _read(image, parts, order, padding, fill)


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
      image: [*S, C], in 2-D or 3-D (any number n of axes).
      matrix: [n, n + 1] output-to-input map in pixels about the two centres:
        input - centre = matrix[:, :n] @ (output - its centre) + matrix[:, n].
      shape: the output's n sizes; None is the image's own.
      order, padding, fill: see `sample`.

    Returns:
      [*shape, C]: the identity, flips and quarter turns return the input's own
      pixels, to the bit.
    """
    space = image.shape[:-1]
    shape = space if shape is None else tuple(shape)
    chex.assert_shape(matrix, (len(space), len(space) + 1))
    grid = [
        jnp.expand_dims(
            jnp.arange(size) - (size - 1) / 2,
            [other for other in range(len(shape)) if other != axis],
        )
        for axis, size in enumerate(shape)
    ]
    parts = [
        sum(row[axis] * along for axis, along in enumerate(grid))
        + row[-1]
        + (size - 1) / 2
        for row, size in zip(matrix, space, strict=True)
    ]
    return _read(image, parts, order, padding, fill)


def _read(image, parts, order, padding, fill) -> Array:
    """`sample` at one array of coordinates an axis."""
    if padding not in PADDINGS:
        options = ", ".join(map(repr, PADDINGS))
        raise InputError(f"padding={padding!r} is unknown: use one of {options}")
    if order not in (0, 1):
        raise InputError(f"order={order!r} is unknown: use 1 for images, 0 for masks")
    *space, channels = image.shape
    if padding == "constant":  # A border of the fill: no pixel needs a question.
        image = jnp.pad(image, [(1, 1)] * len(space) + [(0, 0)], constant_values=fill)
    flat = image.reshape(-1, channels)
    strides = [1]
    for size in image.shape[-2:0:-1]:
        strides.insert(0, strides[0] * size)
    # Per axis: where the two neighbours lie in the flat image, and their weights.
    axes = []
    for x, size, stride in zip(parts, space, strides, strict=True):
        x, last = _inside(x, size, padding)
        if order == 0:
            axes.append([(jnp.floor(x + 0.5).astype(jnp.int32) * stride, None)])
            continue
        low = jnp.floor(x)
        near, part = low.astype(jnp.int32), x - low
        far = jnp.minimum(near + 1, last)
        axes.append([(near * stride, 1 - part), (far * stride, part)])
    total = 0
    for corner in itertools.product(*axes):
        index = sum(offset for offset, _ in corner)
        value = flat.at[index].get(mode="promise_in_bounds")
        for _, weight in corner:
            value = value if weight is None else value * weight[..., None]
        total = total + value
    return total.astype(image.dtype)


def _inside(x, size, padding) -> tuple[Array, int]:
    """Folds coordinates of one axis into the (padded) image; and its last index."""
    if padding == "constant":
        return jnp.clip(x, -1, size) + 1, size + 1
    if padding == "reflect" and size > 1:
        period = 2 * (size - 1)
        x = jnp.mod(x, period)
        x = jnp.minimum(x, period - x)
    return jnp.clip(x, 0, size - 1), size - 1


def affine_matrix(
    *, flip: Array, rotation: Array, zoom: Array, translation: Array
) -> Array:
    """Composes flip, rotation, zoom and translation into one output-to-input map.

    Args:
      flip: [] bool, mirrors left and right.
      rotation: [] radians, counter-clockwise as the image is looked at.
      zoom: [] > 0; 2 makes everything twice as large.
      translation: [2] (y, x) pixels by which the content moves.

    Returns:
      [2, 3] float32: input = matrix[:, :2] @ output + matrix[:, 2].
    """
    c, s = jnp.cos(rotation), jnp.sin(rotation)
    turn = jnp.stack([jnp.stack([c, s]), jnp.stack([-s, c])]) / zoom
    mirror = jnp.stack([jnp.ones(()), jnp.where(flip, -1.0, 1.0)])
    linear = mirror[:, None] * turn
    return jnp.concatenate([linear, -(linear @ translation)[:, None]], axis=1)


def random_affine(
    key: Array,
    image: Array,
    *,
    flip: float = 0.5,
    rotation: float = 10.0,
    zoom: float = 0.1,
    translation: float = 0.05,
) -> Array:
    """Flips, turns, zooms and shifts an image in one interpolation.

    Args:
      key: a key for this image alone.
      image: [H, W, C] float.
      flip: probability of a left-right mirror. Mirrored, the heart stands on the
        right: use 0 where the side is the finding.
      rotation: +- degrees.
      zoom: the zoom is between 1 - zoom and 1 + zoom, evenly on the log scale.
      translation: +- share of the height and of the width.

    Returns:
      [H, W, C]; black comes in from outside, as collimated film is.
    """
    k_flip, k_turn, k_zoom, k_shift = jax.random.split(key, 4)
    size = jnp.array(image.shape[:2])
    matrix = affine_matrix(
        flip=jax.random.bernoulli(k_flip, flip),
        rotation=jnp.radians(rotation) * jax.random.uniform(k_turn, (), minval=-1),
        zoom=jnp.exp(
            jax.random.uniform(
                k_zoom, (), minval=jnp.log1p(-zoom), maxval=jnp.log1p(zoom)
            )
        ),
        translation=translation * size * jax.random.uniform(k_shift, (2,), minval=-1),
    )
    return affine(image, matrix)

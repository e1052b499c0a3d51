"""One interpolation moves every pixel of an image once.

Coordinates are pixel centres, (y, x), with the origin at the image's centre, so
that a rotation or a flip turns about the middle. A matrix maps *output* points to
*input* points, as resampling asks for.
"""

import chex
import jax
import jax.numpy as jnp
from chex import Array


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


def affine(image: Array, matrix: Array, *, fill: float = 0.0) -> Array:
    """Resamples an image bilinearly at affinely moved points.

    Args:
      image: [H, W, C] float.
      matrix: [2, 3] output-to-input map, in pixels about the centre.
      fill: the value outside the image, blended in over the last half pixel.

    Returns:
      [H, W, C]: the identity, flips and quarter turns of a square return the
      input's own pixels, to the bit.
    """
    chex.assert_rank([image, matrix], [3, 2])
    height, width, channels = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = jnp.meshgrid(
        jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij"
    )
    (a, b, ty), (c, d, tx) = matrix
    y = a * rows + b * columns + ty + centre[0]
    x = c * rows + d * columns + tx + centre[1]
    y0, x0 = jnp.floor(y), jnp.floor(x)
    flat = image.reshape(height * width, channels)

    def corner(row: Array, column: Array) -> Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        return jnp.where(inside[..., None], flat[row * width + column], fill)

    dy, dx = (y - y0)[..., None], (x - x0)[..., None]
    top = (1 - dx) * corner(y0, x0) + dx * corner(y0, x0 + 1)
    bottom = (1 - dx) * corner(y0 + 1, x0) + dx * corner(y0 + 1, x0 + 1)
    return ((1 - dy) * top + dy * bottom).astype(image.dtype)


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

"""Intensity preparation: the same at training, at evaluation and at prediction."""

from collections.abc import Callable

import jax.numpy as jnp
from chex import Array


def unit_range(image: Array) -> Array:
    """Scales uint8 to float32 in [0, 1]; floats pass."""
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255
    return image


def standardise(image: Array, *, mean: float, std: float) -> Array:
    """Centres and scales intensities in [0, 1] by the data set's mean and deviation."""
    return (image - mean) / std


def standardise_each(image: Array) -> Array:
    """Gives every film mean 0 and deviation 1: undoes its exposure.

    Args:
      image: [..., H, W, C] float.

    Returns:
      Same shape; a film of one grey is 0 everywhere.
    """
    axes = (-3, -2, -1)
    centred = image - jnp.mean(image, axes, keepdims=True)
    std = jnp.sqrt(jnp.mean(centred**2, axes, keepdims=True))
    return centred / jnp.maximum(std, 1e-3)  # Below a quarter of a grey level.


def views(image: Array, *, prepare: Callable[[Array], Array], flip: bool) -> Array:
    """Prepared views of loaded images, whose predictions are averaged.

    Args:
      image: [B, H, W, C] uint8, or float in [0, 1].
      prepare: `standardise` with its numbers bound, or `standardise_each`.
      flip: adds the left-right mirror image; right only if training mirrored too.

    Returns:
      [V, B, H, W, C] float32, V = 1 or 2.
    """
    image = prepare(unit_range(image))
    return jnp.stack([image, image[..., ::-1, :]] if flip else [image])

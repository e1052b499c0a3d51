"""Intensity preparation: the same at training, at evaluation and at prediction."""

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


def views(image: Array, *, mean: float, std: float, flip: bool) -> Array:
    """Standardised views of loaded images, whose predictions are averaged.

    Args:
      image: [B, H, W, C] uint8, or float in [0, 1].
      mean, std: of the standardisation.
      flip: adds the left-right mirror image; right only if training mirrored too.

    Returns:
      [V, B, H, W, C] float32, V = 1 or 2.
    """
    image = standardise(unit_range(image), mean=mean, std=std)
    return jnp.stack([image, image[:, :, ::-1]] if flip else [image])

"""Random changes of an image's grey values, each for one image and one key."""

import jax
import jax.numpy as jnp
from chex import Array


def brightness(key: Array, image: Array, *, strength: float) -> Array:
    """Adds one random offset, u ~ U(-strength, strength), to every intensity.

    Args:
      key: a key for this image alone.
      image: [..., C] float, intensities in [0, 1].
      strength: dimensionless; 0 makes this the identity.

    Returns:
      Same shape, clipped to [0, 1].
    """
    u = jax.random.uniform(key, (), image.dtype, -strength, strength)
    return jnp.clip(image + u, 0, 1)


def contrast(key: Array, image: Array, *, strength: float) -> Array:
    """Scales the distance to the image's mean by 1 + u, u ~ U(-strength, strength).

    Args:
      key: a key for this image alone.
      image: [..., C] float, intensities in [0, 1].
      strength: dimensionless, below 1; 0 makes this the identity.

    Returns:
      Same shape, clipped to [0, 1].
    """
    u = jax.random.uniform(key, (), image.dtype, -strength, strength)
    mean = jnp.mean(image)
    return jnp.clip(mean + (1 + u) * (image - mean), 0, 1)


def gamma(key: Array, image: Array, *, max_log_gamma: float) -> Array:
    """Raises every intensity to one random power, exp(u) with u ~ U(-m, m).

    Args:
      key: a key for this image alone.
      image: [..., C] float, intensities in [0, 1].
      max_log_gamma: m, dimensionless; 0 makes this the identity.

    Returns:
      Same shape, in [0, 1]; black and white stay black and white.
    """
    u = jax.random.uniform(key, (), image.dtype, -max_log_gamma, max_log_gamma)
    return image ** jnp.exp(u)


def noise(key: Array, image: Array, *, std: float) -> Array:
    """Adds independent Gaussian noise to every pixel.

    Args:
      key: a key for this image alone.
      image: [..., C] float, intensities in [0, 1].
      std: standard deviation; 0 makes this the identity.

    Returns:
      Same shape, clipped to [0, 1].
    """
    return jnp.clip(
        image + std * jax.random.normal(key, image.shape, image.dtype), 0, 1
    )

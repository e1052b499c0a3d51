"""Augmentation ops that change an image's intensities; all have their names here.

Changes of contrast and colour are defined here; noise, blur and the like, which an
acquisition causes, in acquisition.py. All ops take and return the same:
  key: a key for this image alone.
  image: [*S, C] float, intensities in [0, 1]; S is (H, W) or (D, H, W).
  result: same shape, clipped to [0, 1]. With strengths of 0 it is the image.
"""

import jax
import jax.numpy as jnp
from chex import Array

from medjax.augment import random
from medjax.augment.acquisition import (
    bias_field,
    blur,
    crop_pad,
    cut_out,
    low_resolution,
    poisson_noise,
    rician_noise,
    speckle,
)
from medjax.data import normalisation
from medjax.errors import InputError

__all__ = [
    "bias_field",
    "blur",
    "brightness",
    "clahe",
    "colour_jitter",
    "contrast",
    "crop_pad",
    "cut_out",
    "equalise",
    "gamma",
    "low_resolution",
    "noise",
    "poisson_noise",
    "rician_noise",
    "speckle",
]


def brightness(key: Array, image: Array, *, strength: float) -> Array:
    """Adds one random offset, u ~ U(-strength, strength), to every intensity.

    Args:
      strength: dimensionless; 0 makes this the identity."""
    u = jax.random.uniform(key, (), image.dtype, -strength, strength)
    return jnp.clip(image + u, 0, 1)


def contrast(key: Array, image: Array, *, strength: float) -> Array:
    """Scales the distance to the image's mean by 1 + u, u ~ U(-strength, strength).

    Args:
      strength: dimensionless, below 1; 0 makes this the identity."""
    u = jax.random.uniform(key, (), image.dtype, -strength, strength)
    mean = jnp.mean(image)
    return jnp.clip(mean + (1 + u) * (image - mean), 0, 1)


def gamma(key: Array, image: Array, *, max_log_gamma: float) -> Array:
    """Raises every intensity to one random power, exp(u) with u ~ U(-m, m).

    Args:
      max_log_gamma: m.
    """
    u = jax.random.uniform(key, (), image.dtype, -max_log_gamma, max_log_gamma)
    return image ** jnp.exp(u)


def noise(key: Array, image: Array, *, std: float) -> Array:
    """Adds independent Gaussian noise to every pixel.

    Args:
      std: standard deviation; 0 makes this the identity."""
    grain = std * random.normal(key, image.shape)
    return jnp.clip(image + grain.astype(image.dtype), 0, 1)


def colour_jitter(
    key: Array, image: Array, *, hue: float, saturation: float, brightness: float
) -> Array:
    """Rotates the hue, scales saturation and brightness: one 3 x 3 matrix.

    Hue is the angle about the grey axis and saturation the distance from it, so grey
    pixels stay grey, and no conversion to another colour space is needed.

    Args:
      key: see above.
      image: [..., 3] float, red, green and blue in [0, 1].
      hue: +- turns, 1 = 360 degrees.
      saturation: the distance from grey is scaled by 1 + u, u ~ U(-this, this).
      brightness: everything is scaled by 1 + u, likewise.
    Raises:
      InputError: the image has no colour.

    Source: Haeberli, Matrix Operations for Image Processing (1993); the rotation
    is Rodrigues' formula.
    """
    if image.shape[-1] != 3:
        raise InputError(
            f"augment.ops: 'colour_jitter' is for 3 channels (red, green, blue), and "
            f"the image has {image.shape[-1]}: leave it out"
        )
    limits = jnp.array([2 * jnp.pi * hue, saturation, brightness])
    angle, more, gain = limits * jax.random.uniform(key, (3,), minval=-1)
    cross = jnp.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / jnp.sqrt(3.0)
    turn = jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * (1 / 3 - jnp.eye(3))
    # Differences from the identity, so that zeros round nothing.
    change = turn + more * (jnp.eye(3) - 1 / 3 + turn)
    change += gain * (jnp.eye(3) + change)
    # Written out, because a product by [3, 3] takes ten times as long on a CPU.
    moved = sum(image[..., c, None] * change[:, c] for c in range(3))
    return jnp.clip(image + moved, 0, 1)


def equalise(key: Array, image: Array, *, strength: float) -> Array:
    """Mixes in a random share, u ~ U(0, strength), of the equalised image.

    Args:
      key, image: see above; a volume has one histogram.
      strength: at most 1.
    """
    share = strength * jax.random.uniform(key)
    return jnp.clip(image + share * (normalisation.equalise(image) - image), 0, 1)


def clahe(
    key: Array, image: Array, *, strength: float, clip: float = 2.0, tiles: int = 8
) -> Array:
    """Mixes in a random share, u ~ U(0, strength), of the image equalised by tiles.

    Args:
      key, image: see above; [H, W, C].
      strength: at most 1.
      clip, tiles: see data/normalisation.py.

    Raises:
      InputError: the image is a volume.
    """
    if image.ndim != 3:
        raise InputError(
            "augment.ops: 'clahe' would map each slice of a volume differently: "
            "leave it out, or use 'equalise'"
        )
    share = strength * jax.random.uniform(key)
    local = normalisation.clahe(image, clip=clip, tiles=tiles)
    return jnp.clip(image + share * (local - image), 0, 1)

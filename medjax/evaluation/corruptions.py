"""What goes wrong with a chest film, from hardly to badly: a suite of corruptions.

All take and give the same:
  key: a key for this image alone; what it draws is the same at every severity, so that
    a worse one does the same thing harder.
  image: [H, W, C] float32 in [0, 1]; white (1) is dense.
  value: how badly, in the unit that CORRUPTIONS names.
  result: same shape, in [0, 1].

A film's grey is taken as the logarithm of the exposure behind the patient, with two
decades of it (RANGE) from black to white.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from medjax.augment import draws, simulate
from medjax.errors import InputError
from medjax.geometry import warp

RANGE = math.log(100)
SEVERITIES = (1, 2, 3, 4, 5)  # 0 is the image as it is.


def quantum_noise(key: Array, image: Array, value: Array) -> Array:
    """Photons are counted, and the fewest arrive where the patient is dense.

    Source: Poisson counts of mean `value` x exp(-RANGE x grey), and their logarithm;
    Bushberg et al., The Essential Physics of Medical Imaging, chapter 4.
    """
    mean = value * jnp.exp(-RANGE * image)
    counts = simulate.poisson(draws.uniform(key, image.shape), mean)
    # Of no photon there is no logarithm; the darkest that is known is below one.
    return jnp.clip(jnp.log(value / jnp.maximum(counts, 0.5)) / RANGE, 0, 1)


def electronic_noise(key: Array, image: Array, value: Array) -> Array:
    """The reading's own Gaussian noise, as strong in the dark as in the light."""
    return jnp.clip(image + value / 255 * draws.normal(key, image.shape), 0, 1)


def blur(key: Array, image: Array, value: Array) -> Array:
    """A large focus, or a patient who moved: a Gaussian."""

    def weights(size: int) -> Array:
        place = jnp.arange(size)
        distance = (place[:, None] - place) / (value / 100 * size)
        weight = jnp.exp(-0.5 * distance**2)
        return weight / weight.sum(axis=1, keepdims=True)

    rows, columns = map(weights, image.shape[:2])
    image = jnp.einsum("ij,jkc->ikc", rows, image, precision="highest")
    image = jnp.einsum("kl,ilc->ikc", columns, image, precision="highest")
    return jnp.clip(image, 0, 1)


def exposure(key: Array, image: Array, value: Array) -> Array:
    """Too much or too little, as the key says: every grey moves by as much."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    return jnp.clip(image + sign * value * math.log(2) / RANGE, 0, 1)


def contrast(key: Array, image: Array, value: Array) -> Array:
    """Scattered radiation, as without a grid: a veil that greys what is dense.

    Source: the scatter fraction of all that is detected, here the same everywhere in
    amount; Bushberg et al., The Essential Physics of Medical Imaging, chapter 7.
    """
    primary = jnp.exp(-RANGE * image)
    detected = (1 - value) * primary + value * jnp.mean(primary)
    return jnp.clip(-jnp.log(detected) / RANGE, 0, 1)


def jpeg(key: Array, image: np.ndarray, value: float) -> np.ndarray:
    """Written as a JPEG file, each channel as grey, and read again: OpenCV's, on the host."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(value)]
    pixels = np.rint(np.asarray(image) * 255).astype(np.uint8)
    decoded = [
        cv2.imdecode(
            cv2.imencode(".jpg", np.ascontiguousarray(channel), quality)[1],
            cv2.IMREAD_GRAYSCALE,
        )
        for channel in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(decoded, axis=-1).astype(np.float32) / 255


def rotation(key: Array, image: Array, value: Array) -> Array:
    """A patient who leans to one side, as the key says; black comes in."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    matrix = warp.affine_matrix(
        flip=jnp.array(False),
        rotation=sign * jnp.radians(value),
        zoom=jnp.array(1.0),
        translation=jnp.zeros(2),
    )
    return jnp.clip(warp.affine(image, matrix), 0, 1)


def occlusion(key: Array, image: Array, value: Array) -> Array:
    """A metal plate, white, somewhere over the film."""
    return simulate.cut_out(key, image, size=value / 100, fill=1.0)


class Corruption(NamedTuple):
    """A function of (key, image, value), what the value is, and it at each severity."""

    apply: Callable
    parameter: str
    values: tuple[float, ...]


CORRUPTIONS = {
    "quantum_noise": Corruption(
        quantum_noise, "photons a pixel in air", (20_000, 8_000, 3_000, 1_200, 500)
    ),
    "electronic_noise": Corruption(
        electronic_noise, "deviation in grey levels of 255", (4, 8, 16, 24, 32)
    ),
    "blur": Corruption(
        blur,
        "deviation in % of the film's side (1 % is about 4 mm)",
        (0.5, 1, 1.5, 2, 3),
    ),
    "exposure": Corruption(
        exposure, "stops (doublings) too much or too little", (0.25, 0.5, 0.75, 1, 1.5)
    ),
    "contrast": Corruption(
        contrast, "scatter's share of what is detected", (0.2, 0.35, 0.5, 0.65, 0.8)
    ),
    "jpeg": Corruption(jpeg, "quality of the JPEG file", (50, 30, 20, 10, 5)),
    "rotation": Corruption(rotation, "degrees, to either side", (2, 5, 10, 15, 20)),
    "occlusion": Corruption(
        occlusion, "the plate's side in % of the film's", (10, 15, 20, 30, 40)
    ),
}


def corrupt(name: str, key: Array, image: Array, id: Array, *, severity: int) -> Array:
    """Corrupts films, each by a key of its own: in any batch in the same way.

    Args:
      name: of CORRUPTIONS.
      key: of the whole suite.
      image: [B, H, W, C] float in [0, 1].
      id: [B] int, the films' numbers.
      severity: 0 to 5; 0 gives the films themselves.

    Returns:
      [B, H, W, C] float32 in [0, 1].

    Raises:
      InputError: no such severity.
    """
    if severity not in (0, *SEVERITIES):
        raise InputError(f"severity={severity}: give 0 to {SEVERITIES[-1]}")
    if severity == 0:
        return image
    corruption = CORRUPTIONS[name]
    value = corruption.values[severity - 1]
    if corruption.apply is jpeg:
        return np.stack([jpeg(key, one, value) for one in image])
    key = jax.random.fold_in(key, list(CORRUPTIONS).index(name))
    return _each(key, image, id, float(value), function=corruption.apply)


@functools.partial(jax.jit, static_argnames="function")
def _each(key, image, id, value, *, function) -> Array:
    """A loop on a CPU, so that a film's rounding doesn't depend on its batch."""

    def one(pair):
        image, id = pair
        return function(jax.random.fold_in(key, id), image, value)

    return jax.lax.platform_dependent(
        (image, id), cpu=lambda pairs: jax.lax.map(one, pairs), default=jax.vmap(one)
    )

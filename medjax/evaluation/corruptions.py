"""Corruptions of films, from mild to severe: noise, blur, exposure, JPEG and others.

Each is a function (key, image, value) -> image:
  key: of this image alone; what it draws is the same at every severity, so that a
    higher severity does the same, but more strongly.
  image: [H, W, C] float32 in [0, 1]; white (1) is dense.
  value: the strength, in the unit that CORRUPTIONS names.

The grey of an X-ray film is taken as the logarithm of the exposure behind the patient,
with two decades of it (RANGE) from black to white.
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

from medjax.augment import pixel_ops, random
from medjax.geometry import grid, warp

RANGE = math.log(100)
SEVERITIES = (1, 2, 3, 4, 5)


def quantum_noise(key: Array, image: Array, value: Array) -> Array:
    """Poisson noise of the photons, of which fewest arrive where the patient is dense.

    Source: Poisson counts of mean `value` x exp(-RANGE x grey), and their logarithm;
    Bushberg et al., The Essential Physics of Medical Imaging, chapter 4.
    """
    mean = value * jnp.exp(-RANGE * image)
    counts = pixel_ops.poisson(random.uniform(key, image.shape), mean)
    # Zero photons have no logarithm: they count as half a photon.
    return jnp.clip(jnp.log(value / jnp.maximum(counts, 0.5)) / RANGE, 0, 1)


def electronic_noise(key: Array, image: Array, value: Array) -> Array:
    """Gaussian noise of the detector's electronics, the same at every exposure."""
    return jnp.clip(image + value / 255 * random.normal(key, image.shape), 0, 1)


def blur(key: Array, image: Array, value: Array) -> Array:
    """A Gaussian blur, as of a large focal spot or a patient who moved."""

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
    """Over- or underexposure, at random: every grey level moves by the same amount."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    return jnp.clip(image + sign * value * math.log(2) / RANGE, 0, 1)


def contrast(key: Array, image: Array, value: Array) -> Array:
    """Scattered radiation, as without a grid, which makes dense parts grey.

    The value is the scatter's share of all that is detected; its amount is the same
    everywhere.

    Source: Bushberg et al., The Essential Physics of Medical Imaging, chapter 7.
    """
    primary = jnp.exp(-RANGE * image)
    detected = (1 - value) * primary + value * jnp.mean(primary)
    return jnp.clip(-jnp.log(detected) / RANGE, 0, 1)


def jpeg(key: Array, image: np.ndarray, value: float) -> np.ndarray:
    """Written as a JPEG file by OpenCV, each channel as grey, and read again."""
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
    """A patient who leans to either side, at random; the corners become black."""
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    matrix = warp.affine_matrix(
        flip=jnp.array(False),
        rotation=sign * jnp.radians(value),
        zoom=jnp.array(1.0),
        translation=jnp.zeros(2),
    )
    return jnp.clip(grid.affine(image, matrix), 0, 1)


def occlusion(key: Array, image: Array, value: Array) -> Array:
    """A white metal plate at a random place."""
    return pixel_ops.cut_out(key, image, size=value / 100, fill=1.0)


class Corruption(NamedTuple):
    """A function of (key, image, value), the value's unit, and one for each severity."""

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
    """Corrupts images [B, H, W, C] in [0, 1] by one of CORRUPTIONS.

    Each image has a key of its own, from the suite's and its id [B], so that the batch
    doesn't matter.
    """
    corruption = CORRUPTIONS[name]
    value = corruption.values[severity - 1]
    if corruption.apply is jpeg:
        return np.stack([jpeg(key, pixels, value) for pixels in image])
    key = jax.random.fold_in(key, list(CORRUPTIONS).index(name))
    return _each(key, image, id, float(value), function=corruption.apply)


@functools.partial(jax.jit, static_argnames="function")
def _each(key, image, id, value, *, function) -> Array:
    """A loop on a CPU, so that an image's rounding doesn't depend on its batch."""

    def apply(pair):
        image, id = pair
        return function(jax.random.fold_in(key, id), image, value)

    return jax.lax.platform_dependent(
        (image, id),
        cpu=lambda pairs: jax.lax.map(apply, pairs),
        default=jax.vmap(apply),
    )

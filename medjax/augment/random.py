"""A random number for every pixel, at a few operations each.

jax.random's numbers are fit for every use, and cost more than all else that is done
to a pixel. Noise needs less: here a key gives two random words, and a hash makes of
them and of a pixel's place in its image the pixel's own word. So its number depends
on the key and the place alone, and is drawn in the loop that uses it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax

# (log2(1 + x) - x) / (x (1 - x)) for x in [0, 1), fitted; exact at both ends.
LOG = (0.44248397, -0.27070947, 0.15349529, -0.0468283)
# z^2 / w of a normal z by w = -log2(4 p (1 - p)), p its tail; fitted to SciPy's ndtri
# for p from 2^-25 to 1/2.
SQUARE = (1.08878591, 1.85834677e-02, -6.88725562e-04, 1.02988910e-05)


def words(key: Array, shape: tuple[int, ...]) -> Array:
    """A random word for every entry.

    Args:
      key: a key for these numbers alone.
      shape: of at most 2^32 entries.

    Returns:
      [*shape] uint32.

    Source: Wellons, Prospecting for Hash Functions (2018), lowbias32; twice, with a
    word of the key before each, so that no two keys' numbers are the same shifted.
    """
    first, second = jax.random.bits(key, (2,))
    number = jnp.full(shape, first)
    for axis in range(len(shape)):
        step = np.uint32(math.prod(shape[axis + 1 :]))
        number += step * lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mixed(_mixed(number) ^ second)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in (0, 1), of 16 bits: enough for 8-bit pixels."""
    high = (words(key, shape) >> 16).astype(jnp.int32)
    return (high.astype(jnp.float32) + 0.5) / 2**16


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal: a word's last bit is the sign, its first 24 are the tail.

    Out to 5.5 deviations, right to 0.02 % (close to 0, to 0.001), and its distribution
    to 1e-4. No branch, and for the logarithm a short polynomial: the compiler's own
    one and its inverse error function take three times as long.
    """
    word = words(key, shape)
    tail = ((word >> 8).astype(jnp.int32).astype(jnp.float32) + 0.5) / 2**24
    parts = lax.bitcast_convert_type(tail * (2 - tail), jnp.int32)
    exponent = ((parts >> 23) - 127).astype(jnp.float32)
    one_to_two = lax.bitcast_convert_type(parts & 0x7FFFFF | 0x3F800000, jnp.float32)
    x = one_to_two - 1
    w = jnp.maximum(-exponent - x - x * (1 - x) * _polynomial(LOG, x), 0)
    size = lax.bitcast_convert_type(jnp.sqrt(w * _polynomial(SQUARE, w)), jnp.uint32)
    return lax.bitcast_convert_type(size | word << 31, jnp.float32)


def _mixed(x: Array) -> Array:
    x = (x ^ x >> 16) * np.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * np.uint32(0x846CA68B)
    return x ^ x >> 16


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    value = coefficients[-1]
    for lower in coefficients[-2::-1]:
        value = value * x + lower
    return value

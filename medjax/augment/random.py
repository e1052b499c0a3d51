"""Random numbers for pixels, at a few operations each.

For noise, jax.random's numbers cost more than everything else done to a pixel. Here a
key gives two random words, and a hash of them and of the pixel's index is the pixel's
number. It depends on the key and the index alone, and the loop that uses it draws it.
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
    """A random word for each of at most 2^32 entries, [*shape] uint32.

    Source: Wellons, Prospecting for Hash Functions (2018), lowbias32. It is applied
    twice, after adding and after xoring a word of the key, so that no key's numbers
    are another's shifted.
    """
    first, second = jax.random.bits(key, (2,))
    word = jnp.full(shape, first)
    for axis in range(len(shape)):  # Adds to each entry its number in the array.
        step = np.uint32(math.prod(shape[axis + 1 :]))
        word += step * lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mixed(_mixed(word) ^ second)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in (0, 1), of 16 bits: enough for 8-bit pixels."""
    high = (words(key, shape) >> 16).astype(jnp.int32)
    return (high.astype(jnp.float32) + 0.5) / 2**16


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal: a word's last bit is the sign, its first 24 are the tail.

    The values reach 5.5 deviations and are accurate to 0.02 % (near 0, to 0.001), the
    distribution to 1e-4. A polynomial stands for the logarithm, because XLA's logarithm
    and inverse error function take three times as long.
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

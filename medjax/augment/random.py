"""Random numbers for pixels, at a few operations each.

For noise, jax.random's numbers cost more than everything else done to a pixel. Here a
key gives two random words, and a hash of them and of the pixel's index is the pixel's
number. It depends on the key and the index alone, and the loop that uses it draws it.
`fused` keeps jax.random's own numbers and draws them in the loop as well.
"""

import math

import jax
import jax.extend
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
    return _mixed(_mixed(_numbered(jnp.full(shape, first))) ^ second)


def _numbered(start: Array) -> Array:
    """Adds to each entry its number in the array."""
    for axis in range(start.ndim):
        step = np.uint32(math.prod(start.shape[axis + 1 :]))
        start += step * lax.broadcasted_iota(jnp.uint32, start.shape, axis)
    return start


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


# -------------------------------------------------- jax.random's numbers, in the loop


def fused(key: Array) -> Array:
    """The same key, whose bits are drawn in the loop that uses them.

    jax.random gives the same numbers for both keys. On a CPU it draws those of its own
    keys by a loop over the rounds with all words in memory, three times as slow.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_FUSED)


def _threefry(key: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of 20 rounds: two words for two words.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b = a + schedule[0], b + schedule[1]
    for turn in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[turn % 2]:
            a += b
            b = a ^ (b << bits | b >> (32 - bits))
        a += schedule[(turn + 1) % 3]
        b += schedule[(turn + 2) % 3] + np.uint32(turn + 1)
    return a, b


def _threefry_words(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Two words for the number of each entry."""
    zeros = jnp.zeros(shape, jnp.uint32)
    return _threefry(key, zeros, _numbered(zeros))


def _bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    if width > 32 or math.prod(shape) >= 2**32:
        return _STOCK.random_bits(key, width, shape)
    a, b = _threefry_words(key, shape)
    return (a ^ b).astype(f"uint{width}")


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_threefry_words(key, shape), axis=-1)


def _fold_in(key: Array, data: Array) -> Array:
    data = jnp.asarray(data, jnp.uint32)
    return jnp.stack(_threefry(key, jnp.zeros_like(data), data))


_STOCK = jax.extend.random.threefry_prng_impl
_FUSED = jax.extend.random.define_prng_impl(
    key_shape=_STOCK.key_shape,
    seed=_STOCK.seed,
    split=_split,
    fold_in=_fold_in,
    random_bits=_bits,
    name="fused_threefry2x32",
    tag="fused",
)

"""Augmentation ops that change an image's intensities; warp.py has those that move it.

All ops take and return the same:
  key: a key for this image alone.
  image: [*S, C] float, intensities in [0, 1]; S is (H, W) or (D, H, W).
  strength, std: >= 0, dimensionless; with 0 the result is the image, to the bit.
  result: same shape, clipped to [0, 1].
A static range sets a shape, so it can't be a traced array.
"""

import inspect
import itertools
import math

import jax
import jax.numpy as jnp
from chex import Array

from medjax.augment import random
from medjax.data import normalisation
from medjax.errors import InputError

# From this mean on, a Poisson's quantile is the normal's corrected one, but for one count
# in a few of a thousand draws.
MIN_NORMAL_MEAN = 10
DEGREE = 3  # Of the bias field's polynomial.


def brightness(
    key: Array, image: Array, *, strength: float, by_channel: bool = False
) -> Array:
    """Adds one random offset, u ~ U(-strength, strength), to every intensity.

    With `by_channel` each channel has its own offset, as sequences of MRI that were
    acquired one after the other; the same holds for contrast and gamma.
    """
    u = _draw(key, image, strength, by_channel)
    return jnp.clip(image + u, 0, 1)


def contrast(
    key: Array, image: Array, *, strength: float, by_channel: bool = False
) -> Array:
    """Scales the distance to the mean by 1 + u, u ~ U(-strength, strength)."""
    u = _draw(key, image, strength, by_channel)
    mean = jnp.mean(image, tuple(range(image.ndim - 1)) if by_channel else None)
    return jnp.clip(mean + (1 + u) * (image - mean), 0, 1)


def gamma(
    key: Array, image: Array, *, max_log_gamma: float, by_channel: bool = False
) -> Array:
    """Raises every intensity to one random power, exp(u), u ~ U(-m, m), m the maximum."""
    u = _draw(key, image, max_log_gamma, by_channel)
    return image ** jnp.exp(u)


def _draw(key: Array, image: Array, limit: float, by_channel: bool) -> Array:
    """u ~ U(-limit, limit): one number for an image [*S, C], or one a channel, [C]."""
    shape = image.shape[-1:] if by_channel else ()
    return jax.random.uniform(key, shape, image.dtype, -limit, limit)


def noise(key: Array, image: Array, *, std: float) -> Array:
    """Adds independent Gaussian noise of this standard deviation to every pixel."""
    grain = std * random.normal(key, image.shape)
    return jnp.clip(image + grain.astype(image.dtype), 0, 1)


def colour_jitter(
    key: Array, image: Array, *, hue: float, saturation: float, brightness: float
) -> Array:
    """Rotates the hue, scales saturation and brightness: one 3 x 3 matrix.

    Hue is the angle about the grey axis and saturation the distance from it, so grey
    pixels stay grey, and no conversion to another colour space is needed.

    Args:
      hue: +- turns, 1 = 360 degrees.
      saturation: the distance from grey is scaled by 1 + u, u ~ U(-this, this).
      brightness: everything is scaled by 1 + u, likewise.

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

    A volume has one histogram. The strength is at most 1.
    """
    share = strength * jax.random.uniform(key)
    return jnp.clip(image + share * (normalisation.equalise(image) - image), 0, 1)


def clahe(
    key: Array, image: Array, *, strength: float, clip: float = 2.0, tiles: int = 8
) -> Array:
    """Mixes in a random share, u ~ U(0, strength), of the image equalised by tiles.

    The strength is at most 1; clip and tiles are those of normalisation.clahe.
    """
    if image.ndim != 3:
        raise InputError(
            "augment.ops: 'clahe' would map each slice of a volume differently: "
            "leave it out, or use 'equalise'"
        )
    share = strength * jax.random.uniform(key)
    local = normalisation.clahe(image, clip=clip, tiles=tiles)
    return jnp.clip(image + share * (local - image), 0, 1)


def rician_noise(key: Array, image: Array, *, std: float) -> Array:
    """MRI's noise: the magnitude of a signal with Gaussian noise in both its channels.

    Bright tissue gets Gaussian noise, air a positive floor (std times 1.25).

    Source: Gudbjartsson & Patz, Magn. Reson. Med. 34 (1995) 910.
    """
    # Two keys: with one array for both channels XLA's loops are ten times slower.
    real, imaginary = (
        std * random.normal(channel, image.shape) for channel in jax.random.split(key)
    )
    # The bound changes no value. It leaves one square that can be fused with the sum;
    # with two, programs might choose differently and round differently.
    noisy = jnp.sqrt((image + real) ** 2 + jnp.minimum(imaginary**2, 1e30))
    return jnp.where(std > 0, jnp.clip(noisy, 0, 1), image)


def speckle(key: Array, image: Array, *, std: float) -> Array:
    """Ultrasound's noise: each intensity is multiplied by its own N(1, std^2).

    The std is the speckle's contrast, deviation over mean; 1 when fully developed.

    Source: Goodman, J. Opt. Soc. Am. 66 (1976) 1145.
    """
    return jnp.clip(image * (1 + std * random.normal(key, image.shape)), 0, 1)


def poisson_noise(key: Array, image: Array, *, std: float) -> Array:
    """Nuclear medicine's noise: an intensity is a number of counts, and counts vary.

    Intensity 1, of this relative deviation, stands for 1 / std^2 counts: 0.1 for 100
    counts in the hottest pixel. Clipping lowers the mean of intensities above 1 - std.

    Source: Cherry, Sorenson & Phelps, Physics in Nuclear Medicine, chapter 9.
    """
    counts = 1 / jnp.maximum(std, 1e-6) ** 2
    noisy = poisson(random.uniform(key, image.shape), image * counts) / counts
    return jnp.where(std > 0, jnp.clip(noisy, 0, 1), image)


def blur(key: Array, image: Array, *, max_sigma: float) -> Array:
    """A Gaussian, mirrored at the edges, of sigma ~ U(0, max_sigma) pixels; static."""
    radius = int(4 * max_sigma + 0.5)
    sigma = jnp.maximum(max_sigma * jax.random.uniform(key), 1e-3)
    tap = {k: jnp.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)}
    total = sum(tap.values())
    for axis in range(image.ndim - 1):
        image = _weigh(image, axis, {k: value / total for k, value in tap.items()})
    return jnp.clip(image, 0, 1)


def low_resolution(key: Array, image: Array, *, strength: float) -> Array:
    """Averages into larger pixels, and interpolates them back to the old ones.

    A pixel's side grows by 1 + u, u ~ U(0, strength), on every axis; static.
    """
    factor = 1 + strength * jax.random.uniform(key)
    for axis, size in enumerate(image.shape[:-1]):
        image = _weigh(image, axis, coarsening(size, factor, 1 + strength))
    return jnp.clip(image, 0, 1)


def bias_field(key: Array, image: Array, *, strength: float) -> Array:
    """MRI's bias field: a smooth gain, 1 + a polynomial of degree 3 of the position.

    Each sequence has its own field, because it is acquired at another time. The gain
    is within 1 +- u, u ~ U(0, strength), with a strength below 1.

    Source: Van Leemput et al., IEEE Trans. Med. Imaging 18 (1999) 885, for the
    polynomial; 10 to 40 % are usual: Sled et al., same journal 17 (1998) 87.
    """
    k_shape, k_size = jax.random.split(key)
    sizes, channels = image.shape[:-1], image.shape[-1:]
    orders = [range(DEGREE + 1)] * len(sizes)
    kept = jnp.array([0 < sum(o) <= DEGREE for o in itertools.product(*orders)])
    shape = (DEGREE + 1,) * len(sizes) + channels
    field = jax.random.uniform(k_shape, shape, minval=-1)
    field = jnp.where(kept.reshape(*shape[:-1], 1), field, 0)
    for axis, size in enumerate(sizes):  # Orders become pixels, axis by axis.
        x = jnp.linspace(-1, 1, size).reshape(-1, *(1,) * (len(sizes) - axis))
        parts = jnp.split(field, DEGREE + 1, axis)
        field = parts[-1]
        for lower in parts[-2::-1]:  # Horner's scheme.
            field = field * x + lower
    top = jnp.max(jnp.abs(field), tuple(range(len(sizes))))
    gain = strength * jax.random.uniform(k_size, channels) / top
    return jnp.clip(image * (1 + gain * field), 0, 1)


def crop_pad(key: Array, image: Array, *, shift: float) -> Array:
    """Shifts the frame by whole pixels; black comes in.

    The shift is +- a share of each side; static. A mask doesn't move with the image.
    """
    start, width = [], []
    shares = jax.random.uniform(key, (image.ndim - 1,), minval=-1)
    for size, share in zip(image.shape[:-1], shares, strict=True):
        most = shift * size
        width.append((math.ceil(most),) * 2)
        start.append(math.ceil(most) + jnp.rint(share * most).astype(jnp.int32))
    wide = jnp.pad(image, [*width, (0, 0)])
    return jax.lax.dynamic_slice(wide, [*start, 0], image.shape)


def cut_out(key: Array, image: Array, *, size: float, fill: float = 0.0) -> Array:
    """Fills one box, whose sides are this share of the image's; the edge may cut it.

    Source: DeVries & Taylor, Improved Regularization ... with Cutout (2017).
    """
    centre = jax.random.uniform(key, (image.ndim - 1,))
    inside = jnp.ones((), bool)
    for axis, length in enumerate(image.shape[:-1]):
        distance = jnp.abs((jnp.arange(length) + 0.5) / length - centre[axis])
        inside &= _along(distance < size / 2, axis, image.ndim)
    return jnp.where(inside, fill, image)


def poisson(u: Array, mean: Array) -> Array:
    """The Poisson distribution's quantile of u.

    Where the mean is small, summing probabilities is exact and short. Above, the
    normal's quantile, corrected for skewness, is accurate and needs no loop. A
    rejection sampler would run as long as the slowest of all pixels.

    Source: Giles, Algorithm 955, ACM Trans. Math. Softw. 42 (2016) 7, for the large.
    """
    few = jnp.minimum(mean, MIN_NORMAL_MEAN)
    p = below = jnp.exp(-few)
    small = jnp.zeros_like(u)
    for k in range(1, 29):  # u has 16 bits, so no quantile of these means is above 28.
        small += u > below
        p *= few / k
        below += p
    z = math.sqrt(2) * jax.lax.erf_inv(2 * u - 1)
    root = jnp.sqrt(jnp.maximum(mean, MIN_NORMAL_MEAN))
    large = root**2 + root * z + (2 + z**2) / 6 - (2 * z + z**3) / (72 * root)
    return jnp.where(mean < MIN_NORMAL_MEAN, small, jnp.floor(large))


def coarsening(size: int, factor: Array, most: float) -> dict[int, Array]:
    """Averages `factor` (1 to `most`) pixels into one, and interpolates these linearly.

    Returns, by distance, the weights [size] that each pixel gives to the pixel so far
    away; with a factor of 1 they are the identity.
    """
    pixel = jnp.arange(size) - (size - 1) // 2
    place = pixel / factor  # Of each pixel among the large ones.
    before = jnp.floor(place)
    share = place - before

    def overlap(large: Array, near: Array) -> Array:
        low = jnp.maximum((large - 0.5) * factor, near - 0.5)
        high = jnp.minimum((large + 0.5) * factor, near + 0.5)
        return jnp.maximum(high - low, 0)

    weight, reach = {}, math.ceil(1.5 * most)
    for k in range(-reach, reach + 1):
        near = pixel + k
        value = (1 - share) * overlap(before, near) + share * overlap(before + 1, near)
        weight[k] = jnp.where((near >= pixel[0]) & (near <= pixel[-1]), value, 0)
    total = sum(weight.values())
    return {k: value / total for k, value in weight.items()}


def _weigh(image: Array, axis: int, weight: dict[int, Array]) -> Array:
    """The weighted sum of neighbours at each distance along an axis.

    A matrix product's order of summation, and so the last bit, would depend on the
    batch's size.
    """
    size, reach = image.shape[axis], max(weight)
    width = [(0, 0)] * image.ndim
    width[axis] = (reach, reach)
    wide = jnp.pad(image, width, mode="symmetric")
    return sum(
        _along(value, axis, image.ndim)
        * jax.lax.slice_in_dim(wide, reach + k, reach + k + size, axis=axis)
        for k, value in weight.items()
    )


def _along(x: Array, axis: int, rank: int) -> Array:
    """[] or [N] with an image's rank, N along the axis."""
    return x.reshape([-1 if n == axis else 1 for n in range(rank)])


OPS = {
    name: op
    for name, op in globals().copy().items()
    if inspect.isfunction(op)
    and not name.startswith("_")
    and "key" in inspect.signature(op).parameters
}

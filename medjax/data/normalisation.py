"""Intensity normalisation: the same in training, evaluation and prediction.

`intensity.name` in a config names one of these functions:

  X-ray, mammography   standardise, standardise_each
  MRI                  standardise_inside(spatial=3), each sequence alone
  data.source=volumes  z_scores: as their preparation has standardised them
  ultrasound           log_compress (of an envelope), standardise_inside
  PET, SPECT           relative_to_hottest
  fluoroscopy          standardise_each(spatial=3): all frames of a run alike
  retina               standardise_inside(above=0.04): each colour alone; equalise_tiles

Images are [..., H, W, C] float, or with `spatial` = 3 [..., D, H, W, C], and their
shape stays. Histogram equalisation works on 256 grey levels and on each channel alone.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from chex import Array

LEVELS = 256
# z-scores that a stored volume's 0 and 1 stand for: 4 deviations below the body's mean
# there is about no signal.
LOWEST, HIGHEST = -4.0, 8.0


def unit_range(image: Array) -> Array:
    """Scales uint8 and uint16 to float32 in [0, 1]; floats are returned unchanged."""
    if jnp.issubdtype(image.dtype, jnp.unsignedinteger):
        return image.astype(jnp.float32) / jnp.iinfo(image.dtype).max
    return image


def standardise(
    image: Array, *, mean: float | Sequence[float], std: float | Sequence[float]
) -> Array:
    """Centres and scales intensities in [0, 1] by the data set's mean and deviation.

    These are one number, or one for each channel of [..., C].
    """
    return (image - jnp.asarray(mean)) / jnp.asarray(std)


def z_scores(image: Array) -> Array:
    """Volumes in [0, 1], as they are stored, back to z-scores of LOWEST to HIGHEST.

    Exactly 0 stays 0: it is outside of the body, or of a missing sequence.
    """
    return jnp.where(image > 0, image * (HIGHEST - LOWEST) + LOWEST, 0)


def standardise_each(image: Array, *, spatial: int = 2) -> Array:
    """Gives every image mean 0 and deviation 1: undoes its exposure.

    With `spatial` = 3, all slices of a volume, or all frames of a fluoroscopic run, are
    normalised together, so that their differences stay. A constant image becomes 0.
    """
    axes = tuple(range(-1 - spatial, 0))
    centred = image - jnp.mean(image, axes, keepdims=True)
    std = jnp.sqrt(jnp.mean(centred**2, axes, keepdims=True))
    return centred / jnp.maximum(std, 1e-3)  # Below a quarter of a grey level.


def standardise_inside(
    image: Array,
    *,
    above: float = 0.0,
    percentiles: tuple[float, float] = (0.5, 99.5),
    spatial: int = 2,
) -> Array:
    """Gives each channel mean 0 and deviation 1 inside a mask, 0 outside.

    For MRI, whose units are arbitrary and whose channels are sequences: the z-score
    over the brain. For ultrasound: over the sector. For the retina: each colour over
    the round field, which undoes lamp and pigment. Black around them isn't counted.

    Args:
      above: the mask is where any channel exceeds this.
      percentiles: of the mask, to which intensities are clipped first: a vessel or a
        rim of fat must not set the scale. (0, 100) clips nothing.

    Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, supplement: z-score
    in the brain mask; percentiles: Nyul et al., IEEE TMI 19 (2000) 143.
    """
    axes = tuple(range(-1 - spatial, -1))
    mask = jnp.any(image > above, axis=-1, keepdims=True)
    if percentiles != (0, 100):
        low, high = (percentile(image, mask, p, axes) for p in percentiles)
        image = jnp.clip(image, low, high)
    count = jnp.maximum(jnp.sum(mask, axes, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask, image, 0), axes, keepdims=True) / count
    centred = jnp.where(mask, image - mean, 0)
    variance = jnp.sum(centred**2, axes, keepdims=True) / count
    std = jnp.sqrt(variance)
    varies = std > 1e-5 * jnp.abs(mean)  # Below that, it is float32's rounding.
    return jnp.where(varies, centred / jnp.where(varies, std, 1), 0)


def percentile(image: Array, mask: Array, p: float, axes: Sequence[int]) -> Array:
    """The smallest value that p % of the masked pixels don't exceed, to 24 bits.

    It bisects: sorting a volume takes a hundred times as long. Of [..., C] and a mask
    [..., 1] it keeps the axes with length 1; with an empty mask it is any number.
    """
    target = p / 100 * jnp.sum(mask, axes, keepdims=True)
    ends = (
        jnp.min(jnp.where(mask, image, jnp.inf), axes, keepdims=True),
        jnp.max(jnp.where(mask, image, -jnp.inf), axes, keepdims=True),
    )

    def halve(_, ends):
        low, high = ends
        middle = low + (high - low) / 2
        below = jnp.sum(mask & (image <= middle), axes, keepdims=True)
        enough = below >= target
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    low, high = jax.lax.fori_loop(0, 24, halve, ends)
    return low if p == 0 else high


def log_compress(envelope: Array, *, decibels: float = 60.0) -> Array:
    """Ultrasound: the logarithm of echoes, whose range is far larger than a screen's.

    The envelope [..., H, W, C] is the echoes' amplitude in any unit. `decibels` below
    the strongest echo, 20 dB a factor of 10, become [0, 1]; without an echo all is 0.

    Source: Szabo, Diagnostic Ultrasound Imaging (2004), chapter 10.
    """
    strongest = jnp.max(envelope, (-3, -2, -1), keepdims=True)
    ratio = envelope / jnp.where(strongest > 0, strongest, 1)
    least = 10 ** (-decibels / 20)
    return jnp.clip(1 + 20 / decibels * jnp.log10(jnp.maximum(ratio, least)), 0, 1)


def relative_to_hottest(
    image: Array, *, share: float = 99.9, spatial: int = 3
) -> Array:
    """SPECT: counts relative to those of the hottest region; they have no other unit.

    The hottest is a percentile of the pixels with counts, as the single hottest one is
    noise. The result is in [0, 1], and 0 everywhere without a count.

    Source: Holly et al., J. Nucl. Cardiol. 17 (2010) 941: perfusion is read relative
    to the maximum.
    """
    axes = tuple(range(-1 - spatial, -1))
    hottest = percentile(image, image > 0, share, axes)
    valid = jnp.isfinite(hottest) & (hottest > 0)
    return jnp.where(valid, jnp.clip(image / jnp.where(valid, hottest, 1), 0, 1), 0)


def equalise_tiles(image: Array, *, clip: float = 2.0, tiles: int = 8) -> Array:
    """`clahe` of each image [H, W, C] of [..., H, W, C]."""
    each = jax.vmap(lambda image: clahe(image, clip=clip, tiles=tiles))
    return each(image.reshape(-1, *image.shape[-3:])).reshape(image.shape)


def flipped_views(
    image: Array, *, prepare: Callable[[Array], Array], flip: bool = False
) -> Array:
    """Normalised views [V, B, H, W, C] of images, whose predictions are averaged.

    `prepare` is a function of this module with its numbers bound. `flip` adds the
    left-right mirror image; this only helps if training mirrored too.
    """
    image = prepare(unit_range(image))
    return jnp.stack([image, image[..., ::-1, :]] if flip else [image])


def equalise(image: Array) -> Array:
    """Maps each grey level of [*S, C] to the share of pixels that are not brighter.

    A volume has one histogram. The darkest level becomes 0 and the brightest 1; a
    constant image is unchanged.

    Source: Gonzalez & Woods, Digital Image Processing, section 3.3; the darkest
    level's pixels are left out, so that black stays black.
    """

    def equalise_channel(channel: Array) -> Array:
        level = _level(channel)
        below = jnp.cumsum(jnp.bincount(level.ravel(), length=LEVELS))
        darkest = below[jnp.min(level)]
        rest = level.size - darkest
        share = (below - darkest) / jnp.maximum(rest, 1)
        return jnp.where(rest > 0, share[level], channel)

    return jax.vmap(equalise_channel, -1, -1)(image)


def clahe(image: Array, *, clip: float = 2.0, tiles: int = 8) -> Array:
    """Equalises each neighbourhood, with a limit on the gain in contrast (CLAHE).

    Every tile has a histogram, which is clipped and its excess spread over all levels.
    A pixel's value is interpolated between the maps of the four nearest tiles.

    Args:
      image: [H, W, C] float in [0, 1].
      clip: highest count of a level, as a multiple of the mean count: the gain in
        contrast is `clip` + 1 at most, and 1 has the weakest effect.
      tiles: on each side; the lower and right edges are mirrored to fill them.

    Source: Zuiderveld, Graphics Gems IV (1994), section VIII.5.
    """
    height, width, _ = image.shape
    rows, columns = -(-height // tiles), -(-width // tiles)  # Of a tile.
    top, bottom, down = _between(height, rows, tiles)
    left, right, across = _between(width, columns, tiles)

    def equalise_channel(channel: Array) -> Array:
        level = _level(channel)
        edges = ((0, rows * tiles - height), (0, columns * tiles - width))
        tile = jnp.pad(level, edges, mode="reflect")
        tile = tile.reshape(tiles, rows, tiles, columns)
        number = jnp.arange(tiles)
        number = number[:, None, None, None] * tiles + number[:, None]
        count = jnp.bincount((number * LEVELS + tile).ravel(), length=tiles**2 * LEVELS)
        count = count.reshape(tiles, tiles, LEVELS)
        most = max(clip * rows * columns / LEVELS, 1)
        kept = jnp.minimum(count, most)
        excess = jnp.sum(count - kept, axis=-1, keepdims=True)
        share = jnp.cumsum(kept + excess / LEVELS, axis=-1) / (rows * columns)
        share = share.ravel()

        def mapped(row: Array, column: Array) -> Array:
            return share[(row[:, None] * tiles + column) * LEVELS + level]

        upper = (1 - across) * mapped(top, left) + across * mapped(top, right)
        lower = (1 - across) * mapped(bottom, left) + across * mapped(bottom, right)
        return (1 - down[:, None]) * upper + down[:, None] * lower

    return jnp.clip(jax.vmap(equalise_channel, -1, -1)(image), 0, 1)


def _level(channel: Array) -> Array:
    return jnp.clip(jnp.rint(channel * (LEVELS - 1)), 0, LEVELS - 1).astype(jnp.int32)


def _between(size: int, pitch: int, tiles: int) -> tuple[Array, Array, Array]:
    """For each pixel the tiles whose centres lie before and after it, and how far it is.

    The tiles are the same outside the outermost centres.
    """
    place = jnp.arange(size) / pitch - 0.5  # Centres on pixels: Zuiderveld's, OpenCV's.
    before = jnp.floor(place)
    ends = (jnp.clip(x, 0, tiles - 1).astype(jnp.int32) for x in (before, before + 1))
    return *ends, place - before

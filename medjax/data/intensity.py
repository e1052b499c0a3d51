"""Intensity preparation: the same at training, at evaluation and at prediction.

  X-ray, mammography   standardise, standardise_each
  CT                   hounsfield_windows
  MRI                  standardise_inside(spatial=3), each sequence alone
  ultrasound           log_compress (of an envelope), standardise_inside
  PET                  standard_uptake, then relative_to(highest=...)
  SPECT                relative_to_hottest
  fluoroscopy          standardise_each(spatial=3): all frames of a run alike
  retina               standardise_inside(above=0.04): each colour alone; equalise_tiles

Which augmentations are safe is in augment/safety.py.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from chex import Array

from medjax.data import histogram
from medjax.errors import InputError

# (centre, width) in Hounsfield units. Source: Radiopaedia, 'Windowing (CT)'.
WINDOWS = {
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "bone": (400, 1800),
    "brain": (40, 80),
}
# Half-lives in seconds. Source: European Pharmacopoeia, 5.7.
HALF_LIFE = {
    "C-11": 20.4 * 60,
    "F-18": 109.8 * 60,
    "Ga-68": 67.7 * 60,
    "Tc-99m": 6.01 * 3600,
}


def unit_range(image: Array) -> Array:
    """Scales uint8 to float32 in [0, 1]; floats pass."""
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255
    return image


def standardise(
    image: Array, *, mean: float | Sequence[float], std: float | Sequence[float]
) -> Array:
    """Centres and scales intensities in [0, 1] by the data set's mean and deviation.

    Args:
      image: [..., C] float in [0, 1].
      mean, std: one number, or one for each channel.
    """
    return (image - jnp.asarray(mean)) / jnp.asarray(std)


def standardise_each(image: Array, *, spatial: int = 2) -> Array:
    """Gives every film mean 0 and deviation 1: undoes its exposure.

    Args:
      image: [..., H, W, C] float, or [..., D, H, W, C].
      spatial: 2 for films; 3 treats the slices of a volume, or the frames of a
        fluoroscopic run, alike, so that what changes between them stays.

    Returns:
      Same shape; a film of one grey is 0 everywhere.
    """
    axes = tuple(range(-1 - spatial, 0))
    centred = image - jnp.mean(image, axes, keepdims=True)
    std = jnp.sqrt(jnp.mean(centred**2, axes, keepdims=True))
    return centred / jnp.maximum(std, 1e-3)  # Below a quarter of a grey level.


def standardise_inside(
    image: Array,
    *,
    mask: Array | None = None,
    above: float = 0.0,
    percentiles: tuple[float, float] = (0.5, 99.5),
    spatial: int = 2,
) -> Array:
    """Gives each channel mean 0 and deviation 1 inside the mask, 0 outside.

    For MRI, whose units are arbitrary and whose channels are sequences: the z-score
    over the brain. For ultrasound: over the sector. For the retina: each colour over
    the round field, which undoes lamp and pigment. Black around them counts nothing.

    Args:
      image: [..., H, W, C] float, or [..., D, H, W, C]; 0 outside the patient.
      mask: [..., 1] bool, the brain; None takes where any channel is over `above`.
      above: in the image's units.
      percentiles: what is beyond them in the mask is clipped first: a vessel or a
        rim of fat must not set the scale. (0, 100) clips nothing.
      spatial: 2 or 3, as in `standardise_each`.

    Returns:
      Same shape; 0 everywhere if the mask is empty or the channel has one value.

    Source: Isensee et al., nnU-Net, Nature Methods 18 (2021) 203, supplement: z-score
    in the brain mask; percentiles: Nyul et al., IEEE TMI 19 (2000) 143.
    """
    axes = tuple(range(-1 - spatial, -1))
    if mask is None:
        mask = jnp.any(image > above, axis=-1, keepdims=True)
    if percentiles != (0, 100):
        low, high = (percentile(image, mask, p, axes) for p in percentiles)
        image = jnp.clip(image, low, high)
    count = jnp.maximum(jnp.sum(mask, axes, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask, image, 0), axes, keepdims=True) / count
    centred = jnp.where(mask, image - mean, 0)
    variance = jnp.sum(centred**2, axes, keepdims=True) / count
    std = jnp.sqrt(variance)
    varies = std > 1e-5 * jnp.abs(mean)  # What is less is float32's rounding.
    return jnp.where(varies, centred / jnp.where(varies, std, 1), 0)


def percentile(image: Array, mask: Array, p: float, axes: Sequence[int]) -> Array:
    """The smallest value that p % of the masked pixels don't exceed, to 24 bits.

    By bisection: a sort of a volume takes a hundred times as long.

    Args:
      image: [..., C] float.
      mask: [..., 1] bool.
      p: in [0, 100].
      axes: over which.

    Returns:
      The image's shape with 1 for the axes; with an empty mask, any number.
    """
    wanted = p / 100 * jnp.sum(mask, axes, keepdims=True)
    ends = (
        jnp.min(jnp.where(mask, image, jnp.inf), axes, keepdims=True),
        jnp.max(jnp.where(mask, image, -jnp.inf), axes, keepdims=True),
    )

    def halve(_, ends):
        low, high = ends
        middle = low + (high - low) / 2
        below = jnp.sum(mask & (image <= middle), axes, keepdims=True)
        enough = below >= wanted
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    low, high = jax.lax.fori_loop(0, 24, halve, ends)
    return low if p == 0 else high


def hounsfield_windows(
    hounsfield: Array, *, windows: Sequence[str] = ("lung", "mediastinum", "bone")
) -> Array:
    """CT: each window a channel, black below it and white above.

    Args:
      hounsfield: [..., 1] Hounsfield units: -1000 is air, 0 water.
      windows: K names of WINDOWS.

    Returns:
      [..., K] float32 in [0, 1].

    Raises:
      InputError: an unknown window.

    Source: DICOM PS3.3 C.11.2.1.3.2, the linear exact function.
    """
    for name in windows:
        if name not in WINDOWS:
            known = ", ".join(map(repr, WINDOWS))
            raise InputError(f"intensity.windows: {name!r} is unknown: use {known}")
    centre, width = jnp.array([WINDOWS[name] for name in windows], jnp.float32).T
    return jnp.clip((hounsfield - centre) / width + 0.5, 0, 1)


def log_compress(envelope: Array, *, decibels: float = 60.0) -> Array:
    """Ultrasound: the logarithm of echoes, whose range is far beyond a screen's.

    Args:
      envelope: [..., H, W, C] >= 0, amplitude of the echoes in any unit.
      decibels: the range shown below the strongest echo, 20 dB a factor of 10.

    Returns:
      Same shape, in [0, 1]; 0 everywhere without an echo.

    Source: Szabo, Diagnostic Ultrasound Imaging (2004), chapter 10.
    """
    strongest = jnp.max(envelope, (-3, -2, -1), keepdims=True)
    ratio = envelope / jnp.where(strongest > 0, strongest, 1)
    least = 10 ** (-decibels / 20)
    return jnp.clip(1 + 20 / decibels * jnp.log10(jnp.maximum(ratio, least)), 0, 1)


def standard_uptake(
    activity: Array, *, weight: Array, dose: Array, delay: Array, half_life: float
) -> Array:
    """PET: the uptake value SUV, 1 where the dose is spread evenly over the body.

    Args:
      activity: [...] Bq/ml, at the start of the scan (DICOM's DecayCorrection START).
      weight: [] kg, the body's.
      dose: [] Bq, injected, at the injection.
      delay: [] s, from the injection to the start of the scan.
      half_life: s, see HALF_LIFE.

    Returns:
      Same shape, g/ml.

    Source: Kinahan & Fletcher, Semin. Ultrasound CT MR 31 (2010) 496, eq. 1.
    """
    left = dose * 2 ** (-delay / half_life)
    return activity * (1000 * weight) / left


def relative_to(image: Array, *, highest: float) -> Array:
    """Scales 0 to `highest`, in the image's units (SUV 10, say), to [0, 1]; clips."""
    return jnp.clip(image / highest, 0, 1)


def relative_to_hottest(
    image: Array, *, share: float = 99.9, spatial: int = 3
) -> Array:
    """SPECT: counts as a share of the hottest region's, as they have no other unit.

    Args:
      image: [..., H, W, C] or [..., D, H, W, C] counts.
      share: percentile of the pixels with counts that stands for the hottest: the
        single hottest is noise.
      spatial: 2 or 3, as in `standardise_each`.

    Returns:
      Same shape, in [0, 1]; 0 everywhere without a count.

    Source: Holly et al., J. Nucl. Cardiol. 17 (2010) 941: perfusion is read relative
    to the maximum.
    """
    axes = tuple(range(-1 - spatial, -1))
    hottest = percentile(image, image > 0, share, axes)
    some = jnp.isfinite(hottest) & (hottest > 0)
    return jnp.where(some, jnp.clip(image / jnp.where(some, hottest, 1), 0, 1), 0)


def equalise_tiles(image: Array, *, clip: float = 2.0, tiles: int = 8) -> Array:
    """CLAHE of each image [H, W, C] of [..., H, W, C]; see histogram.clahe."""
    each = jax.vmap(lambda one: histogram.clahe(one, clip=clip, tiles=tiles))
    return each(image.reshape(-1, *image.shape[-3:])).reshape(image.shape)


def views(image: Array, *, prepare: Callable[[Array], Array], flip: bool) -> Array:
    """Prepared views of loaded images, whose predictions are averaged.

    Args:
      image: [B, H, W, C] uint8, or float in [0, 1].
      prepare: `standardise` with its numbers bound, or `standardise_each`.
      flip: adds the left-right mirror image; right only if training mirrored too.

    Returns:
      [V, B, H, W, C] float32, V = 1 or 2.
    """
    image = prepare(unit_range(image))
    return jnp.stack([image, image[..., ::-1, :]] if flip else [image])

"""Draws synthetic lesions into patches of volumes, where real ones are few or alike.

A network knows by heart the few lesions of one patient, where they are and how large.
The drawn ones are of any size, and lie anywhere in the tissue that surrounds the real
ones. They change its intensities as the real ones do, but leave its grain: by a smooth
spot a network would learn to look for smoothness.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax

MOST = 8  # Lesions of a patch.
RADII = 1.5, 20.0  # mm, of a lesion; log-uniform.
UNEVEN = 0.5  # Deviation of a lesion's border, as a share of the radius,
LUMPS = 10  # which has so many control points along an axis of the patch.
EDGE = 0.7  # mm, over which a lesion fades.
CHANGE = 0.5, 1.2  # Of a sequence, as shares of what the real lesions change.
SHELL = 2.0, 5.0  # mm from a lesion's voxel: what is here and no lesion surrounds it.
LIKE = 2.5  # Deviations from the surrounding tissue that still are of it.


class Tissue(NamedTuple):
    """What surrounds the lesions of one volume, and how they differ from it."""

    # [C], of the voxels about lesions; NaN, as the others are, if there are no lesions.
    median: Array
    deviation: Array  # [C], theirs: 1.48 times the median distance from the median.
    change: Array  # [C], the mean of the lesions less the median.


def surroundings(image: Array, label: Array, points: Array, spacing: Array) -> Tissue:
    """Measures the tissue about a volume's lesions.

    Args:
      image: [D, H, W, C], 0 outside of the body.
      label: [D, H, W], above 0 in lesions.
      points: [N, 3] int32, voxels of lesions; if there are none, of anything.
      spacing: [3] mm.
    """
    ways = jax.random.normal(jax.random.key(0), points.shape)  # Of all directions.
    ways /= jnp.linalg.norm(ways, axis=1, keepdims=True)
    ways *= jnp.linspace(*SHELL, len(ways))[:, None]
    near = points + jnp.rint(ways / spacing).astype(jnp.int32)
    near = tuple(jnp.clip(near, 0, jnp.array(label.shape) - 1).T)
    around = image[near].astype(jnp.float32)
    other = (label[near] > 0) | jnp.all(around == 0, axis=-1)  # Lesion, or air.
    around = jnp.where(other[:, None], jnp.nan, around)
    median = jnp.nanmedian(around, axis=0)
    deviation = 1.48 * jnp.nanmedian(jnp.abs(around - median), axis=0)
    at = tuple(points.T)
    lesion = jnp.where(label[at][:, None] > 0, image[at].astype(jnp.float32), jnp.nan)
    return Tissue(median, deviation, jnp.nanmean(lesion, axis=0) - median)


def add(
    key: Array,
    image: Array,
    label: Array,
    tissue: Tissue,
    spacing: Array,
    *,
    probability: float,
) -> tuple[Array, Array]:
    """Draws 1 to MOST lesions into a patch, or with 1 - probability none.

    Args:
      image: [D, H, W, C] float32, 0 outside of the body and in a missing sequence.
      label: [D, H, W] float32, 1 in lesions.
      tissue: its volume's; without lesions there nothing is drawn.
      spacing: [3] mm.

    Returns:
      The image and the label, 1 also where a drawn lesion has half its change or more.
    """
    some, lesions, gain = jax.random.split(key, 3)
    depth = _depth(lesions, label.shape, spacing)
    body = jnp.any(image != 0, axis=-1)
    near = jnp.abs(image - tissue.median) <= LIKE * tissue.deviation
    like = jnp.all(near, axis=-1) & body
    # Grain takes single voxels out of the tissue: what counts is most of 3 x 3 x 3.
    window = (3,) * like.ndim, (1,) * like.ndim, "SAME"
    like = lax.reduce_window(like.astype(jnp.float32), 0.0, lax.add, *window) / 27
    share = jax.nn.sigmoid(depth / EDGE) * jnp.minimum(1.5 * like, 1)
    share *= jax.random.uniform(some) < probability
    low, high = CHANGE
    gain = jax.random.uniform(gain, tissue.change.shape, None, low, high)
    change = gain * tissue.change
    known = jnp.all(jnp.isfinite(change))
    drawn = image + share[..., None] * jnp.where(known, change, 0)
    drawn = jnp.where(image == 0, 0, drawn)
    return drawn, jnp.where(known & body & (share >= 0.5), 1, label)


def _depth(key: Array, shape: tuple[int, ...], spacing: Array) -> Array:
    """How deep each voxel [*shape] lies in uneven ellipsoids, mm; outside below 0."""
    number, place, size, form, border = jax.random.split(key, 5)
    centre = jax.random.uniform(place, (MOST, len(shape))) * jnp.array(shape)
    low, high = jnp.log(jnp.array(RADII))
    radius = jnp.exp(jax.random.uniform(size, (MOST,), None, low, high))
    stretch = jnp.exp(jax.random.uniform(form, centre.shape, None, -0.4, 0.4))
    stretch *= radius[:, None] / spacing  # Half axes, in voxels.
    lumps = jax.random.normal(border, (LUMPS,) * len(shape))
    lumps = UNEVEN * jax.image.resize(lumps, shape, "cubic")
    drawn = jnp.arange(MOST) < jax.random.randint(number, (), 1, MOST + 1)

    def deepest(depth: Array, lesion: tuple) -> tuple[Array, None]:
        centre, stretch, radius, drawn = lesion
        away = jnp.zeros(shape)
        for axis, length in enumerate(shape):
            x = (jnp.arange(length) - centre[axis]) / stretch[axis]
            away += jnp.expand_dims(x**2, [a for a in range(len(shape)) if a != axis])
        own = (1 - jnp.sqrt(away) + lumps) * radius
        return jnp.maximum(depth, jnp.where(drawn, own, -jnp.inf)), None

    none = jnp.full(shape, -jnp.inf)
    return lax.scan(deepest, none, (centre, stretch, radius, drawn))[0]

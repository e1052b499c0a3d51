"""How alike two images are that show the same in other colours; more is better.

Both are computed at points, which need not be a grid: values in [0, 1] and a weight
>= 0 for each, [K, P] alike, for K windows of P points. They are differentiable in the
values of `moving` and in the weights.
"""

import jax.numpy as jnp
from chex import Array

BINS = 32
TINY = 1e-9


def nmi(fixed: Array, moving: Array, weight: Array) -> Array:
    """Normalised mutual information, (H(f) + H(m)) / H(f, m), from 1 to 2.

    The joint histogram has 32 bins a side, smoothed by cubic B-splines: a value of
    moving falls into the four bins around it, which gives it a gradient, a value of
    fixed by the spline about the nearest bin.

    Returns:
      [], 0 where no point has a weight.

    Source: Studholme et al., Pattern Recognition 32 (1999) 71; the windows: Mattes et
    al., IEEE Trans. Med. Imaging 22 (2003) 120, eq. 4.
    """
    fixed, moving, weight = fixed.ravel(), moving.ravel(), weight.ravel()
    # The outer bins are left free for the splines.
    row = jnp.round(1 + fixed * (BINS - 3)).astype(jnp.int32)
    place = 1 + moving * (BINS - 3)
    column = jnp.floor(place).astype(jnp.int32)
    t = place - column
    u = 1 - t
    near, far = 4 - 6 * t * t + 3 * t * t * t, 4 - 6 * u * u + 3 * u * u * u
    spline = jnp.stack([u * u * u, near, far, t * t * t], axis=-1) / 6
    # Scattering is what costs: a point adds its four weights at once, and the four
    # histograms are shifted into one.
    joint = jnp.zeros((BINS * BINS, 4), weight.dtype)
    joint = joint.at[row * BINS + column].add(
        spline * weight[:, None], mode="promise_in_bounds"
    )
    joint = joint.reshape(BINS, BINS, 4)
    joint = sum(jnp.roll(joint[..., k], k - 1, axis=1) for k in range(4))
    joint = (jnp.roll(joint, -1, axis=0) + 4 * joint + jnp.roll(joint, 1, axis=0)) / 6
    joint = joint / jnp.maximum(joint.sum(), TINY)
    apart = _entropy(joint.sum(0)) + _entropy(joint.sum(1))
    return apart / jnp.maximum(_entropy(joint), TINY)


def _entropy(p: Array) -> Array:
    return -jnp.sum(p * jnp.log(jnp.maximum(p, TINY)))


def lncc(fixed: Array, moving: Array, weight: Array) -> Array:
    """Mean squared correlation within windows, from 0 to 1.

    A window counts as its points do together.

    Source: Avants et al., Med. Image Anal. 12 (2008) 26, eq. 5; windows of the whole
    image are sampled here.
    """
    total = weight.sum(-1)

    def mean(x):
        return (weight * x).sum(-1, keepdims=True) / jnp.maximum(total, TINY)[:, None]

    f, m = fixed - mean(fixed), moving - mean(moving)
    noise = 1e-5  # Of the two variances' product's root: air must not correlate.
    square = mean(f * m) ** 2 / ((mean(f * f) + noise) * (mean(m * m) + noise))
    return (total * square[:, 0]).sum() / jnp.maximum(total.sum(), TINY)


METRICS = {"nmi": nmi, "lncc": lncc}

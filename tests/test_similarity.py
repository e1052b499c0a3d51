"""Similarities against numpy's histogram and correlation, in float64."""

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from medjax.geometry import register


def entropy(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))


def test_nmi_is_that_of_a_smoothed_histogram():
    """On the bins the spline is 1/6, 4/6, 1/6; the outer bins are left free."""
    rng = np.random.default_rng(0)
    inner = register.BINS - 2
    fixed = rng.integers(0, inner, (40, 50))
    moving = (fixed // 2 + rng.integers(0, 9, fixed.shape)) % inner
    weight = rng.random(fixed.shape)
    edges = np.arange(register.BINS + 1) - 0.5
    joint, _, _ = np.histogram2d(
        *(x.ravel() + 1.0 for x in (fixed, moving)), edges, weights=weight.ravel()
    )
    for axis in (0, 1):
        joint = ndimage.convolve1d(joint, [1 / 6, 4 / 6, 1 / 6], axis, mode="constant")
    joint /= joint.sum()
    apart = entropy(joint.sum(0)) + entropy(joint.sum(1))
    got = register.nmi(
        *(jnp.asarray(x / (inner - 1), jnp.float32) for x in (fixed, moving)),
        jnp.asarray(weight, jnp.float32),
    )
    np.testing.assert_allclose(got, apart / entropy(joint), rtol=1e-5)


def test_nmi_ignores_colours_and_tells_nothing_from_everything():
    rng = np.random.default_rng(0)
    fixed = jnp.asarray(rng.random(200_000), jnp.float32)
    other = jnp.asarray(rng.random(200_000), jnp.float32)
    one = jnp.ones_like(fixed)
    np.testing.assert_allclose(register.nmi(fixed, other, one), 1, atol=2e-3)
    same = register.nmi(fixed, fixed, one)
    np.testing.assert_allclose(register.nmi(fixed, 1 - fixed, one), same, rtol=1e-3)
    assert same > 1.4
    assert register.nmi(fixed, other, 0 * one) == 0


def test_lncc_is_the_mean_square_of_numpys_correlation():
    rng = np.random.default_rng(0)
    fixed = rng.random((30, 125))
    moving = fixed * rng.normal(size=(30, 1)) + rng.random((30, 125))
    expected = [np.corrcoef(f, m)[0, 1] ** 2 for f, m in zip(fixed, moving)]
    one = np.ones_like(fixed)
    got = register.lncc(*(jnp.asarray(x, jnp.float32) for x in (fixed, moving, one)))
    np.testing.assert_allclose(got, np.mean(expected), rtol=1e-3)
    flat = jnp.asarray(0 * moving, jnp.float32)
    assert register.lncc(jnp.asarray(fixed, jnp.float32), flat, one) == 0

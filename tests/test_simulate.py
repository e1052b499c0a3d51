import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from medjax.augment import pixel_ops

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 200)
FLAT = jnp.broadcast_to(jnp.array([0.0, 0.02, 0.1, 0.5]), (300, 300, 4))
IMAGE = jnp.asarray(RNG.random((19, 24, 2), np.float32))


def drawn(op, **options):
    """One large image of four greys, changed: [4 greys, pixels]."""
    changed = jax.jit(functools.partial(op, **options))(KEY, FLAT)
    return np.asarray(changed, np.float64).reshape(-1, 4).T


# -------------------------------------------------------------------------- noise


def test_rician_noise_has_rices_moments_and_distribution():
    for grey, got in zip(FLAT[0, 0], drawn(pixel_ops.rician_noise, std=0.05)):
        rice = stats.rice(float(grey) / 0.05, scale=0.05)
        assert abs(got.mean() - rice.mean()) < 5 * rice.std() / 300
        np.testing.assert_allclose(got.std(), rice.std(), rtol=0.02)
        assert stats.kstest(got[::10], rice.cdf).pvalue > 1e-3


def test_speckle_goes_with_the_intensity():
    got = drawn(pixel_ops.speckle, std=0.2)
    np.testing.assert_allclose(got.mean(1), FLAT[0, 0], rtol=3e-3)
    np.testing.assert_allclose(got.std(1), 0.2 * FLAT[0, 0], rtol=0.02)
    assert stats.kstest(got[2, ::10], stats.norm(0.1, 0.02).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(got[2, :-1], got[2, 1:])[0, 1]) < 0.02


@pytest.mark.parametrize("std", [0.2, 0.05])
def test_poisson_noise_has_the_mean_of_the_image_and_its_variance(std):
    """Counts are whole, and their mean is their variance, at every intensity."""
    counts = drawn(pixel_ops.poisson_noise, std=std) / std**2
    np.testing.assert_allclose(counts, np.rint(counts), atol=2e-4)
    mean = np.asarray(FLAT[0, 0], np.float64) / std**2
    assert np.abs(counts.mean(1) - mean).max() < 5 * np.sqrt(mean.max()) / 300
    np.testing.assert_allclose(counts.var(1), mean, rtol=0.03)
    assert not counts[0].any()  # Where nothing is, nothing is counted.


@pytest.mark.parametrize("mean", [0.02, 0.7, 5.0, 9.9, 10.1, 40.0, 900.0])
def test_poisson_is_the_quantile(mean):
    u = (np.arange(2**16) + 0.5) / 2**16
    got = np.asarray(jax.jit(pixel_ops.poisson)(u, np.full_like(u, mean)))
    exact = stats.poisson(mean).ppf(u)
    wrong = np.mean(got != exact)
    assert wrong < (1e-4 if mean < 10 else 3e-3)
    assert np.abs(got - exact).max() <= 1


# ----------------------------------------------------------------- blur and pixels


@pytest.mark.parametrize("shape", [(19, 24, 2), (7, 9, 8, 1)])
def test_blur_is_scipys(shape):
    """Its one free number, sigma, is found in an image of one bright pixel."""
    image = jnp.asarray(RNG.random(shape, np.float32))
    point = jnp.zeros((1, 41, 1)).at[0, 20].set(1.0)
    op = jax.jit(functools.partial(pixel_ops.blur, max_sigma=1.5))
    found = []
    for key in KEYS[:6]:
        spread = np.asarray(op(key, point), np.float64).ravel()
        if spread[19] < 1e-6:
            continue
        sigma = np.sqrt(0.5 / np.log(spread[20] / spread[19]))
        expected = ndimage.gaussian_filter(
            np.asarray(image, np.float64), sigma, radius=6, axes=range(len(shape) - 1)
        )
        np.testing.assert_allclose(op(key, image), expected, atol=3e-6)
        found.append(sigma)
    assert len(found) > 2 and 0 < min(found) < max(found) <= 1.5


def test_blurs_widths_are_uniform():
    point = jnp.zeros((1, 33, 1)).at[0, 16].set(1.0)
    op = jax.vmap(lambda k: pixel_ops.blur(k, point, max_sigma=2.0))
    got = np.asarray(jax.jit(op)(KEYS), np.float64)[:, 0, :, 0]
    sigma = np.sqrt(got @ (np.arange(33) - 16.0) ** 2)
    wide = sigma[sigma > 0.6]  # Narrower ones fall between the pixels.
    assert stats.kstest(wide, stats.uniform(0.6, 1.4).cdf).pvalue > 1e-3


def coarse(size, factor):
    """Areas averaged into large pixels, then np.interp, in float64, dense."""
    centre = (size - 1) // 2
    edges = np.arange(size + 1) - 0.5 - centre
    reach = int(size / factor) + 2
    middles, means = [], []
    for m in range(-reach, reach + 1):
        low, high = (m - 0.5) * factor, (m + 0.5) * factor
        area = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        area = np.maximum(area, 0)
        if area.sum() > 1e-9:
            middles.append(m * factor)
            means.append(area)
    # A large pixel that the edge cuts weighs by what is left of it.
    share = [
        np.interp(np.arange(size) - centre, middles, row) for row in np.eye(len(means))
    ]
    matrix = np.array(share).T @ np.array(means)
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 2.9])
@pytest.mark.parametrize("size", [12, 17])
def test_coarsening_averages_and_interpolates(size, factor):
    weight = pixel_ops.coarsening(size, jnp.float32(factor), 3.0)
    got = np.zeros((size, size))
    for k, column in weight.items():
        for row, value in enumerate(np.asarray(column)):
            if 0 <= row + k < size:
                got[row, row + k] += value
            else:
                assert value == 0
    np.testing.assert_allclose(got, coarse(size, factor), atol=2e-6)


def test_low_resolution_is_the_coarsening_of_each_axis():
    op = jax.jit(functools.partial(pixel_ops.low_resolution, strength=1.0))
    got = op(KEY, IMAGE)
    factors = np.linspace(1, 2, 2001)
    rows = IMAGE[:, :1].repeat(24, 1)  # Varies down the rows alone: one axis acts.
    changed = np.asarray(op(KEY, rows))[:, 0]
    error = [np.abs(coarse(19, f) @ rows[:, 0] - changed).max() for f in factors]
    factor = factors[np.argmin(error)]
    assert min(error) < 1e-3 and factor > 1.01
    y, x = coarse(19, factor), coarse(24, factor)
    expected = np.einsum("ij,kl,jlc->ikc", y, x, np.asarray(IMAGE, np.float64))
    np.testing.assert_allclose(got, expected, atol=2e-3)


# --------------------------------------------------------------- field and framing


@pytest.mark.parametrize("shape", [(17, 14), (7, 8, 9)])
def test_the_bias_field_is_a_cubic_within_its_strength(shape):
    flat = jnp.full((*shape, 2), 0.5)
    op = jax.jit(jax.vmap(lambda k: pixel_ops.bias_field(k, flat, strength=0.4)))
    gain = np.asarray(op(KEYS), np.float64) / 0.5 - 1
    axes = tuple(range(1, gain.ndim - 1))
    peak = np.abs(gain).max(axes)
    assert 0 < peak.min() < 0.02 and 0.38 < peak.max() <= 0.4 + 1e-5
    assert not np.allclose(gain[..., 0], gain[..., 1])  # Each sequence has its own.
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    powers = [p for p in np.ndindex((4,) * len(shape)) if 0 < sum(p) <= 3]
    basis = np.stack([np.prod([g**k for g, k in zip(grid, p)], axis=0) for p in powers])
    basis = basis.reshape(len(powers), -1).T
    field = gain[:20, ..., 0].reshape(20, -1).T
    weight, _, _, _ = np.linalg.lstsq(basis, field, rcond=None)
    np.testing.assert_allclose(basis @ weight, field, atol=1e-5)
    assert (np.abs(weight).mean(1) > 1e-3).all()  # No term is left out.


def test_crop_pad_shifts_by_whole_pixels_and_fills_with_black():
    image = IMAGE + 0.01
    op = jax.jit(jax.vmap(lambda k: pixel_ops.crop_pad(k, image, shift=0.2)))
    seen = set()
    for got in np.asarray(op(KEYS)):
        shifts = [  # Down and right; found by trying all.
            (y, x)
            for y in range(-4, 5)
            for x in range(-5, 6)
            if np.array_equal(got, ndimage.shift(image, (y, x, 0), order=0))
        ]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert {y for y, _ in seen} == set(range(-4, 5))
    assert {x for _, x in seen} == set(range(-5, 6))


def test_cut_out_hides_one_box_anywhere():
    image = jnp.ones((20, 30, 1))
    op = jax.jit(jax.vmap(lambda k: pixel_ops.cut_out(k, image, size=0.3, fill=0.25)))
    got = np.asarray(op(KEYS))[..., 0]
    assert set(np.unique(got)) == {0.25, 1.0}
    hidden = got == 0.25
    whole = 0
    for box in hidden:
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box.sum() == rows.size * columns.size  # A box, and
        assert rows.size - 1 == np.ptp(rows) and columns.size - 1 == np.ptp(columns)
        assert rows.size <= 6 and columns.size <= 9  # no larger than 30 %.
        whole += (rows.size, columns.size) == (6, 9)
    assert 60 < whole < 140  # About half of them are cut by the edge: 0.7^2.
    assert hidden.any(0).all()

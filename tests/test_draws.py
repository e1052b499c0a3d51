import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from medjax.augment import random

KEY = jax.random.key(0)
SIDE = 2048  # Four million numbers.
NORMAL = np.asarray(jax.jit(lambda: random.normal(KEY, (SIDE, SIDE)))(), np.float64)
WORDS = np.asarray(jax.jit(lambda: random.words(KEY, (SIDE, SIDE)))())


def correlation(a, b):
    """Of two arrays of independent numbers: N(0, 1), for many of them."""
    a, b = (np.ravel(x).astype(np.float64) for x in (a, b))
    return np.corrcoef(a, b)[0, 1] * np.sqrt(a.size)


def mixed(x):
    """The hash in Python's own integers."""
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def test_a_word_is_the_hash_of_the_place_and_the_key():
    shape = (3, 5, 2)
    first, second = (int(x) for x in jax.random.bits(KEY, (2,)))
    expected = [mixed(mixed((first + n) % 2**32) ^ second) for n in range(30)]
    found = np.asarray(random.words(KEY, shape)).ravel().tolist()
    assert found == expected


@pytest.mark.parametrize("sign", [0, 1])
def test_the_normal_is_the_tails_quantile(monkeypatch, sign):
    """For every 64th of the tails, the rarest and the commonest ones."""
    tails = np.arange(2**24, dtype=np.uint32)
    tails = np.r_[tails[::64], tails[:4096], tails[-4096:]]
    monkeypatch.setattr(random, "words", lambda key, shape: tails << 8 | sign)
    found = np.asarray(random.normal(KEY, tails.shape), np.float64)
    exact = -special.ndtri((tails + 0.5) / 2**25) * (-1) ** sign
    # Close to 0 in float32 steps: its square, of which a root is taken, is near 1.
    np.testing.assert_allclose(found, exact, rtol=4e-4, atol=3e-4)
    assert np.abs(special.ndtr(found) - special.ndtr(exact)).max() < 1.5e-4


def test_the_normal_is_normal():
    values = NORMAL.ravel()
    n = values.size
    assert np.isfinite(values).all()
    assert stats.kstest(values, stats.norm.cdf).pvalue > 1e-3
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.skew(values)) < 4 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24 / n)
    for size in (2, 3, 4, 4.5):
        for side in (values, -values):
            expected = n * stats.norm.sf(size)
            assert abs((side > size).sum() - expected) < 4 * np.sqrt(expected) + 1


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (0, 2), (0, 64), (16, 0)])
def test_neighbours_are_independent(step):
    y, x = step
    here, there = (NORMAL[: SIDE - y, : SIDE - x], NORMAL[y:, x:])
    assert abs(correlation(here, there)) < 4
    assert abs(correlation(here**2, there**2)) < 4
    assert abs(correlation(np.abs(here), there)) < 4


def test_every_bit_is_a_coin_and_none_depends_on_another():
    bits = (WORDS[:64].ravel()[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    n = len(bits)
    signed = (bits * 2.0 - 1).astype(np.float32)
    assert np.abs(signed.sum(0)).max() < 5 * np.sqrt(n)
    for shift in (0, 1, SIDE):  # With each other, the next pixel's, the next row's.
        product = signed[: n - shift].T @ signed[shift:] / np.sqrt(n)
        if shift == 0:
            np.fill_diagonal(product, 0)
        assert np.abs(product).max() < 5.5  # Of 1,024 pairs.


def test_there_is_no_period_and_no_pattern():
    """The spectrum of white noise is exponential, its largest of n about log n."""
    power = np.abs(np.fft.rfft2(NORMAL)) ** 2 / NORMAL.size
    inner = power[1 : SIDE // 2, 1 : SIDE // 2].ravel()
    assert stats.kstest(inner, stats.expon.cdf).pvalue > 1e-3
    assert inner.max() < np.log(inner.size) + 10
    counts = np.bincount(WORDS.ravel() >> 20, minlength=4096)
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = (WORDS[:, ::2] >> 26 << 6 | WORDS[:, 1::2] >> 26).ravel()
    assert stats.chisquare(np.bincount(pairs, minlength=4096)).pvalue > 1e-3


def test_images_and_channels_are_independent():
    """Of keys that follow each other, as those of samples and of ops do."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(40))
    shape = (96, 96, 3)
    found = jax.jit(jax.vmap(functools.partial(random.normal, shape=shape)))(keys)
    found = np.asarray(found).reshape(40, -1, 3)
    pairs = list(itertools.combinations(range(40), 2))
    between = [correlation(found[a], found[b]) for a, b in pairs]
    assert stats.kstest(between, stats.norm.cdf).pvalue > 1e-3
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(correlation(found[..., a], found[..., b])) < 4
    first = found[:, 0, 0].astype(np.float64)
    assert stats.kstest(first, stats.norm.cdf).pvalue > 1e-3


def test_no_keys_numbers_are_anothers_shifted():
    """Of 30,000 keys some begin within an image's size of each other, mod 2^32."""
    keys = jax.random.split(KEY, 30_000)
    first = np.asarray(jax.vmap(lambda k: jax.random.bits(k, (2,)))(keys))[:, 0]
    order = np.argsort(first)
    gaps = np.diff(first[order].astype(np.int64))
    near = int(np.argmin(gaps))
    gap = int(gaps[near])
    assert gap < 1000
    one, other = (
        np.asarray(random.normal(keys[order[n]], (4000,))) for n in (near, near + 1)
    )
    assert abs(correlation(one[gap:], other[: len(other) - gap])) < 4


def test_a_number_depends_on_no_batch():
    keys = jax.random.split(KEY, 8)
    draw = functools.partial(random.normal, shape=(33, 17))
    alone = np.stack([jax.jit(draw)(key) for key in keys])
    for many in (jax.jit(jax.vmap(draw)), jax.jit(lambda k: jax.lax.map(draw, k))):
        np.testing.assert_array_equal(many(keys), alone)
    mapped = jax.pmap(jax.vmap(draw))(keys.reshape(4, 2))
    np.testing.assert_array_equal(mapped.reshape(alone.shape), alone)


def test_the_uniform_has_16_bits_of_its_word():
    found = np.asarray(random.uniform(KEY, (SIDE, SIDE)), np.float64)
    np.testing.assert_array_equal(found, ((WORDS >> 16) + 0.5) / 2**16)

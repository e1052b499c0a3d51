import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.data import normalisation

RNG = np.random.default_rng(0)


def test_uint8_becomes_the_unit_range_and_floats_pass():
    image = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(
        normalisation.unit_range(jnp.asarray(image)), [0, 0.2, 1]
    )
    half = jnp.array([0.5])
    assert normalisation.unit_range(half) is half


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_the_film_and_its_mirror_image_prepared(flip):
    image = RNG.integers(0, 256, (2, 4, 5, 1), np.uint8)
    expected = (image / 255 - 0.4) / 0.2
    prepare = functools.partial(normalisation.standardise, mean=0.4, std=0.2)
    got = normalisation.flipped_views(jnp.asarray(image), prepare=prepare, flip=flip)
    views = [expected, expected[:, :, ::-1]] if flip else [expected]
    np.testing.assert_allclose(got, views, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5, 1), (3, 6, 5, 1)])
def test_each_film_gets_mean_0_and_deviation_1_whatever_its_exposure(shape):
    image = RNG.random(shape, np.float32)
    got = np.asarray(normalisation.standardise_each(jnp.asarray(image)), np.float64)
    films = got.reshape(-1, 30)
    np.testing.assert_allclose(films.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(films.std(1), 1, atol=1e-5)
    dimmed = normalisation.standardise_each(jnp.asarray(image) * 0.5 + 0.2)
    np.testing.assert_allclose(dimmed, got, atol=1e-4)


def test_an_empty_film_stays_finite():
    assert not normalisation.standardise_each(jnp.full((4, 4, 1), 0.3)).any()


# ---------------------------------------------------------- the other modalities


def test_the_frames_of_a_run_are_treated_alike():
    run = RNG.random((2, 3, 6, 5, 1), np.float32) * np.arange(1, 4)[:, None, None, None]
    got = np.asarray(normalisation.standardise_each(jnp.asarray(run), spatial=3))
    for before, after in zip(run.astype(np.float64), got, strict=True):
        expected = (before - before.mean()) / before.std()
        np.testing.assert_allclose(after, expected, atol=1e-5)


@pytest.mark.parametrize("spatial", [2, 3])
def test_a_sequence_is_standardised_inside_the_mask_alone(spatial):
    """Against numpy's percentiles and moments; one call for a batch of patients."""
    image = RNG.gamma(2.0, (30, 400), (2, *(7, 9, 8)[-spatial:], 2)) + 1
    mask = RNG.random((*image.shape[:-1], 1)) < 0.6
    image = np.where(mask, image, 0).astype(np.float32)
    got = normalisation.standardise_inside(
        jnp.asarray(image), percentiles=(5, 90), spatial=spatial
    )
    assert not np.asarray(got)[~np.broadcast_to(mask, got.shape)].any()
    for b in range(2):
        for c in range(2):
            inside = image[b, ..., c][mask[b, ..., 0]].astype(np.float64)
            low, high = np.percentile(inside, (5, 90), method="inverted_cdf")
            inside = np.clip(inside, low, high)
            expected = (inside - inside.mean()) / inside.std()
            values = np.asarray(got)[b, ..., c][mask[b, ..., 0]]
            np.testing.assert_allclose(values, expected, atol=2e-5)


def test_only_what_is_over_a_colour_counts_for_the_retina():
    image = np.full((6, 6, 3), 0.03, np.float32)  # Not quite black.
    image[1:5, 1:5] = RNG.random((4, 4, 3)) * (0.5, 0.3, 0.02) + (0.3, 0.1, 0)
    got = normalisation.standardise_inside(
        jnp.asarray(image), above=0.04, percentiles=(0, 100)
    )
    disc = image[1:5, 1:5].reshape(-1, 3).astype(np.float64)
    expected = (disc - disc.mean(0)) / disc.std(0)
    np.testing.assert_allclose(got[1:5, 1:5].reshape(-1, 3), expected, atol=1e-5)
    assert float(jnp.abs(got).sum()) == pytest.approx(np.abs(expected).sum(), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.5])
def test_an_empty_mask_or_one_value_is_zero(value):
    image = jnp.full((4, 4, 2), value)
    assert not normalisation.standardise_inside(image).any()


@pytest.mark.parametrize("p", [0, 0.5, 37, 99.9, 100])
def test_a_percentile_is_numpys(p):
    image = RNG.normal(0, 50, (9, 31, 2)).astype(np.float32)
    mask = RNG.random((9, 31, 1)) < 0.5
    got = normalisation.percentile(jnp.asarray(image), jnp.asarray(mask), p, (0, 1))
    inside = image[mask[..., 0]]
    expected = np.percentile(inside, p, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(got[0, 0], expected, atol=1e-4)


def test_a_percentile_that_falls_on_a_pixel_is_that_pixel():
    image = jnp.arange(1.0, 11).reshape(10, 1)
    got = normalisation.percentile(image, jnp.ones((10, 1), bool), 50, (0,))
    np.testing.assert_allclose(got, [[5]], atol=1e-5)


def test_echoes_are_compressed_by_decades():
    echoes = jnp.array([1000.0, 100, 10, 1, 0.1, 0]).reshape(1, 6, 1)
    got = normalisation.log_compress(echoes, decibels=60.0).ravel()
    np.testing.assert_allclose(got, [1, 2 / 3, 1 / 3, 0, 0, 0], atol=1e-6)
    assert not normalisation.log_compress(jnp.zeros((2, 2, 1))).any()


def test_counts_are_relative_to_the_hottest_region_and_not_pixel():
    counts = RNG.poisson(np.linspace(0, 200, 4000)).reshape(1, 10, 20, 20, 1)
    counts[0, 0, 0, 0] = 5000  # Noise.
    got = np.asarray(
        normalisation.relative_to_hottest(jnp.asarray(counts, jnp.float32), share=99.0)
    )
    hottest = np.percentile(counts[counts > 0], 99, method="inverted_cdf")
    np.testing.assert_allclose(got, np.minimum(counts / hottest, 1), atol=1e-6)
    assert not normalisation.relative_to_hottest(jnp.zeros((1, 2, 2, 2, 1))).any()


def test_each_image_of_a_batch_is_equalised_by_its_own_tiles():
    images = RNG.random((2, 3, 16, 12, 1), np.float32) ** 2
    got = jax.jit(functools.partial(normalisation.equalise_tiles, tiles=2))(images)
    one = jax.jit(functools.partial(normalisation.clahe, tiles=2))(images[1, 2])
    np.testing.assert_allclose(got[1, 2], one, atol=1e-6)


def film(height, width):
    """Smooth and grainy parts, dark and bright ones: uint8 with gaps in its greys."""
    y, x = np.mgrid[:height, :width]
    smooth = 90 + 60 * np.sin(x / 23) * np.cos(y / 31) + 0.1 * x
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 12, (height, width)) * (x > width / 2)
    return np.clip(smooth + grain, 12, 240).astype(np.uint8)


def run(op, image, **options):
    scaled = jnp.asarray(image / 255, jnp.float32)[..., None]
    return np.asarray(jax.jit(lambda i: op(i, **options))(scaled))[..., 0] * 255


def test_equalise_is_opencvs():
    image = film(64, 90)
    got = run(normalisation.equalise, image)
    np.testing.assert_allclose(got, cv2.equalizeHist(image), atol=0.501)  # It rounds.


def test_equalise_takes_the_histogram_of_a_whole_volume():
    volume = np.stack([film(20, 30), film(20, 30) // 3])
    flat = cv2.equalizeHist(volume.reshape(1, -1)).reshape(volume.shape)
    np.testing.assert_allclose(run(normalisation.equalise, volume), flat, atol=0.501)


def test_one_grey_stays():
    image = jnp.full((8, 8, 1), 0.3)
    np.testing.assert_array_equal(jax.jit(normalisation.equalise)(image), image)


@pytest.mark.parametrize("clip", [1.0, 2.0, 8.0])
@pytest.mark.parametrize(("height", "width", "tiles"), [(512, 256, 4), (509, 250, 4)])
def test_clahe_is_opencvs(height, width, tiles, clip):
    """Within three grey levels: it spreads whole counts, the rest of them unevenly.

    A rest of up to 255 counts, in tiles of 8000 and more, is what the two may differ by.
    """
    image = film(height, width)
    reference = cv2.createCLAHE(clip, (tiles, tiles)).apply(image)
    got = run(normalisation.clahe, image, clip=clip, tiles=tiles)
    assert np.abs(got - reference).max() <= 3
    assert np.abs(got - reference).mean() < 0.6
    if clip == 8:  # It does something, and not the same everywhere.
        assert np.abs(got - image).mean() > 10
        assert np.abs(got - run(normalisation.equalise, image)).mean() > 5


@pytest.mark.parametrize("op", [normalisation.equalise, normalisation.clahe])
def test_channels_are_kept_apart(op):
    image = np.stack([film(32, 32), film(32, 32) // 2], axis=-1) / np.float32(255)
    got = jax.jit(op)(image)
    for c in range(2):
        alone = jax.jit(op)(image[..., c : c + 1])
        np.testing.assert_allclose(got[..., c : c + 1], alone, atol=1e-6)

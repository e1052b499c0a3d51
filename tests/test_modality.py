import functools

import jax.numpy as jnp
import numpy as np
import pytest

from medjax.data import modality

RNG = np.random.default_rng(0)


def test_uint8_becomes_the_unit_range_and_floats_pass():
    image = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(modality.unit_range(jnp.asarray(image)), [0, 0.2, 1])
    half = jnp.array([0.5])
    assert modality.unit_range(half) is half


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_the_film_and_its_mirror_image_prepared(flip):
    image = RNG.integers(0, 256, (2, 4, 5, 1), np.uint8)
    expected = (image / 255 - 0.4) / 0.2
    prepare = functools.partial(modality.standardise, mean=0.4, std=0.2)
    got = modality.views(jnp.asarray(image), prepare=prepare, flip=flip)
    views = [expected, expected[:, :, ::-1]] if flip else [expected]
    np.testing.assert_allclose(got, views, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5, 1), (3, 6, 5, 1)])
def test_each_film_gets_mean_0_and_deviation_1_whatever_its_exposure(shape):
    image = RNG.random(shape, np.float32)
    got = np.asarray(modality.standardise_each(jnp.asarray(image)), np.float64)
    films = got.reshape(-1, 30)
    np.testing.assert_allclose(films.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(films.std(1), 1, atol=1e-5)
    dimmed = modality.standardise_each(jnp.asarray(image) * 0.5 + 0.2)
    np.testing.assert_allclose(dimmed, got, atol=1e-4)


def test_an_empty_film_stays_finite():
    assert not modality.standardise_each(jnp.full((4, 4, 1), 0.3)).any()
